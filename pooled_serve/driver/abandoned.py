"""Ending what a server still does for a connection that was closed in the middle of a command.

MySQL notices that a client has gone only when it has something to send. Until then the statement
runs on, holds its locks, and counts for the server's limits.

An id must never be a stranger's. It is the server's own only if ``CONNECTION_ID()`` is the one of
the handshake, which is not so behind a proxy that shares connections; it belongs to one server, of
several behind a balancer; and it is given anew after a restart.
"""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime
from typing import TYPE_CHECKING

import gevent
from pymysql.cursors import Cursor
from pymysql.err import MySQLError

from pooled_serve.driver.error_codes import NO_SUCH_THREAD, code_of

if TYPE_CHECKING:
    from pooled_serve.driver.connection import MySQLConnection

MARGIN_SECONDS = 2.0
"""For clocks that do not agree to the second."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.1
"""Between two looks whether the server has let go."""


def finish(conn: MySQLConnection, closed: MySQLConnection) -> bool | None:
    """End what the server does for a closed connection, and wait until it has let go.

    :param conn: another connection of the same account.
    :returns: True if there was something to end; None if not, or if it cannot be known, so that
        nothing was done; False if the server does not allow it.
    :raises MySQLError: the server does not answer.
    """
    if not knows(conn, closed):
        return None
    found = closed.was_killed
    pause = FIRST_PAUSE_SECONDS
    while True:
        code = _kill(conn, closed)
        if code == NO_SUCH_THREAD:
            return True if found else None
        if code:
            return False
        found = True
        gevent.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def was_running(conn: MySQLConnection, closed: MySQLConnection) -> bool:
    """Whether the server was still at work for a closed connection, which nobody had ended. Then
    that is done now.

    :raises MySQLError: the server does not answer.
    """
    if closed.was_killed:  # by the pool
        return True
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SHOW PROCESSLIST")
        commands = {row[0]: row[4] for row in cursor.fetchall()}
    # A thread that somebody has killed is there for a while.
    running = commands.get(closed.thread_id(), "Killed") != "Killed"
    return running and _kill(conn, closed) == 0


def knows(conn: MySQLConnection, closed: MySQLConnection) -> bool:
    """Whether the id of a closed connection can only be its own on the server of another one.

    :raises MySQLError: the server does not answer.
    """
    return conn.has_own_id and closed.has_own_id and is_there(conn, closed, MARGIN_SECONDS)


def is_there(conn: MySQLConnection, closed: MySQLConnection, margin: float = 0.0) -> bool:
    """Whether both are connections to the same server, which was not restarted in between.

    :param margin: seconds for which it must have run before; its uptime is in whole seconds.
    :raises MySQLError: the server does not answer.
    """
    conn.reused = True  # or a request that asks about the statement before it would see these
    age = clock_gettime(CLOCK_BOOTTIME) - closed.opened_at
    return conn.identity == closed.identity and _uptime(conn) >= age + margin


def _uptime(conn: MySQLConnection) -> int:
    """Returns the seconds since the server was started.

    :raises MySQLError: it does not answer.
    """
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Uptime'")
        return int(cursor.fetchone()[1])


def _kill(conn: MySQLConnection, closed: MySQLConnection) -> int:
    """Returns 0, or the code of the error."""
    with conn.cursor(Cursor) as cursor:
        try:
            cursor.execute(f"KILL {closed.thread_id()}")
        except MySQLError as error:
            conn.transaction_unknown = False  # a KILL opens none
            return code_of(error) or -1
    closed.was_killed = True
    return 0
