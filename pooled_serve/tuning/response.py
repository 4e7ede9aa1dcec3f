"""A response that is sent in one piece, with a date that is formatted once a second.

gunicorn sends the headers, then the body: two system calls, two TCP segments, and a client that
wakes up twice, though both nearly always fit into one. Here the headers are sent with the first
piece of the body. This delays nothing: gunicorn, too, sends the headers at the first write().
"""

from __future__ import annotations

import functools
import time
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi

from pooled_serve.tuning import send, switches

_date = functools.lru_cache(maxsize=1)(util.http_date)


def http_date(timestamp: float | None = None) -> str:
    """As gunicorn's, for the Date header: of now, or of a Unix timestamp."""
    text: str = _date(int(time.time() if timestamp is None else timestamp))
    return text


class _Pieces(list[bytes]):
    """Takes the place of a socket in gunicorn's write functions, and collects what they send."""

    sendall = list.append


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, whose first write is a single send."""

    sock: Any

    def write(self, arg: Any) -> None:
        """Send a piece of the body, with the headers if they were not sent yet."""
        small = isinstance(arg, bytes) and 0 < len(arg) <= send.COPY_LIMIT_BYTES
        if self.headers_sent or not small:
            super().write(arg)
            return
        sock, pieces = self.sock, _Pieces()
        self.sock = pieces
        try:
            super().write(arg)
        finally:
            self.sock = sock
        if rest := send.unsent(sock, b"".join(pieces)):
            sock.sendall(rest)


def install() -> None:
    """Let gunicorn use these in this process. HTTP/2 has a class, and framing, of its own."""
    if switches.on("date"):
        # Everything else about the header stays gunicorn's.
        util.http_date = http_date
    if switches.on("one-send"):
        # gunicorn 27's wsgi.create() takes a class, but its caller would have to be rewritten to
        # pass one; that of 25.0 takes none. Both look up this name.
        wsgi.Response = Response
