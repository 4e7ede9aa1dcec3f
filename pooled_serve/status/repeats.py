"""When the log says again what it has said already: ever more rarely while a trouble lasts, and at
once when there is another.
"""

from __future__ import annotations

import math
import time

PAUSES_SECONDS = (0.0, 1.0, 10.0, 60.0)
"""Before the first line of a kind, the second, the third, and each further one."""

FORGET_SECONDS = 2 * PAUSES_SECONDS[-1]
"""After so long without a line of a kind, the next one counts as the first again."""

CALM_SECONDS = 5.0
"""After so long without any, a trouble is over, and the next is another. A pool at its cap has
moments in which the queue is empty, and a database that comes and goes is back for moments; they
are not worth a line each."""

TOLD_AS_NOW_SECONDS = PAUSES_SECONDS[-1]
"""If what a line counts began earlier, it says when. The last events of a burst are counted by the
next line, which the next event brings, perhaps hours later, or the worker's end."""

MOMENT_SECONDS = 0.5
"""A refusal that is older is told as one of the past."""


class Repeats:
    """Spaces out the lines of one kind, more and more, for as long as their trouble lasts."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._times = 0
        self._over_at = math.inf
        self._unlogged = 0
        self._first_at = 0.0  # when the first of these was
        self._what = ""

    def pause(self, now: float) -> float:
        """Returns the seconds that must lie between the last line and the next."""
        if now - self._last > FORGET_SECONDS:
            self._times = 0
        return PAUSES_SECONDS[min(self._times, len(PAUSES_SECONDS) - 1)]

    def due(self, now: float) -> bool:
        """Returns whether a line may be written now; if so, it counts as written."""
        if now - self._last < self.pause(now):
            return False
        self._last = now
        self._times += 1
        return True

    def anew(self) -> None:
        """The trouble is over, and was calm for long enough: the next line is a first one."""
        self._times = 0
        self._over_at = math.inf

    def over(self, now: float) -> None:
        """The trouble seems to be over. If nothing happens for CALM_SECONDS, it is."""
        self._over_at = min(self._over_at, now)

    def happens(self, now: float) -> None:
        """It goes on, or another one begins."""
        if now - self._over_at >= CALM_SECONDS:
            self.anew()
        self._over_at = math.inf

    def event(self, now: float) -> bool:
        """Note that it happens. Returns whether a line may be written now, see :meth:`due`."""
        self.happens(now)
        return self.due(now)

    def count(self, now: float, what: str = "") -> str | None:
        """Count an event. Returns how many there were since the last line if one may be written
        now, see :meth:`rest`; else None.

        :param what: the words for it, kept for a last line.
        """
        if not self._unlogged:
            self._first_at = now
        self._unlogged += 1
        self._what = what
        return self.rest(now)[0] if self.event(now) else None

    def rest(self, now: float) -> tuple[str | None, str]:
        """Returns how many there were since the last line, and the words of the latest; from now
        on they count as told. The number is text that follows what has happened: empty if that was
        once and lately, ", 3 times", ", 3 times since 12:00:01", ", at 12:00:01"; None if there
        were none."""
        unlogged, self._unlogged = self._unlogged, 0
        if not unlogged:
            return None, self._what
        times = f", {unlogged} times" if unlogged > 1 else ""
        if (ago := now - self._first_at) > TOLD_AS_NOW_SECONDS:
            times += f" since {_at(ago)}" if times else f", at {_at(ago)}"
        return times, self._what


def _at(ago: float) -> str:
    """Returns the time of so many seconds ago, as the log has it."""
    now = time.time()
    then, today = time.localtime(now - ago), time.localtime(now)
    day = "" if then[:3] == today[:3] else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M:%S", then)


class Refusals:
    """Those with one cause that no line has told yet. Each cause has a rhythm of its own: the first
    line of an outage must not wait because an overload was logged a moment ago.

    :param response: what the requests got.
    """

    def __init__(self, response: str = "503 Service Unavailable") -> None:
        self._response = response
        self.lines = Repeats()
        self.unlogged = self.early = 0  # early: of these
        self.last = ""
        self._last_at = 0.0

    def add(self, error: str, *, early: bool) -> None:
        """Count one; `error` says why."""
        self.unlogged += 1
        self.early += early
        self.last, self._last_at = error, time.monotonic()
        self.lines.happens(self._last_at)

    def take(self, now: float, *, last: bool = False) -> str:
        """Returns the text of a line about them if one is due, or this is the last; else ""."""
        if not self.unlogged or not (self.lines.due(now) or last):
            return ""
        times = f", {self.unlogged} times" if self.unlogged > 1 else ""
        if self.unlogged > self.early > 0:
            times += f", {self.early} of them early"
        # What it says of the pool was true then: the database may be back meanwhile.
        if (ago := now - self._last_at) >= MOMENT_SECONDS:
            times += f", {'the last ' if self.unlogged > 1 else ''}{ago:.1f}s ago"
        self.forget()
        return f"{self._response}{times}: {self.last}"

    def forget(self) -> None:
        """Another line has told of them."""
        self.unlogged = self.early = 0
