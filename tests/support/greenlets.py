"""Waiting for greenlets, for no less than was asked for, and how late they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

import gevent

from support.processes import MAX_WAIT_SECONDS


def join_all(greenlets: Sequence[gevent.Greenlet], *, raise_error: bool = True) -> None:
    """Wait until all have ended.

    Not by gevent.joinall's own timeout: that counts from when the event loop last looked at the
    clock, which may be the end of a test minutes ago.

    :raises gevent.Timeout: some have not within MAX_WAIT_SECONDS.
    """
    with gevent.Timeout(MAX_WAIT_SECONDS):
        gevent.joinall(greenlets, raise_error=raise_error)


class Late:
    """How late a busy machine lets this process be, in seconds: greenlets that sleep tell."""

    def __enter__(self) -> Late:
        self.seconds = 0.0
        self.ticker = gevent.spawn(self.tick)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ticker.kill()

    def tick(self) -> None:
        before = time.monotonic()
        while True:
            gevent.sleep(0.001)
            now = time.monotonic()
            self.seconds += max(0.0, now - before - 0.002)
            before = now
