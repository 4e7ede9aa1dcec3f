"""The database goes away, in each of the ways it can, and comes back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import pymysql
import pytest

from pooled_serve.status.pool_log import POLL_SECONDS
from support import servers
from support.haproxy import haproxy, needs_haproxy
from support.load import Hammer, Outcome
from support.log_lines import NO_DATABASE, OVER
from support.netproxy import NetProxy
from support.processes import wait_until
from support.servers import Database, Server, create_twin
from support.site import CALM_SECONDS, SLACK, SOON_CALM, Site
from support.torture import torture

StartSite = Callable[..., Site]

LONG_OUTAGE = float(os.environ.get("LONG_OUTAGE", "20"))
"""Seconds, of which requests are held for the first ten."""


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.result != 200]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, which tests may make read-only."""
    with servers.mariadb(tmp_path_factory.mktemp("elsewhere")) as server:
        yield server


# --- Single connections ------------------------------------------------------------------------


def kill_connections(shop: Site) -> None:
    for number in shop.connection_ids():
        shop.admin.kill(number)
    wait_until(lambda: not shop.connection_ids())


def test_killed_idle_connections_cost_no_request(site: StartSite) -> None:
    shop = site()
    shop.fill()
    kill_connections(shop)
    assert [shop.run("SELECT 1").status for _ in range(4)] == [200] * 4
    shop.assert_whole()


def test_a_connection_killed_in_use_costs_its_request_and_no_other(site: StartSite) -> None:
    shop = site()

    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(shop.run, "SELECT SLEEP(300)")
        (number,) = wait_until(shop.sleepers)
        shop.admin.kill(number)
        assert killed.result().status == 500
    assert shop.run("SELECT 1").status == 200
    assert shop.pool()["closed_total"] == {"lost": 1}
    shop.assert_whole()


