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
from pooled_serve.pool.metrics import LEAKED

log = logging.getLogger("gunicorn.error")

MAX_FRAMES = 25
"""Of the stack that is logged, counted from the innermost."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class WatchedLease:
    """A lease with a timer. Expensive only when that fires: until then the stack is a list of code
    objects and line numbers, and nothing is read or formatted.

    :param scope: the GreenletScope that has the lease. Its ``str()`` is taken only when the timer
        fires.
    :param threshold: seconds after which the lease is logged and counted.
    """

    __slots__ = (
        "_greenlet",
        "_hub",
        "_leased_at",
        "_logged_as",
        "_pool",
        "_scope",
        "_stack",
        "_timer",
    )

    def __init__(self, pool: ConnectionPool[Any], scope: object, threshold: float) -> None:
        self._pool = pool
        self._scope = scope
        # Not the greenlet itself: a plain one ends with its last reference, and the lease with it.
        self._greenlet = weakref.ref(gevent.getcurrent())
        self._stack = _stack()
        self._leased_at = time.monotonic()
        self._logged_as = ""  # the scope in words, once the timer has fired
        self._hub: Hub = gevent.get_hub()
        self._timer: Any = self._hub.loop.timer(threshold, ref=False)
        # Not in the hub: a log handler may block.
        self._timer.start(gevent.spawn_raw, self._fire, update=True)

    def _fire(self) -> None:
        self._pool.count(LEAKED)
        name = getattr(self._greenlet(), "name", None) or "a plain greenlet"
        self._logged_as = f"{self._scope} ({name})"
        log.warning(
            "pool %r: a connection has been held for %.1fs by %s; it was taken here:\n%s",
            self._pool.name,
            time.monotonic() - self._leased_at,
            self._logged_as,
            _format(self._stack),
        )

    def end(self) -> None:
        """Note that the connection was given back. Does not switch."""
        self._timer.stop()
        self._timer.close()
        if self._logged_as:
            gevent.spawn(
                log.info,
                "pool %r: the connection of %s came back after %.1fs",
                self._pool.name,
                self._logged_as,
                time.monotonic() - self._leased_at,
            )

    def end_soon(self) -> None:
        """Like :meth:`end`, from anywhere: finalizers, other OS threads."""
        self._hub.loop.run_callback_threadsafe(self.end)


def _stack() -> list[tuple[CodeType, int]]:
    """The caller's stack, innermost frame first, without the frames of this package."""
    frames: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < MAX_FRAMES:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
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
