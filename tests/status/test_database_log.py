"""What the log says about a database: when it is lost, full, back, or does not answer."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from pymysql.err import OperationalError

from pooled_serve.pool import metrics
from pooled_serve.pool.metrics import LOGIN_REFUSED, NO, REACHABLE, YES
from pooled_serve.status import hanging_log, pool_log, repeats, shortage
from pooled_serve.status.remedies import STUCK_REMEDY
from support.driver import settle
from support.greenlets import join_all
from support.log_lines import (
    AT_CAP,
    BACK,
    LOGIN_AGAIN,
    LOST,
    NO_DESCRIPTOR,
    NO_MORE,
    OVER,
    ROOM_AGAIN,
    STATEMENTS_GO_ON,
)
from support.log_lines import (
    LOGIN_REFUSED as REFUSED_LOGIN,
)
from support.pool_log import Watched, stop_clock, watching
from support.pools import Clock, hold


@pytest.fixture
def it() -> Iterator[Watched]:
    with watching() as watched:
        yield watched


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stop_clock(monkeypatch)


NO_SERVER = OperationalError(2003, "Can't connect to MySQL server")


@pytest.mark.usefixtures("clock")
def test_refusals_in_an_outage_do_not_wait_for_those_of_an_overload(it: Watched) -> None:
    it.log.refused("too many")
    it.log.refused("too many")  # not told yet
    it.connect(NO_SERVER)
    it.log.refused("no connection to the database")
    assert [line.text for line in it.with_text("503")] == [
        "503 Service Unavailable: too many",
        "503 Service Unavailable: no connection to the database",
    ]


def test_no_pressure_is_over_while_a_newcomer_would_wait(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_log, "CALM_SECONDS", 0.2)
    monkeypatch.setattr(pool_log, "POLL_SECONDS", 0.05)
    let_go = Event()
    holders = [hold(it.pool, let_go) for _ in range(int(it.pool.cap))]
    waiter = gevent.spawn(it.use, 0.0)
    settle(lambda: bool(it.with_text(AT_CAP)))
    waiter.kill()
    gevent.sleep(0.6)
    assert not it.with_text(OVER), "nobody waits, but all connections are still held"
    let_go.set()
    join_all(holders)
    settle(lambda: bool(it.with_text(OVER)))


def test_no_pressure_is_over_while_the_database_is_lost(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_log, "CALM_SECONDS", 0.2)
    monkeypatch.setattr(pool_log, "POLL_SECONDS", 0.05)
    it.connect(NO_SERVER)
    it.log.refused("no connection to the database")
    gevent.sleep(0.6)
    assert not it.with_text(OVER), "the visitors have gone, and it is still lost"
    it.connect(None)
    settle(lambda: bool(it.with_text(OVER)))
    assert it.lines[-1].text.endswith(": 1")


def test_a_database_that_comes_and_goes_is_told_ever_more_rarely(
    it: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        it.connect(NO_SERVER)
        it.connect(None)
        clock.now += 0.1
    assert len(it.with_text(LOST)) == len(it.with_text(BACK)) == 2
    assert it.pool.row[REACHABLE] == YES
    # One that stays away is told even so, as soon as a line is due.
    told = len(it.with_text(LOST))
    monkeypatch.setattr(repeats, "PAUSES_SECONDS", (0.0, 3.0))
    it.connect(NO_SERVER)
    assert len(it.with_text(LOST)) == told
    clock.now += 3.0
    it.connect(NO_SERVER)
    it.connect(NO_SERVER)
    assert len(it.with_text(LOST)) == told + 1
    assert it.reachability.lost


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NO_SERVER, LOST),
        (OperationalError(1045, "Access denied"), REFUSED_LOGIN),
        (OSError(errno.EMFILE, "Too many open files"), NO_DESCRIPTOR),
    ],
)
def test_a_second_outage_has_its_line_at_once(
    it: Watched, clock: Clock, error: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "PAUSES_SECONDS", (0.0, 3600.0))
    monkeypatch.setattr(repeats, "FORGET_SECONDS", 7200.0)
    for times in (1, 2, 3):
        it.connect(error)
        it.log.refused("no connection")
        it.connect(None)
        clock.now += repeats.CALM_SECONDS + 1.0
        it.connect(None)
        it.wait_for(text, times)


def test_a_second_hang_has_its_line_at_once(
    it: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hanging_log, "hang", lambda *_: True)
    it.reachability.probing = True
    monkeypatch.setattr(type(it.pool), "inquire", lambda *_: True)  # it answers others
    holder = gevent.spawn(it.use, 30.0)
    waiter = gevent.spawn(it.use, 0.0)
    gevent.sleep(0)
    for times in (1, 2, 3, 4):
        it.reachability._ask_again_at = 0.0
        it.reachability.unanswered(6.0)
        it.wait_for("statements hang", times)
        it.log.answered()
        it.reachability.answered()
        clock.now += repeats.CALM_SECONDS + 1.0
    gevent.killall([holder, waiter])


@pytest.mark.parametrize(("hanging", "told"), [(2, False), (3, True)])
def test_statements_hang_though_nobody_waits_for_a_connection(
    it: Watched, hanging: int, told: bool
) -> None:
    it.pool.row[metrics.IN_USE] = it.pool.row[metrics.IN_STATEMENT] = hanging
    assert not it.pool.waiting
    assert it.log.hanging(6.0) == told


def test_a_worker_with_one_of_many_that_hang_tells_of_it(it: Watched) -> None:
    it.pool.row[metrics.IN_USE] = it.pool.row[metrics.IN_STATEMENT] = 1
    it.log.all_hang = lambda alias: alias == "default"
    assert not it.log.hanging(4.0), "its own has just begun"
    assert it.log.hanging(6.0)


def test_statements_do_not_go_on_while_the_first_hangs(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request has come: its first statement was answered, the next waits for the lock."""
    row = it.pool.row
    row[metrics.IN_USE] = row[metrics.IN_STATEMENT] = 3
    row[metrics.OLDEST_STATEMENT] = 1000.0
    it.reachability.probing = True
    monkeypatch.setattr(type(it.pool), "inquire", lambda *_: True)  # it answers others
    it.reachability.unanswered(6.0)
    it.wait_for("statements hang", 1)
    it.reachability.answered()
    it.reachability.unanswered(2.0)
    settle()
    assert not it.with_text(STATEMENTS_GO_ON)
    row[metrics.OLDEST_STATEMENT] = 0.0
    it.reachability.answered()
    it.wait_for("statements go on, none had been answered for 6.0s", 1)


