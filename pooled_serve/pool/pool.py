"""A bounded, fair connection pool for gevent. Knows neither Django nor PyMySQL.

The rules:

* In use + idle + connecting never exceeds ``max_outstanding``.
* Waiters are served first come, first served, by direct hand-off: a connection that comes back
  while somebody waits never becomes idle, so nobody can overtake. Idle connections are taken
  last in, first out, so that the surplus of a spike ages and retires.
* A slot is reserved before ``connect`` may switch greenlets, and given back whatever happens.
  Who need not queue connects itself; for the queue a greenlet of the pool's does.
* One deadline covers waiting, checking and connecting.

Why it holds without locks: all state belongs to one OS thread, and a greenlet is only switched
where this module says so (waiting, ``ping``, ``connect``, ``reset``). At each such place the
greenlet can be killed, so each is inside a handler for BaseException that leaves the slot in the
hands of somebody else. Signal handlers and finalizers can run between any two bytecodes; they
never touch the state, they call :meth:`ConnectionPool.reclaim`, which enqueues.

The split between policy (here) and driver (callables) is the one of HikariCP's HikariPool and
PoolBase and of psycopg_pool's base classes; direct hand-off is Go's ``database/sql``.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import time
import weakref
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.hub import Waiter
from gevent.monkey import get_original

from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import stats as tally
from pooled_serve.pool.stats import ACQUIRED, BOUNDS, CLOSED, HELD_SECONDS, HOLDS, Row

get_thread = get_original("_thread", "get_ident")
"""The OS thread, whatever gevent has patched; a pool belongs to one."""


class Closable(Protocol):
    """All that the pool itself asks of a connection."""

    def close(self) -> object:
        """End the connection."""


C = TypeVar("C", bound=Closable)

DIRTY = "dirty"
"""What ``condition`` answers for a connection that ``reset`` can make clean again."""

MOVED = "moved"
"""What ``condition`` answers if the server is no longer the one to use: a primary that became
read-only. Nothing that was opened before is handed out again, or each would cost a request."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a driver's ``close()`` may take before its slot is given on regardless."""

BACKOFF_FIRST, BACKOFF_MOST = 0.05, 1.0
"""Seconds between attempts to connect after the first failure, and after many."""

PING_TIMEOUT = 2.0
"""Seconds that a ping may take. A dead link must leave time to connect anew."""

_SILENCE = TimeoutError("the server did not answer")

AGE_JITTER = 0.1
"""Connections opened together must not retire together: up to this share is cut from their age."""


class Slot(Generic[C]):
    """One unit of the cap: reserved, then in use or idle by turns, then closed."""

    __slots__ = ("conn", "expires", "idle_since", "key", "taken")

    conn: C  # and key, its id: once it is connected
    key: int

    def __init__(self) -> None:
        self.expires = math.inf
        self.idle_since = 0.0
        self.taken = 0.0


class _Ticket(Generic[C]):
    """One waiter in the queue. Gets its answer, a slot or an error, from whoever takes it out."""

    __slots__ = ("_loop", "_waiter", "answer", "since")

    def __init__(self, since: float) -> None:
        hub = gevent.get_hub()
        self._waiter = Waiter(hub)
        self._loop = hub.loop
        self.since = since
        self.answer: Slot[C] | Exception | None = None

    def wake(self, answer: Slot[C] | Exception) -> None:
        self.answer = answer
        self._loop.run_callback(self._waiter.switch, None)

    def wait(self, seconds: float, expire: Callable[[_Ticket[C]], None]) -> None:
        """Sleep until woken; ``expire`` is called in the hub after ``seconds``."""
        timer = self._loop.timer(max(0.0, seconds))
        # update: the loop's idea of "now" may be as old as the code that ran since it last
        # looked, and the timer would fire early by that much.
        timer.start(expire, self, update=True)
        try:
            self._waiter.get()
        finally:
            timer.stop()
            timer.close()


