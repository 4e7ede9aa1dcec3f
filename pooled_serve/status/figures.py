"""What the counters of a pool say about a stretch of time: rates, shares, percentiles.

The page, its sentence, the text page and ``--advise`` all show these, so that they cannot
contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pooled_serve.pool import metrics
from pooled_serve.pool.metrics import BUCKET_BOUNDS_SECONDS


class Second(NamedTuple):
    """A sample: when it was taken, in monotonic seconds, and the row of all workers together."""

    at: float
    row: Sequence[float]


RECENT_SECONDS = 10
"""What "now" means for everything that has to be counted for a while."""

BETWEEN_SECONDS = 2.0
"""The oldest number of now may be older by so much: samples are a second apart, and workers do not
count at the same moment."""

LEAST_SEEN = 10
"""A share of fewer says nothing: each may have been between two statements."""

LATELY_SECONDS = 25
"""As long as now, what comes before it, and the time for which an outage may make requests wait
after its end."""

_BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1
_LOWER = (0.0, *BUCKET_BOUNDS_SECONDS)
"""Of each bucket, what is not in it any more."""
_METRICS = {metric.key: metric for metric in metrics.METRICS}


def recent(
    row: Sequence[float],
    before: Sequence[float] | None,
    seconds: float,
    samples: Sequence[Second] = (),
    now: float = 0.0,
) -> dict[str, Any]:
    """``recent`` of ``/stats.json``: what has happened between two moments.

    :param row: of a pool, see pool/metrics.py.
    :param before: the same, ``seconds`` ago; None if it had not counted anything.
    :param samples: of the last LATELY_SECONDS.
    :param now: when the row was read, on their clock.
    """

    def risen(index: int) -> int:
        # A row of an alias that is gone takes its counts along.
        return max(0, int(row[index] - (before[index] if before else 0.0)))

    def reasons(key: str) -> dict[str, int]:
        metric = _METRICS[key]
        numbered = enumerate(metric.reasons, metric.start)
        return {reason: n for i, reason in numbered if (n := risen(i))}

    acquired, waited, refused = map(risen, (metrics.ACQUIRED, metrics.WAITED, metrics.TIMEOUTS))
    between = [s for s in samples if int(s.at) > int(now) - RECENT_SECONDS]
    longest_wait = max((s.row[metrics.LONGEST_WAIT] for s in between), default=math.inf)
    longest_wait = max(longest_wait, row[metrics.LONGEST_WAIT])
    waiting = int(row[metrics.WAITING])  # their wait has not ended, so no counter has it
    asked = acquired + refused + waiting
    waits = Durations(row, before, metrics.WAIT_SECONDS, longest_wait)
    waits.counts[0] += max(0, acquired - waited)  # see metrics.buckets()
    holds = Durations(row, before, metrics.HELD_SECONDS)
    return {
        "seconds": seconds,
        "acquired": acquired,
        "acquired_per_second": acquired / seconds if seconds else 0.0,
        "waited": waited,
        "waited_share": (waited + refused + waiting) / asked if asked else None,
        "timeouts": refused,
        "shed": risen(metrics.SHED),
        "wait_p50_seconds": waits.quantile(0.5),
        "wait_p95_seconds": waits.quantile(0.95),
        "asking_share": _asking_share([*between, Second(now, row)]),
        "held_p50_seconds": holds.quantile(0.5),
        "held_p95_seconds": holds.quantile(0.95),
        "opened": risen(metrics.OPENED),
        "connect_errors": risen(metrics.CONNECT_ERRORS),
        "unanswered": risen(metrics.UNANSWERED),
        "lost_ago_seconds": _lost_ago([*samples, Second(now, row)], now),
        "leaked": risen(metrics.LEAKED),
        "closed": reasons("closed_total"),
        "pinned": reasons("pinned_total"),
    }


def _asking_share(samples: Sequence[Second]) -> float | None:
    """Returns how many of the connections that were seen in use waited for an answer of the server;
    None if too few were seen."""
    in_use = sum(sample.row[metrics.IN_USE] for sample in samples)
    asking = sum(sample.row[metrics.ASKING] for sample in samples)
    return min(1.0, asking / in_use) if in_use >= LEAST_SEEN else None


def is_out(row: Sequence[float]) -> bool:
    """Whether the database could not be used when the row was read."""
    return row[metrics.REACHABLE] == metrics.NO or row[metrics.STUCK] > 0


def _lost_ago(samples: Sequence[Second], now: float) -> float | None:
    """Returns how long ago the database could last not be used; None if nothing of that is left in
    the numbers of the last seconds: those who waited because of that have counted long ago."""
    out = [sample.at for sample in samples if is_out(sample.row)]
    until = max([*(sample.row[metrics.LAST_OUTAGE] for sample in samples), *out])
    if not until or now - until >= RECENT_SECONDS + BETWEEN_SECONDS:
        return None
    return max(0.0, now - max(out, default=until))


def point(
    row: Sequence[float],
    before: Sequence[float] | None,
    seconds: float,
    longest_wait: float = math.inf,
) -> tuple[float, float, float | None, float | None, float | None]:
    """Returns what the charts show of a second: in use, waiting, acquired per second, and the 95th
    percentiles of wait and hold. It is the part of :func:`recent` that is needed 300 times.

    :param before: None if it is not known; then only what needs no time is.
    :param longest_wait: of those that ended in between, as far as it is known.
    """
    if before is None:
        return row[metrics.IN_USE], row[metrics.WAITING], None, None, None
    acquired = max(0.0, row[metrics.ACQUIRED] - before[metrics.ACQUIRED])
    waits = Durations(row, before, metrics.WAIT_SECONDS, longest_wait)
    waits.counts[0] += max(0.0, acquired - (row[metrics.WAITED] - before[metrics.WAITED]))
    return (
        row[metrics.IN_USE],
        row[metrics.WAITING],
        acquired / seconds,
        waits.quantile(0.95),
        Durations(row, before, metrics.HELD_SECONDS).quantile(0.95),
    )


class Durations:
    """A histogram's durations between two moments.

    :param row: of a pool.
    :param before: an earlier one; None if it had not counted anything.
    :param start: where the histogram begins there: its sum, and the buckets behind that.
    :param longest: of these durations, as far as it is known.
    """

    def __init__(
        self,
        row: Sequence[float],
        before: Sequence[float] | None,
        start: int,
        longest: float = math.inf,
    ) -> None:
        now = row[start : start + 1 + _BUCKETS]
        then = before[start : start + 1 + _BUCKETS] if before is not None else [0.0] * len(now)
        total, *self.counts = (max(0.0, a - b) for a, b in zip(now, then, strict=True))
        """How many fell in each bucket."""
        lowest = sum(n * low for n, low in zip(self.counts, _LOWER, strict=True))
        highest = max((low for n, low in zip(self.counts, _LOWER, strict=True) if n), default=0.0)
        # None can be longer than what is left of the sum when all others were as short as their
        # buckets allow.
        self._longest = min(longest, highest + max(0.0, total - lowest))

    def quantile(self, share: float) -> float | None:
        """Returns the seconds that this share of the durations did not exceed; never more than the
        longest of them, as far as that is known. None if there are none."""
        return quantile(share, self.counts, self._longest)


def quantile(share: float, counts: Sequence[float], longest: float = math.inf) -> float | None:
    """Returns the seconds that this share of durations did not exceed, as Prometheus estimates it:
    evenly spread within a bucket; in the last one, its lower end. None if there are none.

    :param longest: of the durations. The bucket that it is in ends there.
    """
    rank = share * sum(counts)
    if rank <= 0:
        return None
    below, lower = 0.0, 0.0
    for bound, inside in zip(BUCKET_BOUNDS_SECONDS, counts, strict=False):
        if below + inside >= rank:
            # What is known as the longest was sampled: it may be that of a lower bucket.
            upper = max(lower, min(bound, longest))
            return lower + (upper - lower) * (rank - below) / inside
        below += inside
        lower = bound
    return lower
