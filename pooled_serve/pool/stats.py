"""What a pool counts: each statistic named once, and where it lies in a row of numbers.

A pool counts into its row. By default that is a list of its own; where there is a board, it is
memory that the other workers read, and still each count is a single store. All numbers are
floats: whole ones are exact up to 2**53, and seconds need no unit of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Row(Protocol):
    """A list, or a piece of the board."""

    def __getitem__(self, index: int, /) -> float: ...
    def __setitem__(self, index: int, value: float, /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[float]: ...


BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms' buckets, in seconds; one more bucket has no bound. A duration
belongs to ``bisect_left(BOUNDS, seconds)``."""

CLOSE_REASONS = (
    *("age", "surplus", "drain", "cleared", "closed"),  # in good order
    *("dead", "lost", "moved"),  # the server's doing
    *("dirty", "unread", "reset failed", "abandoned", "killed"),  # the user's
    "other",
)
PIN_REASONS = (
    *("variable", "role", "database", "table lock", "lock", "prepared statement"),
    *("temporary table", "procedure", "LAST_INSERT_ID(expr)", "SQL_CALC_FOUND_ROWS"),
    *("several statements", "several results", "unbuffered cursor", "direct use", "unknown"),
)

# --- Where things lie --------------------------------------------------------------------------

# Counters only grow; the board keeps them when a worker dies.
(
    ACQUIRED,
    WAITED,
    WAIT_SECONDS,
    HELD_SECONDS,
    TIMEOUTS,
    OPENED,
    CREATE_SECONDS,
    CONNECT_ERRORS,
    RESET,
    LEAKED,
    _CLOSED,
) = range(11)
_PINNED = _CLOSED + len(CLOSE_REASONS)
WAITS = _PINNED + len(PIN_REASONS)  # histograms, one number a bucket
HOLDS = WAITS + len(BOUNDS) + 1
CREATES = HOLDS + len(BOUNDS) + 1
COUNTERS = CREATES + len(BOUNDS) + 1

# Gauges are of the moment when they were marked. in_use is what is left of OPEN without IDLE.
SIZE, CAP, OPEN, IDLE, WAITING, REACHABLE, OLDEST_WAIT, OLDEST_HELD = range(COUNTERS, COUNTERS + 8)
WIDTH = COUNTERS + 8

CLOSED = {reason: _CLOSED + i for i, reason in enumerate(CLOSE_REASONS)}
PINNED = {reason: _PINNED + i for i, reason in enumerate(PIN_REASONS)}

UNKNOWN, YES, NO = range(3)
"""Values of REACHABLE, in the order in which one outweighs the other."""


# --- Reading -----------------------------------------------------------------------------------


def total(rows: Iterable[Sequence[float]]) -> list[float]:
    """Several rows as one; of what is not a sum, the worst."""
    rows = list(rows)
    summed = [sum(column) for column in zip(*rows, strict=True)]
    summed[REACHABLE] = max(row[REACHABLE] for row in rows)
    for since in (OLDEST_WAIT, OLDEST_HELD):
        summed[since] = min((row[since] for row in rows if row[since]), default=0.0)
    return summed


def by_name(row: Sequence[float], now: float) -> dict[str, Any]:
    """The numbers of a row by their names, the keys of ``/stats.json``.

    :param now: monotonic seconds, of the clock that set OLDEST_WAIT and OLDEST_HELD.
    """

    def age(since: float) -> float:
        return max(0.0, now - since) if since else 0.0

    return {
        "size": int(row[SIZE]),
        "max_outstanding": None if row[CAP] == math.inf else int(row[CAP]),
        "in_use": int(row[OPEN] - row[IDLE]),
        "idle": int(row[IDLE]),
        "waiting": int(row[WAITING]),
        "acquired_total": int(row[ACQUIRED]),
        "waited_total": int(row[WAITED]),
        "wait_seconds_total": row[WAIT_SECONDS],
        "held_seconds_total": row[HELD_SECONDS],
        "timeouts_total": int(row[TIMEOUTS]),
        "opened_total": int(row[OPENED]),
        "connect_errors_total": int(row[CONNECT_ERRORS]),
        "closed_total": _by_reason(row, CLOSED),
        "reset_total": int(row[RESET]),
        "leaked_total": int(row[LEAKED]),
        "pinned_total": _by_reason(row, PINNED),
        "oldest_wait_seconds": age(row[OLDEST_WAIT]),
        "oldest_held_seconds": age(row[OLDEST_HELD]),
        "wait_seconds_buckets": buckets(row, WAITS),
        "held_seconds_buckets": buckets(row, HOLDS),
        "create_seconds_total": row[CREATE_SECONDS],
        "create_seconds_buckets": buckets(row, CREATES),
        "reachable": {UNKNOWN: None, YES: True, NO: False}[int(row[REACHABLE])],
    }


def buckets(row: Sequence[float], histogram: int) -> dict[str, int]:
    """Upper bound -> how many took no longer, as Prometheus counts them."""
    counts = [int(n) for n in row[histogram : histogram + len(BOUNDS) + 1]]
    if histogram == WAITS:
        # Who need not wait is not counted there: that is nearly everybody.
        counts[0] = max(0, counts[0] + int(row[ACQUIRED]) - sum(counts))
    names = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    return {name: sum(counts[: i + 1]) for i, name in enumerate(names)}


def _by_reason(row: Sequence[float], where: dict[str, int]) -> dict[str, int]:
    return {reason: int(row[at]) for reason, at in where.items() if row[at]}
