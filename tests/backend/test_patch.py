"""Where the pool meets Django: what projects see of it, and what they do not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pooled_serve import pooling
from pooled_serve.errors import StartupError
from support.command import run
from support.netproxy import NetProxy
from support.processes import wait_until
from support.script import run_script
from support.serve import GUNICORN
from support.servers import Database, Server

COM_QUIT, COM_QUERY, COM_PING, COM_RESET_CONNECTION = 1, 3, 14, 0x1F


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
def script(project: Any, database: Database) -> Any:
    """Runs a script in a project on `database`; the keywords are Django's settings for it."""

    def script(source: str, *, views: str = "", cap: int | None = 4, **settings: Any) -> Any:
        folder = project(views, databases={"default": database.django(**settings)})
        return run_script(folder, source, cap=cap)

    return script


# --- What it costs -----------------------------------------------------------------------------

ONE = """
    from django.db import connection
    from django.http import HttpResponse

    def one(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            return HttpResponse(str(cursor.fetchone()[0]))
"""


def test_a_request_on_a_warm_connection_adds_no_round_trip(
    project: Any, serve: Any, database: Database, proxy: NetProxy
) -> None:
    web = serve(project(ONE, databases={"default": database.via(proxy.port).django()}))
    web.get("/one")
    before = proxy.traffic()
    with web.keepalive() as client:
        ids = {client.get("/one").text for _ in range(10)}
    ids |= {web.get("/one").text for _ in range(10)}
    after = proxy.traffic()
    assert after.commands - before.commands == {COM_QUERY: 20}
    assert after.accepted == before.accepted
    assert len(ids) == 1


def test_connecting_costs_few_round_trips(
    project: Any, database: Database, proxy: NetProxy
) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    source = """
        def hold():
            connection.ensure_connection()
            gevent.sleep(0.3)
        gevent.joinall([gevent.spawn(hold) for _ in range(2)], raise_error=True)
    """
    run_script(folder, source)
    # Each: SET NAMES, wait_timeout, isolation level. Once: what Django wants to know of a server.
    # Twice, if both ask at the same time. And in one round trip, what a login does: two resets,
    # with four statements each (role, SET NAMES, isolation level, autocommit), and three looks of
    # three statements.
    traffic = proxy.traffic()
    assert traffic.commands[COM_RESET_CONNECTION] == 2
    assert 7 + 17 <= traffic.commands[COM_QUERY] <= 8 + 17
    wait_until(lambda: proxy.traffic().commands[COM_QUIT] == 2)


# --- Wrappers and leases -----------------------------------------------------------------------


