"""Django's wrappers over pooled connections: what projects see of it, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.django_project import ONE
from support.netproxy import NetProxy
from support.processes import wait_until
from support.script import run_script
from support.servers import Database, Server

COM_QUIT, COM_QUERY, COM_PING, COM_RESET_CONNECTION = 1, 3, 14, 0x1F


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


# --- What it costs -----------------------------------------------------------------------------


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

        def elsewhere():
            try:
                return seen()
            finally:
                connections["lite"].close()

        assert gevent.spawn(elsewhere).get() == new
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
        learn = MySQLConnection._read_session_defaults
        def upgraded(self):
            learn(self)
            self.server_version = "5.5.5-10.99.0-MariaDB"
        MySQLConnection._read_session_defaults = upgraded
        pool().clear()
        patch.end_request()
        run("SELECT 1")
        patch.end_request()
        assert connections["default"].mysql_server_data["version"] == first["version"]
        assert [sql for sql in asked if "sql_auto_is_null" in str(sql)]
        assert_sound()
        """
    )


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
