"""The pool's rules, one sentence each, on a driver whose timing is exact."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import ConnectionPool, retiring
from support.driver import (
    NEVER,
    DriverError,
    FakeConnection,
    FakeDriver,
    assert_sound,
    leased,
    settle,
)
from support.pools import Clock, MakePool, Pool, count_calls, hold, quiet_hub
from support.processes import MAX_WAIT_SECONDS

# --- Taking and giving back --------------------------------------------------------------------


def test_the_documented_short_form_works() -> None:
    class Connection:
        def close(self) -> None:
            pass

    pool = ConnectionPool(Connection, size=10, max_outstanding=10, timeout=10)
    connection = pool.acquire()
    pool.release(connection)
    assert pool.acquire() is connection
    pool.release(connection)
    pool.close()


def test_the_last_one_given_back_is_the_first_one_taken(make_pool: MakePool) -> None:
    pool = make_pool(size=3, max_outstanding=3)
    first, second, third = (pool.acquire() for _ in range(3))
    for connection in (second, first, third):
        pool.release(connection)
    assert [pool.acquire() for _ in range(3)] == [third, first, second]
    for connection in (first, second, third):
        pool.release(connection)


def test_no_more_than_size_stay_idle(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(size=2, max_outstanding=5)
    taken = [pool.acquire() for _ in range(5)]
    for connection in taken:
        pool.release(connection)
    settle(lambda: len(driver.open) == 2)
    assert pool.stats()["idle"] == 2
    assert pool.stats()["closed_total"] == {"surplus": 3}


def test_the_cap_holds_while_connects_are_slow(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(size=2, max_outstanding=3)
    driver.always["connect"] = 0.01
    done = Event()
    users = [hold(pool, done) for _ in range(10)]
    settle(lambda: len(driver.open) == 3)
    assert driver.calls["connect"] == 3
    done.set()
    gevent.joinall(users, raise_error=True)
    assert driver.peak == 3


def test_without_a_cap_nobody_waits(driver: FakeDriver) -> None:
    pool = driver.pool(size=2, max_outstanding=None)
    taken = [pool.acquire() for _ in range(100)]
    assert pool.stats()["in_use"] == 100
    assert pool.stats()["max_outstanding"] is None
    for connection in taken:
        pool.release(connection)
    pool.close()
    assert not driver.open


def test_giving_back_twice_is_an_error(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = pool.acquire()
    pool.release(connection)
    with pytest.raises(ValueError, match="not handed out"):
        pool.release(connection)


def test_a_strangers_connection_is_refused(make_pool: MakePool, driver: FakeDriver) -> None:
    stranger = FakeConnection(driver, 0)
    with pytest.raises(ValueError, match="not handed out"):
        make_pool().release(stranger)


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": 3, "max_outstanding": 2}, {"timeout": 0}, {"max_outstanding": 0}],
)
def test_numbers_that_make_no_sense_are_refused(driver: FakeDriver, options: Any) -> None:
    with pytest.raises(ValueError, match=r"must|need"):
        driver.pool(**options)


def test_a_dead_idle_connection_is_replaced(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool()
    with leased(pool) as dead:
        pass
    dead.alive = False
    with leased(pool) as fresh:
        assert fresh is not dead
    assert pool.stats()["closed_total"] == {"dead": 1}


def test_after_a_restart_of_the_server_all_dead_ones_go(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=4, max_outstanding=4)
    taken = [pool.acquire() for _ in range(4)]
    for connection in taken:
        pool.release(connection)
        connection.alive = False
    with leased(pool) as fresh:
        assert fresh.alive
    assert pool.stats()["closed_total"] == {"dead": 4}


def test_a_ping_without_an_answer_speaks_for_all_that_were_idle_for_as_long(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    clock = Clock()
    pool = make_pool(size=3, max_outstanding=3, ping_after=30, clock=clock)
    first, *others = (pool.acquire() for _ in range(3))
    for connection in others:
        pool.release(connection)
    clock.now += 20
    pool.release(first)
    clock.now += 20
    driver.plan["ping"] = [DriverError("no answer")]
    with leased(pool) as recent:
        assert recent is first
        with leased(pool):
            pass
    assert driver.calls["ping"] == 1
    assert pool.stats()["closed_total"] == {"dead": 2}


def test_a_broken_connection_is_not_reused(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool()
    with leased(pool) as broken:
        broken.fault = "lost"
    with leased(pool) as fresh:
        assert fresh is not broken
    assert pool.stats()["closed_total"] == {"lost": 1}


def test_a_dirty_connection_is_cleaned_and_reused(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool()
    with leased(pool) as first:
        first.dirty = True
    with leased(pool) as second:
        assert second is first
        assert not second.dirty
    assert pool.stats()["reset_total"] == 1


def test_an_error_while_cleaning_closes_and_is_not_raised(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool()
    driver.plan["reset"] = [DriverError("gone")]
    with leased(pool) as connection:
        connection.dirty = True
    settle(lambda: connection.closed)
    assert pool.stats()["closed_total"] == {"reset failed": 1}


def test_a_reset_that_leaves_a_connection_dirty_closes_it(
    make_pool: MakePool, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "reset", lambda connection: None)
    pool = make_pool()
    with leased(pool) as connection:
        connection.dirty = True
    settle(lambda: connection.closed)
    assert pool.stats()["closed_total"] == {"dirty": 1}


# --- Waiting -----------------------------------------------------------------------------------


def test_waiters_are_served_in_the_order_they_came(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    order: list[int] = []
    done = Event()
    holder = hold(pool, done)

    def user(number: int) -> None:
        with leased(pool):
            order.append(number)
            gevent.sleep(0)

    users = []
    for number in range(50):
        users.append(gevent.spawn(user, number))
        gevent.sleep(0)
    done.set()
    gevent.joinall([holder, *users], raise_error=True)
    assert order == list(range(50))
    assert pool.stats()["waited_total"] == 50


def test_whoever_gives_back_cannot_take_it_again_before_the_waiters(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    order: list[str] = []

    def greedy() -> None:
        for _ in range(3):
            with leased(pool):
                order.append("greedy")
                gevent.sleep(0.001)

    def patient() -> None:
        with leased(pool):
            order.append("patient")

    users = [gevent.spawn(greedy), gevent.spawn(patient)]
    gevent.joinall(users, raise_error=True)
    assert order == ["greedy", "patient", "greedy", "greedy"]


def test_the_queue_times_out_at_the_deadline_and_not_before(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1, timeout=0.1)
    done = Event()
    holder = hold(pool, done)
    seconds = []

    def user() -> None:
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire()
        seconds.append(time.monotonic() - began)

    users = [gevent.spawn(user) for _ in range(20)]
    gevent.joinall(users, raise_error=True)
    assert min(seconds) >= 0.0999
    assert max(seconds) < MAX_WAIT_SECONDS
    assert pool.stats()["timeouts_total"] == 20
    done.set()
    holder.get()


def test_a_timeout_says_how_long_the_longest_lease_has_lasted(driver: FakeDriver) -> None:
    clock = Clock()
    pool = driver.pool(clock=clock)
    with leased(pool):
        clock.now += 7.25
        with leased(pool), pytest.raises(PoolTimeout, match=r"longest held 7\.2s"):
            pool.acquire(timeout=0.01)
    pool.close()


def test_a_timeout_says_what_the_pool_looked_like(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=2, name="default", clock=Clock())
    with leased(pool), leased(pool), pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.01)
    assert str(caught.value) == (
        "pool 'default': no connection within 0.01s (2 in use, 0 idle, 1 waiting, cap 2, "
        "longest held 0.0s)"
    )


def test_a_nested_acquire_at_cap_one_ends_in_a_clear_timeout(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1, timeout=0.05)
    with leased(pool), pytest.raises(PoolTimeout, match="1 in use, 0 idle"):
        pool.acquire()


def test_timeout_in_the_same_tick_as_release_is_exactly_one_of_the_two() -> None:
    outcomes = set()
    for attempt in range(60):
        driver = FakeDriver()
        pool = driver.pool(size=1, max_outstanding=1)
        taken = pool.acquire()

        def user(pool: Pool = pool) -> str:
            try:
                with leased(pool, timeout=0.01):
                    return "served"
            except PoolTimeout:
                return "timed out"

        waiting = gevent.spawn(user)
        gevent.sleep(0)
        # The loop sees both at once: it was not looked at since before they were due.
        time.sleep(0.009 + attempt % 5 * 0.0005)
        gevent.get_hub().loop.run_callback(pool.release, taken)
        outcomes.add(waiting.get(timeout=MAX_WAIT_SECONDS))
        assert_sound(pool, driver)
    assert outcomes <= {"served", "timed out"}


def test_ten_thousand_waiters_cost_no_more_than_ten_to_serve(driver: FakeDriver) -> None:
    def calls_per_hand_off(waiters: int) -> float:
        pool = FakeDriver().pool(size=1, max_outstanding=1, timeout=600)
        taken = pool.acquire()
        users = [gevent.spawn(lambda: pool.release(pool.acquire())) for _ in range(waiters)]
        settle(lambda: pool.stats()["waiting"] == waiters)

        def serve_all() -> None:
            pool.release(taken)
            gevent.joinall(users)

        calls = count_calls(serve_all)
        return calls / waiters

    few, many = calls_per_hand_off(10), calls_per_hand_off(10_000)
    assert many < few * 1.2


def test_a_wait_in_vain_is_a_wait(make_pool: MakePool, driver: FakeDriver) -> None:
    """Refused, killed and failed ones: else a storm of 503s looks like no wait at all."""
    pool = make_pool(size=1, max_outstanding=1)
    done = Event()
    holder = hold(pool, done)
    killed = [hold(pool, done) for _ in range(5)]  # first, so that none waits for less
    refused = [gevent.spawn(pool.acquire, timeout=0.06) for _ in range(20)]
    gevent.joinall(refused)
    gevent.killall(killed)
    stats = pool.stats()
    assert (stats["timeouts_total"], stats["waited_total"], stats["acquired_total"]) == (20, 0, 1)
    assert stats["wait_seconds_buckets"]["0.05"] == 1, "the holder, at once"
    assert stats["wait_seconds_buckets"]["+Inf"] == 26
    assert stats["wait_seconds_total"] >= 25 * 0.05

    failing = gevent.spawn(pool.acquire)
    settle(lambda: pool.stats()["waiting"] == 1)
    driver.always["connect"] = DriverError("refused")
    holder.link_exception(lambda _: None)
    driver.open[0].fault = "lost"
    done.set()
    with pytest.raises(DriverError):
        failing.get(timeout=MAX_WAIT_SECONDS)
    stats = pool.stats()
    assert (stats["timeouts_total"], stats["acquired_total"]) == (20, 1)
    assert stats["wait_seconds_buckets"]["+Inf"] == 27


def test_a_wait_in_vain_for_a_connect_is_one_too(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(timeout=0.06)
    driver.plan["connect"] = [NEVER]
    with pytest.raises(PoolTimeout):
        pool.acquire()
    stats = pool.stats()
    assert (stats["timeouts_total"], stats["waited_total"]) == (1, 0)
    assert stats["wait_seconds_buckets"]["0.05"] == 0
    assert stats["wait_seconds_buckets"]["+Inf"] == 1


def test_after_a_failed_ping_its_caller_is_still_first(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1, ping_after=0.0)
    pool.release(pool.acquire())
    driver.plan["ping"].append(DriverError("dead"))
    driver.plan["close"].append(0.02)
    order: list[str] = []

    def user(name: str) -> None:
        with leased(pool):
            order.append(name)

    users = [gevent.spawn(user, name) for name in ("first", "second")]
    gevent.joinall(users, raise_error=True)
    assert order == ["first", "second"]


# --- States ------------------------------------------------------------------------------------


def test_with_a_server_that_never_answers_nothing_is_in_use(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=2, timeout=0.2)
    silence = driver.always["connect"] = Event()
    users = [gevent.spawn(pool.acquire) for _ in range(2)]
    queued = gevent.spawn(pool.acquire, timeout=0.05)
    gevent.sleep(0)  # no longer: it does not wait for long
    stats = pool.stats()
    assert stats["waiting"] == 1
    assert (stats["in_use"], stats["connecting"], stats["closing"], stats["idle"]) == (0, 2, 0, 0)
    assert pool.describe() == "0 in use, 0 idle, 2 connecting, 1 waiting, cap 2"
    queued.join()
    error = queued.exception
    assert isinstance(error, PoolTimeout)
    assert (error.in_use, error.connecting, error.closing, error.idle) == (0, 2, 0, 0)
    assert "(0 in use, 0 idle, 2 connecting, 1 waiting, cap 2)" in str(error)
    gevent.joinall(users)
    assert all(isinstance(user.exception, PoolTimeout) for user in users)
    assert all(user.exception.in_use == 0 for user in users)
    silence.set()


def test_what_is_reset_or_closed_is_not_in_use(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(size=2, max_outstanding=2)
    one, other = pool.acquire(), pool.acquire()
    resetting, closing = Event(), Event()
    driver.plan["reset"], driver.plan["close"] = [resetting], [closing]
    one.dirty, other.fault = True, "lost"
    cleaner = gevent.spawn(pool.release, one)
    pool.release(other)
    settle(lambda: driver.calls["reset"] == driver.calls["close"] == 1)
    stats = pool.stats()
    assert (stats["in_use"], stats["closing"], stats["idle"]) == (0, 2, 0)
    assert pool.describe() == "0 in use, 0 idle, 1 resetting, 1 closing, 0 waiting, cap 2"
    resetting.set()
    closing.set()
    cleaner.get(timeout=MAX_WAIT_SECONDS)
    settle(lambda: pool.stats()["closing"] == 0)


def test_while_a_connection_is_pinged_it_is_held_since_now(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    now = [1000.0]
    pool = make_pool(size=1, max_outstanding=1, ping_after=30.0, clock=lambda: now[0])
    pool.release(pool.acquire())
    now[0] += 3600
    driver.plan["ping"].append(0.05)
    user = gevent.spawn(pool.acquire)
    gevent.sleep(0.01)
    assert pool.stats()["in_use"] == 1
    assert pool.stats()["oldest_held_seconds"] == 0
    assert "longest held 0.0s" in pool.describe()
    pool.release(user.get())


# --- The end -----------------------------------------------------------------------------------


def test_draining_keeps_nothing_idle_and_serves_those_in_the_queue(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=2, max_outstanding=2)
    done = Event()
    users = [hold(pool, done) for _ in range(5)]
    pool.drain()
    done.set()
    gevent.joinall(users, raise_error=True)
    settle(lambda: not driver.open)
    assert pool.stats()["closed_total"]["drain"] == 2
    pool.resume()  # so that assert_sound() may take it to the cap


def test_a_closed_pool_closes_idle_ones_and_refuses(driver: FakeDriver) -> None:
    pool = driver.pool(size=2, max_outstanding=2)
    pool.release(pool.acquire())
    taken = pool.acquire()
    other = pool.acquire()
    waiting = gevent.spawn(pool.acquire)
    gevent.sleep(0)
    pool.release(other)
    assert waiting.get(timeout=MAX_WAIT_SECONDS) is other
    late = gevent.spawn(pool.acquire)
    gevent.sleep(0)
    pool.close()
    with pytest.raises(PoolClosed), quiet_hub():
        late.get(timeout=MAX_WAIT_SECONDS)
    with pytest.raises(PoolClosed):
        pool.acquire()
    pool.release(taken)
    pool.release(other)
    settle(lambda: not driver.open)


def test_a_close_that_never_returns_is_not_waited_for(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retiring, "CLOSE_TIMEOUT_SECONDS", 0.05)
    pool = driver.pool()
    pool.release(pool.acquire())
    driver.always["close"] = NEVER
    with gevent.Timeout(MAX_WAIT_SECONDS):
        pool.close(timeout=3600)


# --- Cost --------------------------------------------------------------------------------------


def test_the_fast_path_makes_few_calls(make_pool: MakePool) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(FakeDriver().connect, max_age=60)
    pool.release(pool.acquire())

    def cycle() -> None:
        pool.release(pool.acquire())

    # cycle: acquire, clock, pop, _usable, check; release, id, pop, clock, bisect_left, condition,
    # _put_back, len, append; and the profiler's own end
    assert count_calls(cycle) <= 16


def test_the_most_in_use_is_known_between_two_looks_for_one_to_two_seconds(
    make_pool: MakePool,
) -> None:
    now = 100.0
    pool = make_pool(size=1, max_outstanding=5, clock=lambda: now)
    pool.refresh_gauges()
    conns = [pool.acquire() for _ in range(4)]
    for conn in conns:
        pool.release(conn)
    for seconds, most in ((0.25, 4), (0.8, 4), (1.0, 0)):
        now += seconds
        assert (pool.stats()["in_use"], pool.stats()["most_in_use"]) == (0, most)
    with leased(pool):
        assert pool.stats()["most_in_use"] == 1
