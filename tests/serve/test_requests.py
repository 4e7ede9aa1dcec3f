"""However a request ends, its connection goes back, clean, and nothing of it reaches the next."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import pytest

from support.client import gate
from support.django_project import APP, write_project
from support.load import Hammer
from support.processes import MAX_WAIT_SECONDS, resume, suspend, wait_until
from support.serve import Serve
from support.servers import Server
from support.site import VIEWS as SITE_VIEWS
from support.site import Site

CAP = 4
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

VIEWS = Path(__file__).with_name("requests_views.py")


@pytest.fixture(scope="module")
def shared(mariadb: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for the whole file: what a test leaves behind, the next one trips over.

    Its connections stay, for they are counted. So do idle clients: what a request has kept would
    come back when its client is hung up on.
    """
    database = mariadb.create_database()
    mariadb.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    folder = write_project(
        tmp_path_factory.mktemp("requests") / "project",
        databases={"default": database.django()},
        views=(SITE_VIEWS, VIEWS),
    )
    numbers = ("--pool-size", str(CAP), "--max-outstanding", str(CAP))
    ages = ("--conn-max-age", "3600", "--keep-alive", "3600")
    with Serve(APP, *numbers, *ages, cwd=folder) as server:
        yield Site(server, mariadb.admin, database, CAP)


@pytest.fixture
def website(shared: Site) -> Iterator[Site]:
    shared.admin.query(f"DELETE FROM {shared.database.name}.t")
    yield shared
    shared.assert_whole()


def rows(website: Site) -> list[int]:
    found = website.admin.query(f"SELECT n FROM {website.database.name}.t ORDER BY n")
    return [row["n"] for row in found]


def opened(website: Site) -> int:
    total: int = website.pool()["opened_total"]
    return total


# --- Ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("boom", 500),
        ("boom_in_transaction", 500),
        ("boom_in_atomic", 500),
        ("forgotten_transaction", 200),
        ("forgotten_autocommit", 200),
        ("forgotten_atomic", 200),
        ("closed_in_atomic", 200),
    ],
)
def test_a_request_that_fails_or_forgets_changes_nothing_and_its_connection_is_reused(
    website: Site, path: str, status: int
) -> None:
    website.fill()
    before = opened(website)
    with website.server.keepalive() as client:
        for _ in range(2 * CAP):
            assert client.get(f"/{path}").status == status
    assert rows(website) == []
    assert opened(website) == before


@pytest.mark.parametrize("path", ["timeout_in_query", "timeout_in_transaction", "killed", "exits"])
def test_what_escapes_a_view_loses_no_slot(website: Site, path: str) -> None:
    request = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()

    def once(_: int) -> None:
        with socket.create_connection(
            ("127.0.0.1", website.server.port), MAX_WAIT_SECONDS
        ) as client:
            client.sendall(request)
            client.settimeout(0.5)
            with suppress(OSError):  # gunicorn may just hang up, or not even that
                client.recv(1)

    def begun() -> int:
        number: int = website.server.get("/requests_begun").json().get(f"/{path}", 0)
        return number

    website.fill()
    before = begun()
    with ThreadPoolExecutor(CAP) as clients:
        list(clients.map(once, range(3 * CAP)))
    # A busy worker may come to a request after its client has left.
    wait_until(lambda: begun() == before + 3 * CAP)
    wait_until(lambda: website.pool()["in_use"] == 0)
    assert rows(website) == []
    assert website.run("SELECT 1").status == 200


def test_a_result_that_was_not_read_is_not_left_to_the_next(website: Site) -> None:
    for _ in range(2 * CAP):
        assert website.server.get("/forgotten_cursor").status == 200
        assert website.run("SELECT 3").json() == [["3"]]
    assert website.pool_at_rest()["closed_total"]["unread"] >= 2 * CAP


def test_nested_atomic_and_on_commit_do_what_they_say(website: Site) -> None:
    with website.server.keepalive() as client:
        for _ in range(3):
            assert client.get("/nested").json() == ["outer"]
    assert rows(website) == [1, 1, 1, 3, 3, 3]


def test_nothing_passes_between_the_requests_of_one_keep_alive_client(website: Site) -> None:
    with website.server.keepalive() as client:
        clean = client.get("/flags").json()
        for _ in range(3):
            assert client.get("/pollute").status == 200
            assert client.get("/flags").json() == clean
    assert clean == [False, 0, 0, False, False, 0, 0, True]
    assert rows(website) == []


def test_atomic_requests(site: Any, mariadb: Server) -> None:
    database = mariadb.create_database()
    mariadb.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    website = site(database=database, views=VIEWS, ATOMIC_REQUESTS=True)
    with website.server.keepalive() as client:
        for _ in range(CAP + 1):
            assert client.get("/boom").status == 500
            assert client.get("/nested").json() == []  # its hooks run when the request ends
            assert client.get("/boom_in_atomic").status == 500
    wait_until(lambda: rows(website) == [1] * (CAP + 1) + [3] * (CAP + 1))
    website.fill()
    wait_until(lambda: website.pool()["in_use"] == 0)  # that request asks for none
    stats = website.pool()
    assert stats["opened_total"] == len(website.connection_ids()) == CAP


