"""How connections end: by age, as surplus, dead, or because the pool itself ends."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import gevent

from pooled_serve.errors import PoolClosed
from pooled_serve.pool.backoff import LONGEST_PAUSE_SECONDS
from pooled_serve.pool.base import PoolBase
from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.metrics import CLOSED, RETRIED
from pooled_serve.pool.tokens import Turn

CLOSE_TIMEOUT_SECONDS = 5.0
"""The time that a driver's ``close()`` may take before its entry becomes free regardless."""

LAST_FINISH_SECONDS = 2.0
"""The time that the server may take to end what it does for connections that are in use when the
process ends."""


class RetiringPool(PoolBase[C]):
    """The part of a :class:`ConnectionPool` that closes connections."""

    __slots__ = ()

    def _serve_waiters(self, turn: Turn = Turn.NEW) -> None:
        """Give free entries to the queue; called when there may be one."""
        raise NotImplementedError

    def _replace_unfinished(self) -> None:
        """Replace the connections that the server is still at work for."""
        raise NotImplementedError

    # --- The pool ends -------------------------------------------------------------------------

    def drain(self) -> None:
        """Keep no connection idle from now on. Requests in flight and queued are still served."""
        self._drained = True
        self._set_keep_idle()
        self._retire_idle("drain")
        if self._age_timer is not None:  # it would keep a dropped pool alive
            self._age_timer.stop()
            self._age_timer, self._next_expiry = None, math.inf

    def resume(self) -> None:
        """Keep connections idle again."""
        self._drained = False
        self._set_keep_idle()

    def close(self, timeout: float = CLOSE_TIMEOUT_SECONDS, *, in_use: bool = False) -> None:
        """Close idle connections, refuse callers now and later, wait for closings under way.

        Connections in use are closed as they come back.

        :param timeout: seconds to wait for connections that are being closed.
        :param in_use: close connections in use as well, at last: the process ends, and they never
            come back.
        """
        self._closed = True
        for timer in (self._retry_timer, self._age_timer, self._outage_timer):
            if timer is not None:
                timer.stop()
        while self._queue:
            self._waiters.answer_head(PoolClosed(f"pool {self.name!r} is closed"))
        if self._tokens is not None:
            self._tokens.ask(self, 0.0, 0)
        unfinished = [*self._to_replace]
        self._to_replace.clear()
        for entry in unfinished:
            self._entries.end_close(entry, keep_trace=True)
        self.drain()
        self._await_closings(timeout)
        if in_use:
            leased = [*self._leased.values()]  # one may come back while another is closed
            for entry in leased:
                with contextlib.suppress(Exception):
                    entry.conn.close()
            self._end_all([*leased, *self._to_replace, *unfinished])
        self._to_replace.clear()

    def _end_all(self, entries: list[Entry[C]]) -> None:
        """End what the server does for these closed connections, as far as there is time."""
        conns = [entry.conn for entry in entries]
        if not conns or self._backoff.failures:  # then nobody would answer
            return
        right = object()
        if self._tokens is not None and not self._tokens.begin_replacing(right):
            return  # the next owners of the tokens will
        try:
            with contextlib.suppress(Exception), gevent.Timeout(LAST_FINISH_SECONDS, False):
                while self._inquiring:  # two would be beyond the cap
                    gevent.sleep(0.001)
                another = self._open()
                try:
                    for _ in self._finish(another, conns):
                        pass
                finally:
                    another.close()
        finally:
            if self._tokens is not None:
                self._tokens.end_replacing(right)

    def renew(self) -> None:
        """Hand out no connection again that was opened before: a user found that the server has
        gone. At most once a second; a connection alone may be lost, too."""
        self._retire_all(self._clock(), "lost")

    def retried(self, error: Exception) -> None:
        """Count a statement that ran again on another connection, after this error."""
        self.count(RETRIED)
        for listener in self._listeners:
            listener.retried(error)

    def clear(self, timeout: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Close idle connections, and wait until they are closed; the pool goes on.

        :param timeout: seconds to wait at most.
        """
        self._retire_idle("cleared")
        self._await_closings(timeout)

    def _await_closings(self, timeout: float) -> None:
        deadline = self._clock() + timeout
        entries = self._entries
        while (
            entries.resetting or entries.closing or self._replacing
        ) and self._clock() < deadline:
            gevent.sleep(0.001)

    # --- Connections end -------------------------------------------------------------------------

    def _discard(self, entry: Entry[C], reason: str, *, replace: bool = True) -> None:
        """Close a connection in a greenlet of its own; then its entry is free, or replaced if the
        server is still at work for it.

        In its own greenlet because some callers run in the hub, and because a close that blocks
        must not hold up the caller, nor a kill of the caller prevent the close. The entry
        counts until then, so that the server never sees more connections than the cap.
        """
        if entry.conn_id in self._inherited:
            return
        self._begin_discard(entry, reason)
        if self._loopless and gevent.getcurrent() is not self._hub:
            self._close(entry, replace=replace)  # there may be no other time
            return
        # Raw: a Greenlet could be killed before it ran, and the entry would be lost.
        gevent.spawn_raw(self._close, entry, replace=replace)

    def _begin_discard(self, entry: Entry[C], reason: str) -> None:
        self._entries.begin_close(entry)
        self.count(CLOSED.get(reason, CLOSED["other"]))

    def _close(self, entry: Entry[C], *, replace: bool, keep_trace: bool = False) -> None:
        """
        :param keep_trace: of the connection that this one was to end at the server.
        """
        try:
            # An error is of no use to anybody: the connection is gone either way.
            with contextlib.suppress(Exception), gevent.Timeout(CLOSE_TIMEOUT_SECONDS, False):
                if entry.token is not None:
                    self._part(entry.conn)
            with contextlib.suppress(Exception), gevent.Timeout(CLOSE_TIMEOUT_SECONDS, False):
                entry.conn.close()
        finally:
            unfinished = replace and self._unfinished(entry.conn)
            if unfinished:
                entry.idle_since = self._clock()
                self._to_replace.append(entry)
            if unfinished and not self._closed:
                self._replace_unfinished()
            else:
                self._entries.end_close(entry, keep_trace=keep_trace or unfinished)
                self._serve_waiters()

    def _retire_aged(self) -> None:
        now = self._clock()
        self._retire_idle("age", lambda entry: entry.expires <= now)
        self._next_expiry = math.inf
        soonest = min((entry.expires for entry in self._idle), default=math.inf)
        if soonest < math.inf:
            self._retire_at(soonest, now)

    def _retire_at(self, expiry: float, now: float) -> None:
        """Look for aged idle connections then. One timer, set again only for a sooner date."""
        if self._age_timer is not None:
            self._age_timer.stop()
        self._next_expiry = expiry
        self._age_timer = self._timer(expiry - now, self._retire_aged)

    def _retire_all(self, now: float, reason: str) -> None:
        """Idle ones go now, the others when they come back."""
        # Not for every error: a server may be read-only for long, with nowhere else to go.
        if now - self._renewed_at >= LONGEST_PAUSE_SECONDS:
            self._renewed_at = now
            for entry in self._entries.open():
                if entry.expires > now:
                    entry.expires, entry.retired_for = now, reason
            self._retire_idle(reason)

    def _retire_idle(
        self, reason: str, which: Callable[[Entry[C]], bool] = lambda entry: True
    ) -> None:
        for entry in [entry for entry in self._idle if which(entry)]:
            self._discard(entry, reason)
