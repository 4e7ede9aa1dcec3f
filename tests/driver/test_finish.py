"""Ending what a server still does for a connection that was closed in the middle of a command."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pymysql
import pytest

from pooled_serve.driver.abandoned import MARGIN_SECONDS, finish, was_running
from pooled_serve.driver.connection import MySQLConnection
from support.connections import Connect
from support.processes import wait_until
from support.servers import Database, Server

SLEEP = "SELECT SLEEP(60)"


pytestmark = pytest.mark.usefixtures("cooperative")


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


@pytest.fixture
def abandoned(connect: Connect, server: Server) -> MySQLConnection:
    """A connection that was closed while the server was at work for it."""
    wait_until(lambda: server.admin.status("Uptime") > MARGIN_SECONDS + 1)
    conn = connect()
    with gevent.Timeout(0.1, False):
        conn.query(SLEEP)
    assert not conn.open
    assert conn.unfinished()
    return conn


def sleeps(server: Server, database: Database) -> bool:
    rows = server.admin.processlist(database.user)
    return any("SLEEP" in str(row["Info"]) for row in rows)


@pytest.fixture
def asleep(server: Server, database: Database, abandoned: MySQLConnection) -> Callable[[], bool]:
    """Whether the statement runs. It does now."""
    wait_until(lambda: sleeps(server, database))
    return lambda: sleeps(server, database)


def test_it_is_ended_once(
    connect: Connect, abandoned: MySQLConnection, asleep: Callable[[], bool]
) -> None:
    conn = connect()
    assert finish(conn, abandoned) is True
    assert not asleep()
    assert was_running(conn, abandoned), "it was when it was ended"
    assert conn.reused, "a request may ask about the statement before"
    assert conn.condition() is None


def test_what_has_ended_needs_no_end(connect: Connect) -> None:
    conn, gone = connect(), connect()
    gone.close()
    wait_until(lambda: finish(conn, gone) is None)
    assert conn.reused
    assert conn.condition() is None


def wrong_id(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    conn.has_own_id = False


def wrong_id_then(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.has_own_id = False


def another_server(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.identity = ("elsewhere", *abandoned.identity[1:])


def restarted(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.opened_at = time.monotonic() - 1e6


@pytest.mark.parametrize("change", [wrong_id, wrong_id_then, another_server, restarted])
def test_where_the_id_may_be_a_strangers_nothing_is_ended(
    connect: Connect,
    abandoned: MySQLConnection,
    asleep: Callable[[], bool],
    change: Callable[[Any, Any], None],
) -> None:
    conn = connect()
    change(conn, abandoned)
    assert finish(conn, abandoned) is None
    assert asleep()


def test_where_it_is_not_allowed_that_is_told(
    connect: Connect,
    server: Server,
    abandoned: MySQLConnection,
    asleep: Callable[[], bool],
) -> None:
    other = server.create_database()
    conn = connect(**{key: other.connect_args()[key] for key in ("user", "password", "database")})
    assert finish(conn, abandoned) is False
    assert asleep()
    assert conn.condition() is None


def test_a_connection_knows_whether_the_server_knows_it(connect: Connect) -> None:
    assert connect().has_own_id


def test_an_error_of_the_server_is_an_answer(connect: Connect) -> None:
    conn = connect()
    with pytest.raises(pymysql.ProgrammingError):
        conn.query("SELECT nonsense FROM nowhere")
    conn.close()
    assert not conn.unfinished()
