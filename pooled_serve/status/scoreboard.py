"""Statistics of all workers, in memory that they share. Knows neither HTTP nor Django.

The master makes the scoreboard before it forks, so that every process sees the same pages. Nothing
is locked: each number has one writer, and is written as one word. A worker has a *slot*, which the
master allocates before the fork, with a row for each of a few pools. A row holds

* the alias of the database, and what is known of its server, as text;
* ``current``: the numbers of the worker's pool (see pool/metrics.py), written by the worker;
* ``retired``: the counters of the slot's former workers, which the master adds up when one dies,
  however it died. So neither the totals nor the counters of a slot ever shrink.

Behind these rows, each slot has a table of routes, see routes.py, and numbers of the worker itself,
see load.py.

No files, no threads. A reader that comes while the master moves numbers from current to retired
would count them twice or not at all; a sequence number makes it read again (a seqlock).
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from pooled_serve.pool import metrics
from pooled_serve.status.figures import hanging_statements
from pooled_serve.status.history import History
from pooled_serve.status.load import LOAD_BYTES, LoadRow
from pooled_serve.status.routes import TABLE_BYTES, RouteTable, RouteUse, as_routes
from pooled_serve.status.sentence import usual_hold

log = logging.getLogger("gunicorn.error")

_T = TypeVar("_T")

MAX_WORKERS = 256
"""At a time: after a HUP the old and the new ones run side by side."""

MAX_POOLS = 8
"""Of one worker."""

READ_ATTEMPTS = 100
"""A millisecond apart, while the master moves numbers. After the last one a reader uses the numbers
as they are: the master may have been killed in the middle."""

_WORD = 8
# Sequence number; each slot's process id; highest slot; whether each slot's worker is yet to come,
# or has died; whether the master has been told to end; how many workers have died; when the last
# one was found dead, in monotonic milliseconds; when the last reload was refused, if it was, and
# the number of the problem.
_HEAD_BYTES = (2 * MAX_WORKERS + 7) * _WORD
_HIGHEST_SLOT = MAX_WORKERS + 1
_COMING, _DIED = 1, 2
_ENDING = 2 * MAX_WORKERS + 2
_DEATHS = _ENDING + 1
_LAST_DEATH = _DEATHS + 1
_REFUSED_RELOAD = _LAST_DEATH + 1
_RELOAD_PROBLEM = _REFUSED_RELOAD + 1
_ALIAS_BYTES = 96
_TEXTS = struct.Struct(f"{_ALIAS_BYTES}p 48p 112p")  # alias, engine, server; too long ones are cut
_POOL_ROW_BYTES = (
    _TEXTS.size + (metrics.ROW_LENGTH + metrics.FIRST_GAUGE + 1) * _WORD
)  # +1: permanent
_SLOT_BYTES = MAX_POOLS * _POOL_ROW_BYTES
_TABLES = _HEAD_BYTES + MAX_WORKERS * _SLOT_BYTES  # where the tables of routes begin
_LOADS = _TABLES + MAX_WORKERS * TABLE_BYTES  # and the numbers of the workers


class Loss(NamedTuple):
    """What is known of a database that cannot be used."""

    since: float = 0.0
    """In monotonic seconds; 0 if no worker has found it."""
    refused: bool = False
    """Whether the server can be reached, and refuses the login."""


@dataclass(frozen=True)
class Snapshot:
    """A row as it was read. ``current`` is all zeros if the worker is gone."""

    slot: int  # from 1
    pid: int  # 0: the slot has no worker
    alias: str
    engine: str
    server: str
    current: list[float]
    retired: list[float]
    ending: bool = False  # whether the worker has been told to end

    @property
    def row(self) -> list[float]:
        """The counters of all workers that the slot has had, and the gauges of the present one."""
        counters = [now + former for now, former in zip(self.current, self.retired, strict=False)]
        return counters + self.current[metrics.FIRST_GAUGE :]


class PoolRow:
    """The scoreboard's row for one pool of one worker.

    ``current`` is what the pool counts into, ``retired`` the counters of the slot's former workers.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        numbers = memoryview(memory)[offset + _TEXTS.size : offset + _POOL_ROW_BYTES].cast("d")
        self.current: Any = numbers[: metrics.ROW_LENGTH]
        self.retired: Any = numbers[metrics.ROW_LENGTH : -1]
        self._permanent: Any = numbers[-1:]

    @property
    def permanent(self) -> bool:
        """Whether the alias outlives a worker: the settings name it, no request has added it."""
        return bool(self._permanent[0])

    def assign(self, alias: str, *, permanent: bool) -> None:
        """Give the row to an alias, with all numbers at zero."""
        for numbers in (self.current, self.retired):
            for i in range(len(numbers)):
                numbers[i] = 0.0
        self._permanent[0] = float(permanent)
        self.label(alias, "", "")

    def free(self) -> None:
        """Make the row available to another alias."""
        self.label("", "", "")

    def label(self, alias: str, engine: str, server: str) -> None:
        """Write the texts. Each is cut where it is too long."""
        # Not pack_into(), which clears the memory first: a reader may come in between.
        packed = _TEXTS.pack(alias.encode(), engine.encode(), server.encode())
        self._memory[self._offset : self._offset + _TEXTS.size] = packed

    @property
    def texts(self) -> tuple[str, str, str]:
        """Alias, engine and server; all are empty if the row is free."""
        packed = _TEXTS.unpack_from(self._memory, self._offset)
        alias, engine, server = (text.decode("utf-8", "ignore") for text in packed)
        return alias, engine, server


