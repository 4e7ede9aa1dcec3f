"""--pool-mode transaction: how long a lease lasts, and that nothing else changes for Django."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from textwrap import dedent
from typing import Any

import pytest

from support import torture
from support.netproxy import NetProxy
from support.processes import wait_until
from support.script import run_script
from support.servers import Database, Server

COM_QUERY = 3
run_in_mode = partial(run_script, POOLED_SERVE_POOL_MODE="transaction")

HELPERS = """
    from django.db import DatabaseError, Error, IntegrityError, OperationalError, ProgrammingError
    def in_use():
        return pool().stats()["in_use"]
    known = {}
    def pinned():
        total = pool().stats()["pinned_total"]
        return {k: n - known.get(k, 0) for k, n in total.items() if n != known.get(k, 0)}
    def forget_pins():
        known.update(pool().stats()["pinned_total"])
    def number(table="t"):
        return one(f"SELECT COUNT(*) FROM {table}")
    def refused(error, do, *args):
        try:
            do(*args)
        except error as caught:
            return str(caught)
        raise AssertionError(f"it was not refused: {args}")
    from pymysql.cursors import Cursor, SSCursor
    from pooled_serve.driver.connection import MySQLConnection
    sent = []
    execute = MySQLConnection._execute_command
    def counted(self, command, sql):
        sent.append(sql.decode() if isinstance(sql, bytes) else sql)
        return execute(self, command, sql)
    MySQLConnection._execute_command = counted
    run("DROP TABLE IF EXISTS t")
    run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n INT UNIQUE, s VARCHAR(99)) "
        "ENGINE=InnoDB")
    connection.close()
    forget_pins()
    sent.clear()
"""


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def script(project: Any, database: Database) -> Any:
    """Runs a script in transaction mode, with an empty table t and the HELPERS."""

    def script(source: str, *, views: str = "", on: Database = database, **settings: Any) -> Any:
        folder = project(views, databases={"default": on.django(**settings)})
        whole = dedent(HELPERS) + dedent(source) + "\nassert_sound()\n"
        return run_in_mode(folder, whole)

    return script


# --- How long a lease lasts --------------------------------------------------------------------


@pytest.fixture(params=["mariadb", "mysql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A database on MariaDB, then on MySQL."""
    server: Server = request.getfixturevalue(request.param)
    return server.create_database()


def test_a_lease_lasts_a_statement_or_a_transaction(script: Any, either: Database) -> None:
    script(
        """
        for n in (1, 2):
            run("INSERT INTO t (n) VALUES (%s)", n)
            assert in_use() == 0
        assert run("SELECT n FROM t ORDER BY n") == [(1,), (2,)] and in_use() == 0
        with transaction.atomic():
            assert in_use() == 0
            run("INSERT INTO t (n) VALUES (3)")
            assert in_use() == 1
            with transaction.atomic():
                run("SELECT n FROM t WHERE n = 1 FOR UPDATE")
            assert in_use() == 1
        assert in_use() == 0
        with contextlib.suppress(KeyError), transaction.atomic():
            run("INSERT INTO t (n) VALUES (4)")
            raise KeyError
        assert in_use() == 0 and number() == 3
        assert pool().stats()["opened_total"] == 1 and pinned() == {}
        """,
        on=either,
    )


def test_a_statement_that_fails_ends_the_lease_too(script: Any) -> None:
    script(
        """
        run("INSERT INTO t (n) VALUES (1)")
        refused(IntegrityError, run, "INSERT INTO t (n) VALUES (1)")
        assert in_use() == 0
        refused(ProgrammingError, run, "SELECT nonsense FROM nowhere")
        assert in_use() == 0
        with connection.cursor() as cursor:
            refused(ProgrammingError, cursor.execute, "SELECT %s %s", [1])
        assert in_use() == 0 and pinned() == {}
        refused(OperationalError, run, "KILL CONNECTION_ID()")
        """
    )


def test_a_pool_without_connections_is_an_operational_error_of_django(script: Any) -> None:
    script(
        """
        def hold():
            with transaction.atomic():
                run("SELECT 1")
                gevent.sleep(3600)
        holders = [gevent.spawn(hold) for _ in range(4)]
        settle(lambda: in_use() == 4)
        pool().timeout = 0.05
        from pooled_serve.errors import PoolTimeout
        assert "no connection within" in refused(OperationalError, run, "SELECT 1")
        refused(PoolTimeout, run, "SELECT 1")
        gevent.killall(holders)
        pool().timeout = 30
        assert one("SELECT 1") == 1
        """
    )


