"""What Django's wrapper holds as its DB-API connection: leases on pooled connections.

In request mode one lease lasts as long as the session. In transaction mode it lasts one
statement, or one transaction, or, once a statement touches the state of the session, until the
session ends: the lease is "pinned". What PgBouncer's transaction mode does between processes
happens here inside one, where the client's side is known: a statement that would read what
another request left behind is refused.

In both, a transaction starts with BEGIN before its first statement, not with SET autocommit=0 in
advance: that saves a round trip, and a transaction in which nothing happens costs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

from gevent.local import local
from pymysql.err import InterfaceError, ProgrammingError

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.statements import classify
from pooled_serve.pool import ConnectionPool
from pooled_serve.pool.stats import PINNED
from pooled_serve.status.leaks import WatchedLease

_INSERTED = re.compile("LAST_INSERT_ID|IDENTITY")
_ASKING = frozenset({"affected_rows", "insert_id", "show_warnings"})
"""Methods of a connection that tell of the statement before."""


class Leases(set["Session"]):
    """The sessions of one greenlet that hold a connection, and what it does meanwhile."""

    request: Any = None
    """Gunicorn's, while one is served."""

    def __str__(self) -> str:
        if self.request is None:
            return "a greenlet, not a request"
        return f"{self.request.method} {shorten(self.request.path)}"


def shorten(path: str) -> str:
    """A path for logs: two segments of it. What follows can be a token, and a query anything."""
    segments = path.partition("?")[0].split("/")
    short = "/".join(segments[:3]) + ("/…" if any(segments[3:]) else "")
    return "".join(c if c.isprintable() else "�" for c in short[:100])


class Holder:
    """The sessions of one greenlet. Dies with it, and gives back what it forgot to.

    Lives in a greenlet-local, which is cleared promptly however the greenlet ends: finished,
    killed, timed out, plain ``greenlet.greenlet`` included.
    """

    __slots__ = ("leases",)

    def __init__(self) -> None:
        self.leases = Leases()

    def __del__(self) -> None:
        # Runs in the hub or in a garbage collection: abandon() only enqueues.
        with contextlib.suppress(Exception):
            for session in tuple(self.leases):
                session.abandon()


_local = local()


def leases_here() -> Leases:
    """What the current greenlet holds."""
    try:
        holder = _local.holder
    except AttributeError:
        holder = _local.holder = Holder()
    leases: Leases = holder.leases
    return leases


