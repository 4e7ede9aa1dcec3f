"""New or rare parts of Gunicorn: HTTP/2, the fast parser, the control socket, websockets."""

from __future__ import annotations

import importlib.util
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from support.certificates import Authority
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.serve import Serve, connect
from support.servers import Database, Server
from support.site import VIEWS, Site

CAP = 3
OWN_VIEWS = Path(__file__).with_name("gunicorn_parts_views.py")

Start = Callable[..., Site]


@pytest.fixture
def start(project: Callable[..., Path], serve: Callable[..., Serve], mariadb: Server) -> Start:
    """Starts a site with these views and options."""

    def start(*options: str, **env: str) -> Site:
        database = mariadb.create_database()
        folder = project((VIEWS, OWN_VIEWS), databases={"default": database.django()})
        server = serve(folder, "--max-outstanding", str(CAP), *options, env=env)
        return Site(server, mariadb.admin, database, CAP)

    return start


# --- HTTP/2 ------------------------------------------------------------------------------------


class Client:
    """A connection of HTTP/2, over TLS."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), MAX_WAIT_SECONDS)
        self.sock = context.wrap_socket(plain)
        assert self.sock.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def ask(self, path: str) -> int:
        """Returns the number of the stream."""
        stream: int = self.h2.get_next_available_stream_id()
        headers = {":method": "GET", ":authority": "localhost", ":scheme": "https", ":path": path}
        self.h2.send_headers(stream, list(headers.items()), end_stream=True)
        self.flush()
        return stream

    def answers(self, count: int) -> dict[int, tuple[str, bytes]]:
        """Status and body of so many streams."""
        status: dict[int, str] = {}
        bodies: dict[int, bytes] = {}
        ended = 0
        while ended < count:
            data = self.sock.recv(65536)
            assert data, "the server has hung up"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status[event.stream_id] = dict(event.headers)[b":status"].decode()
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended += 1
            self.flush()
        return {stream: (status[stream], bodies.get(stream, b"")) for stream in status}


@pytest.fixture
def http2(
    project: Callable[..., Path], serve: Callable[..., Serve], mariadb: Server, tmp_path: Path
) -> Callable[..., tuple[Site, int]]:
    def start(*options: str) -> tuple[Site, int]:
        certificate = Authority(tmp_path / "certificates").issue("site")
        own, status = free_port(), ("127.0.0.1", free_port())
        database: Database = mariadb.create_database()
        server = serve(
            project((VIEWS, OWN_VIEWS), databases={"default": database.django()}),
            *("--certfile", str(certificate.cert), "--keyfile", str(certificate.key)),
            *("--http-protocols", "h2,h1", "--max-outstanding", str(CAP)),
            *("-b", f"127.0.0.1:{own}", "--status", "{}:{}".format(*status), *options),
            address=status,
            bind=False,
        )
        return Site(server, mariadb.admin, database, CAP), own

    return start


def stats(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.server.get("/stats.json").json()["pools"]["default"]
    return found


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_each_stream_of_http_2_has_a_lease_of_its_own(
    http2: Callable[..., tuple[Site, int]], mode: str
) -> None:
    site, port = http2("--pool-mode", mode)

    def converse(client: int) -> None:
        with Client(port) as connection:
            streams = {connection.ask(f"/pieces?n={client * 10 + i}"): i for i in range(5)}
            for stream, (status, body) in connection.answers(5).items():
                number, _, rest = body.partition(b"\n")
                assert status == "200"
                assert float(number) == client * 10 + streams[stream]
                assert len(rest) == 40_000

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(converse, range(8)))
    with Client(port) as connection:
        connection.ask("/run?sql=SET+@x+%3D+1")
        connection.answers(1)
        stream = connection.ask("/run?sql=SELECT+@x")
        assert b"None" in connection.answers(1)[stream][1], "of the stream before it"
    wait_until(lambda: stats(site)["in_use"] == 0)
    found = stats(site)
    assert found["acquired_total"] == 42
    assert found["opened_total"] <= CAP
    assert found["timeouts_total"] == 0
    routes = site.server.get("/stats.json").json()["routes"]
    assert {r["route"]: r["leases_total"] for r in routes} == {"pieces": 40, "run": 2}
    held = sum(route["held_seconds_total"] for route in routes)
    assert held == pytest.approx(found["held_seconds_total"])
    assert "Traceback" not in site.server.log


def test_streams_that_are_reset_and_connections_that_are_cut_leave_nothing(
    http2: Callable[..., tuple[Site, int]],
) -> None:
    site, port = http2()
    for _ in range(10):
        with Client(port) as connection:
            stream = connection.ask("/pieces?n=1")
            connection.ask("/pieces?n=2")
            connection.h2.reset_stream(stream)
            connection.flush()
        with Client(port) as connection:
            connection.ask("/pieces?n=3")
    wait_until(lambda: stats(site)["in_use"] == stats(site)["waiting"] == 0)
    with Client(port) as connection:
        stream = connection.ask("/pieces?n=4")
        assert connection.answers(1)[stream][0] == "200"
    assert stats(site)["idle"] <= CAP
    assert "Traceback" not in site.server.log


# --- The fast parser ---------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("gunicorn_h1c") is None, reason="there is no package gunicorn_h1c here"
)
def test_the_fast_parser(start: Start) -> None:
    site = start("--http-parser", "fast")
    for path in ("/run?sql=SELECT+1", "/pieces?n=7"):
        answers = site.at_once(path, 20)
        assert [answer.status for answer in answers] == [200] * 20
    with site.server.keepalive() as client:
        for number in range(20):
            assert client.get(f"/run?sql=SELECT+{number}").json() == [[str(number)]]
    site.assert_whole()


# --- The control socket ------------------------------------------------------------------------


def test_workers_that_the_control_socket_adds_count_in_the_plan(
    project: Callable[..., Path],
    serve: Callable[..., Serve],
    start_mariadb: Callable[..., Server],
    tmp_path: Path,
) -> None:
    database = start_mariadb("--max-connections=30").create_database()
    control = tmp_path / "control"
    server = serve(
        project((VIEWS, OWN_VIEWS), databases={"default": database.django()}),
        *("-w", "1", "--max-outstanding", "12", "--control-socket", str(control)),
    )

    def listens() -> bool:  # the file is there a little sooner
        with suppress(OSError):
            connect(str(control)).close()
            return True
        return False

    wait_until(listens)

    def tell(command: str) -> None:
        gunicornc = Path(sys.executable).with_name("gunicornc")
        subprocess.run(
            [gunicornc, "-s", control, "-c", command],
            check=True,
            capture_output=True,
            timeout=MAX_WAIT_SECONDS,
            env={**os.environ, "HOME": str(tmp_path)},
        )

    tell("worker add 2")
    wait_until(lambda: len(server.worker_pids()) == 3)
    server.wait_for_log("3 workers × 12 connections = 36, the server allows 30")
    tell("worker remove 1")
    wait_until(lambda: len(server.worker_pids()) == 2)
    server.wait_for_log("2 workers fit the connection budget again")
    assert server.get("/run?sql=SELECT+1").status == 200


# --- Websockets --------------------------------------------------------------------------------


def open_websocket(server: Serve) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), MAX_WAIT_SECONDS)
    sock.sendall(
        b"GET /websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455, 1.3
    return sock


def say(sock: socket.socket, number: int) -> int:
    text = str(number).encode()
    sock.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
    return int(sock.recv(64)[2:])


def test_websockets_hold_a_connection_only_while_they_ask_in_transaction_mode(start: Start) -> None:
    site = start("--pool-mode", "transaction", "--worker-connections", "50")
    sockets = [open_websocket(site.server) for _ in range(4 * CAP)]
    with ThreadPoolExecutor(len(sockets)) as threads:
        for _ in range(5):
            answers = list(threads.map(say, sockets, range(len(sockets))))
            assert answers == [2 * number for number in range(len(sockets))]
    assert site.pool()["in_use"] == 0
    for sock in sockets:
        sock.close()
    assert site.run("SELECT 1").status == 200
    site.assert_whole()


def test_websockets_hold_a_connection_to_their_end_in_request_mode(start: Start) -> None:
    """It is the view that has not returned; README says so."""
    site = start("--worker-connections", "50")
    sockets = [open_websocket(site.server) for _ in range(CAP - 1)]
    assert [say(sock, 4) for sock in sockets] == [8] * len(sockets)
    assert site.pool()["in_use"] == CAP - 1
    for sock in sockets:
        sock.close()
    wait_until(lambda: site.pool()["in_use"] == 0)
    site.assert_whole()
