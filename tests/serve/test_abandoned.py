"""Statements whose request has gone: the server does not go on with them, so that it never has more
than the pool's connections, and nobody else's statement is ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pymysql
import pytest

from pooled_serve.driver.abandoned import MARGIN_SECONDS
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


def sleepers(shop: Site) -> list[int]:
    rows = shop.admin.processlist(shop.database.user)
    return [row["Id"] for row in rows if "SLEEP" in str(row["Info"])]


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_the_cap_holds_at_the_server(
    kind: str, mode: str, site: StartSite, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    wait_until(lambda: server.admin.status("Uptime") > MARGIN_SECONDS + 1)
    shop = site("--pool-mode", mode, server=server, views=VIEWS)
    with (
        closing(Admin(server.admin_url())) as admin,
        most_connections(admin, shop.database.user) as most,
    ):
        outcomes = hammer(
            shop.server.port, "/abandon", clients=CLIENTS, requests=KILLS // CLIENTS, timeout=60
        )
        assert {outcome.result for outcome in outcomes} == {200}
        wait_until(lambda: not sleepers(shop))
    assert shop.cap <= most[0] <= shop.cap + 1
    stats = shop.pool()
    assert stats["killed_total"] > 0.9 * KILLS
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
