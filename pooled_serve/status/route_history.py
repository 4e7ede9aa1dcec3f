"""What the routes had used so far, page by page: the difference to now is what they used lately.

Each page has the same memory in all processes; history.py sees to it that one writes at a time.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

from pooled_serve.status.routes import OTHER

ROUTES_SECONDS = 300
"""What "recently" means for the table of routes: leases of slow ones are too rare for less."""

ROUTES_EVERY = 60
"""Seconds from page to page for that."""

_WORD = 8
_PAGE_BYTES = 16 * 1024
_HEAD_BYTES = 2 * _WORD  # of a page: its number, how long it is

_FAST = 1  # of zlib's levels


class Past(NamedTuple):
    """What routes had used at some time."""

    routes: dict[tuple[str, str], dict[str, float]]
    """Route and method -> counters."""
    is_whole: bool
    """Whether any other route had used nothing. Else it may have been cut off, or counted among the
    others and got a row of its own since, with what it had used before."""

    def completed(self, later: Past) -> Past:
        """Returns the same with what a later page tells of other routes."""
        return Past(later.routes | self.routes, is_whole=later.is_whole)


class RoutePages:
    """
    :param memory: as much as :meth:`size` says, or more.
    :param seconds: for which they are kept.
    :param every: from page to page.
    """

    def __init__(self, memory: Any, seconds: int, every: int) -> None:
        self._kept = _kept(seconds, every)
        self._memory = memory[: self._kept * _PAGE_BYTES]
        self._seconds = seconds
        self._every = every

    @staticmethod
    def size(seconds: int, every: int) -> int:
        """Returns how many bytes they take."""
        return _kept(seconds, every) * _PAGE_BYTES

    def is_due(self, now: float) -> bool:
        """Whether it is time for a page."""
        number = int(now // self._every)
        return bool(self._head(number)[0] < number)

    def write(self, routes: list[dict[str, Any]], now: float) -> None:
        """Write a page.

        :param routes: as in ``/stats.json``, the busiest first: what does not fit is left out.
        """
        is_whole = not any((route["route"], route["method"]) == (OTHER, "") for route in routes)
        while len(packed := _pack(routes, is_whole=is_whole)) > _PAGE_BYTES - _HEAD_BYTES:
            is_whole = False
            fitting = len(routes) * (_PAGE_BYTES - _HEAD_BYTES) // len(packed)
            routes = routes[: min(fitting, len(routes) - 1)]
        number = int(now // self._every)
        at, head = self._at(number), self._head(number)
        head[0] = 0.0
        head[1] = len(packed)
        self._memory[at + _HEAD_BYTES : at + _HEAD_BYTES + len(packed)] = packed
        head[0] = number

    def before(self, now: float) -> Past:
        """Returns what the routes had used before the time for which pages are kept, or as soon
        after that as is known."""
        oldest = int(now // self._every) - self._seconds // self._every
        numbers = sorted(int(self._head(i)[0]) for i in range(self._kept))
        written = [number for number in numbers if number]
        older = [number for number in written if number < oldest]
        past: Past | None = None
        # All workers may have been blocked for longer than that.
        for number in [*written[len(older) :], *reversed(older)]:
            if past is not None and (past.is_whole or number < oldest):
                break
            if (page := self._read(number)) is not None:
                past = page if past is None else past.completed(page)
        return past or Past({}, is_whole=True)

    def _read(self, number: int) -> Past | None:
        at, head = self._at(number), self._head(number)
        packed = bytes(self._memory[at + _HEAD_BYTES : at + _HEAD_BYTES + int(head[1])])
        return _unpack(packed) if head[0] == number else None

    def _at(self, number: int) -> int:
        return number % self._kept * _PAGE_BYTES

    def _head(self, number: int) -> Any:
        at = self._at(number)
        return self._memory[at : at + _HEAD_BYTES].cast("d")


def since(route: dict[str, Any], past: Past) -> dict[str, float]:
    """Returns by how much the counters of a route have risen: by nothing, as far as is known, if it
    may have been among those that the past does not tell of."""
    before = past.routes.get((route["route"], route["method"]), {} if past.is_whole else route)
    return {
        key.removesuffix("_total"): max(0, value - before.get(key, 0))
        for key, value in route.items()
        if key.endswith("_total")
    }


def _kept(seconds: int, every: int) -> int:
    return seconds // every + 2  # the next one is written over the oldest


def _pack(routes: list[dict[str, Any]], *, is_whole: bool) -> bytes:
    """Returns names and counters of routes, in little space."""
    keys = [key for key in (routes[0] if routes else ()) if key.endswith("_total")]
    rows = [
        [route["route"], route["method"], *(round(route[key], 4) for key in keys)]
        for route in routes
    ]
    return zlib.compress(json.dumps([is_whole, keys, rows]).encode(), _FAST)


def _unpack(packed: bytes) -> Past:
    is_whole, keys, rows = json.loads(zlib.decompress(packed))
    routes = {(row[0], row[1]): dict(zip(keys, row[2:], strict=True)) for row in rows}
    return Past(routes, is_whole=is_whole)
