"""How often a line of the log is repeated, and since when it counts."""

from __future__ import annotations

import time

import pytest

from pooled_serve.status.repeats import Repeats


def test_a_line_is_repeated_ever_more_rarely() -> None:
    lines = Repeats()
    written = [now for now in range(300) if lines.due(float(now))]
    assert written == [0, 1, 11, 71, 131, 191, 251]
    assert lines.due(251 + 121.0)
    assert lines.due(251 + 122.0), "anew, after it was not needed for so long"


def test_another_trouble_has_its_first_line_at_once() -> None:
    lines = Repeats()
    assert [now for now in range(30) if lines.event(float(now))] == [0, 1, 11]
    lines.over(30.0)
    assert not lines.event(34.9), "it was over for a moment only"
    lines.over(35.0)
    lines.over(39.0)
    assert [now for now in range(40, 60) if lines.event(float(now))] == [40, 41, 51]


NOON = time.mktime((2026, 7, 1, 12, 0, 0, 0, 0, -1))
"""Of the machine's time zone, as the log has it."""


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (0.01, ", 10 times"),
        (0.1, ", 10 times since 12:00:00"),
        (3, ", 10 times since 12:00:00"),
        (15, ", 10 times since 2026-07-01 12:00:00"),
    ],
)
def test_what_was_counted_hours_ago_is_not_told_as_of_now(
    monkeypatch: pytest.MonkeyPatch, hours: float, said: str
) -> None:
    """A database is restarted at noon: ten statements find their connections dead at once."""
    lines = Repeats()
    assert [lines.count(0.01 * i) for i in range(10)] == ["", *[None] * 9]
    later = 3600.0 * hours
    monkeypatch.setattr(time, "time", lambda: NOON + later)
    assert lines.count(later) == said
    assert lines.rest(later) == (None, "")
    lines.count(later + 0.1)
    lines.count(later + 200.0)
    assert lines.rest(later + 201.0)[0] is None, "all were told"


def test_a_last_line_says_when_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Repeats()
    lines.count(0.0)
    lines.count(0.5, "number 2")
    monkeypatch.setattr(time, "time", lambda: NOON + 7200.0)
    assert lines.rest(7200.5) == (", at 12:00:00", "number 2")
