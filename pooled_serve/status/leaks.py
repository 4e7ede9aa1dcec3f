"""Finds leases that last suspiciously long: ``--leak-threshold``."""

from __future__ import annotations

import functools
import linecache
import logging
import os
import site
import sys
import sysconfig
import time
import weakref
from types import CodeType, FrameType
from typing import Any

import gevent
from gevent.hub import Hub

from pooled_serve.pool import ConnectionPool
from pooled_serve.pool.metrics import LEAKED

log = logging.getLogger("gunicorn.error")

REPORT_SECONDS = 60.0
"""Between two reports of one place. A view that leaks does so in each request."""

STANDSTILL = 0.5
"""Seconds by which a timer is late if something blocks the event loop: then the lease may be long
for no fault of its request."""

MAX_FRAMES = 25
"""Of those that are logged, counted from the innermost."""

MAX_DEPTH = 250
"""Of the stack that is looked at, likewise. Below a statement of the project lie some fifteen
frames of Django, and more if a template runs it."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep

Stack = list[tuple[CodeType, int]]
"""Code and line of each frame, the innermost first."""


class WatchedLease:
    """A lease with a timer. Expensive only when that fires: until then the stack is a list of code
    objects and line numbers, and nothing is read or formatted.

    :param scope: the GreenletScope that has the lease. Its ``str()`` is taken only when the timer
        fires.
    :param threshold: seconds after which the lease is logged and counted.
    """

    __slots__ = (
        "_ended",
        "_greenlet",
        "_hub",
        "_leased_at",
        "_logged_as",
        "_pool",
        "_scope",
        "_stack",
        "_threshold",
        "_timer",
    )

    def __init__(self, pool: ConnectionPool[Any], scope: object, threshold: float) -> None:
        self._pool = pool
        self._scope = scope
        # Not the greenlet itself: a plain one ends with its last reference, and the lease with it.
        self._greenlet = weakref.ref(gevent.getcurrent())
        self._stack = _stack()
        self._threshold = threshold
        self._ended = False
        self._leased_at = time.monotonic()
        self._logged_as = ""  # the scope in words, once it was logged
        self._hub: Hub = gevent.get_hub()
        self._timer: Any = self._hub.loop.timer(threshold, ref=False)
        # Not in the hub: a log handler may block.
        self._timer.start(gevent.spawn_raw, self._fire, update=True)

    def _fire(self) -> None:
        if self._ended:  # after a standstill of the loop, while this was about to run
            return
        held = time.monotonic() - self._leased_at
        still = held - self._threshold  # a timer is late by as much
        self._pool.count(LEAKED)
        name = getattr(self._greenlet(), "name", None) or "a plain greenlet"
        holder = f"{self._scope} ({name})"
        stack = relevant(self._stack)
        place: Place = (self._pool.name, *stack[:1])
        report = _reports.get(place)
        if report is not None:
            report.count(holder)
            return
        _reports[place] = _Report(place, stack)
        self._logged_as = holder
        log.warning(
            "pool %r: a connection has been held for %.1fs by %s%s; it was taken "
            "here, the innermost call first:\n%s",
            self._pool.name,
            held,
            holder,
            f" (the event loop stood still for {still:.1f}s of it)" if still > STANDSTILL else "",
            _format(stack),
        )

    def end(self) -> None:
        """Note that the connection was given back. Does not switch."""
        self._ended = True
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


Place = tuple[str | tuple[CodeType, int], ...]
"""A pool, and the line that has taken a connection of it."""

_reports: dict[Place, _Report] = {}
os.register_at_fork(after_in_child=_reports.clear)  # their timers are the parent's


class _Report:
    """What has happened at a place since it was last logged. Ends with a minute in which nothing
    has."""

    def __init__(self, place: Place, stack: Stack) -> None:
        self._place = place
        self._stack = stack
        self._count = 0
        self._holder = ""
        self._timer: Any = gevent.get_hub().loop.timer(REPORT_SECONDS, REPORT_SECONDS, ref=False)
        self._timer.start(gevent.spawn_raw, self._tell, update=True)

    def count(self, holder: str) -> None:
        """Count another lease that lasts too long."""
        self._count += 1
        self._holder = holder

    def _tell(self) -> None:
        count, self._count = self._count, 0
        if not count:
            self._timer.close()
            del _reports[self._place]
            return
        log.warning(
            "pool %r: in the last %.0fs %d more connections taken at this place were held for too "
            "long, the last by %s:\n%s",
            self._place[0],
            REPORT_SECONDS,
            count,
            self._holder,
            _format(self._stack),
        )


def _stack() -> Stack:
    """The caller's stack, without the frames of this package."""
    frames: Stack = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(frames) < MAX_DEPTH:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return frames


def relevant(stack: Stack) -> Stack:
    """Returns the frames from the project's innermost one to its outermost one: its own, and those
    of libraries that it passes through. All frames if none is the project's."""
    own = [i for i, (code, _) in enumerate(stack) if is_own(code.co_filename)]
    return (stack[own[0] : own[-1] + 1] if own else stack)[:MAX_FRAMES]


@functools.cache
def is_own(file: str) -> bool:
    """Whether a file is the project's, and not a library's."""
    if file.startswith(("<", _PACKAGE)):
        return False  # <frozen runpy>, <string>
    file = os.path.realpath(file)
    return file.startswith(_project()) or not file.startswith(_libraries())


@functools.cache
def _libraries() -> tuple[str, ...]:
    found = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    found.discard(sysconfig.get_path("data"))  # the whole environment, in which a project may be
    return _folders(found)


@functools.cache
def _project() -> tuple[str, ...]:
    """The package of the settings: it may be installed beside the libraries."""
    name = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")[0]
    package = sys.modules.get(name)
    return _folders(getattr(package, "__path__", ()))


def _folders(paths: Any) -> tuple[str, ...]:
    return tuple(os.path.join(os.path.realpath(path), "") for path in paths)


def _format(stack: Stack) -> str:
    lines = []
    for code, number in stack:
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}')
        if source := linecache.getline(code.co_filename, number).strip():
            lines.append(f"    {source}")
    return "\n".join(lines)
