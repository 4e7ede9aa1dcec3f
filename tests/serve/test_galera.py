"""A Galera cluster: nodes that leave it and come back, alone and behind HAProxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import lasting_server
from support.galera import Cluster, Node, cluster_checks, needs_galera
from support.haproxy import haproxy, needs_haproxy
from support.ledger import CLUSTER_VIEWS, Ledger, create_book
from support.processes import wait_until
from support.site import Site
from support.torture import torture

StartSite = Callable[..., Site]

pytestmark = needs_galera


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes. Each test leaves all of them as it has found them."""
    cluster = Cluster(tmp_path_factory.mktemp("galera"), 3)
    with ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(contextmanager(lasting_server)(node))
        cluster.wait_until_whole()
        yield cluster


def test_a_node_that_is_not_ready_is_waited_for_and_nothing_is_concluded_from_its_errors(
    site: StartSite, cluster: Cluster
) -> None:
    """Its 1047 is also the code of a command that a server does not know, such as a reset."""
    node = cluster.nodes[0]
    shop = site("--pool-timeout", "60", server=node)
    node.isolate(on=True)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shop.run, "SELECT COUNT(*) FROM information_schema.TABLES")
        wait_until(lambda: shop.pool()["outage_waits_total"] == 1)
        node.isolate(on=False)
        assert waiting.result().status == 200
    for _ in range(5):
        assert shop.run("SET @x = 1").status == 200
    assert shop.pool_at_rest()["reset_total"] == 5
    assert "cannot reset a session" not in shop.server.log
    shop.assert_whole()


@torture
def test_a_node_that_is_not_ready_is_left(site: StartSite, cluster: Cluster) -> None:
    node = cluster.nodes[0]
    shop = site("--pool-timeout", "60", server=node)
    node.admin.query(f"CREATE TABLE {shop.database.name}.t (id INT PRIMARY KEY)")
    shop.fill()
    node.isolate(on=True)
    assert shop.run("SELECT * FROM t").status == 500
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(shop.run, "SELECT * FROM t")
        wait_until(lambda: shop.pool()["outage_waits_total"] == 1)
        node.isolate(on=False)
        assert waiting.result().status == 200
    assert shop.pool()["closed_total"] == {"moved": shop.cap}
    shop.assert_whole()


# --- Behind HAProxy ----------------------------------------------------------------------------

AGE_SECONDS = 2


class Balanced:
    """A site whose connections go to the nodes in turn."""

    def __init__(self, shop: Site, cluster: Cluster) -> None:
        self.shop = shop
        self.cluster = cluster

    def connections(self, node: Node) -> int:
        return len(node.admin.processlist(self.shop.database.user))

    def is_spread(self) -> bool:
        return all(map(self.connections, self.cluster.nodes))

    def assert_whole(self) -> None:
        self.shop.fill()
        wait_until(self._is_quiet)

    def _is_quiet(self) -> bool:
        stats = self.shop.pool()
        there = sum(map(self.connections, self.cluster.nodes))
        return bool(not stats["in_use"] and not stats["waiting"] and there == stats["idle"] > 0)


@pytest.fixture
def balanced(site: StartSite, cluster: Cluster, tmp_path: Path) -> Iterator[Balanced]:
    with ExitStack() as stack:
        checks = stack.enter_context(cluster_checks(cluster.nodes))
        names: dict[str, Any] = {f"node{n}": node for n, node in enumerate(cluster.nodes, 1)}
        port, _ = stack.enter_context(haproxy(tmp_path, checks=checks, **names))
        founder = cluster.nodes[0]
        database = founder.create_database()
        create_book(founder.admin, database)
        cluster.wait_until_whole()
        shop = site(
            *("--pool-timeout", "60", "--conn-max-age", str(AGE_SECONDS)),
            database=database.via(port),
            server=founder,
            cap=6,
            views=CLUSTER_VIEWS,
        )
        yield Balanced(shop, cluster)


def kill(node: Node) -> None:
    node.kill()


def stop(node: Node) -> None:
    node.stop()


def suspend(node: Node) -> None:
    node.suspend()


def isolate(node: Node) -> None:
    node.isolate(on=True)


COMES_BACK: dict[Callable[[Node], None], Callable[[Node], None]] = {
    kill: lambda node: node.start(),
    stop: lambda node: node.start(),
    suspend: lambda node: node.resume(),
    isolate: lambda node: node.isolate(on=False),
}


@needs_haproxy
@pytest.mark.parametrize(
    "leaves",
    [kill, *(pytest.param(way, marks=torture) for way in (stop, suspend, isolate))],
)
def test_a_node_that_is_lost_under_load_costs_what_was_in_flight_on_it_and_no_acknowledged_write(
    balanced: Balanced, leaves: Callable[[Node], None]
) -> None:
    shop, cluster = balanced.shop, balanced.cluster
    survivors = [cluster.nodes[0], cluster.nodes[2]]
    node = cluster.nodes[1]
    before = sum(each.times_lost() for each in survivors)
    with Ledger(shop.server.port) as ledger:
        ledger.go_on()
        wait_until(balanced.is_spread)
        leaves(node)
        ledger.go_on(100)
        COMES_BACK[leaves](node)
        cluster.wait_until_whole()
        wait_until(balanced.is_spread)  # as connections are replaced that are as old as they may be
        ledger.go_on()
    cluster.wait_until_whole()
    for each in cluster.nodes:
        ledger.assert_adds_up(each.admin, shop.database)
    # One that thaws takes requests once more, until it notices that it was left; and on a busy
    # machine those that stay may lose each other as well, for a moment.
    losses = 1 + (leaves is suspend) + sum(each.times_lost() for each in survivors) - before
    assert len(ledger.failures()) <= losses * shop.cap, ledger.codes()
    assert {answer.status for answer in ledger.failures()} <= {500}, ledger.codes()
    assert shop.pool()["timeouts_total"] == 0
    balanced.assert_whole()


# --- Conflicts ---------------------------------------------------------------------------------


def test_a_commit_that_loses_against_another_node_is_djangos_error_and_costs_no_connection(
    site: StartSite, cluster: Cluster
) -> None:
    here, there = cluster.nodes[:2]
    database = here.create_database()
    create_book(here.admin, database)
    cluster.wait_until_whole()
    shop = site(server=here, database=database, cap=2, views=CLUSTER_VIEWS)
    table = f"{database.name}.total"
    for number in range(1, 6):
        with ThreadPoolExecutor(1) as threads:
            loses = threads.submit(shop.server.get, "/hold")
            wait_until(lambda: shop.server.get("/held").json())
            there.admin.query(f"UPDATE {table} SET sum = 100 WHERE id = 0")
            there.admin.query(f"UPDATE {table} SET sum = %s WHERE id = 0", number)
            look = f"SELECT sum FROM {table} WHERE id = 0"
            wait_until(lambda: here.admin.query(look) == [{"sum": number}])  # noqa: B023
            shop.server.get("/let_go")
            answer = loses.result()
        assert (answer.status, answer.json()["code"]) == (409, 1213)
        assert here.admin.query(look) == [{"sum": number}]
    assert shop.pool_at_rest()["closed_total"] == {}
    shop.assert_whole()
