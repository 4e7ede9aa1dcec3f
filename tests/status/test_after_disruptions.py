"""A database that could not be used: what of that must not be taken for a pool that is too small,
and for how long it is told."""

from __future__ import annotations

from typing import Any

import pytest

from pooled_serve.pool import metrics
from pooled_serve.status.advice import advice
from pooled_serve.status.figures import hanging_statements
from pooled_serve.status.figures import recent as recent_of
from pooled_serve.status.history import History
from pooled_serve.status.scoreboard import Snapshot
from pooled_serve.status.stats import as_stats, with_history
from support.answers import Answers


class Seconds:
    """A history of one pool, second by second."""

    def __init__(self) -> None:
        self.history = History()
        self.row: Any = metrics.new_row()
        self.at = 1000.3
        self.usual = 0.0

    def next(self, seconds: int = 1, **changes: float) -> None:
        retired = [0.0] * metrics.FIRST_GAUGE
        for _ in range(seconds):
            for name, value in changes.items():
                index = getattr(metrics, name.upper())
                self.row[index] = value + self.row[index] * (index < metrics.FIRST_GAUGE)
            self.row[metrics.MOST_IN_USE] = self.row[metrics.IN_USE]
            row = list(self.row)
            self.history.sample(
                lambda: [Snapshot(1, 1, "default", "", "", row, retired)],  # noqa: B023
                self.at,
                usual=lambda: self.usual,
            )
            self.at += 1

    def freeze(self, seconds: int, *, flagged_after: int, hang: int = 0) -> None:
        """The server answers nothing from now on; all connections are taken, and requests queue.

        :param hang: how many run statements of a second or more.
        """
        began = self.at - 0.4
        for second in range(seconds):
            known = second >= flagged_after
            self.next(
                in_use=12,
                waiting=8 * second + 3,
                oldest_wait=began,
                oldest_statement=began,
                in_statement=hang,
                last_answer=began - 0.2,
                stuck=float(known),
                last_outage=self.at if known else 0.0,
            )
        # The queue is served.
        self.next(
            waiting=0,
            oldest_wait=0.0,
            oldest_statement=0.0,
            last_answer=self.at,
            in_statement=0,
            stuck=0.0,
            waited=8 * seconds,
            acquired=8 * seconds,
            longest_wait=float(seconds),
            in_use=12,
        )
        self.next(longest_wait=0.0, in_use=2)

    def peaks(self) -> dict[str, Any]:
        return self.history.peaks("default", self.at - 0.5)["24h"]


def usual() -> Seconds:
    seconds = Seconds()
    seconds.next(30, in_use=2, acquired=10, last_answer=1.0)
    return seconds


@pytest.mark.parametrize("more", [0, 10])
@pytest.mark.parametrize(("lasts", "flagged_after"), [(20, 2), (3, 2), (4, 3)])
def test_peaks_are_those_of_a_pool_that_can_be_used(
    lasts: int, flagged_after: int, more: int
) -> None:
    """From its first second on, which is known to be one only later."""
    seconds = usual()
    seconds.freeze(lasts, flagged_after=flagged_after)
    seconds.next(more, in_use=2, acquired=10, last_answer=1.0)
    peaks = seconds.peaks()
    assert (peaks["in_use"], peaks["waiting"], peaks["wait_seconds"]) == (2, 0, 0)
    assert (peaks["waited"], peaks["refused"], peaks["occasions"]) == (0, 0, 0)
    stats: dict[str, Any] = Answers(peaks={"24h": peaks, "1h": peaks, "5m": peaks}).stats
    (sentence,) = advice(stats)
    assert sentence.name == "too large a pool", "and that is no reason to make it larger"


def test_a_lock_says_nothing_about_the_size_of_a_pool() -> None:
    """From the first second on in which all statements hung, whatever they took before that."""
    seconds = usual()
    seconds.freeze(9, flagged_after=99, hang=12)
    assert ago(seconds) == pytest.approx(2.5, abs=0.1)
    for more in (0, 12):
        seconds.next(more, in_use=2, acquired=10, last_answer=1.0)
        peaks = seconds.peaks()
        assert (peaks["in_use"], peaks["waiting"], peaks["wait_seconds"]) == (2, 0, 0)
        assert (peaks["waited"], peaks["occasions"]) == (0, 0)
    assert 8 * 12 <= seconds.history.lost_held("default", seconds.at) <= 12 * 12
    assert ago(seconds) is None


