"""How long the server has left questions unanswered. Pure: it needs nothing of the package.

Statements pay nothing for this. Each time the gauges are read, what each connection waits for is
compared with what it waited for the last time. The event loop makes a new object for every wait, so
the same object twice means that not a byte has come back in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

QUIET_SECONDS = 1.0
"""A shorter silence means nothing: nearly all statements are answered within that time."""

LOST = "lost"
"""Waited for by a connection that is closed: what it has waited for before had no answer."""


class Silence:
    """Times are seconds of the pool's clock, and as exact as the looks are close to each other."""

    __slots__ = ("_waits", "answered", "asked")

    def __init__(self) -> None:
        self._waits: dict[int, tuple[object, float]] = {}
        self.asked = 0.0
        """Since when the oldest question has no answer; 0 if there is none. One that was given up
        counts for as long as others follow it, and none of them is answered: a ping in vain, and
        then an attempt to connect, are one silence."""
        self.answered = 0.0
        """When the server last answered; 0 if it never has."""

    def look(
        self,
        now: float,
        waits: Mapping[int, object],
        *,
        came_back: float,
        connecting: Iterable[float],
    ) -> dict[int, float]:
        """Note what is waited for now. Returns since when, for each connection that waits.

        :param waits: of each connection in use, what it waits for; None if it does not, and
            :data:`LOST` if it never will.
        :param came_back: when the last connection was opened, or came back in good order: its last
            statement had an answer.
        :param connecting: when the attempts to connect began that are under way.
        """
        since = {}
        answered = max(self.answered, came_back)
        for key, wait in waits.items():
            if wait is LOST:
                continue
            before, began = self._waits.get(key, (None, 0.0))
            if before is not None and before is not wait:
                answered = now
            if wait is not None:
                since[key] = began if before is wait else now
        self._waits = {key: (waits[key], began) for key, began in since.items()}
        asked = min((*since.values(), *connecting), default=0.0)
        if asked and self.asked > answered:
            asked = min(asked, self.asked)
        self.answered, self.asked = answered, asked
        return since

    def seconds(self, now: float) -> float:
        """Returns for how long somebody has waited, and nobody has got an answer; 0 if nobody
        waits."""
        return max(0.0, now - max(self.asked, self.answered)) if self.asked else 0.0
