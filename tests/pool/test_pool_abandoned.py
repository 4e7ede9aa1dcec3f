"""Connections that were closed in the middle of a command: the server may still be at work for
them, and their place under the cap is kept until it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pooled_serve.pool import PoolListener, connecting, retiring
from support.driver import NEVER, FakeConnection, FakeDriver, leased, settle
from support.greenlets import Late, join_all
from support.pools import Clock, MakePool, Pool
from support.processes import MAX_WAIT_SECONDS


class Server:
    """At work for connections that were closed in the middle of a command, until told to stop."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.at_work: list[FakeConnection] = []
        self.answer: Any = True  # or an error, or an Event to wait for
        self.peak = 0
        self.batches: list[int] = []

    def abandon(self, connection: FakeConnection) -> None:
        connection.fault = "killed"
        self.at_work.append(connection)

    def unfinished(self, connection: FakeConnection) -> bool:
        return connection in self.at_work

    def finish(
        self, connection: FakeConnection, batch: list[FakeConnection]
    ) -> Iterator[tuple[FakeConnection, Any]]:
        assert not connection.closed
        assert connection not in batch
        self.batches.append(len(batch))
        for closed in batch:
            assert closed.closed
            self.peak = max(self.peak, len(self.driver.open) + len(self.at_work))
            if isinstance(self.answer, BaseException):
                raise self.answer
            if isinstance(self.answer, Event):
                self.answer.wait()
            gevent.sleep(0.001)
            self.at_work.remove(closed)
            yield closed, self.answer


@pytest.fixture
def server(driver: FakeDriver) -> Server:
    return Server(driver)


@pytest.fixture
def make(
    make_pool: MakePool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Pool]:
    """Makes pools that wait for the server for as long as a busy machine may need."""
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", MAX_WAIT_SECONDS)
    monkeypatch.setattr(retiring, "LAST_FINISH_SECONDS", MAX_WAIT_SECONDS)

    def made(**options: Any) -> Pool:
        return make_pool(unfinished=server.unfinished, finish=server.finish, **options)

    return made


