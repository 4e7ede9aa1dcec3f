"""What Django's wrapper holds as its DB-API connection: a lease on a pooled connection."""

from __future__ import annotations

from typing import Any

from pymysql.err import InterfaceError

from pooled_serve.mysql import MySQLConnection
from pooled_serve.pool import ConnectionPool


class Session:
    """One lease, seen as a PyMySQL connection. :meth:`close` gives the connection back.

    Cursors are made on the session, not on the connection below it, so that every statement
    passes here: a cursor that outlives the lease is refused, and does not run its statement on
    a connection that somebody else holds by then.

    :param pool: where the connection comes from.
    :param held: the sessions of this greenlet; see :class:`pooled_serve.backend.Holder`.
    :raises PoolTimeout, PoolClosed, MySQLError: see :meth:`ConnectionPool.acquire`.
    """

    __slots__ = ("_conn", "_held", "_pool")

    def __init__(self, pool: ConnectionPool[MySQLConnection], held: set[Session]) -> None:
        self._pool = pool
        self._held = held
        self._conn: MySQLConnection | None = pool.acquire()
        held.add(self)

    def close(self) -> None:
        """Give the connection back. A second call does nothing: inside ``atomic()`` Django
        closes, but keeps the object."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._held.discard(self)
            self._pool.release(conn)

    def abandon(self) -> None:
        """Give the connection back on behalf of a holder who is gone. Safe in a finalizer."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.reclaim(conn)

    def usable(self) -> bool:
        """Whether statements can still be run on it."""
        return self._conn is not None and self._conn.usable()

    # --- What PyMySQL's cursors ask of their connection ------------------------------------------

    def cursor(self, cursor: Any = None) -> Any:
        """A PyMySQL cursor, of the class that OPTIONS name or of the one given."""
        return (cursor or self._leased.cursorclass)(self)

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement."""
        return self._leased.query(sql, unbuffered)

    @property
    def _result(self) -> Any:
        # Cursors look for further results when they are closed, which may be after the session.
        return None if self._conn is None else self._conn._result

    @property
    def _leased(self) -> MySQLConnection:
        if self._conn is None:
            raise InterfaceError(0, "the connection was given back to the pool")
        return self._conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leased, name)
