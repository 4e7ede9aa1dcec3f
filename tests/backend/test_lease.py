"""What Django holds as its connection: what it answers, what may be done with it, how long it has
a connection of the pool's."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import Any

import pytest

from support.script import run_script
from support.servers import Database, Server

MODES = ["request", "transaction"]


@pytest.fixture(params=["mariadb", "mysql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A database on MariaDB, then on MySQL."""
    server: Server = request.getfixturevalue(request.param)
    return server.create_database()


# --- Questions about the statement before ------------------------------------------------------

QUESTIONS = [
    *("SELECT LAST_INSERT_ID()", "SELECT @@last_insert_id", "SELECT @@identity"),
    *("SELECT ROW_COUNT()", "SELECT FOUND_ROWS()", "SELECT @@warning_count, @@error_count"),
    *("SHOW WARNINGS", "SHOW ERRORS", "SHOW COUNT(*) WARNINGS"),
    *("c.insert_id()", "c.affected_rows()", "c.show_warnings()"),
]
SEQUENCE = ["SELECT LASTVAL(q)", "SELECT PREVIOUS VALUE FOR q"]  # MariaDB's
UPDATE = "UPDATE t SET s = 'b' WHERE id < 3"
BEFORE: list[list[str]] = [
    [],
    ["SELECT 1"],
    ["SELECT id FROM t LIMIT 2"],
    ["SET @x = 1"],
    [UPDATE],
    ["INSERT INTO t (s) VALUES ('own')"],
    ["INSERT IGNORE INTO t (id) VALUES (1)"],
    ["INSERT IGNORE INTO t (id) VALUES (1)", "SHOW COUNT(*) WARNINGS"],
    ["SELECT nonsense"],
    ["SELECT SQL_CALC_FOUND_ROWS id FROM t LIMIT 1"],
    ["CALL inserts()"],
]

ASK = """
    from django.db import DatabaseError
    from pymysql.connections import Connection
    if not pooled:  # to make one takes longer than all the rest
        context = Connection(defer_connect=True)._create_ssl_ctx({})
        Connection._create_ssl_ctx = lambda self, sslp: context
    run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, s VARCHAR(9))")
    run("CREATE PROCEDURE inserts() INSERT INTO t (s) VALUES ('called')")
    run("INSERT INTO t (s) VALUES ('a'), ('b'), ('c'), ('d')")
    if sequence:
        run("CREATE SEQUENCE q START WITH 1000")
    connection.close()

    def stranger():
        if not pooled:
            return
        if sequence:
            run("SELECT NEXTVAL(q)")
        run("INSERT INTO t (s) VALUES ('stranger')")
        run("SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5")
        run("SELECT CAST(s AS SIGNED) FROM t")  # a warning each
        connection.close()

    def ask(before, question):
        key = None
        for sql in before:
            with connection.cursor() as cursor, contextlib.suppress(DatabaseError):
                cursor.execute(sql)
                key = cursor.lastrowid or key
        connection.ensure_connection()
        c = connection.connection
        try:
            answer = eval(question) if question.startswith("c.") else run(question)
        except DatabaseError as error:  # a sequence that it has not used has no value
            return [[None]] if "asks about" in str(error) and "q" in question[-2:] else str(error)
        # The keys are others each time.
        top = run("SELECT MAX(id) FROM t")[0][0]
        key = key or top
        return [["newest" if value in (key, top) else value for value in row] for row in answer] \\
            if isinstance(answer, (list, tuple)) else "newest" if answer == key else answer

    said = {}
    for before in befores:
        for question in questions:
            for block in (False, True) if not before else (False,):
                # MySQL's answer to that depends on each command, and nobody asks.
                if "FOUND_ROWS" in question and (block or before[:1] == [update]):
                    continue
                stranger()
                with transaction.atomic() if block else contextlib.nullcontext():
                    said[f"{before} {question} {block}"] = ask(before, question)
                    transaction.set_rollback(False) if block else None
                connection.close()
                del connections["default"]  # or plain Django would set up the next one less
    report(said)
"""


