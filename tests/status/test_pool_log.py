"""What the log says about a pool: seldom, and true at the moment when it is written."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.event import Event
from pymysql.err import OperationalError

from pooled_serve.pool import metrics
from pooled_serve.status import pool_log, repeats
from pooled_serve.status.pool_log import LOGGED_WAIT_SECONDS
from support.driver import settle
from support.greenlets import join_all
from support.log_lines import AT_CAP, GOT_503, OVER, OVERLOADED
from support.pool_log import Watched, stop_clock, watching
from support.pools import Clock, hold
from support.torture import torture

NO_SERVER = OperationalError(2003, "Can't connect to MySQL server")


@pytest.fixture
def it() -> Iterator[Watched]:
    with watching() as watched:
        yield watched


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_clock(monkeypatch)


# --- Pressure ----------------------------------------------------------------------------------


@torture
def test_short_queues_and_then_a_long_wait_are_no_relief(it: Watched) -> None:
    end = time.monotonic() + 2.5

    def visitor() -> None:
        while time.monotonic() < end:
            it.use(0.01)

    visitors = [gevent.spawn(visitor) for _ in range(4)]  # so that there is always a short queue
    gevent.sleep(2.4)
    waiting = [gevent.spawn(it.use, 2 * LOGGED_WAIT_SECONDS) for _ in range(8)]
    settle(lambda: bool(it.with_text(AT_CAP)))
    assert not it.with_text(OVER), "seven wait"
    gevent.joinall(visitors + waiting, raise_error=True)
    assert not it.with_text(OVER), "they waited until a moment ago"


def test_that_the_pressure_is_over_is_said_when_it_is(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_log, "CALM_SECONDS", 1.0)
    served: list[float] = []

    def use() -> None:
        with it.pool.lease():
            served.append(time.monotonic())
            gevent.sleep(2 * LOGGED_WAIT_SECONDS)

    gevent.joinall([gevent.spawn(use) for _ in range(4)], raise_error=True)
    settle(lambda: bool(it.with_text(OVER)))
    (over,) = it.with_text(OVER)
    assert over is it.lines[-1]
    assert over.at - served[-1] >= 1.0
    assert over.longest_wait <= LOGGED_WAIT_SECONDS
    assert re.search(r"requests that got 503 in \d+s: 0$", over.text)
    assert {line.level for line in it.lines} == {logging.INFO}, "nobody got a 503"
    assert not it.log._watcher


def test_a_pool_at_its_cap_is_not_news_each_second(it: Watched, clock: Clock) -> None:
    """Bursts with waits of a third of a second, and then nobody waits."""
    for _ in range(5):
        it.use_all(2, 0.3)
        clock.now += 1.1
    assert it.with_text(AT_CAP) == it.lines
    assert len(it.lines) == 2, "the third would come ten seconds after the second"
    assert {line.level for line in it.lines} == {logging.INFO}
    assert all(line.longest_wait >= LOGGED_WAIT_SECONDS for line in it.lines)


def test_refusals_are_counted_though_not_each_is_told(it: Watched, clock: Clock) -> None:
    for number in range(30):
        it.log.refused(f"number {number}")
    settle()
    (first,) = it.lines
    assert first.text == "503 Service Unavailable: number 0"
    clock.now += repeats.CALM_SECONDS
    settle(lambda: bool(it.with_text(OVER)))
    assert {line.level for line in it.lines} == {logging.WARNING}
    assert it.lines[-1].text.endswith(": 30")
    assert len(it.lines) == 2


def test_refusals_under_overload_are_told_from_timeouts(
    it: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "PAUSES_SECONDS", (0.0, 0.1))
    it.log.refused("too late")
    for _ in range(3):
        it.log.refused("too many", early=True)
    it.log.refused("too late")
    settle()
    clock.now += 0.2
    settle(lambda: bool(it.with_text("503")[1:]))
    assert it.lines[1].text == "503 Service Unavailable, 4 times, 3 of them early: too late"
    clock.now += repeats.CALM_SECONDS + 1.0
    settle(lambda: bool(it.with_text(OVER)))
    assert it.lines[-1].text.endswith(": 5, 3 of them early")


def test_a_pool_is_called_overloaded_while_it_is(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "PAUSES_SECONDS", (0.0, 0.1))
    monkeypatch.setattr(pool_log, "POLL_SECONDS", 0.1)
    with one_holds_and_one_waits(it):
        settle(lambda: bool(it.with_text(AT_CAP)))
        assert it.pool._overload
        it.pool._overload.on = True  # as when the first has waited for half of the timeout
        settle(lambda: bool(it.with_text(f"{OVERLOADED}: 1 in use")))
    told = len(it.with_text(OVERLOADED))
    with one_holds_and_one_waits(it):
        settle(lambda: AT_CAP in it.lines[-1].text)
    assert len(it.with_text(OVERLOADED)) == told


def wait_for_calm(it: Watched, clock: Clock) -> None:
    """It counts from when the log has looked."""

    def is_over() -> bool:
        clock.now += 1.0
        return not it.log._watcher

    settle(is_over)


@contextmanager
def one_holds_and_one_waits(it: Watched) -> Iterator[None]:
    """To the end of the block, however late the log comes to look."""
    go_on = Event()
    users = [hold(it.pool, go_on) for _ in range(2)]
    try:
        yield
    finally:
        go_on.set()
        join_all(users)


def test_a_second_overload_has_its_lines_at_once(
    it: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "PAUSES_SECONDS", (0.0, 0.3, 0.3, 3600.0))
    denied = OperationalError(1045, "Access denied for user 'shop'@'app'")
    told = []
    for _ in range(2):
        for _ in range(4):  # the fourth line of each kind would come an hour after the third
            it.log.refused("too late")
            it.log.failed(denied)
            it.use_all(2, 1.5 * LOGGED_WAIT_SECONDS)
            clock.now += 0.4
        kinds = AT_CAP, f"{GOT_503}: too late", "500 Internal Server Error: "
        told.append([len(it.with_text(kind)) for kind in kinds])
        wait_for_calm(it, clock)
    assert told[1] == [2 * times for times in told[0]]
    assert told[0] == [3, 3, 3]
    assert [line.text[-3:] for line in it.with_text(OVER)] == [": 4", ": 4"]


# --- What is counted ----------------------------------------------------------------------------


def test_requests_that_fail_are_counted_in_one_line_a_second(it: Watched, clock: Clock) -> None:
    denied = OperationalError(1045, "Access denied for user 'shop'@'app'")
    for _ in range(500):
        it.log.failed(denied)
    assert it.pool.row[metrics.FAILED] == 500
    text = "500 Internal Server Error"
    settle()
    assert len(it.lines) == 1
    clock.now += 1.0
    settle(lambda: len(it.with_text(text)) == 2)
    first, second = it.with_text(text)
    problem = ": database 'default': Access denied for user 'shop'@'app' (1045)"
    assert first.text == f"{text}{problem}"
    told = f"{text}, 499 times, the last 1.0s ago{problem}"
    assert second.text == told, "it was true then, and may be no longer"
    it.log.failed(denied)
    wait_for_calm(it, clock)
    told = rf"{text}, \d+\.\ds ago{re.escape(problem)}"
    assert re.fullmatch(told, it.lines[-1].text), "none is left uncounted"
    assert {line.level for line in it.lines} == {logging.ERROR}
    assert not it.with_text(OVER), "nobody has waited"


@pytest.mark.usefixtures("clock")
def test_a_worker_that_ends_tells_what_it_has_counted(it: Watched) -> None:
    denied = OperationalError(1045, "Access denied")
    for number in range(4):
        it.log.failed(denied)
        it.log.refused("too late")
        it.log.retried(OperationalError(2013, f"lost {number}"))
        it.log.client_gone(f"GET /{number}")
    it.connect(NO_SERVER)
    it.log.refused("no connection")
    it.log.refused("no connection")
    settle()
    it.lines.clear()
    it.log.log_rest()
    assert [line.text for line in it.lines] == [
        "503 Service Unavailable, 3 times: too late",
        "503 Service Unavailable: no connection",
        "500 Internal Server Error, 3 times: database 'default': Access denied (1045)",
        "pool 'default': a statement found its connection dead, and runs on a fresh one, 3 times: "
        "lost 3 (2013)",
        "pool 'default': a client has hung up, and its request was ended, 3 times: GET /3",
    ]
    it.log.log_rest()
    assert len(it.lines) == 5, "once"


@pytest.mark.parametrize("name", ["retried", "client_gone"])
def test_lines_about_what_was_counted_long_ago_say_since_when(
    it: Watched, name: str, clock: Clock
) -> None:
    tell = getattr(it.log, name)
    for _ in range(4):
        tell(OperationalError(2013, "lost"))
    clock.now += repeats.TOLD_AS_NOW_SECONDS + 1.0
    tell(OperationalError(2013, "lost"))
    settle()
    first, second = it.lines
    assert " times" not in first.text
    assert re.search(r", 4 times since \d\d:\d\d:\d\d: ", second.text)
