"""Which waiters are refused when requests arrive faster than connections come back. Pure: it needs
nothing of the package, so that ``examples/benchmark/overload.py`` simulates this very code.

When requests arrive faster than they can be served, a queue that is served in order until each
deadline serves everybody too late: it grows until all wait for nearly the whole timeout, most
clients have given up by then, and the database works for nobody. So once the head of the queue has
waited for half of the timeout, those that have waited for long are refused and those that have just
come are served, until the queue is empty.

A queue that is long for a moment is no overload, nor is one of which most have waited for half of
the timeout: a burst is worked off in order, as to refuse a part of it would help few others.

How long a waiter has waited is measured by a clock that runs only while the queue moves. It stands
still during an outage, and also when nothing has been handed over for a quarter of the timeout,
until something is: a table that is locked for some seconds, or a restart of the server, costs
nobody the place in the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Reversible
from itertools import islice
from typing import Protocol

# Shares of the timeout. The simulation has compared others, and says what became of them.

ONSET = 1 / 2
"""When the head has waited for so long, and at least half of the queue has come since, there is an
overload."""

PAUSE = 1 / 100
"""Between two counts of who has come since: there may be thousands."""

LATE = 1 / 20
"""In an overload, a waiter that has waited for longer than this is refused."""

STALL = 1 / 4
"""So long after the last hand-over the queue stands still: not because too many requests arrive."""


class Queued(Protocol):
    """A waiter."""

    entered: float
    """What :meth:`Overload.enter` returned."""


class Queue(Collection[Queued], Reversible[Queued], Protocol):
    """Those who wait, in the order of service."""


class Overload:
    """Whether a pool is overloaded, and since when each waiter has waited in a queue that moves.

    Times are seconds of the pool's clock; each call takes the pool's timeout, which may change.
    """

    __slots__ = ("_behind", "_count_at", "_moved", "_out", "on")

    def __init__(self) -> None:
        self.on = False
        """Late waiters are refused. Stays set when the queue empties, until the next one forms."""
        self._moved = 0.0  # when the queue last moved, by the pool's clock
        self._behind = 0.0  # by how much the clock of the queue is behind the pool's
        self._count_at = 0.0  # by the pool's clock
        self._out = False  # a connect has failed, and no connection has come back since

    def begin(self, now: float, *, out: bool) -> None:
        """A queue forms.

        :param out: the last attempt to connect failed.
        """
        self.on = False
        self._count_at = now
        self._moved = now
        self._out = out

    def enter(self, now: float, timeout: float) -> float:
        """Somebody queues. Returns the time to keep in ``Queued.entered``."""
        if self._out or now - self._moved > timeout * STALL:
            return self._read(now, timeout)
        return now - self._behind

    def connect_failed(self, now: float, timeout: float) -> None:
        """From now until a connection comes back, nobody could be served."""
        self._behind = now - self._read(now, timeout)
        self._moved = now
        self._out = True

    def late(self, queue: Queue, now: float, timeout: float) -> int:
        """A connection is handed over. Returns how many at the head of the queue to refuse before
        one is served; the last in the queue is never one of them.

        :param queue: not empty, in the order of service.
        """
        if self._out or now - self._moved > timeout * STALL:
            self._behind = now - self._read(now, timeout)
            self._out = False
        self._moved = now
        time = now - self._behind
        if not self.on:
            onset = time - timeout * ONSET
            if now < self._count_at or next(iter(queue)).entered > onset:
                return 0
            self._count_at = now + timeout * PAUSE
            if not all(it.entered > onset for it in islice(reversed(queue), (len(queue) + 1) // 2)):
                return 0
            self.on = True
        late = 0
        for waiter in queue:
            if time - waiter.entered <= timeout * LATE:
                return late
            late += 1
        return late - 1

    def _read(self, now: float, timeout: float) -> float:
        latest = self._moved if self._out else min(now, self._moved + timeout * STALL)
        return latest - self._behind
