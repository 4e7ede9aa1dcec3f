"""Which processes there are, from /proc, and waiting for what other processes do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

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
    condition: Callable[[], T | Literal[False] | None], timeout: float = MAX_WAIT_SECONDS
) -> T:
    """Ask again and again until the answer is true, and return it. Fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {timeout:g} s, the last answer is {answer!r}")
        time.sleep(0.02)


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