class Session:
    """Seen as a PyMySQL connection. :meth:`close` gives back what it holds.

    Cursors are made on the session, not on the connection below it, so that every statement
    passes here: a cursor that outlives the session is refused, and does not run its statement on
    a connection that somebody else holds by then.

    :param pool: where connections come from.
    :param held: the sessions of this greenlet that hold one; see :class:`Holder`.
    :param cursorclass: PyMySQL's, or what OPTIONS name.
    :param reset: ``auto``, ``always`` or ``rollback``; see ``--pool-reset``.
    :param per_transaction: lease for each statement or transaction, and not for good.
    :param leak_threshold: seconds after which a lease is suspiciously long; None for never.
    :raises PoolTimeout, PoolClosed, MySQLError: see :meth:`ConnectionPool.acquire`.
    """

    def __init__(
        self,
        pool: ConnectionPool[MySQLConnection],
        held: Leases,
        cursorclass: Any,
        reset: str = "auto",
        per_transaction: bool = False,
        leak_threshold: float | None = None,
    ) -> None:
        self._pool = pool
        self._held = held
        self._cursorclass = _tracked(cursorclass)
        self._reset = reset
        self._leak_threshold = leak_threshold
        self._watched: WatchedLease | None = None
        self._conn: MySQLConnection | None = None
        self._closed = False
        self._autocommit = True  # as Django sees it; the connection below nearly always is
        self._touched = False  # by a statement, since it was leased
        self._inserted = False  # a row with a generated key, since it was leased
        self._depth = 0  # statements under way: executemany() runs several
        self._last: Any = None  # the last result: its cursor looks for more of it
        self._pinned = not per_transaction
        if self._pinned:
            self._lease()

    # --- The lease -----------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back. A second call does nothing: inside ``atomic()`` Django
        closes, but keeps the object."""
        self._closed = True
        self._give_back()

    def abandon(self) -> None:
        """Give the connection back on behalf of a holder who is gone. Safe in a finalizer."""
        self._closed = True
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.spoiled |= self._depth > 0
            self._pool.reclaim(conn)
            if self._watched is not None:
                self._watched.end_soon()

    def usable(self) -> bool:
        """Whether statements can still be run on it."""
        return not self._closed and (self._conn is None or self._conn.usable())

    def _lease(self) -> MySQLConnection:
        if self._closed:
            raise InterfaceError(0, "the connection was given back to the pool")
        conn = self._pool.acquire()
        self._inserted = False
        if self._reset == "always":
            conn.touched = "always"
        self._conn = conn
        conn.lessee = self._held
        self._held.add(self)
        if self._leak_threshold is not None:
            self._watched = WatchedLease(self._pool, self._held, self._leak_threshold)
        return conn

    def _give_back(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            self._held.discard(self)
            if self._watched is not None:
                self._watched.end()
            conn.lessee = None
            conn.spoiled |= self._depth > 0
            if self._reset == "rollback":
                conn.touched = None  # by a method of its own, such as select_db()
            self._pool.release(conn)

    def _pin(self, reason: str) -> None:
        if not self._pinned:
            self._pinned = True
            self._pool.count(PINNED[reason])

    # --- Statements ----------------------------------------------------------------------------

    def begin_statement(self, template: str | bytes) -> None:
        """Make the connection ready for a statement. :meth:`end_statement` must follow.

        :param template: the statement as the program wrote it, without its values.
        :raises ProgrammingError: it asks about the statement before, which nobody knows here.
        """
        if self._depth == 0:
            statement = classify(template)
            conn = self._conn
            if statement.asks and (conn is None or not self._knows(statement.asks)):
                raise _who_knows(statement.asks)
            if conn is None:
                conn = self._lease()
            if statement.touches:
                self._touch(conn, statement.touches)
            elif not self._autocommit:
                self._begin(conn)
        self._depth += 1

    def end_statement(self) -> None:
        """After the statement, whatever became of it."""
        self._depth -= 1
        conn = self._conn
        if self._depth == 0 and conn is not None:
            self._last = conn._result
            self._inserted |= bool(self._last is not None and self._last.insert_id)
            if not self._pinned:
                self._let_go(conn)

    def _knows(self, asked: str) -> bool:
        """Whether the answer is about this lease. Inserts are remembered by the server for long."""
        return self._pinned or self._inserted or not _INSERTED.search(asked)

    def _touch(self, conn: MySQLConnection, reason: str) -> None:
        if self._reset != "rollback":
            conn.touched = reason
        self._touched = True
        self._pin(reason)
        if not self._autocommit and conn.get_autocommit():
            # What it runs may commit by itself, and go on after that.
            conn.autocommit(False)

    def _begin(self, conn: MySQLConnection) -> None:
        if conn.suspect and conn.open:
            conn.ping()  # its answer tells what the error has left of the transaction
            conn.suspect = False
        if conn.in_transaction():
            return
        if self._touched:
            # BEGIN would end a LOCK TABLES, and forbid a SET TRANSACTION.
            conn.autocommit(False)
        else:
            conn.begin()

    def _let_go(self, conn: MySQLConnection) -> None:
        """Give the connection back, unless a transaction or an unread result needs it."""
        if conn.unread():
            self._pin("several results")
        elif not conn.in_transaction() and (self._autocommit or conn.condition() is None):
            # Else a transaction was open when the connection was lost: what follows must fail
            # as well, not run in a transaction of its own.
            self._give_back()

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement."""
        if self._depth and not unbuffered and self._conn is not None:
            return self._conn.query(sql)  # inside execute(), which has said all about it
        self.begin_statement(sql)
        try:
            if unbuffered:
                self._pin("unbuffered cursor")
            assert self._conn is not None
            return self._conn.query(sql, unbuffered)
        finally:
            self.end_statement()

    def cursor(self, cursor: Any = None) -> Any:
        """A PyMySQL cursor, of the class that OPTIONS name or of the one given."""
        if self._closed:
            raise InterfaceError(0, "the connection was given back to the pool")
        return (_tracked(cursor) if cursor else self._cursorclass)(self)

    @property
    def _result(self) -> Any:
        # Cursors look for further results when they are closed, which may be after the session.
        if self._conn is None and self._depth:
            raise InterfaceError(0, "the connection was given back during the statement")
        return self._last if self._conn is None else self._conn._result

    # --- Transactions --------------------------------------------------------------------------

    def get_autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        return self._autocommit

    def autocommit(self, value: bool) -> None:
        """Switch it. An open transaction is committed when it is switched on, as the server
        does."""
        conn = self._conn
        if value and conn is not None:
            if not conn.get_autocommit():
                conn.autocommit(True)
            elif not self._autocommit:
                self.commit()
        self._autocommit = value

    def commit(self) -> None:
        """COMMIT, if there is anything to commit."""
        self._finish("commit")

    def rollback(self) -> None:
        """ROLLBACK, if there is anything to roll back."""
        self._finish("rollback")

    def _finish(self, how: str) -> None:
        conn = self._conn
        if conn is not None:
            if not conn.open or conn.suspect or conn.in_transaction():
                getattr(conn, how)()
            if not self._pinned:
                self._let_go(conn)

    def ping(self, reconnect: bool = False) -> None:
        """Ask the server whether the connection still works, if there is one."""
        if self._conn is not None:
            self._conn.ping()

    def __getattr__(self, name: str) -> Any:
        conn = self._conn
        if conn is None:
            if name in _ASKING:
                raise _who_knows(f"{name}()")
            conn = self._lease()
        if self._depth == 0:
            # What it returns may be a method, to be called at any time.
            self._pin("direct use")
        return getattr(conn, name)


def _who_knows(asked: str) -> ProgrammingError:
    return ProgrammingError(
        f"{asked} asks about the statement before it, which ran on a connection that is back in "
        "the pool (--pool-mode transaction): put both inside one transaction.atomic()"
    )


class _Tracked:
    """A cursor that tells its session which statement is about to run."""

    connection: Session | None

    def execute(self, query: Any, args: Any = None) -> Any:
        return self._run(super().execute, query, query, args)  # type: ignore[misc]

    def executemany(self, query: Any, args: Any) -> Any:
        return self._run(super().executemany, query, query, args)  # type: ignore[misc]

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        return self._run(super().callproc, "CALL", procname, args)  # type: ignore[misc]

    def _run(self, method: Any, template: Any, *args: Any) -> Any:
        session = self.connection
        if session is None:
            return method(*args)  # closed; it says so itself
        session.begin_statement(template)
        try:
            return method(*args)
        finally:
            session.end_statement()


@functools.cache
def _tracked(cursorclass: Any) -> Any:
    """A cursor class, made to tell its session what it runs."""
    return type("Cursor", (_Tracked, cursorclass), {})
