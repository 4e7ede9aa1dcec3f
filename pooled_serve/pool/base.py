"""What a pool consists of: its parameters, its state, its numbers, its description in words."""

from __future__ import annotations

import math
import os
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic

import gevent
from gevent.monkey import get_original

from pooled_serve.pool import metrics
from pooled_serve.pool.backoff import Backoff
from pooled_serve.pool.entry import C, Entries, Entry
from pooled_serve.pool.listener import Account, PoolListener
from pooled_serve.pool.metric import Row
from pooled_serve.pool.outage import Outage
from pooled_serve.pool.overload import Overload
from pooled_serve.pool.silence import QUIET_SECONDS, Silence
from pooled_serve.pool.tokens import Tokens
from pooled_serve.pool.waiters import Waiter, Waiters

get_thread = get_original("_thread", "get_ident")
"""The OS thread, whatever gevent has patched; a pool belongs to one."""

DIRTY = "dirty"
"""Returned by ``condition`` for a connection that ``reset`` can make clean again."""

BACKLOG_SECONDS = 10.0
"""For so long after an outage, a queue that has not been empty since is its work."""

LOOKS_SECONDS = 1.0
"""A look at what the connections in use do stands for the time since the last one, unless that was
longer: the event loop was blocked, and what they have done meanwhile is not known."""

STALE_SECONDS = 5.0
"""What was heard of the server longer ago says nothing of now."""

FAILED_OVER = "moved"
"""Returned by ``condition`` when the server is no longer the one to use: a primary that became
read-only. No connection opened before is handed out again, or each would cost a request."""


