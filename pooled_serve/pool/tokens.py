"""Who of a host's workers gets a token next, and who gives one up; see host.py for what they are.

A worker that has waiters and room under its own cap, but no token, is *hungry*. It says so in the
shared memory and wakes the others. For each connection that it wants, one of them gives one up:

* An idle one, at once, if the giver has more than its share of the host's. One of its share only
  when the hungry worker has waited for :data:`PATIENCE_SECONDS`: or two workers that each have a
  request now and then would open a new connection for every request.
* One that comes back while others wait at the giver, if the hungry worker's first waiter has waited
  longer than the giver's by :data:`TRADE_SECONDS`.

What is read in the shared memory may be out of date. That cannot break the bound, which is held by
the kernel's locks; and a hungry worker looks again every :data:`LOOK_SECONDS`.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import gevent

from pooled_serve.pool.area import Area
from pooled_serve.pool.host import Host

PATIENCE_SECONDS = 0.01
"""More than a trade takes, see TRADE_SECONDS: a worker that has waited for so long gains by one."""

TRADE_SECONDS = 0.025
"""A trade takes a goodbye, a connection and a login: 1.5 ms of CPU, with TLS up to 7, and the round
trips, in which the connection serves nobody. For a difference that is not several times as much,
workers whose queues are as long as each other's would trade back and forth."""

LOOK_SECONDS = 0.05
"""How often a worker that waits looks again. What lies idle elsewhere is given up for it by then,
which is well within the 0.1 s that README.md promises."""

GIFT_SECONDS = 0.01
"""For so long after a connection was given up for a worker, nobody gives up another for it; four
times as long after each further one that it does not take, because it is stuck or stopped."""

LONGEST_GIFT_SECONDS = 1.0

MAX_TRIES = 4
"""Attempts of this process to end what a token's former connection left at the server."""


class Turn(enum.Enum):
    """Why a pool tries to take a token, which decides whether it leaves a free one to others."""

    NEW = enum.auto()
    """A caller has come: it leaves the token to workers that have waited longer."""
    WOKEN = enum.auto()
    """A token was given back: the same, but workers for which a connection is being given up just
    now will have that one, and do not count."""
    LOOK = enum.auto()
    """Its waiter has waited for some time: it takes what is free, because those that have waited
    longer may be stuck. It also searches for tokens of processes that have died."""


class Sharer(Protocol):
    """A pool whose connections own tokens."""

    def tokens_moved(self, turn: Turn) -> None:
        """A token may be free, or wanted elsewhere."""

    def give_up_idle(self, wanted: int, slot: int) -> None:
        """Close so many idle connections for the worker with this slot."""


