"""The shared statistics: one writer for each number, and nothing lost when a worker dies."""

from __future__ import annotations

import copy
import mmap
import os
import time
from collections.abc import Iterator, MutableSequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve.driver import statements as sql
from pooled_serve.pool import metrics
from pooled_serve.pool.metric import Kind
from pooled_serve.status import scoreboard as module
from pooled_serve.status.load import LoadRow
from pooled_serve.status.scoreboard import MAX_POOLS, MAX_WORKERS, Loss, PoolRow, Scoreboard
from pooled_serve.status.stats import as_stats
from support.processes import forked


def _allocated(scoreboard: Scoreboard) -> int:
    slot = scoreboard.allocate()
    assert slot is not None
    return slot


def _count(scoreboard: Scoreboard, slot: int, number: int, alias: str = "default") -> None:
    scoreboard.register(slot)
    row = scoreboard.pool_row(slot, alias)
    assert row is not None
    row.label(alias, "MariaDB 10.11", "127.0.0.1:3306/shop")
    row.current[metrics.ACQUIRED] += number
    row.current[metrics.IN_USE] = 3
    row.current[metrics.CAP] = 10


def _acquired(scoreboard: Scoreboard) -> dict[str, int]:
    return {
        alias: pool["acquired_total"]
        for alias, pool in as_stats(scoreboard.read(), scoreboard.workers(), 0.0)["pools"].items()
    }


def test_what_a_killed_worker_counted_is_kept() -> None:
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    with forked(lambda: _count(scoreboard, slot, 7)) as pid:
        assert scoreboard.workers() == {slot: pid}
        assert _acquired(scoreboard) == {"default": 7}
    scoreboard.retire(slot)
    (snapshot,) = scoreboard.read()
    assert snapshot.row[metrics.ACQUIRED] == 7
    assert snapshot.row[metrics.IN_USE] == snapshot.row[metrics.CAP] == 0, (
        "gauges are of the living"
    )
    assert scoreboard.workers() == {}


def test_the_next_worker_in_a_slot_goes_on_with_its_counters() -> None:
    scoreboard = Scoreboard()
    for n in range(1, 6):
        slot = _allocated(scoreboard)
        assert slot == 1
        with forked(lambda: _count(scoreboard, 1, 10)):
            pass
        assert _acquired(scoreboard) == {"default": 10 * n}
        scoreboard.retire(slot)
        assert _acquired(scoreboard) == {"default": 10 * n}


def test_slots_are_reused_lowest_first() -> None:
    scoreboard = Scoreboard()
    assert [scoreboard.allocate() for _ in range(4)] == [1, 2, 3, 4]
    scoreboard.retire(2)
    scoreboard.retire(3)
    assert [scoreboard.allocate() for _ in range(3)] == [2, 3, 5]
    scoreboard.retire(None)  # a worker without one
    scoreboard.retire(99)


def test_an_alias_keeps_its_place_whatever_comes_first() -> None:
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    for aliases in (["default", "replica"], ["replica", "archive", "default"]):
        for alias in aliases:
            _count(scoreboard, slot, 1, alias)
        scoreboard.retire(slot)
        assert scoreboard.allocate() == slot
    assert _acquired(scoreboard) == {"default": 2, "replica": 2, "archive": 1}


def test_a_full_scoreboard_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    scoreboard = Scoreboard()
    slots = [scoreboard.allocate() for _ in range(MAX_WORKERS + 3)]
    assert slots == [*range(1, MAX_WORKERS + 1), None, None, None]
    assert len(caplog.records) == 1
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    rows = [scoreboard.pool_row(slot, f"db{n}") for n in range(MAX_POOLS + 3)]
    assert rows[MAX_POOLS:] == [None] * 3
    assert None not in rows[:MAX_POOLS]
    assert len(caplog.records) == 2


class Slow:
    """Numbers that take a while to write, so that a reader comes in between."""

    def __init__(self, numbers: MutableSequence[float]) -> None:
        self._numbers = numbers

    def __getitem__(self, i: int) -> float:
        return self._numbers[i]

    def __setitem__(self, i: int, number: float) -> None:
        self._numbers[i] = number
        if i == metrics.ACQUIRED:
            time.sleep(0.001)