def test_many_requests_share_few_connections_between_their_queries(
    project: Any, serve: Any, mariadb: Server, database: Database
) -> None:
    # Each of them waits for the others between its queries.
    views = """
        from django.db import connection
        from django.http import HttpResponse
        from gevent.event import Event
        callers, all_are_here = [], Event()
        def outside(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                callers.append(request)
                if len(callers) == 30:
                    all_are_here.set()
                assert all_are_here.wait(20)
                cursor.execute("SELECT 2")
                return HttpResponse(str(cursor.fetchone()[0]))
    """
    folder = project(views, databases={"default": database.django()})
    options = ("--pool-mode", "transaction", "--pool-size", "2", "--max-outstanding", "2")
    web = serve(folder, *options)
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(web.get, ["/outside"] * 30))
    assert {(answer.status, answer.text) for answer in answers} == {(200, "2")}
    wait_until(lambda: len(mariadb.admin.processlist(database.user)) <= 2)


def test_greenlets_that_are_killed_lose_no_slot(script: Any) -> None:
    script(
        """
        import random
        from contextlib import suppress
        from django.db.utils import InterfaceError
        works = [
            lambda: run("SELECT SLEEP(0.01)"),
            lambda: run("INSERT INTO t (s) VALUES (SLEEP(0.01))"),
            lambda: run("SET @a = SLEEP(0.01)"),
        ]
        def block():
            with transaction.atomic():
                run("INSERT INTO t (s) VALUES ('half')")
                gevent.sleep(0.01)
                run("SELECT SLEEP(0.01)")
        works.append(block)
        def work(n):
            # Killed at its COMMIT, a block of Django's ends in an error instead.
            with suppress(InterfaceError):
                while True:
                    works[n % 4]()
        greenlets = [gevent.spawn(work, n) for n in range(40)]
        gevent.sleep(0.2)
        for greenlet in greenlets:
            gevent.sleep(random.random() / 200)
            greenlet.kill()
        settle(lambda: in_use() == 0)
        """
    )


def test_a_killed_block_leaves_nothing(script: Any) -> None:
    script(
        """
        run("CREATE TABLE u (n INT)")
        connection.close()
        other = connection.copy()
        cursor = other.cursor()
        cursor.execute("LOCK TABLES u WRITE")
        def work():
            with transaction.atomic():
                run("INSERT INTO t (n) VALUES (1)")
                run("SELECT n FROM u")
        greenlet = gevent.spawn(work)
        settle(lambda: in_use() == 1)
        gevent.sleep(0.05)
        greenlet.kill()
        other.close()
        settle(lambda: in_use() == 0)
        gevent.sleep(0.05)
        assert number() == 0
        """
    )


# --- What it costs -----------------------------------------------------------------------------


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


COSTS = """
    from django.db import connection, transaction
    from django.http import HttpResponse

    def query():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def bare(request):
        query()
        return HttpResponse()

    def block(request):
        with transaction.atomic():
            query()
        return HttpResponse()

    def empty(request):
        with transaction.atomic():
            pass
        return HttpResponse()

    def twice(request):
        block(request)
        return block(request)
"""


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_atomic_costs_a_begin_and_a_commit_and_an_empty_one_nothing(
    project: Any, serve: Any, database: Database, proxy: NetProxy, mode: str
) -> None:
    folder = project(COSTS, databases={"default": database.via(proxy.port).django()})
    web = serve(folder, "--pool-mode", mode)
    web.get("/bare")
    opened = proxy.traffic().accepted

    def commands(path: str) -> dict[int, int]:
        before = proxy.traffic().commands
        assert web.get(path).status == 200
        return dict(proxy.traffic().commands - before)

    assert commands("/bare") == {COM_QUERY: 1}
    assert commands("/block") == {COM_QUERY: 3}
    assert commands("/empty") == {}
    assert commands("/twice") == {COM_QUERY: 6}
    assert proxy.traffic().accepted == opened


KEYS = """
    from django.db import connection, transaction
    from django.http import HttpResponse

    def run(sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else ()

    def answers(*statements):
        with transaction.atomic():
            return HttpResponse(str([run(sql)[0][0] for sql in statements]))

    def tables(request):
        run("CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, n INT)")
        run("CREATE TABLE plain (n INT PRIMARY KEY)")
        return HttpResponse()

    INTO_T = "INSERT INTO t (n) VALUES (1) RETURNING id"
    INTO_PLAIN = "INSERT INTO plain (n) VALUES (FLOOR(RAND() * 1e9)) RETURNING 'none'"
    ASKED = "SELECT LAST_INSERT_ID()"

    def key(request):
        return answers(INTO_T, ASKED)

    def no_key(request):
        return answers(INTO_PLAIN, ASKED)

    def key_before(request):
        return answers(INTO_T, INTO_PLAIN, ASKED)

    def two(request):
        return answers(INTO_PLAIN, INTO_PLAIN)

    def fails(request):
        with transaction.atomic():
            try:
                with transaction.atomic():
                    run("INSERT INTO t (n) VALUES (nonsense) RETURNING id")
            except Exception as error:
                return HttpResponse(f"{error.args[0]} {run(ASKED)}")
"""


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_insert_returning_tells_no_stranger_s_key(
    project: Any, serve: Any, database: Database, proxy: NetProxy, mode: str
) -> None:
    """Its answer does not say whether it has generated one. To see to that costs no round trip."""
    folder = project(KEYS, databases={"default": database.via(proxy.port).django()})
    web = serve(folder, "--pool-mode", mode)
    web.get("/tables")

    def turns(path: str, answer: str) -> int:
        before = proxy.traffic().turns
        assert web.get(path).text == answer
        return proxy.traffic().turns - before

    web.get("/no_key")
    opened = proxy.traffic().accepted
    fresh = turns("/no_key", "['none', 0]")
    assert turns("/key", "[1, 1]") == fresh
    assert turns("/no_key", "['none', 0]") == fresh
    assert turns("/key_before", "[2, 'none', 2]") == fresh + 1
    assert turns("/two", "['none', 'none']") == fresh
    assert web.get("/fails").text == "1054 ((0,),)"
    assert turns("/no_key", "['none', 0]") == fresh
    assert proxy.traffic().accepted == opened


