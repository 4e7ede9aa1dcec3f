"""Clients of the status listener: how many there are at a time, and for how long each may stay.

A client that says nothing costs a socket and two watchers of the event loop. Only its first bytes
are worth a greenlet and a parser: a probe waits in the listener's backlog behind all connections
that came before it, and 500 silent ones, each with a greenlet, took 0.13 s of CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import gevent
from gevent.monkey import get_original

from pooled_serve.status.shortage import WaitingServer

MAX_CLIENTS = 100
"""At a time and worker; greenlets of the main port do not count. One more takes the place of the
oldest that has not asked: however many say nothing, a probe is answered."""

CLIENT_TIMEOUT_SECONDS = 5.0
"""From the connection to the end of the answer. A time in which the event loop stands still counts
as one tick: nobody has read what a client has sent meanwhile, and who has asked is not late."""

TICKS = 5
"""Of these seconds."""

ACCEPTS_PER_TURN = 10
"""New clients in one turn of the event loop, if this worker is the only one. With several, each
takes one per turn, so that they share the work."""

_READ = 1  # libev's flag

_close = get_original("os", "close")
"""At once; gevent's may do it later, and the descriptor is needed now."""


class Client:
    """A connection, and the greenlet that serves it once it has sent something.

    It is in exactly one of two crowds, those that have sent a complete request and those that have
    not, until it ends.
    """

    __slots__ = (
        "_crowd",
        "_greenlet",
        "_left",
        "_readable",
        "_ticks",
        "_timer",
        "address",
        "socket",
    )

    def __init__(
        self, socket: Any, address: Any, crowd: dict[Client, None], left: Callable[[], None]
    ) -> None:
        self.socket = socket
        self.address = address
        self._greenlet: Any = None
        self._crowd = crowd
        crowd[self] = None
        self._left = left
        loop = gevent.get_hub().loop
        self._readable = loop.io(socket.fileno(), _READ)
        tick = CLIENT_TIMEOUT_SECONDS / TICKS
        self._timer = loop.timer(tick, tick)
        self._ticks = TICKS

    def start(self, serve: Callable[[Client], None]) -> None:
        """Wait for the first bytes, or the end of the stream; then serve."""
        self._readable.start(self._spawn, serve)
        self._timer.start(self._tick, update=True)

    def move(self, crowd: dict[Client, None]) -> None:
        """Leave one crowd for another. Does nothing once the client has ended."""
        if self._crowd.pop(self, self) is None:
            self._crowd = crowd
            crowd[self] = None

    def end(self) -> None:
        """Hang up, whatever the client is doing. Does not switch."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        self._leave()

    def _tick(self) -> None:
        self._ticks -= 1
        if not self._ticks:
            self.end()

    def _spawn(self, serve: Callable[[Client], None]) -> None:
        self._readable.stop()
        self._greenlet = gevent.spawn(self._run, serve)

    def _run(self, serve: Callable[[Client], None]) -> None:
        try:
            with contextlib.suppress(OSError):
                serve(self)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._crowd.pop(self, None)
        for watcher in (self._readable, self._timer):
            watcher.stop()
            watcher.close()
        self.socket.close()
        self._left()


class ClientServer(WaitingServer):
    """Accepts clients, at most MAX_CLIENTS at a time.

    Each further one ends the oldest without a complete request, whatever bytes it has sent; or, if
    there is none, the oldest that still reads its answer.

    It keeps a file descriptor in reserve, for a client that comes when the process has no other: a
    probe that has to wait ends a worker that only needs time.

    :param listener: a listening socket, TCP or Unix.
    :param serve: called in a greenlet of its own once the client has sent something. May raise
        OSError when the client is gone.
    :param alone: whether no other process accepts from the listener.
    """

    def __init__(self, listener: Any, serve: Callable[[Client], None], *, alone: bool) -> None:
        super().__init__(listener, handle=serve)
        self.max_accept = ACCEPTS_PER_TURN if alone else 1
        self._serve = serve
        self._waiting: dict[Client, None] = {}  # for their requests; the oldest first
        self._asked: dict[Client, None] = {}
        self._reserve = -1
        self._ended = False
        self._keep_reserve()

    def do_handle(self, socket: Any, address: Any) -> None:
        """Take in a new client; called in the hub."""
        if len(self._waiting) + len(self._asked) >= MAX_CLIENTS:
            next(iter(self._waiting or self._asked)).end()
        Client(socket, address, self._waiting, self._left).start(self._serve)

    def do_read(self) -> Any:
        """Accept a client. Overrides gevent's."""
        accepted = super().do_read()
        if accepted is None:  # another worker has
            self._keep_reserve()
        return accepted

    def make_room(self) -> bool:
        """Give up the reserve, or else the oldest client that has not asked."""
        if self._reserve < 0 and self._waiting:
            next(iter(self._waiting)).end()
        if self._reserve < 0:
            return False
        _close(self._reserve)
        self._reserve = -1
        return True

    def _left(self) -> None:
        """A client has gone. If its socket is waited on, gevent closes it in a callback, and this
        one comes next."""
        self._keep_reserve()
        if self._reserve < 0:
            self.loop.run_callback(self._keep_reserve)

    def _keep_reserve(self) -> None:
        if self._reserve < 0 and not self._ended:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def has_asked(self, client: Client) -> None:
        """Note that a client has sent a complete request."""
        client.move(self._asked)

    def stop(self, timeout: float | None = 0) -> None:
        """Accept no more clients, and hang up on all, without waiting."""
        self._ended = True
        super().stop(timeout=timeout)
        for client in [*self._waiting, *self._asked]:
            client.end()
        if self._reserve >= 0:
            _close(self._reserve)
            self._reserve = -1
