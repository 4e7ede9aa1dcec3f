"""The pool's policy: who gets a connection, when one is opened, and when it is closed.

The rules:

* Leased + idle + connecting + resetting + closing never exceed ``max_outstanding``. (The server may
  see one more for a moment: see connecting.py, Abandoned work.)
* Waiters are served first come, first served, by direct hand-off (waiters.py); under overload,
  late ones are refused (overload.py), and in a long outage all (outage.py).
* Idle connections are taken last in, first out, so that the surplus of a spike ages and retires.
* An entry is reserved before ``connect`` may switch greenlets, and given back whatever happens. A
  caller that need not queue opens the connection itself; for queued callers, a greenlet owned by
  the pool does.
* One deadline covers waiting, checking and connecting.

Why this holds without locks: all state belongs to one OS thread, and greenlets are only switched
in a wait and in the driver's callables that do I/O (``connect``, ``ping``, ``reset``, ``finish``,
``part``, ``close``). At each such place the greenlet can be killed, so each is inside a handler for
BaseException that passes the entry on, or in a greenlet that nobody else knows.
Signal handlers and finalizers can run between any two bytecodes; they never touch the state, they
call :meth:`ConnectionPool.reclaim`, which enqueues.

Policy is here, the driver behind callables, as HikariCP's HikariPool leaves JDBC to its PoolBase.
The PoolBase here is something else: parameters, state and numbers, like psycopg_pool's BasePool.
"""

from __future__ import annotations

from bisect import bisect_left

import gevent

from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import metrics
from pooled_serve.pool.base import DIRTY
from pooled_serve.pool.connecting import ConnectingPool, copy_error
from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.lease import Lease
from pooled_serve.pool.metrics import ACQUIRED, BUCKET_BOUNDS_SECONDS, HELD_BUCKETS, HELD_SECONDS
from pooled_serve.pool.waiters import Waiter

PING_TIMEOUT_SECONDS = 2.0
"""The time that a ping may take: a dead link must leave enough to connect anew."""


