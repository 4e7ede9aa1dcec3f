"""Troubles of a pool: how long each has lasted, and what it has cost.

The page tells of a trouble for some seconds after its end, but if it has lasted for minutes, the
numbers of those seconds hold only its end. So each sample of a pool records when a trouble began
and what had been counted before it. Requests also wait for other reasons, so the counting stops
when the trouble is over and the last request that began to wait in it has been answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pooled_serve.pool import metrics
from pooled_serve.status.figures import BETWEEN_SECONDS, RECENT_SECONDS, is_out

OUTAGE, HANG, CONNECTS = KINDS = ("outage", "hang", "failing_connects")
"""The database could not be used; all statements hung; attempts to connect failed."""

SAME_SECONDS = RECENT_SECONDS + BETWEEN_SECONDS
"""For so long after its end the page tells of a trouble. What comes back meanwhile is the same."""

COUNTED = {
    "waited": metrics.WAITED,
    "timeouts": metrics.TIMEOUTS,
    "shed": metrics.SHED,
    "failed": metrics.FAILED,
    "connect_errors": metrics.CONNECT_ERRORS,
}
"""What a trouble costs: keys as in ``recent`` of ``/stats.json``."""

_COUNTED_IN = {OUTAGE: COUNTED | {"waited": metrics.OUTAGE_WAITS}}
"""Of the requests that wait when the database is lost, some wait for a pool that is too small."""


def told(recent: Mapping[str, Any]) -> Iterator[str]:
    """Returns the kinds of trouble that are in the numbers of the last seconds.

    :param recent: of ``/stats.json``.
    """
    if recent["lost_ago_seconds"] is not None:
        yield OUTAGE
    if recent["hung_ago_seconds"] is not None:
        yield HANG
    if recent["connect_errors"]:
        yield CONNECTS


# Until when it lasted, 0 while the rest is written; since when; for how long without its pauses;
# until when it has made requests wait; the last sample in which it lasted, or the first in line had
# begun to wait in it. Behind that, what it has cost; and the counters that are part of that.
_UNTIL, _BEGAN, _LASTED, _FELT, _LIVE_AT, _COSTS = range(6)
_COUNTS = _COSTS + len(COUNTED)
_WORDS = _COUNTS + len(COUNTED)
EPISODE_WORDS = len(KINDS) * _WORDS
"""Numbers that the troubles of a database take."""


class Stretch(NamedTuple):
    """What a sample has of a trouble, in monotonic seconds."""

    since: float
    until: float
    """0 if it was over before the sample."""
    felt: float
    """When requests last waited because of it."""


def _stretches(
    at: float, row: Sequence[float], last_at: float, hung_until: float
) -> dict[str, Stretch]:
    """Returns the troubles of a sample, by KINDS; see :meth:`Episodes.note`."""
    found = {}
    silent_since = max(row[metrics.OLDEST_STATEMENT], row[metrics.LAST_ANSWER])
    felt, failed = row[metrics.LAST_OUTAGE], row[metrics.CONNECT_ERROR + 1]
    if is_out(row):
        found[OUTAGE] = Stretch(row[metrics.LOST] or silent_since or at, at, at)
    elif felt > last_at:
        found[OUTAGE] = Stretch(felt, 0.0, felt)
    if hung_until >= at:
        found[HANG] = Stretch(min(silent_since or at, at), at, at)
    if failed > last_at:
        found[CONNECTS] = Stretch(failed, failed, failed)
    return found


class Episodes:
    """The last trouble of each kind.

    :param numbers: EPISODE_WORDS of memory that all processes share.
    """

    def __init__(self, numbers: Any) -> None:
        self._of = {kind: numbers[i * _WORDS : (i + 1) * _WORDS] for i, kind in enumerate(KINDS)}

    def note(
        self,
        at: float,
        last_at: float,
        row: Sequence[float],
        hung_until: float,
        before: Callable[[float], Sequence[float] | None],
    ) -> None:
        """Note what a sample has.

        :param last_at: when the one before it was taken.
        :param hung_until: see :class:`figures.Second`.
        :param before: returns the row of the last sample before a moment; None if there is none,
            and all that was counted counts.
        """
        found = _stretches(at, row, last_at, hung_until)
        waits_since = row[metrics.OLDEST_WAIT] if row[metrics.WAITING] else 0.0
        for kind, words in self._of.items():
            was_live = bool(words[_UNTIL]) and words[_LIVE_AT] == last_at
            is_live = was_live and 0 < waits_since <= words[_UNTIL]
            if stretch := found.get(kind):
                # A queue that goes on after it may be that of a pool which is too small.
                is_new = stretch.since - words[_FELT] > BETWEEN_SECONDS
                is_live = is_live or stretch.until > 0 or is_new
                _prolong(words, stretch)
            if not is_live and not was_live:
                continue
            counts, indexes = words[_COUNTS:], _COUNTED_IN.get(kind, COUNTED).values()
            if not was_live and (base := before(found[kind].since)) is not None:
                for i, index in enumerate(indexes):
                    counts[i] = max(counts[i], base[index])
            # Also if it is over: the last of its requests have left between two samples.
            _add(words[_COSTS:_COUNTS], kind, row, counts)
            for i, index in enumerate(indexes):
                counts[i] = row[index]
            if is_live:
                words[_LIVE_AT] = at

    def read(self, kind: str, row: Sequence[float], last_at: float) -> dict[str, Any] | None:
        """Returns the last trouble of a kind; None if there was none. ``seconds`` are those from
        its beginning to its end, ``lasted_seconds`` those without its pauses; the rest is what it
        has cost.

        :param row: the pool's of this moment.
        :param last_at: when the last sample was taken.
        """
        words = self._of[kind]
        until, began, lasted = words[:_FELT]
        if not until:
            return None
        costs = list(words[_COSTS:_COUNTS])
        if words[_LIVE_AT] == last_at:
            _add(costs, kind, row, words[_COUNTS:])
        numbers = dict(zip(COUNTED, map(int, costs), strict=True))
        return {"seconds": until - began, "lasted_seconds": lasted, **numbers}


def _add(costs: Any, kind: str, row: Sequence[float], before: Sequence[float]) -> None:
    """Add what has been counted since then."""
    for i, index in enumerate(_COUNTED_IN.get(kind, COUNTED).values()):
        costs[i] += max(0.0, row[index] - before[i])


def _prolong(words: Any, stretch: Stretch) -> None:
    """Note that a trouble has lasted for longer, or that another one has begun."""
    until, lasted = words[_UNTIL], words[_LASTED]
    if not until or stretch.since - max(until, words[_FELT]) >= SAME_SECONDS:
        until, lasted = stretch.since, 0.0
        words[_UNTIL] = 0.0  # not to be read until it is whole
        words[_BEGAN] = stretch.since
        for i in range(_COSTS, _COUNTS):
            words[i] = 0.0
    words[_LASTED] = lasted + max(0.0, stretch.until - max(until, stretch.since))
    words[_FELT] = stretch.felt
    words[_UNTIL] = max(until, stretch.until)
