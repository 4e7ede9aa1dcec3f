"""The server answers nothing: what the pool makes of what its connections wait for."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import PoolListener, connecting, metrics, retiring
from pooled_serve.pool.connecting import got_no_answer
from pooled_serve.pool.silence import LOST, Silence
from support.driver import NEVER, DriverError, FakeConnection, FakeDriver, leased, settle
from support.pools import MakePool, Pool, count_calls, hold
from support.processes import MAX_WAIT_SECONDS

A, B = object(), object()
"""Waits."""


def look(silence: Silence, now: float, **more: Any) -> float:
    """The silence after a look; `waits` is what each connection waits for."""
    waits = more.pop("waits", {})
    silence.look(now, waits, **{"came_back": 0.0, "connecting": (), **more})
    return silence.seconds(now)


def test_a_wait_that_is_seen_twice_had_no_answer_in_between() -> None:
    silence = Silence()
    assert look(silence, 10.0, waits={1: A, 2: None}) == 0
    assert look(silence, 11.0, waits={1: A, 2: None}) == 1
    assert look(silence, 12.0, waits={1: A, 2: B}) == 2, "more questions are no answers"
    assert look(silence, 13.0, waits={1: B, 2: B}) == 0, "one got an answer, and asked again"
    assert silence.answered == 13
    assert look(silence, 14.0, waits={1: B, 2: B}) == 1, "for which that one waits since then"
    assert look(silence, 15.0, waits={1: None, 2: B}) == 0
    assert look(silence, 16.0, waits={2: B}) == 1
    assert look(silence, 17.0) == 0, "nobody waits any more"


def test_a_connection_that_came_back_had_its_answer() -> None:
    silence = Silence()
    look(silence, 10.0, waits={1: A})
    assert look(silence, 15.0, waits={1: A}, came_back=9.0) == 5
    assert look(silence, 16.0, waits={1: A}, came_back=15.5) == 0.5
    assert look(silence, 17.0, waits={}, came_back=15.5) == 0


def test_one_that_has_gone_had_none() -> None:
    """It was closed: its user was killed, or had a timeout of its own."""
    silence = Silence()
    look(silence, 10.0, waits={1: A, 2: B})
    assert look(silence, 15.0, waits={2: B}) == 5


def test_one_that_is_closed_before_it_comes_back_had_none() -> None:
    silence = Silence()
    look(silence, 10.0, waits={1: A, 2: B})
    assert look(silence, 15.0, waits={1: LOST, 2: B}) == 5
    assert look(silence, 16.0, waits={1: LOST, 2: LOST}) == 0, "nobody waits any more"
    assert silence.answered == 0


def test_a_ping_in_vain_and_the_connect_that_follows_are_one_silence() -> None:
    silence = Silence()
    look(silence, 10.0, waits={1: A})
    assert look(silence, 12.5, connecting=[12.0]) == 2.5
    assert look(silence, 14.0) == 0
    assert look(silence, 20.0, connecting=[19.0]) == 1, "nobody had asked for a while"


class Told(PoolListener):
    def __init__(self) -> None:
        self.silences: list[float] = []
        self.answers = 0

    def unanswered(self, seconds: float) -> None:
        self.silences.append(seconds)

    def answered(self) -> None:
        self.answers += 1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Frozen:
    """A pool whose connections wait, each for what `waits` has for it."""

    def __init__(self, make_pool: MakePool, **options: Any) -> None:
        self.clock, self.told = Clock(), Told()
        self.waits: dict[int, object] = {}
        self.pool: Pool = make_pool(
            awaits=lambda conn: self.waits.get(conn.number),
            listeners=[self.told],
            clock=self.clock,
            **options,
        )

    def later(self, seconds: float) -> dict[str, Any]:
        self.clock.now += seconds
        return self.pool.stats()


@pytest.fixture
def it(make_pool: MakePool) -> Frozen:
    return Frozen(make_pool)


def test_the_gauges_say_who_waits_for_an_answer_and_for_how_long(it: Frozen) -> None:
    with leased(it.pool), leased(it.pool):
        it.waits = {1: A, 2: B}
        stats = it.later(0.1)
        assert (stats["in_statement"], stats["oldest_statement_seconds"]) == (0, 0)
        assert stats["last_answer_seconds"] == pytest.approx(0.1), "the second login's"
        stats = it.later(0.9)
        assert (stats["in_statement"], it.told.silences) == (0, [])
        stats = it.later(0.5)
        assert stats["in_statement"] == 2
        assert stats["oldest_statement_seconds"] == pytest.approx(1.4)
        assert it.told.silences == [pytest.approx(1.4)]
        it.waits = {1: None, 2: B}
        stats = it.later(0.25)
        assert (stats["in_statement"], stats["last_answer_seconds"]) == (1, 0)
        assert it.told.answers == 1
    stats = it.later(0.25)
    assert (stats["in_statement"], stats["oldest_statement_seconds"]) == (0, 0)
    assert it.told.answers == 1


def test_who_was_killed_has_not_been_answered(it: Frozen) -> None:
    connection = it.pool.acquire()
    it.waits = {1: A}
    it.later(0)
    it.later(2)
    connection.fault = "killed"
    it.pool.release(connection)
    settle(lambda: connection.closed)
    it.later(0.25)
    assert (len(it.told.silences), it.told.answers) == (1, 0)


@pytest.mark.usefixtures("all_time_counts")
def test_a_connect_that_is_silent_counts_while_it_lasts_and_afterwards(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    later = 0.0

    def clock() -> float:
        return time.monotonic() + later

    pool = make_pool(timeout=0.3, is_outage=lambda error: True, clock=clock)
    driver.plan["connect"] = [NEVER]
    began = clock()
    user = gevent.spawn(use, pool)
    gevent.sleep(0)
    later = 0.1
    assert 0.1 <= pool.stats()["oldest_statement_seconds"] <= clock() - began
    user.join()
    assert isinstance(user.value, PoolTimeout)
    stats = pool.stats()
    assert (stats["unanswered_total"], stats["connect_errors_total"]) == (1, 1)
    assert stats["oldest_statement_seconds"] == 0


def use(pool: Pool) -> BaseException | None:
    try:
        pool.release(pool.acquire())
    except PoolTimeout as error:
        return error
    return None


def test_what_is_refused_was_answered() -> None:
    assert got_no_answer(TimeoutError())
    assert not got_no_answer(ConnectionRefusedError())
    error = DriverError()
    assert not got_no_answer(error)
    error.unanswered = True  # type: ignore[attr-defined]
    assert got_no_answer(error)


def test_an_error_that_a_timeout_has_caused_is_no_answer() -> None:
    error = DriverError(2013, "lost")
    error.__context__ = TimeoutError()
    assert not got_no_answer(error), "the caller's own, who handles it by a query"
    error.__cause__ = TimeoutError()
    assert got_no_answer(error)
    error = DriverError(2003, "not reached")
    error.original_exception = TimeoutError()  # type: ignore[attr-defined]
    assert got_no_answer(error)


# --- Inquiries ---------------------------------------------------------------------------------


def test_an_idle_connection_is_asked_first(pool_of_two: Pool, driver: FakeDriver) -> None:
    with leased(pool_of_two):
        pass
    assert pool_of_two.inquire(1.0) is True
    assert (driver.calls["ping"], driver.calls["connect"]) == (1, 1)
    stats = pool_of_two.stats()
    assert (stats["idle"], stats["acquired_total"]) == (1, 1), "that is no use of the pool"


def test_at_the_cap_it_takes_one_connection_more_and_closes_it(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool()
    with leased(pool), leased(pool):
        assert pool.inquire(1.0) is True
        assert pool.full
        assert len(driver.open) == 2
    assert driver.peak == 3
    assert pool.stats()["opened_total"] == 2
    driver.peak = 2


def test_no_answer_is_no_answer_and_leaves_nothing_behind(
    pool_of_two: Pool, driver: FakeDriver
) -> None:
    driver.always = {"connect": NEVER, "ping": NEVER}
    assert pool_of_two.inquire(0.05) is False
    driver.always["connect"] = DriverError("full")
    with pytest.raises(DriverError):
        pool_of_two.inquire(0.05)
    assert pool_of_two.stats()["unanswered_total"] == 1
    assert pool_of_two.stats()["connect_errors_total"] == 0, "no request has asked for that"


def test_there_is_only_one_inquiry_at_a_time(pool_of_two: Pool, driver: FakeDriver) -> None:
    go_on = Event()
    driver.plan["connect"] = [go_on]
    first = gevent.spawn(pool_of_two.inquire, 10.0)
    gevent.sleep(0)
    assert pool_of_two.inquire(0.1) is False, "the first has no answer, either"
    assert driver.calls["connect"] == 1
    second = gevent.spawn(pool_of_two.inquire, 10.0)
    gevent.sleep(0)
    go_on.set()
    assert (first.get(), second.get()) == (True, True)


def test_a_login_that_is_to_end_a_statement_is_an_inquiry_too(
    pool_of_two: Pool, driver: FakeDriver
) -> None:
    """Or with one abandoned statement after the other nobody would ever find out."""
    users = [pool_of_two.acquire() for _ in range(2)]
    given_up = Event()
    asked: list[int] = []

    def unanswered() -> FakeConnection:
        asked.append(1)
        given_up.wait()
        raise DriverError("no answer")

    opens, pool_of_two._open = pool_of_two._open, unanswered
    for user in users:
        user.fault, user.at_work = "killed", True
        pool_of_two.release(user)
    settle(lambda: bool(asked))
    assert pool_of_two.inquire(0.1) is False
    assert asked == [1]
    given_up.set()
    settle(lambda: not pool_of_two._replacing)
    pool_of_two._open = opens
    assert pool_of_two.inquire(1.0) is True


def test_a_login_that_began_a_moment_ago_says_nothing(
    pool_of_two: Pool, driver: FakeDriver
) -> None:
    driver.plan["connect"] = [NEVER]
    first = gevent.spawn(pool_of_two.inquire, 10.0)
    gevent.sleep(0)
    second = gevent.spawn(pool_of_two.inquire, 0.2)
    gevent.sleep(0)
    # As by another worker, after one that was given up.
    pool_of_two._asked[0] = pool_of_two._clock()
    assert second.get() is None
    first.kill()


def test_the_answer_to_a_login_counts_before_that_is_closed(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    """Which may take a second, until the server has hung up."""
    pool = make_pool(awaits=lambda conn: driver)
    with leased(pool), leased(pool):
        pool.refresh_gauges()
        driver.plan["close"] = [go_on := Event()]
        first = gevent.spawn(pool.inquire, 10.0)
        settle(lambda: driver.calls["close"] == 1)
        assert pool.inquire(0.05) is None, "nobody has asked in vain for so long"
        assert pool.stats()["oldest_statement_seconds"] > 0, "though the users' have no answer"
        go_on.set()
        assert first.get() is True
    driver.peak = 2


class GivenBack:
    """Another worker's login in the shared memory: it has an answer right after the first look."""

    def __init__(self, began: float) -> None:
        self.since = [began]

    def __getitem__(self, index: int) -> float:
        return self.since.pop() if self.since else 0.0

    def __setitem__(self, index: int, value: float) -> None: ...