def test_plain_django_needs_three_more(project: Any, database: Database, proxy: NetProxy) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    source = """
        for _ in range({}):
            with transaction.atomic():
                run("SELECT 1")
        connection.close()
    """
    spent = []
    for rounds in (1, 11):
        before = proxy.traffic().commands
        run_script(folder, source.format(rounds), pooled=False)
        spent.append((proxy.traffic().commands - before)[COM_QUERY])
    assert spent[1] - spent[0] == 10 * 4


# --- As plain Django ---------------------------------------------------------------------------

SCENES = """
    from django.db import models
    class Thing(models.Model):
        name = models.CharField(max_length=50, unique=True)
        number = models.IntegerField(default=0)
        class Meta:
            app_label = "things"
            managed = False
            db_table = "thing"
    from django.db import DatabaseError, Error, IntegrityError, OperationalError
    from django.db.models import F
    @contextlib.contextmanager
    def may_fail():
        try:
            yield
        except Exception as error:
            said.append([type(error).__name__, error.args[0] if error.args else None])
    def names():
        said.append(sorted(Thing.objects.values_list("name", flat=True)))
    def add(name, **more):
        return Thing.objects.create(name=name, **more)
    def second(sql, *args):
        # on a connection of its own, whatever the mode
        copy = connection.copy()
        try:
            with copy.cursor() as cursor:
                cursor.execute(sql, args)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            copy.close()
    def play(scene, source):
        run("DROP TABLE IF EXISTS thing")
        run("CREATE TABLE thing (id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50) UNIQUE, "
            "number INT NOT NULL) ENGINE=InnoDB CHARACTER SET utf8mb4")
        exec(compile(source, scene, "exec"), globals())
        connection.close()
    found = {}
    for scene, source in scenes.items():
        said = found[scene] = []
        gevent.spawn(play, scene, source).get()
        if patch._databases:
            assert_sound()
    report(found)
"""

