"""Statistics of all workers, in memory that they share. Knows neither HTTP nor Django.

The master makes the board before it forks; every process then sees the same pages. Nobody waits
for anybody: each number has one writer, and is written as one word. Each worker has a *slot*,
which it gets from the master before the fork, with room for a few databases. A place holds

* the alias, and what is known of the server, as text;
* ``live``, the row into which a pool counts (see stats.py), written by the worker;
* ``past``, the counters of the slot's former workers, written by the master when one has died,
  however it died. So totals never shrink, and neither do those of a slot.

No files, no threads, no locks. A reader that comes while the master moves numbers from live to
past would count them twice or not at all; a sequence number tells it to look again (a seqlock).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pooled_serve.pool import stats

log = logging.getLogger("gunicorn.error")

SLOTS = 256
"""Workers at a time. A HUP has the old and the new ones side by side."""

PLACES = 8
"""Databases of a worker."""

LOOKS = 100
"""How often a reader looks whether the master is done with moving numbers, a millisecond apart. It
may have been killed at it."""

_WORD = 8
_HEAD = (SLOTS + 2) * _WORD  # sequence number; for each slot a process id; slots ever used
_USED = SLOTS + 1
_ALIAS = 96
_TEXTS = struct.Struct(f"{_ALIAS}p 48p 112p")  # alias, engine, server; what is too long is cut
_PLACE = _TEXTS.size + (stats.ROW_LENGTH + stats.FIRST_GAUGE + 1) * _WORD  # the last: lasting?
_SLOT = PLACES * _PLACE


@dataclass(frozen=True)
class Reading:
    """What a place held. ``live`` are zeros if the worker is gone."""

    slot: int  # from 1
    pid: int  # 0: nobody has the slot
    alias: str
    engine: str
    server: str
    live: list[float]
    past: list[float]

    @property
    def row(self) -> list[float]:
        """The counters of all the slot's workers, and the gauges of the one that lives."""
        counters = [now + past for now, past in zip(self.live, self.past, strict=False)]
        return counters + self.live[stats.FIRST_GAUGE :]