def test_each_greenlet_has_a_wrapper_of_its_own_and_they_share_a_connection(script: Any) -> None:
    wrappers, ids = script(
        """
        seen, ids = [], []
        def work():
            seen.append(connections["default"])
            ids.append(one("SELECT CONNECTION_ID()"))
            connection.close()
        for _ in range(5):
            gevent.spawn(work).join()
        report([len(set(map(id, seen))), ids])
        assert_sound()
        """
    )
    assert wrappers == 5
    assert len(set(ids)) == 1


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize(
    "left",
    [
        "connection.tenant = 'one'",
        "connection.ops.quote_name = lambda name: 'other'",
        "connection.features.uses_savepoints = False",
        "connection.mysql_server_data['version'] = '5.5.0'",
        "connection.sql_mode.add('NO_ZERO_DATE_EITHER')",
        "connection.settings_dict['OPTIONS']['init_command'] = 'SET @left = 1'",
        "connection.in_atomic_block = True",
        "connection.execute_wrappers.append(lambda *args: 1 / 0)",
        "connection.force_debug_cursor = True; run('SELECT 1')",
        "connections['default'] = connections['other']; run('SELECT 1')",
        "connections['other'] = connections['default']; run('SELECT 1', alias='other')",
        "connections['unknown'] = connections['default'].copy('unknown');"
        " run('SELECT 1', alias='unknown')",
        "run('SELECT 1'); del connections['default']",
        "run('SELECT 1'); connections['default'] = connections['default'].copy()",
        "transaction.atomic().__enter__(); run('SELECT 1'); del connections['default']",
        "run('SELECT 1', alias='lite')",
        "connections['lite'].execute_wrappers.append(lambda *args: 1 / 0)",
    ],
)
def test_what_a_request_leaves_in_a_wrapper_ends_with_it(
    project: Any, mariadb: Server, tmp_path: Path, left: str, mode: str
) -> None:
    databases = {
        "default": mariadb.create_database().django(),
        "other": mariadb.create_database().django(),
        "lite": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "db"),
            "CONN_MAX_AGE": 60,
        },
    }
    before = mariadb.admin.aborted_clients()
    source = f"""
        def seen():
            it = connections["default"]
            return [
                [one("SELECT DATABASE()", alias=alias) for alias in ("default", "other")],
                one("SELECT 1", alias="lite"), one("SELECT @left"),
                it.ops.quote_name("n"), it.features.uses_savepoints, it.mysql_version[0] > 5,
                sorted(it.sql_mode), it.in_atomic_block, it.force_debug_cursor,
                len(it.execute_wrappers), len(it.queries_log), hasattr(it, "tenant"),
                sorted(vars(connections._connections._storage)),
            ]

        def request(left=""):
            exec(left)
            patch.end_request()

        new = seen()
        patch.end_request()
        request({left!r})  # and the next of the same client, in the same greenlet
        assert not vars(connections._connections._storage)
        connections["default"].settings_dict["OPTIONS"].clear()  # the settings stay, as in Django
        assert seen() == new
        patch.end_request()
        assert gevent.spawn(seen).get() == new
        for alias in ("default", "other"):
            assert_sound(alias)
    """
    run_script(project(databases=databases), source, POOLED_SERVE_POOL_MODE=mode)
    assert mariadb.admin.aborted_clients() == before


def test_greenlets_that_are_the_first_to_ask_share_one_pool(script: Any) -> None:
    script(
        """
        find = patch.load_backend
        def slowly(name):
            gevent.sleep(0.01)
            return find(name)
        patch.load_backend = slowly
        def work():
            run("SELECT 1")
            gevent.sleep(0.05)
        gevent.joinall([gevent.spawn(work) for _ in range(12)], raise_error=True)
        assert pool().stats()["acquired_total"] == 12
        assert_sound()
        """
    )


def test_whatever_conn_max_age_says_the_request_ends_the_lease(
    project: Any, mariadb: Server
) -> None:
    ages = {"default": 0, "minute": 60, "hour": 3600, "ever": None}
    databases = {
        alias: mariadb.create_database().django(CONN_MAX_AGE=age, CONN_HEALTH_CHECKS=True)
        for alias, age in ages.items()
    }
    source = """
        from django.core.signals import request_finished
        for alias in connections:
            run("SELECT 1", alias=alias)
            assert pool(alias).stats()["in_use"] == 1, alias
            request_finished.send(None)
            assert pool(alias).stats()["in_use"] == 0, alias
            run("SELECT 1", alias=alias)
            assert pool(alias).stats()["opened_total"] == 1, alias
            assert_sound(alias)
    """
    run_script(project(databases=databases), source)


def test_a_receiver_of_connection_created_that_fails_does_not_keep_the_lease(script: Any) -> None:
    script(
        """
        from django.core.signals import request_finished
        from django.db.backends.signals import connection_created
        def fail(**kwargs):
            raise ValueError("a bug")
        connection_created.connect(fail)
        with contextlib.suppress(ValueError):
            run("SELECT 1")
        connection_created.disconnect(fail)
        request_finished.send(None)
        assert pool().stats()["in_use"] == 0
        assert_sound()
        """,
        CONN_MAX_AGE=60,
    )


def test_connection_created_is_sent_at_each_lease(script: Any) -> None:
    script(
        """
        from django.db.backends.signals import connection_created
        seen = []
        def created(connection, **kwargs):
            seen.append(one("SELECT CONNECTION_ID()"))
        connection_created.connect(created)
        for _ in range(3):
            run("SELECT 1")
            connection.close()
        assert len(seen) == 3 and len(set(seen)) == 1
        assert_sound()
        """
    )


