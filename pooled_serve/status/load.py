"""How busy each worker is: its processor time, and for how long its loop has let nobody run.

A worker that computes, or that waits without gevent, serves none of its other requests meanwhile,
and more connections do not help it. It cannot say so itself before that is over; so each leaves the
moment of its last look on the scoreboard, and any other sees how old that is.

A look costs a few stores, four times a second, and a few system calls once a second. Requests pay
nothing for it.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pooled_serve.status import shortage
from pooled_serve.status.culprit import NOBODY, Culprit, in_words
from pooled_serve.status.figures import RECENT_SECONDS

log = logging.getLogger("gunicorn.error")

BLOCKED_SECONDS = 2.0
"""A loop that lets nobody run for so long is blocked. A busy machine has shorter delays."""

LINE_SECONDS = 60.0
"""Between two lines of the log about that, at least."""

BLOCKED_LINE = (
    "this worker let no request run for %.1fs, until now%s\n"
    "  → %s computed, or waited without gevent%s: move that elsewhere; if it happens again, "
    "py-spy dump --pid %d shows where, while it lasts"
)

BUSY_SHARE = 0.9
"""Of the time, spent computing or waiting for a processor: the loop has nothing to spare."""

STARVED_SHARE = 0.5
"""Of the time, spent waiting for a processor: others have it."""

LEAST_SECONDS = 5.0
"""A share of less says nothing: a worker that starts is busy for a moment."""

_WORD = 8
_SEEN, _CPU, _BLOCKED, _SHARE, _WAIT_SHARE, _DELAY = range(6)
_RETIRED_CPU, _RETIRED_BLOCKED = 6, 7
_LACKED = 8
_URLS_FAILED = 9
_NAMED = 10  # when the loop last ran before the block that the name is about; 0: it is over
_IN_LOG = 11  # whether the log has the line of who that was
_WORDS = 12
_TEXT = struct.Struct("248p")  # it is cut if it is too long
_NAME = slice(_WORDS * _WORD, _WORDS * _WORD + _TEXT.size)
_URLS_ERROR = slice(_NAME.stop, _NAME.stop + _TEXT.size)
LOAD_BYTES = _URLS_ERROR.stop
"""What a worker takes of the scoreboard."""

_UNKNOWN = -1.0
_NO, _YES = 1.0, 2.0  # 0: nobody has said yet


class LoadRow:
    """The scoreboard's numbers of one slot.

    :param memory: LOAD_BYTES of what all processes share.
    """

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self._words = memory[: _WORDS * _WORD].cast("d")

    def begin(self, now: float) -> None:
        """Begin for a new worker. The counters of the former ones stay."""
        self._words[_CPU] = self._words[_BLOCKED] = self._words[_DELAY] = 0.0
        self._words[_LACKED] = 0.0
        self._words[_SHARE] = self._words[_WAIT_SHARE] = _UNKNOWN
        self.name(0.0, "")
        self._words[_SEEN] = now

    def copy(self) -> LoadRow:
        """Returns one of its own memory, with the numbers of this moment."""
        return LoadRow(memoryview(bytearray(self._memory)))

    def last_seen(self) -> float:
        """Returns when the loop last ran; 0 if it is not watched."""
        return float(self._words[_SEEN])

    def name(self, block: float, culprit: str) -> None:
        """Note who blocks the worker, or has done so.

        :param block: when the loop last ran, if it is blocked at this moment; else 0.
        """
        self._write(_NAME, culprit)
        self._words[_NAMED] = block

    def seen(self, now: float) -> None:
        """Note that the loop runs; 0 if it is not watched any more."""
        self._words[_SEEN] = now

    def lacked_descriptor(self, at: float) -> None:
        """Note when the worker last had no file descriptor; 0 if it never has."""
        self._words[_LACKED] = at

    def note_urls(self, error: str) -> None:
        """Note with what the URL configuration has failed; empty if it works. A worker notes it
        before its loop is watched, so :meth:`begin` leaves it."""
        self._write(_URLS_ERROR, error)
        self._words[_URLS_FAILED] = _YES if error else _NO

    @property
    def urls_error(self) -> str:
        """With what the URL configuration has failed; empty if it works, or that is not known."""
        return self._read(_URLS_ERROR) if self._words[_URLS_FAILED] == _YES else ""

    def note(
        self,
        cpu: float,
        blocked: float,
        share: float | None,
        waited: float | None,
        delay: float,
        culprit: str,
        *,
        in_log: bool = False,
    ) -> None:
        """Note what :class:`Meter` has found. The culprit is that of the delay; the log may have
        its line."""
        self.name(0.0, culprit)
        self._words[_IN_LOG] = float(in_log)
        self._words[_CPU], self._words[_BLOCKED], self._words[_DELAY] = cpu, blocked, delay
        self._words[_SHARE] = _UNKNOWN if share is None else share
        self._words[_WAIT_SHARE] = _UNKNOWN if waited is None else waited

    def retire(self) -> None:
        """The worker has died: keep its counters, which count twice for a moment."""
        words = self._words
        words[_RETIRED_CPU] += words[_CPU]
        words[_RETIRED_BLOCKED] += words[_BLOCKED]
        words[_URLS_FAILED] = 0.0
        self.begin(0.0)

    @property
    def counters(self) -> dict[str, float]:
        """Those of all workers that the slot has had."""
        words = self._words
        return {
            "cpu_seconds_total": words[_RETIRED_CPU] + words[_CPU],
            "blocked_seconds_total": words[_RETIRED_BLOCKED] + words[_BLOCKED],
        }

    def gauges(self, now: float, pause: float) -> dict[str, float | str | None]:
        """Returns those of the present worker; None for what is not known (yet).

        :param pause: that its loop makes between two looks.
        """
        seen, share, waited = (self._words[i] for i in (_SEEN, _SHARE, _WAIT_SHARE))
        lacked = self._words[_LACKED]
        ago = max(0.0, now - seen) if seen else None
        delay = None if ago is None else max(self._words[_DELAY], ago - pause, 0.0)
        return {
            "cpu_share": None if share < 0 or not seen else share,
            "cpu_wait_share": None if waited < 0 or not seen else waited,
            "loop_delay_seconds": delay,
            "seen_ago_seconds": ago,
            "blocked_in": (name := self._culprit(ago or 0.0) or None),
            "blocked_in_log": bool(self._words[_IN_LOG]) if name else None,
            "no_descriptor_ago_seconds": max(0.0, now - lacked) if lacked else None,
            "urls_failed": self._words[_URLS_FAILED] == _YES if self._words[_URLS_FAILED] else None,
            "urls_error": self.urls_error or None,
        }

    def _culprit(self, ago: float) -> str:
        """Returns who blocks the worker now or, if nobody does, who was the last to."""
        block = self._words[_SEEN] if ago >= BLOCKED_SECONDS else 0.0
        if self._words[_NAMED] != block:
            return ""  # that of another block
        return self._read(_NAME)

    def _write(self, where: slice, text: str) -> None:
        self._memory[where] = _TEXT.pack(text.encode("utf-8", "replace"))

    def _read(self, where: slice) -> str:
        (text,) = _TEXT.unpack(self._memory[where])
        return str(text.decode("utf-8", "ignore"))

    @property
    def busy(self) -> bool:
        """Whether the worker has used all of a processor lately."""
        used, waited = (max(0.0, self._words[i]) for i in (_SHARE, _WAIT_SHARE))
        return bool(self._words[_SEEN]) and is_busy(used, waited)


def is_busy(used: float, waited: float) -> bool:
    """Whether a worker cannot keep up for want of a processor.

    :param used: the share of the time in which it computed.
    :param waited: the share in which it waited for a processor.
    """
    return used + waited >= BUSY_SHARE or waited >= STARVED_SHARE


class Meter:
    """Measures a worker, in that worker.

    :param row: where it notes what it has found.
    :param pause: between two looks, in seconds.
    :param who: returns who has blocked the loop since a moment.
    """

    def __init__(
        self,
        row: LoadRow,
        pause: float,
        *,
        used: Callable[[], float] = time.thread_time,
        waited: Callable[[], float | None] | None = None,
        who: Callable[[float], Culprit] = lambda block: NOBODY,
    ) -> None:
        self._row = row
        self._pause = pause
        self._used = used
        self._waited = waited or _waited_for_a_processor
        self._who = who
        self._last = 0.0
        self._told: dict[str, tuple[float, bool]] = {}
        """When the log has last named each culprit, and whether it has the line."""
        self._delay, self._by = 0.0, ""  # the longest since the last sample; who that was
        self._blocked = 0.0  # seconds, all together
        self._samples: deque[tuple[float, float, float | None, tuple[float, str]]] = deque(
            maxlen=RECENT_SECONDS + 1
        )
        """Moment, processor time, time in the line for a processor; longest delay before it, and
        who that was."""

    def look(self, now: float) -> None:
        """See how late this is, and once a second what was used."""
        late = 0.0
        if not self._last:
            self._row.begin(now)
        else:
            late = max(0.0, now - self._last - self._pause)
            if late >= BLOCKED_SECONDS:
                self._blocked += late
                culprit = self._who(self._last)
                self._delay, self._by = max((self._delay, self._by), (late, culprit.name))
                self._tell(now, late, culprit)
            self._delay = max(self._delay, late)
            self._row.seen(now)
        self._row.lacked_descriptor(shortage.out_of_descriptors_at)
        self._last = now
        if not self._samples or now - self._samples[-1][0] >= 1.0 or late >= BLOCKED_SECONDS:
            self._sample(now)

    def _tell(self, now: float, late: float, culprit: Culprit) -> None:
        # Each request imports the URL configuration anew then, and with DEBUG on Django's page of
        # the error takes seconds: the log has the error, and no view is to blame. See busy.py.
        if self._row.urls_error:
            return
        told = self._told = {
            name: it for name, it in self._told.items() if now - it[0] < LINE_SECONDS
        }
        if culprit.name in told:
            return
        told[culprit.name] = now, bool(culprit.place) and log.isEnabledFor(logging.WARNING)
        what = "it" if culprit.name else "a view"
        place = f" ({culprit.place})" if culprit.place else ""
        log.warning(BLOCKED_LINE, late, in_words(culprit.name), what, place, os.getpid())

    def stop(self) -> None:
        """The loop is not watched any more: its silence means nothing."""
        self._row.seen(0.0)

    def _sample(self, now: float) -> None:
        self._samples.append((now, self._used(), self._waited(), (self._delay, self._by)))
        self._delay, self._by = 0.0, ""
        recent = [each for each in self._samples if now - each[0] <= RECENT_SECONDS + 0.5]
        if len(recent) < 2:
            recent = list(self._samples)[-2:]  # it was blocked for longer
        (began, used, waited, _), (_, used_now, waited_now, _) = recent[0], recent[-1]
        seconds = now - began
        share = other = None
        if seconds >= LEAST_SECONDS:
            share = (used_now - used) / seconds
            if waited is not None and waited_now is not None:
                other = min(max(0.0, 1.0 - share), (waited_now - waited) / seconds)
        delay, by = max(late for at, _, _, late in self._samples if now - at <= RECENT_SECONDS)
        _, in_log = self._told.get(by, (now, False))
        self._row.note(time.process_time(), self._blocked, share, other, delay, by, in_log=in_log)


def _waited_for_a_processor() -> float | None:
    """Returns for how long the main thread could have run, and others did. None if the kernel does
    not count that."""
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
