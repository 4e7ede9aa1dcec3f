"""Whose turn it is: clients that are served, and those that nobody has accepted yet.

A greenlet runs until it waits for something, and gunicorn's goes on with a keep-alive client as
long as that has sent more, so a few busy clients would starve the rest. Each therefore gives up its
turn when it has been answered, and two rules say who gets it:

* gevent runs up to 50 callbacks, each perhaps a whole view, before it looks at the sockets again.
  A turn given with ``gevent.sleep(0)``, which is a callback, never reaches those who connect; one
  given with a timer goes through the poll of all sockets, listeners included.
* Of several workers, each accepts a single connection in a poll, so that the first one does not
  take them all. Between two polls a worker may serve all the clients that it has: the more there
  are, the longer the backlog waits. So one is accepted for each client that has given up its turn,
  but no more than two in a poll, or a worker that runs while others wait for a core takes them all.

Nothing more is accepted for a client that closes its connection. That makes way for the next one
already, and whichever worker is free first can take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Waiter
from gevent.server import StreamServer

MAX_ACCEPTS_PER_POLL = 2
"""Connections in one poll, where there are several workers. With more, a worker that gets a core
before the others may take more clients than its share; with one, the last of many waits longer."""


class Turns:
    """The turns of one worker."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[None], None]] = []
        self._timer: Any = None

    @property
    def given(self) -> int:
        """How many clients have been answered and let others go first, at this moment."""
        return len(self._waiting)

    def give(self) -> None:
        """Return when all others who can go on have done so, those in the backlog included."""
        hub = gevent.get_hub()
        waiter = Waiter(hub)
        if not self._waiting:
            # Of what one poll finds, that with the lowest priority comes last. A timer would come
            # first otherwise, and the listeners when all turns have been taken back.
            self._timer = hub.loop.timer(0, priority=hub.loop.MINPRI)
            self._timer.start(self._take_back, hub.loop)
        self._waiting.append(waiter.switch)
        waiter.get()

    def _take_back(self, loop: Any) -> None:
        self._timer.close()
        waiting, self._waiting = self._waiting, []
        for switch in waiting:
            # Not at once: those who have just been accepted start from the same queue, before them.
            # A greenlet that has been killed meanwhile does not mind.
            loop.run_callback(switch, None)


class Server(StreamServer):  # type: ignore[misc]  # gevent has no types
    """gevent's server, which accepts connections for turns that have been given up."""

    def __init__(self, turns: Turns, *args: Any, **options: Any) -> None:
        self._turns = turns
        self._at_least: int = StreamServer.max_accept
        super().__init__(*args, **options)

    @property
    def max_accept(self) -> int:
        """Connections in one poll. gunicorn sets it to 1 where there are several workers."""
        return max(self._at_least, min(self._turns.given, MAX_ACCEPTS_PER_POLL))

    @max_accept.setter
    def max_accept(self, value: int) -> None:
        self._at_least = value
