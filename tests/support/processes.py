"""Which processes there are, from /proc, and waiting for what other processes do."""

from __future__ import annotations

import linecache
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

TESTS = Path(__file__).parents[1]

T = TypeVar("T")

MAX_WAIT_SECONDS = 30.0
"""Seconds until what does not happen fails a test; a busy machine may keep a process waiting."""


class Process(NamedTuple):
    pid: int
    parent: int
    group: int
    state: str  # one letter, as in ps


def running() -> Iterator[Process]:
    """All processes but those that have ended and only wait for their parent to notice."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended since
            # The name comes second, in parentheses, and may itself contain spaces and parentheses.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            state, parent, group = fields[:3]
            if state not in "ZX":
                yield Process(int(folder.name), int(parent), int(group), state)


def children(pid: int) -> set[int]:
    return {process.pid for process in running() if process.parent == pid}


def members(group: int) -> set[int]:
    return {process.pid for process in running() if process.group == group}


def is_running(pid: int) -> bool:
    return any(process.pid == pid for process in running())


def suspend(pids: set[int]) -> None:
    """Let them do nothing until SIGCONT. To have sent the signal is not to have stopped them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: pids <= suspended())


def resume(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def suspended() -> set[int]:
    return {process.pid for process in running() if process.state == "T"}


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def wait_until(
    condition: Callable[[], T | Literal[False] | None],
    timeout: float = MAX_WAIT_SECONDS,
    *,
    asked: Callable[..., object] | None = None,
    showing: Callable[[], object] = str,
) -> T:
    """Ask again and again until the answer is true, and return it. Fail after `timeout` seconds.

    :param asked: what the test awaits, if that is not the condition itself.
    :param showing: says what else is to be seen then, such as the end of a log.
    """
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            what = f"not so within {timeout:g} s: {source_of(asked or condition)}"
            raise AssertionError(f"{what}, the last answer is {answer!r}\n{showing()}".rstrip())
        time.sleep(0.02)


def source_of(function: Callable[..., object]) -> str:
    """Its text and its place, if it is a lambda, else its name and its place."""
    code = getattr(getattr(function, "func", function), "__code__", None)  # func: of a partial
    if code is None:
        return repr(function)
    path = Path(code.co_filename)
    place = f"{path.relative_to(TESTS.parent) if path.is_relative_to(TESTS) else path}"
    # Where its instructions come from; those that nothing is written for have no width.
    spans = [
        ((line, column), (last_line, end))
        for line, last_line, column, end in code.co_positions()
        if line and last_line and column is not None and end and (line, column) != (last_line, end)
    ]
    if code.co_name != "<lambda>" or not spans:
        return f"{code.co_name}() at {place}:{code.co_firstlineno}"
    (first, column), (last, end) = min(span[0] for span in spans), max(span[1] for span in spans)
    lines = [line.encode() for line in linecache.getlines(code.co_filename)[first - 1 : last]]
    if not lines:
        return f"a lambda at {place}:{first}"
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][column:]
    return f"`{' '.join(b''.join(lines).decode().split())}` at {place}:{first}"


@contextmanager
def forked(does: Callable[[], object]) -> Iterator[int]:
    """The process id of a child that has done this, and waits until it is killed at the end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            does()
            os.write(writer, b"done")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read(4) == b"done", "the child has failed"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