@pytest.mark.parametrize(("hang", "most"), [(9, 2), (3, 2), (2, 2)])
def test_nor_does_one_behind_which_nobody_waits_for_a_connection(hang: int, most: int) -> None:
    """There are more connections than clients: the page tells of hanging statements even so."""
    seconds = usual()
    began = seconds.at - 0.4
    numbers = {"in_use": hang, "in_statement": hang, "oldest_statement": began}
    seconds.next(60, **numbers, last_answer=began - 0.2)
    assert ago(seconds) == (pytest.approx(0.5, abs=0.1) if hang > 2 else None)
    seconds.next(5, in_use=2, in_statement=0, oldest_statement=0.0, last_answer=seconds.at)
    assert seconds.peaks()["in_use"] == most


def test_a_hang_lasts_until_what_hung_is_answered() -> None:
    """Requests come, whose first statements are answered; then they wait for the same lock."""
    seconds = usual()
    began = seconds.at - 0.4
    hang: dict[str, Any] = {"in_use": 3, "in_statement": 3, "oldest_statement": began}
    seconds.next(7, **hang, last_answer=began - 0.2)
    for in_use in (4, 5, 6):
        seconds.next(2, in_use=in_use, in_statement=in_use - 1, last_answer=seconds.at)
        assert ago(seconds) == pytest.approx(0.5, abs=0.1)
        assert seconds.history.hangs("default", seconds.at - 0.5)
    seconds.next(3, in_use=2, in_statement=0, oldest_statement=0.0, last_answer=seconds.at)
    assert ago(seconds) == pytest.approx(3.5, abs=0.1)
    assert not seconds.history.hangs("default", seconds.at - 0.5)
    seconds.next(9)
    assert seconds.peaks()["in_use"] == 2


@pytest.mark.parametrize("hup", [False, True])
@pytest.mark.parametrize(("worked", "again"), [(-0.1, False), (0.1, True), (2.0, True)])
def test_connects_work_again_once_one_has_since_the_last_that_failed(
    worked: float, again: bool, hup: bool
) -> None:
    """Also in the same second; and after a HUP, which ends the workers that know."""
    seconds = usual()
    row, failed = seconds.row, seconds.at - 0.2
    row[metrics.CONNECT_ERROR : metrics.CONNECT_ERROR + 3] = [1045.0, failed, failed + worked]
    seconds.next(2)
    if hup:
        row[metrics.CONNECT_ERROR : metrics.CONNECT_ERROR + 3] = [0.0, 0.0, 0.0]
    seconds.next(1)
    lately = seconds.history.lately("default", seconds.at)
    its = recent_of(row, None, 10.0, lately, seconds.at)
    assert its["connects_again"] == again
    assert its["connect_failed_error"] == 1045
    assert its["connect_failed_ago_seconds"] == pytest.approx(3.2)
    if hup:
        row[metrics.CONNECT_ERROR + 2] = seconds.at
        its = recent_of(row, None, 10.0, lately, seconds.at)
        assert its["connects_again"], "the new workers can"


def ago(seconds: Seconds) -> float | None:
    """How long ago the lock has last made a request wait."""
    now = seconds.at - 0.5
    lately = seconds.history.lately("default", now)
    found: float | None = recent_of(seconds.row, None, 10.0, lately, now)["hung_ago_seconds"]
    return found


def test_who_began_to_wait_in_a_hang_waits_because_of_it() -> None:
    seconds = usual()
    seconds.freeze(9, flagged_after=99, hang=12)
    began = seconds.at - 4.5
    seconds.next(5, waiting=3, oldest_wait=began, in_use=12)
    assert ago(seconds) == pytest.approx(0.5, abs=0.1)
    seconds.next(5, waiting=3, oldest_wait=seconds.at, in_use=12)
    assert ago(seconds) == pytest.approx(5.5, abs=0.1), "a queue of its own"


@pytest.mark.parametrize("changes", [{"hang": 11}, {"usual": 2.0}, {"lasts": 4}])
def test_long_statements_are_left_in_the_peaks(changes: dict[str, Any]) -> None:
    seconds = usual()
    seconds.usual = changes.get("usual", 0.0)
    seconds.freeze(changes.get("lasts", 6), flagged_after=99, hang=changes.get("hang", 12))
    seconds.next(10, in_use=2)
    assert seconds.peaks()["in_use"] == 12
    assert ago(seconds) is None


