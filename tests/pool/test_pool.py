"""The pool's rules, one sentence each, on a driver whose timing is exact."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.os
import greenlet
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import FAILED_OVER, ConnectionPool, PoolListener, backoff, retiring
from support.driver import (
    NEVER,
    DriverError,
    FakeConnection,
    FakeDriver,
    assert_sound,
    leased,
    settle,
)
from support.processes import MAX_WAIT_SECONDS

Pool = ConnectionPool[FakeConnection]
MakePool = Callable[..., Pool]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def make_pool(driver: FakeDriver) -> Iterator[MakePool]:
    """Makes pools, and after the test asserts that they are sound."""
    made: list[Pool] = []

    def make(**options: Any) -> Pool:
        made.append(driver.pool(**options))
        return made[-1]

    yield make
    for pool in made:
        if not pool._closed:
            assert_sound(pool, driver)
            pool.close()


def hold(pool: Pool, until: Event, log: list[Any] | None = None, **options: Any) -> gevent.Greenlet:
    """A greenlet that takes a connection and keeps it until the event."""

    def run() -> FakeConnection:
        with leased(pool, **options) as connection:
            if log is not None:
                log.append(gevent.getcurrent())
            until.wait()
            return connection

    started = gevent.spawn(run)
    gevent.sleep(0)
    return started


class Clock:
    """Stands still, unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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


# --- Leases for a block ------------------------------------------------------------------------


