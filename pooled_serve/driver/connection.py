"""The MySQL connection that the pool holds: connecting, liveness, clean hand-back.

What differs from PyMySQL's own connection, each for a failure seen with PyMySQL 1.1 to 1.2:

* TLS contexts are cached. PyMySQL builds one per connect, 43 ms of CPU during which no other
  greenlet runs, even if the server has no TLS.
* The whole handshake is bounded, not just the TCP connect: a stopped server accepts, and is
  silent.
* Whatever interrupts a command closes the socket. PyMySQL does that when a read is interrupted;
  half a packet written, or half a result parsed, it leaves for the next user to trip over.
* ``close()`` neither blocks nor raises.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import ssl
from typing import Any, NoReturn

from gevent.monkey import get_original
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS
from pymysql.cursors import Cursor
from pymysql.err import InterfaceError, MySQLError, OperationalError

from pooled_serve.driver.columns import MAX_PACKET_LEN
from pooled_serve.driver.error_codes import (
    CR_AUTH_PLUGIN_ERR,
    CR_CONN_HOST_ERROR,
    GONE,
    code_of,
    is_read_only,
)
from pooled_serve.driver.questions import FORGET_KEY
from pooled_serve.driver.reset import ResettableConnection, limit
from pooled_serve.driver.results import BulkConnection
from pooled_serve.driver.statements import classify
from pooled_serve.pool import DIRTY, FAILED_OVER
from pooled_serve.tuning import send

log = logging.getLogger("gunicorn.error")

# Statements, and bytes of one. Outside of the pool a connection is never done with its set-up.
_MAX_SETUP_STATEMENTS, _MAX_SETUP_BYTES = 100, 10_000
_MAX_TLS_CONTEXTS = 16  # of some 100 kB each

_STATUS_MASK = SERVER_STATUS_AUTOCOMMIT | SERVER_STATUS_IN_TRANS
_COM_QUIT = b"\x01\x00\x00\x00\x01"

# gevent's poll switches greenlets; this question must not.
_new_poll = get_original("select", "poll")


class MySQLConnection(ResettableConnection, BulkConnection):
    """A PyMySQL connection that can tell whether the next user may have it."""

    _sock: Any
    _read_timeout: float | None
    _write_timeout: float | None

    wait_timeout: int | None = None
    """Seconds after which the server hangs up on an idle connection; None if it did not say."""

    _fault: str | None = None  # why it must be closed when it comes back
    scope: Any = None  # of the greenlet that leases it: a pooled_serve.backend.scope.GreenletScope
    reused = False  # an earlier lease has used it
    in_statement = False  # was given back while another greenlet ran a statement on it
    _contexts: dict[Any, ssl.SSLContext] = {}  # noqa: RUF012 - shared on purpose, per process

    # --- Connecting ----------------------------------------------------------------------------

    def connect(self, sock: Any = None) -> None:
        """Connect and log in within ``connect_timeout`` seconds, all in all.

        :raises OperationalError: with the server's error, or 2003 if it did not answer in time.
        """
        self._setup, self._replay = [], ()
        seconds = self.connect_timeout
        timeouts = self._read_timeout, self._write_timeout
        # Without gevent's patches the Timeout below cannot interrupt a blocking read; a timeout
        # per read can.
        self._read_timeout = min(timeouts[0] or math.inf, seconds)
        self._write_timeout = min(timeouts[1] or math.inf, seconds)
        try:
            with limit(
                seconds,
                CR_CONN_HOST_ERROR,
                f"Can't connect to MySQL server on {self.host!r} "
                f"(no complete handshake within {seconds:g}s)",
            ):
                super().connect(sock)
                self._read_session_defaults()
        except RuntimeError as error:
            if "cryptography" not in str(error):
                raise
            raise OperationalError(
                CR_AUTH_PLUGIN_ERR,
                "this login needs the cryptography package: pip install 'pooled-serve[rsa]', "
                "or use TLS",
            ) from error
        finally:
            self._read_timeout, self._write_timeout = timeouts

    def _read_session_defaults(self) -> None:
        """What the rest of this class wants to know of a fresh connection."""
        poll = _new_poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        self._readable = poll.poll
        try:
            wait_timeout, role, autocommit, *identity = self._ask(
                "SELECT @@wait_timeout, CURRENT_ROLE(), @@autocommit,"
                " @@hostname, @@port, @@server_id, @@init_connect"
            )
            self.wait_timeout, self._role = int(wait_timeout), self._as_role(role)
            self._identity = tuple(identity)
            self._apply_autocommit(bool(autocommit))
        except MySQLError:
            # A proxy may know no roles, or not that variable. But that time was up, or the server
            # gone, must not go unnoticed.
            if self._sock is None:
                raise
            with contextlib.suppress(MySQLError):
                self.wait_timeout = int(self._ask("SELECT @@wait_timeout")[0])
            if self._sock is None:
                raise
        self._status_at_rest = self.server_status & _STATUS_MASK
        self._fault, self.transaction_unknown = None, False

    def _ask(self, sql: str) -> tuple[Any, ...]:
        with self.cursor(Cursor) as cursor:
            cursor.execute(sql)
            row: tuple[Any, ...] = cursor.fetchone()
        return row

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        """PyMySQL's context for these arguments, made once per process and set of files."""
        if isinstance(sslp, ssl.SSLContext):
            return sslp
        # gevent replaces SSLContext when it patches; a context from before would recurse. The
        # files' dates are in the key so that renewed certificates are taken up.
        files = [sslp.get(name) for name in ("ca", "cert", "key")]
        dates = tuple(os.stat(file).st_mtime_ns for file in files if file)
        key = (ssl.SSLContext, tuple(sorted((k, repr(v)) for k, v in sslp.items())), dates)
        context = self._contexts.get(key)
        if context is None:
            if len(self._contexts) >= _MAX_TLS_CONTEXTS:  # renewed for months, or one a tenant
                self._contexts.clear()
            context = self._contexts[key] = super()._create_ssl_ctx(sslp)
        return context

    # --- Commands ------------------------------------------------------------------------------

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement, as PyMySQL does, and remember what it left behind."""
        if isinstance(sql, str):
            # Outside the guard: what cannot be encoded was not sent, and harms nobody.
            sql = sql.encode(self.encoding)
        if unbuffered or not self._status_at_rest:
            # Without autocommit any statement opens a transaction, and result sets do not
            # refresh the status flag that would say so. Errors while unbuffered rows are fetched
            # do not pass here.
            self.transaction_unknown = True
        try:
            if self.forget_key_first:
                self.forget_key_first = False
                if self._sock is None or self.unread() or len(sql) + 1 >= MAX_PACKET_LEN:
                    self.query(FORGET_KEY)
                    return self.query(sql, unbuffered)
                rows = self._query_without_key(sql, unbuffered)
            else:
                rows = super().query(sql, unbuffered)
        except BaseException as error:
            self._failed(error)
            raise
        if self._setup is not None and classify(sql).touches:
            few = len(self._setup) < _MAX_SETUP_STATEMENTS and len(sql) < _MAX_SETUP_BYTES
            if few and not self._result.field_count:
                self._setup.append(sql)
            else:
                self._replay = None  # its rows would be in the way
        return rows

    def next_result(self, unbuffered: bool = False) -> Any:
        """Read the next result of a statement that has several."""
        try:
            return super().next_result(unbuffered)
        except BaseException as error:
            self._failed(error)
            raise

    def select_db(self, db: Any) -> None:
        """Use another database."""
        if self._setup is None:
            self.dirty_reason = "database"
        else:
            self._replay = None  # it would have to be done again, but is no statement
        super().select_db(db)

    def set_character_set(self, charset: Any, collation: Any = None) -> None:
        """SET NAMES."""
        if self._setup is None:
            self.dirty_reason = "variable"
        super().set_character_set(charset, collation)

    def ping(self, reconnect: bool = False) -> None:
        """Ask the server. Never connects anew, as PyMySQL 1.1 does: the set-up would be lost."""
        super().ping(reconnect=False)

    def commit(self) -> None:
        """COMMIT."""
        super().commit()
        self.transaction_unknown = False

    def rollback(self) -> None:
        """ROLLBACK."""
        super().rollback()
        self.transaction_unknown = False

    def _read_ok_packet(self) -> Any:
        try:
            return super()._read_ok_packet()
        except BaseException as error:
            self._failed(error)
            raise

    def _write_bytes(self, data: bytes) -> None:
        try:
            if rest := send.unsent(self._sock, data):
                super()._write_bytes(rest)
        except BaseException:
            # GreenletExit or Timeout after part of a packet: the rest will never be sent.
            self._force_close()
            raise

    def _force_close(self) -> None:
        result = self._result
        if result is not None and result.unbuffered_active:
            # Or its finalizer would read from here, and its cursor take this for the last row.
            result.unbuffered_active = False
            result._read_rowdata_packet_unbuffered = _lost
        super()._force_close()

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, MySQLError):
            self._force_close()  # the rest of the result is still on its way
            return
        self.transaction_unknown = True  # a procedure may open a transaction and fail after it
        code = code_of(error)
        if code in GONE or isinstance(error, InterfaceError):
            self._force_close()
        elif is_read_only(code, str(error)):
            self._fault = FAILED_OVER

    # --- For the pool --------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether the server still has this connection, as far as the socket tells. No I/O.

        Nothing is due on an idle connection: if its socket is readable, or something was read ahead
        of its time, the server said goodbye (KILL, restart, wait_timeout). Under 2 us, for plain
        and TLS sockets.
        """
        return self._sock is not None and not self.unread_bytes() and not self._readable(0)

    def condition(self) -> str | None:
        """None if the next user may have it as it is, DIRTY if after :meth:`reset`, else why
        it must be closed. No I/O."""
        if self._sock is None:
            return "lost"
        if self._fault is not None:
            return self._fault
        if self.in_statement:
            return "killed"
        if self.unread() or self.unread_bytes():
            return "unread"
        if (
            self.dirty_reason
            or self.transaction_unknown
            or self.server_status & _STATUS_MASK != self._status_at_rest
        ):
            return DIRTY
        return None

    def condemn(self, reason: str) -> None:
        """Close it when it comes back: no reset undoes what this user may have done. Until then
        it can be used.

        :param reason: one of :data:`pooled_serve.pool.stats.CLOSE_REASONS`.
        """
        self._fault = self._fault or reason

    def in_transaction(self) -> bool:
        """Whether the server last said so, or will open one with the next statement."""
        return bool(self.server_status & _STATUS_MASK != SERVER_STATUS_AUTOCOMMIT)

    def unread(self) -> bool:
        """Whether rows or results of the last statement are still to be read."""
        result = self._result
        return result is not None and bool(result.unbuffered_active or result.has_next)

    def holder(self) -> str:
        """Who has it, in words."""
        return "" if self.scope is None else str(self.scope)

    @property
    def address(self) -> str:
        """The server and the database on it."""
        database = self.db.decode() if isinstance(self.db, bytes) else self.db
        return f"{self.server}/{database or ''}"

    def usable(self) -> bool:
        """What Django asks after an error: can this user go on with it? No I/O."""
        return self._fault != FAILED_OVER and self.alive()

    def close(self) -> None:
        """Say goodbye, if that is possible without waiting, and close the socket.

        The COM_QUIT is what keeps the server from counting an aborted client.
        """
        self._closed = True
        if self._sock is None:
            return
        with contextlib.suppress(Exception):
            self._sock.settimeout(0)
            self._sock.send(_COM_QUIT)
        self._force_close()

    def abandon(self) -> None:
        """In a forked child: close the descriptor, and write nothing to the parent's server."""
        self._closed = True
        if self._sock is not None:
            os.close(self._sock.detach())
            self._force_close()


def _lost() -> NoReturn:
    raise InterfaceError(0, "the connection was closed before all rows were read")
