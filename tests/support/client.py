"""A look at a database server from outside, as its administrator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql
from pymysql.constants import ER
from pymysql.cursors import DictCursor

from support.processes import wait_until

if TYPE_CHECKING:
    from support.servers import Database, Server

Row = dict[str, Any]


class BoundWatch:
    """Counts the connections to a server of which this application is the only user, as often as it
    can, from `with` to the end of the block: the most is in `peak`.

    MariaDB counts a connection for some milliseconds after it has hung up, if another thread gets
    the processor first, and then calls it busy, as it may call any other one for a moment.
    """

    def __init__(self, server: Server, database: Database) -> None:
        self._admin = Admin(server.admin_url())
        self._users = (database.user, "unauthenticated user")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._asked = 0
        self.peak = 0
        self.seen: list[str] = []  # the process list at that time

    def __enter__(self) -> BoundWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._admin.close()
        assert self._asked > 10

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            rows = self._admin.query("SHOW FULL PROCESSLIST")
            there = [row for row in rows if row["User"] in self._users]
            there = [row for row in there if row["Command"] not in ("Busy", "Killed")]
            self._asked += 1
            if len(there) > self.peak:
                self.peak = len(there)
                self.seen = [f"{row['Id']} {row['Command']} {row['Info']}" for row in rows]


class Admin:
    """Logs in as root, so that whoever counts an application's connections does not count this one.

    It keeps one connection, because a new one for each question would show in the server's
    counters, and makes a new one after a restart.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: pymysql.Connection[DictCursor] | None = None

    def query(self, sql: str, *args: object) -> list[Row]:
        """Run one statement, return its rows. PyMySQL's errors pass through."""
        with self._connected().cursor() as cursor:
            cursor.execute(sql, args or None)
            return list(cursor.fetchall())

    def status(self, name: str) -> int:
        """One of the server's own counters, as SHOW GLOBAL STATUS names it."""
        (row,) = self.query("SHOW GLOBAL STATUS LIKE %s", name)
        return int(row["Value"])

    def processlist(self, user: str) -> list[Row]:
        """The connections this user has: Id, User, Host, db, Command, Time, State, Info."""
        return [row for row in self.query("SHOW FULL PROCESSLIST") if row["User"] == user]

    def aborted_clients(self) -> int:
        """How many connections have ended without a goodbye, once those of others are all over."""
        own = ("root", "system user", "event_scheduler")
        wait_until(lambda: {row["User"] for row in self.query("SHOW PROCESSLIST")} <= {*own})
        return self.status("Aborted_clients")

    def kill(self, connection_id: int) -> None:
        """A connection that has ended by itself in the meantime is as good as killed."""
        try:
            self.query("KILL %s", connection_id)
        except pymysql.MySQLError as error:
            if error.args[0] != ER.NO_SUCH_THREAD:
                raise

    def close(self) -> None:
        if self._connection and self._connection.open:
            self._connection.close()
        self._connection = None

    def _connected(self) -> pymysql.Connection[DictCursor]:
        if self._connection:
            try:
                self._connection.ping(reconnect=False)
            except pymysql.MySQLError:
                self.close()
        if not self._connection:
            url = urlsplit(self._url)
            self._connection = pymysql.connect(
                user=url.username,
                password=unquote(url.password or ""),
                unix_socket=parse_qs(url.query)["unix_socket"][0],
                database=url.path.strip("/"),
                autocommit=True,
                cursorclass=DictCursor,
                ssl_disabled=True,  # a socket needs none, and setting it up is slow
            )
        return self._connection


@contextmanager
def gate(database: Database) -> Iterator[str]:
    """A statement that ends only when the block does, however many run it.

    For what has to be looked at meanwhile: a SLEEP may be over before a busy machine comes to look.
    """
    with (
        pymysql.connect(**database.connect_args(), ssl_disabled=True) as holder,
        holder.cursor() as cursor,
    ):
        cursor.execute("SELECT GET_LOCK('gate', 0)")
        assert cursor.fetchone() == (1,), "there is one already"
        yield "SELECT GET_LOCK('gate', 300), RELEASE_LOCK('gate')"
