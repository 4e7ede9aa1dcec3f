"""Workers on the tokens of one host: whatever happens, they keep the bound and lose nothing.

As in test_pool_machine.py, Hypothesis makes up the story, and no rule has a precondition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event
from hypothesis import strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import ConnectionPool
from support.driver import DriverError, FakeConnection, FakeDriver, settle
from support.hosts import Left, Worker, trace
from support.processes import MAX_WAIT_SECONDS
from support.stories import tell_stories

LIMIT = 4
WORKERS = 3

which = strategies.integers(0, WORKERS - 1)
index = strategies.integers(0, 50)


class User:
    """A greenlet of a worker that wants a connection, and uses it until told to stop."""

    def __init__(self, life: Life, timeout: float) -> None:
        self.life = life
        self.stop = Event()
        self.connection: FakeConnection | None = None
        self.timeout = timeout
        self.greenlet = gevent.spawn(self.run)

    def run(self) -> None:
        with suppress(PoolTimeout, DriverError), self.life.pool.lease(self.timeout) as connection:
            assert connection.user is None
            assert not connection.closed
            self.connection, connection.user = connection, self
            try:
                self.stop.wait()
            finally:
                self.connection = connection.user = None


class Life:
    """A worker from its start to its death."""

    def __init__(self, machine: Machine, worker: Worker) -> None:
        self.driver = FakeDriver()
        self.worker = worker
        self.users: list[User] = []
        self.dead = False
        self.zombies: list[int] = []  # of connections that the server is at work for, after death
        self.pool: ConnectionPool[FakeConnection] = self.driver.pool(
            size=LIMIT,
            max_outstanding=LIMIT,
            tokens=worker.tokens(LIMIT),
            trace=lambda connection: trace(connection) + b" %d" % machine.lives.index(self),
            restore=lambda text: Gone(self.driver, machine, text),
            finish=self.finish,
        )

    def finish(
        self, connection: FakeConnection, closed: list[FakeConnection]
    ) -> Iterator[tuple[FakeConnection, bool]]:
        self.driver.step("finish")
        for each in closed:
            each.at_work = False
            if isinstance(each, Gone) and each.number in each.of.zombies:
                each.of.zombies.remove(each.number)
            yield each, True

    def at_server(self) -> int:
        """How many connections the server counts."""
        if self.dead:
            return len(self.zombies)
        own = sum(not connection.closed or connection.at_work for connection in self.made())
        return own + self.driver.connecting

    def made(self) -> list[FakeConnection]:
        entries = self.pool._entries
        waiting = [entry.conn for entry in entries.closing if not isinstance(entry.conn, Gone)]
        return [*{id(each): each for each in [*self.driver.open, *waiting]}.values()]

    def is_quiet(self) -> bool:
        pool = self.pool
        return not (pool._entries.busy or pool.waiting or pool._backoff.seconds_left)

    def die(self) -> None:
        """As by kill -9. The server notices what it is not at work for."""
        self.zombies = [
            connection.number
            for connection in self.made()
            if connection.user is not None or connection.at_work
        ]
        pool = self.pool
        self.dead = True
        self.worker.die()
        pool._closed = True
        pool._tokens = pool._entries._tokens = None
        for user in self.users:
            user.greenlet.unlink_all()
            user.stop.set()
        pool._entries.idle.clear()
        pool._to_replace.clear()
        self.driver.always = dict.fromkeys(self.driver.plan, GreenletExit())
        self.driver.open.clear()
        self.driver.connecting = 0
        self.driver.connect = _never  # type: ignore[method-assign]


class Gone(Left):
    """What a worker that has died has left behind."""

    def __init__(self, driver: FakeDriver, machine: Machine, text: bytes) -> None:
        number, life = text.split()
        super().__init__(driver, number)
        self.of = machine.lives[int(life)]


def _never() -> FakeConnection:
    raise GreenletExit


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lives: list[Life] = []
        self.first = Worker.first()
        self.living = [Life(self, self.first.another()) for _ in range(WORKERS)]
        self.lives += self.living

    @rule(worker=which, many=strategies.integers(1, 5), timeout=strategies.sampled_from([0.005, 5]))
    def some_come(self, worker: int, many: int, timeout: float) -> None:
        life = self.living[worker]
        life.users += [User(life, timeout) for _ in range(many)]

    @rule(worker=which, index=index)
    def somebody_leaves(self, worker: int, index: int) -> None:
        users = self.living[worker].users
        if users:
            users.pop(index % len(users)).stop.set()

    @rule(worker=which)
    def all_leave(self, worker: int) -> None:
        users = self.living[worker].users
        while users:
            users.pop().stop.set()

    @rule(worker=which, index=index)
    def somebody_is_killed(self, worker: int, index: int) -> None:
        users = self.living[worker].users
        if users:
            users.pop(index % len(users)).greenlet.kill(block=False)

    @rule(worker=which, index=index, harm=strategies.sampled_from(["lost", "dead", "abandoned"]))
    def a_connection_suffers(self, worker: int, index: int, harm: str) -> None:
        used = [user.connection for user in self.living[worker].users if user.connection]
        if used and (connection := used[index % len(used)]):
            connection.fault = harm
            connection.alive = False
            connection.at_work = harm == "abandoned"

    @rule(worker=which, step=strategies.sampled_from(["connect", "close", "finish"]))
    def the_driver_gets_in_trouble(self, worker: int, step: str) -> None:
        self.living[worker].driver.plan[step].append(DriverError(step))

    @rule(worker=which)
    def a_worker_is_killed(self, worker: int) -> None:
        self.living[worker].die()
        self.living[worker] = Life(self, self.first.another())
        self.lives.append(self.living[worker])

    @rule(worker=which, many=strategies.integers(1, 5))
    def a_worker_is_killed_in_the_middle_of_its_statements(self, worker: int, many: int) -> None:
        self.some_come(worker, many, 5)
        gevent.sleep(0.001)
        self.a_worker_is_killed(worker)
        self.some_come((worker + 1) % WORKERS, LIMIT, 5)

    @rule(seconds=strategies.sampled_from([0.0, 0.001, 0.001, 0.015, 0.06]))
    def time_passes(self, seconds: float) -> None:
        gevent.sleep(seconds)

    # --- What must hold

    @invariant()
    def the_bound_holds(self) -> None:
        area = self.first.area("default")
        more = any(life.worker.area("default").replacer for life in self.living)
        counted = [life.at_server() for life in self.lives]
        assert sum(counted) <= LIMIT + more, counted
        assert area.taken() <= LIMIT

    @invariant()
    def each_token_has_one_owner(self) -> None:
        owned = [token for life in self.living for token in life.worker.area("default").owned]
        assert len(owned) == len(set(owned))
        for life in self.living:
            entries = life.pool._entries
            tokens = [entry.token for entry in [*entries.open(), *entries.connecting]]
            assert sorted(tokens) == sorted(life.worker.area("default").owned)  # type: ignore[type-var]

    def teardown(self) -> None:
        for life in self.living:
            life.driver.always.clear()
            for plan in life.driver.plan.values():
                plan.clear()
            for user in life.users:
                user.stop.set()
        for life in self.living:
            settle(life.is_quiet)
        for life in self.living:  # each can have them all
            with gevent.Timeout(MAX_WAIT_SECONDS, AssertionError("it gets none")):
                taken = [life.pool.acquire(MAX_WAIT_SECONDS) for _ in range(LIMIT)]
            for connection in taken:
                life.pool.release(connection)
        assert not any(life.zombies for life in self.lives)
        for life in self.living:
            life.pool.close()
        assert self.first.area("default").taken() == 0
        assert not any(self.first.area("default").since)
        self.first.close()


def test_workers_keep_the_bound_of_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_stories(Machine, monkeypatch)