AS_PLAIN = {
    "nested blocks": """
        with transaction.atomic():
            add("a")
            with may_fail(), transaction.atomic():
                add("b")
                raise KeyError("inner")
            with transaction.atomic():
                add("c")
        names()
        with may_fail(), transaction.atomic():
            add("d")
            with transaction.atomic(savepoint=False):
                add("e")
            raise KeyError("outer")
        names()
    """,
    "savepoints by hand": """
        make = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        with transaction.atomic():
            first = make()
            add("a")
            transaction.savepoint_rollback(first)
            second_one = make()
            add("b")
            transaction.savepoint_commit(second_one)
        names()
    """,
    "an error inside a block": """
        add("a")
        with may_fail(), transaction.atomic():
            add("b")
            with may_fail():
                add("a")
            names()
        names()
        with transaction.atomic():
            add("c")
            with may_fail(), transaction.atomic():
                add("a")
            add("d")
        names()
        with may_fail(), transaction.atomic():
            add("e")
            transaction.set_rollback(True)
        names()
    """,
    "on_commit": """
        with transaction.atomic():
            transaction.on_commit(lambda: said.append(["first", connection.in_atomic_block]))
            add("a")
            with may_fail(), transaction.atomic():
                transaction.on_commit(lambda: said.append("never"))
                raise KeyError("inner")
            transaction.on_commit(lambda: (add("b"), names()))
        transaction.on_commit(lambda: said.append("at once"))
        names()
    """,
    "durable": """
        with transaction.atomic(durable=True):
            add("a")
        with may_fail(), transaction.atomic():
            with transaction.atomic(durable=True):
                add("b")
        names()
    """,
    "implicit commits": """
        with may_fail(), transaction.atomic():
            add("a")
            run("CREATE TABLE IF NOT EXISTS other (n INT)")
            said.append(len(second("SELECT * FROM thing")))
            add("b")
            said.append(len(second("SELECT * FROM thing")))
            raise KeyError
        names()
        with may_fail(), transaction.atomic():
            run("DROP TABLE other")
            add("c")
            raise KeyError
        names()
        with may_fail(), transaction.atomic():
            add("d")
            run("COMMIT")
            add("e")
            raise KeyError
        names()
    """,
    "a procedure that commits": """
        run("DROP PROCEDURE IF EXISTS p")
        run("CREATE PROCEDURE p() BEGIN INSERT INTO thing (name, number) VALUES ('p1', 1); COMMIT; "
            "INSERT INTO thing (name, number) VALUES ('p2', 1); END")
        connection.close()
        with may_fail(), transaction.atomic():
            add("a")
            with connection.cursor() as cursor:
                cursor.callproc("p")
            add("b")
            raise KeyError
        names()
    """,
    "raw transactions": """
        run("BEGIN")
        add("a")
        said.append(len(second("SELECT * FROM thing")))
        run("ROLLBACK")
        run("START TRANSACTION")
        add("b")
        run("COMMIT")
        names()
        run("BEGIN")
        add("c")
        transaction.commit()
        run("BEGIN")
        add("d")
        transaction.rollback()
        names()
        run("BEGIN")
        add("e")
        connection.close()
        names()
    """,
    "set_autocommit": """
        transaction.set_autocommit(False)
        add("a")
        said.append(len(second("SELECT * FROM thing")))
        transaction.commit()
        said.append(len(second("SELECT * FROM thing")))
        add("b")
        transaction.rollback()
        add("c")
        transaction.set_autocommit(True)
        said.append(transaction.get_autocommit())
        said.append(len(second("SELECT * FROM thing")))
        names()
        transaction.set_autocommit(False)
        transaction.commit()
        transaction.rollback()
        transaction.set_autocommit(True)
        add("d")
        names()
    """,
    "SET autocommit": """
        run("SET autocommit = 0")
        add("a")
        said.append(len(second("SELECT * FROM thing")))
        with transaction.atomic():
            add("b")
        said.append(len(second("SELECT * FROM thing")))
        add("c")
        said.append(len(second("SELECT * FROM thing")))
        run("SET autocommit = 0")
        add("d")
        transaction.set_autocommit(True)
        said.append(len(second("SELECT * FROM thing")))
        run("SET autocommit = 0")
        add("e")
        connection.close()
        names()
    """,
    "LOCK TABLES": """
        transaction.set_autocommit(False)
        run("LOCK TABLES thing WRITE")
        add("a")
        with may_fail():
            second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
        transaction.commit()
        with may_fail():
            second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
        run("UNLOCK TABLES")
        said.append(len(second("SELECT * FROM thing")))
        transaction.set_autocommit(True)
        run("LOCK TABLES thing WRITE")
        with transaction.atomic():
            add("b")
            with may_fail():
                second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
        with may_fail():
            second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
        run("UNLOCK TABLES")
        said.append(len(second("SELECT * FROM thing")))
    """,
    "an isolation level for a block": """
        add("a")
        def twice():
            found = [Thing.objects.count()]
            second("INSERT INTO thing (name, number) VALUES (UUID(), 1)")
            said.append([*found, Thing.objects.count()])
        with transaction.atomic():
            twice()
        with transaction.atomic():
            run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            twice()
        with transaction.atomic():
            twice()
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with transaction.atomic():
            twice()
        with may_fail(), transaction.atomic():
            add("b")
            run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        said.append(Thing.objects.filter(name="b").count())
    """,
    "a deadlock": """
        add("a"), add("b")
        def other():
            with may_fail(), transaction.atomic():
                for n in range(50):
                    # The one that wrote less is the victim. No name twice: InnoDB would find the
                    # deleted one, not purged yet, and wait for the lock of its neighbour.
                    add(f"ballast {caught} {n}")
                Thing.objects.filter(name="b").update(number=1)
                ready.set()
                Thing.objects.filter(name="a").update(number=1)
            connection.close()
        from gevent.event import Event
        for caught in ("nothing", "block", "statement"):
            ready = Event()
            with may_fail(), transaction.atomic():
                add("lost " + caught)
                Thing.objects.filter(name="a").update(number=2)
                greenlet = gevent.spawn(other)
                assert ready.wait(30), str(said)
                gevent.sleep(0.05)
                how = {
                    "nothing": contextlib.nullcontext,
                    "statement": may_fail,
                    "block": lambda: contextlib.ExitStack(),
                }[caught]()
                with how:
                    if caught == "block":
                        how.enter_context(may_fail())
                        how.enter_context(transaction.atomic())
                    Thing.objects.filter(name="b").update(number=2)
                add("after " + caught)
            greenlet.join()
            Thing.objects.filter(name__startswith="ballast").delete()
            names()
            said.append(transaction.get_autocommit())
    """,
    "a connection that dies in a block": """
        def die():
            second("KILL %s", one("SELECT CONNECTION_ID()"))
            gevent.sleep(0.05)
        def block(inner):
            with may_fail(), transaction.atomic():
                add("a")
                die()
                for name in "bcd":
                    with may_fail():
                        with inner():
                            add(name)
            connection.close()
            names()
        block(contextlib.nullcontext)
        block(transaction.atomic)
        with may_fail(), transaction.atomic():
            one("SELECT 1")
            die()
            add("e")
        connection.close()
        with may_fail():
            run("BEGIN")
            add("f")
            die()
            with may_fail():
                add("g")
            add("h")
        connection.close()
        names()
    """,
    "rows and counts": """
        things = Thing.objects.bulk_create([Thing(name=f"n{n}", number=n) for n in range(300)],
                                           batch_size=70)
        said.append([len(things), Thing.objects.count()])
        said.append(add("é € 😀").name)
        said.append([Thing.objects.get_or_create(name=name)[1] for name in ("n1", "x")])
        said.append(Thing.objects.filter(number__lt=10).update(number=F("number") + 1))
        things = Thing.objects.iterator(chunk_size=50)
        said.append(sum(thing.number for thing in things))
        said.append(sorted(thing.name for thing in
                    Thing.objects.raw("SELECT * FROM thing WHERE number < %s", [3])))
        Thing.objects.update_or_create(name="n2", defaults={"number": 1000})
        said.append(Thing.objects.get(name="n2").number)
        with connection.cursor() as cursor:
            sql = "INSERT INTO thing (name, number) VALUES (%s, %s)"
            cursor.executemany(sql, [(f"m{n}", n) for n in range(5)])
            said.append(cursor.rowcount)
            update = "UPDATE thing SET number = %s WHERE name = %s"
            cursor.executemany(update, [(7, "m1"), (8, "m2")])
            said.append(cursor.rowcount)
            cursor.execute(sql, ["last", 1])
            said.append([cursor.rowcount, cursor.lastrowid == Thing.objects.get(name="last").id])
            cursor.execute("SELECT name, number FROM thing WHERE name LIKE 'm%%' ORDER BY name")
            said.append([cursor.rowcount, [column[0] for column in cursor.description]])
            said.append([cursor.fetchone(), cursor.fetchmany(2), list(cursor)])
            said.append(cursor.fetchall())
        with transaction.atomic():
            locked = Thing.objects.select_for_update().get(name="m3")
            locked.number += 1
            locked.save()
            with may_fail():
                second("SELECT * FROM thing WHERE name = 'm3' FOR UPDATE NOWAIT")
        said.append(Thing.objects.get(name="m3").number)
        with may_fail():
            list(Thing.objects.select_for_update())
        said.append(Thing.objects.filter(name__startswith="n").delete())
    """,
}


