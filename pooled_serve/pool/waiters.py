"""The queue in front of a pool: first come, first served, by direct hand-off.

The model is trio's ``ParkingLot``: a caller parks, and is unparked with an answer. A connection
that comes back while somebody waits goes to the head of the queue and is never idle in between, so
that no newcomer can overtake (Go's ``database/sql`` does the same).

Invariant: only the code that takes a waiter out of the queue may answer it, and it does both
without a switch. So each waiter gets exactly one answer, whatever comes first: a connection, an
error, its deadline or a kill.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any, Generic

import gevent
import gevent.hub

from pooled_serve.pool.entry import C, Entry


class Waiter(Generic[C]):
    """One caller in the queue.

    :param since: when it asked for a connection, in seconds of the pool's clock; it may have pinged
        or tried to connect before it queued.
    :param timeout: seconds that it may take from then on.
    """

    __slots__ = ("_hub_waiter", "_loop", "answer", "entered", "held", "since", "timeout")

    def __init__(self, since: float, timeout: float) -> None:
        hub = gevent.get_hub()
        self._hub_waiter = gevent.hub.Waiter(hub)
        self._loop = hub.loop
        self.since = since
        self.timeout = timeout
        self.entered = math.inf  # see Overload; never late
        self.held = False  # it has waited in an outage, and was counted
        self.answer: Entry[C] | Exception | None = None

    @property
    def greenlet(self) -> Any:
        """The one that waits."""
        return self._hub_waiter.greenlet

    def wake(self, answer: Entry[C] | Exception) -> None:
        """Resume its greenlet, in the next turn of the loop."""
        self.answer = answer
        self._loop.run_callback(self._hub_waiter.switch, None)

    def sleep(self, seconds: float, expire: Callable[..., object], *args: object) -> None:
        """Sleep until woken. After so many seconds, ``expire(*args)`` is called in the hub."""
        timer = self._loop.timer(max(0.0, seconds))
        # update: the loop last looked at the clock before the code that runs now began, and the
        # timer would fire early by as long as that has taken.
        timer.start(expire, *args, update=True)
        try:
            self._hub_waiter.get()
        finally:
            timer.stop()
            timer.close()


class Waiters(Generic[C]):
    """The queue, in the order in which callers are served."""

    __slots__ = ("queue",)

    def __init__(self) -> None:
        self.queue: OrderedDict[Waiter[C], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.queue)

    @property
    def head(self) -> Waiter[C] | None:
        """The waiter that is served next; None if the queue is empty."""
        return next(iter(self.queue), None)

    def enter(self, waiter: Waiter[C], *, first: bool = False) -> None:
        """Queue a waiter at the end or, if it has had its turn already, at the head."""
        self.queue[waiter] = None
        if first:
            self.queue.move_to_end(waiter, last=False)

    def park(
        self, waiter: Waiter[C], seconds: float, refuse: Callable[[Waiter[C]], Exception]
    ) -> Entry[C]:
        """Sleep until answered, and return or raise the answer.

        If the sleep ends in any other way, the greenlet was killed: the waiter has left the
        queue, and what ``waiter.answer`` holds by then is for the caller to pass on.

        :param seconds: after which the waiter is answered with what ``refuse(waiter)`` returns.
            It is called in the hub, while the waiter is still in the queue.
        """
        try:
            waiter.sleep(seconds, self._expire, waiter, refuse)
        except BaseException:
            self.queue.pop(waiter, None)
            raise
        answer = waiter.answer
        if isinstance(answer, Entry):
            return answer
        assert answer is not None, "woken without an answer"
        raise answer

    def answer_head(self, answer: Entry[C] | Exception) -> None:
        """Take the head out of the queue, and wake it with this answer."""
        waiter, _ = self.queue.popitem(last=False)
        waiter.wake(answer)

    def answer_behind(
        self, refused: int, answer: Entry[C], refuse: Callable[[Waiter[C]], Exception]
    ) -> None:
        """Refuse the first waiters, and give the answer to the one behind them.

        :param refused: how many are refused.

        The one who is served is woken first, and so runs first: those who are refused can be many,
        and the connection must not lie idle while each of them writes its 503.
        """
        waiter = next(islice(self.queue, refused, None))
        del self.queue[waiter]
        waiter.wake(answer)
        for _ in range(refused):
            head = next(iter(self.queue))
            error = refuse(head)
            self.answer_head(error)

    def _expire(self, waiter: Waiter[C], refuse: Callable[[Waiter[C]], Exception]) -> None:
        # The timer may fire after the waiter was answered, but before it ran.
        if waiter in self.queue:
            error = refuse(waiter)
            del self.queue[waiter]
            waiter.wake(error)
