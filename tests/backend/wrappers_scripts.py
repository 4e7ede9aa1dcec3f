"""What test_wrappers.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from pathlib import Path
from typing import Any

import gevent
from django.core.signals import request_finished
from django.db import DatabaseError, InterfaceError, ProgrammingError, transaction
from django.db.backends.mysql import base as mysql
from django.db.backends.signals import connection_created
from pymysql.cursors import Cursor

from pooled_serve.driver.connection import MySQLConnection
from support.inside import assert_sound, connection, connections, one, patch, pool, run, settle


def connecting_costs_few_round_trips() -> None:
    connected: list[int] = []

    def hold() -> None:
        connection.ensure_connection()
        connected.append(1)
        settle(lambda: len(connected) == 2)

    gevent.joinall([gevent.spawn(hold) for _ in range(2)], raise_error=True)


def a_django_that_asks_for_a_later_mysqlclient_starts() -> None:
    path = Path(mysql.__file__)
    source, found = re.subn(r"version < \(.*?\)", "version < (2, 9, 9)", path.read_text())
    assert found == 1
    exec(
        compile(source, path, "exec"),
        {"__name__": mysql.__name__, "__package__": mysql.__package__},
    )


def each_greenlet_has_a_wrapper_of_its_own_and_they_share_a_connection() -> Any:
    seen, ids = [], []

    def work() -> None:
        seen.append(connections["default"])
        ids.append(one("SELECT CONNECTION_ID()"))
        connection.close()

    for _ in range(5):
        gevent.spawn(work).join()
    found = [len(set(map(id, seen))), ids]
    assert_sound()
    return found


def what_a_request_leaves_in_a_wrapper_ends_with_it(left: str) -> None:
    def seen() -> Any:
        it = connections["default"]
        return [
            [one("SELECT DATABASE()", alias=alias) for alias in ("default", "other")],
            one("SELECT 1", alias="lite"),
            one("SELECT @left"),
            it.ops.quote_name("n"),
            it.features.uses_savepoints,
            it.mysql_version[0] > 5,
            sorted(it.sql_mode),
            it.in_atomic_block,
            it.force_debug_cursor,
            len(it.execute_wrappers),
            len(it.queries_log),
            hasattr(it, "tenant"),
            sorted(vars(connections._connections._storage)),
        ]

    def request() -> None:
        exec(left)
        patch.end_request()

    new = seen()
    patch.end_request()
    request()  # and the next of the same client, in the same greenlet
    assert not vars(connections._connections._storage)
    connections["default"].settings_dict["OPTIONS"].clear()  # the settings stay, as in Django
    assert seen() == new
    patch.end_request()

    def elsewhere() -> Any:
        try:
            return seen()
        finally:
            connections["lite"].close()

    assert gevent.spawn(elsewhere).get() == new
    for alias in ("default", "other"):
        assert_sound(alias)


def greenlets_that_are_the_first_to_ask_share_one_pool() -> None:
    find = patch.load_backend

    def slowly(name: Any) -> Any:
        gevent.sleep(0.01)
        return find(name)

    patch.load_backend = slowly

    def work() -> None:
        run("SELECT 1")
        gevent.sleep(0.05)

    gevent.joinall([gevent.spawn(work) for _ in range(12)], raise_error=True)
    assert pool().stats()["acquired_total"] == 12
    assert_sound()


def whatever_conn_max_age_says_the_request_ends_the_lease() -> None:
    for alias in connections:
        run("SELECT 1", alias=alias)
        assert pool(alias).stats()["in_use"] == 1, alias
        request_finished.send(None)
        assert pool(alias).stats()["in_use"] == 0, alias
        run("SELECT 1", alias=alias)
        assert pool(alias).stats()["opened_total"] == 1, alias
        assert_sound(alias)


def a_receiver_of_connection_created_that_fails_does_not_keep_the_lease() -> None:
    def fail(**kwargs: Any) -> None:
        raise ValueError("a bug")

    connection_created.connect(fail)
    with contextlib.suppress(ValueError):
        run("SELECT 1")
    connection_created.disconnect(fail)
    request_finished.send(None)
    assert pool().stats()["in_use"] == 0
    assert_sound()


def connection_created_is_sent_at_each_lease() -> None:
    seen = []

    def created(connection: Any, **kwargs: Any) -> None:
        seen.append(one("SELECT CONNECTION_ID()"))

    connection_created.connect(created)
    for _ in range(3):
        run("SELECT 1")
        connection.close()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert_sound()


def a_project_without_autocommit_must_commit_itself() -> None:
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


def closing_inside_atomic_gives_back_and_rolls_back() -> None:
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    with contextlib.suppress(InterfaceError, ProgrammingError), transaction.atomic():
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


def a_cursor_that_is_kept_does_not_run_on_somebody_elses_connection() -> None:
    run("CREATE TABLE t (n INT)")
    kept = connection.cursor()
    kept.execute("SELECT 1 UNION SELECT 2")
    connection.close()
    assert kept.fetchall() == ((1,), (2,))  # it was read before

    def other() -> None:
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


def copies_and_the_connection_without_a_database_are_not_pooled() -> None:
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


def is_usable_knows_a_dead_connection_and_asks_nobody() -> None:
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


def another_server_version_is_noticed() -> None:
    first = connection.mysql_server_data
    assert first["version"].startswith(connection.mysql_server_info[:5])
    patch.end_request()
    asked = []
    query = MySQLConnection.query

    def count(self: Any, sql: Any, unbuffered: Any = False) -> Any:
        asked.append(sql)
        return query(self, sql, unbuffered)

    MySQLConnection.query = count  # type: ignore[method-assign]
    assert connections["default"].mysql_server_data == first
    assert not [sql for sql in asked if "sql_auto_is_null" in str(sql)]
    learn = MySQLConnection._read_session_defaults

    def upgraded(self: Any) -> None:
        learn(self)
        self.server_version = "5.5.5-10.99.0-MariaDB"

    MySQLConnection._read_session_defaults = upgraded  # type: ignore[method-assign]
    pool().clear()
    patch.end_request()
    run("SELECT 1")
    patch.end_request()
    assert connections["default"].mysql_server_data["version"] == first["version"]
    assert [sql for sql in asked if "sql_auto_is_null" in str(sql)]
    assert_sound()


def cursor_classes_that_are_made_anew_do_not_pile_up() -> None:
    made = []

    def request() -> None:
        class Own(Cursor):  # type: ignore[misc]
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
