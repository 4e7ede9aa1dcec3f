"""Wait for an answer before asking the kernel for it.

gevent's recv() tries first and waits if there is nothing. A database never answers as fast as that,
so the attempt costs a system call and an exception for each query: with ten greenlets that query, a
tenth of the CPU of a query of one row. (A worker with nothing else to do takes a tenth more, as it
falls asleep sooner and must be woken.) Belongs upstream.
"""

from __future__ import annotations

from typing import Any

from gevent.socket import socket

from pooled_serve.tuning import switches

_direct = switches.on("direct-receive")


def wait_for_answer(sock: Any) -> None:
    """Let other greenlets run until something has arrived.

    Does nothing on sockets other than gevent's plain ones: TLS may have received it already.

    :raises TimeoutError: nothing arrived within the socket's timeout.
    """
    if _direct and type(sock) is socket and sock.timeout != 0:
        sock._wait(sock._read_event)


def wait_on(sock: Any) -> object:
    """Returns what makes a greenlet wait for this socket at present: gevent's own object, which it
    makes anew for each wait. None if no greenlet does, and for sockets that are not gevent's."""
    for name in ("_read_event", "_write_event"):
        args = getattr(getattr(sock, name, None), "args", None)
        if args:
            return args[0]
    return None
