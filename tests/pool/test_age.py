"""When a connection is retired."""

from __future__ import annotations

import itertools
import time

import gevent
import pytest

from support.driver import FakeDriver, leased, settle
from support.pools import Clock, MakePool
from support.processes import MAX_WAIT_SECONDS


def test_a_connection_retires_at_its_age_when_it_comes_back(driver: FakeDriver) -> None:
    clock = Clock()
    pool = driver.pool(max_age=60, clock=clock)
    connection = pool.acquire()
    clock.now += 53  # not before 60 less a tenth
    pool.release(connection)
    assert pool.acquire() is connection
    clock.now += 8
    pool.release(connection)
    settle(lambda: connection.closed)
    assert pool.stats()["closed_total"] == {"age": 1}


def test_a_connection_that_aged_while_idle_is_not_handed_out(driver: FakeDriver) -> None:
    clock = Clock()
    pool = driver.pool(max_age=60, clock=clock)
    old = pool.acquire()
    pool.release(old)
    clock.now += 61
    assert pool.acquire() is not old


def test_expiry_at_hand_off_yields_a_fresh_connection(driver: FakeDriver) -> None:
    clock = Clock()
    pool = driver.pool(size=1, max_outstanding=1, max_age=60, clock=clock)
    old = pool.acquire()
    waiting = gevent.spawn(pool.acquire)
    gevent.sleep(0)
    clock.now += 59  # may be past its age or not: either is right, an error is not
    pool.release(old)
    clock.now += 2
    assert waiting.get(timeout=MAX_WAIT_SECONDS) is not old
    assert len(driver.open) == 1


def test_idle_connections_are_closed_at_their_age_in_the_background(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    clock = Clock()
    pool = make_pool(max_age=0.05, clock=clock)
    with leased(pool), leased(pool):
        pass
    assert pool.stats()["idle"] == 2
    clock.now += 0.05
    settle(lambda: not driver.open)
    assert pool.stats()["closed_total"] == {"age": 2}
    assert pool.stats()["idle"] == 0


def test_an_older_one_that_comes_back_later_is_closed_at_its_own_age(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    ages = iter([0.05])
    pool = make_pool(max_age=lambda connection: next(ages, 3600.0))
    short, long = pool.acquire(), pool.acquire()
    pool.release(long)
    pool.release(short)
    settle(lambda: short.closed)
    assert not long.closed


def test_connections_opened_together_retire_apart(driver: FakeDriver) -> None:
    pool = driver.pool(size=50, max_outstanding=50, max_age=100, clock=Clock())
    taken = [pool.acquire() for _ in range(50)]
    dates = sorted(entry.expires - 1000 for entry in pool._leased.values())
    assert len(taken) == 50
    assert dates[0] >= 90
    assert dates[-1] <= 100
    assert dates[-1] - dates[0] > 5
    assert max(b - a for a, b in itertools.pairwise(dates)) < 3


def test_wall_clock_jumps_do_not_matter(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(max_age=100, timeout=0.5)
    with leased(pool) as first:
        pass
    for jump in (3600, -3600):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with leased(pool) as again:
            assert again is first
    assert pool.stats()["closed_total"] == {}