def test_a_project_without_autocommit_must_commit_itself(script: Any) -> None:
    script(
        """
        run("CREATE TABLE t (n INT) ENGINE=InnoDB")
        connection.commit()
        run("INSERT INTO t VALUES (1)")
        connection.commit()
        run("INSERT INTO t VALUES (2)")
        connection.close()
        assert run("SELECT n FROM t") == [(1,)]
        assert not connection.get_autocommit()
        assert one("SELECT @@in_transaction") == 1
        connection.close()
        stats = pool().stats()
        assert stats["opened_total"] == 1 and stats["closed_total"] == {}, stats
        assert_sound()
        """,
        AUTOCOMMIT=False,
    )


def test_closing_inside_atomic_gives_back_and_rolls_back(script: Any) -> None:
    script(
        """
        from django.db import InterfaceError, ProgrammingError
        run("CREATE TABLE t (n INT) ENGINE=InnoDB")
        with contextlib.suppress(InterfaceError, ProgrammingError):
            with transaction.atomic():
                run("INSERT INTO t VALUES (1)")
                connection.close()
                assert pool().stats()["in_use"] == 0
                connection.close()
                run("INSERT INTO t VALUES (2)")
                raise AssertionError("it ran")
        assert run("SELECT n FROM t") == []
        with transaction.atomic():
            run("INSERT INTO t VALUES (3)")
        assert run("SELECT n FROM t") == [(3,)]
        assert_sound()
        """
    )


def test_a_cursor_that_is_kept_does_not_run_on_somebody_elses_connection(script: Any) -> None:
    script(
        """
        from django.db import InterfaceError
        run("CREATE TABLE t (n INT)")
        kept = connection.cursor()
        kept.execute("SELECT 1 UNION SELECT 2")
        connection.close()
        assert kept.fetchall() == ((1,), (2,))  # it was read before
        def other():
            run("SELECT 1")
            try:
                kept.cursor.execute("INSERT INTO t VALUES (1)")
            except Exception as error:
                assert "given back" in str(error), error
            else:
                raise AssertionError("it ran")
        gevent.spawn(other).get()
        try:
            kept.execute("INSERT INTO t VALUES (1)")
        except InterfaceError:
            pass
        else:
            raise AssertionError("it ran")
        kept.close()
        assert one("SELECT COUNT(*) FROM t") == 0
        assert_sound()
        """
    )


def test_copies_and_the_connection_without_a_database_are_not_pooled(script: Any) -> None:
    script(
        """
        run("SELECT 1")
        copy = connection.copy()
        with copy.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID(), @@tx_isolation")
            number, isolation = cursor.fetchone()
        assert isolation == "READ-COMMITTED"
        assert number != one("SELECT CONNECTION_ID()")
        with connection._nodb_cursor() as cursor:
            cursor.execute("SELECT DATABASE()")
            assert cursor.fetchone() == (None,)
        assert pool().stats()["in_use"] == pool().stats()["opened_total"] == 1
        assert copy.is_usable()
        copy.close()
        assert_sound()
        """
    )


def test_is_usable_knows_a_dead_connection_and_asks_nobody(
    project: Any, database: Database, proxy: NetProxy
) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    source = """
        from django.core.signals import request_finished
        from django.db import DatabaseError
        with contextlib.suppress(DatabaseError):
            run("SELECT nonsense")
        assert connection.errors_occurred
        assert connection.is_usable()
        request_finished.send(None)
        with contextlib.suppress(Exception):
            run("KILL CONNECTION_ID()")
        assert not connection.is_usable()
        request_finished.send(None)
        settle(lambda: pool().stats()["in_use"] == 0)
        run("SELECT 1")
        request_finished.send(None)
    """
    run_script(folder, source)
    assert proxy.traffic().commands[COM_PING] == 0


