"""Statements whose request has gone: the server does not go on with them, so that it never has more
than the pool's connections, and nobody else's statement is ended."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pymysql
import pytest

from support.client import Admin
from support.haproxy import haproxy, needs_haproxy
from support.load import hammer
from support.processes import wait_until
from support.servers import Server, create_twin
from support.site import Site
from support.torture import TORTURE

StartSite = Callable[..., Site]
KILLS = 500 if TORTURE else 100
CLIENTS = 5  # one more than the cap

VIEWS = Path(__file__).with_name("abandoned_views.py")


@contextmanager
def most_connections(admin: Admin, user: str) -> Iterator[list[int]]:
    """The most that the server has had for this user, in the end."""
    most = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            most[0] = max(most[0], len(admin.processlist(user)))
            time.sleep(0.002)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        stop.set()
        looking.join()


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_the_cap_holds_at_the_server(
    kind: str, mode: str, site: StartSite, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    shop = site("--pool-mode", mode, server=server, views=VIEWS)
    with (
        closing(Admin(server.admin_url())) as admin,
        most_connections(admin, shop.database.user) as most,
    ):
        outcomes = hammer(
            shop.server.port, "/abandon", clients=CLIENTS, requests=KILLS // CLIENTS, timeout=60
        )
        assert {outcome.result for outcome in outcomes} == {200}
        wait_until(lambda: not shop.sleepers())
    assert shop.cap <= most[0] <= shop.cap + 1
    stats = shop.pool()
    assert stats["killed_total"] > 0.9 * KILLS
    shop.assert_whole()


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_the_cap_holds_where_results_are_left_half_read(
    kind: str, site: StartSite, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    shop = site(server=server, views=VIEWS)
    with (
        closing(Admin(server.admin_url())) as admin,
        most_connections(admin, shop.database.user) as most,
    ):
        for _ in range(3 * shop.cap):
            assert shop.server.get("/half_read").status == 200
        wait_until(lambda: not shop.sleepers())
    assert most[0] <= shop.cap + 1
    # What the pool cannot be sure of, it does not count: the server may have noticed by itself.
    assert 2 * shop.cap < shop.pool_at_rest()["killed_total"] <= 3 * shop.cap
    shop.assert_whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_leaves_no_statement_behind(number: int, site: StartSite) -> None:
    """Whether it ends its requests after the graceful timeout, or all at once."""
    shop = site("--graceful-timeout", "1")
    (worker,) = shop.server.worker_pids()
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(shop.run, "SELECT SLEEP(60)")  # which fails
        wait_until(lambda: len(shop.sleepers()) == 3)
        os.kill(worker, number)
        wait_until(lambda: worker not in shop.server.worker_pids())
    assert not shop.sleepers()
    shop.assert_whole()


@needs_haproxy
def test_behind_a_balancer_nobody_elses_statement_is_ended(
    site: StartSite,
    mariadb: Server,
    start_mariadb: Callable[..., Server],
    tmp_path: Path,
) -> None:
    """Two servers, whose ids overlap, and at each of them others who use the same account."""
    there = start_mariadb()
    database = create_twin(mariadb.create_database(), there)
    servers = (mariadb, there)
    with haproxy(tmp_path, first=mariadb, second=there) as (port, order), ExitStack() as stack:
        order("set server db/second state ready")
        shop = site(database=database.via(port), server=mariadb, views=VIEWS)
        others = [
            stack.enter_context(
                closing(pymysql.connect(**database.via(server.port).connect_args()))
            )
            for server in servers
            for _ in range(20)
        ]
        outcomes = hammer(
            shop.server.port, "/abandon", clients=CLIENTS, requests=KILLS // CLIENTS, timeout=60
        )
        assert {outcome.result for outcome in outcomes} == {200}, shop.server.log[-6000:]
        for other in others:
            other.ping(reconnect=False)
        assert all(server.admin.processlist(database.user) for server in servers), "both are used"


class WrongIds(socketserver.ThreadingTCPServer):
    """Stands between, and greets each client with the id of somebody else, in turns."""

    daemon_threads = True

    def __init__(self, port: int, ids: list[int]) -> None:
        self.server_port, self.ids = port, itertools.cycle(ids)
        super().__init__(("127.0.0.1", 0), _Greeting)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Greeting(socketserver.BaseRequestHandler):
    server: WrongIds

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.server_port)) as database:
            greeting = database.recv(1000)
            at = greeting.index(b"\0", 5) + 1  # behind the header, the protocol and the version
            wrong = struct.pack("<I", next(self.server.ids))
            self.request.sendall(greeting[:at] + wrong + greeting[at + 4 :])
            there = threading.Thread(target=self._pass_on, args=(self.request, database))
            there.start()
            self._pass_on(database, self.request)
            there.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_behind_a_proxy_that_tells_wrong_ids_nothing_is_ended(
    kind: str, site: StartSite, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    database = server.create_database()
    with ExitStack() as stack:
        others = [
            stack.enter_context(closing(pymysql.connect(**database.connect_args())))
            for _ in range(20)
        ]
        ids = [other.thread_id() for other in others]
        proxy = stack.enter_context(WrongIds(database.port, ids))
        stack.callback(proxy.shutdown)
        shop = site(database=database.via(proxy.server_address[1]), server=server, views=VIEWS)
        outcomes = hammer(
            shop.server.port, "/abandon", clients=CLIENTS, requests=KILLS // CLIENTS, timeout=60
        )
        assert {outcome.result for outcome in outcomes} == {200}, shop.server.log[-6000:]
        for other in others:
            other.ping(reconnect=False)
        assert shop.pool()["killed_total"] == 0
        for left in shop.sleepers():  # the server goes on with them
            shop.admin.kill(left)
        shop.server.stop()