def test_nor_do_seconds_in_which_connects_fail() -> None:
    seconds = usual()
    for _ in range(9):
        failed = seconds.at - 0.2
        seconds.next(in_use=4, waiting=9, oldest_wait=failed, waited=3, acquired=3)
        seconds.row[metrics.CONNECT_ERROR : metrics.CONNECT_ERROR + 2] = [1040.0, failed]
    seconds.next(10, in_use=2, waiting=0, oldest_wait=0.0)
    assert (seconds.peaks()["in_use"], seconds.peaks()["waiting"]) == (4, 9), "the first of them"


def test_slow_statements_are_left_in_the_peaks() -> None:
    """While the server answers inquiries, nobody but the statements is at fault."""
    seconds = usual()
    seconds.freeze(4, flagged_after=9)
    peaks = seconds.peaks()
    assert (peaks["in_use"], peaks["waiting"], peaks["wait_seconds"]) == (12, 27, 4)
    seconds.next(10, in_use=2)
    assert seconds.peaks()["in_use"] == 12


def test_the_time_that_a_freeze_held_connections_is_known() -> None:
    seconds = usual()
    assert seconds.history.lost_held("default", seconds.at) == 0
    seconds.freeze(20, flagged_after=2)
    held = seconds.history.lost_held("default", seconds.at)
    assert 19 * 12 <= held <= 23 * 12
    seconds.next(200, in_use=2)
    assert seconds.history.lost_held("default", seconds.at) == held
    seconds.next(200, in_use=2)
    assert seconds.history.lost_held("default", seconds.at) == 0


def test_only_while_statements_hang_are_connections_held_in_vain() -> None:
    """Eight are held behind a lock for ten seconds, and those who waited for one are served."""
    seconds = usual()
    began = seconds.at - 0.4
    waits: dict[str, Any] = {"waiting": 3, "oldest_wait": began, "oldest_statement": began}
    seconds.next(10, in_use=8, in_statement=8, last_answer=began - 0.2, **waits)
    gone: dict[str, Any] = {"in_statement": 0, "oldest_statement": 0.0}
    for _ in range(4):  # its queue is that of the lock, and is answered
        seconds.next(in_use=8, last_answer=seconds.at, **gone)
    seconds.next(10, in_use=8, waiting=0, oldest_wait=0.0, last_answer=seconds.at)
    assert seconds.history.lost_held("default", seconds.at) == pytest.approx(80, abs=8)


@pytest.mark.parametrize(
    ("code", "answered", "changes"),
    [
        (1045, 1.2, {}),
        (1045, 1.2, {"reachable": metrics.NO, "login_refused": 1}),  # a worker that has none left
        (1040, 1.2, {"reachable": metrics.NO}),
        (2003, 0.2, {"reachable": metrics.NO}),  # such as a proxy that takes no new clients
        (2003, 1.2, {}),
    ],
)
def test_connections_that_work_while_connects_fail_are_not_held_in_vain(
    code: int, answered: float, changes: dict[str, Any]
) -> None:
    """Not with statements of more than a second, either, if their server can be reached."""
    seconds = usual()
    for _ in range(15):
        now = seconds.at
        seconds.row[metrics.CONNECT_ERROR : metrics.CONNECT_ERROR + 2] = [float(code), now - 0.2]
        asked: dict[str, Any] = {"oldest_statement": now - 1.5, "last_answer": now - answered}
        seconds.next(in_use=4, connect_errors=1, **asked, **changes)
    seconds.next(10, in_use=4, last_answer=seconds.at, oldest_statement=0.0, reachable=metrics.YES)
    assert seconds.history.lost_held("default", seconds.at) == 0


