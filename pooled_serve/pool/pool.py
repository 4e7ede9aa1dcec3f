"""The pool's policy: who gets a connection, when one is opened, and when it is closed.

The rules:

* Leased + idle + connecting + resetting + closing never exceed ``max_outstanding``.
* Waiters are served first come, first served, by direct hand-off (waiters.py); under overload,
  late ones are refused (overload.py). Idle connections are taken last in, first out, so that the
  surplus of a spike ages and retires.
* An entry is reserved before ``connect`` may switch greenlets, and given back whatever happens. A
  caller that need not queue opens the connection itself; for queued callers, a greenlet owned by
  the pool does.
* One deadline covers waiting, checking and connecting.

Why this holds without locks: all state belongs to one OS thread, and greenlets are only switched
where this module says so (waiting, ``ping``, ``connect``, ``reset``). At each such place the
greenlet can be killed, so each is inside a handler for BaseException that passes the entry on.
Signal handlers and finalizers can run between any two bytecodes; they never touch the state, they
call :meth:`ConnectionPool.reclaim`, which enqueues.

Policy is here, the driver behind callables, as HikariCP's HikariPool leaves JDBC to its PoolBase.
The PoolBase here is something else: parameters, state and numbers, like psycopg_pool's BasePool.
"""

from __future__ import annotations

import contextlib
import copy
import random
from bisect import bisect_left

import gevent

from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import metrics
from pooled_serve.pool.base import DIRTY, FAILED_OVER
from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.lease import Lease
from pooled_serve.pool.metrics import ACQUIRED, BUCKET_BOUNDS_SECONDS, HELD_BUCKETS, HELD_SECONDS
from pooled_serve.pool.retiring import RetiringPool
from pooled_serve.pool.waiters import Waiter

PING_TIMEOUT_SECONDS = 2.0
"""The time that a ping may take: a dead link must leave enough to connect anew."""

AGE_JITTER = 0.1
"""Connections opened together must not retire together: up to this share is cut from their age."""

CONNECT_TIMED_OUT = TimeoutError("the server did not answer")
"""Recorded for an attempt that took all its time. Never raised: its caller gets a PoolTimeout, and
others may still have the time for an attempt of their own."""


