"""``with pool.lease() as conn:``, which gives the connection back however the block ends."""

from __future__ import annotations

from typing import Generic, Protocol

from pooled_serve.pool.entry import C


class Lender(Protocol[C]):
    """The methods of a pool that a lease calls."""

    def acquire(self, timeout: float | None = None) -> C:
        """Take a connection."""

    def release(self, conn: C) -> None:
        """Give it back."""

    def reclaim(self, conn: C) -> None:
        """Give it back from anywhere."""


class Lease(Generic[C]):
    """A connection for the length of a ``with`` block; see :meth:`ConnectionPool.lease`.

    A class, because a generator costs more and has more points at which an exception can strike.
    """

    __slots__ = ("_conn", "_pool", "_timeout")

    def __init__(self, pool: Lender[C], timeout: float | None) -> None:
        self._conn: C | None = None
        self._pool = pool
        self._timeout = timeout

    def __enter__(self) -> C:
        if self._conn is not None:
            raise RuntimeError("this lease is in use already; each block needs one of its own")
        self._conn = self._pool.acquire(self._timeout)
        return self._conn

    def __exit__(self, *exc_info: object) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool.release(conn)

    def __del__(self) -> None:
        # A signal handler's exception can strike after the hand-out and before the block.
        if self._conn is not None:
            self._pool.reclaim(self._conn)
