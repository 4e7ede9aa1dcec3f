"""The signals that end a worker: none is lost while a worker starts, and one is enough."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)
"""Both end a worker at once. Ctrl-C reaches it twice: as INT from the terminal, as QUIT from the
master."""

_mask_before: set[int | signal.Signals] | None = None  # the mask from before block()


def block() -> None:
    """Block them until :func:`unblock`, in a child, too; in the parent until it has forked."""
    global _mask_before
    _mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])


def unblock() -> None:
    """Unblock them, which delivers those that are pending. Does nothing without :func:`block`."""
    global _mask_before
    if _mask_before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before)
        _mask_before = None


# Only the child runs post_fork(), which releases there. The arbiter must not keep TERM blocked: it
# could not be stopped any more. gunicorn has no hook for the parent's side of a fork.
os.register_at_fork(after_in_parent=unblock)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
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


class _Exit(SystemExit):
    pass


def leave(number: int = 0, frame: object = None) -> None:
    """A signal handler that ends the process in order, as ``sys.exit(0)`` does.

    :raises SystemExit: in the main greenlet. Raised in gevent's hub, where a handler runs while
        the main greenlet sleeps, it might end the hub, which the end of the process still needs.
    """
    if _in_main_greenlet():
        raise _Exit(0)
    import gevent

    hub = gevent.get_hub()
    hub.loop.run_callback(hub.parent.throw, _Exit(0))


def keep_what_handlers_raise() -> None:
    """Raise again what :func:`leave` or Python's own handler of Ctrl-C raised in vain.

    A signal may arrive while Python runs a finalizer or the callback of a weak reference, which
    each import does. Python prints what the handler raises there, and goes on as if nothing had
    happened. Here it is raised by the next function call instead.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any, /) -> None:
        error = unraisable.exc_value
        ours = isinstance(error, KeyboardInterrupt) and (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if not ours and not isinstance(error, _Exit):
            before(unraisable)
            return

        def at_next_call(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and _in_main_greenlet() and not _runs(hook, frame):
                sys.setprofile(profiler)
                raise error

        profiler = sys.getprofile()
        sys.setprofile(at_next_call)

    sys.unraisablehook = hook


def _runs(function: Any, frame: FrameType | None) -> bool:
    """Another signal's handler may be called in there."""
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _in_main_greenlet() -> bool:
    """Not in gevent's hub: it would go wrong there instead of ending the process."""
    greenlet = sys.modules.get("greenlet")
    return greenlet is None or greenlet.getcurrent().parent is None


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
