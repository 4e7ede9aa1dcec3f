"""Which route holds the connections: a table for each worker, in memory that all processes share.

A route is Django's name for it, such as ``shop/<slug:slug>/``, with the method; never a path. The
:data:`MAX_ROUTES` that have held connections for longest in this worker have a row each. What the
others use is counted in a row for all of them together. One that overtakes the least of those with
a row takes its place. Its row then begins with what it has used so far, as far as the former one
made room for that in the common row. So neither the sum over all rows nor the common row ever
shrinks.

As on the rest of the scoreboard, each table has one writer, the worker, and each number is written
as one word. The next worker of the slot goes on with the table, so nothing is lost with a worker.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pooled_serve.pool.metric import Kind, Row
from pooled_serve.status.instance_metrics import (
    ROUTE_HELD,
    ROUTE_IDLE,
    ROUTE_LEASES,
    ROUTE_LONGEST,
    ROUTE_METRICS,
    ROUTE_REQUESTS,
    ROUTE_STATEMENTS,
)

MAX_ROUTES = 64
"""Of one worker, with a row each."""

LEAD = 1.1
"""Times the use of the least busy of these: what another route must have used before it is looked
at, so that two of about the same use do not take turns."""

MAX_KNOWN = 512
"""Routes whose use is remembered by a worker, so that they can overtake another one. Projects may
make up routes while they run, one for each tenant."""

OTHER, OUTSIDE, UNRESOLVED = "other", "outside requests", "no route"
"""What is no route has a name without a method: the routes without a row; commands, tasks and other
greenlets that serve no request; and requests that ended before Django had found their view."""

METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
OTHER_METHOD = "_OTHER"
"""Of methods that clients have made up: the name that OpenTelemetry has for these."""

READ_ATTEMPTS = 10
"""A millisecond apart, while a worker moves rows. After the last one a reader uses them as they
are: the worker may have been killed in the middle."""

_WORD = 8
_TEXT = struct.Struct("160p 16p")  # route, which is cut if it is too long; method
_FIXED = (OTHER, OUTSIDE, UNRESOLVED)
_ROW_BYTES = _TEXT.size + len(ROUTE_METRICS) * _WORD
TABLE_BYTES = _WORD + (len(_FIXED) + MAX_ROUTES) * _ROW_BYTES


class RouteUse(NamedTuple):
    """A row of a table as it was read; ``numbers`` are in the order of ROUTE_METRICS."""

    route: str
    method: str
    numbers: list[float]


class Usage:
    """What counts the use of one route."""

    __slots__ = ("_before", "_table", "name", "row")

    def __init__(
        self, row: Row | None = None, table: RouteTable | None = None, name: str = ""
    ) -> None:
        self.name = name  # of the route, with its method
        self.row: Row = [0.0] * len(ROUTE_METRICS) if row is None else row
        self._table = table  # that counts it in the common row; None if it has a row of its own
        self._before = list(self.row)  # what earlier workers have counted there

    def returned(self, seconds: float) -> None:
        """Count a lease."""
        row = self.row
        row[ROUTE_LEASES] += 1.0
        row[ROUTE_HELD] += seconds
        if seconds > row[ROUTE_LONGEST]:
            row[ROUTE_LONGEST] = seconds
        if self._table is not None:
            self._table.other.returned(seconds)
            self._table.look_at(self)

    def waited(self, seconds: float, *, served: bool) -> None:
        """Count a wait."""
        self.add([0.0, 0.0, float(served), seconds, 0.0])

    def requested(self, statements: int) -> None:
        """Count a request that has run statements."""
        self.row[ROUTE_REQUESTS] += 1.0
        self.row[ROUTE_STATEMENTS] += statements
        if self._table is not None:
            self._table.other.requested(statements)

    def idled(self, seconds: float) -> None:
        """Count the time for which a connection was held and ran no statement."""
        self.row[ROUTE_IDLE] += seconds
        if self._table is not None:
            self._table.other.idled(seconds)

    def add(self, numbers: Iterable[float]) -> None:
        """Count what was counted elsewhere."""
        numbers = list(numbers)
        _add(self.row, numbers)
        if self._table is not None:
            self._table.other.add(numbers)
            self._table.look_at(self)

    @property
    def held(self) -> float:
        """Seconds of leases that this worker has counted."""
        return self.row[ROUTE_HELD] - self._before[ROUTE_HELD]

    @property
    def used(self) -> list[float]:
        """What this worker has counted."""
        used = [now - before for now, before in zip(self.row, self._before, strict=True)]
        used[ROUTE_LONGEST] = self.row[ROUTE_LONGEST]
        return used

    def move(self, row: Row, used: Sequence[float], table: RouteTable | None = None) -> None:
        """Count in this row from now on."""
        self.row, self._table = row, table
        self._before = [now - own for now, own in zip(row, used, strict=True)]


class RouteTable:
    """The table of one worker. Made by the worker to count, and by readers to read.

    :param memory: zeros at first.
    :param offset: where the table begins there.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._first = offset + _WORD
        self._sequence = memoryview(memory)[offset : self._first].cast("q")
        self.other, self.outside, self.unresolved = (Usage(self._numbers(i)) for i in range(3))
        self._free = iter(range(len(_FIXED), len(_FIXED) + MAX_ROUTES))
        self._placed: dict[Usage, int] = {}
        self._known: dict[tuple[str, str], Usage] = {}
        self._next_look = 0.0

    # --- For the worker ------------------------------------------------------------------------

    def usage(self, route: str, method: str) -> Usage:
        """Returns what counts the use of a route."""
        try:
            return self._known[route, method]
        except KeyError:
            return self._find(route, method)

    def _find(self, route: str, method: str) -> Usage:
        if not self._known:
            self._go_on()
        if len(self._known) > MAX_KNOWN - 2:  # so many are added
            self._known = {self._name(index): placed for placed, index in self._placed.items()}
        shown = method if method in METHODS else OTHER_METHOD
        name = _unpack(_pack(route, shown))  # as far as there is space
        usage = self._known.get(name)
        if usage is None:
            usage = self._known[name] = self._new(name)
        if method == shown:
            self._known[route, shown] = usage
        return usage

    def _go_on(self) -> None:
        """Take over what the former worker of the slot has left."""
        self.end_move()
        for index in list(self._free):
            name = self._name(index)
            if not name[1]:
                self._free = iter(range(index, len(_FIXED) + MAX_ROUTES))
                break
            usage = self._known[name] = Usage(self._numbers(index), name=route_name(*name))
            self._placed[usage] = index

    def _new(self, name: tuple[str, str]) -> Usage:
        index = next(self._free, None)
        if index is None:
            return Usage(table=self, name=route_name(*name))
        usage = Usage(self._numbers(index), name=route_name(*name))
        self._placed[usage] = index
        self._begin_move()
        self._write_name(index, name)
        self.end_move()
        return usage

    def look_at(self, usage: Usage) -> None:
        """See if a route without a row should have one."""
        if usage.row[ROUTE_HELD] > self._next_look:
            least = min(self._placed, key=lambda placed: placed.held)
            self._next_look = max(self._next_look, LEAD * least.held)
            if usage.held > least.held:
                self._replace(least, usage)

    def _replace(self, former: Usage, usage: Usage) -> None:
        name = next((name for name, known in self._known.items() if known is usage), None)
        if name is None:
            return  # forgotten meanwhile, and in use
        index = self._placed.pop(former)
        row, used, formers = former.row, usage.used, former.used
        moved = [min(pair) for pair in zip(used, row, strict=True)]
        left = [before - after for before, after in zip(row, moved, strict=True)]
        moved[ROUTE_LONGEST], left[ROUTE_LONGEST] = used[ROUTE_LONGEST], row[ROUTE_LONGEST]
        self._begin_move()
        _add(self.other.row, left)  # first: a sum that a kill leaves behind may be too high
        for i, number in enumerate(moved):
            row[i] = number
        self._write_name(index, name)
        self.end_move()
        former.move(formers, formers, self)
        usage.move(row, used)
        self._placed[usage] = index

    def _begin_move(self) -> None:
        self._sequence[0] |= 1  # odd: readers try again

    def end_move(self) -> None:
        """Note that the rows can be read. For the master, too, when the worker has died."""
        self._sequence[0] += self._sequence[0] % 2

    def _write_name(self, index: int, name: tuple[str, str]) -> None:
        start = self._first + index * _ROW_BYTES
        self._memory[start : start + _TEXT.size] = _pack(*name)

    # --- For readers ---------------------------------------------------------------------------

    def read(self) -> list[RouteUse]:
        """Returns the rows that were ever used."""
        for _ in range(READ_ATTEMPTS):
            before = self._sequence[0]
            rows = self._read()
            if before % 2 == 0 and before == self._sequence[0]:
                break
            time.sleep(0.001)  # the worker needs some microseconds
        return rows

    def _read(self) -> list[RouteUse]:
        rows = [RouteUse(name, "", list(self._numbers(index))) for index, name in enumerate(_FIXED)]
        for index in range(len(_FIXED), len(_FIXED) + MAX_ROUTES):
            route, method = self._name(index)
            if not method:
                break
            rows.append(RouteUse(route, method, list(self._numbers(index))))
        return [row for row in rows if any(row.numbers)]

    def _numbers(self, index: int) -> Any:
        start = self._first + index * _ROW_BYTES
        return memoryview(self._memory)[start + _TEXT.size : start + _ROW_BYTES].cast("d")

    def _name(self, index: int) -> tuple[str, str]:
        return _unpack(_TEXT.unpack_from(self._memory, self._first + index * _ROW_BYTES))


