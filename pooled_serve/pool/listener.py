"""The events that a pool announces."""

from __future__ import annotations

from typing import Any, Protocol


class Account(Protocol):
    """Told who has used the pool, and for how long. A method must neither raise nor switch."""

    def returned(self, conn: Any, seconds: float) -> None:
        """A connection comes back after a lease of so many seconds."""

    def idled(self, conn: Any, seconds: float) -> None:
        """A connection in use runs no statement at this moment, which stands for so many seconds.
        Called each time the gauges are read."""

    def waited(self, seconds: float, *, served: bool) -> None:
        """The current greenlet has queued.

        :param seconds: since it asked for a connection.
        :param served: whether it got one.
        """


class PoolListener:
    """Called when something happens that may be worth a log line. The methods here do nothing.

    They are called on slow paths only. A method must neither raise nor switch greenlets: the pool
    is in the middle of something.
    """

    def queued(self) -> None:
        """A request has begun to wait."""

    def waited(self, seconds: float, ahead: int, error: BaseException | None) -> None:
        """The current greenlet has queued.

        :param seconds: since it asked for a connection.
        :param ahead: how many were in the queue when it entered that.
        :param error: with which the wait ended; None if it was served.
        """

    def tried(self, seconds: float, error: BaseException | None) -> None:
        """The current greenlet has tried to open a connection for itself.

        :param seconds: that the attempt has taken.
        :param error: with which it failed; None if it did not.
        """

    def connected(self) -> None:
        """A connection was opened."""

    def connect_failed(self, error: Exception) -> None:
        """An attempt to connect failed."""

    def unanswered(self, seconds: float) -> None:
        """The server was asked, and has not answered for this long. Called each time the gauges are
        read, until it answers."""

    def answered(self) -> None:
        """The server has answered again."""

    def asking(self, seconds: float) -> None:
        """The oldest question has had no answer for this long, others may have; 0 if there is none.
        Called each time the gauges are read."""

    def stale(self) -> None:
        """Somebody wants to know whether the server is there, and it was not heard of lately."""

    def retried(self, error: Exception) -> None:
        """A statement found its connection dead, with this error, and ran again."""

    def client_gone(self, what: str) -> None:
        """A request was ended, because its client has hung up.

        :param what: which, and how far it had come, in words.
        """

    def not_let_go(self) -> None:
        """A connection was closed in the middle of a command, and the server goes on with that: it
        may have more connections of this pool than the cap, for a while."""