def test_a_question_is_answered_as_on_a_connection_of_its_own(
    project: Any, either: Database, mariadb: Server
) -> None:
    sequence = either.port == mariadb.port
    questions = QUESTIONS + (SEQUENCE if sequence else [])
    given: dict[str, Any] = {"befores": BEFORE, "questions": questions, "update": UPDATE}
    answers = []
    for pooled in (False, True):
        run_script(
            project(databases={"default": either.django()}),
            'run("DROP TABLE IF EXISTS t"); run("DROP PROCEDURE IF EXISTS inserts")\n'
            + ('run("DROP SEQUENCE IF EXISTS q")' if sequence else ""),
            pooled=False,
        )
        folder = project(databases={"default": either.django()})
        given |= {"pooled": pooled, "sequence": sequence}
        source = f"import json; globals().update(json.loads({json.dumps(given)!r}))\n" + dedent(ASK)
        answers.append(run_script(folder, source, pooled=pooled, size=1, cap=1))
    plain, found = answers
    assert found == plain


def test_where_sessions_are_not_reset_a_question_takes_a_fresh_connection(project: Any) -> None:
    run_script(
        project(),
        """
        run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)")
        run("INSERT INTO t VALUES ()")
        used = one("SELECT CONNECTION_ID()")
        connection.close()
        assert one("SELECT LAST_INSERT_ID()") == 0
        assert one("SELECT CONNECTION_ID()") != used
        assert pool().stats()["closed_total"] == {"reset failed": 1}
        assert_sound()
        """,
        POOLED_SERVE_POOL_RESET="rollback",
    )


# --- Statements inside of others ---------------------------------------------------------------

NESTED = {
    "parameters of a bulk insert that come from queries": """
        def rows():
            for n in range(3):
                with transaction.atomic():
                    add(n)
                yield (10 + n,)
            said.append(numbers())
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())
            said.append(cursor.rowcount)
    """,
    "parameters of several updates": """
        add(1)
        def rows():
            for n in range(1, 4):
                said.append(numbers())
                with transaction.atomic():
                    add(100 + n)
                yield (n + 1, n)
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE t SET n = %s WHERE n = %s", rows())
    """,
    "a block that the rows are written in": """
        def rows():
            with transaction.atomic():
                yield (1,)
                yield (2,)
                transaction.set_rollback(True)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (n) VALUES (%s) -- one by one", rows())
        said.append(numbers())
    """,
    "the same cursor": """
        with connection.cursor() as cursor:
            def rows():
                for n in range(2):
                    cursor.execute("SELECT @x := %s", [n])
                    yield (n, n)
            cursor.executemany("UPDATE t SET n = %s WHERE n = %s", rows())
        said.append(one("SELECT @x"))
    """,
    "a block inside a block": """
        def rows():
            yield (1,)
            try:
                with transaction.atomic():
                    add(2)
                    raise KeyError
            except KeyError:
                pass
            yield (3,)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())
    """,
    "what is asked while it becomes text": """
        class Asking(str):
            def translate(self, table):
                with transaction.atomic():
                    add(7)
                return one("SELECT 'seven'")
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [Asking()])
            said.append(list(cursor.fetchone()))
            cursor.callproc("p", [Asking()])
            said.append(list(cursor.fetchone()))
    """,
    "a wrapper of Django's": """
        def wrapper(execute, sql, params, many, context):
            if "seven" in sql:
                with transaction.atomic():
                    add(1)
            result = execute(sql, params, many, context)
            if "seven" in sql:
                run("SET @x = 8")
            return result
        with connection.execute_wrapper(wrapper):
            said.append(one("SELECT 'seven'"))
        said.append(one("SELECT @x"))
    """,
    "an error in the middle": """
        def rows():
            yield (1,)
            with transaction.atomic():
                add(2)
            run("SELECT nonsense")
        try:
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())
        except Exception as error:
            said.append(type(error).__name__)
    """,
}

NEST = """
    def add(n):
        run("INSERT INTO t (n) VALUES (%s)", n)
    def numbers():
        return [n for n, in run("SELECT n FROM t ORDER BY n")]
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    run("CREATE PROCEDURE p(s TEXT) SELECT s")
    found = {}
    for scene, source in scenes.items():
        said = found[scene] = []
        run("DELETE FROM t")
        connection.close()
        exec(compile(source, scene, "exec"), globals())
        said.append(numbers())
        connection.close()
        said.append(one("SELECT @x"))
        connection.close()
    if patch._databases:
        stats = pool().stats()
        assert not stats["closed_total"], stats
        assert_sound()
    report(found)
"""


def test_statements_inside_of_others_do_what_they_do_in_plain_django(
    project: Any, mariadb: Server
) -> None:
    scenes = {scene: dedent(source) for scene, source in NESTED.items()}
    source = f"scenes = {scenes!r}\n" + dedent(NEST)
    plain = run_script(project(), source, pooled=False)
    for mode in MODES:
        assert run_script(project(), source, POOLED_SERVE_POOL_MODE=mode) == plain


