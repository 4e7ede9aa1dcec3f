"""Finds the tests in which asyncio would wait for ever on gevent, and lets them go on.

Where gevent has patched the threads, a coroutine may become ready while its event loop sleeps, and
nobody tells the loop: https://github.com/gevent/gevent/issues/2213. Then it is told here.
"""

from __future__ import annotations

from asyncio.selector_events import BaseSelectorEventLoop
from typing import Any

LOOK_SECONDS = 0.05
"""Between two looks at a loop that sleeps."""

found: list[str] = []
"""What has stalled since it was emptied."""


def watch() -> None:
    """Look at all event loops that are made from now on."""
    make = BaseSelectorEventLoop.__init__

    def init(loop: Any, *args: Any, **options: Any) -> None:
        make(loop, *args, **options)
        loop._selector.select = _watched(loop, loop._selector.select)

    BaseSelectorEventLoop.__init__ = init  # type: ignore[method-assign, assignment]


def _watched(loop: Any, select: Any) -> Any:
    def look(timeout: float | None = None) -> Any:
        left = float("inf") if timeout is None else timeout
        while True:
            # Again, because whoever has told the loop may have done so between the two.
            events = select(min(left, LOOK_SECONDS)) or (left > 0 and select(0.001))
            left -= LOOK_SECONDS
            if events or left <= 0:
                return events or []
            if loop._ready:
                found.append(repr(loop._ready[0]))
                return []

    return look