def test_another_server_version_is_noticed(script: Any) -> None:
    script(
        """
        from pooled_serve.driver.connection import MySQLConnection
        first = connection.mysql_server_data
        assert first["version"].startswith(connection.mysql_server_info[:5])
        patch.end_request()
        asked = []
        query = MySQLConnection.query
        def count(self, sql, unbuffered=False):
            asked.append(sql)
            return query(self, sql, unbuffered)
        MySQLConnection.query = count
        assert connections["default"].mysql_server_data == first
        assert not [sql for sql in asked if "sql_auto_is_null" in str(sql)]
        learn = MySQLConnection._learn
        def upgraded(self):
            learn(self)
            self.server_version = "5.5.5-10.99.0-MariaDB"
        MySQLConnection._learn = upgraded
        pool().clear()
        patch.end_request()
        run("SELECT 1")
        patch.end_request()
        assert connections["default"].mysql_server_data["version"] == first["version"]
        assert [sql for sql in asked if "sql_auto_is_null" in str(sql)]
        assert_sound()
        """
    )


def test_django_sees_a_pool_timeout_as_an_operational_error(script: Any) -> None:
    script(
        """
        from django.db import DatabaseError, OperationalError
        from pooled_serve.errors import PoolTimeout
        def hold():
            run("SELECT 1")
            gevent.sleep(3600)
        holders = [gevent.spawn(hold) for _ in range(4)]
        settle(lambda: pool().stats()["in_use"] == 4 if patch._databases else False)
        pool().timeout = 0.1
        try:
            with transaction.atomic():
                raise AssertionError("entered")
        except OperationalError as error:
            assert isinstance(error, PoolTimeout)
            assert error.in_use == error.cap == 4 and error.pool == "default"
            assert type(error).__name__ == "DatabasePoolTimeout", type(error)
            assert error.__cause__ is None
        gevent.killall(holders)
        pool().timeout = 30
        assert_sound()
        """
    )


def test_only_a_pool_timeout_becomes_a_503(script: Any) -> None:
    script(
        """
        from django.test import Client
        from pooled_serve.status import pool_log
        pool_log.PAUSES_SECONDS = (0.0, 3600.0)
        client = Client(raise_request_exception=False)
        def hold():
            run("SELECT 1")
            gevent.sleep(3600)
        assert client.get("/one").status_code == 200
        patch.end_request()
        holders = [gevent.spawn(hold) for _ in range(4)]
        settle(lambda: pool().stats()["in_use"] == 4)
        pool().timeout = 0.1
        import logging
        lines = []
        class Keep(logging.Handler):
            def emit(self, record):
                lines.append(record)
        logging.getLogger().addHandler(Keep())
        for _ in range(3):
            answer = client.get("/one")
            assert answer.status_code == 503, answer
            assert answer["Retry-After"] == "1"
            assert b"busy" in answer.content
        (line,) = [r for r in lines if r.name == "gunicorn.error"]
        assert line.levelname == "WARNING" and not line.exc_info
        assert "4 in use" in line.getMessage()
        gevent.killall(holders)
        pool().timeout = 30
        logging.getLogger("django.request").disabled = True
        answer = client.get("/bad")
        assert answer.status_code == 500, answer
        patch.end_request()
        assert_sound()
        """,
        views=ONE
        + """
    def bad(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT nonsense")
""",
    )


# --- Which databases ---------------------------------------------------------------------------


def test_each_mysql_database_has_a_pool_and_others_have_none(
    project: Any, mariadb: Server, tmp_path: Path
) -> None:
    first, second = mariadb.create_database(), mariadb.create_database()
    databases = {
        "default": first.django(),
        "other": second.django(),
        "small": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")},
    }
    source = """
        names = [one("SELECT DATABASE()"), one("SELECT DATABASE()", alias="other")]
        names.append(one("SELECT 1", alias="small"))
        report([names, sorted(patch.pools()), pool().stats()["in_use"]])
        assert type(connections["small"]).__module__ == "django.db.backends.sqlite3.base"
        assert pool() is not pool("other")
        patch.end_request()
        assert_sound()
        assert_sound("other")
    """
    names, pools, in_use = run_script(project(databases=databases), source)
    assert names == [first.name, second.name, 1]
    assert pools == ["default", "other"]
    assert in_use == 1


ENGINE = """
    from django.db.backends.mysql import base

    class DatabaseWrapper(base.DatabaseWrapper):
        opened = 0

        def get_new_connection(self, conn_params):
            type(self).opened += 1
            DatabaseWrapper.opened += 1
            return super().get_new_connection(conn_params)

        def init_connection_state(self):
            super().init_connection_state()
            with self.cursor() as cursor:
                cursor.execute("SET @own = 'set'")
"""


