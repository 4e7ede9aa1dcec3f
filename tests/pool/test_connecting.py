"""When the server refuses connections, does not answer, or has moved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import FAILED_OVER, PoolListener, backoff
from pooled_serve.pool.asked import TURN_SECONDS, Asked
from pooled_serve.pool.connecting import got_no_answer
from support.driver import NEVER, DriverError, FakeConnection, FakeDriver, leased, settle
from support.greenlets import join_all
from support.pools import Clock, MakePool
from support.processes import MAX_WAIT_SECONDS


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
    join_all(users)
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
    join_all(users)
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
    gate = driver.always["connect"] = Event()
    users = [gevent.spawn(lambda: pool.release(pool.acquire())) for _ in range(50)]
    settle(lambda: pool.stats()["waiting"] == 50)
    settle(lambda: driver.connecting == 1)
    gevent.sleep(0.2)
    assert driver.connecting == 1
    gate.set()
    join_all(users)
    pool.release(taken)


@pytest.mark.usefixtures("all_time_counts")
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
    gevent.sleep(0)  # its time begins before that of the sleep
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
    clock = Clock()
    pool = make_pool(clock=clock)
    driver.plan["connect"] = [DriverError("refused")]
    with pytest.raises(DriverError):
        pool.acquire()
    with pytest.raises(DriverError):
        pool.acquire()  # backing off: at once, with the last error
    assert driver.calls["connect"] == 1
    clock.now += backoff.FIRST_PAUSE_SECONDS
    with leased(pool):
        pass
    assert pool.stats()["connect_errors_total"] == 1


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


def test_a_loop_with_nothing_to_do_listens_all_the_time() -> None:
    """It takes turns by itself, each within what one counts for."""
    turns = 0
    several = Event()

    def clock() -> float:
        nonlocal turns
        turns += 1
        if turns == 10:
            several.set()
        return turns * TURN_SECONDS

    with Asked(clock) as asked:
        assert several.wait(MAX_WAIT_SECONDS)
        assert asked.seconds == pytest.approx((turns - 1) * TURN_SECONDS)
        assert asked.listened


@pytest.mark.parametrize("busy", [False, True])
def test_who_has_not_listened_does_not_blame_the_server(
    make_pool: MakePool, driver: FakeDriver, request: pytest.FixtureRequest, *, busy: bool
) -> None:
    """A view computes, and each turn of the loop takes long: a login takes several."""
    if not busy:
        request.getfixturevalue("all_time_counts")
    pool = make_pool(timeout=1.0 if busy else 0.1)
    driver.always["connect"] = NEVER

    def compute() -> None:
        while True:
            time.sleep(0.3)
            gevent.sleep(0.001)

    view = gevent.spawn(compute) if busy else None
    with pytest.raises(PoolTimeout):
        pool.acquire()
    if view:
        view.kill()
    driver.always.clear()
    assert pool.stats()["connect_errors_total"] == (0 if busy else 1)


@pytest.mark.parametrize("busy", [False, True])
def test_nor_does_the_drivers_own_timeout_then(
    make_pool: MakePool, driver: FakeDriver, request: pytest.FixtureRequest, *, busy: bool
) -> None:
    if not busy:
        request.getfixturevalue("all_time_counts")
    told: list[Exception] = []

    class Watch(PoolListener):
        def connect_failed(self, error: Exception) -> None:
            told.append(error)

    pool = make_pool(listeners=[Watch()], is_outage=got_no_answer)
    opens = pool._open

    def connect() -> FakeConnection:
        with gevent.Timeout(0.3, TimeoutError("no answer")):
            return opens()

    pool._open = connect
    driver.plan["connect"] = [NEVER]
    user = gevent.spawn(pool.acquire)
    gevent.sleep(0)
    if busy:
        time.sleep(0.4)
    pool.release(user.get(timeout=MAX_WAIT_SECONDS))
    stats = pool.stats()
    assert stats["connect_errors_total"] == 1
    assert stats["unanswered_total"] == len(told) == (0 if busy else 1)


@pytest.mark.usefixtures("all_time_counts")
def test_an_error_that_comes_at_once_is_the_servers(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(is_outage=got_no_answer)
    driver.plan["connect"] = [TimeoutError("refused")]
    pool.release(pool.acquire())
    assert pool.stats()["unanswered_total"] == 1
