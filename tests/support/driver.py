"""A database driver without a database, for what a server cannot be made to do on time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.event import Event

from pooled_serve.pool import DIRTY, ConnectionPool
from support.processes import MAX_WAIT_SECONDS, source_of

NEVER = float("inf")


class DriverError(Exception):
    """What the driver raises when it is told to fail."""


class FakeConnection:
    """Counts itself open at its driver until it is closed."""

    def __init__(self, driver: FakeDriver, number: int) -> None:
        self.driver = driver
        self.number = number
        self.dirty = False
        self.fault: str | None = None
        self.alive = True
        self.closed = False
        self.abandoned = False
        self.at_work = False  # the server is, for it, though it may be closed
        self.user: object = None  # who uses it now: two at once is the worst of bugs

    def __repr__(self) -> str:
        return f"<connection {self.number}>"

    def close(self) -> None:
        try:
            self.driver.step("close")
        finally:
            if not self.closed:
                self.closed = True
                self.driver.open.remove(self)


class FakeDriver:
    """The callables that a pool takes. ``plan[step]`` is a list of what the next calls do: an
    exception to raise, a number of seconds to take, or an Event to wait for."""

    def __init__(self) -> None:
        self.plan: dict[str, list[Any]] = {
            name: [] for name in ("connect", "ping", "reset", "close", "finish")
        }
        self.always: dict[str, Any] = {}
        self.calls: dict[str, int] = dict.fromkeys(self.plan, 0)
        self.open: list[FakeConnection] = []
        self.left: list[int] = []  # numbers of connections that other workers left behind
        self.connecting = 0
        self.peak = 0

    def step(self, name: str) -> None:
        self.calls[name] += 1
        todo = self.plan[name].pop(0) if self.plan[name] else self.always.get(name)
        if isinstance(todo, BaseException):
            raise todo
        if isinstance(todo, Event):
            todo.wait()
        elif todo == NEVER:
            Event().wait()
        elif todo is not None:
            gevent.sleep(todo)

    def connect(self) -> FakeConnection:
        self.connecting += 1
        self.peak = max(self.peak, self.connecting + len(self.open))
        try:
            self.step("connect")
        finally:
            self.connecting -= 1
        connection = FakeConnection(self, self.calls["connect"])
        self.open.append(connection)
        return connection

    def check(self, connection: FakeConnection) -> bool:
        return connection.alive

    def ping(self, connection: FakeConnection) -> None:
        self.step("ping")

    def condition(self, connection: FakeConnection) -> str | None:
        return connection.fault or (DIRTY if connection.dirty else None)

    def reset(self, connection: FakeConnection) -> None:
        self.step("reset")
        connection.dirty = False

    def unfinished(self, connection: FakeConnection) -> bool:
        return connection.at_work

    def finish(
        self, connection: FakeConnection, closed: list[FakeConnection]
    ) -> Iterator[tuple[FakeConnection, bool]]:
        self.step("finish")
        for each in closed:
            assert each.closed
            each.at_work = False
            yield each, True

    def abandon(self, connection: FakeConnection) -> None:
        connection.abandoned = True

    def pool(self, **options: Any) -> ConnectionPool[FakeConnection]:
        options = {
            "size": 2,
            "max_outstanding": 2,
            "timeout": MAX_WAIT_SECONDS,
            "unfinished": self.unfinished,
            "finish": self.finish,
            **options,
        }
        return ConnectionPool(
            self.connect,
            check=self.check,
            ping=self.ping,
            condition=self.condition,
            reset=self.reset,
            abandon=self.abandon,
            **options,
        )


@contextmanager
def leased(pool: ConnectionPool[FakeConnection], **options: Any) -> Iterator[FakeConnection]:
    """A connection for the length of a block, used by nobody else in the meantime."""
    with pool.lease(**options) as connection:
        assert connection.user is None, f"{connection} was handed to two users"
        assert not connection.closed
        connection.user = gevent.getcurrent()
        try:
            yield connection
        finally:
            connection.user = None


def settle(condition: Callable[[], bool] = lambda: True) -> None:
    """Let everything happen that is due, until the condition holds."""
    with gevent.Timeout(MAX_WAIT_SECONDS, False):
        gevent.sleep(0.002)
        while not condition():
            gevent.sleep(0.001)
        return
    raise AssertionError(f"not so within {MAX_WAIT_SECONDS:g} s: {source_of(condition)}")


def assert_sound(pool: ConnectionPool[FakeConnection], driver: FakeDriver) -> None:
    """Nothing is lost, and the full cap can be handed out."""
    driver.always.clear()
    for plan in driver.plan.values():
        plan.clear()
    settle(lambda: pool._entries.busy == 0 and pool._retry_timer is None)

    def reached() -> bool:
        pool.probe()
        return pool._outage.since is None

    if pool._outage.since is not None:
        settle(reached)
    stats = pool.stats()
    assert stats["waiting"] == 0
    assert stats["idle"] == len(driver.open) <= pool.size
    assert driver.peak <= pool.cap
    taken = [pool.acquire(timeout=MAX_WAIT_SECONDS) for _ in range(int(pool.cap))]
    assert len({id(connection) for connection in taken}) == pool.cap
    for connection in taken:
        pool.release(connection)
    settle(lambda: pool._entries.busy == 0)
    assert len(driver.open) == pool.stats()["idle"] <= pool.size
