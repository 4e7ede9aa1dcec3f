"""Log lines about statements that hang.

A worker may have few of them, and others more: whether they hang is judged of all workers together,
by the rules of the page.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent

from pooled_serve.pool import ConnectionPool, PoolListener
from pooled_serve.pool.metrics import IN_STATEMENT, IN_USE
from pooled_serve.status.figures import MANY_HANG, hang
from pooled_serve.status.remedies import HANGING_REMEDY
from pooled_serve.status.repeats import Repeats
from pooled_serve.status.words import plural

log = logging.getLogger("gunicorn.error")

REMEDY = HANGING_REMEDY.replace("there ", "on the server ", 1)


def nobody_hangs(alias: str, *, beside_others: bool = False) -> bool:
    """What :attr:`HangingLog.all_hang` says where there is no scoreboard."""
    return False


class HangingLog(PoolListener):
    """Writes the lines about the statements of one pool.

    :param alias: names the pool in the lines.
    """

    pool: ConnectionPool[Any]

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self.usual_hold: Callable[[], float] = float
        """Asked for how long connections are held on the busiest route, as the page judges it."""
        self.all_hang: Callable[..., bool] = nobody_hangs
        """Asked whether the statements of all workers hang, or some of them ``beside_others`` that
        are answered: this one may have few of them."""
        self._hanging_lines, self._slow_lines = Repeats(), Repeats()

    def hanging(self, seconds: float) -> bool:
        """All connections in use wait for a server that answers others. Returns whether a line was
        written."""
        row = self.pool.row
        numbers = row[IN_USE], row[IN_STATEMENT], seconds
        if not hang(*numbers, 0.0):
            return False
        here = self.pool.waiting or row[IN_USE] >= MANY_HANG
        if not (here and hang(*numbers, self.usual_hold())) and not self.all_hang(self._alias):
            return False
        due = self._hanging_lines.event(time.monotonic())
        if due:
            text = "pool %r: statements hang, none has been answered for %.1fs; %s\n  → %s"
            log_later(logging.WARNING, text, self._alias, seconds, self.pool.describe(), REMEDY)
        return due

    def answered(self) -> None:
        """The server has answered again."""
        self._hanging_lines.over(time.monotonic())

    def hanging_over(self, seconds: float) -> None:
        """Statements are answered again, after a line that said they hang."""
        text = "pool %r: statements go on, none had been answered for %.1fs"
        log_later(logging.WARNING, text, self._alias, seconds)

    def slow(self, seconds: float) -> bool:
        """Statements wait for a server that answers others. Returns whether a line was written."""
        if not self.all_hang(self._alias, beside_others=True):
            return False
        due = self._slow_lines.event(time.monotonic())
        if due:
            log_later(
                logging.WARNING,
                "pool %r: %s of this worker without an answer for a second or more, the first for "
                "%.1fs, while others are answered; %s\n  → %s",
                self._alias,
                plural(self.pool.row[IN_STATEMENT], "statement"),
                seconds,
                self.pool.describe(),
                REMEDY,
            )
        return due

    def slow_over(self, seconds: float) -> None:
        """The first of them has ended, after a line that said it waits."""
        self._slow_lines.over(time.monotonic())
        text = "pool %r: the first of the statements that hung has ended, after %.1fs"
        log_later(logging.WARNING, text, self._alias, seconds)


def log_later(level: int, text: str, *args: object) -> None:
    """Log in a greenlet of its own: a handler may do I/O, and the calling pool must not switch."""
    gevent.spawn(log.log, level, text, *args)
