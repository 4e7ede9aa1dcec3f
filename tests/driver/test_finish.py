"""Ending what a server still does for a connection that was closed in the middle of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pymysql
import pytest
from pymysql.constants import FIELD_TYPE
from pymysql.err import OperationalError

from pooled_serve.driver.abandoned import finish, is_there, was_running
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
    conn = connect()
    abandon(conn)
    return conn


def abandon(conn: MySQLConnection) -> None:
    with gevent.Timeout(0.02, False):
        conn.query(SLEEP)
    assert not conn.open
    assert conn.unfinished()


def threads(server: Server) -> list[dict[str, Any]]:
    return server.admin.query("SHOW PROCESSLIST")


def sleeps(server: Server, database: Database) -> bool:
    rows = server.admin.processlist(database.user)
    return any("SLEEP" in str(row["Info"]) for row in rows)


def ended(conn: MySQLConnection, closed: MySQLConnection) -> bool | None:
    """What finish() says of it."""
    (found,) = filter(None, finish(conn, [closed]))
    assert found[0] is closed
    return found[1]


@pytest.fixture
def asleep(server: Server, database: Database, abandoned: MySQLConnection) -> Callable[[], bool]:
    """Whether the statement runs. It does now."""
    wait_until(lambda: sleeps(server, database))
    return lambda: sleeps(server, database)


def test_it_is_ended_once(
    connect: Connect, abandoned: MySQLConnection, asleep: Callable[[], bool]
) -> None:
    conn = connect()
    assert ended(conn, abandoned) is True
    assert not asleep()
    assert was_running(conn, abandoned), "it was when it was ended"
    assert conn.reused, "a request may ask about the statement before"
    assert conn.condition() is None


def test_many_are_ended_together(connect: Connect) -> None:
    conn, stranger, *closed = (connect() for _ in range(12))
    stranger.close()
    stranger.has_own_id = False
    for each in closed:  # at once: every five seconds a SLEEP looks for its client
        abandon(each)
    found = dict(filter(None, finish(conn, [stranger, *closed])))
    assert found == {stranger: None} | dict.fromkeys(closed, True)


def test_a_thread_that_is_locked_is_looked_at_again(
    connect: Connect, abandoned: MySQLConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB does not tell what it does then, and it may have been killed by somebody."""
    answers = iter(["Busy", "Busy", "Killed"])
    monkeypatch.setattr(
        "pooled_serve.driver.abandoned._commands",
        lambda conn: [(abandoned.thread_id(), next(answers))],
    )
    assert not was_running(connect(), abandoned)
    assert not list(answers)


@pytest.mark.parametrize("command", ["Killed", None])
def test_what_somebody_else_has_ended_is_not_ours(
    connect: Connect,
    abandoned: MySQLConnection,
    monkeypatch: pytest.MonkeyPatch,
    command: str | None,
) -> None:
    """It must not run again. Its thread is there for a while, and another KILL succeeds."""
    commands = [(abandoned.thread_id(), command)] if command else []
    monkeypatch.setattr("pooled_serve.driver.abandoned._commands", lambda conn: commands)
    conn = connect()
    assert ended(conn, abandoned) is None
    assert not was_running(conn, abandoned)


def test_what_has_ended_needs_no_end(connect: Connect, server: Server) -> None:
    conn, gone = connect(), connect()
    gone.close()
    wait_until(lambda: gone.thread_id() not in {row["Id"] for row in threads(server)})
    assert ended(conn, gone) is None
    assert conn.reused
    assert conn.condition() is None


def wrong_id(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    conn.has_own_id = False


def wrong_id_then(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.has_own_id = False


def another_server(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.identity = ("elsewhere", *abandoned.identity[1:])


def restarted(conn: MySQLConnection, abandoned: MySQLConnection) -> None:
    abandoned.instance -= 1 << 24  # a second


@pytest.mark.parametrize("change", [wrong_id, wrong_id_then, another_server, restarted])
def test_where_the_id_may_be_a_strangers_nothing_is_ended(
    connect: Connect,
    abandoned: MySQLConnection,
    asleep: Callable[[], bool],
    change: Callable[[Any, Any], None],
) -> None:
    conn = connect()
    change(conn, abandoned)
    assert ended(conn, abandoned) is None
    assert asleep()


def test_where_it_is_not_allowed_that_is_told(
    connect: Connect,
    server: Server,
    abandoned: MySQLConnection,
    asleep: Callable[[], bool],
) -> None:
    other = server.create_database()
    conn = connect(**{key: other.connect_args()[key] for key in ("user", "password", "database")})
    assert ended(conn, abandoned) is False
    assert asleep()
    assert conn.condition() is None


def test_a_connection_knows_whether_the_server_knows_it(connect: Connect) -> None:
    assert connect().has_own_id


def test_whatever_converters_make_of_numbers_the_server_is_known(connect: Connect) -> None:
    conv = dict.fromkeys((FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG), float)
    one, other = connect(conv=conv), connect(conv=conv)
    assert is_there(one, other)


def test_an_error_of_the_server_is_an_answer(connect: Connect) -> None:
    conn = connect()
    with pytest.raises(pymysql.ProgrammingError):
        conn.query("SELECT nonsense FROM nowhere")
    conn.close()
    assert not conn.unfinished()


def test_what_is_tried_on_it_afterwards_changes_nothing(abandoned: MySQLConnection) -> None:
    with pytest.raises(OperationalError):
        abandoned.query("SELECT 1")
    with pytest.raises(OperationalError):
        abandoned.next_result()
    assert abandoned.unfinished(), "the server sleeps"