@torture
def test_both_modes_do_what_plain_django_does(
    project: Any, database: Database, subtests: pytest.Subtests
) -> None:
    folder = project(databases={"default": database.django()})
    scenes = {scene: dedent(source) for scene, source in AS_PLAIN.items()}
    source = f"scenes = {scenes!r}\n" + dedent(SCENES)
    plain = run_script(folder, source, pooled=False)
    for mode in ("request", "transaction"):
        pooled = run_script(folder, source, POOLED_SERVE_POOL_MODE=mode)
        for scene in scenes:
            with subtests.test(scene, mode=mode):
                assert plain[scene]
                assert pooled[scene] == plain[scene]


def test_nothing_of_a_block_survives_its_connection(script: Any, mariadb: Server) -> None:
    script(
        """
        def die():
            number = one("SELECT CONNECTION_ID()")
            gevent.spawn(run, "KILL %s", number).join()
            gevent.sleep(0.05)
        try:
            with transaction.atomic():
                run("INSERT INTO t (n) VALUES (1)")
                die()
                for n in (2, 3):
                    refused(Error, run, "INSERT INTO t (n) VALUES (%s)", n)
                assert in_use() == 1
        except Error:
            pass
        else:
            raise AssertionError("it was committed")
        connection.close()
        assert number() == 0
        """
    )


def test_a_project_with_atomic_requests(project: Any, serve: Any, database: Database) -> None:
    views = """
        from django.db import connection, transaction
        from django.http import HttpResponse
        def query(sql):
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall() if cursor.description else None
        @transaction.non_atomic_requests
        def make(request):
            query("CREATE TABLE t (n INT) ENGINE=InnoDB")
            return HttpResponse()
        def good(request):
            query("INSERT INTO t VALUES (1)")
            return HttpResponse()
        def bad(request):
            query("INSERT INTO t VALUES (2)")
            raise KeyError
        def rows(request):
            return HttpResponse(str(query("SELECT n FROM t")))
    """
    folder = project(views, databases={"default": database.django(ATOMIC_REQUESTS=True)})
    web = serve(folder, "--pool-mode", "transaction")
    answers = [web.get(path).status for path in ("/make", "/good", "/bad", "/good")]
    assert answers == [200, 200, 500, 200]
    assert web.get("/rows").text == "((1,), (1,))"