# --- Streams and clients that leave ------------------------------------------------------------


def test_a_stream_that_is_read_to_its_end_commits_and_gives_back(website: Site) -> None:
    for _ in range(CAP + 1):
        answer = website.server.get("/stream?rows=3")
        assert len(answer.body) == 300_000
    assert rows(website) == [1] * (CAP + 1)
    website.pool_at_rest()


def test_a_stream_that_fails_gives_back(website: Site) -> None:
    for _ in range(CAP + 1):
        with suppress(Exception):
            website.server.get("/stream_boom")
    wait_until(lambda: website.pool()["in_use"] == 0)


def send(website: Site, path: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", website.server.port), MAX_WAIT_SECONDS)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def leave(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def test_a_stream_whose_client_leaves_is_rolled_back_and_gives_back(website: Site) -> None:
    clients = [send(website, "/stream?rows=1000") for _ in range(CAP)]
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    for client in clients:
        leave(client)
    # With the pool's connections all in use, this one waits until one of them notices.
    assert website.run("SELECT 1").status == 200
    wait_until(lambda: website.pool()["in_use"] == 0)
    assert rows(website) == []


def test_a_client_that_gets_no_answer_and_stays_keeps_no_connection(website: Site) -> None:
    # gunicorn waits for its next request, in the same greenlet, for an hour here.
    before = website.pool()["acquired_total"]
    clients = [send(website, "/killed") for _ in range(CAP)]
    wait_until(lambda: website.pool()["acquired_total"] == before + CAP)
    wait_until(lambda: website.pool()["in_use"] == 0)
    assert rows(website) == []
    for client in clients:
        client.close()


def test_a_client_that_leaves_while_its_query_runs_costs_no_slot(website: Site) -> None:
    with gate(website.database) as sql:
        clients = [send(website, "/run?" + urlencode({"sql": sql})) for _ in range(CAP)]
        wait_until(lambda: website.pool()["in_use"] == CAP)
        for client in clients:
            leave(client)
    wait_until(lambda: website.pool()["in_use"] == 0)


def test_a_client_that_leaves_the_queue_costs_no_slot(website: Site) -> None:
    with gate(website.database) as sql:
        holders = [send(website, "/run?" + urlencode({"sql": sql})) for _ in range(CAP)]
        wait_until(lambda: website.pool()["in_use"] == CAP)
        queued = [send(website, "/sleep?seconds=0") for _ in range(3 * CAP)]
        wait_until(lambda: website.pool()["waiting"] == 3 * CAP)
        for client in queued:
            leave(client)
    assert website.run("SELECT 1").status == 200
    for client in holders:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    wait_until(lambda: website.pool()["waiting"] == website.pool()["in_use"] == 0)


# --- Fairness ----------------------------------------------------------------------------------


Request = tuple[float, float]  # when it was sent and when it was answered


def by_client(load: Hammer) -> list[list[Request]]:
    """Its requests, for each client."""
    found: dict[int, list[Request]] = {}
    for outcome in load.finish():
        assert outcome.result == 200
        sent = load.start + outcome.at
        found.setdefault(outcome.client, []).append((sent, sent + outcome.seconds))
    return list(found.values())


def test_neither_busy_nor_slow_clients_starve_the_others(website: Site) -> None:
    port, each = website.server.port, 5
    before = website.pool()["acquired_total"]
    with (
        Hammer(port, "/flags", clients=each, seconds=300, keepalive=True) as busy,
        Hammer(port, "/sleep?seconds=0.05", clients=each, seconds=300) as slow,
    ):
        wait_until(lambda: website.pool()["acquired_total"] > before + 600)
        for load in (busy, slow):
            load.stop()
        kinds = by_client(busy), by_client(slow)
    answered = [end for clients in kinds for client in clients for _, end in client]

    def turns(request: Request) -> int:
        """How often others were answered meanwhile."""
        sent, end = request
        return sum(sent < other < end for other in answered)

    # First come, first served. In turns, not in seconds: a machine that halts one of the processes
    # for a moment makes each of its clients wait once, and takes as many turns from each of them.
    for clients in kinds:
        assert len(clients) == each
        for client in clients:
            assert median(map(turns, client)) <= 5 * 2 * each


def test_a_client_with_many_requests_at_once_lets_others_have_a_turn(website: Site) -> None:
    def begun(client: socket.socket) -> int:
        answer = HTTPResponse(client)
        answer.begin()
        return int(json.loads(answer.read()).get(path, 0))

    path, crowd = "/requests_begun", 200
    with send(website, path) as one, send(website, path) as many, send(website, path) as other:
        before = max(map(begun, (one, many, other)))  # from now on it waits for the next request
        workers = website.server.worker_pids()
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        try:
            suspend(workers)  # which finds all of these when it wakes up, in whatever order
            one.sendall(request)
            many.sendall(request * crowd)
            other.sendall(request)
        finally:
            resume(workers)
        assert max(begun(one), begun(other)) - before < crowd / 2
