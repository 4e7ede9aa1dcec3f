"""How connections come back: cleaned, handed to the first waiter, kept idle, or closed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pooled_serve.errors import PoolClientGone, PoolOverloaded, PoolTimeout
from pooled_serve.pool import metrics
from pooled_serve.pool.base import DIRTY, FAILED_OVER
from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.metrics import HELD_SECONDS
from pooled_serve.pool.sharing import SharingPool
from pooled_serve.pool.silence import LOST
from pooled_serve.pool.waiters import Waiter


class ReturningPool(SharingPool[C]):
    """The part of a :class:`ConnectionPool` that takes connections back."""

    __slots__ = ()

    def _clean(self, entry: Entry[C]) -> str | None:
        """Reset a dirty connection. Returns why it must be closed all the same, or None."""
        self._entries.begin_reset(entry)
        failed = None
        try:
            self._reset(entry.conn)
            self.count(metrics.RESET)
        except Exception:
            lost = self._condition(entry.conn) == LOST
            failed = LOST if lost else "reset failed"
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
                self._retire_all(now, FAILED_OVER)
            self._discard(entry, fault or entry.retired_for)
        elif self._hungry[0] and self._lend([entry]):
            pass  # closed, for another worker
        elif self._queue:
            entry.idle_since = entry.leased_at = now
            self._outage.since = None  # this one works
            overload = self._overload
            late = 0 if overload is None else overload.late(self._queue, now, self.timeout)
            if late:
                self._shed_head(late, entry, now)
            else:
                self._waiters.answer_head(entry)
            if self._tokens is not None and self._tokens.asks(self):
                self._ask_for_tokens()
        elif len(self._idle) >= self._keep_idle:  # none, once the pool drains or is closed
            kept = "drain" if self._drained else "surplus"
            self._discard(entry, "closed" if self._closed else kept)
        else:
            # LEASED to IDLE, here and nowhere else. Not a method of Entries: this is the other half
            # of the fast path, where the call would cost 4 %.
            del self._leased[entry.conn_id]
            entry.idle_since = now
            self._idle.append(entry)
            self._outage.since = None
            if entry.expires < self._next_expiry:
                self._retire_at(entry.expires, now)

    def _shed_head(self, late: int, entry: Entry[C], now: float) -> None:
        """Refuse so many waiters, and hand over to the first behind them."""
        state = self.describe()  # once: there may be thousands

        def refuse(waiter: Waiter[C]) -> PoolTimeout:
            self.count(metrics.SHED)
            return self._timed_out(now - waiter.since, PoolOverloaded, state)

        self._waiters.answer_behind(late, entry, refuse)

    def waiting_greenlets(self) -> list[Any]:
        """Returns the greenlets in the queue."""
        return [waiter.greenlet for waiter in self._queue]

    def refuse_gone(self, greenlets: Collection[Any]) -> None:
        """Take these greenlets out of the queue: the clients of their requests have hung up."""
        gone = [waiter for waiter in self._queue if waiter.greenlet in greenlets]
        state = self.describe() if gone else ""  # once: there may be thousands
        now = self._clock()
        for waiter in gone:
            error = self._refusal(now - waiter.since, PoolClientGone, state)
            del self._queue[waiter]
            waiter.wake(error)
            self.client_gone(f"it had waited {now - waiter.since:.1f}s for a connection")

    def client_gone(self, what: str) -> None:
        """Count a request that is ended because its client has hung up.

        :param what: how far the request had come, in words.
        """
        self.count(metrics.CLIENT_GONE)
        for listener in self._listeners:
            listener.client_gone(what)

    def _adopt_orphans(self) -> None:
        """Take back connections whose users have gone without giving them back. This mostly runs in
        the hub, where nothing may switch: dirty connections are closed instead of cleaned."""
        while self._orphans:
            conn = self._orphans.popleft()
            entry = self._leased.get(id(conn))
            if entry is None:
                continue
            now = self._clock()
            held = now - entry.leased_at
            self._observe(HELD_SECONDS, held)
            if self._account is not None:
                self._account.returned(conn, held)
            fault = self._condition(conn)
            self._put_back(entry, "abandoned" if fault == DIRTY else fault, now)

    def _timed_out(
        self, seconds: float, kind: type[PoolTimeout] = PoolTimeout, state: str | None = None
    ) -> PoolTimeout:
        """Count a refusal, and return its error.

        :param seconds: those that the error names; their meaning depends on its kind.
        :param state: the pool's in words, for those who refuse many at once; None to find it out.
        """
        self.count(metrics.TIMEOUTS)
        return self._refusal(seconds, kind, state)

    def _refusal(self, seconds: float, kind: type[PoolTimeout], state: str | None) -> PoolTimeout:
        """Returns the error of a caller who gets no connection; see :meth:`_timed_out`."""
        entries = self._entries
        return kind(
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
        )