def engine(folder: Path, source: str) -> None:
    package = folder / "mysite" / "engine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text(dedent(source))


def test_an_engine_built_on_djangos_is_pooled_and_keeps_its_ways(
    project: Any, database: Database
) -> None:
    folder = project(databases={"default": database.django(ENGINE="mysite.engine")})
    engine(folder, ENGINE)
    source = """
        from mysite.engine.base import DatabaseWrapper
        for _ in range(3):
            assert one("SELECT @own") == "set"
            assert isinstance(connections["default"], DatabaseWrapper)
            patch.end_request()
        assert pool().stats()["opened_total"] == DatabaseWrapper.opened == 1, DatabaseWrapper.opened
        assert_sound()
    """
    run_script(folder, source)


def test_an_engine_is_imported_before_threads_can_get_in_each_others_way(
    project: Any, serve: Any, database: Database
) -> None:
    # With gevent's patches a few that import it for the first time, at once, may never end.
    views = """
        import sys
        from django.http import JsonResponse

        def imported(request):
            names = "pooled_serve.backend.database", "mysite.engine.base"
            return JsonResponse([name in sys.modules for name in names], safe=False)
    """
    folder = project(views, databases={"default": database.django(ENGINE="mysite.engine")})
    engine(folder, ENGINE)
    assert serve(folder).get("/imported").json() == [True, True]
    # The engine of who calls pooling is imported at first use, as in stock Django.
    source = "import sys; report(['pooled_serve.backend.database' in sys.modules])"
    assert run_script(project(databases={}), source) == [True]


def test_an_engine_that_connects_by_itself_is_told_so_and_costs_no_slot(
    project: Any, database: Database
) -> None:
    folder = project(databases={"default": database.django(ENGINE="mysite.engine")})
    engine(
        folder,
        """
        import MySQLdb
        from django.db.backends.mysql import base

        class DatabaseWrapper(base.DatabaseWrapper):
            def get_new_connection(self, conn_params):
                return MySQLdb.connect(**conn_params)
        """,
    )
    source = """
        from django.core.exceptions import ImproperlyConfigured
        for _ in range(3):
            try:
                run("SELECT 1")
            except ImproperlyConfigured as error:
                assert "mysite.engine" in str(error)
            else:
                raise AssertionError("pooled")
            gevent.sleep(0.3)
        assert pool().stats()["in_use"] == 0
    """
    run_script(folder, source)


def test_a_database_that_is_renamed_gets_a_new_pool(
    project: Any, mariadb: Server, database: Database
) -> None:
    mariadb.admin.query(f"CREATE DATABASE test_{database.name}")
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"GRANT ALL ON test_{database.name}.* TO {database.user}@{host}")
    source = """
        names = [one("SELECT DATABASE()")]
        connection.close()
        connection.settings_dict["NAME"] = "test_" + names[0]  # as the test runner does
        names.append(one("SELECT DATABASE()"))
        connection.close()
        connection.settings_dict["NAME"] = names[0]
        names.append(one("SELECT DATABASE()"))
        report(names)
        assert_sound()
    """
    name = database.name
    assert run_script(project(databases={"default": database.django()}), source) == [
        name,
        f"test_{name}",
        name,
    ]


# --- The test runner ---------------------------------------------------------------------------

TESTS = """
    from concurrent.futures import ThreadPoolExecutor

    from django.db import connection, transaction
    from django.test import TestCase, TransactionTestCase

    class Both:
        def test_it_is_the_test_database(self):
            with connection.cursor() as cursor:
                cursor.execute("SELECT DATABASE()")
                self.assertTrue(cursor.fetchone()[0].startswith("test_"))
            self.assertEqual(type(connection.connection).__name__, "DatabaseSession")

        def test_it_writes(self):
            with connection.cursor() as cursor:
                cursor.execute("CREATE TEMPORARY TABLE temporary_one (n INT)")
                cursor.execute("INSERT INTO temporary_one VALUES (1)")
                cursor.execute("DROP TEMPORARY TABLE temporary_one")

        def test_a_view_that_needs_a_connection(self):
            self.assertEqual(self.client.get("/one").status_code, 200)

    class InTransaction(Both, TestCase):
        def test_on_commit(self):
            with self.captureOnCommitCallbacks(execute=True) as calls:
                transaction.on_commit(lambda: None)
            self.assertEqual(len(calls), 1)

    class WithoutTransaction(Both, TransactionTestCase):
        pass
"""

