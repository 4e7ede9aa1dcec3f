"""Workers share the connections that their host may have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.os
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import ConnectionPool, connecting, tokens
from pooled_serve.pool.tokens import LOOK_SECONDS, TRADE_SECONDS, Turn
from support.driver import NEVER, DriverError, FakeConnection, FakeDriver, settle
from support.greenlets import Late, join_all
from support.hosts import Left, Worker, trace, workers
from support.pools import count_calls, hold
from support.processes import MAX_WAIT_SECONDS

__all__ = ["workers"]

LIMIT = 2
SOON = 0.1
"""Seconds within which a worker gets what lies idle at another."""

Pool = ConnectionPool[FakeConnection]
MakePool = Callable[..., Pool]


@pytest.fixture
def make(driver: FakeDriver, workers: list[Worker]) -> Iterator[MakePool]:
    """Makes the pool of a worker. Afterwards there is nothing left of any of them."""
    made: list[Pool] = []

    def make(which: int, limit: int = LIMIT, **options: Any) -> Pool:
        worker = workers[which]
        options = {
            "size": limit,
            "max_outstanding": limit,
            "tokens": worker.tokens(limit),
            "trace": trace,
            "restore": lambda text: Left(driver, text),
            **options,
        }
        made.append(driver.pool(**options))
        return made[-1]

    yield make
    driver.always.clear()
    for pool in made:
        settle(lambda pool=pool: pool._entries.busy == 0)  # type: ignore[misc]
        assert pool.stats()["waiting"] == 0
        pool.close()
    assert driver.open == []
    area = workers[0].area("default")
    settle(lambda: area.taken() == 0)
    assert not any(area.since)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


def use(pool: Pool, seconds: float = 0.0) -> float:
    """Take a connection and give it back. Returns how long it took to get it."""
    began = time.monotonic()
    with pool.lease():
        waited = time.monotonic() - began
        gevent.sleep(seconds)
    return waited


def use_soon(pool: Pool, within: float = SOON) -> None:
    """Use a pool, which takes no longer than that on a machine with nothing else to do."""
    with Late() as late:
        waited = use(pool)
    assert waited - late.seconds < within


def test_workers_have_no_more_connections_together_than_the_host_may_have(
    make: MakePool, driver: FakeDriver
) -> None:
    one, other = make(0), make(1)
    with one.lease(), other.lease():
        for pool in (one, other):
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(timeout=0.05)
            assert "this host's 2 are taken, 1 of them by this worker" in str(caught.value)
    assert driver.peak == LIMIT


def test_what_is_idle_at_one_worker_is_lent_to_another(make: MakePool, driver: FakeDriver) -> None:
    one, other = make(0), make(1)
    stop = Event()
    holders = [hold(one, stop) for _ in range(LIMIT)]
    stop.set()
    gevent.joinall(holders)
    assert one.stats()["idle"] == LIMIT
    use_soon(other)
    assert one.stats()["closed_total"] == {"lent": 1}
    assert driver.peak == LIMIT


def test_its_share_is_left_to_a_worker_for_a_moment(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = 0.5  # long enough to look at what happens before on a busy machine
    monkeypatch.setattr(tokens, "PATIENCE_SECONDS", patience)
    one, other = make(0), make(1)
    use(one)
    use(other)
    one.lease().__enter__()  # as if it were taken in between
    stop = Event()
    holder = hold(other, stop)
    waiting = gevent.spawn(use, other)
    gevent.sleep(0.01)
    assert not waiting.ready()
    for connection in [entry.conn for entry in one._leased.values()]:
        one.release(connection)
    waited = waiting.get(timeout=MAX_WAIT_SECONDS)
    assert patience <= waited
    stop.set()
    holder.join()


def test_a_connection_that_comes_back_goes_to_who_has_waited_longer(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No look, which takes what is free whoever waits, falls on the moment of the trade.
    monkeypatch.setattr(tokens, "PATIENCE_SECONDS", MAX_WAIT_SECONDS)
    one, other = make(0, 1), make(1, 1)
    stop = Event()
    holder = hold(one, stop)
    served: list[str] = []

    def get(pool: Pool, name: str) -> None:
        use(pool)
        served.append(name)

    waiting = gevent.spawn(get, other, "first")
    gevent.sleep(2 * TRADE_SECONDS)
    later = gevent.spawn(get, one, "later")
    gevent.sleep(0)
    stop.set()
    join_all([holder, waiting, later], raise_error=False)
    assert served == ["first", "later"]
    assert one.stats()["closed_total"] == {"lent": 1}
    assert other.stats()["acquired_total"] == 1


def test_for_a_small_difference_nothing_is_traded(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TRADE_SECONDS", 60.0)  # it stays small on a busy machine, too
    one, other = make(0, 1), make(1, 1)
    stop, held = Event(), Event()
    holder = hold(one, stop)
    waiting = gevent.spawn(use, other)
    gevent.sleep(0.002)
    next_one = hold(one, held)
    stop.set()
    holder.join()
    settle(lambda: one.stats()["waiting"] == 0)
    assert one.stats()["closed_total"] == {}
    held.set()
    join_all([next_one, waiting], raise_error=False)
    assert waiting.value < 60.0, "it was lent once it was idle"


def test_several_are_lent_at_once(make: MakePool) -> None:
    one, other = make(0, 6), make(1, 6)
    stop = Event()
    gevent.joinall([*[hold(one, stop) for _ in range(6)], gevent.spawn(stop.set)])
    assert one.stats()["idle"] == 6
    stop.clear()
    with Late() as late:
        began = time.monotonic()
        holders = [hold(other, stop) for _ in range(6)]
        settle(lambda: other.stats()["in_use"] == 6)
        waited = time.monotonic() - began
    assert waited - late.seconds < SOON
    stop.set()
    gevent.joinall(holders)


def test_a_worker_that_is_stuck_keeps_nobody_waiting(make: MakePool, workers: list[Worker]) -> None:
    one, other = make(0, 1), make(1, 1)
    use(one)
    stuck = workers[2]
    area = stuck.area("default")
    area.since[stuck.slot], area.wanted[stuck.slot] = time.monotonic() - 60, 5
    area.hungry[0] = 1.0
    use(one)
    use_soon(other, 2 * LOOK_SECONDS + SOON)
    lent = [use(one) for _ in range(100)]
    assert sum(lent) < 5
    assert one.stats()["closed_total"].get("lent", 0) < 10, "and it gets few that it does not take"
    area.forget(stuck.slot)


def test_a_worker_that_has_died_is_forgotten(make: MakePool, workers: list[Worker]) -> None:
    one = make(0, 1)
    dead = workers[2]
    area = dead.area("default")
    area.since[dead.slot], area.wanted[dead.slot] = time.monotonic() - 60, 5
    area.hungry[0] = 1.0
    dead.die()
    for _ in range(5):
        use(one)
    assert one.stats()["closed_total"] == {}
    assert not area.hungry[0]


def test_what_a_dead_worker_has_left_at_the_server_is_ended_first(
    make: MakePool, driver: FakeDriver, workers: list[Worker]
) -> None:
    dead = workers[2].area("default")
    for token in range(LIMIT):
        assert dead.take(LIMIT, search=False) == token
        dead.write_trace(token, b"%d" % (100 + token))
    workers[2].die()
    one = make(0)
    finished: list[tuple[int, int]] = []

    def finish(connection: FakeConnection, closed: list[FakeConnection]) -> Iterator[Any]:
        finished.extend((connection.number, each.number) for each in closed)
        yield from ((each, True) for each in closed)

    one._finish = finish
    use_soon(one, LOOK_SECONDS + SOON)
    assert finished == [(1, 100), (1, 101)]
    assert driver.left == [100, 101]
    assert one.stats()["killed_total"] == 2
    assert driver.peak <= LIMIT


def test_where_nobody_answers_what_was_left_is_kept_for_the_next(
    make: MakePool, driver: FakeDriver, workers: list[Worker]
) -> None:
    dead = workers[2].area("default")
    dead.take(1, search=False)
    dead.write_trace(0, b"100")
    workers[2].die()
    one = make(0, 1, is_outage=lambda error: True, timeout=0.5)
    driver.always["connect"] = DriverError("nobody there")
    with pytest.raises(PoolTimeout):
        one.acquire()
    area = workers[0].area("default")
    settle(lambda: area.taken() == 0)
    assert area.trace(0) == b"100"
    driver.always.clear()

    def is_back() -> bool:
        one.probe()
        return not one.out

    settle(is_back)
    use(one)
    settle(lambda: one._entries.busy == 0)
    assert area.trace(0) != b"100"


def test_only_one_worker_at_a_time_has_a_connection_more(
    make: MakePool, driver: FakeDriver, workers: list[Worker]
) -> None:
    one = make(0, 1)
    connection = one.acquire()
    connection.fault, connection.at_work = "lost", True
    other = workers[1].area("default")
    me = object()
    assert other.begin_replacing(me)
    one.release(connection)
    waiting = gevent.spawn(use, one)
    gevent.sleep(0.05)
    assert driver.calls["connect"] == 1
    other.end_replacing(me)
    waiting.get(timeout=MAX_WAIT_SECONDS)
    assert driver.calls["connect"] == 2


def test_two_pools_of_a_worker_share_what_it_has(make: MakePool, driver: FakeDriver) -> None:
    """As when a project swaps the settings of an alias: the old pool drains beside the new one."""
    old, new = make(0), make(0)
    with old.lease(), new.lease():
        waiting = gevent.spawn(use, new)
        gevent.sleep(0.02)
        assert not waiting.ready()
        old.drain()
    waiting.get(timeout=MAX_WAIT_SECONDS)
    assert driver.peak == LIMIT


def test_two_pools_of_a_worker_lend_to_each_other(make: MakePool) -> None:
    """As those of aliases beyond MAX_AREAS, which share their tokens."""
    one, other = make(0), make(0)
    stop = Event()
    gevent.joinall([*[hold(one, stop) for _ in range(LIMIT)], gevent.spawn(stop.set)])
    assert one.stats()["idle"] == LIMIT
    use_soon(other)


def test_a_probe_asks_for_a_token_like_a_request(make: MakePool) -> None:
    """Or a worker without traffic would never be ready, while another has all connections idle."""
    one, other = make(0), make(1)
    stop = Event()
    gevent.joinall([*[hold(one, stop) for _ in range(LIMIT)], gevent.spawn(stop.set)])
    other.probe()
    settle(lambda: other.stats()["opened_total"] == 1)
    assert other.stats()["idle"] == 1
    settle(lambda: not other._probe_since)


def test_what_is_interrupted_after_the_end_is_left_to_the_next_owner(
    make: MakePool, driver: FakeDriver, workers: list[Worker]
) -> None:
    one = make(0, 1)
    connection = one.acquire()
    one.close(in_use=True)
    connection.fault, connection.at_work = "lost", True
    one.release(connection)
    settle(lambda: one._entries.busy == 0)
    assert workers[0].area("default").trace(0) == trace(connection)
    other = make(1, 1)
    use(other)
    assert driver.left == [connection.number]


def test_a_process_without_a_loop_keeps_nothing_idle(make: MakePool) -> None:
    one, other = make(0), make(1)
    use(one)
    one._set_loop(runs=False)  # as after a fork
    use(one)
    assert one.stats()["idle"] == one.stats()["closing"] == 0, "it is closed at once"
    use(other)
    one._set_loop(runs=True)
    use(one)
    assert one.stats()["idle"] == 1


def test_a_drained_pool_stays_so_whether_its_loop_runs_or_not(make: MakePool) -> None:
    one = make(0)
    one.drain()
    one._set_loop(runs=False)
    one._set_loop(runs=True)
    use(one)
    assert one.stats()["idle"] == 0
    one._set_loop(runs=False)
    one.resume()
    one._set_loop(runs=True)
    use(one)
    assert one.stats()["idle"] == 1


def test_a_forked_child_does_not_end_what_its_parent_has_left(
    make: MakePool, driver: FakeDriver, workers: list[Worker]
) -> None:
    """Nor does it take the right to do so."""
    one = make(0)
    busy = workers[1].area("default")
    assert busy.begin_replacing(one)
    connection = one.acquire()
    connection.fault, connection.at_work = "lost", True
    one.release(connection)
    settle(lambda: one._replacing)
    child = gevent.os.fork_gevent()
    if child == 0:
        try:
            busy.end_replacing(one)
            gevent.sleep(0.05)
            os._exit(workers[0].area("default").replacer is not None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    busy.end_replacing(one)
    use(one)


def test_without_other_workers_nothing_is_ever_closed(make: MakePool) -> None:
    one = make(0)
    users = [gevent.spawn(use, one, 0.001) for _ in range(50)]
    join_all(users, raise_error=False)
    stats = one.stats()
    assert stats["acquired_total"] == 50
    assert (stats["opened_total"], stats["closed_total"]) == (LIMIT, {})


# --- Cost --------------------------------------------------------------------------------------


def test_a_lease_makes_no_more_calls_than_without_a_bound(
    make: MakePool, driver: FakeDriver
) -> None:
    def cycle(pool: Pool) -> None:
        pool.release(pool.acquire())

    one, without = make(0), driver.pool()
    for pool in (one, without):
        cycle(pool)
    assert count_calls(lambda: cycle(one)) == count_calls(lambda: cycle(without))
    without.close()


def test_it_makes_few_system_calls_to_connect(
    make: MakePool, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens there are, and whoever owns them: one that is free is found at once."""
    locks = []
    lock = Worker.lock

    def counted(worker: Worker, offset: int) -> bool:
        locks.append(offset)
        return lock(worker, offset)

    other = workers[1].tokens(100)
    for _ in range(90):
        other.take(0.0, Turn.NEW)
    one = make(0, 100)
    use(one)
    monkeypatch.setattr(Worker, "lock", counted)
    held = [one.acquire() for _ in range(10)]
    assert len(locks) == 9
    with pytest.raises(PoolTimeout):
        one.acquire(timeout=0.001)
    assert len(locks) == 9, "and that none is, too"
    for connection in held:
        one.release(connection)
    workers[1].die()


