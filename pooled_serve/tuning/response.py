"""A response that leaves in one piece, with a date that is written once a second.

gunicorn sends the headers, then the body: two system calls, two TCP segments, and a client that
is woken twice, for what nearly always fits into one. Here the headers travel with the first piece
of the body. Nothing waits for anything: gunicorn, too, sends the headers at the first write().
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
    """As gunicorn's, for the Date header: now, or those seconds since 1970."""
    text: str = _date(int(time.time() if timestamp is None else timestamp))
    return text


class _Pieces(list[bytes]):
    """Looks like a socket to gunicorn's write functions, and keeps what they send."""

    sendall = list.append


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, of which the first write is a single send."""

    sock: Any

    def write(self, arg: Any) -> None:
        """Send a piece of the body, and the headers before it if that has not happened."""
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
    """Let gunicorn make these in this process. HTTP/2 has a class, and a framing, of its own."""
    if switches.on("date"):
        # Everything else about the header stays gunicorn's.
        util.http_date = http_date
    if switches.on("one-send"):
        # gunicorn 27's wsgi.create() takes a class, but only from a caller that would have to be
        # written anew; that of 25.0 takes none. Both look up this name.
        wsgi.Response = Response