def test_their_replacement_ends_their_work_first(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    pool = make(size=1, max_outstanding=1)
    go_on = server.answer = Event()
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    waiting = gevent.spawn(lambda: pool.release(pool.acquire()))
    settle(lambda: server.peak == 2)
    assert not waiting.ready(), "the server has one too many as it is"
    assert driver.calls["connect"] == 2
    go_on.set()
    waiting.get(timeout=MAX_WAIT_SECONDS)
    assert server.at_work == []
    assert pool.stats()["killed_total"] == 1


def test_it_becomes_idle_if_nobody_waits(make: Callable[..., Pool], server: Server) -> None:
    pool = make()
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    settle(lambda: server.at_work == [] and pool.stats()["idle"] == 1)


def test_there_is_never_more_than_one_beyond_the_cap(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    pool = make(size=4, max_outstanding=4)
    for _ in range(10):
        taken = [pool.acquire() for _ in range(4)]
        for each in taken:
            server.abandon(each)
            pool.release(each)
        users = [gevent.spawn(lambda: pool.release(pool.acquire())) for _ in range(8)]
        join_all(users)
        settle(lambda: server.at_work == [])
    assert server.peak <= 5
    assert driver.calls["connect"] <= 4 + 10 * 5, "one of them ends the work of all"
    assert pool.stats()["killed_total"] == 40


def test_all_that_wait_for_that_are_ended_together(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    """One after the other would take a hundred times as long, for a hundred clients that leave."""
    pool = make(size=50, max_outstanding=50)
    for each in [pool.acquire() for _ in range(50)]:
        server.abandon(each)
        pool.release(each)
    settle(lambda: server.at_work == [] and pool.stats()["idle"] == 1)
    assert server.batches == [50]
    assert driver.calls["connect"] == 51


def test_one_that_is_stuck_delays_none_that_come_after_it(
    make: Callable[..., Pool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "SHORTEST_FINISH_SECONDS", 0.01)
    clock = Clock()
    pool = make(size=4, max_outstanding=4, clock=clock)
    stuck, *others = [pool.acquire() for _ in range(4)]

    def finish(connection: FakeConnection, batch: list[FakeConnection]) -> Iterator[Any]:
        for each in batch:
            if each is not stuck:
                server.at_work.remove(each)
                yield each, True
        while stuck in batch:
            yield None
            gevent.sleep(0.001)

    pool._finish = finish
    for each in (stuck, *others):
        server.abandon(each)
        pool.release(each)
        gevent.sleep(0.01)
    settle(lambda: server.at_work == [stuck])
    assert pool._replacing, "its own time is not up"
    clock.now += connecting.FINISH_TIMEOUT_SECONDS
    last = pool.acquire()
    server.abandon(last)
    pool.release(last)  # the clock is looked at when one comes
    settle(lambda: pool._entries.busy == 0)
    assert server.at_work == [stuck]
    assert pool.stats()["killed_total"] == 4
    server.at_work.clear()


def test_the_end_of_a_process_ends_them_too(make: Callable[..., Pool], server: Server) -> None:
    """Those in use, those that wait to be replaced, and those that come back at that time."""
    pool = make(size=6, max_outstanding=6)
    pool._replacing = True  # so that they wait
    taken = [pool.acquire() for _ in range(6)]
    for each in taken:
        server.abandon(each)
    for each in taken[:2]:
        pool.release(each)
    settle(lambda: len(pool._to_replace) == 2)
    gevent.spawn_later(0.05, pool.release, taken[2])
    pool.close(timeout=0.2, in_use=True)
    assert server.at_work == []


def test_what_comes_back_at_the_end_of_a_process_does_no_harm(
    make: Callable[..., Pool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close may let other greenlets run, which give back theirs."""
    pool = make(size=3, max_outstanding=3)
    first, second, third = (pool.acquire() for _ in range(3))
    close = first.close

    def slowly() -> None:
        pool.release(third)
        close()

    monkeypatch.setattr(first, "close", slowly)
    for each in (first, second):
        server.abandon(each)
    pool.close(timeout=0.05, in_use=True)
    settle(lambda: first.closed and second.closed and third.closed)
    assert server.at_work == []


def test_what_had_ended_by_itself_is_not_counted(make: Callable[..., Pool], server: Server) -> None:
    pool = make()
    server.answer = None
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    settle(lambda: server.at_work == [] and pool.stats()["idle"] == 1)
    assert pool.stats()["killed_total"] == 0


@pytest.mark.parametrize("answer", [False, "never"])
def test_a_server_that_does_not_let_go_costs_the_cap_and_not_the_place(
    make: Callable[..., Pool], server: Server, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", 0.05)
    told: list[str] = []

    class Listener(PoolListener):
        def not_let_go(self) -> None:
            told.append("not let go")

    pool = make(size=1, max_outstanding=1, listeners=[Listener()])
    server.answer = Event() if answer == "never" else answer
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    with leased(pool):
        assert told == ["not let go"]
    assert pool.stats()["killed_total"] == 0


def test_an_error_closes_nothing_but_its_connection(
    make: Callable[..., Pool], server: Server
) -> None:
    pool = make(size=1, max_outstanding=1)
    server.answer = OSError("lost")
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    with leased(pool):
        pass
    assert pool.stats()["closed_total"] == {"killed": 1}


def test_a_replacement_that_is_lost_is_not_replaced_in_its_turn(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    pool = make(size=1, max_outstanding=1)

    def finish(connection: FakeConnection, batch: list[FakeConnection]) -> tuple[()]:
        server.abandon(connection)
        return ()

    pool._finish = finish
    mine = pool.acquire()
    server.abandon(mine)
    pool.release(mine)
    settle(lambda: pool._entries.busy == 0)
    assert driver.calls["connect"] == 2


def test_where_nobody_answers_the_place_is_free_at_once(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    pool = make(size=2, max_outstanding=2)
    taken = [pool.acquire() for _ in range(2)]
    driver.always["connect"] = OSError("refused")
    for mine in taken:
        server.abandon(mine)
        pool.release(mine)
    settle(lambda: pool._entries.busy == 0)
    assert driver.calls["connect"] == 3, "one attempt is enough"


def test_a_pool_that_is_closed_replaces_nothing(
    make: Callable[..., Pool], server: Server, driver: FakeDriver
) -> None:
    pool = make(size=2, max_outstanding=2)
    go_on = server.answer = Event()
    for mine in [pool.acquire() for _ in range(2)]:
        server.abandon(mine)
        pool.release(mine)
    settle(lambda: server.peak > 0)
    pool.close(timeout=0.01)
    go_on.set()
    settle(lambda: pool._entries.busy == 0)
    assert driver.calls["connect"] == 3
    assert not driver.open


def test_many_that_a_server_does_not_let_go_of_cost_no_more_time_than_one(
    make: Callable[..., Pool], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(connecting, "SHORTEST_FINISH_SECONDS", 0.01)
    pool = make(size=6, max_outstanding=6)
    server.answer = Event()
    with Late() as late:
        began = time.monotonic()
        for mine in [pool.acquire() for _ in range(6)]:
            server.abandon(mine)
            pool.release(mine)
        users = [gevent.spawn(lambda: pool.release(pool.acquire())) for _ in range(6)]
        join_all(users)
        settle(lambda: pool._entries.busy == 0)
        lasted = time.monotonic() - began
    assert lasted - late.seconds < 1.0
    server.at_work.clear()


def test_a_replacement_that_is_not_answered_is_no_request(
    make: Callable[..., Pool], server: Server, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", 0.1)
    pool = make(size=1, max_outstanding=1)
    mine = pool.acquire()
    driver.always["connect"] = NEVER
    server.abandon(mine)
    pool.release(mine)
    settle(lambda: pool._entries.busy == 0)
    assert pool.stats()["timeouts_total"] == 0
