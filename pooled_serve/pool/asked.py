"""For how long a server was asked in vain, as far as somebody has listened.

An answer takes some round trips, and each takes a turn of the worker's event loop. Where a view
computes, or others have the processor, a turn takes tenths of a second, and what the server has
answered at once is read seconds later. So a turn counts for TURN_SECONDS at most: one second is no
less than 25 turns, and no login needs so many.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent

TURN_SECONDS = 0.04
"""What a turn counts for at most. A loop that has nothing to do takes one twice as often meanwhile,
so that all its time counts."""


class Asked:
    """The time in which there is a question without an answer. A context manager, or with
    :meth:`begin` and :meth:`end`.

    :param clock: returns seconds.
    """

    __slots__ = ("_began", "_clock", "_last", "_watchers", "seconds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = self._last = 0.0
        self._watchers: tuple[Any, ...] = ()
        self.seconds = 0.0
        """Since the question was asked, until now or the end."""

    @property
    def asks(self) -> bool:
        """Whether there is a question without an answer."""
        return bool(self._watchers)

    @property
    def listened(self) -> bool:
        """Whether somebody has listened for at least half of the time since the question, but for
        one turn."""
        unheard = self._clock() - self._began - self.seconds
        return unheard <= max(self.seconds, TURN_SECONDS)

    def begin(self) -> None:
        """A question was asked; those before had an answer."""
        self.end()
        self.seconds = 0.0
        self._began = self._last = self._clock()
        loop = gevent.get_hub().loop
        alarm = loop.timer(TURN_SECONDS / 2, TURN_SECONDS / 2, ref=False)
        turns = loop.check(ref=False)
        self._watchers = alarm, turns
        alarm.start(_take_a_turn)
        turns.start(self._turn)

    def end(self) -> None:
        """There was an answer, or nobody asks any more."""
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        self._watchers = ()

    def __enter__(self) -> Asked:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def _turn(self) -> None:
        """Runs in the hub, once in each turn of the loop."""
        now = self._clock()
        self.seconds += min(now - self._last, TURN_SECONDS)
        self._last = now


def _take_a_turn() -> None:
    """What the alarm is for is done when this is called."""
