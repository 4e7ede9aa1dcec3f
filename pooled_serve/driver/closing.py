"""How a connection ends, and who has ended it: this side, or the server and what is on the way."""

from __future__ import annotations

import contextlib
import os
from typing import Any, NoReturn

import gevent
from pymysql.err import OperationalError

from pooled_serve.driver.error_classes import Packet
from pooled_serve.driver.error_codes import CR_SERVER_GONE_ERROR, CR_SERVER_LOST
from pooled_serve.driver.reset import ResettableConnection
from pooled_serve.driver.results import BulkConnection
from pooled_serve.tuning import send

PART_SECONDS = 1.0
"""The time that a server may take to hang up."""

AFTER_PART_SECONDS = 0.002
"""MariaDB still counts a connection for some microseconds after it has hung up, and for longer if
another thread gets the processor in between."""

_COM_QUIT = b"\x01\x00\x00\x00\x01"


class ClosingConnection(ResettableConnection, BulkConnection):
    """A PyMySQL connection that knows why it is closed. ``close()`` neither blocks nor raises."""

    packet = Packet
    _sock: Any
    _read_timeout: float | None
    _write_timeout: float | None

    closed_for: str | None = None
    """Why this side has closed it in the middle of a command, one of
    :data:`pooled_serve.pool.metrics.CLOSE_REASONS`; None if it has not."""
    _unanswered = False  # it was closed when a command had no answer yet, or not all of it
    in_statement = False  # was given back while another greenlet ran a statement on it
    send_failed = False  # the last command was not sent, or not whole
    timed_out = False  # read_timeout or write_timeout was over
    was_reset = False  # it ended with a TCP reset
    was_killed = False  # by another connection, see abandoned.py

    def condition(self) -> str | None:
        """Returns None if it is fit for the next user. The connection itself says so."""
        raise NotImplementedError

    # --- In the middle of a command ------------------------------------------------------------

    def interrupted(self, error: BaseException) -> None:
        """Note who ends it, by the error of a wait for the server: this side, unless the error is
        the link's. Its own causes alone count, and not what the program was handling meanwhile."""
        self._unanswered |= not self.send_failed
        self.timed_out |= isinstance(error, TimeoutError) and error.errno is None  # no ETIMEDOUT
        self.was_reset |= isinstance(error, ConnectionResetError)
        if self.timed_out or not isinstance(error, OSError):
            self.closed_for = self.closed_for or "killed"

    def _raise_gone(self) -> NoReturn:
        """Raise mysqlclient's error for a connection that is closed. PyMySQL's is another."""
        self.send_failed = True
        raise OperationalError(CR_SERVER_GONE_ERROR, "the connection is closed")

    def _write_bytes(self, data: bytes) -> None:
        if self._sock is None:
            self._raise_gone()
        try:
            if rest := send.unsent(self._sock, data):
                if self._current_timeout != self._write_timeout:
                    self._sock.settimeout(self._write_timeout)
                    self._current_timeout = self._write_timeout
                self._sock.sendall(rest)
        except BaseException as error:
            # GreenletExit or Timeout after a part of the packet. The rest will never be sent, and
            # the server would take the next command for it.
            self.send_failed = True
            self.interrupted(error)
            self._force_close()
            if isinstance(error, OSError):
                text = f"MySQL server has gone away ({error!r})"
                raise OperationalError(CR_SERVER_GONE_ERROR, text) from error
            raise

    def _read_bytes(self, num_bytes: int) -> bytes:
        """Returns a piece of a packet that is not read in bulk."""
        try:
            data: bytes = self._rfile.read(num_bytes)
        except BaseException as error:
            self.interrupted(error)
            self._force_close()
            if isinstance(error, OSError):
                text = f"Lost connection to MySQL server during query ({error})"
                raise OperationalError(CR_SERVER_LOST, text) from error
            raise
        if len(data) < num_bytes:
            self._force_close()
            raise OperationalError(CR_SERVER_LOST, "Lost connection to MySQL server during query")
        return data

    def _give_up(self) -> None:
        if self._sock is not None:
            self.closed_for = self.closed_for or "unread"
            self._unanswered = True
            self._force_close()

    def _force_close(self) -> None:
        result = self._result
        if result is not None and result.unbuffered_active:
            # Otherwise its finalizer would read from the closed socket, and its cursor would take
            # the end of the stream for the last row.
            result.unbuffered_active = False
            result._read_rowdata_packet_unbuffered = _lost
        super()._force_close()

    def unfinished(self) -> bool:
        """Whether the server may still be at work for this connection, though it is closed: servers
        notice that only when they have an answer to send."""
        return self._unanswered or self.in_statement

    # --- In good order -------------------------------------------------------------------------

    def part(self) -> None:
        """Send COM_QUIT, and wait until the server hangs up: then it no longer counts this
        connection. Does nothing for one that is lost already, or in the middle of a result.

        :raises OSError: the link is lost, or the server does not within :data:`PART_SECONDS`.
        """
        if self._sock is not None and not self._unanswered:
            self._sock.settimeout(PART_SECONDS)
            self._sock.sendall(_COM_QUIT)
            self._sock.recv(1)
            self._closed = True
            self._force_close()
            gevent.sleep(AFTER_PART_SECONDS)

    def close(self) -> None:
        """Send COM_QUIT, if that is possible without waiting, and close the socket.

        Without COM_QUIT the server would count an aborted client. But after one, MySQL Router keeps
        the connection to the server and gives it to another client without a reset, with the locks
        and the transaction that are open, or overlooks it: there only a clean one sends it.
        """
        self._closed = True
        if self._sock is None:
            return
        if not self.can_pipeline() or (self.behind_router and self.condition() is not None):
            self._force_close()
            return
        with contextlib.suppress(Exception):
            self._sock.settimeout(0)
            self._sock.send(_COM_QUIT)
        self._force_close()

    def abandon(self) -> None:
        """In a forked child: close the descriptor without COM_QUIT, which would end the parent's
        session."""
        self._closed = True
        if self._sock is not None:
            os.close(self._sock.detach())
            self._force_close()


def _lost() -> NoReturn:
    raise OperationalError(CR_SERVER_LOST, "the connection was closed before all rows were read")