def test_a_lease_gives_back_however_its_block_ends(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    with pool.lease() as first:
        assert pool.stats()["in_use"] == 1
    assert pool.stats()["idle"] == 1
    second = None
    try:
        with pool.lease() as second:
            second.dirty = True
            raise DriverError("in the block")
    except DriverError:
        pass
    assert pool.stats()["reset_total"] == 1, "given back like any other"
    with pool.lease(timeout=1) as third:
        assert third is second is first
        with pytest.raises(PoolTimeout), pool.lease(timeout=0.01):
            pytest.fail("there is no second one")


@pytest.mark.parametrize("end", [greenlet.GreenletExit, gevent.Timeout])
@pytest.mark.parametrize("step", ["wait", "connect", "ping", "reset", "block"])
def test_a_lease_is_given_back_wherever_its_greenlet_is_killed(
    step: str, end: type[BaseException], make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1, ping_after=0)
    block, reached = Event(), Event()

    def user() -> None:
        with pool.lease() as connection:
            connection.dirty = True
            reached.set()
            if step != "reset":
                block.wait()

    if step in driver.plan:
        if step == "ping":
            pool.release(pool.acquire())
        driver.plan[step] = [NEVER]
    taken = pool.acquire() if step == "wait" else None
    running = gevent.spawn(user)
    running.link_exception(lambda _: None)
    settle(
        lambda: (
            driver.calls[step] == 1
            if step in driver.plan
            else reached.is_set() or pool.stats()["waiting"] == 1
        )
    )
    with quiet_hub():
        running.kill(end)
    if taken is not None:
        pool.release(taken)
    # make_pool asserts that nothing is lost


def test_a_lease_that_nobody_ended_is_reclaimed(make_pool: MakePool) -> None:
    """As when a signal handler raises between the hand-out and the block."""
    pool = make_pool(size=1, max_outstanding=1)
    lease = pool.lease()
    connection = lease.__enter__()
    with pytest.raises(RuntimeError, match="in use already"):
        lease.__enter__()
    del lease
    settle(lambda: pool.stats()["idle"] == 1)
    assert pool.acquire() is connection
    pool.release(connection)


# --- Age ---------------------------------------------------------------------------------------


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
    refused = [gevent.spawn(pool.acquire, timeout=0.06) for _ in range(20)]
    killed = [hold(pool, done) for _ in range(5)]
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


# --- States ------------------------------------------------------------------------------------


def test_with_a_server_that_never_answers_nothing_is_in_use(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=2, timeout=0.2)
    silence = driver.always["connect"] = Event()
    users = [gevent.spawn(pool.acquire) for _ in range(2)]
    queued = gevent.spawn(pool.acquire, timeout=0.05)
    settle(lambda: pool.stats()["waiting"] == 1)
    stats = pool.stats()
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


def test_forked_while_it_connects_the_child_leaves_the_connection_alone(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    connecting = driver.plan["connect"]
    gate = Event()
    connecting.append(gate)
    user = gevent.spawn(pool.acquire)
    settle(lambda: driver.connecting == 1)
    child = gevent.os.fork_gevent()
    gate.set()
    if child == 0:
        try:
            connection = user.get(timeout=5)
            assert not connection.abandoned
            assert driver.open[0].abandoned
            assert driver.open[0] is not connection
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool.release(user.get(timeout=MAX_WAIT_SECONDS))


# --- Being killed ------------------------------------------------------------------------------


def test_killed_waiters_leave_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    done = Event()
    holder = hold(pool, done)
    users = [hold(pool, done) for _ in range(20)]
    assert pool.stats()["waiting"] == 20
    gevent.killall(users)
    assert pool.stats()["waiting"] == 0
    done.set()
    holder.get()


def test_waiters_ended_by_a_timeout_of_their_own_leave_the_queue(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    with leased(pool):
        mine = gevent.Timeout(0.01)
        with pytest.raises(gevent.Timeout) as caught, mine:
            pool.acquire()
        assert caught.value is mine
        assert pool.stats()["waiting"] == 0


def test_killed_in_the_tick_after_hand_off_passes_it_on(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    taken = pool.acquire()
    done = Event()
    log: list[Any] = []
    first, second = hold(pool, done, log), hold(pool, done, log)
    first.kill(block=False)  # due before the wake-up that release() schedules
    pool.release(taken)
    settle(lambda: bool(log))
    assert log == [second]
    done.set()
    assert second.get() is taken


def test_killed_with_the_right_to_connect_passes_it_on(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    taken = pool.acquire()
    taken.fault = "lost"
    done = Event()
    log: list[Any] = []
    first, second = hold(pool, done, log), hold(pool, done, log)
    pool.release(taken)
    driver.always["connect"] = Event()
    settle(lambda: driver.connecting == 1)
    first.kill()
    settle(lambda: driver.connecting == 1)
    driver.always["connect"].set()
    settle(lambda: bool(log))
    assert log == [second]
    done.set()
    second.get()


STEPS = ("connect", "ping", "reset", "close")
MOODS = {"ok": None, "error": DriverError("no"), "slow": 0.02, "never": NEVER}
ENDS = ("nothing", "kill", "timeout")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("step", STEPS)
def test_whatever_a_step_does_and_whoever_is_killed_nothing_is_lost(
    step: str,
    mood: str,
    end: str,
    make_pool: MakePool,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retiring, "CLOSE_TIMEOUT_SECONDS", 0.1)
    pool = make_pool(size=1, max_outstanding=2, timeout=0.15, ping_after=0)
    if step != "connect":
        with leased(pool) as connection:
            pass
        connection.alive = step != "close"
    driver.plan[step] = [MOODS[mood]]

    def user() -> None:
        with leased(pool) as connection:
            connection.dirty = True

    def limited() -> None:
        with gevent.Timeout(0.01, False):
            user()

    running = gevent.spawn(limited if end == "timeout" else user)
    running.link_exception(lambda _: None)
    gevent.sleep(0.005)
    if end == "kill":
        running.kill()
    # A reset that never returns is bounded by the driver, not by the pool.
    endless = (step, mood, end) == ("reset", "never", "nothing")
    with quiet_hub():
        running.join(timeout=0.2 if endless else MAX_WAIT_SECONDS)
    assert running.ready() != endless
    running.kill()


class quiet_hub:  # noqa: N801 - used like a function
    """Greenlets that fail on purpose print no traceback."""

    def __enter__(self) -> None:
        self.hub = gevent.get_hub()
        self.hub.NOT_ERROR = (*type(self.hub).NOT_ERROR, Exception)

    def __exit__(self, *exc_info: object) -> None:
        del self.hub.NOT_ERROR


# --- Connecting --------------------------------------------------------------------------------


def test_the_deadline_covers_the_connect(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(timeout=0.05)
    driver.plan["connect"] = [NEVER]
    with gevent.Timeout(MAX_WAIT_SECONDS), pytest.raises(PoolTimeout):
        pool.acquire()


def test_a_failed_connect_is_raised_if_nothing_could_come_back(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool()
    error = DriverError("refused")
    driver.plan["connect"] = [error]
    with pytest.raises(DriverError) as caught:
        pool.acquire()
    assert caught.value is error


def test_a_failed_connect_fails_all_who_wait_for_it(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    failing = Event()
    errors: list[BaseException] = []

    def user() -> None:
        try:
            pool.acquire()
        except DriverError as error:
            errors.append(error)

    def refuse() -> None:
        failing.wait()
        raise DriverError("refused")

    pool._open = refuse  # type: ignore[assignment]
    users = [gevent.spawn(user) for _ in range(5)]
    settle(lambda: pool.stats()["waiting"] == 4)
    failing.set()
    gevent.joinall(users, raise_error=True, timeout=MAX_WAIT_SECONDS)
    pool._open = driver.connect
    assert [str(error) for error in errors] == ["refused"] * 5
    assert len({id(error) for error in errors}) == 5  # one traceback each


def test_with_connections_in_use_a_failed_connect_waits_for_their_return(
    make_pool: MakePool, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error 1040: the server is full, but our own will come back."""
    # No attempt falls on the moment of the return: whoever makes it is out of the queue for that
    # long, and the next is served first.
    monkeypatch.setattr(backoff, "FIRST_PAUSE_SECONDS", 1.0)
    pool = make_pool(size=1, max_outstanding=3)
    taken = pool.acquire()
    driver.always["connect"] = DriverError("(1040, 'Too many connections')")
    order: list[int] = []

    def user(number: int) -> None:
        with leased(pool):
            order.append(number)

    users = [gevent.spawn(user, number) for number in range(10)]
    gevent.sleep(0.1)
    assert order == []
    pool.release(taken)
    gevent.joinall(users, raise_error=True, timeout=MAX_WAIT_SECONDS)
    assert order == list(range(10))


def test_attempts_to_connect_are_bounded_by_the_back_off(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    queued: list[float] = []

    class Watch(PoolListener):
        def queued(self) -> None:
            queued.append(time.monotonic())

    pool = make_pool(size=5, max_outstanding=5, listeners=[Watch()])
    driver.always["connect"] = DriverError("refused")
    began = time.monotonic()

    def user() -> None:
        for _ in range(200):
            with pytest.raises(DriverError):
                pool.acquire()
            gevent.sleep(0.005)

    gevent.joinall([gevent.spawn(user) for _ in range(20)], raise_error=True)
    assert not queued, "they fail at once"
    # 50 ms, doubled up to 1 s, less up to half of each; before that, a salvo of the cap
    assert driver.calls["connect"] <= 5 + 5 + 2 * (time.monotonic() - began)


def test_after_an_outage_there_is_one_attempt_and_no_stampede(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=5, max_outstanding=5)
    taken = pool.acquire()  # somebody's long query, so that others queue
    driver.plan["connect"] = [DriverError("refused")]
    users = [gevent.spawn(lambda: pool.release(pool.acquire())) for _ in range(50)]
    settle(lambda: pool.stats()["waiting"] == 50)
    gate = Event()
    driver.always["connect"] = gate
    settle(lambda: driver.connecting == 1)
    gevent.sleep(0.2)
    assert driver.connecting == 1
    gate.set()
    gevent.joinall(users, raise_error=True, timeout=MAX_WAIT_SECONDS)
    pool.release(taken)


def test_a_server_that_never_answers_is_not_asked_by_each_waiter_in_turn(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(timeout=0.1)
    driver.always["connect"] = NEVER
    began = time.monotonic()
    users = []
    for _ in range(100):  # each would be the first in the queue for some milliseconds
        users.append(gevent.spawn(pool.acquire))
        gevent.sleep(0.005)
    gevent.joinall(users)
    assert all(isinstance(user.exception, PoolTimeout) for user in users)
    # The cap, then with pauses as after any failure.
    assert driver.calls["connect"] <= 2 + 5 + 2 * (time.monotonic() - began)


def test_a_connect_begun_too_late_is_not_held_against_the_server(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1, timeout=0.5)
    driver.plan["connect"] = [0, 0.4]
    connection = pool.acquire()
    connection.fault = "lost"
    late = gevent.spawn(pool.acquire)
    gevent.sleep(0.4)
    pool.release(connection)
    late.join()
    assert isinstance(late.exception, PoolTimeout)
    assert pool.stats()["connect_errors_total"] == 0


def test_when_the_server_has_moved_no_older_connection_is_handed_out_again(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=4, max_outstanding=4)
    old = [pool.acquire() for _ in range(4)]
    for connection in old[:2]:
        pool.release(connection)
    old[2].fault = FAILED_OVER
    pool.release(old[2])
    settle(lambda: driver.open == [old[3]])
    with leased(pool) as fresh:
        old[3].fault = FAILED_OVER  # which everybody knows by now
        pool.release(old[3])
    with leased(pool) as again:
        assert again is fresh


def test_a_server_that_stays_read_only_does_not_cost_all_connections_each_time(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(clock=Clock())  # all within the same second
    for _ in range(20):
        with leased(pool), leased(pool) as writer:
            writer.fault = FAILED_OVER
    assert driver.calls["connect"] <= 2 + 20 + 1


def test_recovery_is_found_by_the_next_user(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool()
    driver.plan["connect"] = [DriverError("refused")]
    with pytest.raises(DriverError):
        pool.acquire()
    with pytest.raises(DriverError):
        pool.acquire()  # backing off: at once, with the last error
    assert driver.calls["connect"] == 1
    gevent.sleep(0.06)
    with leased(pool):
        pass
    assert pool.stats()["connect_errors_total"] == 1


# --- Holders that are gone ----------------------------------------------------------------------


def test_a_reclaimed_connection_is_reused_if_clean(make_pool: MakePool, driver: FakeDriver) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    connection = pool.acquire()
    waiting = gevent.spawn(pool.acquire)
    gevent.sleep(0)
    pool.reclaim(connection)
    assert waiting.get(timeout=MAX_WAIT_SECONDS) is connection
    pool.reclaim(connection)
    settle(lambda: pool.stats()["idle"] == 1)
    assert driver.calls["connect"] == 1


def test_a_reclaimed_connection_is_closed_if_dirty(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = pool.acquire()
    connection.dirty = True
    pool.reclaim(connection)
    settle(lambda: connection.closed)
    assert pool.stats()["closed_total"] == {"abandoned": 1}


def test_reclaim_from_another_thread(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    connection = pool.acquire()
    gevent.get_hub().threadpool.spawn(pool.reclaim, connection)
    with leased(pool) as again:
        assert again is connection


def test_reclaim_after_release_does_nothing(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = pool.acquire()
    pool.release(connection)
    pool.reclaim(connection)
    settle()
    assert pool.stats()["idle"] == 1


def test_a_signal_in_the_middle_of_acquire_and_release(make_pool: MakePool) -> None:
    """Handlers and finalizers run between any two bytecodes; they may only enqueue."""
    pool = make_pool(size=3, max_outstanding=3)
    fired = []

    def handler(*args: object) -> None:
        if orphans:
            pool.reclaim(orphans.pop())
            fired.append(True)

    orphans: list[FakeConnection] = []
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        end = time.monotonic() + MAX_WAIT_SECONDS
        while len(fired) < 500:
            assert time.monotonic() < end, len(fired)
            if not orphans and pool.stats()["in_use"] < 2:
                orphans.append(pool.acquire())
            pool.release(pool.acquire())
            gevent.sleep(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for connection in orphans:
        pool.release(connection)


def test_plain_greenlets_can_wait_too(make_pool: MakePool) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    taken = pool.acquire()
    got: list[FakeConnection] = []
    plain = greenlet.greenlet(lambda: got.append(pool.acquire()), parent=gevent.get_hub())
    gevent.get_hub().loop.run_callback(plain.switch)
    settle(lambda: pool.stats()["waiting"] == 1)
    pool.release(taken)
    settle(lambda: bool(got))
    pool.release(got[0])


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
    pool._keep_idle = pool.size  # so that assert_sound() may take it to the cap


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


def test_a_forked_child_leaves_the_parents_connections_alone(driver: FakeDriver) -> None:
    pool = driver.pool(size=2, max_outstanding=2)
    idle, taken = pool.acquire(), pool.acquire()
    pool.release(idle)
    child = os.fork()
    if child == 0:
        try:
            assert idle.abandoned
            assert taken.abandoned
            assert driver.calls["close"] == 0
            pool.release(taken)  # the child's copy of its user does not know better
            fresh = [pool.acquire(), pool.acquire()]
            assert idle not in fresh
            assert taken not in fresh
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not taken.abandoned
    pool.release(taken)
    assert pool.stats()["idle"] == 2
    pool.close()


def test_forked_while_a_connection_is_reset_the_child_leaves_it_alone(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    resetting = Event()
    driver.plan["reset"] = [resetting]
    taken = pool.acquire()
    taken.dirty = True
    user = gevent.spawn(pool.release, taken)
    settle(lambda: driver.calls["reset"] == 1)
    child = gevent.os.fork_gevent()
    resetting.set()
    if child == 0:
        try:
            user.get(timeout=1)
            assert pool.stats()["idle"] == pool.stats()["in_use"] == 0
            assert pool.acquire() is not taken
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    user.get(timeout=1)
    assert pool.acquire() is taken
    pool.release(taken)


# --- Cost --------------------------------------------------------------------------------------


def count_calls(function: Callable[[], object]) -> int:
    """Calls of Python and C functions; a slow-down shows here without a clock."""
    calls = 0

    def profiler(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profiler)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_after_a_silent_outage_it_recovers_while_requests_go_on_timing_out(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    """The head of the queue has next to no time left, and connecting takes longer than that."""
    frozen, up = Event(), [True]
    served: list[FakeConnection] = []
    pool = make_pool(size=4, max_outstanding=4, timeout=0.5)
    connect = pool._open

    def slow_connect() -> FakeConnection:
        if not up[0]:
            frozen.wait()
        gevent.sleep(0.05)
        return connect()

    pool._open = slow_connect
    users = []

    def user() -> None:
        with contextlib.suppress(PoolTimeout), leased(pool) as connection:
            served.append(connection)
            gevent.sleep(0.005)

    def come_until(condition: Callable[[], bool]) -> None:
        """One every 10 ms."""
        end = time.monotonic() + MAX_WAIT_SECONDS
        while not condition():
            assert time.monotonic() < end, pool.stats()
            users.append(gevent.spawn(user))
            gevent.sleep(0.01)

    come_until(lambda: len(served) >= 20)
    up[0] = False
    for connection in driver.open:
        connection.alive = False
    outage = time.monotonic() + 1.5
    come_until(lambda: time.monotonic() > outage)
    up[0] = True
    served.clear()
    come_until(lambda: len(served) >= 20)
    gevent.joinall(users, raise_error=True)
    frozen.set()


def test_a_failed_connect_takes_what_came_back_meanwhile(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=2, max_outstanding=2)
    first = pool.acquire()
    failing = Event()

    def connect() -> FakeConnection:
        failing.wait()
        raise DriverError("(1040, 'Too many connections')")

    connect_well, pool._open = pool._open, connect
    user = gevent.spawn(pool.acquire)
    gevent.sleep(0.01)
    pool.release(first)  # nobody is in the queue, so it becomes idle
    failing.set()
    assert user.get(timeout=MAX_WAIT_SECONDS) is first
    pool._open = connect_well
    pool.release(first)


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


def test_the_fast_path_makes_few_calls(make_pool: MakePool) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(FakeDriver().connect, max_age=60)
    pool.release(pool.acquire())

    def cycle() -> None:
        pool.release(pool.acquire())

    # cycle: acquire, clock, pop, _usable, check; release, id, pop, clock, bisect_left, condition,
    # _put_back, len, append; and the profiler's own end
    assert count_calls(cycle) <= 16
