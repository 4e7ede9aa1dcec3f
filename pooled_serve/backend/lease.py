"""The DB-API connection of Django's wrapper: a session, which leases pooled connections.

A lease lasts as long as something needs it: a statement, a transaction, unread results; or, once a
statement has touched the state of the session, until the session ends: then the lease is "pinned".
In request mode it also lasts as long as the view runs; the scope of the greenlet says whether one
does. PgBouncer's transaction mode does this between processes. Here, inside one process, the
client's side is known: a statement that would read what another request left behind is refused, or
answered as on a fresh connection.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

from pymysql.err import InterfaceError, MySQLError

from pooled_serve.backend.again import may_run_again, replace_connection, replace_if_dead
from pooled_serve.backend.answers import prepare_answer
from pooled_serve.backend.cursors import tracked
from pooled_serve.backend.direct import DirectUse, forward_attributes
from pooled_serve.backend.scope import GreenletScope
from pooled_serve.backend.transactions import begin, begin_alone
from pooled_serve.driver import questions
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.statements import LASTING, Statement, classify
from pooled_serve.pool import ConnectionPool
from pooled_serve.pool.metrics import PINNED
from pooled_serve.status.leaks import WatchedLease

PAUSE_SECONDS = 0.01
"""After a pause of this length between two statements, a look at the socket is worth its
microsecond."""


class Session(DirectUse):
    """Looks like a PyMySQL connection. :meth:`close` gives the leased one back.

    Cursors are made on the session, not on the connection below it, so that every statement passes
    here: a cursor that outlives the session is refused, and cannot run its statement on a
    connection that another request leases by then.

    Attributes that are not defined here are the connection's. What their use leaves behind is
    unknown, so the lease is pinned, and the connection closed afterwards.

    :param pool: where connections come from.
    :param scope: of the greenlet whose session this is.
    :param cursorclass: PyMySQL's, or the one that OPTIONS name.
    :param reset: ``auto``, ``always`` or ``rollback``; see ``--pool-reset``.
    :param leak_threshold: seconds after which a lease is suspiciously long; None for never.
    """

    def __init__(
        self,
        pool: ConnectionPool[MySQLConnection],
        scope: GreenletScope,
        cursorclass: Any,
        reset: str = "auto",
        leak_threshold: float | None = None,
    ) -> None:
        self._pool, self._scope = pool, scope
        self._cursorclass, self._tracked = cursorclass, tracked(cursorclass)
        self._reset, self._leak_threshold = reset, leak_threshold
        self._watched: WatchedLease | None = None
        self._conn: MySQLConnection | None = None
        self._closed = self._pinned = False
        self._autocommit = True  # as Django set it; on the connection it is nearly always on
        self._depth = 0  # statements under way: a parameter of one may run another
        self._last: Any = None  # the last result, which its cursor may ask for after the lease
        self._ran_on_earlier_lease = False  # a statement ran before the present lease
        self._had_key = self._had_sequence_value = False  # on a lease before the present one
        self._statement, self._number = Statement(), 0  # the last one that began
        self._begun_by = 0  # the number of the one that was sent together with BEGIN
        self._look_after = math.inf  # from then on the server may have closed the connection
        self._touched_session = False  # by a statement
        self._last_was_question = False  # the last statement asked about the one before it
        self._forget_statements()

    # As unittest.mock does it: isinstance(session, pymysql.connections.Connection) is true.
    __class__ = property(lambda self: MySQLConnection)

    # --- The lease -----------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back, and refuse statements from now on. Can be repeated: inside
        ``atomic()`` Django closes, but keeps the object."""
        self._closed = True
        self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def reclaim(self) -> None:
        """Give the connection back for a greenlet that is gone. Safe in a finalizer, see
        :meth:`ConnectionPool.reclaim`."""
        self._closed = True
        conn, self._conn = self._conn, None
        if conn is not None:
            self._note_use(conn)
            self._pool.reclaim(conn)
            if self._watched is not None:
                self._watched.end_soon()

    def lease_if_kept(self) -> None:
        """Lease a connection now, rather than with the first statement, if it then stays.

        :raises PoolTimeout, PoolClosed, MySQLError: see :meth:`ConnectionPool.acquire`.
        """
        if self._conn is None and self._scope.keep_leases:
            self._lease()

    def release_if_unneeded(self) -> None:
        """Give the connection back, unless something needs it."""
        conn = self._conn
        if conn is None or self._depth or self._pinned or self._scope.keep_leases:
            return
        if conn.unread():
            self._pin("unbuffered cursor" if conn._result.unbuffered_active else "several results")
        elif not conn.in_transaction() and (self._autocommit or conn.condition() is None):
            # Otherwise the connection was lost inside a transaction, whose further statements must
            # fail, too, and not run in a transaction of their own.
            self._release()

    def is_releasable(self) -> bool:
        """Whether it could give its connection back now without losing state: nothing needs the
        lease but the view that runs."""
        conn = self._conn
        return conn is None or (
            self._autocommit
            and not (self._depth or self._pinned or conn.unread() or conn.in_transaction())
        )

    def usable(self) -> bool:
        """Whether it can still run statements. No I/O."""
        return not self._closed and (self._conn is None or self._conn.usable())

    @property
    def open(self) -> bool:
        """Whether it is not closed, and its connection, if it leases one, not lost."""
        return not self._closed and (self._conn is None or self._conn.open)

    def _lease(self) -> MySQLConnection:
        if self._closed:
            raise InterfaceError(0, "the connection was given back to the pool")
        conn = self._pool.acquire()
        # Clear what an earlier lease has left.
        conn._result, conn.forget_key_first, conn.begin_first = None, False, False
        self._forget_statements()
        if self._reset == "always":
            conn.dirty_reason = "always"
        self._conn = conn
        conn.scope = self._scope
        self._scope.add(self)
        if self._leak_threshold is not None:
            self._watched = WatchedLease(self._pool, self._scope, self._leak_threshold)
        return conn

    def _forget_statements(self) -> None:
        """Nothing has run on the present lease yet."""
        self._ran_statement = False
        self._may_have_key = False  # a statement may have generated a key
        self._has_own_key = False  # as far as can be known, LAST_INSERT_ID() is this session's
        self._used_sequence = False  # LASTVAL() is this session's
        self._got_rows = False  # FOUND_ROWS() is this session's

    def _release(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            self._scope.discard(self)
            if self._watched is not None:
                self._watched.end()
            self._note_use(conn)
            self._ran_on_earlier_lease |= self._ran_statement
            self._had_key |= self._has_own_key
            self._had_sequence_value |= self._used_sequence
            if self._reset == "rollback":
                conn.dirty_reason = None  # set by a method of its own, such as select_db()
            self._pool.release(conn)

    def _note_use(self, conn: MySQLConnection) -> None:
        """Note on the connection what others must know about this lease."""
        conn.scope, conn.usage = None, self._scope.usage
        conn.reused = True
        conn.stale_key |= self._may_have_key
        conn.in_statement |= self._depth > 0

    def _pin(self, reason: str) -> None:
        if not self._pinned:
            self._pinned = True
            if not self._scope.keep_leases:
                self._pool.count(PINNED[reason])

    # --- Statements ----------------------------------------------------------------------------

    def begin_statement(self, template: str | bytes) -> int:
        """Prepare the connection for a statement. :meth:`end_statement` must follow. Returns the
        number of the statement, for :meth:`runs_again`.

        :param template: the statement as the program wrote it, without its values.
        :raises ProgrammingError: it asks about an earlier statement that ran on another lease.
        """
        self._depth += 1  # from here on, because the preparations may switch greenlets
        try:
            number = self._number = self._scope.statements = self._scope.statements + 1
            statement = self._statement = classify(template)
            if statement.asks:
                prepare_answer(self, template, statement.asks)
            self._last_was_question = bool(statement.asks)
            if self._conn is not None and monotonic() > self._look_after:
                replace_if_dead(self)
            conn = self._conn or self._lease()
            if conn.begin_first:  # that is for the statement of which this is a parameter
                begin_alone(self, conn)
            if statement.touches:
                self._touch(conn, statement.touches)
            else:
                if statement.keeps:
                    self._pin(statement.keeps)
                if not self._autocommit:
                    begin(self, conn)
                    conn = self._conn or conn  # it may be another
            if statement.inserts or statement.numbers:
                self._note_keys(conn, statement)
            self._ran_statement = True
        except BaseException:
            self._depth -= 1
            self.release_if_unneeded()
            raise
        return number

    def _note_keys(self, conn: MySQLConnection, statement: Statement) -> None:
        """Note what the statement may generate."""
        if statement.inserts:
            self._may_have_key = True
            if statement.returning:
                # Its answer does not tell whether it has generated a key.
                conn.forget_key_first = conn.stale_key and not self._has_own_key
                self._has_own_key = True
        if statement.numbers:
            self._used_sequence = True

    def runs_again(self, error: MySQLError, number: int) -> bool:
        """Whether to run a failed statement again. Then a fresh connection is leased.

        :param number: of the statement. If another one has begun since, for a parameter or in
            another greenlet, what is known here is about that one.
        :raises PoolTimeout, PoolClosed, MySQLError: there is none.
        """
        harmless = self._statement.repeatable
        if (
            number != self._number
            or not (self._autocommit or self._begun_by == number)
            or not may_run_again(self, error, harmless=harmless)
        ):
            return False
        if not replace_connection(self, error):
            return False
        self._ran_statement = True
        if self._conn is not None:  # it was just leased
            if not self._autocommit:
                begin(self, self._conn)
            self._note_keys(self._conn, self._statement)
        return True

    def end_statement(self) -> None:
        """Note that the statement has ended, in any way, and give back what it alone needed."""
        self._depth -= 1
        conn = self._conn
        if conn is not None:
            self._look_after = monotonic() + PAUSE_SECONDS
            if not self._depth:
                conn.begin_first = False  # still set, if the statement was not sent
            last = self._last = conn._result
            if last is not None:
                if last.insert_id:
                    self._has_own_key = True
                elif last.field_count:
                    self._got_rows = True
            if not (self._depth or self._pinned or self._scope.keep_leases):
                self.release_if_unneeded()

    def _touch(self, conn: MySQLConnection, reason: str) -> None:
        if self._reset != "rollback":
            conn.dirty_reason = reason
            if reason in LASTING:
                conn.condemn("lasting state")
        self._touched_session = True
        if reason in questions.MAY_INSERT and not self._last_was_question:
            if conn.stale_key and not self._has_own_key:
                conn.query(questions.FORGET_KEY)  # or an old key would be taken for its own
            self._may_have_key = self._has_own_key = True
        self._pin(reason)
        if not self._autocommit and conn.get_autocommit():
            # It may contain a COMMIT, after which BEGIN would no longer cover the rest.
            conn.autocommit(False)

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement."""
        return self._run(sql, MySQLConnection.query, sql, unbuffered)

    def _run(self, template: Any, command: Any, *args: Any) -> Any:
        self.begin_statement(template)
        try:
            return command(self._conn, *args)
        finally:
            self.end_statement()

    def cursor(self, cursor: Any = None) -> Any:
        """Returns a PyMySQL cursor of the given class, by default the session's."""
        if self._closed:
            raise InterfaceError(0, "the connection was given back to the pool")
        return (tracked(cursor) if cursor else self._tracked)(self)

    @property
    def cursorclass(self) -> Any:
        """The class of new cursors."""
        return self._cursorclass

    @cursorclass.setter
    def cursorclass(self, value: Any) -> None:
        self._cursorclass, self._tracked = value, tracked(value)

    # --- Results -------------------------------------------------------------------------------

    @property
    def _result(self) -> Any:
        # Cursors ask for further results when they are closed, which may be after the session.
        if self._conn is None and self._depth:
            raise InterfaceError(0, "the connection was given back during the statement")
        return self._last if self._conn is None else self._conn._result

    def insert_id(self) -> Any:
        """Returns the key that the last statement has generated; 0 or None if none."""
        return self._last.insert_id if self._last else 0

    def affected_rows(self) -> Any:
        """Returns how many rows the last statement has changed or found."""
        return self._last.affected_rows if self._last else 0

    def show_warnings(self) -> Any:
        """Returns the warnings of the last statement.

        :raises ProgrammingError: see :meth:`begin_statement`.
        """
        return self._run("SHOW WARNINGS", MySQLConnection.show_warnings)

    def next_result(self, unbuffered: bool = False) -> Any:
        """Read the next result of a statement that has several."""
        conn = self._conn
        if conn is None:
            raise InterfaceError(0, "the connection was given back to the pool")
        self._depth += 1
        try:
            return conn.next_result(unbuffered)
        finally:
            self.end_statement()

    # --- Transactions --------------------------------------------------------------------------

    def get_autocommit(self) -> bool:
        """Returns whether each statement is a transaction of its own."""
        return self._autocommit

    def autocommit(self, value: bool) -> None:
        """Switch autocommit. Switching it on commits an open transaction, as in the server."""
        conn = self._conn
        if value and conn is not None:
            if not conn.get_autocommit():
                conn.autocommit(True)
            elif not self._autocommit:
                self.commit()
        self._autocommit = value

    def begin(self) -> None:
        """Start a transaction."""
        self.query("BEGIN")

    def commit(self) -> None:
        """Send COMMIT, if a transaction may be open."""
        self._finish("commit")

    def rollback(self) -> None:
        """Send ROLLBACK, if a transaction may be open."""
        self._finish("rollback")

    def _finish(self, how: str) -> None:
        conn = self._conn
        if conn is not None:
            if not conn.open or conn.transaction_unknown or conn.in_transaction():
                self._depth += 1
                try:
                    getattr(conn, how)()
                finally:
                    self._depth -= 1
            self.release_if_unneeded()

    # --- Commands ------------------------------------------------------------------------------

    def ping(self, reconnect: bool = False) -> None:
        """Check that the server answers; does nothing without a lease."""
        if self._conn is not None:
            self._conn.ping()

    def select_db(self, db: Any) -> None:
        """Change the database, which pins the lease."""
        self._command("database", MySQLConnection.select_db, db)

    def set_character_set(self, charset: Any, collation: Any = None) -> None:
        """Change the character set, which pins the lease."""
        self._command("variable", MySQLConnection.set_character_set, charset, collation)

    set_charset = set_character_set

    def _command(self, reason: str, command: Any, *args: Any) -> None:
        conn = self._conn or self._lease()
        self._touch(conn, reason)
        self._ran_statement = True
        self._depth += 1
        try:
            command(conn, *args)
        finally:
            self.end_statement()

    def thread_id(self) -> Any:
        """Returns the server's id of the connection. Pins the lease: the id may be for a KILL."""
        conn = self._conn or self._lease()
        self._pin("direct use")
        return conn.thread_id()

    def escape(self, obj: Any, mapping: Any = None) -> Any:
        """Returns a value as SQL."""
        conn = self._conn or self._lease()
        self._depth += 1  # a lazy value may run statements
        try:
            return conn.escape(obj, mapping)
        finally:
            self._depth -= 1
            self.release_if_unneeded()

    literal = escape


forward_attributes(Session)
