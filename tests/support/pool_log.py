"""A pool with its log, and the lines that were written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gevent
import pytest

from pooled_serve.status import hanging_log, pool_log, reachability, repeats
from pooled_serve.status.pool_log import PoolLog
from pooled_serve.status.reachability import Reachability
from support.driver import FakeDriver, settle
from support.pools import Clock


@dataclass
class Line:
    level: int
    text: str
    at: float
    longest_wait: float
    """Of the pool, when it was written."""


class Watched(logging.Handler):
    """A pool with its log, and the lines that were written."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = FakeDriver()
        self.log = PoolLog("default")
        self.reachability = Reachability(self.log)
        self.pool = self.driver.pool(
            size=1, max_outstanding=1, listeners=(self.log, self.reachability)
        )
        self.log.pool = self.reachability.pool = self.pool
        self.lines: list[Line] = []

    def emit(self, record: logging.LogRecord) -> None:
        text, now = record.getMessage(), time.monotonic()
        self.lines.append(Line(record.levelno, text, now, self.pool.longest_wait()))

    def with_text(self, text: str) -> list[Line]:
        return [line for line in self.lines if text in line.text]

    def wait_for(self, text: str, times: int) -> None:
        settle(lambda: len(self.with_text(text)) == times)

    def use(self, seconds: float) -> None:
        with self.pool.lease():
            gevent.sleep(seconds)

    def use_all(self, users: int, seconds: float) -> None:
        """So many, one after the other, for so long each."""
        gevent.joinall([gevent.spawn(self.use, seconds) for _ in range(users)], raise_error=True)

    def connect(self, error: Exception | None) -> None:
        """Open a connection, or fail to; nothing stays open."""
        self.driver.plan["connect"].append(error)
        self.pool._backoff.succeeded()  # or the next attempt would have to wait
        with pytest.raises(type(error)) if error else self.pool.lease():
            if error:
                self.pool.acquire()
        self.pool.clear()
        settle()


def stop_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the log, which looks at the pool more often than it would. What a test does at
    one moment has one line then, also where the machine halts it for a second in between."""
    clock = Clock()
    for module in (pool_log, hanging_log, reachability, repeats):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(pool_log, "POLL_SECONDS", 0.02)
    return clock


@contextmanager
def watching() -> Iterator[Watched]:
    """Yields one, and leaves no greenlet behind that would log later."""
    watched = Watched()
    before = pool_log.log.level
    pool_log.log.addHandler(watched)
    pool_log.log.setLevel(logging.INFO)
    yield watched
    settle()  # what is logged in a greenlet is this test's, not the next one's
    pool_log.log.removeHandler(watched)
    pool_log.log.setLevel(before)
    if watched.log._watcher:
        watched.log._watcher.kill()  # or its lines would be the next test's
    watched.pool.close()
