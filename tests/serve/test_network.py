"""The network between application and database drops, delays and forgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest

from pooled_serve.pool import PING_TIMEOUT_SECONDS
from support.load import hammer
from support.netproxy import NetProxy
from support.processes import wait_until
from support.servers import Database, Server
from support.site import SLACK, Site
from support.torture import torture

StartSite = Callable[..., Site]

PING = 14


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
def far(mariadb: Server, proxy: NetProxy) -> Database:
    """A fresh database behind the proxy."""
    return mariadb.create_database().via(proxy.port)


@torture
@pytest.mark.timing
def test_connects_that_are_never_answered_end_at_the_deadline(
    site: StartSite, proxy: NetProxy, far: Database
) -> None:
    timeout, count, pause = 1.5, 100, 0.03
    shop = site("--pool-timeout", str(timeout), database=far)
    proxy.black_hole()
    before = proxy.traffic().accepted
    began = time.monotonic()
    with ThreadPoolExecutor(count) as threads:
        sent = []
        for _ in range(count):
            sent.append(threads.submit(shop.run, "SELECT 1"))
            time.sleep(pause)
    answers = [answer.result() for answer in sent]
    assert {answer.status for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < timeout + SLACK
    assert answers[0].seconds >= timeout, "refused before its deadline"
    # By then it is known that nobody answers.
    assert median(answer.seconds for answer in answers[-20:]) < timeout / 4
    # After the first ones it is one at a time, with pauses. Else each request would try as soon as
    # it is the first in the queue, and a server bans hosts that break off many handshakes.
    attempts = proxy.traffic().accepted - before
    assert attempts <= shop.cap + 6 + 2 * (time.monotonic() - began)
    proxy.accept()
    shop.wait_until_served()
    shop.assert_whole()


def test_a_query_that_freezes_holds_up_nobody_else(
    site: StartSite, proxy: NetProxy, far: Database, mariadb: Server
) -> None:
    near = mariadb.create_database().django()
    shop = site(
        database=far,
        views="""
            from django.db import connections

            def near(request):
                with connections["near"].cursor() as cursor:
                    cursor.execute("SELECT 1")
                return HttpResponse()
        """,
        more={"near": near},
    )
    assert shop.run("SELECT 1").status == 200
    with ThreadPoolExecutor(1) as threads:
        proxy.freeze()
        frozen = threads.submit(shop.run, "SELECT 1")
        wait_until(lambda: shop.pool()["in_use"] == 1)
        assert [answer.status for answer in shop.at_once("/near", 8)] == [200] * 8
        assert shop.pool()["in_use"] == 1
        assert not frozen.done()
        proxy.cut()
        proxy.thaw()
        assert frozen.result().status == 200, "it only reads, and runs again"
    assert shop.pool()["retried_total"] == 1
    shop.assert_whole()


@pytest.mark.timing
def test_a_query_that_freezes_ends_at_the_read_timeout(
    site: StartSite, proxy: NetProxy, far: Database
) -> None:
    timeout = 3
    shop = site(database=far, OPTIONS={"read_timeout": timeout})
    assert shop.run("SELECT 1").status == 200
    proxy.freeze()
    answer = shop.run("SELECT 1")
    assert answer.status == 500
    assert timeout <= answer.seconds < timeout + SLACK
    assert shop.pool()["closed_total"] == {"killed": 1}
    proxy.thaw()
    shop.wait_until_served()
    shop.assert_whole()


@torture
@pytest.mark.timing
def test_idle_connections_that_a_firewall_forgot_cost_one_wait_for_all(
    site: StartSite, proxy: NetProxy, far: Database
) -> None:
    shop = site(database=far)
    shop.fill()
    shop.server.get("/tune?_ping_after=0.3")
    time.sleep(0.5)
    pings = proxy.traffic().commands[PING]
    assert shop.run("SELECT 1").status == 200
    assert proxy.traffic().commands[PING] == pings + 1, "idle for long enough to be asked"
    proxy.lose()
    time.sleep(0.5)
    answer = shop.run("SELECT 1")
    assert answer.status == 200
    assert answer.seconds < shop.cap * PING_TIMEOUT_SECONDS, "the others were waited for too"
    assert shop.pool()["closed_total"] == {"dead": shop.cap}
    proxy.cut()  # the server has not heard of it either
    shop.assert_whole()


@pytest.mark.parametrize("count", [0, 5000])
def test_a_connection_cut_within_a_result_is_not_used_again(
    site: StartSite, proxy: NetProxy, far: Database, count: int
) -> None:
    shop = site(database=far)
    (((first,),),) = [shop.run("SELECT CONNECTION_ID()").json()]
    proxy.cut_after(count)
    answer = shop.run("SELECT REPEAT('x', 1000000)")
    assert answer.json() == [["x" * 1000000]], "it ran again"
    (((second,),),) = [shop.run("SELECT CONNECTION_ID()").json()]
    assert second != first
    assert shop.pool()["closed_total"] == {"lost": 1}
    shop.assert_whole()


def test_a_spike_on_a_slow_server_is_served_within_the_cap(
    site: StartSite, proxy: NetProxy, far: Database
) -> None:
    shop = site(database=far)
    proxy.delay(command_seconds=0.05, connect_seconds=0.15)
    outcomes = hammer(shop.server.port, "/run?sql=SELECT+1", clients=50, requests=1)
    assert [outcome.result for outcome in outcomes] == [200] * 50
    assert shop.pool()["opened_total"] == proxy.traffic().accepted - 1 == shop.cap
    proxy.delay()
    shop.assert_whole()