class Observer:
    """Is told what a person may want to know. Does nothing; subclasses do.

    Called on slow paths only; must neither raise nor switch greenlets.
    """

    def queued(self) -> None:
        """Somebody has to wait."""

    def connected(self) -> None:
        """A connection was opened."""

    def connect_failed(self, error: Exception) -> None:
        """None could be opened."""


class ConnectionPool(Generic[C]):
    """Shares at most ``max_outstanding`` connections among any number of greenlets.

    :param connect: opens a connection; any callable that returns an object with ``close()``.
    :param size: how many idle connections are kept.
    :param max_outstanding: the most connections that may exist at once; None for no limit.
    :param timeout: seconds that :meth:`acquire` may take, all in all.
    :param max_age: seconds after which a connection retires (less up to 10 % of jitter); None
        for never; or a callable that tells it for a connection.
    :param check: tells at each hand-out, without I/O, whether an idle connection looks alive.
    :param ping: asks the server itself; raises if it does not answer.
    :param ping_after: seconds of idleness after which a look is not enough: a half-open link (a
        host that lost power, a firewall that forgot) looks alive until something is sent.
    :param condition: called at hand-back, without I/O: None when the connection is fit for the
        next user, :data:`DIRTY` when ``reset`` can make it so, else a word that says why it must
        be closed; :data:`MOVED` closes the others too.
    :param reset: makes a dirty connection fit; may do I/O and raise.
    :param abandon: called in a forked child with each connection of the parent; must close the
        descriptor without writing to it. They are kept, untouched, for ever.
    :param holder: who has a connection, for messages; "" if that is not known.
    :param observer: is told when somebody waits, and how connecting goes.
    :param clock: monotonic seconds.
    :param name: stands in messages.
    """

    # Python keeps more than 30 attributes of an instance in a slower way, which made a hand-out
    # dearer by a tenth.
    __slots__ = (
        *("name", "size", "cap", "timeout", "tally", "__weakref__"),
        *("_open", "_max_age", "_check", "_ping", "_ping_after", "_condition", "_reset"),
        *("_abandon", "_holder", "_observer", "_clock", "_hub", "_keep_idle", "_closed"),
        *("_idle", "_in_use", "_returned", "_connecting", "_opening", "_waiters", "_orphans"),
        *("_parents", "_failures", "_last_error", "_retry_timer", "_age_timer", "_next_expiry"),
        "_moved_at",
    )

    def __init__(
        self,
        connect: Callable[[], C],
        *,
        size: int = 4,
        max_outstanding: int | None = 12,
        timeout: float = 10.0,
        max_age: float | Callable[[C], float | None] | None = None,
        check: Callable[[C], bool] = lambda conn: True,
        ping: Callable[[C], None] = lambda conn: None,
        ping_after: float = 30.0,
        condition: Callable[[C], str | None] = lambda conn: None,
        reset: Callable[[C], None] = lambda conn: None,
        abandon: Callable[[C], None] = lambda conn: None,
        holder: Callable[[C], str] = lambda conn: "",
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "pool",
    ) -> None:
        cap = math.inf if max_outstanding is None else max_outstanding
        if not 1 <= size <= cap:
            raise ValueError(f"need 1 <= size <= max_outstanding, not {size} and {cap:g}")
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0, not {timeout:g}")
        self.name = name
        self.size = size
        self.cap = cap
        self.timeout = timeout
        self._open = connect
        self._max_age = max_age
        self._check = check
        self._ping = ping
        self._ping_after = ping_after
        self._condition = condition
        self._reset = reset
        self._abandon = abandon
        self._holder = holder
        self._observer = observer or Observer()
        self._clock = clock

        self._keep_idle = size
        self._closed = False
        # Finalizers in other OS threads must find the loop of the thread that owns the pool.
        self._hub: Any = gevent.get_hub()
        self._parents: dict[int, C] = {}  # in a forked child; kept, so that no finalizer writes
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        """With no connection, and nobody there."""
        self._idle: list[Slot[C]] = []  # non-empty only while nobody waits
        self._in_use: dict[int, Slot[C]] = {}  # by id(conn): handed out, and not given back yet
        self._returned: set[Slot[C]] = set()  # given back, and being reset or closed
        self._connecting: set[Slot[C]] = set()
        self._opening: set[Slot[C]] = set()  # of these, those for whoever is first in the queue
        self._waiters: OrderedDict[_Ticket[C], None] = OrderedDict()
        self._orphans: deque[C] = deque()

        self._failures = 0  # connects failed in a row
        self._last_error: Exception | None = None
        self._retry_timer: Any = None
        self._age_timer: Any = None
        self._moved_at = -math.inf
        self._next_expiry = math.inf  # when the age timer fires

        self.tally: Row = [0.0] * tally.WIDTH
        self.tally[tally.SIZE], self.tally[tally.CAP] = self.size, self.cap

    # --- For users -----------------------------------------------------------------------------

    def acquire(self, timeout: float | None = None) -> C:
        """Take a connection; give it back with :meth:`release`.

        :param timeout: seconds to wait at most, instead of the pool's.
        :raises PoolTimeout: none could be had in time.
        :raises PoolClosed: the pool was closed.
        :raises Exception: whatever ``connect`` raised, if no connection is in use that could
            come back instead.
        """
        now = self._clock()
        if timeout is None:
            timeout = self.timeout
        if self._idle:
            # The fast path: somebody else's connection, warm. Nobody waits.
            slot = self._idle.pop()
            self._in_use[slot.key] = slot
            slot.taken = now
            if self._usable(slot, now, now + timeout):
                self.tally[ACQUIRED] += 1.0
                return slot.conn
            return self._acquire(now, timeout, had_turn=True)
        return self._acquire(now, timeout)

    def release(self, conn: C) -> None:
        """Give a connection back, whatever state it is in.

        An error while cleaning it is not raised: the connection is closed instead.

        :raises ValueError: it is not in use, or was given back before.
        """
        slot = self._in_use.pop(id(conn), None)
        if slot is None:
            if id(conn) in self._parents:
                return
            raise ValueError(f"pool {self.name!r}: {conn!r} is not handed out")
        now = self._clock()
        held = now - slot.taken
        counts = self.tally
        counts[HELD_SECONDS] += held
        counts[HOLDS + bisect_left(BOUNDS, held)] += 1.0
        fault = self._condition(conn)
        if fault is not None and fault == DIRTY:  # "is" costs less, and nearly always suffices
            fault = self._clean(slot)
            if slot.key in self._parents:
                return  # forked meanwhile
            now = self._clock()
        self._put_back(slot, fault, now)

    def reclaim(self, conn: C) -> None:
        """Give back a connection whose holder is gone.

        May be called from anywhere: finalizers, signal handlers, other OS threads. The
        connection is reused if it is clean, else closed; both happen a little later.
        """
        self._orphans.append(conn)
        self._hub.loop.run_callback_threadsafe(self._adopt_orphans)

    def drain(self) -> None:
        """Keep no connection idle from now on. Requests in flight and queued are still served."""
        self._keep_idle = 0
        self._retire_idle("drain")

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close what is idle, refuse what waits or comes later, wait for closings under way.

        Connections in use are closed as they come back.

        :param timeout: seconds to wait for connections that are being closed.
        """
        self._closed = True
        for timer in (self._retry_timer, self._age_timer):
            if timer is not None:
                timer.stop()
        while self._waiters:
            self._wake_head(PoolClosed(f"pool {self.name!r} is closed"))
        self.drain()
        self._wait_for_closings(timeout)

    def clear(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close what is idle, and wait for it; the pool goes on.

        :param timeout: seconds to wait at most.
        """
        self._retire_idle("cleared")
        self._wait_for_closings(timeout)

    def _wait_for_closings(self, timeout: float) -> None:
        deadline = self._clock() + timeout
        while self._returned and self._clock() < deadline:
            gevent.sleep(0.001)

    def stats(self) -> dict[str, Any]:
        """Gauges of this moment and counters since the start; the keys of ``/stats.json``."""
        self.mark()
        return tally.by_name(list(self.tally), self._clock())

    @property
    def empty(self) -> bool:
        """Whether no connection is open."""
        return not (self._in_use or self._idle or self._returned)

    def longest_wait(self) -> float:
        """Seconds that the first in the queue has waited; 0 if nobody waits."""
        first = next(iter(self._waiters), None)
        return self._clock() - first.since if first else 0.0

    def describe(self) -> str:
        """In use, idle, waiting, cap and the longest lease, in words."""
        oldest = self._oldest_lease()
        held, who = 0.0, ""
        if oldest is not None:
            held, who = self._clock() - oldest.taken, self._holder(oldest.conn)
        cap = "unlimited" if self.cap == math.inf else f"{self.cap:.0f}"
        return (
            f"{self._busy()} in use, {len(self._idle)} idle, "
            f"{len(self._waiters)} waiting, cap {cap}, longest held {held:.1f}s"
            + (f" by {who}" if who else "")
        )

    # --- Counting ------------------------------------------------------------------------------

    def count_into(self, row: Row) -> None:
        """Count there from now on, on top of what was counted here and there so far."""
        for i, number in enumerate(self.tally):
            row[i] = number + (row[i] if i < tally.COUNTERS else 0.0)
        self.tally = row

    def mark(self) -> None:
        """Bring the gauges up to date. That is up to who wants to read them: at every change it
        would be the dearest part of a hand-out."""
        row, oldest, first = self.tally, self._oldest_lease(), next(iter(self._waiters), None)
        row[tally.IDLE] = len(self._idle)
        row[tally.OPEN] = len(self._idle) + self._busy()
        row[tally.WAITING] = len(self._waiters)
        row[tally.OLDEST_HELD] = oldest.taken if oldest else 0.0
        row[tally.OLDEST_WAIT] = first.since if first else 0.0

    def _busy(self) -> int:
        """How much of the cap is taken, but for what is idle."""
        return len(self._in_use) + len(self._returned) + len(self._connecting)

    def _oldest_lease(self) -> Slot[C] | None:
        return min(self._in_use.values(), key=lambda slot: slot.taken, default=None)

    def _observe(self, total: int, histogram: int, seconds: float) -> None:
        self.tally[total] += seconds
        self.tally[histogram + bisect_left(BOUNDS, seconds)] += 1

    # --- Taking --------------------------------------------------------------------------------

    def _acquire(self, began: float, timeout: float, *, had_turn: bool = False) -> C:
        """The slow path of :meth:`acquire`: wait, check, connect, until one of them works.

        :param had_turn: what it got was of no use. Then only the head of the queue is fair.
        """
        deadline = began + timeout
        waited = False
        while True:
            if self._closed:
                raise PoolClosed(f"pool {self.name!r} is closed")
            if self._orphans:
                self._adopt_orphans()
            slot = None
            if had_turn or not self._waiters:
                slot = self._take()
            if slot is None:
                waited = True
                slot = self._wait(began, timeout, first=had_turn)
            had_turn = True
            if slot in self._connecting:
                if not self._connect(slot, deadline, timeout):
                    continue  # others may return theirs
            elif not self._usable(slot, self._clock(), deadline):
                continue
            now = slot.taken = self._clock()
            self.tally[ACQUIRED] += 1
            if waited:
                self.tally[tally.WAITED] += 1
                self._observe(tally.WAIT_SECONDS, tally.WAITS, now - began)
            return slot.conn

    def _take(self) -> Slot[C] | None:
        """An idle connection, or the right to open one, or None: then wait.

        :raises Exception: the last connect error, while backing off with nothing to wait for.
        """
        if self._idle:
            slot = self._idle.pop()
            self._in_use[slot.key] = slot
            slot.taken = self._clock()
            return slot
        if self._may_connect():
            return self._reserve()
        error = self._last_error
        if error not in (None, _SILENCE) and not self._busy():
            raise _fresh(error)
        return None

    def _may_connect(self) -> bool:
        if self._busy() + len(self._idle) >= self.cap:
            return False
        # After a failure one attempt at a time, not before the back-off is over: a server that
        # comes back is not met by a stampede, one that stays away is not hammered.
        return not self._failures or (self._retry_timer is None and not self._connecting)

    def _reserve(self) -> Slot[C]:
        slot: Slot[C] = Slot()
        self._connecting.add(slot)
        return slot

    def _wait(self, began: float, timeout: float, *, first: bool) -> Slot[C]:
        """Queue until a slot is handed over."""
        ticket: _Ticket[C] = _Ticket(began)
        self._waiters[ticket] = None
        if first:
            self._waiters.move_to_end(ticket, last=False)
        self._observer.queued()

        def expire(ticket: _Ticket[C]) -> None:
            # In the hub. Whoever took the ticket out of the queue before has served it.
            if ticket in self._waiters:
                ticket.wake(self._timed_out(timeout))
                del self._waiters[ticket]

        try:
            ticket.wait(began + timeout - self._clock(), expire)
        except BaseException:
            # Killed. A slot that was handed over in the meantime goes on to the next.
            self._waiters.pop(ticket, None)
            slot = ticket.answer
            if isinstance(slot, Slot) and slot.key in self._in_use:  # not so in a forked child
                del self._in_use[slot.key]
                self._put_back(slot, self._condition(slot.conn), self._clock())
            raise
        if isinstance(ticket.answer, Slot):
            return ticket.answer
        assert ticket.answer is not None
        raise ticket.answer

    def _usable(self, slot: Slot[C], now: float, deadline: float) -> bool:
        """Whether a connection can be handed out; if not, it is closed."""
        if now >= slot.expires:
            self._discard(slot, "age")
            return False
        if not self._check(slot.conn):
            self._discard(slot, "dead")
            return False
        if now - slot.idle_since >= self._ping_after:
            return self._answers(slot, min(PING_TIMEOUT, deadline - now))
        return True

    def _answers(self, slot: Slot[C], seconds: float) -> bool:
        """Whether the server answers a ping in time; if not, the connection is closed."""
        limit = gevent.Timeout(max(0.0, seconds))
        try:
            with limit:
                self._ping(slot.conn)
        except BaseException as error:
            dead = error is limit or isinstance(error, Exception)
            self._discard(slot, "dead" if dead else "killed")
            if not dead:
                raise
            # Those that have been silent for as long are dead too: one wait is enough.
            now = self._clock()
            self._retire_idle("dead", lambda other: now - other.idle_since >= self._ping_after)
            return False
        return True

    # --- Connecting ----------------------------------------------------------------------------

    def _connect(self, slot: Slot[C], deadline: float, timeout: float) -> bool:
        """Open a connection into a reserved slot. False: it failed, but others may return.

        :param timeout: all the time that whoever wants it has, of which some may be spent.
        """
        began = self._clock()
        limit = gevent.Timeout(max(0.0, deadline - began))
        try:
            with limit:
                conn = self._open()
        except gevent.Timeout as error:
            if error is limit and (self._failures or self._clock() - began > timeout / 2):
                # It had the time, so the server is at fault. Without a back-off every waiter
                # would try, with what time it has left, and a server bans hosts for that.
                self._connect_failed(_SILENCE)
            self._free(slot)
            if error is not limit:
                raise
            if slot in self._opening:
                return False
            raise self._timed_out(timeout) from None
        except Exception as error:
            self._connecting.discard(slot)
            self._connect_failed(error)
            if self._busy() or self._idle:
                return False
            while self._waiters:
                self._wake_head(_fresh(error))
            raise
        except BaseException:
            self._free(slot)
            raise
        self.tally[tally.OPENED] += 1
        self._observe(tally.CREATE_SECONDS, tally.CREATES, self._clock() - began)
        self._adopt(slot, conn)
        return True

    def _adopt(self, slot: Slot[C], conn: C) -> None:
        age = self._max_age(conn) if callable(self._max_age) else self._max_age
        if age is not None:
            slot.expires = self._clock() + age * (1 - AGE_JITTER * random.random())
        slot.conn, slot.key, slot.taken = conn, id(conn), self._clock()
        self._connecting.discard(slot)
        self._in_use[slot.key] = slot
        self._observer.connected()
        if self._failures:
            self._failures = 0
            self._last_error = None
            self._cancel_retry()
            self._serve_waiters()  # only one was let through to try

    def _connect_failed(self, error: Exception) -> None:
        self.tally[tally.CONNECT_ERRORS] += 1
        self._observer.connect_failed(error)
        self._last_error = error
        self._failures += 1
        pause = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(self._failures - 1, 10))
        self._cancel_retry()
        self._retry_timer = self._timer(pause * random.uniform(0.5, 1.0), self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self._serve_waiters()

    def _cancel_retry(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.stop()
            self._retry_timer = None

    # --- Giving back ---------------------------------------------------------------------------

    def _clean(self, slot: Slot[C]) -> str | None:
        """Reset a dirty connection; tells why it must be closed all the same, or None."""
        self._returned.add(slot)
        failed = None
        try:
            self._reset(slot.conn)
            self.tally[tally.RESET] += 1
        except Exception:
            failed = "reset failed"
        except BaseException:
            self._discard(slot, "killed")
            raise
        self._returned.discard(slot)
        return self._condition(slot.conn) or failed

    def _put_back(self, slot: Slot[C], fault: str | None, now: float) -> None:
        """To the first waiter, or to idle, or closed. Does not switch."""
        if fault is None:
            if now >= slot.expires:
                fault = "age"
            elif self._closed:
                fault = "closed"
        elif fault == MOVED and now < slot.expires:
            self._retire_all(now)
        if fault is not None:
            self._discard(slot, fault)
        elif self._waiters:
            slot.idle_since = slot.taken = now
            self._in_use[slot.key] = slot
            self._wake_head(slot)
        elif len(self._idle) >= self._keep_idle:
            self._discard(slot, "drain" if self._keep_idle == 0 else "surplus")
        else:
            slot.idle_since = now
            self._idle.append(slot)
            if slot.expires < self._next_expiry:
                self._retire_at(slot.expires, now)

    def _free(self, slot: Slot[C]) -> None:
        """Undo a reservation."""
        self._connecting.discard(slot)
        self._serve_waiters()

    def _serve_waiters(self) -> None:
        """Free slots are for the head of the queue, but it does not connect itself.

        In a queue of which requests time out the head has next to no time left: no more than lies
        between two arrivals. If connecting takes longer, each would fail, with a server that is
        well, for as long as the requests keep coming.
        """
        while len(self._waiters) > len(self._opening) and self._may_connect():
            slot = self._reserve()
            self._opening.add(slot)
            # Raw: it has no handle by which somebody could kill it before it ran.
            gevent.spawn_raw(self._open_for_queue, slot)

    def _open_for_queue(self, slot: Slot[C]) -> None:
        # An error is told to those who wait, or else leads to the next attempt.
        with contextlib.suppress(Exception, gevent.Timeout):
            try:
                if self._connect(slot, self._clock() + self.timeout, self.timeout):
                    del self._in_use[slot.key]
                    self._put_back(slot, None, self._clock())
            finally:
                self._opening.discard(slot)
                self._serve_waiters()

    def _wake_head(self, answer: Slot[C] | Exception) -> None:
        ticket, _ = self._waiters.popitem(last=False)
        ticket.wake(answer)

    def _adopt_orphans(self) -> None:
        """In the hub, mostly, so nothing here may switch: dirty connections are closed."""
        while self._orphans:
            conn = self._orphans.popleft()
            slot = self._in_use.pop(id(conn), None)
            if slot is None:
                continue
            now = self._clock()
            self._observe(HELD_SECONDS, HOLDS, now - slot.taken)
            fault = self._condition(conn)
            self._put_back(slot, "abandoned" if fault == DIRTY else fault, now)

    # --- Closing -------------------------------------------------------------------------------

    def _discard(self, slot: Slot[C], reason: str) -> None:
        """Close a connection that is not idle, in a greenlet of its own; then free its slot.

        In its own greenlet because some callers run in the hub, and because a close that blocks
        must not hold up, nor a kill of the caller leave undone. It counts until it is closed, so
        that the server never sees more connections than the cap.
        """
        self._in_use.pop(slot.key, None)
        self._returned.add(slot)
        self.tally[CLOSED.get(reason, CLOSED["other"])] += 1
        # Raw: it has no handle by which somebody could kill it before it ran.
        gevent.spawn_raw(self._close_slot, slot)

    def _close_slot(self, slot: Slot[C]) -> None:
        try:
            # An error is of no use to anybody: the connection is gone either way.
            with contextlib.suppress(Exception), gevent.Timeout(CLOSE_TIMEOUT, False):
                slot.conn.close()
        finally:
            self._returned.discard(slot)
            self._serve_waiters()

    def _retire_aged(self) -> None:
        now = self._clock()
        self._retire_idle("age", lambda slot: slot.expires <= now)
        self._next_expiry = math.inf
        soonest = min((slot.expires for slot in self._idle), default=math.inf)
        if soonest < math.inf:
            self._retire_at(soonest, now)

    def _retire_at(self, expiry: float, now: float) -> None:
        """Look for aged idle connections then. One timer, set again only for a sooner date."""
        if self._age_timer is not None:
            self._age_timer.stop()
        self._next_expiry = expiry
        self._age_timer = self._timer(expiry - now, self._retire_aged)

    def _retire_all(self, now: float) -> None:
        """Idle ones go now, those in use when they come back."""
        # Not for every error: a server may be read-only for long, with nowhere else to go.
        if now - self._moved_at >= BACKOFF_MOST:
            self._moved_at = now
            for slot in (*self._in_use.values(), *self._returned):
                slot.expires = now
            self._retire_idle(MOVED)

    def _retire_idle(
        self, reason: str, which: Callable[[Slot[C]], bool] = lambda slot: True
    ) -> None:
        idle, self._idle = self._idle, []
        for slot in idle:
            if which(slot):
                self._discard(slot, reason)
            else:
                self._idle.append(slot)

    # --- Small things --------------------------------------------------------------------------

    def _timer(self, seconds: float, callback: Callable[[], None]) -> Any:
        # ref=False: a timer of ours alone must not keep an event loop running.
        timer = self._hub.loop.timer(max(0.0, seconds), ref=False)
        timer.start(callback, update=True)
        return timer

    def _timed_out(self, timeout: float) -> PoolTimeout:
        self.tally[tally.TIMEOUTS] += 1
        return PoolTimeout(
            self.name,
            timeout,
            in_use=self._busy(),
            idle=len(self._idle),
            waiting=len(self._waiters),
            cap=self.cap,
            last_error=self._last_error,
            state=self.describe(),
        )

    def _after_fork_in_child(self) -> None:
        """The connections are the parent's: forget them, without a byte on their sockets."""
        slots = (*self._in_use.values(), *self._idle, *self._returned)
        self._start()
        for slot in slots:
            self._parents[slot.key] = slot.conn
            self._abandon(slot.conn)


def _fresh(error: Exception) -> Exception:
    """A copy of an error for another greenlet: raising one object in many mixes tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:
        twin = error
    return twin.with_traceback(None)


_pools: weakref.WeakSet[ConnectionPool[Any]] = weakref.WeakSet()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
