"""What this machine runs out of when sockets are opened or accepted, first of all file descriptors;
and servers that wait until there is one."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
import time
from typing import Any, NamedTuple

from gevent.monkey import get_original
from gevent.server import StreamServer

from pooled_serve.errors import causes
from pooled_serve.status.hanging_log import log_later
from pooled_serve.status.repeats import Repeats

PAUSE_SECONDS = 0.1
"""Between two attempts to accept a client, in a shortage."""


class Shortage(NamedTuple):
    """A resource that this machine has run out of. It says nothing about the database."""

    problem: str
    remedy: str
    descriptors: bool = False


_DESCRIPTORS = "raise the limit (ulimit -n, systemd's LimitNOFILE=), or find the leak"
_MEMORY = "free memory, or raise the container's memory limit or net.ipv4.tcp_mem"
SHORTAGES = {
    errno.EMFILE: Shortage(
        "this process has no file descriptor left", _DESCRIPTORS, descriptors=True
    ),
    errno.ENFILE: Shortage(
        "this host has no file descriptor left", "raise fs.file-max", descriptors=True
    ),
    errno.ENOBUFS: Shortage("the kernel has no buffer space left", _MEMORY),
    errno.ENOMEM: Shortage("the kernel has no memory left for a socket", _MEMORY),
    errno.EADDRNOTAVAIL: Shortage(
        "this host has no local address or port left for it",
        "widen net.ipv4.ip_local_port_range, open fewer connections, or check HOST in DATABASES",
    ),
}
"""By the errno of a failed connect."""


out_of_descriptors_at = 0.0
"""When this process last lacked a file descriptor; 0 if it never has. The clock is monotonic."""

_lines = Repeats()
_poll = get_original("select", "poll")


def note(shortage: Shortage) -> None:
    """Note that there is one, for the page."""
    global out_of_descriptors_at
    if shortage.descriptors:
        out_of_descriptors_at = time.monotonic()


def shortage_behind(error: BaseException) -> Shortage | None:
    """Returns what this machine has run out of, or None if an attempt to connect failed for any
    other reason."""
    for cause in causes(error):
        if isinstance(cause, socket.gaierror):
            # The resolver says "system error" or "try again" when it cannot open a file.
            code = _error_of_opening()
        else:
            code = cause.errno if isinstance(cause, OSError) else None
        if code in SHORTAGES:
            shortage = SHORTAGES[code]
            if code == errno.EMFILE:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                shortage = shortage._replace(problem=f"{shortage.problem}, of {limit}")
            return shortage
    return None


def _error_of_opening() -> int | None:
    """Returns the errno of opening a descriptor now, or None if that works."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


class WaitingServer(StreamServer):  # type: ignore[misc]  # gevent has no types
    """gevent's server, which leaves clients in the backlog while it cannot accept any. Gevent's own
    prints a traceback for each attempt."""

    def do_read(self) -> Any:
        """Accept a connection. Overrides gevent's. Returns None if there is none."""
        try:
            client = super().do_read()
        except OSError as error:
            shortage = shortage_behind(error)
            if shortage is None:
                raise
        else:
            if client is not None:
                _lines.over(time.monotonic())
            return client
        if not self._has_clients():
            return None  # Linux looks for a descriptor before it looks for a client
        if self.make_room():
            return WaitingServer.do_read(self)
        note(shortage)
        if (often := _lines.count(time.monotonic())) is not None:
            text = "no client can be accepted: %s%s\n  → %s"
            log_later(logging.ERROR, text, shortage.problem, often, shortage.remedy)
        # The listener stays readable, and its watcher would fire in each poll.
        self.stop_accepting()
        self._timer = self.loop.timer(PAUSE_SECONDS)
        self._timer.start(self._start_accepting_if_started)
        return None

    def _has_clients(self) -> bool:
        poll = _poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def make_room(self) -> bool:
        """Do what makes another attempt worth while. Returns whether there was something."""
        return False
