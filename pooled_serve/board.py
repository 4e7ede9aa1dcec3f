"""Statistics of all workers, in memory that they share. Knows neither HTTP nor Django.

The master makes the board before it forks; every process then sees the same pages. Nobody waits
for anybody: each number has one writer, and is written as one word. Each worker has a *slot*,
which it gets from the master before the fork, with room for a few databases. A place holds

* the alias, and what is known of the server, as text;
* ``live``, the row into which a pool counts (see tally.py), written by the worker;
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

from pooled_serve import tally

log = logging.getLogger("gunicorn.error")

SLOTS = 256
"""Workers at a time. A HUP has the old and the new ones side by side."""

PLACES = 8
"""Databases of a worker."""

LOOKS = 100
"""How often a reader looks whether the master is done with moving numbers, a millisecond apart. It
may have been killed at it."""

_WORD = 8
_TEXT = 256  # bytes for alias, engine and server, each behind its length
_FIELDS = (96, 48, 112)
_PLACE = _TEXT + (tally.WIDTH + tally.COUNTERS) * _WORD
_SLOT = _WORD + PLACES * _PLACE  # the process id, then the places
_HEAD = 2 * _WORD  # sequence number, slots ever used


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
        return counters + self.live[tally.COUNTERS :]


class Place:
    """The board's room for one pool of this worker."""

    def __init__(self, board: Board, offset: int) -> None:
        self._board = board
        self._offset = offset
        start = offset + _TEXT
        self.row = board.numbers(start, tally.WIDTH)

    def label(self, alias: str, engine: str, server: str) -> None:
        """Say whose numbers these are. What is too long is cut."""
        self._board.write_texts(self._offset, (alias, engine, server))


class Board:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD + SLOTS * _SLOT)
        self._words = memoryview(self._memory).cast("q")
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
        self._words[1] = max(self._words[1], slot)
        return slot

    def retire(self, slot: int | None) -> None:
        """The slot's worker has died: keep its counters, forget its gauges."""
        if slot is None or slot not in self._taken:
            return
        self._words[0] += 1  # odd: readers look again
        start = self._start(slot)
        self._words[start // _WORD] = 0
        for place in self._places(start):
            live = self.numbers(place + _TEXT, tally.WIDTH)
            past = self.numbers(place + _TEXT + tally.WIDTH * _WORD, tally.COUNTERS)
            if live[tally.REACHABLE] != tally.UNKNOWN:
                self._last_reachable[self._texts(place)[0]] = live[tally.REACHABLE]
            for i in range(tally.COUNTERS):
                past[i] += live[i]
            for i in range(tally.WIDTH):
                live[i] = 0.0
        self._words[0] += 1
        self._taken.discard(slot)

    # --- For a worker --------------------------------------------------------------------------

    def enter(self, slot: int) -> None:
        """This process has the slot from now on."""
        self._words[self._start(slot) // _WORD] = os.getpid()

    def leave(self, slot: int) -> None:
        """This process is about to stop."""
        self._words[self._start(slot) // _WORD] = -os.getpid()

    def place(self, slot: int, alias: str) -> Place | None:
        """Room for a pool of this worker: where the slot had this alias before, or the first that
        is free; None if there is none left."""
        name = _cut(alias, _FIELDS[0])
        for offset in self._places(self._start(slot), empty=True):
            texts = self._texts(offset)
            if texts[0] in ("", name):
                if not texts[0]:
                    self.write_texts(offset, (alias, "", ""))
                return Place(self, offset)
        self._warn(f"more than {PLACES} databases in a worker")
        return None

    def lost(self, at_start: Iterable[str]) -> list[str]:
        """The databases that could not be reached when that was last tried.

        :param at_start: those that could not before there was any worker.
        """
        found = {alias: float(tally.NO) for alias in at_start} | self._last_reachable
        for reading in self.read():
            reachable = reading.live[tally.REACHABLE]
            if reachable != tally.UNKNOWN:
                found[reading.alias] = reachable
        return [alias for alias, reachable in found.items() if reachable == tally.NO]

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
        pids = ((n, self._words[self._start(n) // _WORD]) for n in range(1, self._words[1] + 1))
        return {slot: abs(pid) for slot, pid in pids if pid}

    @property
    def stopping(self) -> bool:
        """Whether no worker is about to stay."""
        return all(
            self._words[self._start(slot) // _WORD] <= 0 for slot in range(1, self._words[1] + 1)
        )

    def _read(self) -> Iterator[Reading]:
        for slot in range(1, self._words[1] + 1):
            start = self._start(slot)
            pid = abs(self._words[start // _WORD])
            for place in self._places(start):
                live = list(self.numbers(place + _TEXT, tally.WIDTH))
                past = list(self.numbers(place + _TEXT + tally.WIDTH * _WORD, tally.COUNTERS))
                yield Reading(slot, pid, *self._texts(place), live, past)

    # --- Where things lie ----------------------------------------------------------------------

    @staticmethod
    def _start(slot: int) -> int:
        return _HEAD + (slot - 1) * _SLOT

    def _places(self, start: int, *, empty: bool = False) -> Iterator[int]:
        """Offsets of a slot's places that have an alias; they are filled in order."""
        for i in range(PLACES):
            offset = start + _WORD + i * _PLACE
            if not empty and not self._memory[offset]:
                return
            yield offset

    def numbers(self, offset: int, count: int) -> Any:
        """A view of floats."""
        return memoryview(self._memory)[offset : offset + count * _WORD].cast("d")

    def write_texts(self, offset: int, texts: tuple[str, str, str]) -> None:
        """Alias, engine and server of a place."""
        packed = b""
        for text, size in zip(texts, _FIELDS, strict=True):
            encoded = _cut(text, size).encode()
            packed += struct.pack(f"B{size - 1}s", len(encoded), encoded)
        self._memory[offset : offset + len(packed)] = packed

    def _texts(self, offset: int) -> tuple[str, str, str]:
        texts = []
        for size in _FIELDS:
            length = self._memory[offset]
            text = self._memory[offset + 1 : offset + 1 + length]
            texts.append(text.decode("utf-8", "replace"))
            offset += size
        return texts[0], texts[1], texts[2]

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the status page does not show everything: there are %s", what)


def _cut(text: str, size: int) -> str:
    """What fits into a field, with its length before it."""
    return text.encode()[: size - 1].decode("utf-8", "ignore")
