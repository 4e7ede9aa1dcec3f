"""Requests arrive faster than connections come back: who is served, who is refused, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve.errors import PoolOverloaded, PoolTimeout
from pooled_serve.pool import backoff
from pooled_serve.pool.overload import LATE, ONSET, Overload
from support.driver import DriverError, FakeConnection, FakeDriver, assert_sound, settle

TIMEOUT = 10.0
TURN = 0.05  # seconds that a request holds its connection


class Arena:
    """A pool with a clock that moves only here, and users who hold what they get.

    :param options: the pool's.
    """

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.driver = FakeDriver()
        self.pool = self.driver.pool(
            **{"size": 1, "max_outstanding": 1, "timeout": TIMEOUT, **options},
            clock=lambda: self.now,
        )
        self.holding: list[FakeConnection] = []  # in the order in which they were handed out
        self.served: dict[int, float] = {}  # number of a user -> seconds of its wait
        self.refused: dict[int, float] = {}
        self.ended: list[int] = []  # whose wait is over, as they woke
        self.errors: list[PoolTimeout] = []
        self.users: list[gevent.Greenlet] = []

    def come(self, count: int = 1) -> None:
        """So many users ask for a connection."""
        for _ in range(count):
            self.users.append(gevent.spawn(self._use, len(self.users), self.now))
        gevent.sleep(0)

    def _use(self, number: int, came: float) -> None:
        try:
            self.holding.append(self.pool.acquire())
        except PoolTimeout as error:
            self.errors.append(error)
            self.refused[number] = self.now - came
        else:
            self.served[number] = self.now - came
        self.ended.append(number)

    def come_back(self, count: int = 1) -> None:
        """So many connections, those first that were handed out first."""
        for _ in range(count):
            self.pool.release(self.holding.pop(0))
        self.rest()

    def rest(self) -> None:
        """Let everybody run who was woken."""
        for _ in range(3):
            gevent.sleep(0)

    def serve(self, seconds: float, arrivals: int = 0) -> None:
        """Go on for so long: in each turn so many come, and all connections come back."""
        for _ in range(round(seconds / TURN)):
            self.come(arrivals)
            self.now += TURN
            self.come_back(len(self.holding))

    def serve_all(self) -> None:
        while self.holding:
            self.now += TURN
            self.come_back(len(self.holding))


@pytest.fixture
def make() -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def arena(**options: Any) -> Arena:
        made.append(Arena(**options))
        return made[-1]

    yield arena
    for it in made:
        it.serve_all()
        assert_sound(it.pool, it.driver)
        it.pool.close()


MakeArena = Callable[..., Arena]


def overload(it: Arena) -> None:
    """Twice as many come as can be served, until the first are refused."""
    while not it.refused:
        it.serve(TURN, arrivals=2 * int(it.pool.cap))


# --- Who is served -----------------------------------------------------------------------------


def test_a_spike_of_half_of_the_timeout_is_served_whole(make: MakeArena) -> None:
    it = make()
    count = round(TIMEOUT * ONSET / TURN)  # of which the first need not wait
    it.come(count)
    it.serve_all()
    assert list(it.served) == list(range(count))
    assert it.served[count - 1] == pytest.approx(TIMEOUT * ONSET - TURN)


@pytest.mark.parametrize(("cap", "count", "held"), [(12, 36, 2.8), (1, 180, TURN), (4, 16, 2.4)])
def test_a_burst_is_served_whole_if_nobody_else_comes(
    cap: int, count: int, held: float, make: MakeArena
) -> None:
    """Those who come together wait for more than half of the timeout, and compete with nobody."""
    it = make(size=cap, max_outstanding=cap)
    it.come(count)
    while it.holding:
        it.now += held
        it.come_back(len(it.holding))
    assert list(it.served) == list(range(count)), "in order"
    assert max(it.served.values()) > TIMEOUT * ONSET


def test_a_few_newcomers_make_no_overload_of_a_burst(make: MakeArena) -> None:
    """Such as a health check that queries."""
    it = make()
    burst = round(0.9 * TIMEOUT / TURN)
    it.come(burst)
    for _ in range(8):
        it.serve(1.0)
        it.come()
    it.serve_all()
    assert it.served[burst - 10] > 0.8 * TIMEOUT
    assert len(it.refused) <= 8, "no more than have come meanwhile"


def test_a_burst_with_others_behind_it_is_refused(make: MakeArena) -> None:
    it = make(size=12, max_outstanding=12)
    it.come(36)
    for _ in range(2):
        it.now += 2.7
        it.come(6)
        it.now += 0.1
        it.come_back(len(it.holding))
    assert set(it.refused) == set(range(24, 42)), "those who came at once, and six after them"
    assert [it.served[number] for number in range(42, 48)] == [pytest.approx(0.1)] * 6


def test_closed_loops_that_wait_for_less_are_served(make: MakeArena) -> None:
    it = make(max_outstanding=2)
    clients = round(0.95 * TIMEOUT * ONSET / TURN) * 2
    it.come(clients)
    for _ in range(300):  # each comes again when it was served
        it.serve(TURN)
        it.come(2)
    assert not it.refused
    assert 4 < max(it.served.values()) < TIMEOUT * ONSET


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("cap", [1, 10])
def test_under_overload_nobody_waits_for_long_and_nothing_is_idle(
    cap: int, times: int, make: MakeArena
) -> None:
    it = make(max_outstanding=cap)
    while not it.refused:
        it.serve(TURN, arrivals=times * cap)
    it.served.clear()
    it.refused.clear()
    it.serve(10, arrivals=times * cap)
    assert len(it.served) == round(10 / TURN) * cap
    assert max(it.served.values()) <= TIMEOUT * LATE + 1e-6
    assert max(it.refused.values()) <= TIMEOUT * LATE + 2 * TURN
    assert list(it.served) == sorted(it.served), "first come, first served"


def test_it_is_over_when_the_queue_is_empty(make: MakeArena) -> None:
    it = make()
    overload(it)
    assert it.pool.overloaded
    while it.pool.waiting:
        it.serve(TURN)
    refused = len(it.refused)
    assert not it.pool.overloaded
    it.come(50)
    it.serve_all()
    assert len(it.refused) == refused, "a spike as any other"
    assert max(it.served.values()) > TIMEOUT * LATE


def test_it_is_over_when_those_in_the_queue_have_gone(make: MakeArena) -> None:
    it = make()
    overload(it)
    gevent.killall(it.users)
    it.come(50)
    refused = len(it.refused)
    it.serve_all()
    assert len(it.refused) == refused


def test_the_last_one_is_served_even_if_it_is_late(make: MakeArena) -> None:
    it = make()
    turn = 0.2 * TIMEOUT  # more than LATE allows
    it.come(4)
    for joined in (2, 1, 0):
        it.now += turn
        it.come_back()
        it.come(joined)
    assert it.served == pytest.approx({0: 0.0, 1: turn, 2: 2 * turn, 6: turn})
    assert it.refused == pytest.approx({3: 3 * turn, 4: 2 * turn, 5: 2 * turn})


def test_who_is_served_wakes_before_those_who_are_refused(make: MakeArena) -> None:
    it = make()
    overload(it)
    it.come(30)
    it.now += TIMEOUT * LATE + TURN
    it.come(3)
    it.ended.clear()
    it.come_back()
    served, *refused = it.ended
    assert list(it.served)[-1] == served
    assert len(refused) >= 30
    assert set(refused) <= set(it.refused)
    assert served > max(refused)
    assert refused == sorted(refused)


def test_a_turn_that_brought_nothing_does_not_count_against_its_user(make: MakeArena) -> None:
    it = make()
    it.come(3)
    it.pool._overload.on = True  # type: ignore[union-attr]
    it.now += TIMEOUT * LATE * 0.9
    opened = it.driver.always["connect"] = Event()
    it.holding[0].alive = False
    it.come_back()
    settle(lambda: it.driver.connecting == 1)
    assert it.pool.waiting == 2, "it is the first again"
    it.now += TIMEOUT * LATE * 1.1
    opened.set()
    settle(lambda: bool(it.holding))
    assert list(it.served) == [0, 1]
    assert not it.refused


# --- What does not count -----------------------------------------------------------------------


def test_a_queue_that_did_not_move_is_served(make: MakeArena) -> None:
    """As behind a table that was locked for eight seconds."""
    it = make(max_outstanding=4)
    it.come(4)
    for _ in range(80):
        it.come()
        it.now += 0.1
    it.serve_all()
    assert not it.refused
    assert max(it.served.values()) > TIMEOUT * ONSET


def test_the_time_of_an_outage_does_not_count(
    make: MakeArena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "LONGEST_PAUSE_SECONDS", 0.02)  # which passes in real time, too
    it = make(max_outstanding=2)
    it.come(2)  # one of them keeps its connection, or the others would fail at once
    it.come(150)
    it.driver.always["connect"] = DriverError("refused")
    it.holding[0].fault = "lost"
    it.come_back()
    for attempts in range(3, 12):
        settle(lambda: it.driver.calls["connect"] == attempts)  # noqa: B023
        it.come(3)
        it.now += 1.0
    it.driver.always.clear()
    it.now += 1.0
    settle(lambda: len(it.holding) == 2)
    it.serve_all()
    assert not it.refused
    assert max(it.served.values()) > TIMEOUT


def test_a_queue_that_moves_again_is_as_long_as_it_was(make: MakeArena) -> None:
    it = make()
    it.serve(8, arrivals=2)
    assert not it.refused, "the head has waited for four seconds"
    it.now += TIMEOUT
    it.serve(3, arrivals=2)
    assert it.refused


def test_who_wants_to_wait_does(make: MakeArena) -> None:
    it = make(shed=False)
    it.serve(8, arrivals=2)
    assert not it.refused
    assert not it.pool.overloaded
    assert max(it.served.values()) == pytest.approx(4, abs=2 * TURN)
    assert it.pool.stats()["shed_total"] == 0


# --- What is told ------------------------------------------------------------------------------


def test_a_refusal_says_how_long_it_took_and_what_the_pool_looked_like(make: MakeArena) -> None:
    it = make(name="default")
    overload(it)
    it.come(2)
    it.now += 0.61
    it.come()
    it.errors.clear()
    waiting = it.pool.waiting
    it.come_back()
    assert str(it.errors[-1]) == (
        "pool 'default': refused after 0.6s: requests arrive faster than connections come back "
        f"(1 in use, 0 idle, {waiting} waiting, cap 1, longest held 0.0s)"
    )
    assert all(isinstance(error, PoolOverloaded) for error in it.errors)
    assert it.errors[-1].seconds == pytest.approx(0.61)


def test_what_is_counted(make: MakeArena) -> None:
    it = make()
    overload(it)
    it.serve(1, arrivals=3)
    before = it.pool.stats()
    assert before["shed_total"] == before["timeouts_total"] == len(it.refused)
    it.pool.timeout = 0.01  # for those who come now, in real time
    it.come()
    it.pool.timeout = TIMEOUT
    settle(lambda: len(it.errors) > before["shed_total"])
    stats = it.pool.stats()
    assert stats["shed_total"] == before["shed_total"]
    assert stats["timeouts_total"] == before["timeouts_total"] + 1
    assert type(it.errors[-1]) is PoolTimeout
    assert stats["wait_seconds_buckets"]["+Inf"] == len(it.served) + len(it.refused)


# --- Being killed ------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("who", ["served", "refused", "last", "all but the last"])
def test_whoever_is_killed_nothing_is_lost(who: str, before: bool, make: MakeArena) -> None:
    it = make()
    overload(it)
    it.come(5)
    late = [user for user in it.users if not user.ready()]
    it.now += TIMEOUT * LATE + TURN
    it.come(3)
    fresh = [user for user in it.users if not user.ready()][-3:]
    killed = {
        "served": fresh[:1],
        "refused": late,
        "last": fresh[-1:],
        "all but the last": late + fresh[:-1],
    }[who]

    def kill() -> None:
        for user in killed:
            user.kill(block=False)

    if before:
        kill()
    it.pool.release(it.holding.pop())
    if not before:
        kill()
    it.rest()
    assert all(user.ready() for user in late)
    survivors = [user for user in fresh if user not in killed]
    assert len(it.holding) == 1, "somebody holds it"
    it.serve_all()
    assert all(user.ready() for user in survivors)
    numbers = {it.users.index(user) for user in survivors}
    assert numbers <= set(it.served)


# --- The rule by itself ------------------------------------------------------------------------


class Queued:
    def __init__(self, since: float, entered: float) -> None:
        self.since = since
        self.entered = entered


steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "hand over", "connect fails"]),
        st.floats(0, 4) | st.sampled_from([0.0, 0.05]),
    ),
    max_size=80,
)


def test_after_an_outage_time_counts_again() -> None:
    rule = Overload()
    rule.begin(0.0, out=False)
    rule.connect_failed(1.0, TIMEOUT)
    first = Queued(2.0, rule.enter(2.0, TIMEOUT))
    assert rule.late([first], 20.0, TIMEOUT) == 0  # it is over
    second = Queued(20.0, rule.enter(20.0, TIMEOUT))
    others = [Queued(21.0, 21.0) for _ in range(2)]
    late = [rule.late([second, *others], 20.0 + second_, TIMEOUT) for second_ in range(1, 7)]
    assert [bool(n) for n in late] == [False] * 4 + [True] * 2


@given(steps)
def test_whatever_happens(story: list[tuple[str, float]]) -> None:
    rule = Overload()
    queue: list[Queued] = []
    now = 0.0
    for what, seconds in story:
        now += seconds
        if what == "come":
            if not queue:
                rule.begin(now, out=False)
            entered = rule.enter(now, TIMEOUT)
            assert not queue or entered >= queue[-1].entered - 1e-9, "the order of arrival"
            queue.append(Queued(now, entered))
        elif what == "connect fails":
            rule.connect_failed(now, TIMEOUT)
        elif queue:
            was_on = rule.on
            late = rule.late(queue, now, TIMEOUT)
            assert 0 <= late < len(queue), "somebody is served"
            for waiter in queue[:late]:
                assert now - waiter.since > TIMEOUT * LATE - 1e-9
            if not was_on and rule.on:
                assert now - queue[0].since >= TIMEOUT * ONSET - 1e-9
                joined = [
                    each
                    for each in queue
                    if rule.enter(now, TIMEOUT) - each.entered < TIMEOUT * ONSET
                ]
                assert len(joined) >= len(queue) / 2
            assert rule.on or not late
            assert rule.on >= was_on
            del queue[: late + 1]