PATCHED = """
    from pooled_serve import pooling

    pooling.set_pool_size(1, max_outstanding=2, timeout=30)
    pooling.apply_patch()
"""


@pytest.mark.parametrize("options", [[], ["--parallel", "2"]], ids=["one", "parallel"])
def test_the_test_runner_works_through_the_pool(
    options: list[str], project: Any, mariadb: Server, database: Database, tmp_path: Path
) -> None:
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"GRANT ALL ON `test\\_{database.name}%`.* TO {database.user}@{host}")
    folder = project(ONE, databases={"default": database.django()}, settings=PATCHED)
    (folder / "mysite" / "tests.py").write_text(dedent(TESTS))
    # The databases of parallel runs are cloned with these programs; there is nothing to clone.
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mysqldump", "mysql"):
        (programs / name).write_text("#!/bin/sh\nexec cat /dev/null\n")
        (programs / name).chmod(0o755)
    done = run(
        "test",
        "mysite",
        "--noinput",
        *options,
        cwd=folder,
        env={
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        },
        command=(sys.executable, "-m", "django"),
    )
    assert done.code == 0, done.output
    assert "Ran 7 tests" in done.output
    assert "Traceback" not in done.output
    wait_until(lambda: not mariadb.admin.processlist(database.user))


# --- For people who keep their own launcher ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "0"),
        ((-1,), "-1"),
        ((4, 3), r"max_outstanding \(3\)"),
        ((4, 0), "0"),
        ((4, None, 0), "0"),
        ((4, None, -1), "-1"),
        (("many",), "many"),
    ],
)
def test_set_pool_size_refuses_numbers_that_make_no_sense(
    arguments: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        pooling.set_pool_size(*arguments)
    assert not pooling._explicit


def test_none_means_no_limit_as_with_the_ancestor(script: Any) -> None:
    peak, idle = script(
        """
        from gevent.event import Event
        enough = Event()
        def hold():
            run("SELECT 1")
            enough.wait()
        holders = [gevent.spawn(hold) for _ in range(30)]
        settle(lambda: patch._databases and pool().stats()["acquired_total"] == 30)
        peak = pool().stats()["in_use"]
        enough.set()
        gevent.joinall(holders, raise_error=True)
        settle(lambda: pool().stats()["in_use"] == 0)
        report([peak, pool().stats()["idle"]])
        """,
        cap=None,
    )
    assert peak == 30
    assert idle == 2


def test_plain_python_without_gevents_patches_is_pooled_and_says_goodbye(
    project: Any, mariadb: Server, database: Database
) -> None:
    before = mariadb.admin.aborted_clients()
    source = """
        from django.core.signals import request_finished
        ids = []
        for _ in range(3):
            ids.append(one("SELECT CONNECTION_ID()"))
            request_finished.send(None)
        assert len(set(ids)) == 1
        with transaction.atomic():
            run("SELECT 1")
        assert_sound()
    """
    run_script(project(databases={"default": database.django()}), source, gevent=False)
    assert mariadb.admin.aborted_clients() == before


POOL = """
    from django.db import connection
    from django.http import JsonResponse
    from pooled_serve.backend import patch

    def one(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            number = cursor.fetchone()[0]
        pool = patch.pools()["default"]
        return JsonResponse({"id": number, "size": pool.size, "cap": pool.cap,
                             "timeout": pool.timeout})
"""

APPLY = """
from pooled_serve import pooling
pooling.set_pool_size(1, max_outstanding=3)
pooling.apply_patch()
"""


@pytest.mark.parametrize("where", ["wsgi", "settings", "app"])
def test_apply_patch_may_stand_anywhere_under_plain_gunicorn(
    where: str, project: Any, serve: Any, database: Database, mariadb: Server
) -> None:
    before = mariadb.admin.aborted_clients()
    folder = project(POOL, databases={"default": database.django(CONN_MAX_AGE=60)})
    package = folder / "mysite"
    if where == "app":
        body = "".join(f"        {line}\n" for line in APPLY.strip().splitlines())
        (package / "apps.py").write_text(
            "from django.apps import AppConfig\n\n"
            "class Config(AppConfig):\n    name = 'mysite'\n    def ready(self):\n" + body
        )
        with (package / "settings.py").open("a") as settings:
            settings.write("INSTALLED_APPS = ['mysite.apps.Config']\n")
    else:
        module = package / f"{where}.py"
        module.write_text(
            APPLY + module.read_text() if where == "wsgi" else module.read_text() + APPLY
        )
    web = serve(folder, "-k", "gevent", command=GUNICORN, env={"POOLED_SERVE_POOL_TIMEOUT": "7"})
    with web.keepalive() as first, web.keepalive() as second:
        answers = [client.get("/one").json() for _ in range(3) for client in (first, second)]
    assert {answer["id"] for answer in answers} == {answers[0]["id"]}
    assert {(answer["size"], answer["cap"], answer["timeout"]) for answer in answers} == {
        (1, 3, 60)  # what is said in the project ranks above the environment
    }
    web.stop()
    assert mariadb.admin.aborted_clients() == before


def test_the_environment_says_what_set_pool_size_did_not(project: Any, serve: Any) -> None:
    folder = project(POOL)
    wsgi = folder / "mysite" / "wsgi.py"
    wsgi.write_text("from pooled_serve import pooling\npooling.apply_patch()\n" + wsgi.read_text())
    web = serve(
        folder,
        "-k",
        "gevent",
        command=GUNICORN,
        env={"POOLED_SERVE_POOL_SIZE": "3", "POOLED_SERVE_POOL_TIMEOUT": "7"},
    )
    answer = web.get("/one").json()
    assert (answer["size"], answer["cap"], answer["timeout"]) == (3, 9, 7)


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("import sys, types; sys.modules['MySQLdb'] = types.ModuleType('MySQLdb')", "PS502"),
        (
            "from django.db.utils import ConnectionHandler\n"
            "ConnectionHandler.create_connection = lambda self, alias: None",
            "PS503",
        ),
    ],
)
def test_apply_patch_refuses_what_it_cannot_live_with(
    before: str, code: str, tmp_path: Path
) -> None:
    source = f"{before}\nfrom pooled_serve import pooling\npooling.apply_patch()"
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert done.code == 1
    assert f"{StartupError.__name__}: {code}" in done.output


