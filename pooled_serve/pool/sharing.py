"""When a pool may open a connection, and when it gives one up for another worker.

It may below its own cap, after the pause that follows a failure and, where the host has a bound,
with a token of it; see tokens.py.
"""

from __future__ import annotations

from itertools import islice

from pooled_serve.pool.entry import C, Entry
from pooled_serve.pool.retiring import RetiringPool
from pooled_serve.pool.tokens import Turn

LENT = "lent"
"""Why a connection is closed that is given up for another worker."""


class SharingPool(RetiringPool[C]):
    """The part of a :class:`ConnectionPool` that knows of the other workers."""

    __slots__ = ()

    def probe(self) -> None:
        """See :meth:`ConnectingPool.probe`."""
        raise NotImplementedError

    def _reserve(self, turn: Turn = Turn.NEW) -> Entry[C] | None:
        """Returns an entry in which a connection may be opened, or None if none may."""
        entries = self._entries
        if len(entries) >= self.cap or not self._backoff.allows(len(entries.connecting)):
            return None
        tokens = self._tokens
        if tokens is None:
            return entries.reserve()
        while len(entries) < self.cap:
            token = tokens.take(self._first_to_connect(), turn)
            if token is None:
                break
            trace = tokens.left_behind(token)
            if not trace or self._restore is None:
                return entries.reserve(token)
            # The server may be at work for a connection of a process that has died. That is ended
            # first, as if it had been one of this pool.
            left = entries.adopt(self._restore(trace), token)
            left.idle_since = self._clock()
            self._to_replace.append(left)
            self._replace_unfinished()
        return None

    def _first_to_connect(self) -> float:
        """Returns since when the first waiter waits for whom no connection is being opened, or else
        a probe; now, if neither does."""
        waiter = next(islice(self._queue, len(self._connecting_for_queue), None), None)
        if waiter is not None:
            return waiter.since
        return self._probe_since or self._clock()

    def _ask_for_tokens(self) -> None:
        """Tell the other workers how many connections this one lacks."""
        tokens = self._tokens
        if tokens is None:
            return
        entries = self._entries
        if len(entries):
            self._probe_since = 0.0
        wanted = len(self._queue) - len(self._connecting_for_queue)
        wanted = max(wanted, int(self._probe_since > 0.0))
        wanted = int(min(wanted, self.cap - len(entries)))
        if wanted > 0 and self._backoff.allows(len(entries.connecting)) and not self._closed:
            tokens.ask(self, self._first_to_connect(), wanted)
        else:
            tokens.ask(self, 0.0, 0)

    def tokens_moved(self, turn: Turn) -> None:
        """See :class:`~pooled_serve.pool.tokens.Sharer`."""
        if self._probe_since:
            self.probe()
        self._serve_waiters(turn)
        if self._hungry[0] and self._idle:
            self._lend(self._idle)

    def _lend(self, entries: list[Entry[C]]) -> bool:
        """Close as many of these, from the first on, as another worker should have instead. Returns
        whether it should have any.

        :param entries: idle ones, or a single one that comes back.
        """
        tokens = self._tokens
        if tokens is None:
            return False
        head = self._waiters.head
        slot, wanted = tokens.to_give(None if head is None else head.since, len(self._entries))
        for entry in entries[:wanted]:
            tokens.give(slot)
            entry.lent_to = slot
            self._discard(entry, LENT)
        return wanted > 0

    def give_up_idle(self, wanted: int, slot: int) -> None:
        """See :class:`~pooled_serve.pool.tokens.Sharer`."""
        for entry in self._idle[:wanted]:
            entry.lent_to = slot
            self._discard(entry, LENT)
