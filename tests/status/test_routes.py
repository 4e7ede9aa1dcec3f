"""Routes of real workers: whose leases are counted for which, and that nothing is lost."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support.client import gate
from support.metrics import samples_in
from support.serve import Response
from support.status import StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

VIEWS = Path(__file__).with_name("routes_views.py")
ASKS_FIRST = 'MIDDLEWARE = ["mysite.views.asks_first"]'
PRODUCT = ("GET", "shop/<slug:slug>/")
OUTSIDE, OTHER, UNRESOLVED = ("", "outside requests"), ("", "other"), ("", "no route")

Routes = dict[tuple[str, str], dict[str, Any]]


def by_route(stats: dict[str, Any]) -> Routes:
    return {(route["method"], route["route"]): route for route in stats["routes"]}


def leases(it: Status) -> dict[tuple[str, str], int]:
    """By route, once all connections are back. Their sums are those of the pool."""
    it.pool_at_rest()
    stats = it.stats()
    assert_complete(stats)
    return {name: route["leases_total"] for name, route in by_route(stats).items()}


def assert_complete(stats: dict[str, Any], within: float = 1e-6) -> None:
    pools, routes = stats["pools"].values(), stats["routes"]
    for key in ("held_seconds_total", "wait_seconds_total", "waited_total"):
        total = sum(pool[key] for pool in pools)
        assert sum(route[key] for route in routes) == pytest.approx(total, rel=within)
    held = [route["held_seconds_total"] for route in routes]
    assert held == sorted(held, reverse=True)


def test_a_lease_is_counted_for_its_route_and_never_for_a_path(status: StartStatus) -> None:
    it = status(views=VIEWS)
    get = it.site.server.get
    for slug in ("tea", "milk"):
        assert get(f"/shop/{slug}/").text == slug
    assert get("/").status == 200
    assert get("/shop/7").status == 404
    assert get("/no/such/path").status == 404
    assert leases(it) == {PRODUCT: 2, ("GET", ""): 1, ("GET", "shop/<int:number>"): 1}
    body = it.get("/stats.json").text
    assert "tea" not in body
    assert "such" not in body


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_what_middleware_uses_before_the_route_is_known_belongs_to_it(
    status: StartStatus, mode: str
) -> None:
    it = status("--pool-mode", mode, views=VIEWS, django=ASKS_FIRST)
    with it.site.server.keepalive() as client:
        assert client.get("/shop/tea/?first=0&first=0").status == 200
        assert client.get("/?first=0").status == 200
        assert client.get("/?first=0&only").status == 200
        assert client.get("/no/such?first=0").status == 404
    of_product = 1 if mode == "request" else 3
    of_home = 1 if mode == "request" else 2
    assert leases(it) == {PRODUCT: of_product, ("GET", ""): of_home, UNRESOLVED: 2}
    assert 'http_route="/"' in it.get("/metrics").text, "Prometheus drops a label that is empty"
    assert 'http_route=""' not in it.get("/metrics").text


def test_what_a_response_uses_while_it_is_sent_belongs_to_its_route(status: StartStatus) -> None:
    it = status(views=VIEWS)
    with it.site.server.keepalive() as client:
        assert client.get("/stream").text == "piece" * 3
        assert client.get("/shop/tea/").status == 200
    assert leases(it) == {("GET", "stream"): 3, PRODUCT: 1}
    assert by_route(it.stats())["GET", "stream"]["held_seconds_total"] >= 0.15


@pytest.mark.parametrize("view", ["spawn", "lose"])
def test_greenlets_that_serve_no_request_are_told_apart(status: StartStatus, view: str) -> None:
    it = status(views=VIEWS)
    assert it.site.server.get(f"/{view}").status == 200
    it.wait_for(lambda stats: OUTSIDE in by_route(stats))
    assert leases(it) == {OUTSIDE: 1}
    assert by_route(it.stats())[OUTSIDE]["longest_held_seconds"] >= (view == "spawn") * 0.1


def test_a_view_inside_another_one_is_a_part_of_that(status: StartStatus) -> None:
    it = status(views=VIEWS)
    assert it.site.server.get("/inner").status == 200
    assert leases(it).keys() == {("GET", "inner")}


def test_a_request_that_is_ended_in_a_statement_is_counted(status: StartStatus) -> None:
    it = status(views=VIEWS)
    assert it.site.server.get("/die").status == 500
    it.wait_for(lambda stats: ("GET", "die") in by_route(stats))
    assert_complete(it.stats())
    assert 0.3 <= by_route(it.stats())["GET", "die"]["longest_held_seconds"] < 20


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_nothing_is_lost_with_greenlets_that_are_killed(status: StartStatus, mode: str) -> None:
    it = status("--pool-mode", mode, cap=2, views=VIEWS)
    assert it.site.server.get("/kill").status == 200
    it.wait_for(lambda stats: not stats["pools"]["default"]["in_use"])
    found = leases(it)
    assert found["GET", "kill"] == 1
    assert found[OUTSIDE] > 10
    it.site.assert_whole()


def test_a_forked_child_counts_nothing(status: StartStatus) -> None:
    it = status(views=VIEWS)
    assert it.site.server.get("/fork").status == 200
    assert leases(it) == {("GET", "fork"): 1}


def test_waits_are_counted_for_the_route_that_waits(status: StartStatus) -> None:
    it = status("--pool-timeout", "60", cap=1, views=VIEWS, django=ASKS_FIRST)
    get = it.site.server.get
    with ThreadPoolExecutor(3) as threads:

        def held(statement: str) -> Future[Response]:
            answer = threads.submit(get, "/shop/tea/?" + urlencode({"sql": statement}))
            it.wait_for(lambda stats: stats["pools"]["default"]["in_use"] == 1)
            return answer

        with gate(it.site.database) as statement:
            slow = held(statement)
            waits = [threads.submit(get, path) for path in ("/", "/?first=0&only")]
            it.wait_for(lambda stats: stats["pools"]["default"]["waiting"] == 2)
            time.sleep(0.1)
        assert [answer.result().status for answer in (slow, *waits)] == [200] * 3
        it.pool_at_rest()
        get("/tune?timeout=1")
        with gate(it.site.database) as statement:
            slow = held(statement)
            assert get("/shop/7").status == 503
        assert slow.result().status == 200
    refused = ("GET", "shop/<int:number>")
    assert leases(it) == {PRODUCT: 2, ("GET", ""): 1, UNRESOLVED: 1, refused: 0}
    routes = by_route(it.stats())
    waited = {name: route["waited_total"] for name, route in routes.items()}
    assert waited == {PRODUCT: 0, ("GET", ""): 1, UNRESOLVED: 1, refused: 0}
    assert routes["GET", ""]["wait_seconds_total"] > 0.1
    assert routes[refused]["wait_seconds_total"] >= 1, "in vain"
    assert 1 <= routes[PRODUCT]["longest_held_seconds"] < routes[PRODUCT]["held_seconds_total"]


def test_databases_are_summed(status: StartStatus, mariadb: Any) -> None:
    it = status(more={"other": mariadb.create_database().django()}, views=VIEWS)
    assert it.site.server.get("/two").status == 200
    assert leases(it) == {("GET", "two"): 2}


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=torture)])
def test_the_sum_is_that_of_the_pools_whatever_happens_to_workers(
    status: StartStatus, workers: int
) -> None:
    """More routes than have rows, so that they take each other's places meanwhile."""
    it = status("-w", str(workers), cap=3, views=VIEWS)
    it.wait_for(lambda stats: len(stats["workers"]) == workers)
    over = threading.Event()

    def client(seed: int) -> None:
        chance = random.Random(seed)
        while not over.is_set():
            route = chance.choice((0, min(99, int(chance.expovariate(0.03)))))
            with suppress(OSError, http.client.HTTPException):
                it.site.server.get(f"/many/{route}/{seed}")

    def full(stats: dict[str, Any]) -> bool:
        return bool(by_route(stats).get(OTHER, {}).get("leases_total", 0) > 20)

    seen: list[dict[str, Any]] = []
    with ThreadPoolExecutor(6) as threads:
        clients = [threads.submit(client, seed) for seed in range(6)]
        try:
            end = time.monotonic() + 60
            while len(seen) < 60 or not full(seen[-1]):
                assert time.monotonic() < end, seen[-1]["routes"]
                time.sleep(0.05)
                with suppress(OSError, http.client.HTTPException):  # asked of the killed one
                    seen.append(it.stats())
                    if len(seen) == 20:
                        os.kill(seen[-1]["workers"][0]["pid"], signal.SIGKILL)
                    if len(seen) == 40:
                        it.site.server.signal(signal.SIGHUP)
        finally:
            over.set()
        for ended in clients:
            ended.result()
    keys = ("leases_total", "held_seconds_total", "waited_total", "wait_seconds_total")
    last = dict.fromkeys(keys, 0.0)
    for stats in seen:
        now = {key: sum(route[key] for route in stats["routes"]) for key in keys}
        assert all(now[key] >= last[key] - 1e-6 for key in keys), "sums grow"
        last = now
    stats = it.wait_for(
        lambda stats: len(stats["workers"]) == workers and not stats["pools"]["default"]["in_use"]
    )
    assert_complete(stats, within=0.01)
    found = by_route(stats)
    assert len(found) > 64
    labels = Counter(
        dict(labels)["worker"]
        for name, labels in samples_in(it.get("/metrics"))
        if name == "pooled_serve_route_leases_total"
    )
    assert max(labels.values()) == 64 + 1, "and the others together"
    # By time it may be another one, in which the machine has halted a worker.
    most = sorted(stats["routes"], key=lambda route: int(route["leases_total"]), reverse=True)
    assert "many/0/<int:seconds>" in [route["route"] for route in most[:2]]
