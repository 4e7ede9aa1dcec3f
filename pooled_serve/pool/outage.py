"""Since when nobody has answered at the server's address. Pure: it needs nothing of the package.

For as long as one timeout, requests wait: a restart of the server takes seconds, and costs them no
more than that. After that they are refused at once, until an attempt to connect succeeds: an outage
of an hour must not keep each of them for the whole timeout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Leased(Protocol):
    """An entry that is handed out."""

    leased_at: float


class Outage:
    """Times are seconds of the pool's clock."""

    __slots__ = ("_doubtful", "_last", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        """When the first attempt of the present outage began; None if there is none."""
        self._last = 0.0  # when the last one failed
        self._doubtful = False  # nobody has tried for long, and now somebody does

    def tried(self, now: float, timeout: float) -> None:
        """An attempt to connect begins."""
        self._doubtful = now - self._last >= timeout

    def failed(self, began: float, now: float) -> bool:
        """An attempt to connect had no answer. Returns whether an outage begins with it."""
        self._last, self._doubtful = now, False
        if self.since is not None:
            return False
        self.since = began
        return True

    def end(self) -> None:
        """The server answered, or a connection came back that works."""
        self.since = None

    def is_long(
        self, now: float, timeout: float, leased: Iterable[Leased], *, connecting: bool
    ) -> bool:
        """Whether to refuse requests at once. Not if the last attempt is long ago: then nothing is
        known, and the caller should try.

        :param leased: if one of them has been handed out during the outage, others may be, too.
        :param connecting: whether an attempt is under way, which may take long.
        """
        since = self.since
        return (
            since is not None
            and now - since >= timeout
            and not self._doubtful
            and (connecting or now - self._last < timeout)
            and all(entry.leased_at <= since for entry in leased)
        )
