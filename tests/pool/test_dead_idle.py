"""Idle connections that the server has closed, in a pool that nobody uses."""

from __future__ import annotations

import pytest
from gevent.event import Event

from pooled_serve.pool import PoolListener, base
from support.driver import DriverError, FakeConnection, FakeDriver, leased, settle
from support.pools import MakePool, Pool


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    pool = make_pool(is_outage=lambda error: isinstance(error, DriverError))
    with leased(pool), leased(pool):
        pass
    assert pool.stats()["idle"] == 2
    return pool


def look(pool: Pool) -> None:
    """As a worker does, four times a second."""
    pool.drop_dead()
    settle(lambda: pool.stats()["closing"] == 0 and pool.stats()["connecting"] == 0)


def die(*connections: FakeConnection) -> None:
    for each in connections:
        each.alive = False


def test_they_are_closed(pool: Pool, driver: FakeDriver) -> None:
    first, last = driver.open
    die(first)
    look(pool)
    look(pool)
    assert driver.open == [last]
    assert pool.stats()["closed_total"]["dead"] == 1
    assert driver.calls["connect"] == 2, "some are left, so the server is there"


def test_when_all_have_died_the_server_is_asked_once(pool: Pool, driver: FakeDriver) -> None:
    die(*driver.open)
    for _ in range(4):
        look(pool)
    assert driver.calls["connect"] == 3
    stats = pool.stats()
    assert (stats["idle"], stats["acquired_total"]) == (1, 2), "that is no use of the pool"


def test_an_outage_is_found_though_nobody_uses_the_pool(pool: Pool, driver: FakeDriver) -> None:
    driver.always["connect"] = DriverError("refused")
    die(*driver.open)
    look(pool)
    look(pool)
    assert pool.out
    assert pool.stats()["connect_errors_total"] == 1


def test_one_in_use_tells_by_itself(pool: Pool, driver: FakeDriver) -> None:
    with leased(pool) as used:
        die(*(each for each in driver.open if each is not used))
        look(pool)
        look(pool)
        assert driver.open == [used]
    look(pool)
    assert driver.calls["connect"] == 2


def test_it_is_asked_once_the_dead_ones_are_closed(pool: Pool, driver: FakeDriver) -> None:
    """Or there might be more than the cap."""
    closed = Event()
    driver.plan["close"] = [closed, closed]
    die(*driver.open)
    for _ in range(3):
        pool.drop_dead()
        settle()
    assert driver.calls["connect"] == 2
    closed.set()
    settle(lambda: not driver.open)
    look(pool)
    assert driver.calls["connect"] == 3


def test_who_has_connected_meanwhile_has_asked(pool: Pool, driver: FakeDriver) -> None:
    die(*driver.open)
    look(pool)
    with leased(pool):
        look(pool)
    assert driver.calls["connect"] == 3
    (left,) = driver.open
    pool.clear()
    look(pool)
    look(pool)
    assert left.closed
    assert driver.calls["connect"] == 3, "the pool itself has closed that one"


def test_a_closed_pool_asks_nobody(pool: Pool, driver: FakeDriver) -> None:
    die(*driver.open)
    pool.drop_dead()
    pool.close()
    look(pool)
    assert driver.calls["connect"] == 2
    assert not driver.open


class Curious(PoolListener):
    """Counts how often it is told that nothing was heard of the server."""

    told = 0

    def stale(self) -> None:
        self.told += 1


@pytest.mark.parametrize(
    ("seconds", "told"), [(base.STALE_SECONDS - 0.1, 0), (base.STALE_SECONDS + 0.1, 1)]
)
def test_what_was_heard_is_stale_after_a_while(
    make_pool: MakePool, seconds: float, told: int
) -> None:
    now, listener, asks = 100.0, Curious(), True
    pool = make_pool(
        clock=lambda: now, listeners=(listener,), awaits=lambda conn: "this" if asks else None
    )
    now += 1000.0
    pool.check_freshness()
    assert listener.told == 0, "it was never used"
    with leased(pool):
        pass
    now += seconds
    with leased(pool):
        pool.refresh_gauges()
        now += seconds
        pool.check_freshness()
        assert listener.told == 0, "somebody waits for an answer"
        now -= seconds
        asks = False
        pool.refresh_gauges()  # there is one
        now += seconds
        pool.check_freshness()
        assert listener.told == told, "who has a connection, and asks nothing, hears nothing"
    pool.check_freshness()
    assert listener.told == told, "the last one has just come back"
    now += seconds
    pool.check_freshness()
    pool.close()
    pool.check_freshness()
    assert listener.told == 2 * told
