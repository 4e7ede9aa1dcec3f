"""Who lets no other request run: seen by a thread of its own, while that lasts.

A greenlet that blocks its worker blocks what could ask it, too; afterwards nobody knows which of
the requests in flight it was. So a thread wakes up twice a second. While the loop runs it finds
nothing to do; when that is late, it looks at what the main thread is doing. That costs requests and
statements nothing. gevent's own monitor looks in the same way, but has each switch traced as well.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from types import CodeType, FrameType
from typing import NamedTuple

from gevent.monkey import get_original

from pooled_serve.status.leaks import MAX_DEPTH, is_own
from pooled_serve.status.routes import OUTSIDE
from pooled_serve.status.words import listed

LOOK_SECONDS = 0.5
"""Between two looks, and so long the loop must have been late for one."""

MAX_SIGHTINGS = 40
"""That are kept: the last twenty seconds of a block say enough."""

MAX_NAMES = 2
"""In a sentence. More may take turns with the worker before its loop comes to run again."""

PROBABLY = "probably "

_SURE = 2
"""Sightings. A thread that comes to look only once was kept from it: somebody computes in C, or the
process itself stood still, and had others run just before."""


class Culprit(NamedTuple):
    """Who blocked a worker."""

    name: str = ""
    """Such as "GET report", "probably GET report", "GET report and POST order"; empty if it is not
    known."""

    place: str = ""
    """The innermost line of the project's code, where it has been seen most often."""


NOBODY = Culprit()


def in_words(name: str) -> str:
    """Returns where a worker was blocked, as the end of a sentence; empty if that is not known."""
    if not name:
        return ""
    probably = PROBABLY if name.startswith(PROBABLY) else ""
    return f", {probably}in {name.removeprefix(PROBABLY)}"


class _Sighting(NamedTuple):
    block: float
    route: str
    calls: list[tuple[CodeType, int, str]]
    """Code, line and module of each, the innermost first."""


class Watch:
    """Watches the thread that makes it: the main one, with the event loop.

    :param seen_at: returns when the loop last ran, in monotonic seconds; 0 if it is not watched.
    :param route_of: returns the route of the request whose frame this is; empty if it is none's.
    :param tell: called with a block, which is named by the moment when the loop last ran, and its
        culprit so far. In the thread.
    """

    def __init__(
        self,
        seen_at: Callable[[], float],
        route_of: Callable[[FrameType], str],
        tell: Callable[[float, str], None],
    ) -> None:
        self._seen_at = seen_at
        self._route_of = route_of
        self._tell = tell
        self._watched: int = get_original("_thread", "get_ident")()
        self._end = get_original("_thread", "allocate_lock")()
        self._sightings: deque[_Sighting] = deque(maxlen=MAX_SIGHTINGS)

    def start(self) -> None:
        """Start the thread. It gets no signals, which the main thread waits for or has blocked."""
        self._end.acquire()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            get_original("_thread", "start_new_thread")(self._run, ())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """End the thread."""
        if self._end.locked():
            self._end.release()

    def culprit(self, block: float) -> Culprit:
        """Returns who has blocked the loop since that moment, when it last ran."""
        seen = [each for each in list(self._sightings) if each.block == block]
        names: Counter[str] = Counter()
        places: Counter[str] = Counter()
        for each in seen:
            code, line, module = next(
                (call for call in each.calls if is_own(call[0].co_filename)), (None, 0, "")
            )
            if code is not None:
                places[f"{code.co_qualname}() in {code.co_filename}, line {line}"] += 1
            own = "" if code is None else f"{module}.{code.co_qualname}(), {OUTSIDE}"
            names[each.route or own] += 1
        if names.pop("", 0) >= names.total():
            return NOBODY
        shown = [name for name, _ in names.most_common(MAX_NAMES)]
        others = ["others"] * (len(names) > MAX_NAMES)
        name = PROBABLY * (names.total() < _SURE) + listed(shown + others)
        return Culprit(name, next((place for place, _ in places.most_common(1)), ""))

    def _run(self) -> None:
        while not self._end.acquire(timeout=LOOK_SECONDS):
            block = self._seen_at()
            if block and time.monotonic() - block > 2 * LOOK_SECONDS:
                self._look(block)

    def _look(self, block: float) -> None:
        """Note what the main thread does. First of all the stack, without anything that lets that
        thread go on: it may have waited for this one alone."""
        calls: list[tuple[CodeType, int, str]] = []
        route = ""
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001 - it is documented
        while frame is not None and len(calls) < MAX_DEPTH:
            calls.append((frame.f_code, frame.f_lineno, str(frame.f_globals.get("__name__"))))
            route = route or self._route_of(frame)
            frame = frame.f_back
        if self._seen_at() == block:  # else that is what it has done since
            self._sightings.append(_Sighting(block, route, calls))
            self._tell(block, self.culprit(block).name)