def test_whole_rows_are_not_read_for_the_minutes_after_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has more than a hundred numbers, and the event loop waits."""
    seconds = usual()
    seconds.freeze(20, flagged_after=2)
    area = seconds.history._area("default")
    assert area is not None
    read: list[int] = []
    monkeypatch.setattr(type(area), "read", lambda self, second: read.append(second))
    assert seconds.history.lost_held("default", seconds.at) > 0
    assert read == []


def test_an_outage_is_told_for_as_long_as_the_numbers_of_now_have_it() -> None:
    seconds = usual()
    seconds.freeze(20, flagged_after=2)
    thawed = seconds.at - 2  # by then the queue was served

    def ago() -> Any:
        lately = seconds.history.lately("default", seconds.at)
        found = recent_of([*seconds.row], None, 10.0, lately, seconds.at)["lost_ago_seconds"]
        return None if found is None else round(found)

    assert ago() == 3
    # The queue that it has left behind is served by a worker which notes that.
    seconds.row[metrics.LAST_OUTAGE] = thawed + 4
    seconds.next(10, in_use=2)
    assert ago() == 13, "since it was over; its queue was served four seconds later"
    seconds.next(6, in_use=2)
    assert ago() is None


# --- How long it was, and what it cost ---------------------------------------------------------


def over(seconds: Seconds, kind: str, **stats: Any) -> Any:
    """What /stats.json has of a trouble."""
    row, retired = list(seconds.row), [0.0] * metrics.FIRST_GAUGE
    snapshots = [Snapshot(1, 1, "default", "", "", row, retired)]
    now = seconds.at - 0.5
    stats = {**as_stats(snapshots, {1: 1}, now), "uptime_seconds": 600.0, "routes": [], **stats}
    return with_history(stats, snapshots, seconds.history, now)["pools"]["default"]["recent"][kind]


def lose(seconds: Seconds, lasts: int, **changes: Any) -> None:
    since = seconds.at - 0.4
    for _ in range(lasts):
        seconds.next(reachable=metrics.NO, lost=since, last_outage=seconds.at, **changes)
    seconds.next(reachable=metrics.YES, lost=0.0)


def test_an_outage_is_told_with_its_whole_length_and_costs() -> None:
    """Not with that of the last ten seconds; longer ones than are kept, too."""
    seconds = usual()
    seconds.next(timeouts=7, connect_errors=2)  # of an overload before it
    assert over(seconds, "outage") is None
    waits = {"waiting": 1.0, "oldest_wait": seconds.at + 10}
    lose(seconds, 400, timeouts=3, connect_errors=2, **waits)
    seconds.next(waiting=0, oldest_wait=0.0, timeouts=1, outage_waits=20)
    its = over(seconds, "outage")
    assert its["lasted_seconds"] == its["seconds"] == pytest.approx(399.4)
    assert (its["timeouts"], its["connect_errors"], its["waited"]) == (1201, 800, 20)
    seconds.next(11)
    assert over(seconds, "outage") is None


@pytest.mark.parametrize(("pause", "same"), [(8, True), (40, False)])
def test_one_that_comes_and_goes_is_one_for_as_long_as_it_is_told(pause: int, same: bool) -> None:
    seconds = usual()
    lose(seconds, 100, timeouts=3)
    seconds.next(pause)
    lose(seconds, 20, timeouts=1)
    its = over(seconds, "outage")
    assert its["lasted_seconds"] == pytest.approx(99.4 + 19.4 if same else 19.4)
    assert its["seconds"] == pytest.approx(99.4 + pause + 20.4 if same else 19.4, abs=1)
    assert its["timeouts"] == (320 if same else 20)


def test_one_between_two_samples_has_a_cost_and_no_length() -> None:
    seconds = usual()
    seconds.row[metrics.LAST_OUTAGE] = seconds.at - 0.5
    seconds.next(timeouts=2, failed=1)
    its = over(seconds, "outage")
    assert (its["lasted_seconds"], its["timeouts"], its["failed"]) == (0.0, 2, 1)


def test_a_hang_is_told_with_its_whole_length_and_costs() -> None:
    seconds = usual()
    seconds.next(1, timeouts=5)
    began = seconds.at - 0.4
    hang: dict[str, Any] = {"in_use": 12, "in_statement": 12, "oldest_statement": began}
    for waiting in range(240):
        seconds.next(waiting=waiting + 1, oldest_wait=began, last_answer=began - 0.2, **hang)
        seconds.next(0)
        seconds.row[metrics.TIMEOUTS] += 1
    seconds.next(in_use=2, in_statement=0, oldest_statement=0.0, waiting=0, waited=12)
    for _ in range(2):
        its = over(seconds, "hang")
        assert its["seconds"] == pytest.approx(239.4)
        assert (its["timeouts"], its["waited"]) == (240, 12)
        seconds.next(3, waiting=8, oldest_wait=seconds.at, waited=60, timeouts=2)


def test_connects_that_failed_are_counted_from_the_first_on() -> None:
    seconds = usual()
    seconds.next(connect_errors=4)
    for _ in range(60):
        seconds.row[metrics.CONNECT_ERROR : metrics.CONNECT_ERROR + 2] = [1040.0, seconds.at - 0.2]
        seconds.next(connect_errors=2)
        seconds.next(1)
    seconds.next(3, opened=1)
    seconds.next(3, waited=60, timeouts=2)
    its = over(seconds, "failing_connects")
    assert (its["connect_errors"], its["seconds"]) == (120, pytest.approx(118.0))
    assert (its["waited"], its["timeouts"]) == (0, 0), "which nothing has to do with it"


def test_what_comes_after_an_outage_has_other_causes() -> None:
    """20 clients of a slow view share 12 connections: some wait at every moment."""
    seconds = usual()
    seconds.next(5, waiting=8, oldest_wait=seconds.at, waited=60, timeouts=1)
    lose(seconds, 4, outage_waits=5, timeouts=2, connect_errors=3, waiting=20, oldest_wait=990.0)
    queue: dict[str, Any] = {"waiting": 8, "waited": 60, "timeouts": 1, "failed": 1}
    for _ in range(9):  # as a worker notes whose queue is not empty
        seconds.next(oldest_wait=seconds.at - 0.2, last_outage=seconds.at, **queue)
        its = over(seconds, "outage")
        # The last of them may be from the second in which its own queue was served.
        assert (its["waited"], its["timeouts"], its["failed"]) == (20, 8 + 1, 1)
    seconds.next(20, waiting=8, oldest_wait=seconds.at, waited=60, timeouts=1)
    assert over(seconds, "outage") is None


def test_who_began_to_wait_in_an_outage_and_gets_no_connection_is_one_of_its_costs() -> None:
    seconds = usual()
    lose(seconds, 4, waiting=9, oldest_wait=seconds.at)
    seconds.next(5, timeouts=1)
    seconds.next(3, waiting=9, oldest_wait=seconds.at, timeouts=1)
    assert over(seconds, "outage")["timeouts"] == 5 + 1, "the last of them within the second"


def test_pauses_of_an_outage_cost_nothing() -> None:
    seconds = usual()
    lose(seconds, 4, timeouts=2)
    seconds.next(8, timeouts=5)
    lose(seconds, 4, timeouts=2)
    assert over(seconds, "outage")["timeouts"] == 8 + 8


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 5),
        ({"in_statement": 2}, 0),  # two reports
        ({"oldest_statement": 8.0}, 0),
        ({"usual": 5.0}, 0),
        ({"usual": 3.0}, 5),
        ({"reachable": metrics.NO}, 0),  # which is told instead
        ({"stuck": 1}, 0),
    ],
)
def test_what_hangs_beside_others_is_counted_for_log_and_alerts(
    changes: dict[str, float], number: int
) -> None:
    row: Any = metrics.new_row()
    now = 1000.0
    numbers = {"in_use": 8, "in_statement": 5, "oldest_statement": 12.0, **changes}
    held = numbers.pop("usual", 0.0)
    for name, value in numbers.items():
        row[getattr(metrics, name.upper())] = value
    row[metrics.OLDEST_STATEMENT], row[metrics.LAST_ANSWER] = now - numbers["oldest_statement"], now
    assert hanging_statements(row, now, lambda: held, all_hang=False) == number


# --- Of a queue --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "presses"),
    [
        ({"timeouts": 1}, True),
        ({"waited": 1, "acquired": 9, "longest_wait": 0.3}, True),
        ({"waited": 5, "acquired": 9, "longest_wait": 0.01}, True),
        ({"waited": 1, "acquired": 9, "longest_wait": 0.01}, False),
        ({"acquired": 9, "longest_wait": 0.3}, False),  # of a second ago
        ({"waiting": 3, "oldest_wait": 1029.0}, True),
        ({"waiting": 3, "oldest_wait": 1030.29}, False),
        ({}, False),
    ],
)
def test_it_is_known_when_requests_last_waited_for_more_than_a_moment(
    changes: dict[str, Any], presses: bool
) -> None:
    seconds = usual()
    seconds.next(**changes)
    seconds.next(6, waiting=0, oldest_wait=0.0, longest_wait=0.0, acquired=9)
    now = seconds.at - 0.5
    lately = seconds.history.lately("default", now)
    found = recent_of(seconds.row, None, 10.0, lately, now)["pressed_ago_seconds"]
    assert found == (pytest.approx(6.5) if presses else None)
