"""Nobody answers at the server's address: requests wait for as long as one timeout, then none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolOutage, PoolTimeout
from pooled_serve.pool import backoff
from pooled_serve.pool.outage import Outage
from support.driver import NEVER, DriverError, FakeDriver, leased, settle
from support.greenlets import join_all
from support.log_lines import NO_DATABASE
from support.pools import MakePool, Pool
from support.processes import MAX_WAIT_SECONDS

TIMEOUT = 0.5


pytestmark = pytest.mark.usefixtures("all_time_counts")


class Unreachable(DriverError):
    """Nobody answers."""


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause between two attempts is shorter than the timeout, as it is by default. So what is
    known of an outage is never too old, or there is an attempt at once."""
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_SECONDS", TIMEOUT / 5)


@pytest.fixture
def make(make_pool: MakePool) -> Callable[..., Pool]:
    def made(**options: Any) -> Pool:
        options = {"timeout": TIMEOUT, **options}
        return make_pool(is_outage=lambda error: isinstance(error, Unreachable), **options)

    return made


def user(pool: Pool, **options: Any) -> gevent.Greenlet:
    """Somebody who takes a connection and gives it back; it returns the error that he got."""

    def use() -> BaseException | None:
        try:
            with leased(pool, **options):
                return None
        except Exception as error:
            return error

    return gevent.spawn(use)


def results(users: list[gevent.Greenlet]) -> list[BaseException | None]:
    join_all(users)
    return [each.value for each in users]


def go_through(pool: Pool, driver: FakeDriver, error: Any) -> None:
    """An outage begins, and becomes long."""
    driver.always["connect"] = error
    began = time.monotonic()
    errors = results([user(pool) for _ in range(3)])
    assert [each for each in errors if not isinstance(each, PoolTimeout)] == []
    gevent.sleep(began + TIMEOUT + 0.01 - time.monotonic())


def test_a_restart_costs_nobody_an_error(make: Callable[..., Pool], driver: FakeDriver) -> None:
    pool = make(timeout=MAX_WAIT_SECONDS)
    driver.always["connect"] = Unreachable("refused")
    users = [user(pool) for _ in range(20)]
    settle(lambda: driver.calls["connect"] == 3)
    assert pool.stats()["waiting"] == 20
    del driver.always["connect"]
    assert results(users) == [None] * 20
    stats = pool.stats()
    assert stats["outage_waits_total"] == 20
    assert stats["timeouts_total"] == 0


