"""What a worker still does for the clients that it has accepted when it is told to stop."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack

import pytest

from conftest import MakeProject, StartServe
from support.processes import resume, suspend, wait_until
from support.serve import connect

BUSY = """
    from time import monotonic

    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")

    def busy(request):
        end = monotonic() + 0.03
        while monotonic() < end:
            pass
        return HttpResponse("done")
"""
CLIENTS = 70
"""gevent starts fifty greenlets in a row. That takes longer here than the second between two looks
of the worker whether to stop, so it closes its listeners before the others start."""

SOON = r"--graceful-timeout is over in [01]\.\d s, after which it may be cut\n  → if requests take"


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
    wait_until(lambda: len(web.worker_pids()) == 2)
    web.wait_for_log("Booting worker", times=2)
    for _ in range(8):
        web.get("/hello")
    workers = web.worker_pids()
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


def test_requests_that_a_stop_may_cut_are_named(project: MakeProject, serve: StartServe) -> None:
    view = """
        import gevent
        from django.http import HttpResponse

        def hold(request):
            gevent.sleep(60)
    """
    web = serve(project(view, databases={}), "--graceful-timeout", "3")
    (worker,) = web.worker_pids()
    with connect(web.address) as client:
        client.sendall(b"GET /hold?token=secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.5)
        web.signal(signal.SIGTERM)
        says = rf"worker {worker} has 1 request in flight \(GET /hold, [123] s\): {SOON}"
        web.wait_for_log(re.compile(says))
        web.wait()
    assert "secret" not in web.log


def test_one_that_ends_in_time_is_not_named_as_cut(project: MakeProject, serve: StartServe) -> None:
    view = """
        import gevent
        from django.http import HttpResponse

        def hold(request):
            gevent.sleep(2)
            return HttpResponse("done")
    """
    web = serve(project(view, databases={}), "--graceful-timeout", "2")
    with connect(web.address) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.5)
        web.signal(signal.SIGTERM)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200"), web.log
    web.wait()
    assert re.search(rf"in flight \(GET /hold, [12] s\): {SOON}", web.log), web.log
