"""Finds leases that last suspiciously long: ``--leak-threshold``."""

from __future__ import annotations

import linecache
import logging
import os
import sys
import time
import weakref
from types import CodeType, FrameType
from typing import Any

import gevent
from gevent.hub import Hub

from pooled_serve.pool import ConnectionPool
from pooled_serve.pool.stats import LEAKED

log = logging.getLogger("gunicorn.error")

MOST_FRAMES = 25

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


class WatchedLease:
    """A lease with a timer. Dear only when it fires: until then the stack is a list of code
    objects and line numbers, and nothing is read or formatted.

    :param lessee: who has it; asked only when the timer fires.
    :param threshold: seconds.
    """

    __slots__ = ("_fired", "_greenlet", "_hub", "_lessee", "_pool", "_stack", "_taken", "_timer")

    def __init__(self, pool: ConnectionPool[Any], lessee: object, threshold: float) -> None:
        self._pool = pool
        self._lessee = lessee
        # Not the greenlet itself: a plain one ends with its last reference, and the lease with it.
        self._greenlet = weakref.ref(gevent.getcurrent())
        self._stack = _stack()
        self._taken = time.monotonic()
        self._fired = ""
        self._hub: Hub = gevent.get_hub()
        self._timer: Any = self._hub.loop.timer(threshold, ref=False)
        # Not in the hub: what handles the log may have to wait.
        self._timer.start(gevent.spawn_raw, self._fire, update=True)

    def _fire(self) -> None:
        self._pool.count(LEAKED)
        name = getattr(self._greenlet(), "name", None) or "a plain greenlet"
        self._fired = f"{self._lessee} ({name})"
        log.warning(
            "pool %r: a connection is held for %.1fs by %s; it was taken here:\n%s",
            self._pool.name,
            time.monotonic() - self._taken,
            self._fired,
            _format(self._stack),
        )

    def end(self) -> None:
        """It is given back. Does not switch."""
        self._timer.stop()
        self._timer.close()
        if self._fired:
            gevent.spawn(
                log.info,
                "pool %r: the connection of %s came back after %.1fs",
                self._pool.name,
                self._fired,
                time.monotonic() - self._taken,
            )

    def end_soon(self) -> None:
        """The same from anywhere: finalizers, other threads."""
        self._hub.loop.run_callback_threadsafe(self.end)


def _stack() -> list[tuple[CodeType, int]]:
    """Where the caller is, innermost first, without the lines of the pool itself."""
    frames: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < MOST_FRAMES:
        if not frame.f_code.co_filename.startswith(_OURS):
            frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return frames


def _format(stack: list[tuple[CodeType, int]]) -> str:
    lines = []
    for code, number in reversed(stack):
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
        if source := linecache.getline(code.co_filename, number).strip():
            lines.append(f"    {source}")
    return "\n".join(lines)
