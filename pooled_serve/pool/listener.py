"""What a pool tells others about itself."""

from __future__ import annotations


class PoolListener:
    """Hears what a person may want to know. Does nothing itself; subclasses do.

    Called on slow paths only. A method must neither raise nor switch greenlets: the pool is in the
    middle of something.
    """

    def queued(self) -> None:
        """A request has to wait."""

    def connected(self) -> None:
        """A connection was opened."""

    def connect_failed(self, error: Exception) -> None:
        """An attempt to connect failed."""