# --- Whether the server answers ----------------------------------------------------------------


def test_an_inquiry_of_one_worker_is_one_of_all(make: MakePool, driver: FakeDriver) -> None:
    one, other = make(0), make(1)
    with one.lease(), other.lease():
        driver.plan["connect"] = [go_on := Event()]
        first = gevent.spawn(one.inquire, 10.0)
        settle(lambda: driver.calls["connect"] == LIMIT + 1)
        assert other.inquire(0.1) is False
        second = gevent.spawn(other.inquire, 10.0)
        gevent.sleep(0)
        go_on.set()
        assert first.get() is True
        settle(second.ready)
        assert second.get() is True
    assert driver.peak == LIMIT + 1


def test_connections_of_a_dead_worker_keep_nobody_from_asking(
    make: MakePool,
    driver: FakeDriver,
    workers: list[Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are to be ended first, by logins that have no answer, one after the other."""
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", 0.3)  # then comes the other
    dead = workers[2].area("default")
    for token in range(LIMIT):
        dead.take(LIMIT, search=False)
        dead.write_trace(token, b"%d" % (100 + token))
    workers[2].die()
    one, other = make(0), make(1)
    driver.always["connect"] = NEVER
    waiter = gevent.spawn(use, one)
    settle(lambda: driver.calls["connect"] >= 1)
    assert one.inquire(0.2) is False
    assert other.inquire(0.2) is False
    waiter.kill()
    settle(lambda: not one._replacing)
