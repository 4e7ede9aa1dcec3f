"""Users that are killed, time out, or never give back: nothing of theirs is lost."""

from __future__ import annotations

import signal
import time
from typing import Any

import gevent
import greenlet
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import retiring
from support.driver import NEVER, DriverError, FakeConnection, FakeDriver, leased, settle
from support.pools import MakePool, hold, quiet_hub
from support.processes import MAX_WAIT_SECONDS

# --- Killed ------------------------------------------------------------------------------------


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


# --- Holders that are gone ---------------------------------------------------------------------


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