class PoolBase(Generic[C]):
    """The part of a :class:`ConnectionPool` that hands nothing out.

    :param connect: opens a connection; any callable that returns an object with ``close()``.
    :param size: how many idle connections are kept.
    :param max_outstanding: the most connections that may exist at once; None for no limit.
    :param timeout: seconds that :meth:`acquire` may take in total.
    :param shed: whether waiters are refused sooner than that under overload; see overload.py.
    :param is_outage: whether an error of ``connect`` means that nobody answers at the address, so
        that it is worth to wait for a while; see outage.py. An attempt that takes all its time
        always means that. Other errors are raised at once.
    :param max_age: seconds after which a connection retires (less up to 10 % of jitter); None
        for never; or a callable that returns either for a connection.
    :param check: returns at each hand-out, without I/O, whether an idle connection looks alive.
    :param ping: asks the server itself; raises if it does not answer.
    :param ping_after: seconds of idleness after which a look is not enough: a half-open link (a
        host that lost power, a firewall that forgot) looks alive until something is sent.
    :param condition: called at hand-back, without I/O: returns None when the connection is fit for
        the next user, :data:`DIRTY` when ``reset`` can make it so, else a word that says why it
        must be closed; :data:`FAILED_OVER` closes the others too.
    :param reset: makes a dirty connection fit; may do I/O and raise.
    :param unfinished: whether the server may still be at work for a connection that was closed in
        the middle of a command. Its place under the cap is then kept until it is not.
    :param finish: called with the connection that takes that place, and a list of closed ones: ends
        what the server does for them, and waits until it has let go. Yields each of them once, with
        True if it was ended, None if there was nothing to end, and False if that is not possible.
        Yields None, without a connection, before each pause: there the pool may stop, and call it
        again. May do I/O and raise.
    :param abandon: called in a forked child with each connection of the parent; must close the
        descriptor without writing to it. The pool then keeps the objects for ever, so that no
        finalizer sends anything.
    :param tokens: those of the host, if that has a bound: each connection owns one.
    :param part: called, with a bound of the host, before ``close``: waits until the server has let
        go of the connection. May do I/O and raise.
    :param trace: with a bound of the host, returns at most 47 bytes that say which connection it
        is at the server.
    :param restore: makes of a trace the closed connection that another process has left behind:
        something for ``finish`` and ``abandon``.
    :param holder: returns the holder of a connection, for messages; "" if it is not known.
    :param awaits: returns, without I/O, what a connection waits for: an object that is another one
        for each wait, None if it waits for nothing, and :data:`LOST` if it is closed; see
        silence.py.
    :param listeners: called when a request has to wait, and with the outcome of each connect.
    :param clock: monotonic seconds.
    :param name: names the pool in messages.
    """

    # Python keeps more than 30 attributes of an instance in a slower way, which made a hand-out
    # slower by a tenth.
    __slots__ = (
        *("name", "size", "cap", "timeout", "row", "__weakref__"),
        *("_open", "_max_age", "_check", "_ping", "_ping_after", "_condition", "_reset"),
        *("_unfinished", "_finish", "_to_replace", "_replacing"),
        *("_abandon", "_holder", "_listeners", "_clock", "_hub", "_keep_idle", "_closed"),
        *("_entries", "_idle", "_leased", "_waiters", "_queue", "_connecting_for_queue"),
        *("_orphans", "_inherited", "_backoff", "_retry_timer", "_age_timer", "_next_expiry"),
        *("_renewed_at", "_shed", "_overload", "_is_outage", "_outage", "_outage_timer"),
        *("_tokens", "_hungry", "_part", "_trace", "_restore", "_probe_since"),
        *("_loopless", "_drained", "_account", "_longest_waits", "_most_in_use", "_maxima_since"),
        *("_awaits", "_silence", "_quiet_since", "_backlog_until", "_inquiring", "_asked"),
        *("_listened_at", "_emptied"),
    )

    def __init__(
        self,
        connect: Callable[[], C],
        *,
        size: int = 4,
        max_outstanding: int | None = 12,
        timeout: float = 10.0,
        shed: bool = True,
        is_outage: Callable[[Exception], bool] = lambda error: False,
        max_age: float | Callable[[C], float | None] | None = None,
        check: Callable[[C], bool] = lambda conn: True,
        ping: Callable[[C], None] = lambda conn: None,
        ping_after: float = 30.0,
        condition: Callable[[C], str | None] = lambda conn: None,
        reset: Callable[[C], None] = lambda conn: None,
        unfinished: Callable[[C], bool] = lambda conn: False,
        finish: Callable[
            [C, list[C]], Iterable[tuple[C, bool | None] | None]
        ] = lambda conn, closed: (),
        abandon: Callable[[C], None] = lambda conn: None,
        tokens: Tokens | None = None,
        part: Callable[[C], None] = lambda conn: None,
        trace: Callable[[C], bytes] = lambda conn: b"",
        restore: Callable[[bytes], C] | None = None,
        holder: Callable[[C], str] = lambda conn: "",
        awaits: Callable[[C], object] = lambda conn: None,
        listeners: Iterable[PoolListener] = (),
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
        self._shed = shed
        self._open = connect
        self._is_outage = is_outage
        self._max_age = max_age
        self._check = check
        self._ping = ping
        self._ping_after = ping_after
        self._condition = condition
        self._reset = reset
        self._unfinished = unfinished
        self._finish = finish
        self._abandon = abandon
        self._holder = holder
        self._awaits = awaits
        self._tokens = tokens
        self._hungry: Any = (0.0,) if tokens is None else tokens.hungry  # [0]: any worker may be
        self._part = part
        self._trace = trace
        self._restore = restore
        self._listeners = tuple(listeners)
        self._clock = clock

        self._drained = False
        self._loopless = False
        self._set_loop(runs=_loop_runs)
        self._closed = False
        # Finalizers in other OS threads must find the loop of the thread that owns the pool.
        self._hub: Any = gevent.get_hub()
        self._inherited: dict[int, C] = {}  # in a forked child; kept, so that no finalizer writes
        self._start()
        _pools.add(self)
        if tokens is not None:
            tokens.join(self)

    def _set_loop(self, *, runs: bool) -> None:
        self._loopless = self._tokens is not None and not runs
        self._set_keep_idle()

    def _set_keep_idle(self) -> None:
        self._keep_idle = 0 if self._drained or self._loopless else self.size

    def _start(self) -> None:
        """Set the state of a pool without connections and waiters."""
        self._entries: Entries[C] = Entries(self._tokens)
        self._idle = self._entries.idle  # these, and _queue, shorten the hot path
        self._leased = self._entries.leased
        self._connecting_for_queue: set[Entry[C]] = set()  # of the connecting entries
        self._waiters: Waiters[C] = Waiters()
        self._queue = self._waiters.queue  # empty whenever there is an idle entry
        self._orphans: deque[C] = deque()
        self._to_replace: deque[Entry[C]] = deque()  # closing, and not yet finished at the server
        self._replacing = False  # one after the other
        self._backoff = Backoff(self._clock)
        self._retry_timer: Any = None
        self._age_timer: Any = None
        self._next_expiry = math.inf  # when the age timer fires
        self._renewed_at = -math.inf
        self._overload = Overload() if self._shed else None
        self._outage = Outage()
        self._outage_timer: Any = None
        self._probe_since = 0.0  # when a probe first lacked a token; 0 if none does
        self._account: Account | None = None
        self._longest_waits = [0.0, 0.0]  # of this stretch of a second or more, and the last one
        self._most_in_use = [0, 0]  # the same, when a connection was opened
        self._maxima_since = 0.0
        self._silence = Silence()
        self._quiet_since = 0.0  # as the listeners were told; 0 if they were not
        self._listened_at = -math.inf
        self._backlog_until = 0.0  # while the queue of an outage may not have been served yet
        self._inquiring = False
        self._emptied = False  # the server has closed all idle ones; see drop_dead()
        # [0]: since when the login of the connection beyond the cap has had no answer; 0 if it has
        self._asked: Any = [0.0] if self._tokens is None else self._tokens.asked
        self.row: Row = metrics.new_row()
        self.row[metrics.SIZE], self.row[metrics.CAP] = self.size, self.cap

    # --- Counting ------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Gauges of this moment and counters since the start; the keys of ``/stats.json``."""
        self.refresh_gauges()
        return metrics.by_name(list(self.row), self._clock())

    @property
    def empty(self) -> bool:
        """Whether no connection is open."""
        return not self._entries.open()

    @property
    def out(self) -> bool:
        """Whether no attempt to connect has worked since one failed for want of an answer."""
        return self._outage.since is not None

    @property
    def full(self) -> bool:
        """Whether all connections that may exist are in use."""
        return len(self._leased) >= self.cap

    @property
    def host_is_full(self) -> bool:
        """Whether all connections that the host may have are taken, by whichever worker."""
        return self._tokens is not None and self._tokens.describe() != ""

    @property
    def waiting(self) -> int:
        """The number of callers in the queue."""
        return len(self._queue)

    @property
    def overloaded(self) -> bool:
        """Whether late waiters are refused."""
        return self._overload is not None and self._overload.on and bool(self._queue)

    def longest_wait(self) -> float:
        """Returns the seconds that the head of the queue has waited; 0 if the queue is empty."""
        head = self._waiters.head
        return self._clock() - head.since if head else 0.0

    def describe(self) -> str:
        """Returns the connections by state, the queue and the longest lease, in words."""
        entries = self._entries
        words = [f"{len(entries.leased)} in use", f"{len(entries.idle)} idle"]
        others = ("connecting", "resetting", "closing")
        words += [f"{count} {s}" for s in others if (count := len(getattr(entries, s)))]
        words.append(f"{len(self._queue)} waiting")
        words.append("cap unlimited" if self.cap == math.inf else f"cap {self.cap:.0f}")
        if self._tokens is not None and (taken := self._tokens.describe()):
            words.append(taken)
        if oldest := entries.oldest_lease():
            holder = self._holder(oldest.conn)
            by = f" by {holder}" if holder else ""
            words.append(f"longest held {self._clock() - oldest.leased_at:.1f}s{by}")
        return ", ".join(words)

    def count(self, metric: int) -> None:
        """Add one to a counter of metrics.py."""
        self.row[metric] += 1.0

    def attach_row(self, row: Row, account: Account | None = None) -> None:
        """Count into another row from now on, on top of what both rows hold.

        :param account: told of each use from now on.
        """
        self._account = account
        for i, number in enumerate(self.row):
            row[i] = number + (row[i] if i < metrics.FIRST_GAUGE else 0.0)
        self.row = row

    def refresh_gauges(self) -> None:
        """Bring the gauges up to date. Readers call this: at each change it would be the most
        expensive part of a hand-out."""
        row, entries = self.row, self._entries
        oldest, head = entries.oldest_lease(), self._waiters.head
        row[metrics.IN_USE] = len(entries.leased)
        row[metrics.IDLE] = len(entries.idle)
        row[metrics.CONNECTING] = len(entries.connecting)
        row[metrics.CLOSING] = len(entries.resetting) + len(entries.closing)
        row[metrics.WAITING] = len(self._queue)
        now = self._clock()
        if now - self._maxima_since >= 1.0:
            self._longest_waits = [0.0, self._longest_waits[0]]
            self._most_in_use = [0, self._most_in_use[0]]
            self._maxima_since = now
        row[metrics.LONGEST_WAIT] = max(self._longest_waits)
        row[metrics.MOST_IN_USE] = max(len(entries.leased), *self._most_in_use)
        row[metrics.OLDEST_HELD] = oldest.leased_at if oldest else 0.0
        row[metrics.OLDEST_WAIT] = head.since if head else 0.0
        self._listen(now)
        self._note_outage(now)

    def _listen(self, now: float) -> None:
        """See whether the server answers those who wait for it."""
        row, entries, silence = self.row, self._entries, self._silence
        asking = [*entries.leased.values(), *entries.resetting]
        back = max((entry.idle_since for entry in (*asking, *entries.idle[-1:])), default=0.0)
        begun = [entry.leased_at for entry in entries.connecting if entry.leased_at]
        if self._inquiring and self._asked[0]:
            begun.append(self._asked[0])
        waits = {entry.conn_id: self._awaits(entry.conn) for entry in asking}
        since = silence.look(now, waits, came_back=back, connecting=begun)
        row[metrics.ASKING] = sum(key in entries.leased for key in since)
        passed, self._listened_at = now - self._listened_at, now
        if self._account is not None and passed <= LOOKS_SECONDS:
            for key, entry in entries.leased.items():
                if key not in since:
                    self._account.idled(entry.conn, passed)
        row[metrics.IN_STATEMENT] = sum(
            now - began >= QUIET_SECONDS for key, began in since.items() if key in entries.leased
        )
        row[metrics.OLDEST_STATEMENT] = silence.asked
        row[metrics.LAST_ANSWER] = silence.answered
        quiet = silence.seconds(now)
        if quiet >= QUIET_SECONDS:
            self._quiet_since = self._quiet_since or now - quiet
            for listener in self._listeners:
                listener.unanswered(quiet)
        elif self._quiet_since and silence.answered > self._quiet_since:
            # Not when those who have waited are gone: until the next answer nothing is known.
            self._quiet_since = 0.0
            for listener in self._listeners:
                listener.answered()
        for listener in self._listeners:
            listener.asking(metrics.age(silence.asked, now))

    def check_freshness(self) -> None:
        """Somebody wants to know whether the server is there. If nobody waits for an answer of it,
        and nothing was heard of it lately, the listeners are told, and may find out."""
        last = max((entry.idle_since for entry in self._idle[-1:]), default=0.0)
        heard = max(last, self._silence.answered)
        asking = self.row[metrics.ASKING] or self._entries.in_transit
        if not heard or self._closed or asking:
            return  # never used, or those who ask will tell
        if self._clock() - heard >= STALE_SECONDS:
            for listener in self._listeners:
                listener.stale()

    def _note_outage(self, now: float) -> None:
        """Note until when the database could not be used, or requests wait that began to because
        of that."""
        if self.row[metrics.REACHABLE] == metrics.NO or self.row[metrics.STUCK]:
            self._backlog_until = now + BACKLOG_SECONDS
            # Of a frozen server no connect may have told: all that is open is in use.
            for waiter in self._queue if self.row[metrics.STUCK] else ():
                self._held(waiter)
        elif not self._queue or now >= self._backlog_until:
            self._backlog_until = 0.0
            return
        self.row[metrics.LAST_OUTAGE] = now

    def _held(self, waiter: Waiter[C]) -> None:
        """Count one who waits in an outage, once."""
        if not waiter.held:
            waiter.held = True
            self.count(metrics.OUTAGE_WAITS)

    def _observe(self, total: int, seconds: float) -> None:
        """Count a duration in a histogram: its sum, and one of the buckets behind that."""
        self.row[total] += seconds
        self.row[total + 1 + bisect_left(metrics.BUCKET_BOUNDS_SECONDS, seconds)] += 1

    # --- Timers and forks ----------------------------------------------------------------------

    def _timer(self, seconds: float, callback: Callable[[], None]) -> Any:
        # ref=False: the pool's timer alone must not keep an event loop running.
        timer = self._hub.loop.timer(max(0.0, seconds), ref=False)
        timer.start(callback, update=True)
        return timer

    def _after_fork_in_child(self) -> None:
        """The connections are the parent's: forget them, without a byte on their sockets."""
        conns = [entry.conn for entry in self._entries.open()]
        self._start()
        for conn in conns:
            self._inherit(conn)

    def _inherit(self, conn: C) -> None:
        self._inherited[id(conn)] = conn
        self._abandon(conn)


_pools: weakref.WeakSet[PoolBase[Any]] = weakref.WeakSet()
_loop_runs = True


def all_pools() -> list[PoolBase[Any]]:
    """Returns the pools of this process."""
    return list(_pools)


def set_loop(*, runs: bool) -> None:
    """Note whether this process runs its event loop also while nobody queries. Otherwise what lies
    idle here could not be lent to another worker of the host, and is not kept."""
    global _loop_runs
    _loop_runs = runs
    for pool in all_pools():
        pool._set_loop(runs=runs)


def _forget_in_child() -> None:
    for pool in all_pools():
        pool._after_fork_in_child()
    set_loop(runs=False)  # a child that the project forks may do without


os.register_at_fork(after_in_child=_forget_in_child)
