"""When a worker accepts connections, and how many at a time."""

from __future__ import annotations

import math
import socket
import struct
from contextlib import suppress
from typing import Any

from gevent.server import StreamServer

from pooled_serve.serve.balance import Looks, Share
from pooled_serve.serve.turns import Turns
from pooled_serve.status.shortage import WaitingServer

MAX_ACCEPTS_PER_POLL = 2
"""With several workers. If it is higher, a worker that gets a core before the others may take more
clients than its share; with 1, the last of many new clients waits longer."""

PAUSE_SECONDS = 0.005
"""Between two looks, while a worker leaves its listener to workers with fewer connections."""

_WAITING = struct.Struct("=24xI").unpack  # tcpi_unacked of struct tcp_info


def backlog(listener: Any) -> int:
    """Returns how many connections wait to be accepted; 0 for a socket that does not say.

    For a listening TCP socket, Linux reports the length of the accept queue as tcpi_unacked; see
    tcp_get_info() in net/ipv4/tcp.c.
    """
    try:
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int(_WAITING(found)[0])
    except (OSError, AttributeError, struct.error):
        return 0


class Server(WaitingServer):
    """gevent's server, which also accepts a connection for each turn that was given up, and leaves
    connections to workers that have fewer."""

    def __init__(self, turns: Turns, share: Share, *args: Any, **options: Any) -> None:
        self._turns = turns
        self._share = share
        self._pause: Any = None  # a timer, while other workers should accept
        self._seen: Looks = {}
        self._waited = False
        self._at_least: int = StreamServer.max_accept
        super().__init__(*args, **options)

    @property
    def max_accept(self) -> int:
        """Connections to accept in one poll. gunicorn sets 1 if there are several workers."""
        return max(self._at_least, min(self._turns.yielded, MAX_ACCEPTS_PER_POLL))

    @max_accept.setter
    def max_accept(self, value: int) -> None:
        self._at_least = value

    def start(self) -> None:
        """Accept from now on. Overrides gevent's."""
        self._share.enter()
        self._turns.backlogs.append(self._part_of_backlog)
        super().start()

    def close(self) -> None:
        """Accept no more. Overrides gevent's. A worker closes all its servers together."""
        self._share.leave()
        self._end_pause()
        if self.started and self._share.is_last():
            self.stop_accepting()
            with suppress(OSError):  # no descriptors are left, or the listener cannot be used
                self._accept_all()
            # Right away: a client that connects after the last accept is reset at the close.
            self.socket.close()
        super().close()

    def _accept_all(self) -> None:
        """Accept who is there already. When the last worker closes the listener, the kernel resets
        those that nobody has accepted, although they may have sent their requests."""
        while not self.full() and (accepted := self._take_one()):
            self.do_handle(*accepted)

    def _part_of_backlog(self) -> int:
        """Returns how many of the waiting connections this worker accepts if all accept alike.

        A worker that accepts many in one poll has accepted them before any turn ends.
        """
        if self._at_least > 1 or self.closed:
            return 0
        return math.ceil(backlog(self.socket) / self._share.workers())

    def do_read(self) -> Any:
        """Accept a connection. Overrides gevent's.

        Returns None, which ends the accepts of a poll, if there is none, or if another worker
        should accept it.
        """
        if not self._waited and self._share.is_ahead(self._turns.yielded):
            self._begin_pause()
            return None
        accepted = self._take_one()
        if accepted and self._waited:
            self._share.give_up(self._seen)
        return accepted

    def _take_one(self) -> Any:
        accepted = super().do_read()
        if accepted:
            self._share.opened()
            self._turns.accepted()
        return accepted

    def do_close(self, *args: Any) -> None:
        """Close a connection that has been served. Overrides gevent's."""
        self._share.closed()  # first: the client may come again as soon as it sees the end
        super().do_close(*args)
        if self._pause is not None and not self._share.is_ahead(self._turns.yielded):
            self._end_pause()
            if self.started:
                self.start_accepting()

    def _begin_pause(self) -> None:
        # The listener stays readable until another worker has accepted, and its watcher would fire
        # in each poll.
        self.stop_accepting()
        self._end_pause()
        self._seen = {}
        self._turns.pauses.add(self)
        self._pause = self.loop.timer(PAUSE_SECONDS, PAUSE_SECONDS)
        self._pause.start(self._look)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.close()
            self._pause = None
            self._turns.pauses.discard(self)

    def _look(self) -> None:
        if self._share.look(self._seen, self._turns.yielded):
            return
        self._end_pause()
        self.start_accepting()
        if self.full():
            return
        self._waited = True
        try:
            # Now, not in the next poll: a connection that is there then may have just arrived, and
            # would not prove that others did nothing while it waited.
            if accepted := self.do_read():
                self.do_handle(*accepted)
        finally:
            self._waited = False