def test_a_project_without_autocommit(script: Any) -> None:
    script(
        """
        assert not connection.get_autocommit()
        connection.ensure_connection()
        assert in_use() == 0
        run("INSERT INTO t (n) VALUES (1)")
        assert in_use() == 1
        connection.commit()
        assert in_use() == 0
        run("INSERT INTO t (n) VALUES (2)")
        connection.close()
        assert run("SELECT n FROM t") == [(1,)]
        connection.rollback()
        assert in_use() == 0
        with transaction.atomic():
            run("INSERT INTO t (n) VALUES (3)")
        assert in_use() == 1  # as Django does: an atomic block is a savepoint here
        connection.commit()
        assert number() == 2
        connection.close()
        """,
        AUTOCOMMIT=False,
    )


def test_management_commands(project: Any, database: Database) -> None:
    folder = project(
        databases={"default": database.django()},
        settings="""
            INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth",
                              "django.contrib.sessions"]
        """,
    )
    source = """
        from django.core.management import call_command
        call_command("migrate", verbosity=0)
        from django.contrib.auth.models import User
        User.objects.create_user("ada", password="x")
        import io
        dump = io.StringIO()
        call_command("dumpdata", "auth.user", stdout=dump)
        call_command("flush", interactive=False, verbosity=0)
        assert not User.objects.exists()
        with open("users.json", "w") as file:
            file.write(dump.getvalue())
        call_command("loaddata", "users.json", verbosity=0)
        call_command("clearsessions")
        report([user.username for user in User.objects.all()])
        assert_sound()
    """
    assert run_in_mode(folder, source) == ["ada"]


# --- What pins a lease -------------------------------------------------------------------------

PINS = {
    "variable": [
        "connection.cursor().execute(bytearray(b'SET @a = 1'))",
        'run("SET @a = 1")',
        "run(\"SET sql_mode = ''\")",
        'run("SELECT @a := 1")',
    ],
    "role": ['run("SET ROLE NONE")'],
    "database": ['run("USE information_schema")'],
    "table lock": ['run("LOCK TABLES t WRITE")'],
    "lock": ["run(\"SELECT GET_LOCK('a lock', 0)\")"],
    "prepared statement": ["run(\"PREPARE p FROM 'SELECT 1'\")"],
    "temporary table": ['run("CREATE TEMPORARY TABLE u (n INT)")'],
    "procedure": ['connection.cursor().callproc("two")', 'run("CALL two()")'],
    "LAST_INSERT_ID(expr)": ['run("UPDATE t SET n = LAST_INSERT_ID(n + 1)")'],
    "SQL_CALC_FOUND_ROWS": ['run("SELECT SQL_CALC_FOUND_ROWS n FROM t LIMIT 1")'],
    "sequence": ['run("SELECT NEXTVAL(q)")', 'run("SELECT NEXT VALUE FOR `q`")'],
    "connection id": [
        'run("SELECT CONNECTION_ID()")',
        'run("SELECT `connection_id`()")',
        'run("SELECT @@pseudo_thread_id")',
        'run("SELECT id FROM information_schema.processlist")',
    ],
    "profiling": ['run("SET profiling = 0")'],
    "XA transaction": ["run(\"XA START 'x'\"); run(\"XA END 'x'\"); run(\"XA ROLLBACK 'x'\")"],
    "unbuffered cursor": ['connection.connection.cursor(SSCursor).execute("SELECT n FROM t")'],
    "direct use": ["connection.connection.thread_id()", "connection.connection.kill"],
    "unknown": ['run("FLUSH STATUS")', 'run("ANALYZE TABLE t")', "run(\"SELECT 'a\\\\\\\\b'\")"],
}


def test_what_touches_the_session_keeps_the_lease_to_the_end(
    script: Any, mariadb: Server, database: Database
) -> None:
    mariadb.admin.query(f"GRANT RELOAD ON *.* TO {database.user}@127.0.0.1")
    statements = [(statement, reason) for reason, some in PINS.items() for statement in some]
    script(
        f"""
        run("CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END")
        run("CREATE SEQUENCE q")
        run("INSERT INTO t (n) VALUES (1)")
        for statement, reason in {statements!r}:
            connection.close()
            settle(lambda: in_use() == 0)
            forget_pins()
            connection.ensure_connection()
            exec("it = " + statement)
            assert in_use() == 1, statement
            assert pinned() == {{reason: 1}}, (statement, pinned())
            key = one("SELECT CONNECTION_ID()")
            assert one("SELECT CONNECTION_ID()") == key and in_use() == 1, statement
            assert pinned() == {{reason: 1}}, (statement, pinned())
        connection.close()
        """
    )


def test_what_is_kept_is_there_until_the_end_and_no_longer(script: Any, either: Database) -> None:
    script(
        """
        run("SET @a = 7")
        run("CREATE TEMPORARY TABLE u (n INT)")
        run("INSERT INTO u VALUES (1)")
        with transaction.atomic():
            run("INSERT INTO u VALUES (2)")
        assert one("SELECT @a") == 7 and number("u") == 2
        assert pinned() == {"variable": 1}, pinned()
        connection.close()
        assert one("SELECT @a") is None
        refused(ProgrammingError, number, "u")
        connection.close()
        """,
        on=either,
    )


