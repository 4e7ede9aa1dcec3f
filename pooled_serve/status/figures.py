"""What the counters of a pool say about a stretch of time: rates, shares, percentiles.

The page, its sentence, the text page and ``--advise`` all show these, so that they cannot
contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from pooled_serve.pool import metrics
from pooled_serve.pool.metrics import BUCKET_BOUNDS_SECONDS


class Second(NamedTuple):
    """A sample: when it was taken, in monotonic seconds, and the row of all workers together."""

    at: float
    row: Sequence[float]
    hung_until: float = 0.0
    """When statements last hung (so many, or so that requests waited, that the page tells of it),
    or requests still waited because of that; 0 if they never did."""


RECENT_SECONDS = 10
"""What "now" means for everything that has to be counted for a while."""

BETWEEN_SECONDS = 2.0
"""The oldest number of now may be older by so much: samples are a second apart, and workers do not
count at the same moment."""

LEAST_SEEN = 10
"""A share of fewer says nothing: each may have been between two statements."""

HANGING_SECONDS = 5.0
"""All statements that run have run for so long, and none of the others has come back..."""
MANY_HANG = 3
"""So many statements that hang, and none that is answered, are not reports that somebody runs. They
are told of although nobody waits for a connection: their clients wait."""
HANGING_TIMES = 3.0
"""... and for so many times as long as a connection is held on the busiest route: they hang."""

LONG_SECONDS = 10.0
"""So many have had no answer for so long, and for HANGING_TIMES as long as usual: that is told of,
whatever others get."""

SHORT_WAIT_SECONDS = 0.05
"""A queue that 95 % of requests pass in less is what a pool is for..."""
MANY_WAIT = 0.3
"""... unless this share of them has to."""

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
    longest_hold: float = math.inf,
) -> dict[str, Any]:
    """``recent`` of ``/stats.json``: what has happened between two moments.

    :param row: of a pool, see pool/metrics.py.
    :param before: the same, ``seconds`` ago; None if it had not counted anything.
    :param samples: of the last LATELY_SECONDS.
    :param now: when the row was read, on their clock.
    :param longest_hold: as far as it is known.
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
    holds = Durations(row, before, metrics.HELD_SECONDS, longest_hold)
    return {
        "seconds": seconds,
        "acquired": acquired,
        "acquired_per_second": acquired / seconds if seconds else 0.0,
        "waited": waited,
        # At most: the alias of a worker that has died may have taken counts along.
        "waited_share": min(1.0, (waited + refused + waiting) / asked) if asked else None,
        "timeouts": refused,
        "shed": risen(metrics.SHED),
        "failed": risen(metrics.FAILED),
        "wait_p50_seconds": waits.quantile(0.5),
        "wait_p95_seconds": waits.quantile(0.95),
        "wait_mean_seconds": waits.mean(),
        "wait_p95_at_most_seconds": waits.bound(0.95),
        "asking_share": _asking_share([*between, Second(now, row)]),
        "held_p50_seconds": holds.quantile(0.5),
        "held_p95_seconds": holds.quantile(0.95),
        "held_mean_seconds": holds.mean(),
        "held_p95_at_most_seconds": holds.bound(0.95),
        "opened": risen(metrics.OPENED),
        "connect_errors": risen(metrics.CONNECT_ERRORS),
        **_last_failed(row, samples, now),
        "unanswered": risen(metrics.UNANSWERED),
        "lost_ago_seconds": _lost_ago([*samples, Second(now, row)], now),
        "hung_ago_seconds": _hung_ago(samples, now),
        "pressed_ago_seconds": _pressed_ago([*samples, Second(now, row)], now),
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


def _last_failed(row: Sequence[float], samples: Sequence[Second], now: float) -> dict[str, Any]:
    """Returns when an attempt to connect last failed, with which error, and whether one has worked
    since. Also if it was in a worker that has ended: a HUP is how a refused login is mended."""
    at = metrics.CONNECT_ERROR
    rows = [*(sample.row for sample in samples), row]
    code, failed, _ = max((each[at : at + 3] for each in rows), key=lambda error: error[1])
    return {
        "connect_failed_error": int(code) or None,
        "connect_failed_ago_seconds": max(0.0, now - failed) if failed else None,
        "connects_again": bool(failed) and max(each[at + 2] for each in rows) > failed,
    }


def is_out(row: Sequence[float]) -> bool:
    """Whether the database could not be used when the row was read."""
    return row[metrics.REACHABLE] == metrics.NO or row[metrics.STUCK] > 0


def silence(asked: float, answered: float | None) -> float:
    """Returns for how long nobody has got an answer, though somebody has asked.

    :param asked: seconds since the oldest question without an answer; 0 if there is none.
    :param answered: since the last answer.
    """
    return asked if answered is None else min(asked, answered)


def hang(in_use: float, in_statement: float, silent: float, usual: float) -> bool:
    """Whether statements hang: all connections in use wait for the server.

    :param silent: see :func:`silence`.
    :param usual: seconds for which a connection is held on the busiest route.
    """
    return 0 < in_use <= in_statement and silent >= max(HANGING_SECONDS, HANGING_TIMES * usual)


def hangs_on(oldest: float, ago: float) -> bool:
    """Whether a statement that hung some time ago has not been answered since.

    :param oldest: seconds since the oldest question without an answer; 0 if there is none.
    """
    return oldest >= HANGING_SECONDS + ago


def is_hanging(
    row: Sequence[float], now: float, usual: Callable[[], float], before: Second | None = None
) -> bool:
    """Whether statements hung, and requests waited or many hung, when the row was read.

    :param usual: asked only if that may be so.
    :param before: the sample before it, if there is one of the last seconds. What hung then hangs
        on until it is answered, also if the first statements of others are, which then wait, too.
    """
    if before is not None and before.hung_until >= before.at and not is_out(row):
        lasts = hangs_on(metrics.age(row[metrics.OLDEST_STATEMENT], now), now - before.at)
        many = row[metrics.WAITING] > 0 or row[metrics.IN_STATEMENT] >= MANY_HANG
        if lasts and many and 2 * row[metrics.IN_STATEMENT] > row[metrics.IN_USE]:
            return True
    last = row[metrics.LAST_ANSWER]
    silent = silence(
        metrics.age(row[metrics.OLDEST_STATEMENT], now), metrics.age(last, now) if last else None
    )
    numbers = row[metrics.IN_USE], row[metrics.IN_STATEMENT], silent
    matters = row[metrics.WAITING] > 0 or row[metrics.IN_USE] >= MANY_HANG
    may_be = matters and not is_out(row) and hang(*numbers, 0.0)
    return may_be and hang(*numbers, usual())


def are_slow(in_statement: float, oldest: float, usual: float) -> bool:
    """Whether statements hang beside others that are answered: they may wait for the lock of a row.

    :param oldest: seconds since the oldest question without an answer.
    :param usual: seconds for which a connection is held on the busiest route.
    """
    return in_statement >= MANY_HANG and oldest >= max(LONG_SECONDS, HANGING_TIMES * usual)


def hanging_statements(
    row: Sequence[float], now: float, usual: Callable[[], float], *, all_hang: bool
) -> int:
    """Returns how many statements hang: all that run, or some beside others that are answered. For
    the log and the alerts, by the rules of the page.

    :param usual: asked only if that may be so.
    :param all_hang: see :func:`is_hanging`.
    """
    numbers = row[metrics.IN_STATEMENT], metrics.age(row[metrics.OLDEST_STATEMENT], now)
    slow = are_slow(*numbers, 0.0) and not is_out(row) and are_slow(*numbers, usual())
    return int(row[metrics.IN_STATEMENT]) if all_hang or slow else 0


def _hung_ago(samples: Sequence[Second], now: float) -> float | None:
    """Returns how long ago statements hung, or made requests wait; None if nothing of that is left
    in the numbers of the last seconds."""
    until = max((sample.hung_until for sample in samples), default=0.0)
    if not until or now - until >= RECENT_SECONDS + BETWEEN_SECONDS:
        return None
    return max(0.0, now - until)


def _pressed_ago(samples: Sequence[Second], now: float) -> float | None:
    """Returns how long ago a request was last refused, or waited for longer than a moment, or many
    waited; None if that is not in the samples."""
    for before, sample in reversed(list(pairwise(samples))):
        row = sample.row
        acquired, waited, refused = (
            row[key] - before.row[key]
            for key in (metrics.ACQUIRED, metrics.WAITED, metrics.TIMEOUTS)
        )
        longest = row[metrics.LONGEST_WAIT] if waited > 0 else 0.0
        if row[metrics.WAITING]:
            longest = max(longest, metrics.age(row[metrics.OLDEST_WAIT], sample.at))
        many = waited > 0 and waited >= MANY_WAIT * acquired
        if refused > 0 or many or longest >= SHORT_WAIT_SECONDS:
            return max(0.0, now - sample.at)
    return None


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
        self._total, *self.counts = (max(0.0, a - b) for a, b in zip(now, then, strict=True))
        """How many fell in each bucket."""
        lowest = sum(n * low for n, low in zip(self.counts, _LOWER, strict=True))
        highest = max((low for n, low in zip(self.counts, _LOWER, strict=True) if n), default=0.0)
        # None can be longer than what is left of the sum when all others were as short as their
        # buckets allow.
        self._longest = min(longest, highest + max(0.0, self._total - lowest))

    def mean(self) -> float | None:
        """Returns the average, which is exact; None if there are none."""
        many = sum(self.counts)
        return self._total / many if many else None

    def bound(self, share: float) -> float | None:
        """Returns the seconds that this share of them has surely not exceeded: the end of a bucket,
        or the longest of them. None if there are none, or that is not known."""
        rank, below = share * sum(self.counts), 0.0
        for bound, inside in zip((*BUCKET_BOUNDS_SECONDS, math.inf), self.counts, strict=True):
            below += inside
            if rank and below >= rank:
                longest = min(bound, self._longest)
                return longest if longest < math.inf else None
        return None

    def quantile(self, share: float) -> float | None:
        """Returns the seconds that this share of the durations did not exceed, as an estimate;
        never more than the longest of them, as far as that is known. None if there are none."""
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
