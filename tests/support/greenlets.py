"""Waiting for greenlets, for no less than was asked for."""

from __future__ import annotations

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