def test_a_short_wait_timeout_costs_no_request(
    site: StartSite, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb("--wait-timeout=3")
    shop = site(server=server)
    # They have something to do all the time: one that waits for others may expire meanwhile.
    answers = shop.at_once("/run?sql=SELECT+SLEEP(0.3)", shop.cap)
    assert [answer.status for answer in answers] == [200] * shop.cap
    wait_until(lambda: not shop.connection_ids())
    assert [shop.run("SELECT 1").status for _ in range(8)] == [200] * 8
    server.admin.query("SET GLOBAL wait_timeout = 28800")
    kill_connections(shop)
    shop.assert_whole()


# --- The server --------------------------------------------------------------------------------


def stop(server: Server) -> None:
    server.stop()


def crash(server: Server) -> None:
    server.kill()


@pytest.mark.parametrize("end", [stop, crash])
def test_a_restart_while_idle_costs_no_request(
    site: StartSite, mariadb: Server, end: Callable[[Server], None]
) -> None:
    shop = site()
    shop.fill()
    end(mariadb)
    mariadb.start()
    assert [shop.run("SELECT 1").status for _ in range(8)] == [200] * 8
    shop.assert_whole()


SELLS = """
    from django.db import transaction

    def sell(request):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM sale WHERE id = 0")
            cursor.execute("INSERT INTO sale VALUES ()")
        return HttpResponse()
"""


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("end", [stop, crash])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_a_restart_under_load_costs_the_transactions_that_were_open_and_nothing_else(
    kind: str,
    end: Callable[[Server], None],
    mode: str,
    site: StartSite,
    request: pytest.FixtureRequest,
) -> None:
    server: Server = request.getfixturevalue(kind)
    # Longer than a busy machine takes to end and start the server.
    shop = site("--pool-mode", mode, "--pool-timeout", "90", server=server, views=SELLS)
    server.admin.query(f"CREATE TABLE {shop.database.name}.sale (id SERIAL) ENGINE=InnoDB")
    server.admin.query("SET GLOBAL innodb_flush_log_at_trx_commit = 1")  # until it is restarted
    load: dict[str, Any] = {"clients": 40, "seconds": 300, "every": 0.4, "timeout": 120}
    with (
        Hammer(shop.server.port, "/run?sql=SELECT+SLEEP(0.02)", **load) as reads,
        Hammer(shop.server.port, "/sell", **load) as sells,
    ):
        wait_until(lambda: shop.pool()["acquired_total"] > 200)
        end(server)
        wait_until(lambda: shop.pool()["waiting"] > 20)  # the load has met the outage
        server.start()
        shop.wait_until_served()
        before = shop.pool()["acquired_total"]
        wait_until(lambda: shop.pool()["acquired_total"] > before + 200)
        reads.stop()
        sells.stop()
        read, sold = reads.finish(), sells.finish()
    assert not failures(read)
    lost = failures(sold)
    assert {failure.result for failure in lost} <= {500}
    assert len(lost) <= shop.cap
    rows = sales(server, shop.database)
    assert len(sold) - len(lost) <= rows <= len(sold), "a COMMIT may have lost its answer"
    stats = shop.pool()
    assert stats["timeouts_total"] == 0
    assert stats["outage_waits_total"] > 20
    shop.assert_whole()


@torture
@pytest.mark.timing
def test_in_a_long_outage_requests_fail_fast_and_the_server_is_not_stormed(
    site: StartSite, mariadb: Server
) -> None:
    timeout = 10  # the default
    database = mariadb.create_database()
    with NetProxy(mariadb.port) as proxy:
        shop = site(database=database.via(proxy.port))
        path = "/run?sql=SELECT+1"
        with (
            Hammer(shop.server.port, path, clients=50, seconds=300, every=0.5) as load,
            # A page without a query, which tells how busy this machine is.
            Hammer(shop.server.port, "/part", clients=10, seconds=300, every=0.5) as idle,
        ):
            wait_until(lambda: shop.pool()["acquired_total"] > 100)
            mariadb.kill()
            down = time.monotonic()
            before = proxy.traffic().accepted
            time.sleep(LONG_OUTAGE)
            attempts = proxy.traffic().accepted - before
            lasted = time.monotonic() - down
            mariadb.start()
            healed = shop.wait_until_served()
            before = shop.pool()["acquired_total"]
            wait_until(lambda: shop.pool()["acquired_total"] > before + 100)
            most = mariadb.admin.status("Max_used_connections")
            load.stop()
            idle.stop()
            outcomes, without_query = load.finish(), idle.finish()
        # The pauses double from 50 ms to 1 s, less up to half of each; before the first one,
        # each connection of the pool may have been tried.
        assert 2 <= attempts <= shop.cap + 6 + 2 * lasted
        assert most <= shop.cap + 2, "ours, the administrator's, and the one that saw it start"
        assert {outcome.result for outcome in outcomes} == {200, 503}
        assert max(outcome.seconds for outcome in outcomes) < timeout + SLACK
        failed = failures(outcomes)
        assert all(load.start + failure.at <= healed for failure in failed)
        # They wait for as long as a restart may take, and then not at all.
        at_once = [each for each in failed if load.start + each.at > down + timeout + 1]
        assert len(at_once) > 50
        page = median(each.seconds for each in without_query)
        assert median(each.seconds for each in at_once) < page + 0.05
        shop.assert_whole()


def test_the_log_of_an_outage_is_true(site: StartSite, mariadb: Server) -> None:
    """Of a host's bound: what died in a statement could not be ended at the server, and is free."""
    database = mariadb.create_database()
    with NetProxy(mariadb.port) as proxy:
        bound = ("--max-per-host", "4", "--pool-timeout", "1")
        shop = site(*bound, database=database.via(proxy.port), views=SOON_CALM)
        with ThreadPoolExecutor(4) as threads:
            killed = [threads.submit(shop.run, "SELECT SLEEP(300)") for _ in range(4)]
            wait_until(lambda: len(shop.sleepers()) == 4)
            proxy.refuse()
            proxy.cut()
            assert [each.result().status for each in killed] == [503] * 4  # each ran again
        wait_until(lambda: shop.run("SELECT 1").status == 503)
        refused = shop.server.wait_for_log(NO_DATABASE)
        assert "(0 in use, 0 idle, 0 waiting, cap 4); last connect error" in refused
        time.sleep(CALM_SECONDS + 2 * POLL_SECONDS)
        assert OVER not in shop.server.log, "the visitors have gone, that is all"
        proxy.accept()
        shop.wait_until_served()
        shop.server.wait_for_log(OVER)
        shop.assert_whole()


def test_too_many_connections_means_waiting_for_those_that_come_back(
    site: StartSite, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb("--max-connections=10")
    shop = site(server=server, cap=6)
    other = server.create_database()
    server.admin.query("SELECT GET_LOCK('gate', 0)")
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(14))
        wait = "SELECT GET_LOCK('gate', 300), RELEASE_LOCK('gate')"
        held = [threads.submit(shop.run, wait) for _ in range(2)]
        wait_until(lambda: shop.pool()["acquired_total"] == 2)
        # Of ten, two are ours and one is the administrator's, who has an eleventh to himself.
        wait_until(lambda: server.admin.status("Threads_connected") == 3)
        for _ in range(3, 10):
            stack.enter_context(closing(pymysql.connect(**other.connect_args())))
        with pytest.raises(pymysql.OperationalError, match="Too many"):
            pymysql.connect(**other.connect_args())
        more = [threads.submit(shop.run, "SELECT SLEEP(0.05)") for _ in range(12)]
        wait_until(lambda: shop.pool()["waiting"] == 12)
        server.admin.query("SELECT RELEASE_LOCK('gate')")
        assert [answer.result().status for answer in held + more] == [200] * 14
        stats = shop.pool()
        assert stats["connect_errors_total"] >= 1
        assert stats["opened_total"] == 2
    wait_until(lambda: not server.admin.processlist(other.user))
    shop.wait_until_served()
    shop.assert_whole()


@pytest.mark.timing
def test_a_changed_password_fails_new_connections_at_once_until_it_is_changed_back(
    site: StartSite, mariadb: Server
) -> None:
    shop = site("--pool-timeout", "30")
    shop.fill()
    user = f"{shop.database.user}@127.0.0.1"
    mariadb.admin.query(f"ALTER USER {user} IDENTIFIED BY 'another'")
    assert [shop.run("SELECT 1").status for _ in range(4)] == [200] * 4
    kill_connections(shop)
    for _ in range(3):
        answer = shop.run("SELECT 1")
        assert answer.status == 500
        assert answer.seconds < SLACK
    mariadb.admin.query(f"ALTER USER {user} IDENTIFIED BY '{shop.database.password}'")
    shop.wait_until_served()
    shop.assert_whole()


# --- Failover ----------------------------------------------------------------------------------


@pytest.fixture
def twins(mariadb: Server, elsewhere: Server) -> Iterator[tuple[Server, Server, Database]]:
    """The primary, which is `elsewhere`, the next primary, and a database with a table on both."""
    database = create_twin(mariadb.create_database(), elsewhere)
    for server in (elsewhere, mariadb):
        server.admin.query(f"CREATE TABLE {database.name}.sale (id SERIAL)")
    yield elsewhere, mariadb, database
    elsewhere.admin.query("SET GLOBAL read_only = 0")
    mariadb.admin.query("SET GLOBAL read_only = 0")


def sales(server: Server, database: Database) -> int:
    (row,) = server.admin.query(f"SELECT COUNT(*) AS sales FROM {database.name}.sale")
    return int(row["sales"])


SELL = "INSERT INTO sale VALUES ()"


def test_one_request_finds_out_that_the_primary_is_read_only_now(
    site: StartSite, twins: tuple[Server, Server, Database]
) -> None:
    old, new, database = twins
    with NetProxy(old.port) as proxy:
        shop = site(database=database.via(proxy.port), server=new)
        shop.fill()
        assert shop.run(SELL).status == 200
        proxy.switch(new.port)
        old.admin.query("SET GLOBAL read_only = 1")
        assert shop.run("SELECT COUNT(*) FROM sale").json() == [["1"]]
        assert [shop.run(SELL).status for _ in range(6)] == [500] + [200] * 5
        assert sales(new, database) == 5
        # The others were as old: each would have cost a request.
        wait_until(lambda: not old.admin.processlist(database.user))
        shop.assert_whole()


@needs_haproxy
def test_behind_haproxy_a_switch_of_the_primary_under_load_costs_what_is_in_flight(
    site: StartSite, twins: tuple[Server, Server, Database], tmp_path: Path
) -> None:
    old, new, database = twins
    with haproxy(tmp_path, old=old, new=new) as (port, order):
        shop = site(database=database.via(port), server=new)
        path = "/run?sql=" + SELL.replace(" ", "+")
        with Hammer(shop.server.port, path, clients=8, seconds=300, every=0.02) as load:
            wait_until(lambda: sales(old, database) > 50)
            # First such that the old one lives on, read-only.
            order("set server db/old state maint; set server db/new state ready")
            old.admin.query("SET GLOBAL read_only = 1")
            wait_until(lambda: sales(new, database) > 50)
            # Then back, and the new one's connections are cut.
            old.admin.query("SET GLOBAL read_only = 0")
            order("set server db/old state ready; set server db/new state maint")
            order("shutdown sessions server db/new")
            wait_until(lambda: not new.admin.processlist(database.user))
            healed = shop.wait_until_served()
            before = sales(old, database)
            wait_until(lambda: sales(old, database) > before + 50)
            load.stop()
            outcomes = load.finish()
        failed = failures(outcomes)
        # Each connection can fail once with each switch; the first must, for it is how it shows.
        assert 1 <= len(failed) <= 2 * shop.cap
        assert all(load.start + failure.at <= healed for failure in failed)
        sold = sales(old, database) + sales(new, database)
        # A sale may have been made whose answer was cut off.
        assert 0 <= sold - (len(outcomes) - len(failed)) <= shop.cap
        shop.admin = old.admin
        shop.assert_whole()
