"""Pools on the driver of support.driver: fixtures, and users that take connections."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pooled_serve.pool import ConnectionPool, asked
from support.driver import FakeConnection, FakeDriver, assert_sound, leased

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


@pytest.fixture
def all_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool takes all the time of a question in vain for the server's, also what a busy machine
    has taken from this process; that would leave the server without blame."""
    monkeypatch.setattr(asked, "TURN_SECONDS", 3600.0)


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


def count_calls(function: Callable[[], object]) -> int:
    """Calls of Python and C functions; a slow-down shows here without a clock.

    Without garbage collection: it calls finalizers of what other tests have left.
    """
    calls = 0

    def profiler(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    collects = gc.isenabled()
    gc.disable()
    sys.setprofile(profiler)
    try:
        function()
    finally:
        sys.setprofile(None)
        if collects:
            gc.enable()
    return calls


class Clock:
    """Stands still, unless it is told to go on: a busy machine may halt a test for seconds.

    It may take the place of the module `time`, too, of which only monotonic() is another then.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    monotonic = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class quiet_hub:  # noqa: N801 - used like a function
    """Greenlets that fail on purpose print no traceback."""

    def __enter__(self) -> None:
        self.hub = gevent.get_hub()
        self.hub.NOT_ERROR = (*type(self.hub).NOT_ERROR, Exception)

    def __exit__(self, *exc_info: object) -> None:
        del self.hub.NOT_ERROR
