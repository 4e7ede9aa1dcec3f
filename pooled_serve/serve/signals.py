"""The signals that end a worker: none is lost while it starts, and one is enough."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

INTERRUPTS = (signal.SIGINT, signal.SIGQUIT)
"""Both end a worker at once. Ctrl-C causes two: INT from the terminal, QUIT from the master."""

_mask_before: set[int | signal.Signals] | None = None  # the mask from before block()
_leaving = False  # the last steps of an exit have begun


def block() -> None:
    """Block the signals that end a worker until :func:`unblock`. A forked child inherits that; the
    parent unblocks once it has forked."""
    global _mask_before
    _mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])


def unblock() -> None:
    """Undo :func:`block`, which delivers pending signals. Without it, does nothing."""
    global _mask_before
    if _mask_before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before)
        _mask_before = None


# The child unblocks in gunicorn's post_fork(). For the parent, which is the arbiter, gunicorn has
# no such hook, and with TERM blocked it could not be stopped any more: so every parent of a fork
# unblocks. If nothing is blocked, as when the project forks, this does nothing.
os.register_at_fork(after_in_parent=unblock)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals that end a worker in the body, which sets handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, *INTERRUPTS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_with(worker: Any) -> None:
    """Set the handlers of a new worker, which has the arbiter's since the fork."""
    signal.signal(signal.SIGTERM, worker.handle_exit)
    for number in INTERRUPTS:
        signal.signal(number, worker.handle_quit)


class _Exit(SystemExit):
    pass


def leave(number: int = 0, frame: object = None) -> None:
    """A signal handler that ends the process in an orderly way, like ``sys.exit(0)``.

    :raises SystemExit: in the main greenlet, always. While that sleeps, handlers run in gevent's
        hub; raised there, it might end the hub, which the end of the process still needs.
    """
    if _in_main_greenlet():
        raise _Exit(0)
    import gevent

    hub = gevent.get_hub()
    hub.loop.run_callback(_throw, hub.parent)


def _throw(main: Any) -> None:
    if not _leaving:  # by itself, meanwhile: Python would print a traceback where the process ends
        main.throw(_Exit(0))


def keep_what_handlers_raise() -> None:
    """Raise again what Python swallows of :func:`leave` and of its own handler of Ctrl-C.

    A signal may arrive while Python runs a finalizer or the callback of a weak reference, as in
    each import. Python prints the handler's exception there, and goes on as if nothing had
    happened. Here the next function call raises it instead.
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
    """Whether a frame belongs to a call of the function, which a handler may have interrupted."""
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _in_main_greenlet() -> bool:
    """Whether this is not gevent's hub, nor another greenlet."""
    greenlet = sys.modules.get("greenlet")
    return greenlet is None or greenlet.getcurrent().parent is None


def tell_at_once(arbiter: Any, tell: Callable[[], None]) -> None:
    """Have a function called as soon as a signal arrives that ends the arbiter. That takes up one
    signal after another, and in a reload waits for the old workers first.

    To be called before the arbiter sets its handlers.
    """
    queue = arbiter.signal

    def handler(number: int, frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, *INTERRUPTS) and os.getpid() == arbiter.pid:
            tell()
        queue(number, frame)

    arbiter.signal = handler


def ignore_interrupts() -> None:
    """Ignore INT and QUIT in a process that is about to end: Python would print tracebacks."""
    for number in INTERRUPTS:
        # Not SIG_IGN: a signal already pending in Python would raise an OSError.
        signal.signal(number, _ignore)


def block_interrupts() -> None:
    """Block INT and QUIT for the last steps of an exit, where Python restores the default action,
    which kills."""
    global _leaving
    _leaving = True
    ignore_interrupts()
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)


def _ignore(number: int, frame: object) -> None:
    pass
