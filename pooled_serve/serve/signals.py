"""The signals that end a worker: none is lost while it comes to be, and one is enough."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)
"""Both end a worker at once. Ctrl-C reaches it twice: as INT from the terminal, as QUIT from the
master."""

_held: set[int | signal.Signals] | None = None  # what was blocked before a worker is forked


def hold() -> None:
    """Let them wait until :func:`release`, in a child, too; in the parent until the fork."""
    global _held
    _held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])


def release() -> None:
    """Deliver what has come meanwhile."""
    global _held
    if _held is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _held)
        _held = None


os.register_at_fork(after_in_parent=release)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Around what sets the handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_with(worker: Any) -> None:
    """Let a new worker handle them itself, and no longer with what the fork has copied."""
    signal.signal(signal.SIGTERM, worker.handle_exit)
    for number in INTERRUPTS:
        signal.signal(number, worker.handle_quit)


def ignore_interrupts() -> None:
    """From now on: this process is about to end. Python would print a traceback for each."""
    for number in INTERRUPTS:
        # Not SIG_IGN: Python has an OSError for one that has come, and was not handled yet.
        signal.signal(number, _ignore)


def block_interrupts() -> None:
    """For the last steps, in which Python restores the default action: to be killed."""
    ignore_interrupts()
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)


def _ignore(number: int, frame: object) -> None:
    pass