class Place:
    """The board's room for one pool of a worker.

    ``row`` is what the pool counts into, ``past`` the counters of the slot's former workers.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        numbers = memoryview(memory)[offset + _TEXTS.size : offset + _PLACE].cast("d")
        self.row: Any = numbers[: stats.ROW_LENGTH]
        self.past: Any = numbers[stats.ROW_LENGTH : -1]
        self._lasting: Any = numbers[-1:]

    @property
    def lasting(self) -> bool:
        """Whether the alias outlives a worker: was there before the first one."""
        return bool(self._lasting[0])

    def claim(self, alias: str, *, lasting: bool) -> None:
        """Begin with an alias: nothing is counted yet."""
        for numbers in (self.row, self.past):
            for i in range(len(numbers)):
                numbers[i] = 0.0
        self._lasting[0] = float(lasting)
        self.label(alias, "", "")

    def free(self) -> None:
        """Be there for another alias."""
        self.label("", "", "")

    def label(self, alias: str, engine: str, server: str) -> None:
        """Say whose numbers these are. What is too long is cut."""
        # Not pack_into(), which clears the memory first: a reader may look.
        packed = _TEXTS.pack(alias.encode(), engine.encode(), server.encode())
        self._memory[self._offset : self._offset + _TEXTS.size] = packed

    @property
    def texts(self) -> tuple[str, str, str]:
        """Alias, engine and server; all are empty if nobody has the place."""
        packed = _TEXTS.unpack_from(self._memory, self._offset)
        alias, engine, server = (text.decode("utf-8", "ignore") for text in packed)
        return alias, engine, server


class Board:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD + SLOTS * _SLOT)
        self._words = memoryview(self._memory)[:_HEAD].cast("q")
        self._started = time.monotonic()
        # The master's own book; workers have a copy as of their fork.
        self._taken: set[int] = set()
        self._last_reachable: dict[str, float] = {}
        self._warned = False

    # --- For the master ------------------------------------------------------------------------

    def claim(self) -> int | None:
        """A slot for a worker that is about to be forked; None if all are taken."""
        slot = next((n for n in range(1, SLOTS + 1) if n not in self._taken), None)
        if slot is None:
            self._warn(f"more than {SLOTS} workers")
            return None
        self._taken.add(slot)
        self._words[_USED] = max(self._words[_USED], slot)
        return slot

    def retire(self, slot: int | None) -> None:
        """The slot's worker has died: keep its counters, forget its gauges."""
        if slot is None or slot not in self._taken:
            return
        self._words[0] += 1  # odd: readers look again
        self._words[slot] = 0
        for place in self._places(slot):
            if not place.lasting:
                place.free()
                continue
            live = place.row
            if live[stats.REACHABLE] != stats.UNKNOWN:
                self._last_reachable[place.texts[0]] = live[stats.REACHABLE]
            for i in range(stats.FIRST_GAUGE):
                place.past[i] += live[i]
            for i in range(stats.ROW_LENGTH):
                live[i] = 0.0
        self._words[0] += 1
        self._taken.discard(slot)

    # --- For a worker --------------------------------------------------------------------------

    def enter(self, slot: int) -> None:
        """This process has the slot from now on."""
        self._words[slot] = os.getpid()

    def leave(self, slot: int) -> None:
        """This process is about to stop."""
        self._words[slot] = -os.getpid()

    def place(self, slot: int, alias: str, *, lasting: bool = True) -> Place | None:
        """Room for a pool of this worker: where the slot has this alias already, or the first that
        is free; None if there is none left.

        :param lasting: keep what was counted when the worker has died; else :meth:`Place.free` the
            place when the alias is gone.
        """
        name = alias.encode()[: _ALIAS - 1].decode("utf-8", "ignore")
        places = list(self._places(slot, free=True))
        place = next((p for p in places if p.texts[0] == name), None)
        if place is None:
            place = next((p for p in places if not p.texts[0]), None)
            if place is not None:
                place.claim(alias, lasting=lasting)
        if place is None:
            self._warn(f"more than {PLACES} databases in a worker")
        return place

    def lost(self, at_start: Iterable[str]) -> list[str]:
        """The databases that could not be reached when that was last tried.

        :param at_start: those that could not before there was any worker.
        """
        found = {alias: float(stats.NO) for alias in at_start} | self._last_reachable
        for reading in self.read():
            reachable = reading.live[stats.REACHABLE]
            if reachable != stats.UNKNOWN:
                found[reading.alias] = reachable
        return [alias for alias, reachable in found.items() if reachable == stats.NO]

    # --- For readers ---------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since the master made the board."""
        return time.monotonic() - self._started

    def read(self) -> list[Reading]:
        """All that is known, of slots with a worker and without."""
        for _ in range(LOOKS):
            before = self._words[0]
            readings = list(self._read())
            if before % 2 == 0 and before == self._words[0]:
                break
            time.sleep(0.001)  # the master is at it, for some microseconds
        return readings

    def workers(self) -> dict[int, int]:
        """slot -> process id, of the workers that live."""
        return {slot: abs(pid) for slot, pid in enumerate(self._words[1:_USED], 1) if pid}

    @property
    def stopping(self) -> bool:
        """Whether no worker is about to stay."""
        return all(pid <= 0 for pid in self._words[1:_USED])

    def _read(self) -> Iterator[Reading]:
        for slot in range(1, self._words[_USED] + 1):
            for place in self._places(slot):
                pid = abs(self._words[slot])
                texts = place.texts
                live, past = list(place.row), list(place.past)
                if place.texts[0] == texts[0]:  # else it has become another's meanwhile
                    yield Reading(slot, pid, *texts, live, past)

    def _places(self, slot: int, *, free: bool = False) -> Iterator[Place]:
        """Those that somebody has, or all."""
        for i in range(PLACES):
            offset = _HEAD + (slot - 1) * _SLOT + i * _PLACE
            if free or self._memory[offset]:
                yield Place(self._memory, offset)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the status page does not show everything: there are %s", what)
