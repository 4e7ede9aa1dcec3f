"""The signals that end a worker: none is lost while a worker starts, and one is enough."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)
"""Both end a worker at once. Ctrl-C reaches it twice: as INT from the terminal, as QUIT from the
master."""

_held: set[int | signal.Signals] | None = None  # the mask from before hold()


def hold() -> None:
    """Block them until :func:`release`, in a child, too; in the parent until it has forked."""
    global _held
    _held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])


def release() -> None:
    """Unblock them, which delivers those that are pending. Without :func:`hold` it does nothing."""
    global _held
    if _held is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _held)
        _held = None


# Only the child runs post_fork(), which releases there. The arbiter must not keep TERM blocked: it
# could not be stopped any more. gunicorn has no hook for the parent's side of a fork.
os.register_at_fork(after_in_parent=release)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Blocks them while the body sets handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_with(worker: Any) -> None:
    """Let a new worker handle them itself, instead of with the arbiter's handlers, which the fork
    copied."""
    signal.signal(signal.SIGTERM, worker.handle_exit)
    for number in INTERRUPTS:
        signal.signal(number, worker.handle_quit)


def ignore_interrupts() -> None:
    """For a process that is about to end: Python would print a traceback for each."""
    for number in INTERRUPTS:
        # Not SIG_IGN: for one that is pending in Python it would raise an OSError.
        signal.signal(number, _ignore)


def block_interrupts() -> None:
    """For the last steps of an exit, when Python restores the default action, which kills."""
    ignore_interrupts()
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)


def _ignore(number: int, frame: object) -> None:
    pass