def test_what_hangs_is_judged_as_on_the_page(it: Watched) -> None:
    """By the busiest route: three exports of ten seconds are usual where there are such."""
    it.pool.row[metrics.IN_USE] = it.pool.row[metrics.IN_STATEMENT] = 3
    it.log.usual_hold = lambda: 10.0
    assert not it.log.hanging(6.0)
    assert not it.log.hanging(29.0)
    settle()
    assert it.lines == []
    assert it.log.hanging(30.0)


def test_some_that_hang_beside_others_have_lines_until_the_first_has_ended(it: Watched) -> None:
    row = it.pool.row
    row[metrics.IN_USE], row[metrics.IN_STATEMENT], row[metrics.OLDEST_STATEMENT] = 8, 5, 1000.0
    it.reachability.asking(60.0)  # as long as is usual here, the page says
    it.log.all_hang = lambda alias, *, beside_others=False: beside_others
    it.reachability.asking(9.0)
    it.reachability._slow_look_at = 0.0
    it.reachability.asking(12.3)
    it.wait_for("5 statements of this worker without an answer for a second or more, the first", 1)
    it.reachability.asking(240.1)
    row[metrics.OLDEST_STATEMENT] = 1100.0  # another's
    it.reachability.asking(1.0)
    it.wait_for("the first of the statements that hung has ended, after 240.1s", 1)
    assert len(it.lines) == 2


