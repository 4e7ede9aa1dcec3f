"""The driver's connections to MariaDB and to MySQL, with TLS and without."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent.socket
import gevent.ssl
import pymysql
import pytest

from pooled_serve.driver.connection import MySQLConnection
from support.netproxy import NetProxy
from support.servers import Database, Server

KINDS = ["mariadb", "mysql", "mysql without TLS"]

Connect = Callable[..., MySQLConnection]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(kind.partition(" ")[0])
    return found


@pytest.fixture
def proxy(server: Server) -> Iterator[NetProxy]:
    with NetProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(kind: str, server: Server, database: Database) -> Iterator[Connect]:
    """Connects as Django would: with autocommit on. A file's `database` is to be on `server`."""
    assert database.port == server.port
    made: list[MySQLConnection] = []

    def connect(*, set_up: bool = True, **options: Any) -> MySQLConnection:
        if "without TLS" in kind:
            options.setdefault("ssl_disabled", True)
        made.append(MySQLConnection(**{**database.connect_args(), "autocommit": True, **options}))
        if set_up:
            made[-1].set_up()
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent's sockets for PyMySQL alone: the rest of this process stays un-patched."""
    monkeypatch.setattr(pymysql.connections, "socket", gevent.socket)
    monkeypatch.setattr(pymysql.connections, "ssl", gevent.ssl)
    monkeypatch.setattr(ssl, "SSLContext", gevent.ssl.SSLContext)


def run(connection: MySQLConnection, sql: str, *args: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return list(cursor.fetchall())


def one(connection: MySQLConnection, sql: str) -> Any:
    return run(connection, sql)[0][0]


def stuff(connection: MySQLConnection) -> None:
    """Send until nothing more goes in."""
    connection._sock.settimeout(0)
    with suppress(OSError):
        while connection._sock.send(b"x" * 1_000_000):
            pass
    connection._sock.settimeout(None)