class Tokens:
    """The tokens of one database, as one process sees them.

    :param limit: how many there are.
    :param clock: monotonic seconds, the same for all processes.
    """

    def __init__(self, area: Area, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.hungry = area.hungry
        """Its first item is true if any worker may be hungry."""
        self.asked = area.asked
        """Its first item: see :attr:`Area.asked`."""
        self._area = area
        self._host = area.host
        self._clock = clock
        self._pools: weakref.WeakSet[Any] = weakref.WeakSet()
        self._asking: dict[Any, tuple[float, int]] = {}
        self._gifts: dict[int, tuple[float, int]] = {}  # slot -> since when it waited, how many
        self._tries: dict[int | None, int] = {}  # token -> how often in vain
        self._timer: Any = None

    def join(self, pool: Any) -> None:
        """Tell a pool, a :class:`Sharer`, from now on when tokens move."""
        self._pools.add(pool)
        watch(self._host)

    # --- For connections -----------------------------------------------------------------------

    def take(self, since: float, turn: Turn) -> int | None:
        """Take a token. Returns its number, or None if there is none to take.

        :param since: when the first that wants it has begun to wait.
        """
        if turn is not Turn.LOOK and self.hungry[0]:
            now = self._clock() if turn is Turn.WOKEN else 0.0
            if self._hungriest(since, now):
                return None
        token = self._area.take(self.limit, search=turn is Turn.LOOK)
        if token is not None:
            watch(self._host)  # a forked child has none
            if self._asking:
                self._area.promised[self._host.slot] = 0.0
        return token

    def left_behind(self, token: int) -> bytes:
        """Returns the trace of the connection that the token's former owner had when it died."""
        return self._area.trace(token)

    def opened(self, token: int, trace: bytes) -> None:
        """Keep the trace of a connection."""
        self._area.write_trace(token, trace)

    def give_back(self, token: int, lent_to: int = 0, *, keep_trace: bool = False) -> None:
        """Free a token, and wake the worker it is for, or the one that has waited longest.

        :param keep_trace: the server may still have its connection.
        """
        self._area.give_back(token, keep_trace=keep_trace)
        if self.hungry[0]:
            self._host.wake(lent_to or self._hungriest(math.inf, 0.0))

    def try_again(self, token: int | None) -> bool:
        """Whether to keep the trace of a connection that could not be ended at the server. Not for
        ever: a proxy may not let it happen."""
        tries = self._tries.get(token, 0) + 1
        self._tries[token] = 0 if tries >= MAX_TRIES else tries
        return tries < MAX_TRIES

    def begin_replacing(self, who: object) -> bool:
        """See :meth:`Area.begin_replacing`."""
        return self._area.begin_replacing(who)

    def end_replacing(self, who: object) -> None:
        """See :meth:`Area.end_replacing`."""
        self._area.end_replacing(who)

    # --- For waiters ---------------------------------------------------------------------------

    def ask(self, pool: object, since: float, wanted: int) -> None:
        """Say that a pool wants tokens, or no longer does.

        :param since: when its first waiter for whom none connects has begun to wait.
        :param wanted: how many.
        """
        if wanted:
            self._asking[pool] = since, wanted
        elif self._asking.pop(pool, None) is None:
            return
        area, slot = self._area, self._host.slot
        if not self._asking:
            area.forget(slot)
            return
        began = not area.since[slot]
        area.since[slot] = min(first for first, _ in self._asking.values())
        area.wanted[slot] = float(sum(count for _, count in self._asking.values()))
        if began:
            watch(self._host)
            self._call()
            self._start_timer()

    def asks(self, pool: object) -> bool:
        """Whether a pool has said that it wants tokens."""
        return pool in self._asking

    def _call(self) -> None:
        self._host.show_slot()
        self.hungry[0] = 1.0
        self._host.wake_others()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(PATIENCE_SECONDS, LOOK_SECONDS, ref=False)
            self._timer.start(self._look)

    def _look(self) -> None:
        for pool in list(self._asking):
            pool.tokens_moved(Turn.LOOK)
        if self._asking:
            self._call()
            # Other workers do not see what lies idle here, in another pool with the same tokens.
            wanted = sum(count for _, count in self._asking.values())
            for pool in set(self._pools) - self._asking.keys():
                pool.give_up_idle(wanted, self._host.slot)
        elif self._timer is not None:
            self._timer.close()
            self._timer = None

    def moved(self) -> None:
        """Another process says that a token is free, or that it wants one."""
        for pool in list(self._pools):
            pool.tokens_moved(Turn.WOKEN)

    # --- Giving up connections -----------------------------------------------------------------

    def to_give(self, head_since: float | None, have: int) -> tuple[int, int]:
        """Returns the slot of a worker to give up connections for, and how many it wants; 0 and 0
        if there is none.

        :param head_since: since when the first waits here; None if nobody does.
        :param have: how many connections there are here.
        """
        now = self._clock()
        area = self._area
        slot = self._hungriest(math.inf, now)
        if not slot:
            return 0, 0
        if area.has_free(self.limit):
            self._host.wake(slot)
            return 0, 0
        since = area.since[slot]
        gives = area.wanted[slot]
        if head_since is not None:
            gives *= head_since - since >= TRADE_SECONDS
        elif now - since < PATIENCE_SECONDS:
            share = self.limit // (len(self._host.others()) + 1)
            gives = min(gives, max(0, have - share))
        if not gives or not self._host.lives(slot):
            return 0, 0
        return slot, int(gives)

    def give(self, slot: int) -> None:
        """A connection is being given up for the worker with this slot."""
        area = self._area
        since, times = area.since[slot], 0
        if slot in self._gifts and self._gifts[slot][0] == since:
            times = self._gifts[slot][1]
        self._gifts[slot] = since, times + 1
        pause = min(GIFT_SECONDS * 4**times, LONGEST_GIFT_SECONDS)
        area.promised[slot] = self._clock() + pause
        area.lent[self._host.slot] += 1.0

    def _hungriest(self, before: float, now: float) -> int:
        """Returns the slot of the other worker whose first waiter has waited for longest, and since
        before `before`; 0 if there is none.

        :param now: leave out workers for which a connection is being given up at this time; 0 to
            leave out none.
        """
        area, host = self._area, self._host
        # Cleared first: a worker that begins to wait while this one looks sets it again.
        self.hungry[0] = 0.0
        anybody = bool(self._asking)
        found, oldest = 0, before
        for slot in host.others():
            since = area.since[slot]
            if since:
                anybody = True
                if since < oldest and (not now or area.promised[slot] <= now):
                    found, oldest = slot, since
        if anybody:
            self.hungry[0] = 1.0
        return found

    # --- Numbers -------------------------------------------------------------------------------

    def describe(self) -> str:
        """Returns whose the host's tokens are, in words; "" if some are free."""
        if not self._area.is_full(self.limit):
            return ""
        own = len(self._area.owned)
        return f"this host's {self.limit} are taken, {own} of them by this worker"

    # --- Forks ---------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Nobody waits in the child."""
        self._asking.clear()
        self._gifts.clear()
        if self._timer is not None:
            self._timer.close()
            self._timer = None


# --- Waking up ---------------------------------------------------------------------------------

_tokens: weakref.WeakValueDictionary[tuple[int, int], Tokens] = weakref.WeakValueDictionary()
_watchers: dict[int, Any] = {}  # id of the host -> watcher of this process's eventfd, or a timer
_stale: list[Any] = []  # watchers of the process that has forked this one


def tokens_of(host: Host, alias: str, limit: int) -> Tokens:
    """Returns the tokens of a database, the same for all pools of this process."""
    area = host.area(alias)
    key = id(host), area.index
    tokens = _tokens.get(key)
    if tokens is None or tokens.limit != limit:
        tokens = _tokens[key] = Tokens(area, limit)
    return tokens


def watch(host: Host) -> None:
    """Let this process be woken."""
    if id(host) in _watchers:
        return
    while _stale:  # not sooner: before gevent has made the loop anew, it is also the parent's
        _stale.pop().close()
    loop = gevent.get_hub().loop
    fd = host.wakeup
    if fd >= 0:
        watcher = loop.io(fd, 1, ref=False)
        watcher.start(_woken, host, fd)
    else:
        watcher = loop.timer(LOOK_SECONDS, LOOK_SECONDS, ref=False)
        watcher.start(_woken, host, fd)
    _watchers[id(host)] = watcher


def _woken(host: Host, fd: int) -> None:
    if id(host) not in _watchers:  # a forked child's first: it was the parent that was woken
        watch(host)
        return
    if fd >= 0:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
    for (owner, _), tokens in list(_tokens.items()):
        if owner == id(host) and (fd >= 0 or tokens.hungry[0]):
            tokens.moved()


def _forget_in_child() -> None:
    _stale.extend(_watchers.values())
    _watchers.clear()
    for tokens in list(_tokens.values()):
        tokens.after_fork_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