def test_a_refused_login_is_no_outage(it: Watched) -> None:
    denied = OperationalError(1045, "Access denied for user 'shop'@'app'")
    denied.address = "db:3306/shop"
    it.connect(denied)
    it.connect(denied)
    settle(lambda: bool(it.lines))
    (line,) = it.lines
    assert line.level == logging.ERROR
    assert line.text.startswith(
        "database 'default': the server at db:3306/shop refuses the login: Access denied for user"
        " 'shop'@'app' (1045)\n  → correct USER, PASSWORD and NAME in DATABASES"
    )
    assert (it.pool.row[REACHABLE], it.pool.row[LOGIN_REFUSED]) == (NO, 1)
    it.connect(NO_SERVER)  # which is something else
    settle(lambda: bool(it.with_text(LOST)))
    assert it.pool.row[LOGIN_REFUSED] == 0
    it.connect(None)
    settle(lambda: bool(it.with_text(BACK)))
    it.reachability.connect_failed(denied)
    it.reachability._loss_logged = True  # as if a line had been due
    it.connect(None)
    settle(lambda: LOGIN_AGAIN in it.lines[-1].text)
    assert (it.pool.row[REACHABLE], it.pool.row[LOGIN_REFUSED]) == (YES, 0)


def test_a_server_that_is_full_is_not_called_down_nor_one_that_is_down_full(it: Watched) -> None:
    it.connect(OperationalError(1203, "User shop already has more connections"))
    settle(lambda: bool(it.lines))
    (line,) = it.lines
    full = "database 'default': the server is full: User shop already has more connections (1203)"
    assert line.text.startswith(f"{full}\n  → close idle connections (SHOW PROCESSLIST), or")
    it.log._lost_lines.anew()
    it.connect(NO_SERVER)  # it is restarted
    settle(lambda: bool(it.with_text(LOST)))
    it.connect(None)
    settle(lambda: bool(it.with_text(BACK)))
    it.log._lost_lines.anew()
    it.connect(OperationalError(1040, "Too many connections"))
    it.connect(None)
    settle(lambda: ROOM_AGAIN in it.lines[-1].text)
    assert len(it.lines) == 5


@pytest.mark.parametrize(
    ("refused", "what"), [(True, "lets the user log in again"), (False, "is back")]
)
def test_the_end_of_what_former_workers_have_told_of_is_told_by_the_first(
    it: Watched, refused: bool, what: str
) -> None:
    since = time.monotonic() - 40
    it.reachability.inherit(since, refused=refused, is_used=lambda: False)
    assert (it.pool.row[REACHABLE], it.pool.row[LOGIN_REFUSED]) == (NO, refused)
    assert it.pool.row[metrics.LOST] == pytest.approx(since)
    it.connect(None)
    settle(lambda: bool(it.lines))
    (line,) = it.lines
    assert re.fullmatch(rf"database 'default' {what} after 4\d\.\ds", line.text)
    it.reachability.lose(logged=False)  # another one, which nobody has told of
    it.connect(None)
    it.reachability.inherit(since, refused=refused, is_used=lambda: True)  # who has told of it
    it.connect(None)
    it.reachability.inherit(0.0, refused=refused, is_used=lambda: False)  # nobody has
    it.connect(None)
    settle()
    assert len(it.lines) == 1
    assert (it.pool.row[REACHABLE], it.pool.row[LOGIN_REFUSED]) == (YES, 0)


def test_a_worker_that_has_told_of_it_itself_tells_of_its_end(it: Watched) -> None:
    it.reachability.inherit(time.monotonic() - 40, refused=False, is_used=lambda: True)
    it.connect(NO_SERVER)
    it.connect(None)
    settle(lambda: bool(it.with_text(BACK)))
    assert it.lines[-1].text.endswith("; failed attempts to connect: 1")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (2003, " cannot be reached at db:3307/shop: no (2003)\n"),
        (1040, ": the server at db:3307/shop is full: no (1040)\n"),
        (1045, ": the server at db:3307/shop refuses the login: no (1045)\n"),
    ],
)
def test_the_server_that_a_connect_has_failed_at_is_named(
    it: Watched, code: int, said: str
) -> None:
    """After a HUP it may be another one than before, and PyMySQL names the host at most."""
    error: Any = OperationalError(code, "no")
    error.address = "db:3307/shop"
    it.connect(error)
    settle(lambda: bool(it.lines))
    assert said in it.lines[0].text


