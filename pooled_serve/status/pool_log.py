"""What the log says about a pool: that requests wait or are refused, that its database is lost or
back. In plain words, seldom, and true at the moment when the line is written."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from typing import Any

import gevent

from pooled_serve.pool import ConnectionPool, PoolListener
from pooled_serve.pool.stats import BUCKET_BOUNDS_SECONDS, WAIT_BUCKETS

log = logging.getLogger("gunicorn.error")

PAUSES_SECONDS = (0.0, 1.0, 10.0, 60.0)
"""Before the first line of a kind, before the second, the third, and each further one."""

FORGET_SECONDS = 2 * PAUSES_SECONDS[-1]
"""Without a line of a kind, after which the next one is the first again."""

LONG_WAIT_SECONDS = 0.25
"""Waits up to this are no news: short queues are what a pool is for. A bound of the histogram."""

CALM_SECONDS = 5.0
"""Without a long wait, after which the pressure is over. A pool that works at its cap has moments
in which nobody waits; they are not worth a line."""

LOOK_SECONDS = 1.0
"""Between two looks at a queue that had long waits."""

_LONG_WAITS = slice(
    WAIT_BUCKETS + bisect_right(BUCKET_BOUNDS_SECONDS, LONG_WAIT_SECONDS),
    WAIT_BUCKETS + len(BUCKET_BOUNDS_SECONDS) + 1,
)


class Repeats:
    """When a line of one kind may be written again, which is ever more rarely."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._times = 0

    def pause(self, now: float) -> float:
        """Seconds that must lie between the last line and the next."""
        if now - self._last > FORGET_SECONDS:
            self._times = 0
        return PAUSES_SECONDS[min(self._times, len(PAUSES_SECONDS) - 1)]

    def due(self, now: float) -> bool:
        """Whether the line may be written now. Then it counts as written."""
        if now - self._last < self.pause(now):
            return False
        self._last = now
        self._times += 1
        return True


class PoolLog(PoolListener):
    """Writes the lines about one pool.

    :param alias: stands in the lines.
    """

    pool: ConnectionPool[Any]

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._watcher: gevent.Greenlet | None = None  # true while it runs
        self._told = False  # that there is pressure
        self._refused = 0  # 503s since the pressure began
        self._untold = 0  # of these
        self._last_refusal = ""
        self._pressure_lines, self._refusal_lines, self._relief_lines = (Repeats() for _ in "123")
        self._lost_lines, self._failure_lines, self._shortage_lines = (Repeats() for _ in "123")

    # --- Pressure ------------------------------------------------------------------------------

    def queued(self) -> None:
        """A request has to wait."""
        if not self._watcher:
            self._watcher = gevent.spawn(self._watch)

    def refused(self, error: str) -> None:
        """A request got 503 for this reason."""
        self._refused += 1
        self._untold += 1
        self._last_refusal = error
        self._tell_refusals()
        self.queued()

    def _watch(self) -> None:
        """As long as there is pressure: requests wait for long, or are refused.

        Looks at the queue, and at the histogram for the long waits that ended between two looks.
        """
        seen = self._long_waits(), 0
        began: float | None = None  # when there was pressure first and last, as far as was seen
        last = 0.0
        while True:
            now = time.monotonic()
            waited = self.pool.longest_wait()
            signs = self._long_waits(), self._refused
            if waited >= LONG_WAIT_SECONDS or signs != seen:
                seen, last = signs, now
                if began is None:
                    began = now
                if waited >= LONG_WAIT_SECONDS:
                    self._tell_pressure()
            elif began is None:
                if not self.pool.waiting:
                    self._watcher = None
                    return
            elif (
                now - last >= max(CALM_SECONDS, self._relief_lines.pause(now))
                and waited < LONG_WAIT_SECONDS / 2  # so that the line is true when it is written
            ):
                break
            self._tell_refusals()
            soon = max(0.01, LONG_WAIT_SECONDS - waited)  # when the head may have waited for long
            gevent.sleep(soon if began is None else LOOK_SECONDS)
        self._tell_relief(last - began, int(now - last))

    def _long_waits(self) -> float:
        """How many there were since the start."""
        return sum(self.pool.row[_LONG_WAITS])

    def _tell_pressure(self) -> None:
        if self._pressure_lines.due(time.monotonic()):
            self._told = True
            log.log(
                logging.WARNING if self._refused else logging.INFO,
                "pool %r%s: %s; the first waits for %.1fs",
                self._alias,
                " is at its cap" if self.pool.full else ": requests wait for the database",
                self.pool.describe(),
                self.pool.longest_wait(),
            )

    def _tell_refusals(self) -> None:
        if self._untold and self._refusal_lines.due(time.monotonic()):
            self._told = True
            times = f", {self._untold} times" if self._untold > 1 else ""
            self._untold = 0
            log.warning("503 Service Unavailable%s: %s", times, self._last_refusal)

    def _tell_relief(self, lasted: float, calm: int) -> None:
        refused, told = self._refused, self._told or self._untold
        self._refused = self._untold = 0
        self._told = False
        self._watcher = None  # first: a log handler may switch, and another queue form
        if told:
            self._relief_lines.due(time.monotonic())
            log.log(
                logging.WARNING if refused else logging.INFO,
                "pool %r: the pressure is over, no request has waited longer than %gs for %ds; "
                "requests that got 503 in %.0fs: %d",
                self._alias,
                LONG_WAIT_SECONDS,
                calm,
                lasted,
                refused,
            )

    # --- The database --------------------------------------------------------------------------

    def database_lost(self, error: Exception) -> bool:
        """It cannot be reached. Returns whether that was written."""
        due = self._lost_lines.due(time.monotonic())
        if due:
            _say(logging.ERROR, "database %r cannot be reached: %s", self._alias, in_a_line(error))
        return due

    def database_back(self, seconds: float, failures: int) -> None:
        """It can be reached again."""
        _say(
            logging.WARNING,
            "database %r is back after %.1fs; failed attempts to connect: %d",
            self._alias,
            seconds,
            failures,
        )

    def no_more_connections(self, error: Exception) -> None:
        """The server has room for the connections that are open, but for no more."""
        if self._failure_lines.due(time.monotonic()):
            _say(
                logging.WARNING,
                "pool %r cannot open another connection: %s",
                self._alias,
                in_a_line(error),
            )

    def shortage(self, problem: str, remedy: str) -> bool:
        """This machine cannot open a connection. Returns whether that was written."""
        due = self._shortage_lines.due(time.monotonic())
        if due:
            _say(
                logging.ERROR,
                "pool %r cannot open a connection: %s\n  → %s",
                self._alias,
                problem,
                remedy,
            )
        return due

    def shortage_over(self, seconds: float, failures: int) -> None:
        """It can again."""
        _say(
            logging.WARNING,
            "pool %r can open connections again after %.1fs; failed attempts: %d",
            self._alias,
            seconds,
            failures,
        )


def in_a_line(error: Exception) -> str:
    """What a driver's error says, with its code behind it."""
    code, *rest = error.args or ("",)
    text = f"{rest[0]} ({code})" if rest else f"{code}"
    return " ".join(text.split()) or type(error).__name__


def _say(level: int, text: str, *args: object) -> None:
    """Log in a greenlet of its own: a handler may do I/O, and the pool that calls is in the middle
    of something."""
    gevent.spawn(log.log, level, text, *args)
