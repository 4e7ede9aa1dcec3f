"""Several commands in one write, and so in one round trip.

Each is answered in its turn. That is what servers do; a proxy in between must forward each command
that it has received, too. MySQL Router 9.7 leaves some lying until more arrives, on connections
without TLS: found with ``DO 0`` and a SELECT in one write. There, commands go one at a time.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import gevent
from gevent.socket import wait_read
from pymysql.connections import Connection
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.error_codes import CR_SERVER_LOST
from pooled_serve.driver.login import Answer, Command, Stalled

STALLED_SECONDS = 1.0
"""The time from one answer to the next after which a command counts as lost."""


class PipeliningConnection(Connection):  # type: ignore[misc]  # PyMySQL has no types
    """A PyMySQL connection that takes several commands at a time."""

    _sock: Any
    _result: Any
    all_read: Callable[[], bool]

    _one_by_one: ClassVar[set[str]] = set()
    """Servers that are sent one command at a time."""

    @property
    def server(self) -> str:
        """host:port, or the path of a socket."""
        host = self.shown_host
        return self.unix_socket or (f"[{host}]" if ":" in host else host) + f":{self.port}"

    @property
    def shown_host(self) -> str:
        """The host without what stands before an "@" or behind a "?" in it: somebody has written a
        URL there, and that is its password."""
        host: str = self.host
        return host.rpartition("@")[2].partition("?")[0]

    @property
    def behind_router(self) -> bool:
        """Whether MySQL Router speaks to the server for this connection, as its version says. It
        does not where it only passes on what it gets."""
        return bool(self.server_version.endswith("-router"))

    def can_pipeline(self) -> bool:
        """Whether to send several commands at a time."""
        return self.server not in self._one_by_one and (self._has_tls() or not self.behind_router)

    def pipeline(self, commands: Sequence[Command]) -> list[Answer]:
        """Send all commands at once, and return an answer for each: rows, none, or an error.

        :raises Stalled: some were not answered.
        :raises MySQLError: the connection is lost.
        """
        packets = [packet(command, text) for command, text in commands]
        answers: list[Answer] = []
        if not self.can_pipeline():
            for each in packets:
                self._write_bytes(each)
                answers.append(self._answer())
            return answers
        self._write_bytes(b"".join(packets))
        for _ in packets:
            if answers and self._owes():
                self._one_by_one.add(self.server)
                self._force_close()
                raise Stalled(CR_SERVER_LOST, "no answer to one of several commands sent at once")
            answers.append(self._answer())
        return answers

    def _has_tls(self) -> bool:
        return hasattr(self._sock, "pending")  # Python's own class has it, and gevent's

    def _owes(self) -> bool:
        """Whether nothing arrives for a while, as far as that can be known."""
        if self._has_tls() or not self.all_read():  # TLS reads ahead
            return False
        try:
            wait_read(self._sock.fileno(), STALLED_SECONDS, TimeoutError())
        except TimeoutError:
            return True
        return False

    def _answer(self) -> Answer:
        self._next_seq_id = 1
        try:
            self._read_query_result()
            rows: Answer = self._result.rows or ()
            while self._result.has_next:  # several statements in one
                self._read_query_result()
        except BaseException as error:
            self._failed(error)
            if not isinstance(error, MySQLError):
                self._give_up()  # a converter's: nobody would read the answers behind this one
            if self._sock is None:
                raise
            return error
        return rows

    def _give_up(self) -> None:
        """Close it, though answers are outstanding that nobody will read."""
        raise NotImplementedError

    def _failed(self, error: BaseException) -> None:
        """Handle an error of a command: close the socket if the connection cannot be used any
        more."""
        raise NotImplementedError


def packet(command: int, text: bytes) -> bytes:
    """Returns a command as the protocol has it."""
    return struct.pack("<iB", len(text) + 1, command) + text


@contextlib.contextmanager
def limit(seconds: float, code: int, message: str) -> Iterator[None]:
    """Raise an OperationalError in the body after so many seconds."""
    error = OperationalError(code, message)
    error.unanswered = True  # for the pool
    with gevent.Timeout(seconds, error):
        yield
