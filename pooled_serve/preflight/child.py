"""Run a function in a forked child, in a session of its own, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from gevent.monkey import get_original
from gevent.os import fork_gevent

POLL_SECONDS = 0.05
"""Seconds between two checks that the child is still alive."""

GRACE_SECONDS = 0.5
"""Seconds that processes left behind by the child have to end after SIGTERM."""

EXIT_RAISED = 70
"""Exit code of a child whose function has raised."""

_END_SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)
_HEAD = struct.Struct(">?Q")  # whether the function returned; number of bytes that follow

# A configuration file may have let gevent patch this process. Its versions need a running event
# loop; without one they wait for ever.
_select, _sleep, _waitpid = (
    get_original(*name) for name in (("select", "select"), ("time", "sleep"), ("os", "waitpid"))
)


class ChildDied(Exception):
    """The child ended without an answer.

    :ivar code: its exit code; if negative, the signal that ended it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def call(
    work: Callable[[], bytes], *, slow_after: float = float("inf"), slow: Callable[[], None]
) -> bytes:
    """Run ``work`` in a child and return its result.

    The child has a session and a process group of its own. When this returns or raises, the whole
    group has ended: by TERM, then by KILL. A signal that ends this process ends the group, too. A
    process that started yet another session survives, and is not waited for.

    :param slow: called once, if there is no answer after ``slow_after`` seconds.
    :raises ChildDied: there was no answer. If ``work`` raised, its traceback is printed.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Both processes hold signals back until their own handlers are in place.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, *_END_SIGNALS])
    pid = fork_gevent()
    if pid == 0:
        _child(writer, work, held)
    os.close(writer)
    code, returned, answer = 0, False, None
    try:
        with _ending_together(pid):
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            answer = _receive(reader, pid, slow_after, slow)
    except BaseException:
        _kill(pid)
        raise
    finally:
        os.close(reader)
        code = _end(pid)
    if answer is None:
        raise ChildDied(code)
    returned, content = answer
    if not returned:
        sys.stderr.write(content.decode())
        raise ChildDied(EXIT_RAISED)
    return content


# --- In the child ------------------------------------------------------------------------------


def _child(writer: int, work: Callable[[], bytes], held: set[int | signal.Signals]) -> NoReturn:
    try:
        os.setsid()
        for number in _END_SIGNALS:  # as PID 1, this process had a handler
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        # The workers will print again whatever the project prints while it loads. And a surviving
        # daemon must not keep the output open: the reader of a pipe would wait for its end.
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        try:
            returned, content = True, work()
        except KeyboardInterrupt:
            raise
        except BaseException:
            returned, content = False, traceback.format_exc().encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(_HEAD.pack(returned, len(content)) + content)
        os._exit(0)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the parent was interrupted too, or is gone
    finally:
        os._exit(EXIT_RAISED)


# --- In the parent -----------------------------------------------------------------------------


@contextlib.contextmanager
def _ending_together(pid: int) -> Iterator[None]:
    """End the child when a signal ends this process. In a session of its own it does not get what
    a terminal or a process manager sends to this process group."""

    def end(number: int, frame: Any) -> None:
        _kill(pid)
        signal.signal(number, before[signal.Signals(number)])
        os.kill(os.getpid(), number)

    before = {n: signal.getsignal(n) for n in _END_SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _receive(
    reader: int, pid: int, slow_after: float, slow: Callable[[], None]
) -> tuple[bool, bytes] | None:
    """Returns the answer, or None if the child ended without one.

    The end of the pipe proves neither: the child's own children hold it open, too.
    """
    began = time.monotonic()
    received = b""
    ended = False
    while not ended:
        # Before the read, or its last words could be missed.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        while _select([reader], [], [], 0 if ended else POLL_SECONDS)[0]:
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                return None
            received += chunk
            if len(received) >= _HEAD.size:
                returned, length = _HEAD.unpack_from(received)
                if len(received) >= _HEAD.size + length:
                    return returned, received[_HEAD.size :]
        if time.monotonic() - began > slow_after:
            slow_after = float("inf")
            slow()
    return None


def _kill(pid: int) -> None:
    """Kill the child first, which can then fork no more, and then its group."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _end(pid: int) -> int:
    """End the child and all of its process group. Returns the child's exit code.

    Waits for them: the next process that loads the project may need the same port or lock.
    """
    os.kill(pid, signal.SIGKILL)  # no error if it has ended: it was not reaped yet
    code = os.waitstatus_to_exitcode(_waitpid(pid, 0)[1])
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        while _signal_group(pid, number):
            if time.monotonic() > deadline:
                break
            _sleep(0.01)
    return code


def _signal_group(group: int, number: int) -> bool:
    """Returns whether any process of the group was left to signal."""
    with contextlib.suppress(ChildProcessError):
        _waitpid(-group, os.WNOHANG)  # PID 1 inherits them
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