def test_a_reader_never_sees_numbers_on_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master adds to the past and clears the live numbers; in between they count twice."""
    monkeypatch.setattr(module, "READ_ATTEMPTS", 1_000_000)  # a busy machine may halt it there
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    counted = memoryview(mmap.mmap(-1, 8)).cast("q")

    def count() -> None:
        counted[0] += 1
        _count(scoreboard, slot, 1)

    def watch() -> None:
        moves, last = 0, 0
        while moves < 100:
            least = counted[0] - 1
            now = _acquired(scoreboard)["default"]
            assert max(last, least) <= now <= counted[0], "each counts once"
            moves += now > last
            last = now
        os._exit(0)

    count()
    pid = os.fork()
    if pid == 0:
        try:
            watch()
        finally:
            os._exit(1)
    rows = scoreboard._pool_rows

    def slow_rows(*args: Any, **options: Any) -> Iterator[PoolRow]:
        for row in rows(*args, **options):
            row.retired = Slow(row.retired)
            yield row

    monkeypatch.setattr(scoreboard, "_pool_rows", slow_rows)
    ended = 0
    while not ended:
        scoreboard.retire(slot)
        scoreboard.allocate()
        count()
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0
    assert _acquired(scoreboard)["default"] == counted[0] >= 100


def test_nor_the_processor_time_of_a_worker_that_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    scoreboard.load_row(slot).note(5.0, 2.0, None, None, 0.0, "")
    counters = {"cpu_seconds_total": 5.0, "blocked_seconds_total": 2.0}
    attempts = []

    def until_it_has_moved(seconds: float) -> None:
        attempts.append(seconds)
        if len(attempts) == 3:
            begin(row, 0.0)
            scoreboard._words[0] += 1

    begin = LoadRow.begin
    row = scoreboard.load_row(slot)

    def read_in_between(moving: LoadRow, now: float) -> None:
        """What was counted has been added to the past, and is not cleared yet."""
        monkeypatch.setattr(time, "sleep", until_it_has_moved)
        assert scoreboard.read_loads()[slot].counters == counters
        assert len(attempts) == 3
        scoreboard._words[0] -= 1

    monkeypatch.setattr(LoadRow, "begin", read_in_between)
    scoreboard.retire(slot)
    assert scoreboard.read_loads()[slot].counters == counters
    assert scoreboard.read_loads()[slot].gauges(10.0, 0.25)["seen_ago_seconds"] is None


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_comes_back_as_far_as_it_fits(alias: str, engine: str, server: str) -> None:
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    row = scoreboard.pool_row(slot, alias or "x")
    assert row is not None
    row.label(alias or "x", engine, server)
    (snapshot,) = scoreboard.read()
    for text, read in (
        (alias or "x", snapshot.alias),
        (engine, snapshot.engine),
        (server, snapshot.server),
    ):
        assert text.startswith(read)
        assert read == text or len(text.encode()) > 40


def test_the_live_rows_add_up() -> None:
    rows = [[0.0] * metrics.ROW_LENGTH for _ in range(3)]
    for n, row in enumerate(rows, start=1):
        row[metrics.ACQUIRED] = row[metrics.IN_USE] = n
        row[metrics.OLDEST_HELD] = 100.0 - n
    rows[1][metrics.REACHABLE], rows[2][metrics.REACHABLE] = metrics.NO, metrics.YES
    rows[0][metrics.OLDEST_HELD] = 0.0  # nobody holds one there
    rows[0][metrics.LOST], rows[2][metrics.LOST] = 88.0, 93.0
    for row, code, at in zip(rows, (2003, 1040, 1045), (50.0, 60.0, 40.0), strict=True):
        row[metrics.CONNECT_ERROR], row[metrics.CONNECT_ERROR + 1] = code, at
    summed = metrics.by_name(metrics.total(rows), now=100.0)
    assert summed["acquired_total"] == summed["in_use"] == 6
    assert summed["oldest_held_seconds"] == 3.0
    assert summed["reachable"] is False
    assert summed["lost_seconds"] == 12.0
    assert summed["connect_error"] == 1040, "the latest"
    nothing = metrics.by_name([0.0] * metrics.ROW_LENGTH, now=100.0)
    assert nothing["connect_error"] is None


@given(
    st.lists(st.floats(0, 100, allow_nan=False), max_size=50),
    st.lists(st.floats(0, 100, allow_nan=False), max_size=50),
    st.integers(0, 50),
)
def test_histograms_are_cumulative_and_count_everybody(
    served: list[float], in_vain: list[float], at_once: int
) -> None:
    from bisect import bisect_left

    row = [0.0] * metrics.ROW_LENGTH
    row[metrics.ACQUIRED], row[metrics.WAITED] = len(served) + at_once, len(served)
    waits = served + in_vain
    for seconds in waits:
        row[metrics.WAIT_BUCKETS + bisect_left(metrics.BUCKET_BOUNDS_SECONDS, seconds)] += 1
    (metric,) = (metric for metric in metrics.METRICS if metric.key == "wait_seconds")
    counts = metrics.buckets(metric, row)
    assert counts["+Inf"] == len(waits) + at_once
    for bound in metrics.BUCKET_BOUNDS_SECONDS:
        assert counts[f"{bound:g}"] == at_once + sum(seconds <= bound for seconds in waits)


def test_counters_come_before_gauges_and_nothing_overlaps() -> None:
    """A worker that dies leaves the first part of its row, and loses the second."""
    rows = [n for m in metrics.METRICS for n in range(m.start, m.start + m.width)]
    assert rows == list(range(metrics.ROW_LENGTH))
    lasting = {Kind.COUNTER, Kind.HISTOGRAM}
    for metric in metrics.METRICS:
        assert (metric.kind in lasting) == (metric.start < metrics.FIRST_GAUGE), metric.key
    assert len({metric.key for metric in metrics.METRICS}) == len(metrics.METRICS)


def test_every_reason_has_a_place() -> None:
    reasons = sql.REASONS | {
        *("several statements", "several results", "unbuffered cursor", "direct use", "unknown")
    }
    for reason in sorted(reasons - set(metrics.PIN_REASONS)):
        pytest.fail(f"PIN_REASONS in pool/metrics.py lacks {reason!r}: add it", pytrace=False)


def test_a_pool_row_is_whole_words() -> None:
    assert module._POOL_ROW_BYTES % 8 == module._SLOT_BYTES % 8 == module._HEAD_BYTES % 8 == 0


def test_it_knows_how_many_workers_are_yet_to_serve() -> None:
    scoreboard = Scoreboard()
    first, second, third = (scoreboard.allocate() or 0 for _ in range(3))
    assert scoreboard.starting == 3
    scoreboard.register(first)
    assert (len(scoreboard.workers()), scoreboard.starting) == (1, 2)
    scoreboard.retire(second)  # it could not load the project
    scoreboard.register(third)
    assert scoreboard.starting == 0


def test_it_is_stopping_when_no_worker_is_to_stay() -> None:
    scoreboard = Scoreboard()
    first, second = _allocated(scoreboard), _allocated(scoreboard)
    scoreboard.register(first)
    scoreboard.register(second)
    scoreboard.mark_stopping(first)
    assert scoreboard.workers() == {first: os.getpid(), second: os.getpid()}
    assert not scoreboard.stopping
    scoreboard.mark_stopping(second)
    assert scoreboard.stopping
    third, fourth = _allocated(scoreboard), _allocated(scoreboard)
    assert not scoreboard.stopping, "they are about to serve"
    scoreboard.retire(third)  # it has not come so far
    scoreboard.register(fourth)
    assert not scoreboard.stopping
    fifth = _allocated(scoreboard)
    scoreboard.mark_stopping(fourth)
    assert not scoreboard.stopping
    scoreboard.mark_stopping(fifth)
    assert scoreboard.stopping, "it was told while it loaded the project"
    scoreboard.retire(fourth)
    assert scoreboard.stopping


def test_a_worker_that_nobody_told_to_end_has_died() -> None:
    scoreboard = Scoreboard()
    for deaths, died in enumerate([False, True, False], 0):
        slot = _allocated(scoreboard)
        scoreboard.register(slot)
        scoreboard.mark_stopping(slot, died=died)
        assert scoreboard.stopping, "whatever the reason"
        assert scoreboard.ending() == {slot}
        assert scoreboard.dying() == ({slot} if died else set())
        scoreboard.retire(slot)
        assert scoreboard.deaths == min(deaths, 1)


def test_it_is_stopping_from_when_the_master_is_told() -> None:
    scoreboard = Scoreboard()
    assert scoreboard.stopping, "there is no worker yet"
    first, _second = _allocated(scoreboard), _allocated(scoreboard)
    scoreboard.register(first)
    assert not scoreboard.stopping
    scoreboard.mark_stopping(first, died=True)
    assert scoreboard.dying() == {first}
    scoreboard.mark_ending()
    assert scoreboard.stopping
    assert not scoreboard.dying(), "all are told to end now"


def test_what_was_last_known_of_a_database_outlives_the_workers() -> None:
    scoreboard = Scoreboard()
    assert [*scoreboard.unreachable(["a", "b"])] == ["a", "b"]
    slot = _allocated(scoreboard)
    scoreboard.register(slot)
    for alias, reachable in (("a", metrics.YES), ("c", metrics.NO)):
        row = scoreboard.pool_row(slot, alias)
        assert row is not None
        row.current[metrics.REACHABLE] = reachable
        row.current[metrics.LOST], row.current[metrics.LOGIN_REFUSED] = 7.0, 1.0
    known = {"b": Loss(), "c": Loss(7.0, refused=True)}
    assert scoreboard.unreachable(["a", "b"]) == known
    assert [scoreboard.is_used(alias) for alias in "abc"] == [True, False, False]
    worker = _forked_with(scoreboard)
    scoreboard.retire(slot)
    assert scoreboard.unreachable(["a", "b"]) == known
    assert worker.unreachable(["a", "b"]) == known, "also if the former ones have ended meanwhile"
    assert not scoreboard.is_used("a")


def test_a_worker_that_ends_speaks_for_no_other() -> None:
    scoreboard = Scoreboard()
    slot = _allocated(scoreboard)
    scoreboard.register(slot)
    row = scoreboard.pool_row(slot, "a")
    assert row is not None
    row.current[metrics.REACHABLE] = metrics.YES
    assert scoreboard.is_used("a")
    scoreboard.mark_stopping(slot)
    assert not scoreboard.is_used("a")


def _forked_with(scoreboard: Scoreboard) -> Scoreboard:
    """What the worker has that is forked next: the same memory, and a copy of the rest."""
    _allocated(scoreboard)
    forks: Scoreboard = copy.copy(scoreboard)
    forks._last_losses = dict(scoreboard._last_losses)
    return forks
