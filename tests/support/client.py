"""A look at a database server from outside, as its administrator."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql
from pymysql.cursors import DictCursor

from support.processes import wait_until

Row = dict[str, Any]


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
        wait_until(
            lambda: {row["User"] for row in self.query("SHOW PROCESSLIST")} <= {*own}, timeout=10
        )
        return self.status("Aborted_clients")

    def kill(self, connection_id: int) -> None:
        self.query("KILL %s", connection_id)

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