def test_state_that_is_set_in_a_block_lasts_to_the_end_of_the_request(script: Any) -> None:
    script(
        """
        with transaction.atomic():
            run("SET @a = 1")
            run("INSERT INTO t (n) VALUES (@a)")
        assert in_use() == 1 and number() == 1
        assert one("SELECT @a") == 1
        with transaction.atomic():
            connection.connection.select_db("information_schema")
        assert in_use() == 1 and one("SELECT DATABASE()") == "information_schema"
        connection.close()
        assert number() == 1
        with transaction.atomic():
            run("SELECT 1")
            connection.connection.select_db("information_schema")
        assert one("SELECT DATABASE()") == "information_schema"
        connection.close()
        assert number() == 1
        """
    )


def test_unread_results_stay_readable(script: Any) -> None:
    script(
        """
        run("CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END")
        for n in range(5):
            run("INSERT INTO t (n) VALUES (%s)", n)
        connection.close()
        with connection.cursor() as cursor:
            cursor.callproc("two")
            assert cursor.fetchall() == ((1,),) and cursor.nextset()
            assert cursor.fetchall() == ((2,),)
        connection.close()
        connection.ensure_connection()
        cursor = connection.connection.cursor(SSCursor)
        cursor.execute("SELECT n FROM t ORDER BY n")
        assert cursor.fetchone() == (0,)
        gevent.spawn(run, "SELECT 1").join()
        assert cursor.fetchall() == [(1,), (2,), (3,), (4,)]
        cursor.close()
        connection.close()
        connection.ensure_connection()
        cursor = connection.connection.cursor(SSCursor)
        cursor.execute("SELECT n FROM t ORDER BY n")
        cursor.fetchone()
        connection.close()  # in the middle of the rows
        settle(lambda: in_use() == 0)
        """
    )


# --- What raises -------------------------------------------------------------------------------

ASKS = [
    "SELECT LAST_INSERT_ID()",
    "SELECT FOUND_ROWS()",
    "SELECT ROW_COUNT()",
    "SHOW WARNINGS",
    "SHOW ERRORS",
    "SHOW COUNT(*) WARNINGS",
    "SELECT @@warning_count",
    "SELECT @@session.error_count",
    "SELECT @@last_insert_id",
    "SELECT @@identity",
    "SELECT LASTVAL(q)",
    "SELECT PREVIOUS VALUE FOR q",
    "SELECT @@local.last_insert_id",
    "SELECT @@session . `identity`",
    "SELECT `LAST_INSERT_ID`()",
    "SELECT `last_insert_id` /* ' */ ( -- '\n )",
    "SHOW VARIABLES",
    "SHOW LOCAL VARIABLES LIKE 'identit_'",
    "SHOW STATUS LIKE 'Bytes_sent'",
    "SELECT * FROM information_schema.`session_variables`",
    "GET DIAGNOSTICS @n = NUMBER",
    "GET CURRENT DIAGNOSTICS CONDITION 1 @m = MESSAGE_TEXT",
    "SELECT 1; SHOW WARNINGS",
    "PREPARE s FROM 'SELECT LAST_INSERT_ID()'",
    "SET @key = LAST_INSERT_ID()",
    "SELECT LAST_INSERT_ID(), 'a\\\\b'",
    "SELECT /*!50000 ROW_COUNT() */",
]


def test_a_question_about_the_statement_before_is_refused_outside_a_block(script: Any) -> None:
    script(
        f"""
        run("CREATE SEQUENCE q")
        for sql in {ASKS!r}:
            connection.close()
            run("INSERT INTO t (s) VALUES ('before')")
            said = refused(ProgrammingError, run, sql)
            assert "transaction.atomic()" in said and "--pool-mode transaction" in said, said
            assert in_use() == 0, sql
            with transaction.atomic():
                run("SELECT NEXTVAL(q)")
                run("INSERT INTO t (s) VALUES ('in the block')")
                if ";" not in sql and chr(92) not in sql and "!" not in sql and "PREP" not in sql:
                    run(sql)
        connection.close()
        """
    )


def test_a_question_inside_a_block_gets_the_right_answer(script: Any, either: Database) -> None:
    script(
        """
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO t (n) VALUES (5)")
                key = cursor.lastrowid
            assert one("SELECT LAST_INSERT_ID()") == key > 0
            run("UPDATE t SET n = 6")
            assert one("SELECT ROW_COUNT()") == 1
        refused(ProgrammingError, run, "SELECT LAST_INSERT_ID()")
        import pymysql
        refused(pymysql.ProgrammingError, connection.connection.show_warnings)
        run("INSERT INTO t (n) VALUES (7), (8)")
        # The client itself knows these.
        assert connection.connection.affected_rows() == 2
        assert connection.connection.insert_id() > key
        assert in_use() == 0
        run("DELETE FROM t WHERE n > 6")
        run("UPDATE t SET n = LAST_INSERT_ID(n + 1)")  # kept from here
        assert one("SELECT LAST_INSERT_ID()") == 7
        connection.close()
        """,
        on=either,
    )


