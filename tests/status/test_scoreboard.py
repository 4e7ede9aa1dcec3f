"""The shared statistics: one writer for each number, and nothing lost when a worker dies."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve.driver import statements as sql
from pooled_serve.pool import stats
from pooled_serve.status import scoreboard as board_module
from pooled_serve.status.listener import as_stats
from pooled_serve.status.scoreboard import PLACES, SLOTS, Board, Place


def _forked(child: Callable[[], object]) -> int:
    """The process id of a child that does this, and waits to be killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os.write(writer, b"done")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read(4) == b"done"
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _claimed(board: Board) -> int:
    slot = board.claim()
    assert slot is not None
    return slot


def _count(board: Board, slot: int, number: int, alias: str = "default") -> None:
    board.enter(slot)
    place = board.place(slot, alias)
    assert place is not None
    place.label(alias, "MariaDB 10.11", "127.0.0.1:3306/shop")
    place.row[stats.ACQUIRED] += number
    place.row[stats.IN_USE] = 3
    place.row[stats.CAP] = 10


def _acquired(board: Board) -> dict[str, int]:
    return {
        alias: pool["acquired_total"]
        for alias, pool in as_stats(board.read(), board.workers(), 0.0)["pools"].items()
    }


def test_what_a_killed_worker_counted_is_kept() -> None:
    board = Board()
    slot = _claimed(board)
    pid = _forked(lambda: _count(board, slot, 7))
    assert board.workers() == {slot: pid}
    assert _acquired(board) == {"default": 7}
    _kill(pid)
    board.retire(slot)
    (reading,) = board.read()
    assert reading.row[stats.ACQUIRED] == 7
    assert reading.row[stats.IN_USE] == reading.row[stats.CAP] == 0, "gauges are of the living"
    assert board.workers() == {}


def test_the_next_worker_in_a_slot_goes_on_with_its_counters() -> None:
    board = Board()
    for n in range(1, 6):
        slot = _claimed(board)
        assert slot == 1
        _kill(_forked(lambda: _count(board, 1, 10)))
        assert _acquired(board) == {"default": 10 * n}
        board.retire(slot)
        assert _acquired(board) == {"default": 10 * n}


def test_slots_are_reused_lowest_first() -> None:
    board = Board()
    assert [board.claim() for _ in range(4)] == [1, 2, 3, 4]
    board.retire(2)
    board.retire(3)
    assert [board.claim() for _ in range(3)] == [2, 3, 5]
    board.retire(None)  # a worker without one
    board.retire(99)


def test_an_alias_keeps_its_place_whatever_comes_first() -> None:
    board = Board()
    slot = _claimed(board)
    for aliases in (["default", "replica"], ["replica", "archive", "default"]):
        for alias in aliases:
            _count(board, slot, 1, alias)
        board.retire(slot)
        assert board.claim() == slot
    assert _acquired(board) == {"default": 2, "replica": 2, "archive": 1}


def test_a_full_board_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    slots = [board.claim() for _ in range(SLOTS + 3)]
    assert slots == [*range(1, SLOTS + 1), None, None, None]
    assert len(caplog.records) == 1
    board = Board()
    slot = _claimed(board)
    places = [board.place(slot, f"db{n}") for n in range(PLACES + 3)]
    assert places[PLACES:] == [None] * 3
    assert None not in places[:PLACES]
    assert len(caplog.records) == 2


class Slow:
    """Numbers that take a while to write, so that a reader comes in between."""

    def __init__(self, numbers: Any) -> None:
        self._numbers = numbers

    def __getitem__(self, i: int) -> float:
        return self._numbers[i]

    def __setitem__(self, i: int, number: float) -> None:
        self._numbers[i] = number
        if i == stats.ACQUIRED:
            time.sleep(0.001)


