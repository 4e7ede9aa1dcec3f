"""Fair turns between the clients of a worker and those that wait in the backlog.

A greenlet runs until it waits for something, and gunicorn's serves a keep-alive client as long as
that has sent more requests: a few busy clients would starve the rest. So each client gives up its
turn once it is answered. Three rules decide which client is next:

* gevent runs up to 50 callbacks, each perhaps a whole view, before it polls the sockets again. A
  turn given up with ``gevent.sleep(0)``, which is a callback, never reaches new clients; one given
  up with a timer goes through the poll of all sockets, listeners included.
* With several workers, each accepts a single connection per poll, so that the first one does not
  take them all. Between two polls a worker may serve all its clients: the more it has, the longer
  the backlog waits. So it accepts one connection for each client that gave up its turn, but at most
  two per poll, or a worker that runs while others wait for a core would take them all. Which
  worker accepts is decided in balance.py.
* First come, first served: a client that gave up its turn goes on once the connections that were in
  the backlog at that time are accepted. Otherwise, with two per poll and a turn for all others in
  between, the last of 32 new clients would wait until the first had been served 16 times.

A client that closes its connection need not give up a turn: it has already made way for the next
one, which any free worker can accept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
from gevent.hub import Waiter


class _Turn(NamedTuple):
    switch: Callable[[None], None]
    due: int  # it ends when the worker has accepted so many clients


class Turns:
    """The turns of one worker."""

    def __init__(self) -> None:
        self.backlogs: list[Callable[[], int]] = []
        """For each listener, a function that returns this worker's part of its backlog."""
        self.pauses: set[object] = set()
        """The servers that leave their backlog to other workers for now."""
        self._yielded: deque[_Turn] = deque()
        self._timer: Any = None
        self._accepted = 0  # clients
        self._accepted_before = 0  # the same at the last poll
        self._due = 0  # of turns that are given up before the next poll

    @property
    def yielded(self) -> int:
        """Number of clients that were answered and are letting others go first."""
        return len(self._yielded)

    def accepted(self) -> None:
        """Count a new client."""
        self._accepted += 1

    def give_up(self) -> None:
        """Wait until all clients that can go on have done so, those in the backlog included."""
        hub = gevent.get_hub()
        waiter = Waiter(hub)
        if not self._yielded:
            self._start_timer(hub.loop)
        self._yielded.append(_Turn(waiter.switch, self._due))
        waiter.get()

    def _start_timer(self, loop: Any) -> None:
        self._accepted_before = self._accepted
        self._due = self._accepted + sum(backlog() for backlog in self.backlogs)
        # The lowest priority comes last among the events of one poll. Otherwise a timer would come
        # first, and the listeners only after all turns were taken back.
        self._timer = loop.timer(0, priority=loop.MINPRI)
        self._timer.start(self._take_back, loop)

    def _take_back(self, loop: Any) -> None:
        self._timer.close()
        most = len(self._yielded)
        due: float = self._accepted
        if self._accepted == self._accepted_before:
            # The backlog is empty, or left to other workers. That may end soon: then one at a time.
            most, due = (1 if self.pauses else most), math.inf
        while most and self._yielded[0].due <= due:
            most -= 1
            # By a callback: clients just accepted start from one, too, and come first. Switching to
            # a waiter whose greenlet was killed meanwhile does nothing.
            loop.run_callback(self._yielded.popleft().switch, None)
        if self._yielded:
            self._start_timer(loop)
