"""How connections begin: attempts, the pauses between them, and what an outage means to waiters."""

from __future__ import annotations

import contextlib
import copy
import random

import gevent

from pooled_serve.errors import PoolOutage, PoolTimeout, causes
from pooled_serve.pool import metrics
from pooled_serve.pool.asked import Asked
from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.retiring import CLOSE_TIMEOUT_SECONDS
from pooled_serve.pool.returning import ReturningPool
from pooled_serve.pool.tokens import LOOK_SECONDS, Turn

AGE_JITTER = 0.1
"""Connections opened together must not retire together: up to this share is cut from their age."""

FINISH_TIMEOUT_SECONDS = 2.0
"""After a connection was closed in the middle of a command: for so long the server may take to let
go of it. Then its place is given on, and the server may have one more for a while."""

SHORTEST_FINISH_SECONDS = 0.2
"""What each gets at least, if there are many: enough to send the order."""

CONNECT_TIMED_OUT = TimeoutError("the server did not answer")
"""Recorded for an attempt that took all its time. Never raised: its caller gets a PoolTimeout, and
others may still have the time for an attempt of their own."""


class ConnectingPool(ReturningPool[C]):
    """The part of a :class:`ConnectionPool` that opens connections."""

    __slots__ = ()

    def _connect(self, entry: Entry[C], deadline: float, timeout: float) -> bool:
        """Open a connection into a reserved entry. Returns False if that failed, but a connection
        may still come back.

        :param timeout: the caller's whole timeout, of which a part may be spent.
        """
        began = entry.leased_at = self._clock()
        self._outage.tried(began, self.timeout)
        limit = gevent.Timeout(max(0.0, deadline - began))
        asked = Asked(self._clock)
        try:
            with limit, asked:
                conn = self._open()
        except gevent.Timeout as error:
            # Half of the timeout decides who is at fault. A caller that came here early left the
            # server enough time: it does not answer, and without a back-off each waiter would try
            # with the time it has left, for which servers ban hosts. One that came late proves
            # nothing, unless the server fails anyway; nor does a worker that did not listen.
            enough = asked.seconds > timeout / 2
            if error is limit and (enough or self._backoff.failures):
                self._connect_failed(CONNECT_TIMED_OUT, began)
            self._cancel(entry)
            if error is not limit:
                raise
            if entry in self._connecting_for_queue:
                return False
            raise self._timed_out(timeout) from None
        except Exception as error:
            # A queued caller may still get a connection that comes back, or wait for the server to.
            # If there is no hope of either, all get the error, each its own copy.
            self._entries.cancel(entry)
            # The driver's own timeout may be over before the worker has read the answer.
            listened = asked.listened or not got_no_answer(error)
            self._connect_failed(error, began, blame=listened)
            if len(self._entries) or self._outage.since is not None:
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
        # A burst of some milliseconds, which the gauges do not show, needs these connections, too.
        self._most_in_use[0] = max(self._most_in_use[0], len(self._leased))
        if not entry.token_is_used:
            self._write_trace(entry)
        for listener in self._listeners:
            listener.connected()
        self._let_in()

    def _let_in(self) -> None:
        """The server has let a connection in: there is no outage any more."""
        self.row[metrics.CONNECT_ERROR + 2] = self._clock()
        self._outage.end()
        if self._backoff.succeeded():
            self._stop_retry()
            self._serve_waiters()  # only one was let through to try

    def _connect_failed(self, error: Exception, began: float, *, blame: bool = True) -> None:
        self.count(metrics.CONNECT_ERRORS)
        if blame and got_no_answer(error):
            self.count(metrics.UNANSWERED)
        for listener in self._listeners if blame else ():
            listener.connect_failed(error)
        self._backoff.failed(error)
        now = self._clock()
        if self._overload is not None:
            self._overload.connect_failed(now, self.timeout)
        if not self._means_outage(error):
            self._outage.end()
        else:
            self._outage_found(began)
        self._stop_retry()
        if not self._closed:  # a timer would keep it alive
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

    def _serve_waiters(self, turn: Turn = Turn.NEW) -> None:
        """Open connections for the queue while there is room under the cap.

        Greenlets of the pool connect, not the waiters: when a long queue times out, its head has
        only about the gap between two arrivals left. If connecting takes longer than that, every
        request would fail although the server is healthy.
        """
        while len(self._queue) > len(self._connecting_for_queue):
            entry = self._reserve(turn)
            if entry is None:
                break
            self._open_in_background(entry)
        self._ask_for_tokens()

    def _open_in_background(self, entry: Entry[C]) -> None:
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

    # --- Abandoned work ------------------------------------------------------------------------

    def _replace_unfinished(self) -> None:
        """Replace the connections that the server is still at work for."""
        if self._to_replace and not self._replacing:
            self._replacing = True
            # Raw: a Greenlet could be killed, and the entries would be lost.
            gevent.spawn_raw(self._replace_all)

    def _replace_all(self) -> None:
        queue = self._to_replace
        try:
            while queue and queue is self._to_replace:
                if self._may_have_one_more():
                    self._replace(queue.popleft())
        finally:
            if queue is self._to_replace:  # not so in a forked child
                self._replacing = False
                self._end_one_more(self)

    def _end_one_more(self, who: object) -> None:
        if self._tokens is None:
            self._asked[0] = 0.0
        else:
            self._tokens.end_replacing(who)

    def _may_have_one_more(self) -> bool:
        """Where the host has a bound, one of its workers at a time."""
        if not self._inquiring and (self._tokens is None or self._tokens.begin_replacing(self)):
            return True
        gevent.sleep(LOOK_SECONDS / 10)
        now = self._clock()
        for entry in self._to_replace:
            entry.idle_since = now  # the server's time begins when it is told
        return False

    def _replace(self, closed: Entry[C]) -> None:
        """Open a connection in the place of a closed one. It ends what the server does for that,
        and for all others that were closed since. So there is one beyond the cap, never more.
        """
        if closed not in self._entries.closing:
            return  # forked meanwhile
        entry = self._entries.replace(closed)
        # Else the server has other worries. One of a dead process may be all that there is to try.
        if self._backoff.failures and (self._tokens is None or self._backoff.seconds_left):
            self._cancel(entry)
            return
        self._connecting_for_queue.add(entry)
        connected = False
        # Attempts in vain that follow each other are one question.
        self._asked[0] = self._asked[0] or self._clock()
        with contextlib.suppress(Exception, gevent.Timeout):
            deadline = closed.idle_since + FINISH_TIMEOUT_SECONDS
            connected = self._connect(entry, deadline, self.timeout)
        self._connecting_for_queue.discard(entry)
        if connected:
            self._asked[0] = 0.0
        if not connected:
            return
        conn, batch = entry.conn, [closed]
        fault = None
        while batch and fault is None:
            batch += self._to_replace
            self._to_replace.clear()
            batch = self._finish_batch(conn, batch)
            if entry.conn_id not in self._leased:
                return  # forked meanwhile
            fault = self._condition(conn)
            if not batch and self._to_replace:
                batch = [self._to_replace.popleft()]
        if closed.unended:
            # At once: until it is closed, there is one more than the host may have.
            self._begin_discard(entry, fault or "abandoned")
            self._close(entry, replace=False, keep_trace=True)
            return
        self._write_trace(entry)
        if fault is None:
            self._put_back(entry, None, self._clock())
            return
        # Lost, or interrupted; to replace it in its turn could go on for ever.
        self._discard(entry, fault, replace=False)
        for each in batch:
            if each is closed:
                self._finished(each, finished=False)
            else:
                self._to_replace.append(each)

    def _write_trace(self, entry: Entry[C]) -> None:
        """Let the next owner of the token know which connection this one has."""
        if self._tokens is not None and entry.token is not None:
            entry.token_is_used = True
            self._tokens.opened(entry.token, self._trace(entry.conn))

    def _finish_batch(self, conn: C, batch: list[Entry[C]]) -> list[Entry[C]]:
        """End what the server does for closed connections, all at once, and give on the place of
        each as soon as the server has let go of it, or its time is up.

        Returns those that are left when others have come, or when the time of some is up.
        """
        left = {entry.conn_id: entry for entry in batch}
        deadline = min(entry.idle_since for entry in batch) + FINISH_TIMEOUT_SECONDS
        limit = gevent.Timeout(max(deadline - self._clock(), SHORTEST_FINISH_SECONDS))
        try:
            with limit:
                for found in self._finish(conn, [entry.conn for entry in batch]):
                    if found is not None:
                        closed, finished = found
                        self._finished(left.pop(id(closed)), finished=finished)
                    elif self._to_replace:
                        return list(left.values())
        except gevent.Timeout:
            now = max(deadline, self._clock())
            for entry in batch:
                if entry.conn_id in left and entry.idle_since + FINISH_TIMEOUT_SECONDS <= now:
                    self._finished(left.pop(entry.conn_id), finished=False)
            return list(left.values())
        except Exception:
            # The connection is lost.
            for entry in left.values():
                self._finished(entry, finished=None, again=True)
            return []
        for entry in left.values():
            self._finished(entry, finished=None)
        return []

    def _finished(self, entry: Entry[C], *, finished: bool | None, again: bool = False) -> None:
        """Give on the place of a closed connection.

        :param finished: see the parameter ``finish``.
        :param again: where the host has a bound, the next owner of the token shall try it.
        """
        if finished:
            self.count(metrics.KILLED)
        elif finished is not None:
            for listener in self._listeners:
                listener.not_let_go()
        if again and self._tokens is not None:
            entry.unended = self._tokens.try_again(entry.token)
        self._entries.end_close(entry, keep_trace=entry.unended)
        self._serve_waiters()

    # --- Outages -------------------------------------------------------------------------------

    def _inquire_apart(self, seconds: float) -> bool | None:
        """See :meth:`ConnectionPool.inquire`. It may be one connection beyond the cap, but not at
        the same time as that of :meth:`_replace`, or as that of another worker of the host."""
        right = object()
        deadline = self._clock() + seconds
        while not self._may_inquire(right):
            # The extra connection is logging in elsewhere. Its answer tells us as much as our own.
            asked = self._asked[0]  # once: another process may change it at any time
            if self._closed or not asked:
                return None
            if self._clock() >= deadline:
                return False if asked <= deadline - seconds else None
            gevent.sleep(LOOK_SECONDS)
        queue = self._to_replace
        self._inquiring = True
        self._asked[0] = self._clock()
        limit = gevent.Timeout(max(0.0, deadline - self._clock()))
        try:
            with limit:
                conn = self._open()
        except gevent.Timeout as error:
            if error is not limit:
                raise
            self.count(metrics.UNANSWERED)
            return False
        else:
            if queue is not self._to_replace:
                self._inherit(conn)  # forked meanwhile: it is the parent's
                return None
            self._asked[0] = 0.0  # and so while it is closed, which may take seconds
            self._let_in()  # or the next request would be refused, after a line that it is back
            self._close_apart(conn)
            return True
        finally:
            if queue is self._to_replace:  # not so in a forked child
                self._inquiring = False
                self._end_one_more(right)

    def _may_inquire(self, who: object) -> bool:
        if self._closed or self._replacing or self._inquiring:
            return False
        return self._tokens is None or self._tokens.begin_replacing(who)

    def _close_apart(self, conn: C) -> None:
        """Close a connection that was never this pool's."""
        try:
            with contextlib.suppress(Exception), gevent.Timeout(CLOSE_TIMEOUT_SECONDS, False):
                if self._tokens is not None:
                    self._part(conn)
        finally:
            with contextlib.suppress(Exception), gevent.Timeout(CLOSE_TIMEOUT_SECONDS, False):
                conn.close()

    def _means_outage(self, error: Exception) -> bool:
        return error is CONNECT_TIMED_OUT or self._is_outage(error)

    def _outage_found(self, began: float) -> None:
        """Nobody has answered an attempt that began then."""
        if self._outage.failed(began, self._clock()):
            for waiter in self._queue:
                self._held(waiter)
            self._refuse_when_long()
        else:
            self._refuse_waiters()

    def probe(self) -> None:
        """Try to connect in the background, unless the last attempt is too recent, or the pool
        closed or at its cap. The connection becomes idle."""
        if self._closed:
            return
        entry = self._reserve(Turn.LOOK)
        if entry is not None:
            self._open_in_background(entry)
        elif not self._entries.open():
            self._probe_since = self._probe_since or self._clock()
            self._ask_for_tokens()

    def _refused_in_outage(self, state: str | None = None) -> PoolTimeout | None:
        """Returns an error for a caller, if the outage is so long that nobody waits any more."""
        outage, since = self._outage, self._outage.since
        now = self._clock()
        connecting = len(self._entries.connecting) > 0
        leased = self._leased.values()
        if since is None or not outage.is_long(now, self.timeout, leased, connecting=connecting):
            return None
        return self._timed_out(now - since, PoolOutage, state)

    def _refuse_waiters(self) -> None:
        """Refuse all who wait, if the outage has become long."""
        state = self.describe() if self._queue else ""  # once: there may be thousands
        while self._queue and (error := self._refused_in_outage(state)):
            self._waiters.answer_head(error)

    def _refuse_when_long(self) -> None:
        """Refuse all who wait, now or when the outage becomes long."""
        if self._outage_timer is not None:
            self._outage_timer.stop()
            self._outage_timer = None
        since = self._outage.since
        if since is None or self._closed:
            return
        left = since + self.timeout - self._clock()
        if left > 0:
            self._outage_timer = self._timer(left, self._refuse_when_long)
        else:
            self._refuse_waiters()


def got_no_answer(error: BaseException) -> bool:
    """Whether an attempt to connect failed because nothing came back in time: nobody has refused
    it. A driver says so by raising a TimeoutError, or one that such an error has caused, or by
    setting ``unanswered`` on another."""
    return any(
        isinstance(cause, TimeoutError) or getattr(cause, "unanswered", False)
        for cause in causes(error, context=False)
    )


def copy_error(error: Exception) -> Exception:
    """Returns a copy for another greenlet: one object raised in many mixes their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:
        twin = error
    return twin.with_traceback(None)
