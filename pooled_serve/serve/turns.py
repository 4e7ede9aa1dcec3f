"""Fair turns between the clients of a worker and those that wait in the backlog.

A greenlet runs until it waits for something, and gunicorn's serves a keep-alive client as long as
it has sent more, so a few busy clients would starve the rest. Each client therefore gives up its
turn once it is answered. Two rules decide who is next:

* gevent runs up to 50 callbacks, each perhaps a whole view, before it polls the sockets again. A
  turn given up with ``gevent.sleep(0)``, which is a callback, never reaches new clients; one given
  up with a timer goes through the poll of all sockets, listeners included.
* With several workers, each accepts a single connection per poll, so that the first one does not
  take them all. Between two polls a worker may serve all its clients: the more it has, the longer
  the backlog waits. So it accepts one connection for each client that gave up its turn, but at most
  two per poll, or a worker that runs while others wait for a core would take them all. Which
  worker accepts is decided in balance.py.

A client that closes its connection gives up no turn: it has made way for the next one already,
which any worker that is free can take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Waiter


class Turns:
    """The turns of one worker."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[None], None]] = []
        self._timer: Any = None

    @property
    def given(self) -> int:
        """Number of clients that were answered and are letting others go first."""
        return len(self._waiting)

    def give(self) -> None:
        """Wait until all others that can go on have done so, including those in the backlog."""
        hub = gevent.get_hub()
        waiter = Waiter(hub)
        if not self._waiting:
            # The lowest priority comes last among the events of one poll. Otherwise a timer would
            # come first, and the listeners only after all turns were taken back.
            self._timer = hub.loop.timer(0, priority=hub.loop.MINPRI)
            self._timer.start(self._take_back, hub.loop)
        self._waiting.append(waiter.switch)
        waiter.get()

    def _take_back(self, loop: Any) -> None:
        self._timer.close()
        waiting, self._waiting = self._waiting, []
        for switch in waiting:
            # Through the queue: clients just accepted start from it, too, and come first. Switching
            # to a waiter whose greenlet was killed meanwhile does nothing.
            loop.run_callback(switch, None)
