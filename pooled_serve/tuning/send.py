"""Sending what is small without the preparations for what is large.

gevent's sendall() asks the kernel how large its buffer is, takes a view of the data and looks at
the clock, in case one send is not enough. For a query or a page of some kilobytes one nearly always
is. Belongs upstream. With the date of response.py it won 5 % of the time of a page without a query,
and 4 % with one.
"""

from __future__ import annotations

from typing import Any

from gevent.socket import socket

from pooled_serve.tuning import switches

COPY_LIMIT_BYTES = 64 * 1024
"""Bounds what is copied: to join pieces, and what the kernel has not taken. Not a measured
break-even."""

_direct = switches.on("direct-send")


def unsent(sock: Any, data: bytes) -> bytes:
    """Give the kernel as much as it takes at once; what is left is for sendall(). Never waits.

    Of what is not a plain socket of gevent, TLS above all, everything is left.
    """
    if not _direct or type(sock) is not socket or len(data) > COPY_LIMIT_BYTES:
        return data
    try:
        sent: int = sock._sock.send(data)
    except (OSError, AttributeError):
        return data  # the buffer is full, or sendall() tells what is wrong
    return data[sent:]