class ConnectionPool(RetiringPool[C]):
    """Shares at most ``max_outstanding`` connections among any number of greenlets.

    The parameters are those of :class:`~pooled_serve.pool.base.PoolBase`.
    """

    __slots__ = ()

    # --- For users -----------------------------------------------------------------------------

    def lease(self, timeout: float | None = None) -> Lease[C]:
        """Returns a connection for a block: ``with pool.lease() as conn:``. It is given back
        however the block ends. Parameters and errors are those of :meth:`acquire`."""
        return Lease(self, timeout)

    def acquire(self, timeout: float | None = None) -> C:
        """Take a connection; give it back with :meth:`release`.

        :param timeout: seconds to wait at most, instead of the pool's.
        :raises PoolTimeout: no connection became available in time.
        :raises PoolClosed: the pool was closed.
        :raises Exception: whatever ``connect`` raised, if no connection is in use that could
            come back instead.
        """
        now = self._clock()
        entry = None
        if self._idle:
            # The fast path: a warm connection. While one is idle, the queue is empty. These are
            # the conditions of _usable(), which takes over when one of them fails.
            entry = self._entries.lease_idle(now)
            if (
                now < entry.expires
                and now - entry.idle_since < self._ping_after
                and self._check(entry.conn)
            ):
                self.row[ACQUIRED] += 1.0
                return entry.conn
        return self._acquire(now, self.timeout if timeout is None else timeout, entry)

    def release(self, conn: C) -> None:
        """Give a connection back, whatever state it is in.

        An error while cleaning it is not raised: the connection is closed instead.

        :raises ValueError: it was not handed out, or was given back before.
        """
        try:
            entry = self._leased[id(conn)]
        except KeyError:
            if id(conn) in self._inherited:
                return
            raise ValueError(f"pool {self.name!r}: {conn!r} is not handed out") from None
        now = self._clock()
        held = now - entry.leased_at
        row = self.row
        row[HELD_SECONDS] += held
        row[HELD_BUCKETS + bisect_left(BUCKET_BOUNDS_SECONDS, held)] += 1.0
        fault = self._condition(conn)
        if fault is not None and fault == DIRTY:  # "is" costs less, and nearly always suffices
            fault = self._clean(entry)
            if entry.conn_id in self._inherited:
                return  # forked meanwhile
            now = self._clock()
        self._put_back(entry, fault, now)

    def reclaim(self, conn: C) -> None:
        """Give back a connection whose holder is gone.

        May be called from anywhere: finalizers, signal handlers, other OS threads. The
        connection is reused if it is clean, else closed; both happen a little later.
        """
        self._orphans.append(conn)
        self._hub.loop.run_callback_threadsafe(self._adopt_orphans)

    # --- Taking --------------------------------------------------------------------------------

    def _acquire(self, began: float, timeout: float, entry: Entry[C] | None) -> C:
        """The slow path of :meth:`acquire`: wait, check and connect until there is a connection.

        :param entry: leased already, if it was this caller's turn.
        """
        deadline = began + timeout
        waited = False
        # A caller whose turn brought nothing usable goes back to the head of the queue.
        keep_place = entry is not None
        try:
            while True:
                if entry is None:
                    if self._closed:
                        raise PoolClosed(f"pool {self.name!r} is closed")
                    if self._orphans:
                        self._adopt_orphans()
                    if keep_place or not self._queue:
                        entry = self._take()
                if entry is None:
                    waited = True
                    entry = self._wait(began, timeout, first=keep_place)
                if entry in self._entries.connecting:
                    ready = self._connect(entry, deadline, timeout)
                else:
                    ready = self._usable(entry, self._clock(), deadline)
                if ready:
                    break
                entry, keep_place = None, True
        except BaseException as error:
            # Waits in vain count, too: of callers killed, refused, or failed with the connect.
            if waited or isinstance(error, PoolTimeout):
                self._observe(metrics.WAIT_SECONDS, self._clock() - began)
            raise
        now = entry.leased_at = self._clock()
        self.count(ACQUIRED)
        if waited:
            self.count(metrics.WAITED)
            self._observe(metrics.WAIT_SECONDS, now - began)
        return entry.conn

    def _take(self) -> Entry[C] | None:
        """Returns an idle connection or a reserved entry; None if the caller has to wait.

        :raises Exception: the last connect error, while backing off with nothing to wait for.
        """
        if self._idle:
            return self._entries.lease_idle(self._clock())
        if self._may_connect():
            return self._entries.reserve()
        error = self._backoff.last_error
        if error not in (None, CONNECT_TIMED_OUT) and not self._entries.busy:
            raise copy_error(error)
        return None

    def _may_connect(self) -> bool:
        entries = self._entries
        return len(entries) < self.cap and self._backoff.allows(len(entries.connecting))

    def _wait(self, began: float, timeout: float, *, first: bool) -> Entry[C]:
        """Queue, and return the entry that is handed over."""
        waiter: Waiter[C] = Waiter(began, timeout)
        now = self._clock()
        overload = self._overload
        if overload is not None:
            if not self._queue:
                overload.begin(now, out=self._backoff.failures > 0)
            if not first:  # one who has had a turn already is not refused
                waiter.entered = overload.enter(now, self.timeout)
        self._waiters.enter(waiter, first=first)
        for listener in self._listeners:
            listener.queued()
        try:
            return self._waiters.park(waiter, began + timeout - now, self._expired)
        except BaseException:
            # Refused, or killed. If killed, an entry handed over meanwhile goes on to the next.
            entry = waiter.answer
            if isinstance(entry, Entry) and entry.conn_id in self._leased:  # not so in a child
                self._put_back(entry, self._condition(entry.conn), self._clock())
            raise

    def _expired(self, waiter: Waiter[C]) -> PoolTimeout:
        return self._timed_out(waiter.timeout)

    def _timed_out(
        self, seconds: float, *, state: str | None = None, shed: bool = False
    ) -> PoolTimeout:
        self.count(metrics.TIMEOUTS)
        entries = self._entries
        return PoolTimeout(
            self.name,
            seconds,
            in_use=len(entries.leased),
            idle=len(entries.idle),
            connecting=len(entries.connecting),
            closing=len(entries.resetting) + len(entries.closing),
            waiting=len(self._queue),
            cap=self.cap,
            last_error=self._backoff.last_error,
            state=self.describe() if state is None else state,
            shed=shed,
        )

    def _usable(self, entry: Entry[C], now: float, deadline: float) -> bool:
        """Whether a leased connection can be handed out; if not, it is closed."""
        if now >= entry.expires:
            self._discard(entry, "age")
            return False
        if not self._check(entry.conn):
            self._discard(entry, "dead")
            return False
        if now - entry.idle_since >= self._ping_after:
            return self._answers(entry, min(PING_TIMEOUT_SECONDS, deadline - now))
        return True

    def _answers(self, entry: Entry[C], seconds: float) -> bool:
        """Whether the server answers a ping in time; if not, the connection is closed."""
        limit = gevent.Timeout(max(0.0, seconds))
        try:
            with limit:
                self._ping(entry.conn)
        except BaseException as error:
            dead = error is limit or isinstance(error, Exception)
            self._discard(entry, "dead" if dead else "killed")
            if not dead:
                raise
            # Those that have been silent for as long are dead too: one wait is enough.
            now = self._clock()
            self._retire_idle("dead", lambda other: now - other.idle_since >= self._ping_after)
            return False
        return entry.conn_id not in self._inherited  # forked meanwhile

    # --- Connecting ----------------------------------------------------------------------------

    def _connect(self, entry: Entry[C], deadline: float, timeout: float) -> bool:
        """Open a connection into a reserved entry. Returns False if that failed, but a connection
        may still come back.

        :param timeout: the caller's whole timeout, of which a part may be spent.
        """
        began = self._clock()
        limit = gevent.Timeout(max(0.0, deadline - began))
        try:
            with limit:
                conn = self._open()
        except gevent.Timeout as error:
            # Half of the timeout decides who is at fault. A caller that came here early left the
            # server enough time: it does not answer, and without a back-off each waiter would try
            # with the time it has left, for which servers ban hosts. One that came late proves
            # nothing, unless the server fails anyway.
            enough = self._clock() - began > timeout / 2
            if error is limit and (enough or self._backoff.failures):
                self._connect_failed(CONNECT_TIMED_OUT)
            self._cancel(entry)
            if error is not limit:
                raise
            if entry in self._connecting_for_queue:
                return False
            raise self._timed_out(timeout) from None
        except Exception as error:
            # A queued caller may still get a connection that comes back. If none can, all get the
            # error, each its own copy.
            self._entries.cancel(entry)
            self._connect_failed(error)
            if len(self._entries):
                return False
            while self._queue:
                self._waiters.answer_head(copy_error(error))
            raise
        except BaseException:
            self._cancel(entry)
            raise
        if entry not in self._entries.connecting:
            self._inherit(conn)  # forked meanwhile: it is the parent's
            return False
        self.count(metrics.OPENED)
        self._observe(metrics.CREATE_SECONDS, self._clock() - began)
        self._opened(entry, conn)
        return True

    def _opened(self, entry: Entry[C], conn: C) -> None:
        age = self._max_age(conn) if callable(self._max_age) else self._max_age
        now = self._clock()
        if age is not None:
            entry.expires = now + age * (1 - AGE_JITTER * random.random())
        entry.idle_since = now
        self._entries.opened(entry, conn, now)
        for listener in self._listeners:
            listener.connected()
        if self._backoff.succeeded():
            self._stop_retry()
            self._serve_waiters()  # only one was let through to try

    def _connect_failed(self, error: Exception) -> None:
        self.count(metrics.CONNECT_ERRORS)
        for listener in self._listeners:
            listener.connect_failed(error)
        self._backoff.failed(error)
        if self._overload is not None:
            self._overload.connect_failed(self._clock(), self.timeout)
        self._stop_retry()
        self._retry_timer = self._timer(self._backoff.seconds_left, self._retry)

    def _retry(self) -> None:
        # The loop's clock and ours may disagree by a little.
        left = self._backoff.seconds_left
        self._retry_timer = self._timer(left, self._retry) if left else None
        self._serve_waiters()

    def _stop_retry(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.stop()
            self._retry_timer = None

    def _cancel(self, entry: Entry[C]) -> None:
        """Undo a reservation."""
        self._entries.cancel(entry)
        self._serve_waiters()

    def _serve_waiters(self) -> None:
        """Open connections for the queue while there is room under the cap.

        Greenlets of the pool connect, not the waiters: when a long queue times out, its head has
        only about the gap between two arrivals left. If connecting takes longer than that, every
        request would fail although the server is healthy.
        """
        while len(self._queue) > len(self._connecting_for_queue) and self._may_connect():
            entry = self._entries.reserve()
            self._connecting_for_queue.add(entry)
            # Raw: a Greenlet could be killed before it ran, and the entry would be lost.
            gevent.spawn_raw(self._open_for_queue, entry)

    def _open_for_queue(self, entry: Entry[C]) -> None:
        # The waiters have got the error, or the next attempt follows.
        with contextlib.suppress(Exception, gevent.Timeout):
            try:
                if self._connect(entry, self._clock() + self.timeout, self.timeout):
                    self._put_back(entry, None, self._clock())
            finally:
                self._connecting_for_queue.discard(entry)
                self._serve_waiters()

    # --- Giving back ---------------------------------------------------------------------------

    def _clean(self, entry: Entry[C]) -> str | None:
        """Reset a dirty connection. Returns why it must be closed all the same, or None."""
        self._entries.begin_reset(entry)
        failed = None
        try:
            self._reset(entry.conn)
            self.count(metrics.RESET)
        except Exception:
            failed = "reset failed"
        except BaseException:
            self._discard(entry, "killed")
            raise
        if entry.conn_id in self._inherited:
            return None
        self._entries.end_reset(entry)
        return failed or self._condition(entry.conn)

    def _put_back(self, entry: Entry[C], fault: str | None, now: float) -> None:
        """Hand a leased entry to the first waiter, keep it idle, or close it. Does not switch."""
        if fault is not None or now >= entry.expires:
            if fault == FAILED_OVER and now < entry.expires:
                self._retire_all(now)
            self._discard(entry, fault or "age")
        elif self._queue:
            entry.idle_since = entry.leased_at = now
            overload = self._overload
            late = 0 if overload is None else overload.late(self._queue, now, self.timeout)
            if late:
                self._shed_head(late, entry, now)
            else:
                self._waiters.answer_head(entry)
        elif len(self._idle) >= self._keep_idle:  # none, once the pool drains or is closed
            kept = "surplus" if self._keep_idle else "drain"
            self._discard(entry, "closed" if self._closed else kept)
        else:
            # LEASED to IDLE, here and nowhere else. Not a method of Entries: this is the other half
            # of the fast path, where the call would cost 4 %.
            del self._leased[entry.conn_id]
            entry.idle_since = now
            self._idle.append(entry)
            if entry.expires < self._next_expiry:
                self._retire_at(entry.expires, now)

    def _shed_head(self, late: int, entry: Entry[C], now: float) -> None:
        """Refuse so many waiters, and hand over to the first behind them."""
        state = self.describe()  # once: they may be thousands

        def refuse(waiter: Waiter[C]) -> PoolTimeout:
            self.count(metrics.SHED)
            return self._timed_out(now - waiter.since, state=state, shed=True)

        self._waiters.answer_behind(late, entry, refuse)

    def _adopt_orphans(self) -> None:
        """In the hub, mostly, so nothing here may switch: dirty connections are closed."""
        while self._orphans:
            conn = self._orphans.popleft()
            entry = self._leased.get(id(conn))
            if entry is None:
                continue
            now = self._clock()
            self._observe(HELD_SECONDS, now - entry.leased_at)
            fault = self._condition(conn)
            self._put_back(entry, "abandoned" if fault == DIRTY else fault, now)


def copy_error(error: Exception) -> Exception:
    """Returns a copy for another greenlet: one object raised in many mixes their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:
        twin = error
    return twin.with_traceback(None)
