"""What a worker still does for the clients that it has accepted when it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from support.processes import resume, suspend, wait_until
from support.serve import Serve, connect

BUSY, HOLD = (Path(__file__).with_name(f"{name}_views.py") for name in ("stopping", "last_words"))
CLIENTS = 70
"""gevent starts fifty greenlets in a row. That takes longer here than the second between two looks
of the worker whether to stop, so it closes its listeners before the others start."""

GRACEFUL = 8
LAST_WORDS = 7
"""Seconds before the end, as in last_words_views.py. A worker's own come 1.5 s before it, for which
a busy machine may keep it from its core."""

SOON = r"--graceful-timeout is over in [3-7]\.\d s, after which it may be cut\n  → if requests take"


@pytest.mark.parametrize("keep_alive", ["0", "60"])
def test_clients_accepted_before_a_stop_and_begun_after_it_are_served(
    keep_alive: str, project: MakeProject, serve: StartServe
) -> None:
    web = serve(project(BUSY, databases={}), "-w", "1", "--keep-alive", keep_alive)
    web.get("/hello")
    (worker,) = web.worker_pids()
    with ExitStack() as stack:
        suspend({worker})
        try:
            # All are accepted in one poll.
            clients = [stack.enter_context(connect(web.address)) for _ in range(CLIENTS)]
            for client in clients:
                client.sendall(b"GET /busy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        finally:
            resume({worker})
        assert clients[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
        web.signal(signal.SIGTERM)
        for client in clients[1:]:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200"), web.log
    wait_until(lambda: worker not in web.worker_pids())
    assert "ERROR" not in web.log


@pytest.mark.parametrize("more", [(), ("--reuse-port",)])
def test_clients_that_nobody_has_accepted_before_a_stop_are_served(
    more: tuple[str, ...], project: MakeProject, serve: StartServe
) -> None:
    web = serve(project(BUSY, databases={}), "-w", "2", *more)
    workers = wait_until(lambda: len(pids := web.worker_pids()) == 2 and pids)
    serving: set[int] = set()

    def all_serve() -> bool:
        serving.add(int(web.get("/pid").text))
        return serving == workers

    # One that is still loading the project when it is told to stop serves nobody.
    wait_until(all_serve)
    with ExitStack() as stack:
        suspend(workers)
        try:
            clients = [stack.enter_context(connect(web.address)) for _ in range(CLIENTS)]
            for client in clients:
                client.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            web.signal(signal.SIGTERM)
            web.wait_for_log("Handling signal: term")
            time.sleep(1.2)  # they look once a second, and are to do so before they accept
        finally:
            resume(workers)
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200"), web.log
    web.wait()
    assert "ERROR" not in web.log


def named(web: Serve, worker: int, sent: float) -> None:
    """Wait until the request that was sent then is named, and for how long it has been served."""
    web.wait_for_log("begun")
    begun = time.monotonic()
    web.signal(signal.SIGTERM)
    says = rf"worker {worker} has 1 request in flight \(GET /hold, (\d+) s\): {SOON}"
    found = web.wait_until_log(re.compile(says).search)
    now = time.monotonic()
    # Not before the last words, of which half a second may be rounded off.
    least = GRACEFUL - LAST_WORDS - 0.5
    assert least <= int(found[1]) <= now - sent + 0.5
    assert now - begun >= GRACEFUL - LAST_WORDS - 0.1


def test_requests_that_a_stop_may_cut_are_named(project: MakeProject, serve: StartServe) -> None:
    web = serve(project(HOLD, databases={}), "--graceful-timeout", str(GRACEFUL))
    (worker,) = web.worker_pids()
    with connect(web.address) as client:
        sent = time.monotonic()
        client.sendall(b"GET /hold?token=secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
        named(web, worker, sent)
        os.kill(worker, signal.SIGKILL)
        web.wait()
    assert "secret" not in web.log


def test_one_that_ends_in_time_is_not_named_as_cut(project: MakeProject, serve: StartServe) -> None:
    folder = project(HOLD, databases={})
    web = serve(folder, "--graceful-timeout", str(GRACEFUL))
    (worker,) = web.worker_pids()
    with connect(web.address) as client:
        sent = time.monotonic()
        client.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        named(web, worker, sent)
        (folder / "let_go").touch()
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200"), web.log
    web.wait()
