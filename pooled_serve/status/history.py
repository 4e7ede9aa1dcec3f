"""The last five minutes of each pool, second by second, and its peaks of up to a day.

They are of all workers together, and in memory that all processes share, made by the master before
it forks: no worker's end takes any of it away. Once a second one worker adds up what all of them
have on the scoreboard, and writes it here: the first one whose timer fires in that second, so that
a worker that is killed or blocked is no gap. A lock of the kernel's, which goes with its process,
keeps two from writing at once.

What is not sampled is seen by its counter: that somebody has waited or was refused, and for how
long, is exact. How many connections were in use at most is that of the samples.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pooled_serve.pool import metrics
from pooled_serve.status.episodes import EPISODE_WORDS, Episodes, stretches
from pooled_serve.status.figures import (
    BETWEEN_SECONDS,
    LATELY_SECONDS,
    RECENT_SECONDS,
    Second,
    is_hanging,
    point,
)
from pooled_serve.status.peaks import (
    DOUBT_SECONDS,
    PEAK_KEYS,
    PEAK_WORDS,
    WINDOWS,
    Peak,
    Peaks,
    Signs,
    is_spoiled,
    signs,
)
from pooled_serve.status.route_history import ROUTES_EVERY, ROUTES_SECONDS, RoutePages, since

if TYPE_CHECKING:
    from pooled_serve.status.scoreboard import Snapshot

KEPT_SECONDS = 300
"""For the charts."""

MAX_POOLS = 8
"""Aliases with a history. One that was not used for as long as is kept gives way to a new one."""

_WORD = 8
_ALIAS = struct.Struct("96p")
_RING = KEPT_SECONDS + RECENT_SECONDS + 10  # what is about to be written over is not read
_ROW = 7
"""Before the row of a second: which one it is; when it was sampled; how many connections the worker
had in use that had most; which second was sampled before it, 0 if none was; whether a worker had
used up its processor; when all statements last hung, and when a request last waited because of
that, 0 if never."""
_HUNG_UNTIL = 6
_SECOND_WORDS = _ROW + metrics.ROW_LENGTH

_PEAKS_AT = _RING * _SECOND_WORDS
_AREA_WORDS = _PEAKS_AT + PEAK_WORDS + EPISODE_WORDS
_AREA_BYTES = _ALIAS.size + _AREA_WORDS * _WORD
_HEAD_BYTES = _WORD  # the last second that was sampled
_ROUTES_AT = _HEAD_BYTES + MAX_POOLS * _AREA_BYTES
BYTES_PER_POOL = _AREA_BYTES
"""Memory that a database's history takes. That of the routes is 0.2 MB."""

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
        if self._head[0] >= second:
            return False
        with self._alone() as alone:
            if not alone or self._head[0] >= second:
                return False
            snapshots = read()
            if snapshots is None:
                return False
            self._head[0] = second
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
                    area.write(second, now, total, most, busy=busy(), hanging=hanging)
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
        return area.episodes.read(kind, row) if (area := self._area(alias)) else None

    def hangs(self, alias: str, now: float) -> bool:
        """Whether statements hung in the last second, in all workers together."""
        return bool((area := self._area(alias)) and area.last_hang(now))

    def peaks(self, alias: str, now: float) -> dict[str, dict[str, Any]]:
        """``peaks`` of ``/stats.json``: window -> the numbers named in PEAK_KEYS."""
        area = self._area(alias)
        if area is None:
            return {name: dict.fromkeys(PEAK_KEYS, 0) for name in WINDOWS}
        return area.peaks(now)

    def lost_held(self, alias: str, now: float) -> float:
        """Returns for how many seconds connections were held while the database could not be used,
        or all statements hung, in the time of :meth:`recent_routes`: one for a second, if one was
        in use."""
        area = self._area(alias)
        if area is None or now - area.last_outage() > ROUTES_SECONDS + ROUTES_EVERY:
            return 0.0
        return area.held_in_outages(int(now) - ROUTES_SECONDS - ROUTES_EVERY, int(now))

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

    def _areas(self) -> Iterator[_Area]:
        for i in range(MAX_POOLS):
            yield _Area(self._memory, _HEAD_BYTES + i * _AREA_BYTES)

    def _area(self, alias: str) -> _Area | None:
        name = _packed(alias)
        return next((area for area in self._areas() if area.packed_alias == name), None)

    def _new_area(self, alias: str, now: float) -> _Area | None:
        """Returns a free one, or one whose alias was not used for long; None if there is none."""
        for area in self._areas():
            if not area.alias or area.last_at() < now - KEPT_SECONDS:
                area.assign(alias)
                return area
        return None


