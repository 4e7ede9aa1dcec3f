"""The last five minutes of each pool, second by second, and its peaks of up to a day.

They are of all workers together, and in memory that all processes share, made by the master before
it forks: no worker's end takes any of it away. Once a second one worker adds up what all of them
have on the scoreboard, and writes it here: the first one whose timer fires in that second, so that
a worker that is killed or blocked is no gap. A lock of the kernel's, which goes with its process,
keeps two from writing at once.

What is not sampled is seen by its counter: that somebody has waited or was refused, and for how
long, is exact.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pooled_serve.pool import metrics
from pooled_serve.status.figures import (
    LATELY_SECONDS,
    RECENT_SECONDS,
    Second,
    is_hanging,
    point,
)
from pooled_serve.status.peaks import (
    PEAK_KEYS,
    WINDOWS,
)
from pooled_serve.status.pool_history import BYTES_PER_POOL, KEPT_SECONDS, PoolHistory, packed
from pooled_serve.status.route_history import ROUTES_EVERY, ROUTES_SECONDS, RoutePages, since

if TYPE_CHECKING:
    from pooled_serve.status.scoreboard import Snapshot

MAX_POOLS = 8
"""Aliases with a history. One that was not used for as long as is kept gives way to a new one."""

_SAMPLED, _CHANGED, _SINCE, _HEAD_WORDS = range(4)
"""The last second that was sampled; the one in which the pools' sizes and bounds last changed, and
the one since which the peaks are; 0 if never."""
_HEAD_BYTES = _HEAD_WORDS * 8
_ROUTES_AT = _HEAD_BYTES + MAX_POOLS * BYTES_PER_POOL

CHARTS = ("in_use", "waiting", "rate", "wait_p95", "held_p95")
"""Keys of a pool in ``/history.json``, in the order of :func:`figures.point`."""


class History:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        size = RoutePages.size(ROUTES_SECONDS, ROUTES_EVERY)
        self._memory = mmap.mmap(-1, _ROUTES_AT + size + RoutePages.size(RECENT_SECONDS, 2))
        routes = memoryview(self._memory)[_ROUTES_AT:]
        self._recent = RoutePages(routes, ROUTES_SECONDS, ROUTES_EVERY)
        self._lately = RoutePages(routes[size:], RECENT_SECONDS, 2)
        self._head = memoryview(self._memory)[:_HEAD_BYTES].cast("d")
        # A lock belongs to a process, so a worker can have it though all inherit the descriptor.
        self._lock = os.memfd_create("pooled-serve-history")
        weakref.finalize(self, os.close, self._lock)

    # --- Writing -------------------------------------------------------------------------------

    def sample(
        self,
        read: Callable[[], Iterable[Snapshot] | None],
        now: float,
        limit: float = math.inf,
        busy: Callable[[], bool] = bool,
        usual: Callable[[], float] = float,
    ) -> bool:
        """Note this second, if nobody else has. Returns whether it did.

        :param read: see :meth:`Scoreboard.read_whole`. A sum that was too high once, of numbers on
            the move, would be counted for ever.
        :param now: monotonic seconds, on the clock that all processes share.
        :param limit: what all workers may have together of a database. Two of them do not count
            at the same moment, and what one has lent to another would be in use twice.
        :param busy: whether a worker has used up its processor.
        :param usual: see :func:`figures.is_hanging`.
        """
        second = int(now)
        if self._head[_SAMPLED] >= second:
            return False
        with self._alone() as alone:
            if not alone or self._head[_SAMPLED] >= second:
                return False
            snapshots = read()
            if snapshots is None:
                return False
            self._head[_SAMPLED] = second
            changed = int(self._head[_CHANGED])
            if self._head[_SINCE] != changed:
                for each in self._areas():
                    each.forget_peaks()
                self._head[_SINCE] = changed
            rows: dict[str, list[list[float]]] = {}
            for snapshot in snapshots:
                rows.setdefault(snapshot.alias, []).append(snapshot.row)
            for alias, of_workers in rows.items():
                if area := self._area(alias) or self._new_area(alias, now):
                    most = max(row[metrics.MOST_IN_USE] for row in of_workers)
                    total = metrics.total(of_workers)
                    for gauge in (metrics.IN_USE, metrics.MOST_IN_USE):
                        total[gauge] = min(total[gauge], limit)
                    hanging = is_hanging(total, now, usual, area.last_hang(now))
                    area.write(
                        second, now, total, most, busy=busy(), hanging=hanging, since=changed
                    )
        return True

    def sample_routes(self, read: Callable[[], list[dict[str, Any]]], now: float) -> None:
        """Note what the routes have used so far, once a minute and every other second.

        :param read: returns ``routes`` of ``/stats.json``.
        """
        for pages in (self._recent, self._lately):
            if pages.is_due(now):
                with self._alone() as alone:
                    if alone and pages.is_due(now):
                        pages.write(read(), now)

    def begin_peaks_anew(self, now: float) -> None:
        """The pools have other sizes or bounds from now on: peaks from before say nothing of them,
        and advice would blame the new bound for what has waited for the old one."""
        self._head[_CHANGED] = int(now)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process writes meanwhile."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    # --- Reading -------------------------------------------------------------------------------

    def aliases(self) -> list[str]:
        """Returns the databases that have a history."""
        return [area.alias for area in self._areas() if area.alias]

    def before(self, alias: str, now: float) -> Second | None:
        """Returns the sample next to RECENT_SECONDS ago, or the oldest since; None if there is
        none."""
        area = self._area(alias)
        return None if area is None else area.around(now - RECENT_SECONDS - 0.5, now)

    def lately(self, alias: str, now: float) -> list[Second]:
        """Returns the samples of the last LATELY_SECONDS."""
        area = self._area(alias)
        seconds = range(int(now) - LATELY_SECONDS + 1, int(now) + 1)
        found = [] if area is None else map(area.read, seconds)
        return [sample for sample in found if sample is not None]

    def episode(self, alias: str, kind: str, row: Sequence[float]) -> dict[str, Any] | None:
        """Returns the last trouble of a kind, see :meth:`Episodes.read`."""
        area = self._area(alias)
        return None if area is None else area.episodes.read(kind, row, area.last_at())

    def hangs(self, alias: str, now: float) -> bool:
        """Whether statements hung in the last second, in all workers together."""
        return bool((area := self._area(alias)) and area.last_hang(now))

    def peaks(self, alias: str, now: float) -> dict[str, dict[str, Any]]:
        """``peaks`` of ``/stats.json``: window -> the numbers named in PEAK_KEYS."""
        area = self._area(alias)
        if area is None:
            return {name: dict.fromkeys(PEAK_KEYS, 0) for name in WINDOWS}
        return area.peaks(now, int(self._head[_CHANGED]))

    def lost_held(self, alias: str, now: float) -> float:
        """Returns for how many seconds connections were held while their statements hung, also
        because the server did not answer at all, in the time of :meth:`recent_routes`: one for a
        second, if one was in use."""
        area = self._area(alias)
        if area is None or now - area.last_outage() > ROUTES_SECONDS + ROUTES_EVERY:
            return 0.0
        return area.held_in_vain(int(now) - ROUTES_SECONDS - ROUTES_EVERY, int(now))

    def charts(self, now: float) -> dict[str, Any]:
        """``/history.json``: for each second the age, and for each pool a list for each of CHARTS,
        with None where nothing is known."""
        last = int(now)
        seconds = range(last - KEPT_SECONDS + 1, last + 1)
        pools = {}
        for area in self._areas():
            if not area.alias:
                continue
            points: list[Sequence[float | None]] = []
            waits: deque[float] = deque(maxlen=RECENT_SECONDS)  # the longest of each second
            for second in range(seconds[0] - RECENT_SECONDS, seconds[-1] + 1):
                sample = area.read(second)
                waits.append(sample.row[metrics.LONGEST_WAIT] if sample else 0.0)
                if second not in seconds:
                    continue
                if sample is None:
                    points.append([None] * len(CHARTS))
                    continue
                base = area.around(second - RECENT_SECONDS, second)
                if base is None or base.at >= sample.at:
                    points.append(point(sample.row, None, 0.0))
                else:
                    points.append(point(sample.row, base.row, sample.at - base.at, max(waits)))
            if any(column[0] is not None for column in points):
                columns = zip(*points, strict=True)
                pools[area.alias] = {
                    key: [None if value is None else round(value, 5) for value in column]
                    for key, column in zip(CHARTS, columns, strict=True)
                }
        return {"ages_seconds": [round(now - second, 3) for second in seconds], "pools": pools}

    def recent_routes(self, routes: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
        """Returns routes, each with ``recent``: what it has used in the last ROUTES_SECONDS, or
        since the start if that is later; and ``lately``: the same of RECENT_SECONDS. Of routes that
        were not known then, among too many, it is what they have used since they are known."""
        recent, lately = (pages.before(now) for pages in (self._recent, self._lately))
        return [
            route | {"recent": since(route, recent), "lately": since(route, lately)}
            for route in routes
        ]

    # --- Areas ---------------------------------------------------------------------------------

    def _areas(self) -> Iterator[PoolHistory]:
        for i in range(MAX_POOLS):
            yield PoolHistory(self._memory, _HEAD_BYTES + i * BYTES_PER_POOL)

    def _area(self, alias: str) -> PoolHistory | None:
        name = packed(alias)
        return next((area for area in self._areas() if area.packed_alias == name), None)

    def _new_area(self, alias: str, now: float) -> PoolHistory | None:
        """Returns a free one, or one whose alias was not used for long; None if there is none."""
        for area in self._areas():
            if not area.alias or area.last_at() < now - KEPT_SECONDS:
                area.assign(alias)
                return area
        return None
