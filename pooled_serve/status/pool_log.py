"""What the log says of a pool: that it is at its cap, that requests are refused, that its database
is lost and back. In plain words, and at most one line a second for each pool."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import gevent

from pooled_serve.errors import PoolClosed
from pooled_serve.pool import (
    BACKOFF_FIRST,
    BACKOFF_MOST,
    PING_TIMEOUT,
    ConnectionPool,
    Observer,
)
from pooled_serve.pool import stats as tally

log = logging.getLogger("gunicorn.error")

LINE_EVERY = 1.0
"""Seconds between two lines about pressure; a full pool could produce thousands."""

PATIENCE = 0.25
"""Seconds of waiting that are no news: queues that short are what a pool is for."""

CALM = 2.0
"""Seconds without pressure until it is called over, lest it is over every other second."""


_NO_SERVER = ((2002,), (2003,))
"""Errors of a connect that nobody has answered, unlike those that come from a full server."""


class Journal(Observer):
    """Tells of one pool, and knows whether its database could last be reached.

    :param alias: stands in the lines.
    """

    pool: ConnectionPool[Any]
    probing = False
    """Whether to find out without traffic that a lost database is back."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._watcher: gevent.Greenlet | None = None  # these two are true while they run
        self._prober: gevent.Greenlet | None = None
        self._refused: list[str] = []  # not told of yet
        self._refused_total = 0  # since the pressure began
        self._told = self._told_of_failure = -math.inf
        self._lost: float | None = None  # since when
        self._failures = 0

    # --- Pressure ------------------------------------------------------------------------------

    def queued(self) -> None:
        """Somebody has to wait."""
        if not self._watcher:
            self._watcher = gevent.spawn(self._watch)

    def refused(self, error: str) -> None:
        """A request has waited for too long, and got 503."""
        self._refused_total += 1
        self._refused.append(error)
        if time.monotonic() - self._told >= LINE_EVERY:
            self._tell()
        self.queued()

    def _watch(self) -> None:
        """Until the pressure is over."""
        began = last = time.monotonic()
        gevent.sleep(PATIENCE)
        while not self._refused_total and 0 < self.pool.longest_wait() < PATIENCE:
            gevent.sleep(PATIENCE - self.pool.longest_wait())
        if self._refused_total or self.pool.longest_wait() >= PATIENCE:
            refused = 0
            while time.monotonic() - last < CALM:
                if refused < self._refused_total or self.pool.longest_wait() >= PATIENCE:
                    refused, last = self._refused_total, time.monotonic()
                    if last - self._told >= LINE_EVERY:
                        self._tell()
                gevent.sleep(LINE_EVERY)
            log.warning(
                "pool %r: the pressure is over, nobody waits; requests that got 503 in %.0fs: %d",
                self.alias,
                last - began,
                self._refused_total,
            )
        self._refused_total = 0

    def _tell(self) -> None:
        self._told = time.monotonic()
        count = len(self._refused)
        if count == 1:
            log.warning("503 Service Unavailable: %s", self._refused[-1])
        elif count:
            log.warning("503 Service Unavailable, %d times: %s", count, self._refused[-1])
        elif self._failures:
            log.warning("pool %r: requests wait for the database: %s", self.alias, self._state())
        else:
            log.warning("pool %r is at its cap: %s", self.alias, self._state())
        self._refused.clear()

    def _state(self) -> str:
        return f"{self.pool.describe()}; the first waits for {self.pool.longest_wait():.1f}s"

    # --- The database --------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._lost is not None

    def connected(self) -> None:
        """A connection was opened."""
        self.pool.tally[tally.REACHABLE] = tally.YES
        if self._lost is not None:
            _say(
                logging.WARNING,
                "database %r is back after %.1fs; failed attempts to connect: %d",
                self.alias,
                time.monotonic() - self._lost,
                self._failures,
            )
            self._lost = None
        self._failures = 0

    def connect_failed(self, error: Exception) -> None:
        """None could be opened."""
        self._failures += 1
        if self._lost is not None:
            return
        if self.pool.empty or error.args[:1] in _NO_SERVER:
            _say(logging.ERROR, "database %r cannot be reached: %s", self.alias, _in_a_line(error))
            self.lose()
        elif time.monotonic() - self._told_of_failure >= LINE_EVERY:
            # It has room for those that are open, but for no more.
            self._told_of_failure = time.monotonic()
            _say(
                logging.WARNING,
                "pool %r cannot open another connection: %s",
                self.alias,
                _in_a_line(error),
            )

    def lose(self) -> None:
        """The database cannot be reached, as somebody has found out and told."""
        self.pool.tally[tally.REACHABLE] = tally.NO
        self._lost = time.monotonic()
        if self.probing and not self._prober:
            self._prober = gevent.spawn(self._probe)

    def _probe(self) -> None:
        """Take a connection, as a request would, until that works. An orchestrator sends no
        requests until it does."""
        pause = BACKOFF_FIRST
        while self._lost is not None:
            gevent.sleep(pause)
            pause = min(BACKOFF_MOST, 2 * pause)
            try:
                conn = self.pool.acquire()
            except PoolClosed:
                return
            except Exception:
                continue
            try:
                # One that was idle says nothing by itself.
                with gevent.Timeout(PING_TIMEOUT):
                    conn.ping()
                self.connected()
            except (Exception, gevent.Timeout):
                continue
            finally:
                self.pool.release(conn)


def _say(level: int, text: str, *args: object) -> None:
    """Log in a greenlet of its own: a handler may do I/O, and the pool that calls is in the middle
    of something."""
    gevent.spawn(log.log, level, text, *args)


def _in_a_line(error: Exception) -> str:
    code, *rest = error.args or ("",)
    text = f"{rest[0]} ({code})" if rest else f"{code}"
    return " ".join(text.split()) or type(error).__name__
