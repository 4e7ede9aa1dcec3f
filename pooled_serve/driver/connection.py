"""The MySQL connection that the pool holds: connecting, liveness, clean hand-back.

It differs from PyMySQL's own connection in four ways, each because of a failure seen with PyMySQL
1.2:

* TLS contexts are cached. PyMySQL builds one per connect, 43 ms of CPU during which no other
  greenlet runs, even if the server has no TLS.
* ``connect_timeout`` bounds the whole handshake, not just the TCP connect: a stopped server
  accepts connections, and stays silent.
* An exception inside a command closes the socket, unless it is the server's, or a converter's: then
  the answer is read to its end. PyMySQL closes it when a read is interrupted, but leaves a packet
  half written, or a result half parsed, to the next user.
* ``close()`` neither blocks nor raises.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import ssl
from collections.abc import Sequence
from typing import Any

from gevent.monkey import get_original
from pymysql.constants.SERVER_STATUS import SERVER_STATUS_AUTOCOMMIT, SERVER_STATUS_IN_TRANS
from pymysql.cursors import Cursor
from pymysql.err import MySQLError, OperationalError

from pooled_serve import tls
from pooled_serve.driver.closing import ClosingConnection
from pooled_serve.driver.columns import MAX_PACKET_LEN
from pooled_serve.driver.error_codes import (
    CR_AUTH_PLUGIN_ERR,
    CR_CONN_HOST_ERROR,
    GONE,
    code_of,
    is_not_ready,
    is_read_only,
)
from pooled_serve.driver.login import forget_login
from pooled_serve.driver.pipeline import limit
from pooled_serve.driver.questions import FORGET_KEY
from pooled_serve.driver.statements import classify
from pooled_serve.pool import DIRTY, FAILED_OVER, LOST
from pooled_serve.tuning import receive

log = logging.getLogger("gunicorn.error")

# The most that is recorded for a replay: outside of the pool the set-up never ends, and nothing
# else would bound the record.
_MAX_SETUP_STATEMENTS, _MAX_SETUP_BYTES = 100, 10_000
_MAX_TLS_CONTEXTS = 16  # of some 100 kB each

_STATUS_MASK = SERVER_STATUS_AUTOCOMMIT | SERVER_STATUS_IN_TRANS
BEGIN = "BEGIN"

# gevent's poll switches greenlets; alive() must not.
_new_poll = get_original("select", "poll")


class MySQLConnection(ClosingConnection):
    """A PyMySQL connection that knows whether it can be handed to the next user."""

    password: Any

    wait_timeout: int | None = None
    """Seconds after which the server closes an idle connection; None if it is not known."""

    has_own_id = False
    """Whether the server knows it by the id of the handshake, and no proxy shares connections."""
    instance = -1
    """What the server's UUID_SHORT() was when it had logged in, see abandoned.py; -1 if it did not
    say."""
    _fault: str | None = None  # why it must be closed when it comes back
    scope: Any = None  # of the greenlet that leases it: a pooled_serve.backend.scope.GreenletScope
    usage: Any = None  # counts the lease: a pooled_serve.status.routes.Usage, or None
    reused = False  # an earlier lease has used it
    _contexts: dict[Any, ssl.SSLContext] = {}  # noqa: RUF012 - shared on purpose, per process

    # --- Connecting ----------------------------------------------------------------------------

    def connect(self, sock: Any = None) -> None:
        """Connect and log in, within ``connect_timeout`` seconds in total.

        :raises OperationalError: the server's error, or 2003 if it did not answer in time. The
            pool passes it on to the callers that wait, see :meth:`ConnectionPool.acquire`. Its
            ``address`` is that of this connection, for messages.
        """
        self._setup, self._replay = [], ()
        if callable(self.password):  # not before: a token may live for minutes
            self.password = str(self.password()).encode("latin1")  # as PyMySQL encodes it
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
                f"Can't connect to MySQL server on {self.shown_host!r} "
                f"(no complete handshake within {seconds:g}s)",
            ):
                super().connect(sock)
                self._read_session_defaults()
        except MySQLError as error:
            error.address = self.address
            if code_of(error) == CR_CONN_HOST_ERROR:
                # PyMySQL names the host, also if it has no part in it, or has a password in it.
                shown = self.unix_socket or self.shown_host
                text = str(error.args[1]).replace(repr(self.host), repr(shown))
                error.args = (CR_CONN_HOST_ERROR, text)
            raise
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
        """Find out how a fresh connection differs from the defaults of this class."""
        poll = _new_poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        self._readable = poll.poll
        try:
            wait_timeout, role, autocommit, number, instance, *identity = self._ask(
                "SELECT @@wait_timeout, CURRENT_ROLE(), @@autocommit, CONNECTION_ID(),"
                " HEX(UUID_SHORT()), @@hostname, @@port, @@server_id, @@init_connect"
            )
            # As text: OPTIONS may name converters that make anything of a number.
            self.has_own_id = str(number) == str(self.thread_id())
            self.wait_timeout, self._role = int(wait_timeout), self._as_role(role)
            self.identity, self.instance = tuple(identity), int(instance, 16)
            self._apply_autocommit(bool(autocommit))
        except MySQLError:
            # Proxies and old servers may lack roles or one of the variables, and the connection
            # is good without. If the socket is gone, though, the connect has failed: the time was
            # up, or the server closed it.
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

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context of its TLS, if it is encrypted."""
        return self._sock.context if isinstance(self._sock, ssl.SSLSocket) else None

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        """Returns PyMySQL's context for these arguments, made once per process and set of files."""
        if isinstance(sslp, ssl.SSLContext):
            tls.guard(sslp)
            return sslp
        # The class is in the key because gevent replaces it when it patches: a context from before
        # would recurse. The files' dates are, because certificates are renewed.
        files = [sslp.get(name) for name in ("ca", "cert", "key")]
        dates = tuple(os.stat(file).st_mtime_ns for file in files if file)
        key = (ssl.SSLContext, tuple(sorted((k, repr(v)) for k, v in sslp.items())), dates)
        context = self._contexts.get(key)
        if context is None:
            if len(self._contexts) >= _MAX_TLS_CONTEXTS:  # renewals of months, or tenants
                self._contexts.clear()
            context = self._contexts[key] = self._make_context(sslp)
        return context

    def _make_context(self, sslp: dict[str, Any]) -> ssl.SSLContext:
        """Returns PyMySQL's context, with what depends on versions of PyMySQL and Python set."""
        context: ssl.SSLContext = super()._create_ssl_ctx(sslp)
        tls.guard(context)
        # Python 3.13 sets it, and refuses the authority that MySQL makes for itself; mysqlclient
        # accepts that.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        # Without a file of authorities PyMySQL does not compare the host name, asked for or not.
        if sslp.get("check_hostname") and context.verify_mode is ssl.CERT_REQUIRED:
            context.check_hostname = True
        return context

    # --- Commands ------------------------------------------------------------------------------

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """Run a statement, as PyMySQL does, and note what it may have left behind.

        :raises TypeError: it is no text.
        """
        # Not inside the try: what is not sent does no harm.
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)
        elif not isinstance(sql, bytes | bytearray | memoryview):
            raise TypeError(f"a statement is a str or bytes, not {type(sql).__name__}")
        while self._result is not None and self._result.has_next and self._sock is not None:
            self.next_result()  # an error there is that of the statement before
        first: Sequence[str] = ()
        if self._sock is not None and (self.begin_first or self.forget_key_first):
            first = self._take_first(sql)
        if unbuffered or not self._status_at_rest:
            # A status of 0 at rest means that the project has switched autocommit off: any
            # statement opens a transaction, and result sets do not refresh the status flag that
            # would show it. And what fails while unbuffered rows are fetched does not pass here.
            self.transaction_unknown = True
        try:
            if first:
                rows = self._query_after(first, sql, unbuffered)
            else:
                rows = super().query(sql, unbuffered)
        except BaseException as error:
            self._failed(error)
            if self._setup is not None and isinstance(error, MySQLError):
                error.statement = sql  # for the preflight, which names the option behind it
            raise
        if self._setup is not None and classify(sql).touches:
            few = len(self._setup) < _MAX_SETUP_STATEMENTS and len(sql) < _MAX_SETUP_BYTES
            if few and not self._result.field_count:
                self._setup.append(sql)
            else:
                self._replay = None  # its rows would come between the answers of a reset
        return rows

    def _take_first(self, sql: bytes) -> Sequence[str]:
        """Returns the statements that were put off until this one, to be sent with it; none if they
        had to run by themselves."""
        first = [BEGIN] * self.begin_first + [FORGET_KEY] * self.forget_key_first
        self.begin_first = self.forget_key_first = False
        if not self.unread() and self.can_pipeline() and len(sql) + 1 < MAX_PACKET_LEN:
            return first
        for statement in first:
            self.query(statement)
        return ()

    def _execute_command(self, command: int, sql: Any) -> None:
        """Send a command: all of PyMySQL's begin here."""
        if self._sock is None:
            self._raise_gone()
        super()._execute_command(command, sql)

    def next_result(self, unbuffered: bool = False) -> Any:
        """Read the next result of a statement that has several."""
        try:
            if self._sock is None:
                self._raise_gone()
            return super().next_result(unbuffered)
        except BaseException as error:
            self._failed(error)
            raise

    def select_db(self, db: Any) -> None:
        """Change the database; a reset goes back to the one of the connect."""
        if self._setup is None:
            self.dirty_reason = "database"
        else:
            self._replay = None  # a replay consists of statements, and this is another command
        super().select_db(db)

    def set_character_set(self, charset: Any, collation: Any = None) -> None:
        """Change the character set; a reset undoes that."""
        if self._setup is None:
            self.dirty_reason = "variable"
        try:
            super().set_character_set(charset, collation)
        except MySQLError as error:
            error.statement = b"SET NAMES"  # as in query()
            raise

    def ping(self, reconnect: bool = False) -> None:
        """Check that the server answers. Never reconnects: that would lose the set-up."""
        if self._sock is None:
            self._raise_gone()
        super().ping(reconnect=False)

    def commit(self) -> None:
        """End the transaction, if one is open."""
        super().commit()
        self.transaction_unknown = False

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        super().rollback()
        self.transaction_unknown = False

    def _read_ok_packet(self) -> Any:
        try:
            return super()._read_ok_packet()
        except BaseException as error:
            self._failed(error)
            raise

    def wait_for_answer(self) -> None:
        """Let other greenlets run until the server has sent something."""
        receive.wait_for_answer(self._sock)

    def _failed(self, error: BaseException) -> None:
        unconverted, self.unconverted = self.unconverted, None
        if error is unconverted:
            self.transaction_unknown = True  # of several statements, any may have opened one
            return
        if not isinstance(error, MySQLError):
            self._unanswered |= not self.send_failed
            if self._sock is not None:
                reason = "unread" if isinstance(error, Exception) else "killed"
                self.closed_for = self.closed_for or reason
            self._force_close()  # the rest of the answer would be read as that of the next command
            return
        self.transaction_unknown = True  # a procedure may open a transaction and fail after it
        code = code_of(error)
        if code in GONE:
            self._unanswered |= not self.send_failed
            self._force_close()
        elif is_not_ready(error):
            self._fault = FAILED_OVER
            forget_login(self)  # the comparison finds out whether the next one is ready
        elif is_read_only(code, str(error)):
            self._fault = FAILED_OVER

    # --- For the pool --------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether the server still has this connection, as far as the socket shows. No I/O.

        A server sends nothing on an idle connection. If the socket is readable, or more was read
        than an answer, the server has closed the connection (KILL, restart, wait_timeout). Takes
        under 2 us, for plain and TLS sockets. A silent socket proves nothing: a link that was cut
        is silent, too, which is why the pool pings after a while.
        """
        return self._sock is not None and not self.unread_bytes() and not self._readable(0)

    def condition(self) -> str | None:
        """Returns None if it is fit for the next user, DIRTY if :meth:`reset` makes it so, else the
        reason to close it. No I/O."""
        if self._sock is None:
            return self.closed_for or "lost"
        if self._fault is not None:
            return self._fault
        if self.in_statement:
            return "killed"
        if self.unread() or self.unread_bytes():
            self._unanswered = True  # it is closed now, and the server may be far from the end
            return "unread"
        if (
            self.dirty_reason
            or self.transaction_unknown
            or self.server_status & _STATUS_MASK != self._status_at_rest
        ):
            # Where a reset would only find out that the server has gone.
            return "lost" if self._readable(0) else DIRTY
        return None

    def condemn(self, reason: str) -> None:
        """Have it closed when it comes back, because no reset undoes what its user may have done.
        Until then it stays usable.

        :param reason: one of :data:`pooled_serve.pool.metrics.CLOSE_REASONS`.
        """
        self._fault = self._fault or reason

    def in_transaction(self) -> bool:
        """Whether a transaction is open, as of the server's last status, or will be opened by the
        next statement."""
        return bool(self.server_status & _STATUS_MASK != SERVER_STATUS_AUTOCOMMIT)

    def unread(self) -> bool:
        """Whether the last statement has left rows or results unread."""
        result = self._result
        return result is not None and bool(result.unbuffered_active or result.has_next)

    def holder(self) -> str:
        """Returns the request that leases it, in words; "" if none does. The pool, which knows no
        scope, calls this for its messages."""
        return "" if self.scope is None else str(self.scope)

    @property
    def address(self) -> str:
        """Server and database, for messages."""
        database = self.db.decode() if isinstance(self.db, bytes) else self.db
        return f"{self.server}/{database or ''}"

    def usable(self) -> bool:
        """Whether its present user can go on with it after an error, as Django asks. No I/O."""
        return self._fault != FAILED_OVER and self.alive()

    def awaits(self) -> object:
        """Returns what a greenlet waits for on this connection, an object that is another one for
        each wait. None if none waits, or if there is something to read already. No I/O."""
        if self._sock is None:
            return LOST
        wait = receive.wait_on(self._sock)
        return None if wait is None or self._readable(0) else wait
