"""One unit of the cap, and the five states that it passes through.

::

    reserve()                      lease_idle()
        │                        ┌──────────────── IDLE ◄──────┐
        ▼          opened()      ▼                  │          │ ReturningPool._put_back()
    CONNECTING ───────────────► LEASED ─────────────┼──────────┘
        │                       │    ▲  end_reset() │
        │         begin_reset() ▼    │              │ begin_close()
        │                     RESETTING             │
        │ cancel()              │                   ▼
        └──► gone               └──────────────► CLOSING ──► gone
                                 begin_close()      end_close()

LEASED goes to CLOSING by ``begin_close()``, too, and CLOSING back to CONNECTING by ``replace()``.
What another process has left behind begins as CLOSING, by ``adopt()``. A hand-off from one user to
the next is no transition: the entry stays LEASED.

Where the host has a bound (see tokens.py), each entry owns a token from its first state on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from pooled_serve.pool.tokens import Tokens


class Closable(Protocol):
    """What the pool requires of a connection."""

    def close(self) -> object:
        """End the connection."""


C = TypeVar("C", bound=Closable)


class Entry(Generic[C]):
    """One unit of the cap: the right to a connection, and the connection once it is open.

    Times are seconds of the pool's clock.
    """

    __slots__ = (
        *("conn", "conn_id", "expires", "idle_since", "leased_at", "retired_for"),
        *("lent_to", "token", "token_is_used", "unended"),
    )

    conn: C  # this and its id() are set from opened() on
    conn_id: int

    def __init__(self) -> None:
        self.expires = math.inf  # when the connection retires
        self.retired_for = "age"  # the reason to close it then
        self.idle_since = 0.0  # when it last came back, was handed over, or was closed
        self.leased_at = 0.0  # or, while it is connecting, when the attempt began
        self.token: int | None = None  # see tokens.py
        self.token_is_used = False  # by the trace of a connection that the server may still have
        self.unended = (
            False  # closed, but not ended at the server: the token's next owner does that
        )
        self.lent_to = 0  # the worker for which it is closed


class Entries(Generic[C]):
    """All entries of a pool by state.

    Invariant: an entry is in exactly one of the five collections. The collection *is* its state,
    so that there is no second record that could disagree. Each transition stands in one place, a
    method below (but for LEASED to IDLE, in the pool's fast path); none of them switches greenlets
    or calls foreign code half-way.
    """

    __slots__ = ("_tokens", "closing", "connecting", "idle", "leased", "resetting")

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens  # of the host; without a bound there are none
        self.connecting: set[Entry[C]] = set()
        self.leased: dict[int, Entry[C]] = {}  # by conn_id: handed out, or being checked for it
        self.idle: list[Entry[C]] = []  # the last in is the first out
        self.resetting: set[Entry[C]] = set()
        self.closing: set[Entry[C]] = set()

    # --- Counting ------------------------------------------------------------------------------

    @property
    def in_transit(self) -> int:
        """How many are neither leased nor idle. Each becomes one of these, or is gone."""
        return len(self.connecting) + len(self.resetting) + len(self.closing)

    @property
    def busy(self) -> int:
        """How many are not idle."""
        return len(self.leased) + self.in_transit

    def __len__(self) -> int:
        """How many there are: the part of the cap that is taken."""
        return self.busy + len(self.idle)

    def open(self) -> list[Entry[C]]:
        """Returns the entries that have a connection."""
        return [*self.leased.values(), *self.idle, *self.resetting, *self.closing]

    def oldest_lease(self) -> Entry[C] | None:
        """Returns the entry that has been leased for longest, or None if none is."""
        return min(self.leased.values(), key=lambda entry: entry.leased_at, default=None)

    # --- Transitions ---------------------------------------------------------------------------

    def reserve(self, token: int | None = None) -> Entry[C]:
        """Nothing to CONNECTING. Called before ``connect`` may switch, so that the cap holds."""
        entry: Entry[C] = Entry()
        entry.token = token
        self.connecting.add(entry)
        return entry

    def cancel(self, entry: Entry[C]) -> None:
        """CONNECTING to gone: the attempt failed."""
        if entry in self.connecting:  # not so in a forked child
            self.connecting.remove(entry)
            self._give_back(entry, keep_trace=entry.token_is_used)

    def opened(self, entry: Entry[C], conn: C, now: float) -> None:
        """CONNECTING to LEASED."""
        self.connecting.discard(entry)
        entry.conn, entry.conn_id, entry.leased_at = conn, id(conn), now
        self.leased[entry.conn_id] = entry

    def lease_idle(self, now: float) -> Entry[C]:
        """IDLE to LEASED: the one that came back last, so that the surplus of a spike ages."""
        entry = self.idle.pop()
        entry.leased_at = now
        self.leased[entry.conn_id] = entry
        return entry

    def begin_reset(self, entry: Entry[C]) -> None:
        """LEASED to RESETTING."""
        del self.leased[entry.conn_id]
        self.resetting.add(entry)

    def end_reset(self, entry: Entry[C]) -> None:
        """RESETTING to LEASED, for as long as it takes to decide who gets it."""
        self.resetting.remove(entry)
        self.leased[entry.conn_id] = entry

    def begin_close(self, entry: Entry[C]) -> None:
        """LEASED, RESETTING or IDLE to CLOSING."""
        if self.leased.pop(entry.conn_id, None) is None:
            if entry in self.resetting:
                self.resetting.remove(entry)
            else:
                self.idle.remove(entry)
        self.closing.add(entry)

    def replace(self, entry: Entry[C]) -> Entry[C]:
        """CLOSING to gone, and CONNECTING in its place, which is returned: the server still has the
        connection, and a new one ends it."""
        self.closing.remove(entry)
        another = self.reserve(entry.token)
        another.token_is_used = True
        return another

    def adopt(self, conn: C, token: int) -> Entry[C]:
        """Nothing to CLOSING: what a process that has died has left to the owner of its token."""
        entry: Entry[C] = Entry()
        entry.conn, entry.conn_id, entry.token = conn, id(conn), token
        self.closing.add(entry)
        return entry

    def end_close(self, entry: Entry[C], *, keep_trace: bool = False) -> None:
        """CLOSING to gone.

        :param keep_trace: the server still has the connection; the token's next owner ends it.
        """
        if entry in self.closing:  # not so in a forked child
            self.closing.remove(entry)
            self._give_back(entry, keep_trace=keep_trace)

    def _give_back(self, entry: Entry[C], *, keep_trace: bool) -> None:
        if self._tokens is not None and entry.token is not None:
            self._tokens.give_back(entry.token, entry.lent_to, keep_trace=keep_trace)