class ConnectionPool(ConnectingPool[C]):
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
        :raises PoolTimeout: no connection became available in time. PoolOverloaded and PoolOutage
            are raised before that.
        :raises PoolClosed: the pool was closed.
        :raises Exception: whatever ``connect`` raised, if it is no outage, and no connection is in
            use that could come back instead.
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
        if self._account is not None:
            self._account.returned(conn, held)
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

    def ping(self) -> bool:
        """Ask the server something on an idle connection; if there is none, see :meth:`probe`. That
        is no use of the pool, and not counted as one. Returns whether the server has answered."""
        if not self._idle:
            self.probe()
            return False
        entry = self._entries.lease_idle(self._clock())
        if not self._check(entry.conn):
            self._discard(entry, "dead")
            return False
        if not self._answers(entry, PING_TIMEOUT_SECONDS):
            return False
        self._put_back(entry, self._condition(entry.conn), self._clock())
        return True

    def drop_dead(self) -> None:
        """Close idle connections that the server has closed; a pool that has lost all it had by
        that finds out whether the server is still there, see :meth:`probe`. Called now and then:
        otherwise a pool that nobody uses would hear of it from its next user."""
        if self._emptied and not self._entries.closing:
            self._emptied = False
            if not len(self._entries):
                self.probe()
        dead = [entry for entry in self._idle if not self._check(entry.conn)]
        for entry in dead:
            self._discard(entry, "dead")
        # Of an administrator who ends some, perhaps to make room, nothing follows.
        if dead and not self._idle and not self._leased:
            self._emptied = True

    def inquire(self, seconds: float) -> bool | None:
        """Find out whether the server answers, while statements of others get no answer: by a ping
        on an idle connection, else by opening one, which is closed at once.

        Returns whether it has answered within so many seconds; None if it could not be asked.

        :raises Exception: what ``connect`` raised, which may be an answer, too.
        """
        began = self._clock()
        if self._idle:
            entry = self._entries.lease_idle(began)
            if not self._check(entry.conn):
                self._discard(entry, "dead")
            elif self._answers(entry, min(PING_TIMEOUT_SECONDS, seconds)):
                self._put_back(entry, self._condition(entry.conn), self._clock())
                return True
        # A link that was idle for long may be lost, and the server well.
        left = began + seconds - self._clock()
        return self._inquire_apart(left) if left > 0 else False

    # --- Taking --------------------------------------------------------------------------------

    def _acquire(self, began: float, timeout: float, entry: Entry[C] | None) -> C:
        """The slow path of :meth:`acquire`: wait, check and connect until there is a connection.

        :param entry: leased already, if it was this caller's turn.
        """
        deadline = began + timeout
        waited = False
        ahead = 0
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
                    waited, ahead = True, len(self._queue)
                    entry = self._wait(began, timeout, first=keep_place)
                if entry in self._entries.connecting:
                    ready = self._connect_here(entry, deadline, timeout)
                else:
                    ready = self._usable(entry, self._clock(), deadline)
                if ready:
                    break
                entry, keep_place = None, True
        except BaseException as error:
            # Waits in vain count, too: of callers killed, refused, or failed with the connect.
            if waited or isinstance(error, PoolTimeout):
                self._observe_wait(self._clock() - began, ahead, error)
            raise
        now = entry.leased_at = self._clock()
        self.count(ACQUIRED)
        if waited:
            self.count(metrics.WAITED)
            self._observe_wait(now - began, ahead, None)
        return entry.conn

    def _observe_wait(self, seconds: float, ahead: int, error: BaseException | None) -> None:
        self._observe(metrics.WAIT_SECONDS, seconds)
        if seconds > self._longest_waits[0]:
            self._longest_waits[0] = seconds
        if self._account is not None:
            self._account.waited(seconds, served=error is None)
        for listener in self._listeners:
            listener.waited(seconds, ahead, error)

    def _connect_here(self, entry: Entry[C], deadline: float, timeout: float) -> bool:
        """See :meth:`_connect`; announces the attempt."""
        began = self._clock()
        try:
            ready = self._connect(entry, deadline, timeout)
        except BaseException as error:
            self._tried(began, error)
            raise
        self._tried(began, None if ready else self._backoff.last_error)
        return ready

    def _tried(self, began: float, error: BaseException | None) -> None:
        for listener in self._listeners:
            listener.tried(self._clock() - began, error)

    def _take(self) -> Entry[C] | None:
        """Returns an idle connection or a reserved entry; None if the caller has to wait.

        :raises PoolOutage: nobody has answered for long.
        :raises Exception: the last connect error, while backing off with nothing to wait for.
        """
        if self._idle:
            return self._entries.lease_idle(self._clock())
        if self._outage.since is not None and (refused := self._refused_in_outage()):
            self.probe()
            raise refused
        if entry := self._reserve():
            return entry
        error = self._backoff.last_error
        hopeless = self._backoff.seconds_left and not self._entries.busy
        if error is not None and self._outage.since is None and hopeless:
            if not self._means_outage(error):
                raise copy_error(error)
            # While there was a connection to wait for, it was no outage. Now there is none.
            self._outage_found(self._clock())
        return None

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
        self._ask_for_tokens()
        if self._outage.since is not None:
            self._held(waiter)
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

    def _usable(self, entry: Entry[C], now: float, deadline: float) -> bool:
        """Whether a leased connection can be handed out; if not, it is closed."""
        if now >= entry.expires:
            self._discard(entry, entry.retired_for)
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
            if error is limit:
                self.count(metrics.UNANSWERED)
            self._discard(entry, "dead" if dead else "killed")
            if not dead:
                raise
            # Those that have been silent for as long are dead too: one wait is enough.
            now = self._clock()
            self._retire_idle("dead", lambda other: now - other.idle_since >= self._ping_after)
            return False
        return entry.conn_id not in self._inherited  # forked meanwhile