def test_an_answer_between_two_looks_is_none_in_vain(pool_of_two: Pool) -> None:
    pool_of_two._replacing = True
    pool_of_two._asked = GivenBack(pool_of_two._clock() + 1)
    assert pool_of_two._inquire_apart(0.0) is None
    pool_of_two._replacing = False


def test_one_that_is_killed_gives_up_its_right(pool_of_two: Pool, driver: FakeDriver) -> None:
    driver.plan["connect"] = [NEVER]
    first = gevent.spawn(pool_of_two.inquire, 10.0)
    gevent.sleep(0)
    first.kill()
    assert pool_of_two.inquire(1.0) is True
    assert not driver.open


def test_it_waits_for_the_one_connection_more_that_ends_abandoned_statements(
    pool_of_two: Pool, driver: FakeDriver
) -> None:
    """And the other way round: never two beyond the cap."""
    driver.plan["finish"] = [go_on := Event()]
    with leased(pool_of_two) as abandoned:
        abandoned.fault, abandoned.at_work = "killed", True
    settle(lambda: driver.calls["finish"] == 1)
    assert pool_of_two.inquire(1.0) is None
    go_on.set()
    settle(lambda: not pool_of_two._replacing)
    driver.plan["connect"] = [go_on := Event()]
    inquiry = gevent.spawn(pool_of_two._inquire_apart, 10.0)
    with leased(pool_of_two) as abandoned:
        abandoned.fault, abandoned.at_work = "killed", True
    settle(lambda: pool_of_two._replacing)
    assert driver.calls["finish"] == 1
    go_on.set()
    assert inquiry.get() is True
    settle(lambda: driver.calls["finish"] == 2)


