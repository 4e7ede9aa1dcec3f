"""How connections are shared among workers. The kernel lets all of them try; which one is first is
chance, so each test opens enough connections for chance to be visible."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.serve.balance import MAX_LOOKS
from support.processes import is_running, wait_until
from support.serve import Client, Serve
from support.torture import torture

VIEWS = Path(__file__).with_name("balance_views.py")

KEEP = ("--keep-alive", "60")

PATIENT = 2000
"""Looks, for those who wait for a worker that this machine may keep from its core for a while. In
production a client should not wait so long."""


@pytest.fixture
def folder(project: MakeProject) -> Path:
    return project(VIEWS, databases={})


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(serve: StartServe, folder: Path, workers: int, looks: int = PATIENT) -> Serve:
    web = serve(folder, "-w", str(workers), *KEEP, env={"LOOKS": str(looks)})
    web.wait_for_log("Booting worker", times=workers)
    for worker in web.worker_pids():
        accepts(web, worker)
    return web


def has_more(web: Serve, before: set[int]) -> bool:
    """Whether there is one worker more than these."""
    return len(web.worker_pids() - before) == 1


def accepts(web: Serve, worker: int) -> None:
    """Wait until this worker has loaded the project, and has answered and let its client go."""
    before = connections(web, worker)
    with web.only(worker):
        assert web.get("/pid").json() == worker
        wait_until(lambda: connections(web, worker) <= before)


def come(web: Serve, stack: ExitStack, clients: int) -> list[tuple[int, Client]]:
    """They connect one after the other, have one answer each, and stay."""
    found = []
    for _ in range(clients):
        client = stack.enter_context(web.keepalive())
        found.append((client.get("/pid").json(), client))
    return found


def shares(guests: list[tuple[int, Client]]) -> Counter[int]:
    return Counter(worker for worker, _ in guests)


def is_even(found: Counter[int], workers: set[int], each: int) -> bool:
    return set(found) == workers and all(abs(n - each) <= 1 for n in found.values())


def test_keep_alive_clients_are_shared_evenly(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 4)
    found = shares(come(web, stack, 32))
    assert is_even(found, web.worker_pids(), 8), found


def test_what_comes_and_goes_is_counted_out_again(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 2)
    for _ in range(20):
        web.get("/pid")
        with web.keepalive() as silent:
            silent._connection.connect()
    wait_until(lambda: not any(connections(web, worker) for worker in web.worker_pids()))
    first = min(web.worker_pids())
    guests = come(web, stack, 8)
    for worker, client in guests:
        if worker == first:
            client.close()
    wait_until(lambda: not connections(web, first))
    found = shares(come(web, stack, 4))
    assert found == {first: 4}


def test_a_worker_that_hangs_is_waited_for_once(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 2, MAX_LOOKS)
    other = min(web.worker_pids())
    with web.only(other):
        assert shares(come(web, stack, 10)) == {other: 10}
        assert web.get("/waits").json() == MAX_LOOKS


@torture
def test_after_it_hung_it_catches_up(folder: Path, serve: StartServe, stack: ExitStack) -> None:
    web = start(serve, folder, 2)
    hung, other = web.worker_pids()
    with web.only(other):
        assert shares(come(web, stack, 10)) == {other: 10}
    accepts(web, hung)  # until it does something, it is not waited for
    assert shares(come(web, stack, 8)) == {hung: 8}


def test_the_clients_of_a_worker_that_was_killed_do_not_count(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 2)
    come(web, stack, 8)
    for _ in range(3):
        before = web.worker_pids()
        os.kill(min(before), signal.SIGKILL)
        wait_until(partial(has_more, web, before))
        (new,) = web.worker_pids() - before
        accepts(web, new)
        assert shares(come(web, stack, 4)) == {new: 4}


def test_a_new_worker_gets_those_who_come(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 1)
    for _ in range(2):
        before = web.worker_pids()
        come(web, stack, 6 * len(before))
        web.signal(signal.SIGTTIN)
        wait_until(partial(has_more, web, before))
        (new,) = web.worker_pids() - before
        accepts(web, new)
        assert shares(come(web, stack, 5)) == {new: 5}
    web.signal(signal.SIGTTOU)


def test_the_generation_that_a_hup_replaced_does_not_count(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = start(serve, folder, 1)
    (old,) = web.worker_pids()
    come(web, stack, 2)
    web.signal(signal.SIGHUP)
    wait_until(lambda: len(web.worker_pids()) == 2 and not listens(web, old))
    assert is_running(old)  # its clients are still there
    (new,) = web.worker_pids() - {old}
    assert shares(come(web, stack, 6)) == {new: 6}
    assert web.get("/waits").json() == 0


def test_with_a_listener_of_its_own_a_worker_waits_for_nobody(
    folder: Path, serve: StartServe, stack: ExitStack
) -> None:
    web = serve(folder, "-w", "2", *KEEP, "--reuse-port", env={"LOOKS": str(MAX_LOOKS)})
    wait_until(lambda: len(web.worker_pids()) == 2)
    guests = come(web, stack, 16)
    assert {client.get("/waits").json() for _, client in guests} == {0}


# --- What the kernel knows -----------------------------------------------------------------------


def sockets(web: Serve, pid: int, state: str) -> set[str]:
    """Inodes of this process's sockets on the server's port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    there = {
        line[9]
        for line in lines
        if int(line[1].partition(":")[2], 16) == web.port and line[3] == state
    }
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # it was closed since
            found.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    return there & found


def listens(web: Serve, pid: int) -> bool:
    return bool(sockets(web, pid, "0A"))


def connections(web: Serve, pid: int) -> int:
    return len(sockets(web, pid, "01") | sockets(web, pid, "08"))