def test_without_apply_patch_nothing_is_pooled(project: Any, mariadb: Server) -> None:
    database = mariadb.create_database()
    folder = project(databases={"default": database.django()})
    source = dedent("""
        import pymysql; pymysql.install_as_MySQLdb()
        import pooled_serve.pooling, pooled_serve.options, pooled_serve.errors, pooled_serve.pool
        import django; django.setup()
        from django.core.management import call_command
        from django.db import connections
        call_command("check", databases=["default"])
        call_command("inspectdb")
        wrapper = connections["default"]
        assert type(wrapper).__module__ == "django.db.backends.mysql.base"
        assert type(wrapper.connection).__module__ == "pymysql.connections"
    """)
    done = run(
        "-c",
        source,
        cwd=folder,
        command=(sys.executable,),
        env={"DJANGO_SETTINGS_MODULE": "mysite.settings"},
    )
    assert done.code == 0, done.output


def test_cursor_classes_that_are_made_anew_do_not_pile_up(script: Any) -> None:
    script(
        """
        import weakref
        from pymysql.cursors import Cursor
        made = []
        def request():
            class Own(Cursor):
                pass
            made.append(weakref.ref(Own))
            connection.ensure_connection()
            with connection.connection.cursor(Own) as cursor:
                cursor.execute("SELECT 1")
            patch.end_request()
        for _ in range(100):
            gevent.spawn(request).get()
        gc.collect()
        assert sum(kept() is not None for kept in made) <= 20
        """
    )