def test_a_process_that_ends_waits_for_it_before_it_takes_one_connection_more(
    pool_of_two: Pool, driver: FakeDriver
) -> None:
    users = [pool_of_two.acquire() for _ in range(2)]
    for user in users:
        user.at_work = True
    driver.plan["connect"] = [go_on := Event()]
    inquiry = gevent.spawn(pool_of_two.inquire, 10.0)
    gevent.sleep(0)
    end = gevent.spawn(pool_of_two.close, in_use=True)
    settle(lambda: not driver.open)
    assert driver.calls["connect"] == 2 + 1, "the server still has those of the users, too"
    go_on.set()
    end.join()
    assert inquiry.get() is True
    assert driver.calls["finish"] == 1
    assert not any(user.at_work for user in users)


@pytest.fixture
def pool_of_two(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """It waits for the server's end of statements for as long as a busy machine may need."""
    monkeypatch.setattr(connecting, "FINISH_TIMEOUT_SECONDS", MAX_WAIT_SECONDS)
    monkeypatch.setattr(retiring, "LAST_FINISH_SECONDS", MAX_WAIT_SECONDS)
    return make_pool()


def test_a_hand_out_costs_no_more(make_pool: MakePool) -> None:
    """What a connection waits for is seen by who reads the gauges, and by nobody else."""
    asked: list[FakeConnection] = []
    pool, without = make_pool(awaits=asked.append), make_pool()
    calls = []
    for each in (pool, without):
        use(each)
        calls.append(count_calls(lambda: each.release(each.acquire())))  # noqa: B023
    assert calls[0] == calls[1]
    assert asked == []
    without.close()
    with leased(pool) as connection:
        pool.refresh_gauges()
    assert asked == [connection]


def test_until_when_an_outage_made_requests_wait(it: Frozen) -> None:
    assert it.pool.stats()["last_outage_seconds"] is None
    it.pool.row[metrics.STUCK] = 1
    assert it.later(0)["last_outage_seconds"] == 0
    it.pool.row[metrics.STUCK] = 0
    assert it.later(2)["last_outage_seconds"] == 2
    it.pool.row[metrics.REACHABLE] = metrics.NO
    it.later(0)
    go_on = Event()
    holders = [hold(it.pool, go_on) for _ in range(3)]
    assert it.later(1)["last_outage_seconds"] == 0
    it.pool.row[metrics.REACHABLE] = metrics.YES
    assert it.later(5)["last_outage_seconds"] == 0, "somebody still waits, as he began to"
    assert it.later(6)["last_outage_seconds"] == 6, "but not for ever because of that"
    go_on.set()
    gevent.joinall(holders)
    later = hold(it.pool, go_on)
    later.join()
    assert it.later(1)["last_outage_seconds"] == 7


def test_who_waits_behind_a_frozen_server_waits_for_the_database(it: Frozen) -> None:
    """No connect tells of it: all that may be open is in use."""
    go_on = Event()
    users = [hold(it.pool, go_on) for _ in range(3)]
    assert it.later(0)["outage_waits_total"] == 0
    it.pool.row[metrics.STUCK] = 1
    for _ in range(2):
        stats = it.later(1)
        assert stats["outage_waits_total"] == stats["waiting"] > 0, "each counts once"
    go_on.set()
    gevent.joinall(users)
