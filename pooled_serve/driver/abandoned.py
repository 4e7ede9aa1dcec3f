"""Ending what a server still does for a connection that was closed in the middle of a command.

MySQL notices that a client has gone only when it has something to send. Until then the statement
runs on, holds its locks, and counts for the server's limits.

An id must never be a stranger's. It is the server's own only if ``CONNECTION_ID()`` is the one of
the handshake, which is not so behind a proxy that shares connections; it belongs to one server, of
several behind a balancer; and it is given anew after a restart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import gevent
from pymysql.cursors import Cursor
from pymysql.err import MySQLError

from pooled_serve.driver.error_codes import NO_SUCH_THREAD, code_of

if TYPE_CHECKING:
    from pooled_serve.driver.connection import MySQLConnection

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.005, 0.1
"""Between two looks whether the server has let go."""

BETWEEN_KILLS_SECONDS = 0.001
"""Without a pause, a KILL of one SLEEP among many took MariaDB 10.11 two seconds: it wakes the
thread under a mutex that the last one which was woken may still hold, and tries that ten times a
second."""

_LOOKS_AT_BUSY = 100  # half a second; it is never so for as long

_TRACE = struct.Struct("=QQ16s")  # id, instance, digest of the identity


class Left:
    """What is known of a connection of a process that has died."""

    has_own_id = True
    was_killed = False

    def __init__(self, trace: bytes) -> None:
        self._number, self.instance, self.identity = _TRACE.unpack(trace)

    def thread_id(self) -> int:
        """Returns its id at the server."""
        return int(self._number)

    def close(self) -> None:
        """Nothing: the kernel has closed it."""

    abandon = close


def trace_of(conn: MySQLConnection) -> bytes:
    """Returns what another process needs for a :class:`Left`; empty if its id is not known."""
    if not conn.has_own_id or conn.instance < 0:
        return b""
    return _TRACE.pack(conn.thread_id(), conn.instance, _digest(conn))


def _digest(conn: Any) -> bytes:
    """Returns the identity of a connection's server in few bytes."""
    if isinstance(conn, Left):
        return bytes(conn.identity)
    return blake2b(repr(conn.identity).encode(), digest_size=16).digest()


def finish(
    conn: MySQLConnection, closed: Iterable[MySQLConnection]
) -> Iterator[tuple[MySQLConnection, bool | None] | None]:
    """End what the server does for closed connections, and wait until it has let go of all.

    :param conn: another connection of the same account.
    :returns: each closed one as soon as that is known, with True if there was something to end;
        None if not, or if it cannot be known, so that nothing was done; False if the server does
        not allow it. And None before each pause, where the caller may stop.
    :raises MySQLError: the server does not answer.
    """
    left = []
    for each in closed:
        if knows(conn, each):
            left.append(each)
        else:
            yield each, None
    running = _running(conn, left)
    pause = FIRST_PAUSE_SECONDS
    while left:
        there = []
        for each in left:
            code = _kill(conn, each)
            if code == NO_SUCH_THREAD:
                yield each, each.was_killed or None
            elif code:
                yield each, False
            else:
                each.was_killed |= each.thread_id() in running
                there.append(each)
            gevent.sleep(BETWEEN_KILLS_SECONDS)
        left = there
        if left:
            yield None
            gevent.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def was_running(conn: MySQLConnection, closed: MySQLConnection) -> bool:
    """Whether the server was still at work for a closed connection, which nobody had ended. Then
    that is done now.

    :raises MySQLError: the server does not answer.
    """
    if not closed.was_killed and _running(conn, [closed]) and _kill(conn, closed) == 0:
        closed.was_killed = True
    return closed.was_killed  # perhaps by the pool, meanwhile


def _running(conn: MySQLConnection, closed: list[MySQLConnection]) -> set[int]:
    """Returns the ids of those for which the server is at work, and whose threads nobody has
    killed. Such a thread is there for a while, and another KILL succeeds."""
    ids = {each.thread_id() for each in closed}
    commands: dict[int, str] = {}
    for _ in range(_LOOKS_AT_BUSY if closed else 0):
        commands = {number: what for number, what in _commands(conn) if number in ids}
        if "Busy" not in commands.values():
            break
        gevent.sleep(FIRST_PAUSE_SECONDS)
    return {number for number, what in commands.items() if what not in ("Busy", "Killed")}


def _commands(conn: MySQLConnection) -> list[tuple[int, str]]:
    """Returns the ids of the server's threads, as far as this account may see them, and what each
    does.

    MariaDB says "Busy" while another thread has locked one, whatever that does: see trylock_short()
    in its sql/sql_show.cc.
    """
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SHOW PROCESSLIST")
        return [(row[0], row[4]) for row in cursor.fetchall()]


def knows(conn: MySQLConnection, closed: MySQLConnection) -> bool:
    """Whether the id of a closed connection can only be its own on the server of another one.

    :raises MySQLError: the server does not answer.
    """
    return conn.has_own_id and closed.has_own_id and is_there(conn, closed) is True


def is_there(conn: MySQLConnection, closed: MySQLConnection) -> bool | None:
    """Whether both are connections to the same server, which was not restarted in between. Returns
    None if that cannot be known.

    UUID_SHORT() counts its calls, from the second in which the server was started times 2**24 on;
    so says the manual of MySQL, and MariaDB does the same.

    :raises MySQLError: the server does not answer.
    """
    if conn.instance < 0 or closed.instance < 0:
        return None
    if _digest(conn) != _digest(closed):
        return False
    conn.reused = True  # or a request that asks about the statement before it would see this one
    with conn.cursor(Cursor) as cursor:
        cursor.execute("SELECT HEX(UUID_SHORT())")  # a number may be converted to anything
        now = int(cursor.fetchone()[0], 16)
    return 0 < now - closed.instance < 1 << 24


def _kill(conn: MySQLConnection, closed: MySQLConnection) -> int:
    """Returns 0, or the code of the error."""
    with conn.cursor(Cursor) as cursor:
        try:
            cursor.execute(f"KILL {closed.thread_id()}")
        except MySQLError as error:
            conn.transaction_unknown = False  # a KILL opens none
            return code_of(error) or -1
    return 0