def test_a_block_cannot_read_what_another_request_inserted(script: Any) -> None:
    script(
        """
        gevent.spawn(run, "INSERT INTO t (n) VALUES (1)").join()
        run("INSERT INTO t (n) VALUES (2)")
        gevent.spawn(run, "INSERT INTO t (n) VALUES (3)").join()
        with transaction.atomic():
            run("SELECT n FROM t")
            refused(ProgrammingError, run, "SELECT LAST_INSERT_ID()")
            run("INSERT INTO t (n) VALUES (4)")
            run("SELECT n FROM t")
            key = one("SELECT LAST_INSERT_ID()")
            assert one("SELECT n FROM t WHERE id = %s", key) == 4
        """
    )


def test_whose_number_is_known_is_not_another_s(script: Any, either: Database) -> None:
    """A watchdog that kills by number later ends its own query, and nobody else's."""
    script(
        """
        from gevent.event import Event
        numbers, go = [], Event()
        def asleep():
            return [row[0] for row in run("SHOW FULL PROCESSLIST") if "SLEEP" in str(row[7])]
        def watched():
            numbers.append(one("SELECT CONNECTION_ID()"))
            go.wait()
            try:
                return one("SELECT SLEEP(60)")  # 1 on MySQL
            except OperationalError as error:
                return error.args[0]
        first = gevent.spawn(watched)
        settle(lambda: numbers)
        others = [gevent.spawn(one, "SELECT SLEEP(3)") for _ in range(2)]
        settle(lambda: len(asleep()) == 2)
        run(f"KILL QUERY {numbers[0]}")
        go.set()
        settle(lambda: numbers[0] in asleep())
        run(f"KILL QUERY {numbers[0]}")
        assert first.get() in (1, 1317)  # interrupted
        assert [greenlet.get() for greenlet in others] == [0, 0]
        """,
        on=either,
    )


# --- Escaping ----------------------------------------------------------------------------------


def test_parameters_are_escaped_as_the_connection_that_runs_them_needs(script: Any) -> None:
    script(
        r"""
        nasty = ["back\\slash", "quote ' and \\' more", 'double "', "\\", "'; DROP TABLE t; --"]
        def stored():
            for text in nasty:
                run("INSERT INTO t (s) VALUES (%s)", text)
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t (s) VALUES (%s)", [(text,) for text in nasty])
                cursor.execute("SELECT s FROM t ORDER BY id")
                found = [s for s, in cursor.fetchall()]
            run("DELETE FROM t")
            assert found == nasty * 2, found
        def strict():
            run("SET sql_mode = 'NO_BACKSLASH_ESCAPES'")
            stored()
            gevent.sleep(0.01)
            stored()
            connection.close()
        stored()
        held = connection.cursor()
        gevent.spawn(strict).get()
        held.execute("SELECT %s", nasty[:1])
        assert held.fetchone() == (nasty[0],)
        stored()
        for _ in range(3):
            gevent.spawn(strict).get()
            stored()
        assert pinned() == {"variable": 4}
        """
    )


def test_requests_with_different_escaping_at_the_same_time(script: Any) -> None:
    script(
        r"""
        text = "it's \\ a 'test' \\' -- \" "
        def ask(strict):
            for _ in range(20):
                if strict:
                    run("SET sql_mode = 'NO_BACKSLASH_ESCAPES'")
                for _ in range(5):
                    assert one("SELECT %s", text) == text
                    gevent.sleep(0)
                connection.close()
        gevent.joinall([gevent.spawn(ask, n % 2) for n in range(8)], raise_error=True)
        """
    )


def test_insert_returning(script: Any) -> None:
    script(
        """
        assert run("INSERT INTO t (n) VALUES (1), (2) RETURNING n") == [(1,), (2,)]
        assert in_use() == 0
        with transaction.atomic():
            assert run("INSERT INTO t (n) VALUES (3) RETURNING n") == [(3,)]
        assert in_use() == 0 and number() == 3 and pinned() == {}
        """
    )


def test_a_cursor_is_used_again_and_again(script: Any) -> None:
    script(
        """
        with connection.cursor() as cursor:
            for n in range(3):
                cursor.execute("SELECT %s UNION SELECT 9", [n])
                gevent.spawn(run, "SELECT 100").join()
                assert cursor.fetchone() == (n,) and cursor.fetchall() == ((9,),)
                assert in_use() == 0 and not cursor.nextset()
        other = connection.cursor()
        other.execute("SELECT 1")
        connection.close()
        assert other.fetchone() == (1,)
        other.close()
        """
    )
