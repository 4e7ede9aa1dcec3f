"""The most of everything in the last minutes, the last hour and the last day.

A second in which the database could not be used says nothing about the size of a pool, nor does one
before it in which everybody waited in vain already. That turns out a little later, so seconds are
added to the peaks when it has; until then, readers get them from the samples. The same holds for
seconds in which all statements hung, or connects failed: no other size would have helped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pooled_serve.driver.error_codes import FULL
from pooled_serve.pool import metrics
from pooled_serve.pool.silence import QUIET_SECONDS
from pooled_serve.status.figures import is_out

DOUBT_SECONDS = 7
"""After so many it is known whether a second was spoiled: it takes a silence of HANGING_SECONDS
until statements hang, and both ends of that are known to a second. That a server is out is known
sooner: a second until it is asked, and one more until it has not answered."""

AFTER_SECONDS = 3.0
"""An outage is in the numbers for a while: waits end that it has made longer."""

WINDOWS = {"5m": (10, 31), "1h": (60, 61), "24h": (1200, 73)}
"""Seconds of a cell, and how many cells: as many as the window has, and the one that is being
filled."""

PEAK_METRICS = {
    "in_use": "Most connections in use. If it rises to the sum of db_client_connection_max, or to "
    "pooled_serve_host_limit, the next requests wait: do as for pooled_serve_waited_total. If it "
    "stays far below, a lower cap would do.",
    "in_use_worker": "The same of the worker that had most. If it rises to --max-outstanding, one "
    "worker is full while others need not be: use --max-per-host.",
    "waiting": "Most requests that waited. If it rises, do as for pooled_serve_waited_total.",
    "wait_seconds": "The longest wait. If it rises to half of --pool-timeout, requests are "
    "refused: do as for pooled_serve_waited_total.",
    "acquired": "Connections handed out. If it rises, there is more traffic.",
    "waited": "Those after a wait. If it rises, do as for pooled_serve_waited_total.",
    "refused": "Requests that got 503. If it rises, the log says why.",
    "occasions": "How often waits began after a second without any. If it rises, the cap is "
    "reached again and again: do as for pooled_serve_waited_total.",
    "seconds": "How many were seen. If it falls, all workers were blocked or gone.",
    "waited_busy": "Requests that waited or got 503 while a worker had used up its processor. If "
    "it rises, more connections do not help: see pooled_serve_worker_cpu_share.",
    "opened": "Connections opened. If it rises, pooled_serve_closed_total has the reasons.",
    "surplus": "Connections closed as surplus. If it rises to what was opened, raise --pool-size.",
}
"""Of a window in ``peaks`` of ``/stats.json``, with their help in ``/metrics``."""

PEAK_KEYS = tuple(PEAK_METRICS)

_MAXIMA = 4  # the first ones; the others are sums

_CELL_WORDS = 1 + len(PEAK_KEYS)
PEAK_WORDS = sum(many for _, many in WINDOWS.values()) * _CELL_WORDS
"""Numbers that the peaks of a database take."""

Peak = Sequence[float]
"""What a second adds, by PEAK_KEYS."""


class Signs(NamedTuple):
    """Of a second, what tells whether an outage has made its numbers."""

    at: float
    in_use: float
    near_outage: bool
    silent_since: float
    """Infinite if the server was not silent."""
    hung: bool
    lost: bool
    """Whether the server was stuck, or out of reach. One that refuses logins, or is full, goes on
    to answer those who are in."""


def signs(at: float, row: Sequence[float], hung_until: float, hung: float) -> Signs:
    """Returns those of a sample.

    :param hung_until: see :class:`figures.Second`.
    :param hung: when statements last hung, whether or not requests wait because of that.
    """
    last, asked = row[metrics.LAST_OUTAGE], row[metrics.OLDEST_STATEMENT]
    since = max(asked, row[metrics.LAST_ANSWER])
    silent = asked > 0 and at - since >= QUIET_SECONDS
    latest = max(last, hung_until, row[metrics.CONNECT_ERROR + 1])
    near = is_out(row) or (latest > 0 and at - latest < AFTER_SECONDS)
    lets_in = not row[metrics.LOGIN_REFUSED] and row[metrics.CONNECT_ERROR] not in FULL
    lost = is_out(row) and (lets_in or row[metrics.STUCK] > 0)
    silent_since = since if silent else math.inf
    return Signs(at, row[metrics.IN_USE], near, silent_since, hung >= at, lost)


def is_spoiled(second: Signs, later: Sequence[Signs]) -> bool:
    """Whether a second has numbers that an outage has made.

    :param later: the next DOUBT_SECONDS.
    """
    return second.near_outage or (
        any(each.near_outage for each in later)
        and any(each.silent_since <= second.at + 1.0 for each in later)
    )


def is_held_in_vain(second: Signs, later: Sequence[Signs]) -> bool:
    """Whether connections were held in a second because statements hung, or the server answered
    none at all. Neither in the seconds after that, nor where only connects fail: what views do then
    with a connection is their usual work.

    :param later: the next DOUBT_SECONDS.
    """
    near = second, *later
    silent = any(each.silent_since <= second.at + 1.0 for each in near)
    return second.hung or (silent and any(each.hung or each.lost for each in near))


class Peaks:
    """The peaks of one database.

    :param numbers: PEAK_WORDS of memory that all processes share.
    """

    def __init__(self, numbers: Any) -> None:
        self._cells: dict[str, Any] = {}
        at = 0
        for name, (_, many) in WINDOWS.items():
            self._cells[name] = numbers[at : at + many * _CELL_WORDS]
            at += many * _CELL_WORDS

    def clear(self) -> None:
        """Forget all of them."""
        for cell in self._cells.values():
            cell[:] = memoryview(bytes(8 * len(cell))).cast("d")

    def add(self, second: int, peak: Peak) -> None:
        """Add a second to the cells that it belongs to."""
        for name, (period, many) in WINDOWS.items():
            key = 1 + second // period  # 0: never used
            cell = self._cells[name]
            start = key % many * _CELL_WORDS
            if cell[start] != key:
                cell[start] = 0.0
                for i in range(start + 1, start + _CELL_WORDS):
                    cell[i] = 0.0
                cell[start] = key
            for i, (old, new) in enumerate(
                zip(cell[start + 1 : start + _CELL_WORDS], peak, strict=True)
            ):
                cell[start + 1 + i] = _joined(i, old, new)

    def read(self, name: str, now: float, doubtful: Iterable[tuple[int, Peak]]) -> dict[str, Any]:
        """Returns the peaks of a window.

        :param doubtful: seconds that were not added yet, and what they add.
        """
        period, many = WINDOWS[name]
        newest = 1 + int(now) // period
        cells = self._cells[name]
        parts = [(1 + second // period, *peak) for second, peak in doubtful]
        for start in range(0, many * _CELL_WORDS, _CELL_WORDS):
            cell = tuple(cells[start : start + _CELL_WORDS])
            if cell[0] == cells[start]:
                parts.append(cell)
        parts = [part for part in parts if newest - many < part[0] <= newest]
        columns = list(zip(*parts, strict=True))[1:] or [(0.0,)] * len(PEAK_KEYS)
        found = [(max if i < _MAXIMA else sum)(column) for i, column in enumerate(columns)]
        return {
            key: value if key == "wait_seconds" else int(value)
            for key, value in zip(PEAK_KEYS, found, strict=True)
        }


def _joined(index: int, one: float, other: float) -> float:
    return max(one, other) if index < _MAXIMA else one + other
