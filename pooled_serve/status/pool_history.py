"""The last five minutes of one database and its peaks of up to a day, in memory that all processes
share. history.py writes it, and reads it for all databases."""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Sequence
from typing import Any

from pooled_serve.pool import metrics
from pooled_serve.status.episodes import EPISODE_WORDS, Episodes
from pooled_serve.status.figures import BETWEEN_SECONDS, RECENT_SECONDS, Second
from pooled_serve.status.peaks import (
    DOUBT_SECONDS,
    PEAK_WORDS,
    WINDOWS,
    Peak,
    Peaks,
    Signs,
    is_held_in_vain,
    is_spoiled,
    signs,
)

KEPT_SECONDS = 300
"""For the charts."""

GAP_SECONDS = 1 + BETWEEN_SECONDS
"""Samples may be so far apart where all workers were blocked: who waited before that, and waits
after it, has waited all the time."""

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
_WORDS = _PEAKS_AT + PEAK_WORDS + EPISODE_WORDS
BYTES_PER_POOL = _ALIAS.size + _WORDS * _WORD
"""Memory that a database's history takes. That of the routes is 0.2 MB."""


class PoolHistory:
    """The history of one alias."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        numbers: Any = memoryview(memory)[offset + _ALIAS.size : offset + BYTES_PER_POOL].cast("d")
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
        self._memory[self._offset : self._offset + BYTES_PER_POOL] = bytes(BYTES_PER_POOL)
        self._memory[self._offset : self._offset + _ALIAS.size] = packed(alias)

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
        since: int,
    ) -> None:
        """Note a second.

        :param most: connections in use of the worker that has most.
        :param since: the second after which the peaks begin.
        """
        last = int(last_at := self.last_at())
        hung, hung_until = self._hung(last)
        if hanging:
            hung = hung_until = at
        elif row[metrics.WAITING] and 0 < row[metrics.OLDEST_WAIT] <= hung:
            hung_until = at  # the first in line has waited since then
        self.episodes.note(at, last_at, row, hung_until, lambda at: self._row_before(at, last))
        start = second % _RING * _SECOND_WORDS
        self._seconds[start] = 0.0  # not to be read until it is whole
        head = array("d", (at, most, last, busy, hung, hung_until))
        self._seconds[start + 1 : start + _ROW] = head
        for i, number in enumerate(row, start + _ROW):
            self._seconds[i] = number
        self._seconds[start] = second
        # What was spoiled by an outage is known a little later.
        for known in range(last + 1 - DOUBT_SECONDS, min(last, second - DOUBT_SECONDS) + 1):
            if known > since and (peak := self._peak(known)) is not None:
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
        goes_on = second - before <= GAP_SECONDS and self._waited_in(int(before))
        begun = float(waits and not goes_on)
        maxima = (row[metrics.MOST_IN_USE], most, row[metrics.WAITING], wait)
        in_vain = (waited + refused) * busy
        turnover = (risen(metrics.OPENED), risen(metrics.CLOSED["surplus"]))
        return (*maxima, risen(metrics.ACQUIRED), waited, refused, begun, 1.0, in_vain, *turnover)

    def _is_spoiled(self, second: int) -> bool:
        """Whether its numbers are those of an outage."""
        first, *later = self._signs(second, second)
        return first is not None and is_spoiled(first, [each for each in later if each])

    def held_in_vain(self, first: int, last: int) -> float:
        """Returns for how long connections were held while their statements hung."""
        found = self._signs(first, last)
        held = 0.0
        for i, each in enumerate(found[:-DOUBT_SECONDS], 1):
            later = [other for other in found[i : i + DOUBT_SECONDS] if other]
            if each is not None and is_held_in_vain(each, later):
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
                hung, hung_until = self._seconds[start + _HUNG_UNTIL - 1 : start + _ROW]
                each = signs(self._seconds[start + 1], row, hung_until, hung)
            found.append(each if self._seconds[start] == second else None)
        return found

    def _waited_in(self, second: int) -> bool:
        """Whether anybody waited in a second that was sampled, or was in it still refused."""
        now = self.read(second)
        start = second % _RING * _SECOND_WORDS
        before = self.read(int(self._seconds[start + 3]))
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

    def forget_peaks(self) -> None:
        """Begin the peaks anew."""
        self._peaks.clear()

    def peaks(self, now: float, since: int) -> dict[str, dict[str, Any]]:
        """Returns the peaks of each window, as far as it is later than the second since."""
        last = int(self.last_at())
        doubtful = [
            (second, peak)
            for second in range(last - DOUBT_SECONDS + 1, last + 1)
            if second > since and (peak := self._peak(second)) is not None
        ]
        return {name: self._peaks.read(name, now, doubtful) for name in WINDOWS}


def packed(alias: str) -> bytes:
    return _ALIAS.pack(alias.encode()[: _ALIAS.size - 1].decode("utf-8", "ignore").encode())
