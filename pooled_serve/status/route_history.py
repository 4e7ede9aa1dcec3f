"""What the routes had used so far, page by page: the difference to now is what they used lately.

Each page has the same memory in all processes; history.py sees to it that one writes at a time.
"""

from __future__ import annotations

import json
from typing import Any

ROUTES_SECONDS = 300
"""What "recently" means for the table of routes: leases of slow ones are too rare for less."""

ROUTES_EVERY = 60
"""Seconds from page to page for that."""

_WORD = 8
_PAGE_BYTES = 16 * 1024
_HEAD_BYTES = 2 * _WORD  # of a page: its number, how long it is

Routes = dict[tuple[str, str], dict[str, float]]


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
        packed = b""
        while len(packed := json.dumps(_lean(routes)).encode()) > _PAGE_BYTES - _HEAD_BYTES:
            routes = routes[: len(routes) // 2]
        number = int(now // self._every)
        at, head = self._at(number), self._head(number)
        head[0] = 0.0
        head[1] = len(packed)
        self._memory[at + _HEAD_BYTES : at + _HEAD_BYTES + len(packed)] = packed
        head[0] = number

    def before(self, now: float) -> Routes:
        """Returns what the routes had used before the time for which pages are kept, or as soon
        after that as is known; nothing if nothing is."""
        oldest = int(now // self._every) - self._seconds // self._every
        numbers = sorted(int(self._head(i)[0]) for i in range(self._kept))
        written = [number for number in numbers if number]
        # All workers may have been blocked for longer than that.
        for number in [*(n for n in written if n >= oldest), *reversed(written)]:
            if (found := self._read(number)) is not None:
                return {(route["route"], route["method"]): route for route in found}
        return {}

    def _read(self, number: int) -> list[dict[str, Any]] | None:
        at, head = self._at(number), self._head(number)
        packed = bytes(self._memory[at + _HEAD_BYTES : at + _HEAD_BYTES + int(head[1])])
        if head[0] != number:
            return None
        found: list[dict[str, Any]] = json.loads(packed)
        return found

    def _at(self, number: int) -> int:
        return number % self._kept * _PAGE_BYTES

    def _head(self, number: int) -> Any:
        at = self._at(number)
        return self._memory[at : at + _HEAD_BYTES].cast("d")


def since(route: dict[str, Any], past: Routes) -> dict[str, float]:
    """Returns by how much the counters of a route have risen."""
    before = past.get((route["route"], route["method"]), {})
    return {
        key.removesuffix("_total"): max(0, value - before.get(key, 0))
        for key, value in route.items()
        if key.endswith("_total")
    }


def _kept(seconds: int, every: int) -> int:
    return seconds // every + 2  # the next one is written over the oldest


_IDENTITY = ("route", "method")


def _lean(routes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of routes: their names and counters."""
    return [
        {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in route.items()
            if key in _IDENTITY or key.endswith("_total")
        }
        for route in routes
    ]