def test_an_error_that_is_no_outage_is_logged_with_what_helps(it: Watched) -> None:
    it.connect(OperationalError(2026, "SSL connection error"))
    settle(lambda: bool(it.lines))
    assert it.lines[0].text == (
        "database 'default' cannot be reached: SSL connection error (2026)\n  → "
        + pool_log.CHECK_REMEDY
    )


def test_a_failure_of_code_in_a_connect_is_not_called_an_outage(it: Watched) -> None:
    it.connect(KeyError(0))
    settle(lambda: bool(it.lines))
    (line,) = it.lines
    assert line.text.startswith(
        "database 'default': Python code fails in the connect: KeyError: 0 ("
    )
    assert "--check" not in line.text


def test_a_server_that_answers_nothing_is_logged_with_what_helps(it: Watched) -> None:
    it.log.database_stuck(5.0)
    settle(lambda: bool(it.lines))
    assert it.lines[0].text == (
        "database 'default' does not answer: no statement and no inquiry had an answer in 5.0s\n"
        f"  → {STUCK_REMEDY}"
    )


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (1045, "correct USER, PASSWORD and NAME in DATABASES"),
        (1040, "close idle connections"),
        (2013, "see that the server runs"),
    ],
)
def test_a_failed_connect_beside_open_connections_has_its_own_remedy(
    it: Watched, code: int, remedy: str
) -> None:
    with it.pool.lease():
        it.reachability.connect_failed(OperationalError(code, "no"))
        settle(lambda: bool(it.with_text(f"{NO_MORE}: no")))
    (line,) = it.with_text(NO_MORE)
    assert f"no ({code})\n  → {remedy}" in line.text


@pytest.mark.parametrize("idle", [0, 1])
def test_a_probe_is_no_use_of_the_pool(it: Watched, idle: int) -> None:
    used: list[float] = []

    class Uses:
        def returned(self, conn: Any, seconds: float) -> None:
            used.append(seconds)

        def idled(self, conn: Any, seconds: float) -> None:
            pass

        def waited(self, seconds: float, *, served: bool) -> None:
            used.append(seconds)

    it.pool.attach_row(metrics.new_row(), Uses())
    if idle:
        it.use(0)
    before = it.pool.row[metrics.ACQUIRED], len(used)
    it.reachability.probing = True
    it.reachability.lose()
    settle(lambda: not it.reachability.lost and not it.reachability._prober)
    assert not it.pool.empty, "one connection has been asked, or opened"
    assert (it.pool.row[metrics.ACQUIRED], len(used)) == before
    assert sum(it.pool.row[metrics.HELD_BUCKETS :][:15]) == len(used)


def pymysql_error(cause: OSError) -> OperationalError:
    """As PyMySQL's connect() raises it."""
    error = OperationalError(2003, f"Can't connect to MySQL server on '127.0.0.1' ({cause})")
    error.original_exception = cause
    return error


@pytest.mark.parametrize("code", shortage.SHORTAGES)
def test_what_this_machine_lacks_is_no_outage(it: Watched, clock: Clock, code: int) -> None:
    for _ in range(10):
        it.connect(pymysql_error(OSError(code, "so it is")))
        it.connect(None)  # a descriptor was free for a moment
    (line,) = it.lines
    assert line.level == logging.ERROR
    assert shortage.SHORTAGES[code].problem in line.text
    assert "\n  → " in line.text
    assert it.pool.row[REACHABLE] == YES
    clock.now += repeats.CALM_SECONDS
    it.connect(None)
    settle(lambda: len(it.lines) == 2)
    assert "can open connections again after" in it.lines[-1].text
    assert it.lines[-1].text.endswith("failed attempts: 10")
