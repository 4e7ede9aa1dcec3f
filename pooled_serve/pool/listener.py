"""The events that a pool announces."""

from __future__ import annotations


class PoolListener:
    """Called when something happens that may be worth a log line. The methods here do nothing.

    They are called on slow paths only. A method must neither raise nor switch greenlets: the pool
    is in the middle of something.
    """

    def queued(self) -> None:
        """A request has begun to wait."""

    def connected(self) -> None:
        """A connection was opened."""

    def connect_failed(self, error: Exception) -> None:
        """An attempt to connect failed."""

    def retried(self, error: Exception) -> None:
        """A statement found its connection dead, with this error, and ran again."""

    def not_let_go(self) -> None:
        """A connection was closed in the middle of a command, and the server goes on with that: it
        may have more connections of this pool than the cap, for a while."""