class Scoreboard:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _LOADS + MAX_WORKERS * LOAD_BYTES)
        self._words = memoryview(self._memory)[:_HEAD_BYTES].cast("q")
        self._started = time.monotonic()
        self.history = History()
        # Kept up to date in the master only; a worker has a copy as of its fork.
        self._allocated: set[int] = set()
        self._last_losses: dict[str, Loss | None] = {}  # None: it can be used
        self._warned = False

    # --- For the master ------------------------------------------------------------------------

    def allocate(self) -> int | None:
        """Returns a slot for a worker that is about to be forked, or None if all are taken."""
        slot = next((n for n in range(1, MAX_WORKERS + 1) if n not in self._allocated), None)
        if slot is None:
            self._warn(f"more than {MAX_WORKERS} workers")
            return None
        self._last_losses |= self._losses()  # who has found them may end before this one can look
        self._allocated.add(slot)
        self._words[_HIGHEST_SLOT] = max(self._words[_HIGHEST_SLOT], slot)
        self._words[_HIGHEST_SLOT + slot] = _COMING
        return slot

    def mark_ending(self) -> None:
        """Note that the master has been told to end, whatever the workers know yet."""
        self._words[_ENDING] = 1

    def note_reload(self, problem: str = "") -> None:
        """Note that the master has reloaded its options.

        :param problem: the code, if it has refused them.
        """
        self._words[_RELOAD_PROBLEM] = int(problem.removeprefix("PS") or 0)
        self._words[_REFUSED_RELOAD] = round(time.monotonic() * 1000) if problem else 0

    def retire(self, slot: int | None) -> None:
        """Free the slot of a worker that has died: keep its counters, drop its gauges.

        Does nothing for a slot that is not allocated, nor for None.
        """
        if slot is None or slot not in self._allocated:
            return
        told = self._words[slot] < 0 and self._words[_HIGHEST_SLOT + slot] != _DIED
        if not told and not self._words[_ENDING]:
            self._words[_DEATHS] += 1
            self._words[_LAST_DEATH] = round(time.monotonic() * 1000)
        self._words[0] += 1  # odd: readers try again
        self._words[slot] = self._words[_HIGHEST_SLOT + slot] = 0
        for row in self._pool_rows(slot):
            if not row.permanent:
                row.free()
                continue
            current = row.current
            if current[metrics.REACHABLE] != metrics.UNKNOWN:
                self._last_losses[row.texts[0]] = _loss(current)
            for i in range(metrics.FIRST_GAUGE):
                row.retired[i] += current[i]
            for i in range(metrics.ROW_LENGTH):
                current[i] = 0.0
        self.load_row(slot).retire()
        self._words[0] += 1
        self.route_table(slot).end_move()
        self._allocated.discard(slot)

    # --- For a worker --------------------------------------------------------------------------

    def register(self, slot: int) -> None:
        """Note that this process is the slot's worker. The server that the slot's former one had is
        forgotten: a HUP may have changed the settings."""
        for row in self._pool_rows(slot):
            row.label(row.texts[0], "", "")
        self._words[slot] = os.getpid()
        self._words[_HIGHEST_SLOT + slot] = 0

    def mark_stopping(self, slot: int, *, died: bool = False) -> None:
        """Note that this process, the slot's worker, is about to stop. It may be one that is yet to
        come.

        :param died: nobody has told it to.
        """
        self._words[slot] = -os.getpid()
        self._words[_HIGHEST_SLOT + slot] = _DIED if died else 0

    def pool_row(self, slot: int, alias: str, *, permanent: bool = True) -> PoolRow | None:
        """Returns the row for a pool of this worker: the one that the slot has for this alias, or
        a free one, or None if there is none left.

        :param permanent: keep the counters when the worker has died. Otherwise the caller must
            :meth:`~PoolRow.free` the row when the alias is gone.
        """
        name = alias.encode()[: _ALIAS_BYTES - 1].decode("utf-8", "ignore")
        rows = list(self._pool_rows(slot, free=True))
        row = next((r for r in rows if r.texts[0] == name), None)
        if row is None:
            row = next((r for r in rows if not r.texts[0]), None)
            if row is not None:
                row.assign(alias, permanent=permanent)
        if row is None:
            self._warn(f"more than {MAX_POOLS} databases in a worker")
        return row

    def route_table(self, slot: int) -> RouteTable:
        """Returns the table of the slot's routes, for its worker."""
        return RouteTable(self._memory, _TABLES + (slot - 1) * TABLE_BYTES)

    def load_row(self, slot: int) -> LoadRow:
        """Returns the numbers of the slot's workers, for its worker and for readers."""
        start = _LOADS + (slot - 1) * LOAD_BYTES
        return LoadRow(memoryview(self._memory)[start : start + LOAD_BYTES])

    def unreachable(self, at_start: Iterable[str]) -> dict[str, Loss]:
        """Returns the databases that could not be used when last tried, by alias.

        :param at_start: those that could not be used before there was any worker.
        """
        found = dict.fromkeys(at_start, Loss()) | self._last_losses | self._losses()
        return {alias: loss for alias, loss in found.items() if loss is not None}

    def _losses(self) -> dict[str, Loss | None]:
        known = (s for s in self.read() if s.current[metrics.REACHABLE] != metrics.UNKNOWN)
        return {snapshot.alias: _loss(snapshot.current) for snapshot in known}

    def is_used(self, alias: str) -> bool:
        """Returns whether a worker that goes on can use the database."""
        ending = self.ending()
        return any(
            s.current[metrics.REACHABLE] == metrics.YES and s.slot not in ending
            for s in self.read()
            if s.alias == alias
        )

    # --- For readers ---------------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since the master made the scoreboard."""
        return time.monotonic() - self._started

    @property
    def deaths(self) -> int:
        """Workers that have ended without being told to."""
        return int(self._words[_DEATHS])

    def death_ago(self, now: float) -> float | None:
        """Seconds since the last of them was found; None if there was none.

        :param now: monotonic seconds.
        """
        last = self._words[_LAST_DEATH]
        return max(0.0, now - last / 1000) if last else None

    def refused_reload(self, now: float) -> tuple[str | None, float | None]:
        """Returns with which problem's code the last reload was refused, and seconds since; None
        and None if it was not, or there was none.

        :param now: monotonic seconds.
        """
        if not (at := self._words[_REFUSED_RELOAD]):
            return None, None
        return f"PS{self._words[_RELOAD_PROBLEM]:03}", max(0.0, now - at / 1000)

    def read(self) -> list[Snapshot]:
        """Returns all rows that are in use, of slots with a worker and without."""
        whole = self.read_whole()
        return self._read() if whole is None else whole

    def read_whole(self) -> list[Snapshot] | None:
        """Returns the same, or None if the master was moving numbers all the time."""
        return self._at_rest(self._read)

    def read_routes(self) -> dict[int, list[RouteUse]]:
        """Slot -> its routes, also of slots that have no worker now."""
        slots = range(1, self._words[_HIGHEST_SLOT] + 1)
        return {slot: self.route_table(slot).read() for slot in slots}

    def routes_so_far(self) -> list[dict[str, Any]]:
        """Returns ``routes`` of ``/stats.json``, of all workers."""
        return as_routes(chain.from_iterable(self.read_routes().values()))

    def usual_hold(self) -> float:
        """Returns for how long connections are held on the busiest route, see sentence.py. It takes
        some milliseconds where there are many routes."""
        now, history = time.monotonic(), self.history
        routes = history.recent_routes(self.routes_so_far(), now)
        lost = {
            alias: {"recent": {"lost_held_seconds": history.lost_held(alias, now)}}
            for alias in history.aliases()
        }
        return usual_hold({"routes": routes, "pools": lost})

    def hangs(self, alias: str, *, beside_others: bool = False) -> bool:
        """Whether the statements of all workers hung in the last second, as the page judges it.

        :param beside_others: whether some hang, and others are answered.
        """
        all_hang = self.history.hangs(alias, time.monotonic())
        if beside_others:
            return not all_hang and self.hanging_statements(alias, self.read()) > 0
        return all_hang

    def hanging_statements(self, alias: str, snapshots: Iterable[Snapshot]) -> int:
        """Returns how many statements of all workers hang, as the page judges it.

        :param snapshots: what :meth:`read` returns.
        """
        row, now = metrics.total(s.row for s in snapshots if s.alias == alias), time.monotonic()
        hung = self.history.hangs(alias, now)
        return hanging_statements(row, now, self.usual_hold, all_hang=hung)

    def read_loads(self) -> dict[int, LoadRow]:
        """Slot -> its numbers as they were read, also of slots that have no worker now."""
        whole = self._at_rest(self._read_loads)
        return self._read_loads() if whole is None else whole

    def workers(self) -> dict[int, int]:
        """Slot -> process id, of the living workers."""
        return {slot: abs(pid) for slot, pid in enumerate(self._words[1:_HIGHEST_SLOT], 1) if pid}

    def ending(self) -> set[int]:
        """Slots of the workers that are about to stop: they finish what they have begun."""
        return {slot for slot, pid in enumerate(self._words[1:_HIGHEST_SLOT], 1) if pid < 0}

    def dying(self) -> set[int]:
        """Those of them that nobody has told to stop: an error ends them, or the ABRT that the
        master sends after --timeout, which KILL follows."""
        if self._words[_ENDING]:
            return set()
        return {slot for slot in self.ending() if self._words[_HIGHEST_SLOT + slot] == _DIED}

    @property
    def starting(self) -> int:
        """How many workers are about to serve, and load the project."""
        return self._words[_HIGHEST_SLOT + 1 : _ENDING].tolist().count(_COMING)

    @property
    def stopping(self) -> bool:
        """Whether the master is about to end; or every worker is stopping, or there is none, and
        none is about to serve: in a reload the old ones stop while the new ones load the project,
        and clients wait for these."""
        return bool(self._words[_ENDING]) or (
            all(pid <= 0 for pid in self._words[1:_HIGHEST_SLOT])
            and _COMING not in self._words[_HIGHEST_SLOT + 1 : _ENDING]
        )

    def urls_error(self) -> str:
        """Returns with what the URL configuration has failed, if it has in all workers that go on;
        else empty: somebody serves."""
        going_on = sorted(self.workers().keys() - self.ending())
        errors = [self.load_row(slot).urls_error for slot in going_on]
        return errors[0] if errors and all(errors) else ""

    def _at_rest(self, read: Callable[[], _T]) -> _T | None:
        """Returns what is read while the master moves no numbers, or None if it always does."""
        for _ in range(READ_ATTEMPTS):
            before = self._words[0]
            found = read()
            if before % 2 == 0 and before == self._words[0]:
                return found
            time.sleep(0.001)  # the master needs some microseconds
        return None

    def _read(self) -> list[Snapshot]:
        found = []
        for slot in range(1, self._words[_HIGHEST_SLOT] + 1):
            for row in self._pool_rows(slot):
                pid = abs(self._words[slot])
                texts = row.texts
                current, retired = list(row.current), list(row.retired)
                if row.texts[0] == texts[0]:  # else the row has gone to another alias meanwhile
                    ending = self._words[slot] < 0
                    found.append(Snapshot(slot, pid, *texts, current, retired, ending))
        return found

    def _read_loads(self) -> dict[int, LoadRow]:
        slots = range(1, self._words[_HIGHEST_SLOT] + 1)
        return {slot: self.load_row(slot).copy() for slot in slots}

    def _pool_rows(self, slot: int, *, free: bool = False) -> Iterator[PoolRow]:
        """Those in use; with ``free``, the others, too."""
        for i in range(MAX_POOLS):
            offset = _HEAD_BYTES + (slot - 1) * _SLOT_BYTES + i * _POOL_ROW_BYTES
            if free or self._memory[offset]:
                yield PoolRow(self._memory, offset)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("the status page does not show everything: there are %s", what)


def _loss(current: Sequence[float]) -> Loss | None:
    """Returns what a worker's row says of its database; None if it can be used."""
    if current[metrics.REACHABLE] != metrics.NO:
        return None
    return Loss(current[metrics.LOST], bool(current[metrics.LOGIN_REFUSED]))