# --- Direct use --------------------------------------------------------------------------------

USES = {
    "a command": """c._execute_command(3, "SET @x = 7"); c._read_ok_packet()""",
    "a converter": "c.decoders[3] = c.decoders[8] = lambda text: 'mine'",
    "all converters": "c.decoders = {}",
    "an encoder": "c.encoders[int] = lambda value, mapping=None: \"'mine'\"",
    "a timeout": "c._read_timeout = 123",
    "a method that is kept": "kept.append(c.query.__self__._execute_command)",
}


@pytest.mark.parametrize("mode", MODES)
def test_what_was_used_directly_is_closed(project: Any, mode: str) -> None:
    run_script(
        project(),
        f"""
        kept = []
        for use, code in {USES!r}.items():
            before = pool().stats() if patch._databases else {{"closed_total": {{}}}}
            run("SELECT 1")
            c = connection.connection
            exec(code)
            used = one("SELECT CONNECTION_ID()")
            assert one("SELECT CONNECTION_ID()") == used
            connection.close()
            closed = pool().stats()["closed_total"]
            assert closed["direct use"] == before["closed_total"].get("direct use", 0) + 1, use
            assert one("SELECT CONNECTION_ID()") != used
            c = connection.connection
            assert run("SELECT @x, %s", 1) == [(None, 1)], use
            assert c._read_timeout is None
            connection.close()
        assert_sound()
        """,
        POOLED_SERVE_POOL_MODE=mode,
    )


@pytest.mark.parametrize("mode", MODES)
def test_attributes_of_the_connection_can_be_read_and_written(project: Any, mode: str) -> None:
    run_script(
        project(),
        """
        import pymysql
        from pymysql.cursors import DictCursor
        connection.ensure_connection()
        c = connection.connection
        assert isinstance(c, pymysql.connections.Connection)
        c.cursorclass = DictCursor
        assert c.cursorclass is DictCursor
        with c.cursor() as cursor:
            cursor.execute("SELECT 1 AS one")
            assert cursor.fetchall() == [{"one": 1}]
        c._read_timeout = 0.2
        assert c._read_timeout == 0.2
        try:
            run("SELECT SLEEP(30)")
        except Exception as error:
            assert error.args[0] == 2013, error
        else:
            raise AssertionError("it took its time")
        connection.close()
        connection.ensure_connection()
        with connection.connection as c:
            assert c.open
            c.decoders = {}
            with c.cursor() as cursor:
                cursor.execute("SELECT 1")
                assert cursor.fetchall() == (("1",),)
        assert not c.open
        connection.close()
        settle(lambda: pool().stats()["in_use"] == 0)
        assert pool().stats()["closed_total"] == {"lost": 1, "direct use": 1}
        assert_sound()
        """,
        POOLED_SERVE_POOL_MODE=mode,
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_django_and_its_cursors_use_is_no_direct_use(project: Any, mode: str) -> None:
    run_script(
        project(),
        """
        run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, s VARCHAR(9)) ENGINE=InnoDB")
        connection.close()
        opened = pool().stats()["opened_total"]
        connection.ensure_connection()
        c = connection.connection
        assert c.escape("it's") == "'it\\\\'s'"
        assert (c.host, c.encoding, c.charset) == ("127.0.0.1", "utf8", "utf8mb4")
        assert c.get_server_info() == c.server_version and c.get_host_info()
        assert c.character_set_name() and c.get_proto_info() and c.server_status
        assert not hasattr(c, "no_such_name") and not hasattr(c, "__len__")
        run("INSERT INTO t (s) VALUES ('a'), ('b')")
        assert (c.insert_id(), c.affected_rows()) == (1, 2)
        with connection.cursor() as cursor:
            assert cursor.mogrify("SELECT %s", [1]) == "SELECT 1"
            cursor.executemany("INSERT INTO t (s) VALUES (%s)", [("c",), ("d",)])
            assert not cursor.nextset()
        c.ping()
        c.begin()
        run("DELETE FROM t")
        c.rollback()
        assert one("SELECT COUNT(*) FROM t") == 4
        assert connection.is_usable() and c.open
        assert not pool().stats()["pinned_total"].get("direct use")
        c.thread_id()
        connection.close()
        stats = pool().stats()
        assert (stats["opened_total"], stats["closed_total"]) == (opened, {}), stats
        assert_sound()
        """,
        POOLED_SERVE_POOL_MODE=mode,
    )
