"""The pool: policy only. Knows gevent, but neither a database nor Django."""

from pooled_serve.pool.pool import (
    BACKOFF_FIRST,
    BACKOFF_MOST,
    CLOSE_TIMEOUT,
    DIRTY,
    MOVED,
    PING_TIMEOUT,
    ConnectionPool,
    Observer,
    get_thread,
)

__all__ = [
    "BACKOFF_FIRST",
    "BACKOFF_MOST",
    "CLOSE_TIMEOUT",
    "DIRTY",
    "MOVED",
    "PING_TIMEOUT",
    "ConnectionPool",
    "Observer",
    "get_thread",
]
