"""Troubles of a pool: how long each has lasted, and what it has cost.

The page tells of a trouble for some seconds after its end, and the numbers of these seconds do not
contain one of minutes. So whoever samples a pool notes since when a trouble lasts, and what had
been counted before it.
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
# until when it has made requests wait. Behind that, what had been counted before it.
_UNTIL, _BEGAN, _LASTED, _FELT, _COUNTS = range(5)
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


def stretches(
    at: float, row: Sequence[float], last_at: float, hung_until: float
) -> dict[str, Stretch]:
    """Returns the troubles of a sample, by KINDS.

    :param last_at: when the one before it was taken.
    :param hung_until: see :class:`figures.Second`.
    """
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
        self, found: Mapping[str, Stretch], before: Callable[[float], Sequence[float] | None]
    ) -> None:
        """Note what a sample has.

        :param before: returns the row of the last sample before a moment; None if there is none,
            and all that was counted counts.
        """
        for kind, stretch in found.items():
            words = self._of[kind]
            until, lasted = words[_UNTIL], words[_LASTED]
            if not until or stretch.since - max(until, words[_FELT]) >= SAME_SECONDS:
                until, lasted, base = stretch.since, 0.0, before(stretch.since)
                words[_UNTIL] = 0.0  # not to be read until it is whole
                words[_BEGAN] = stretch.since
                for i, index in enumerate(COUNTED.values(), _COUNTS):
                    words[i] = base[index] if base is not None else 0.0
            words[_LASTED] = lasted + max(0.0, stretch.until - max(until, stretch.since))
            words[_FELT] = stretch.felt
            words[_UNTIL] = max(until, stretch.until)

    def read(self, kind: str, row: Sequence[float]) -> dict[str, Any] | None:
        """Returns the last trouble of a kind; None if there was none. ``seconds`` are those from
        its beginning to its end, ``lasted_seconds`` those without its pauses; the rest was counted
        from its beginning on.

        :param row: the pool's of this moment.
        """
        until, began, lasted, _, *counts = self._of[kind]
        if not until:
            return None
        costs = {
            key: max(0, int(row[index] - then))
            for (key, index), then in zip(COUNTED.items(), counts, strict=True)
        }
        return {"seconds": until - began, "lasted_seconds": lasted, **costs}