@pytest.mark.usefixtures("often")
def test_who_waits_when_it_has_become_long_is_refused_and_so_is_who_comes(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    pool = make(name="default")
    driver.always["connect"] = Unreachable("refused")
    began = time.monotonic()
    first = user(pool)
    gevent.sleep(TIMEOUT * 0.6)
    (_, error) = results([first, user(pool, timeout=MAX_WAIT_SECONDS)])
    lasted = time.monotonic() - began
    assert isinstance(error, PoolOutage), "its own deadline is later"
    told = re.fullmatch(
        rf"pool 'default': {NO_DATABASE} (\d+\.\d)s "
        r"\(0 in use, 0 idle, .*; last connect error: refused",
        str(error),
    )
    assert told, f"errors.py says {error}"
    assert TIMEOUT <= float(told[1]) <= lasted + 0.05  # it is rounded
    for _ in range(20):
        is_refused_at_once(pool)
        gevent.sleep(0.01)


def is_refused_at_once(pool: Pool) -> None:
    meanwhile = gevent.spawn(int)
    with pytest.raises(PoolOutage):
        pool.acquire()
    assert not meanwhile.ready(), "it waited"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("error", [Unreachable("refused"), NEVER])
def test_a_long_outage_ends_with_the_first_attempt_that_works(
    make: Callable[..., Pool], driver: FakeDriver, error: Any
) -> None:
    pool = make()
    go_through(pool, driver, error)
    is_refused_at_once(pool)  # others try, in the background
    driver.always.clear()

    def served() -> bool:
        return results([user(pool)])[0] is None

    settle(served)
    assert results([user(pool) for _ in range(20)]) == [None] * 20


def test_attempts_are_few_however_many_requests_come(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    pool = make()
    go_through(pool, driver, Unreachable("refused"))
    before, began = driver.calls["connect"], time.monotonic()
    for _ in range(100):
        results([user(pool)])
        gevent.sleep(0.005)
    assert 1 <= driver.calls["connect"] - before <= 2 + 2 * (time.monotonic() - began)


def test_what_was_leased_before_and_comes_back_is_handed_on(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    """The server is full, or a firewall lets no new connection through: those there are work."""
    later = 0.0
    pool = make(size=1, max_outstanding=3, clock=lambda: time.monotonic() + later)
    mine = pool.acquire()
    driver.always["connect"] = Unreachable("(1040, 'Too many connections')")
    waiting = user(pool)
    settle(lambda: pool.stats()["waiting"] == 1)
    pool.release(mine)
    assert results([waiting]) == [None]
    later = TIMEOUT
    mine = pool.acquire()  # handed out since the outage began, so it may come back
    waiting = user(pool)
    settle(lambda: pool.stats()["waiting"] == 1)
    assert not waiting.ready()
    pool.release(mine)
    assert results([waiting]) == [None]


def test_a_full_server_is_waited_for_also_when_ours_have_gone_meanwhile(
    make_pool: MakePool, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as some of the server's connections are ours, that it is full is no outage."""
    monkeypatch.setattr(backoff, "FIRST_PAUSE_SECONDS", 1.0)  # the next attempt is some time off
    pool: Pool = make_pool(size=1, max_outstanding=3, is_outage=lambda error: pool.empty)
    mine = pool.acquire()
    driver.always["connect"] = Unreachable("(1040, 'Too many connections')")
    users = [user(pool)]
    settle(lambda: driver.calls["connect"] >= 2)
    assert not pool.out
    mine.fault = "lost"
    pool.release(mine)
    settle(lambda: pool._entries.busy == 0)
    users[0].kill()
    users = [user(pool) for _ in range(3)]
    gevent.sleep(0.05)
    driver.always.clear()
    assert results(users) == [None] * 3


def test_that_a_server_did_not_answer_is_never_the_error_of_a_request(
    make: Callable[..., Pool], driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_PAUSE_SECONDS", 1.0)
    pool = make(size=1, max_outstanding=2)
    mine = pool.acquire()
    driver.plan["connect"] = [NEVER]
    results([user(pool)])
    pool.release(mine)  # which ends the outage
    mine = pool.acquire()
    mine.fault = "lost"
    pool.release(mine)
    settle(lambda: pool._entries.busy == 0)
    error = results([user(pool)])[0]
    assert error is None or isinstance(error, PoolTimeout)


def test_what_is_known_of_an_outage_expires(make: Callable[..., Pool], driver: FakeDriver) -> None:
    later = 0.0
    pool = make(clock=lambda: time.monotonic() + later)
    driver.always["connect"] = Unreachable("refused")
    waiting = user(pool)
    settle(lambda: driver.calls["connect"] > 1)
    waiting.kill()
    later = 3600.0
    driver.always.clear()
    assert results([user(pool)]) == [None], "it was not refused for what was an hour ago"


def test_what_is_not_known_refuses_nobody(make: Callable[..., Pool], driver: FakeDriver) -> None:
    """A failure long ago, quiet since, and then many at once: the first one finds out."""
    later = 0.0
    pool = make(size=4, max_outstanding=4, clock=lambda: time.monotonic() + later)
    go_through(pool, driver, Unreachable("refused"))
    later = 2 * TIMEOUT
    driver.always["connect"] = TIMEOUT / 4  # seconds
    users = [user(pool, timeout=MAX_WAIT_SECONDS) for _ in range(8)]
    assert results(users) == [None] * 8


def test_one_that_comes_back_ends_it(make: Callable[..., Pool], driver: FakeDriver) -> None:
    pool = make(size=4, max_outstanding=4)
    mine = pool.acquire()
    driver.always["connect"] = Unreachable("refused")
    waiting = user(pool)
    settle(lambda: pool.out)
    waiting.kill()
    pool.release(mine)
    assert not pool.out


def test_who_waits_is_counted_once(make: Callable[..., Pool], driver: FakeDriver) -> None:
    pool = make(size=1, max_outstanding=2, timeout=MAX_WAIT_SECONDS)
    mine = pool.acquire()
    driver.always["connect"] = Unreachable("refused")
    users = [user(pool) for _ in range(10)]
    for _ in range(5):  # each hand-over ends the outage, and the next attempt begins another
        pool.release(mine)
        mine = pool.acquire()
        gevent.sleep(0.1)
    driver.always.clear()
    pool.release(mine)
    assert results(users) == [None] * 10
    assert pool.stats()["outage_waits_total"] <= 10 + 5


def test_another_error_is_raised_at_once(make: Callable[..., Pool], driver: FakeDriver) -> None:
    pool = make(timeout=MAX_WAIT_SECONDS)
    driver.always["connect"] = Unreachable("refused")
    users = [user(pool) for _ in range(3)]
    settle(lambda: pool.stats()["waiting"] == 3)
    driver.always["connect"] = DriverError("(1045, 'Access denied')")
    assert [str(error) for error in results(users)] == ["(1045, 'Access denied')"] * 3
    assert [str(error) for error in results([user(pool)])] == ["(1045, 'Access denied')"]


def test_who_is_refused_waits_for_a_connection_of_this_worker_as_long_as_it_has_one(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    pool = make(size=1, max_outstanding=3, timeout=MAX_WAIT_SECONDS)
    mine = pool.acquire()
    driver.always["connect"] = DriverError("(1045, 'Access denied')")
    users = [user(pool) for _ in range(3)]
    settle(lambda: pool.stats()["connect_errors_total"] > 1)
    assert pool.stats()["waiting"] == 3
    pool.release(mine)
    assert results(users) == [None] * 3
    mine = pool.acquire()
    last = user(pool)
    settle(lambda: pool.stats()["waiting"] == 1)
    mine.fault = "lost"
    pool.release(mine)
    assert [str(error) for error in results([last])] == ["(1045, 'Access denied')"]


def test_who_is_killed_while_it_is_waited_out_leaves_nothing(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    pool = make(timeout=MAX_WAIT_SECONDS)
    driver.always["connect"] = Unreachable("refused")
    users = [user(pool) for _ in range(10)]
    settle(lambda: pool.stats()["waiting"] == 10)
    for each in users[::2]:
        each.kill()
    driver.always.clear()
    assert results(users[1::2]) == [None] * 5


def test_a_probe_opens_one_connection_and_no_more_than_the_cap(
    make: Callable[..., Pool], driver: FakeDriver
) -> None:
    pool = make(size=1, max_outstanding=1)
    gate = driver.always["connect"] = Event()
    pool.probe()
    pool.probe()
    settle(lambda: driver.connecting == 1)
    gate.set()
    settle(lambda: pool.stats()["idle"] == 1)
    pool.probe()
    assert driver.calls["connect"] == 1
    pool.close()
    pool.probe()
    assert driver.calls["connect"] == 1


def test_the_rule() -> None:
    outage = Outage()

    class Entry:
        leased_at = 3.0

    assert not outage.is_long(100.0, 10.0, [], connecting=False)
    assert outage.failed(2.0, 2.0)
    assert not outage.failed(11.0, 11.0)
    assert not outage.is_long(11.9, 10.0, [], connecting=False)
    assert outage.is_long(12.0, 10.0, [], connecting=False)
    assert not outage.is_long(12.0, 10.0, [Entry()], connecting=False)
    assert not outage.is_long(21.0, 10.0, [], connecting=False)
    assert outage.is_long(21.0, 10.0, [], connecting=True)
    outage.tried(20.0, 10.0)
    assert outage.is_long(22.0, 10.0, [], connecting=True)
    outage.tried(30.0, 10.0)  # nothing is known any more
    assert not outage.is_long(30.0, 10.0, [], connecting=True)
    outage.failed(30.0, 31.0)
    assert outage.is_long(31.0, 10.0, [], connecting=False)
    outage.end()
    assert not outage.is_long(12.0, 10.0, [], connecting=True)


def test_an_inquiry_that_is_answered_ends_it(make: Callable[..., Pool], driver: FakeDriver) -> None:
    """Else the next request would be refused, after a line that the database is back."""
    pool = make()
    go_through(pool, driver, Unreachable("refused"))
    driver.always.clear()
    assert pool.inquire(1.0) is True
    assert not pool.out
    with leased(pool):
        pass
    assert pool.stats()["timeouts_total"] == 3