class _Area:
    """The history of one alias."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        numbers: Any = memoryview(memory)[offset + _ALIAS.size : offset + _AREA_BYTES].cast("d")
        self._seconds = numbers[:_PEAKS_AT]
        self._peaks = Peaks(numbers[_PEAKS_AT : _PEAKS_AT + PEAK_WORDS])
        self.episodes = Episodes(numbers[_PEAKS_AT + PEAK_WORDS :])

    @property
    def packed_alias(self) -> bytes:
        return self._memory[self._offset : self._offset + _ALIAS.size]

    @property
    def alias(self) -> str:
        """Empty if the area is free."""
        packed: bytes = _ALIAS.unpack(self.packed_alias)[0]
        return packed.decode("utf-8", "ignore")

    def assign(self, alias: str) -> None:
        """Forget everything, and keep this alias from now on."""
        self._memory[self._offset : self._offset + _AREA_BYTES] = bytes(_AREA_BYTES)
        self._memory[self._offset : self._offset + _ALIAS.size] = _packed(alias)

    def last_at(self) -> float:
        """Returns when it was last written; 0 if never."""
        return max(self._seconds[1::_SECOND_WORDS], default=0.0)

    def last_outage(self) -> float:
        """Returns when the database could last not be used, or statements hung; 0 if that is not
        known."""
        at = _ROW + metrics.LAST_OUTAGE, _ROW + metrics.CONNECT_ERROR + 1, _HUNG_UNTIL
        return max(max(self._seconds[i::_SECOND_WORDS], default=0.0) for i in at)

    def write(
        self,
        second: int,
        at: float,
        row: Sequence[float],
        most: float,
        *,
        busy: bool,
        hanging: bool,
    ) -> None:
        """Note a second.

        :param most: connections in use of the worker that has most.
        """
        last = int(last_at := self.last_at())
        hung, hung_until = self._hung(last)
        if hanging:
            hung = hung_until = at
        elif row[metrics.WAITING] and 0 < row[metrics.OLDEST_WAIT] <= hung:
            hung_until = at  # the first in line has waited since then
        found = stretches(at, row, last_at, hung_until)
        self.episodes.note(found, lambda moment: self._row_before(moment, last))
        start = second % _RING * _SECOND_WORDS
        self._seconds[start] = 0.0  # not to be read until it is whole
        head = array("d", (at, most, last, busy, hung, hung_until))
        self._seconds[start + 1 : start + _ROW] = head
        for i, number in enumerate(row, start + _ROW):
            self._seconds[i] = number
        self._seconds[start] = second
        # What was spoiled by an outage is known a little later.
        for known in range(last + 1 - DOUBT_SECONDS, min(last, second - DOUBT_SECONDS) + 1):
            if (peak := self._peak(known)) is not None:
                self._peaks.add(known, peak)

    def last_hang(self, now: float) -> Second | None:
        """Returns the last sample if statements hung in it, and it is one of the last seconds."""
        sample = self.read(int(self.last_at()))
        if sample is None or now - sample.at > BETWEEN_SECONDS + 1.0:
            return None
        hung, _ = self._hung(int(sample.at))
        return sample if hung >= sample.at else None

    def _hung(self, second: int) -> tuple[float, float]:
        """Returns when statements last hung as of a second, and until when requests waited."""
        start = second % _RING * _SECOND_WORDS
        if not second or self._seconds[start] != second:
            return 0.0, 0.0
        return self._seconds[start + _HUNG_UNTIL - 1], self._seconds[start + _HUNG_UNTIL]

    def _peak(self, second: int) -> Peak | None:
        """Returns what a second adds to the peaks; None if it was not sampled, or an outage has
        spoiled it."""
        sample = self.read(second)
        if sample is None or self._is_spoiled(second):
            return None
        row = sample.row
        start = second % _RING * _SECOND_WORDS
        most, before, busy = self._seconds[start + 2 : start + 5]
        former = self.read(int(before)) if second - before < KEPT_SECONDS else None
        # What came before the first sample counts with it; after a long gap nothing is known.
        base = former.row if former else row if before else None

        def risen(index: int) -> float:
            return max(0.0, row[index] - (base[index] if base is not None else 0.0))

        wait = max(row[metrics.LONGEST_WAIT], metrics.age(row[metrics.OLDEST_WAIT], sample.at))
        waited, refused = risen(metrics.WAITED), risen(metrics.TIMEOUTS)
        waits = bool(waited or refused or row[metrics.WAITING])
        begun = float(waits and not self._waited_in(second - 1))
        maxima = (row[metrics.MOST_IN_USE], most, row[metrics.WAITING], wait)
        in_vain = (waited + refused) * busy
        return (*maxima, risen(metrics.ACQUIRED), waited, refused, begun, 1.0, in_vain)

    def _is_spoiled(self, second: int) -> bool:
        """Whether its numbers are those of an outage."""
        first, *later = self._signs(second, second)
        return first is not None and is_spoiled(first, [each for each in later if each])

    def held_in_outages(self, first: int, last: int) -> float:
        """Returns for how long connections were held in the seconds that an outage has spoiled."""
        found = self._signs(first, last)
        held = 0.0
        for i, each in enumerate(found[:-DOUBT_SECONDS], 1):
            later = [other for other in found[i : i + DOUBT_SECONDS] if other]
            if each is not None and is_spoiled(each, later):
                held += each.in_use
        return held

    def _signs(self, first: int, last: int) -> list[Signs | None]:
        """Returns those of each second, and of DOUBT_SECONDS more. Without a copy of their rows:
        for those of minutes the event loop would stand still."""
        found: list[Signs | None] = []
        for second in range(first, last + 1 + DOUBT_SECONDS):
            start = second % _RING * _SECOND_WORDS
            each = None
            if second > 0 and self._seconds[start] == second:
                row = self._seconds[start + _ROW : start + _SECOND_WORDS]
                each = signs(self._seconds[start + 1], row, self._seconds[start + _HUNG_UNTIL])
            found.append(each if self._seconds[start] == second else None)
        return found

    def _waited_in(self, second: int) -> bool:
        """Whether anybody waited in a second, or was in it still refused."""
        now, before = self.read(second), self.read(second - 1)
        if now is None:
            return False
        if now.row[metrics.WAITING]:
            return True
        keys = (metrics.WAITED, metrics.TIMEOUTS)
        return before is not None and any(now.row[key] > before.row[key] for key in keys)

    def read(self, second: int) -> Second | None:
        """Returns the sample of a second, or None."""
        start = second % _RING * _SECOND_WORDS
        if second <= 0 or self._seconds[start] != second:
            return None
        at, _, _, _, _, hung_until, *row = self._seconds[start + 1 : start + _SECOND_WORDS]
        return Second(at, row, hung_until) if self._seconds[start] == second else None

    def around(self, moment: float, now: float) -> Second | None:
        """Returns the first sample from a moment on that there is, before the second of now."""
        for number in range(int(moment), int(now)):
            if (sample := self.read(number)) is not None and sample.at >= moment:
                return sample
        return None

    def _row_before(self, moment: float, last: int) -> Sequence[float] | None:
        """Returns the row of the last sample that is not younger, or of the last one if none is
        kept; None if there is none."""
        for second in range(int(moment), int(moment) - _RING, -1):
            if (sample := self.read(second)) is not None and sample.at <= moment:
                return sample.row
        sample = self.read(last)
        return None if sample is None else sample.row

    def peaks(self, now: float) -> dict[str, dict[str, Any]]:
        """Returns the peaks of each window."""
        last = int(self.last_at())
        doubtful = [
            (second, peak)
            for second in range(last - DOUBT_SECONDS + 1, last + 1)
            if (peak := self._peak(second)) is not None
        ]
        return {name: self._peaks.read(name, now, doubtful) for name in WINDOWS}


def _packed(alias: str) -> bytes:
    return _ALIAS.pack(alias.encode()[: _ALIAS.size - 1].decode("utf-8", "ignore").encode())