def route_name(route: str, method: str) -> str:
    """Returns the name of a route in sentences. Django's name of the home page is empty."""
    return f"{method} {route or '/'}".strip()


def as_routes(rows: Iterable[RouteUse]) -> list[dict[str, Any]]:
    """``routes`` of ``/stats.json``: those of several workers together, the busiest first."""
    summed: dict[tuple[str, str], list[float]] = {}
    for route, method, numbers in rows:
        if (total := summed.get((route, method))) is None:
            summed[route, method] = list(numbers)
        else:
            _add(total, numbers)
    return [
        {"route": route, "method": method}
        | {
            key: number if key.endswith(("seconds", "seconds_total")) else int(number)
            for (_, key, _), number in zip(ROUTE_METRICS, numbers, strict=True)
        }
        for (route, method), numbers in sorted(
            summed.items(), key=lambda item: item[1][ROUTE_HELD], reverse=True
        )
    ]


def _add(row: Row | list[float], numbers: Sequence[float]) -> None:
    """Add what is a counter, and keep the highest of what is not."""
    for i, number in enumerate(numbers):
        if ROUTE_METRICS[i][0] is Kind.COUNTER:
            row[i] += number
        elif number > row[i]:
            row[i] = number


def _pack(route: str, method: str) -> bytes:
    return _TEXT.pack(route.encode("utf-8", "replace"), method.encode())


def _unpack(packed: bytes | tuple[bytes, bytes]) -> tuple[str, str]:
    texts = _TEXT.unpack(packed) if isinstance(packed, bytes) else packed
    route, method = (text.decode("utf-8", "ignore") for text in texts)
    return route, method
