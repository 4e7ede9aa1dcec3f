"""However many clients of the status listener say nothing, a probe is answered."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.status.clients import CLIENT_TIMEOUT_SECONDS, MAX_CLIENTS
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Serve
from support.torture import torture

SILENT = 500
FILES = 60  # open files of a worker that serves nobody, and some
HELLO = """
    import gc

    import gevent
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")

    def greenlets(request):
        found = [each for each in gc.get_objects() if isinstance(each, gevent.Greenlet)]
        return HttpResponse(sum(not each.dead for each in found))
"""
CONF = """
def post_worker_init(worker):
    from pooled_serve.status import clients
    clients.CLIENT_TIMEOUT_SECONDS = 600  # no client times out while the test lasts

def when_ready(server):
    import socket
    for listener in server.LISTENERS:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # what is sent waits to be read
"""


class Status:
    def __init__(self, server: Serve, port: int) -> None:
        self.server = server
        self.port = port

    def get(self, path: str) -> int:
        with Client(("127.0.0.1", self.port), timeout=20) as client:
            return client.get(path).status

    def files(self) -> int:
        """The most that a worker has open."""
        return max(len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in self.server.worker_pids())


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * SILENT:
        pytest.skip("may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * SILENT), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def start(project: MakeProject, serve: StartServe) -> Callable[..., Status]:
    def start(*args: str, conf: str = CONF) -> Status:
        folder = project(HELLO, databases={})
        (folder / "gunicorn.conf.py").write_text(conf)
        port = free_port()
        return Status(serve(folder, "--status", f"127.0.0.1:{port}", *args), port)

    return start


@pytest.fixture
def connect() -> Iterator[Callable[[int, bytes], socket.socket]]:
    with ExitStack() as stack:

        def connect(port: int, said: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.settimeout(20)
            client.connect(("127.0.0.1", port))
            client.sendall(said)
            return client

        yield connect


@torture
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "said",
    [b"", b"GET /livez HTTP/1.1\r\nX-", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
    ids=["silent", "slow to ask", "slow to read"],
)
def test_a_probe_is_answered(
    start: Callable[..., Status], connect: Callable[..., socket.socket], said: bytes, workers: str
) -> None:
    it = start("-w", workers)
    clients = [connect(it.port, said) for _ in range(SILENT)]
    for path in ("/livez", "/readyz", "/stats.json"):
        assert it.get(path) == 200
    wait_until(lambda: it.files() <= MAX_CLIENTS + FILES)
    # They were ended from the oldest on.
    assert clients[0].recv(1 << 20) is not None
    assert it.server.get("/hello").status == 200


def test_silence_costs_no_greenlet(
    start: Callable[..., Status], connect: Callable[..., socket.socket]
) -> None:
    """Or the probe behind 500 of them waits for all of these to be made and killed."""
    it = start()

    def greenlets() -> int:
        return int(it.server.get("/greenlets").text)

    before, files = greenlets(), it.files()
    clients = [connect(it.port, b"") for _ in range(MAX_CLIENTS)]
    # Some: the worker may still have had the connection of the request above, and its greenlet.
    some = 5
    wait_until(lambda: it.files() >= files + MAX_CLIENTS - some)
    assert greenlets() <= before + some
    for client in clients:
        client.sendall(b"GET /livez HTTP/1.1\r\n")
    wait_until(lambda: greenlets() >= before + MAX_CLIENTS - 2 * some)  # so they are counted at all


def test_drops_keep_no_place(
    start: Callable[..., Status], connect: Callable[..., socket.socket]
) -> None:
    """A byte now and then is no request either."""
    it = start()
    clients = [connect(it.port, b"GET /livez HTTP/1.1\r\n") for _ in range(MAX_CLIENTS)]
    oldest = clients[0]
    oldest.sendall(b"X-More: 1\r\n")
    assert it.get("/livez") == 200
    with suppress(ConnectionResetError):  # if its byte was not read yet
        assert oldest.recv(1) == b""
    # All others are there, and are answered once they have asked.
    for client in clients[1:]:
        client.sendall(b"Host: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_client_that_has_asked_outlasts_silent_ones(
    start: Callable[..., Status], connect: Callable[..., socket.socket]
) -> None:
    it = start()
    reader = connect(it.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reader.recv(12) == b"HTTP/1.1 200"
    for _ in range(SILENT):
        connect(it.port, b"")
    assert it.get("/livez") == 200
    received = b""
    while data := reader.recv(1 << 16):
        received += data
    assert received.endswith(b"</html>\n")


def test_who_asks_while_the_worker_stands_still_is_answered_and_not_reset(
    start: Callable[..., Status], connect: Callable[..., socket.socket]
) -> None:
    """As by a view that computes. What was sent meanwhile is unread when the client's time is up,
    and to close such a socket resets the connection."""
    it = start(conf="")
    (worker,) = it.server.worker_pids()
    silent, slow = connect(it.port, b""), connect(it.port, b"GET /livez HTTP/1.1\r\n")
    assert it.get("/livez") == 200  # those before it are accepted by now
    os.kill(worker, signal.SIGSTOP)
    try:
        silent.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.sendall(b"Host: x\r\n\r\n")
        time.sleep(CLIENT_TIMEOUT_SECONDS + 1)  # it stands still for so long
    finally:
        os.kill(worker, signal.SIGCONT)
    for client in (silent, slow):
        assert client.recv(12) == b"HTTP/1.1 200"