def test_a_reader_never_sees_numbers_on_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master adds to the past and clears the live numbers; in between they count twice."""
    monkeypatch.setattr(board_module, "LOOKS", 1_000_000)  # a busy machine may halt it there
    board = Board()
    slot = _claimed(board)
    counted = memoryview(mmap.mmap(-1, 8)).cast("q")

    def count() -> None:
        counted[0] += 1
        _count(board, slot, 1)

    def watch() -> None:
        moves, last = 0, 0
        while moves < 100:
            least = counted[0] - 1
            now = _acquired(board)["default"]
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
    places = board._places

    def slow_places(*args: Any, **options: Any) -> Iterator[Place]:
        for place in places(*args, **options):
            place.past = Slow(place.past)
            yield place

    monkeypatch.setattr(board, "_places", slow_places)
    ended = 0
    while not ended:
        board.retire(slot)
        board.claim()
        count()
        time.sleep(0.001)
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0
    assert _acquired(board)["default"] == counted[0] >= 100


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_any_text_comes_back_as_far_as_it_fits(alias: str, engine: str, server: str) -> None:
    board = Board()
    slot = _claimed(board)
    place = board.place(slot, alias or "x")
    assert place is not None
    place.label(alias or "x", engine, server)
    (reading,) = board.read()
    for text, read in (
        (alias or "x", reading.alias),
        (engine, reading.engine),
        (server, reading.server),
    ):
        assert text.startswith(read)
        assert read == text or len(text.encode()) > 40


def test_the_live_rows_add_up() -> None:
    rows = [[0.0] * stats.ROW_LENGTH for _ in range(3)]
    for n, row in enumerate(rows, start=1):
        row[stats.ACQUIRED] = row[stats.IN_USE] = n
        row[stats.OLDEST_HELD] = 100.0 - n
    rows[1][stats.REACHABLE], rows[2][stats.REACHABLE] = stats.NO, stats.YES
    rows[0][stats.OLDEST_HELD] = 0.0  # nobody holds one there
    summed = stats.by_name(stats.total(rows), now=100.0)
    assert summed["acquired_total"] == summed["in_use"] == 6
    assert summed["oldest_held_seconds"] == 3.0
    assert summed["reachable"] is False


@given(
    st.lists(st.floats(0, 100, allow_nan=False), max_size=50),
    st.lists(st.floats(0, 100, allow_nan=False), max_size=50),
    st.integers(0, 50),
)
def test_histograms_are_cumulative_and_count_everybody(
    served: list[float], in_vain: list[float], at_once: int
) -> None:
    from bisect import bisect_left

    row = [0.0] * stats.ROW_LENGTH
    row[stats.ACQUIRED], row[stats.WAITED] = len(served) + at_once, len(served)
    waits = served + in_vain
    for seconds in waits:
        row[stats.WAIT_BUCKETS + bisect_left(stats.BUCKET_BOUNDS_SECONDS, seconds)] += 1
    (metric,) = (metric for metric in stats.METRICS if metric.key == "wait_seconds")
    counts = stats.buckets(metric, row)
    assert counts["+Inf"] == len(waits) + at_once
    for bound in stats.BUCKET_BOUNDS_SECONDS:
        assert counts[f"{bound:g}"] == at_once + sum(seconds <= bound for seconds in waits)


def test_counters_come_before_gauges_and_nothing_overlaps() -> None:
    """A worker that dies leaves the first part of its row, and loses the second."""
    places = [n for m in stats.METRICS for n in range(m.start, m.start + m.width)]
    assert places == list(range(stats.ROW_LENGTH))
    lasting = {stats.Kind.COUNTER, stats.Kind.HISTOGRAM}
    for metric in stats.METRICS:
        assert (metric.kind in lasting) == (metric.start < stats.FIRST_GAUGE), metric.key
    assert len({metric.key for metric in stats.METRICS}) == len(stats.METRICS)


def test_every_reason_has_a_place() -> None:
    reasons = sql.REASONS | {
        *("several statements", "several results", "unbuffered cursor", "direct use", "unknown")
    }
    assert reasons <= set(stats.PIN_REASONS)


def test_a_place_is_whole_words() -> None:
    assert board_module._PLACE % 8 == board_module._SLOT % 8 == board_module._HEAD % 8 == 0


def test_it_is_stopping_when_no_worker_is_to_stay() -> None:
    board = Board()
    first, second = _claimed(board), _claimed(board)
    board.enter(first)
    board.enter(second)
    board.leave(first)
    assert board.workers() == {first: os.getpid(), second: os.getpid()}
    assert not board.stopping
    board.leave(second)
    assert board.stopping


def test_what_was_last_known_of_a_database_outlives_the_workers() -> None:
    board = Board()
    assert board.lost(["a", "b"]) == ["a", "b"]
    slot = _claimed(board)
    board.enter(slot)
    for alias, reachable in (("a", stats.YES), ("c", stats.NO)):
        place = board.place(slot, alias)
        assert place is not None
        place.row[stats.REACHABLE] = reachable
    assert board.lost(["a", "b"]) == ["b", "c"]
    board.retire(slot)
    assert board.lost(["a", "b"]) == ["b", "c"]
