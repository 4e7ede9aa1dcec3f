"""Incidents, staged for real: the sentence of the page alone says what it is, and what to do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status.findings import LEAK_SECONDS
from support.client import gate
from support.load import Hammer
from support.processes import wait_until
from support.servers import Server
from support.site import VIEWS
from support.status import StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

INCIDENTS = Path(__file__).with_name("incidents_views.py")


@contextmanager
def load(it: Status, path: str, clients: int) -> Iterator[None]:
    with Hammer(it.site.server.port, path, clients=clients, seconds=120) as running:
        yield
        running.stop()
        running.finish()


def sentence(it: Status, named: str) -> str:
    """The page's first sentence, once it has this name; both pages begin with it."""

    def first() -> str:
        finding = it.stats()["findings"][0]
        return str(finding["text"]) if finding["name"] == named else ""

    found = wait_until(first, timeout=60)
    assert found.lower().startswith(f"{named.lower()}: ")
    assert " → " in found, "there is something to do about it"
    return found


def shop(status: StartStatus, *args: str, **options: Any) -> Status:
    return status(*args, views=(VIEWS, INCIDENTS), **options)


def test_too_small_a_pool(status: StartStatus) -> None:
    it = shop(status, cap=2)
    it.site.server.get("/quick")
    with load(it, "/quick", 8):
        said = sentence(it, "too small a pool")
        page = it.get("/", Accept="*/*").text
    assert "all 2 connections are in use" in said
    assert "--max-outstanding 4" in said
    assert "GET quick holds most" in said
    assert "! Too small a pool: all 2 connections are in use" in page


def test_a_slow_view(status: StartStatus) -> None:
    it = shop(status, cap=2)
    with load(it, "/quick", 1), load(it, "/report", 4):
        said = sentence(it, "slow view")
    assert "GET report holds " in said
    assert "GET quick" not in said


@torture
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_that_are_killed_and_replaced_do_not_blur_it(
    status: StartStatus, workers: int
) -> None:
    it = shop(status, "-w", str(workers), cap=2)
    it.wait_for(lambda stats: len(stats["workers"]) == workers)
    with load(it, "/quick", 2 * workers), load(it, "/report", 6 * workers):
        sentence(it, "slow view")
        os.kill(min(it.site.server.worker_pids()), signal.SIGKILL)
        before = it.site.server.worker_pids()
        it.site.server.signal(signal.SIGHUP)
        wait_until(lambda: not before & it.site.server.worker_pids())
        said = sentence(it, "slow view")
    assert "GET report holds " in said


@pytest.mark.parametrize(
    ("mode", "path", "remedy"),
    [
        ("request", "/outside", "--pool-mode transaction: "),
        ("transaction", "/outside_atomic", "@transaction.non_atomic_requests"),
    ],
)
def test_views_that_wait_for_another_service(
    status: StartStatus, mode: str, path: str, remedy: str
) -> None:
    it = shop(status, "--pool-mode", mode, cap=2)
    with load(it, path, 8):
        it.wait_for(lambda stats: stats["routes"] and stats["routes"][0]["leases_total"] > 20)
        said = sentence(it, "waiting views")
    assert "of the connections in use run no statement in the last" in said
    assert remedy in said.partition(" → ")[2]
    assert "--max-outstanding" not in said
    assert f"GET {path[1:]} holds most" in said


def test_an_outage(status: StartStatus, start_mariadb: Callable[..., Server]) -> None:
    server = start_mariadb()
    it = shop(status, cap=2, database=server.create_database())
    assert it.site.run("SELECT 1").status == 200
    server.stop()
    with load(it, "/quick", 2):
        said = sentence(it, "outage")
    assert "the database default cannot be reached" in said
    assert f"127.0.0.1:{server.port}" in said


def test_a_wrong_password(status: StartStatus, mariadb: Server) -> None:
    database = mariadb.create_database()
    it = shop(status, cap=2, database=database, PASSWORD="not this one")
    said = sentence(it, "login refused")
    where = f"the server at 127.0.0.1:{database.port}/{database.name}"
    assert f"{where} refuses the login of default" in said
    assert "→ correct USER, PASSWORD and NAME in DATABASES" in said
    page = it.get("/", Accept="*/*").text
    assert "✕ Login refused: " in page
    assert it.get("/readyz").text == "refuses the login: default\n"
    line = f"[ERROR] database 'default': {where} refuses the login: Access denied for user"
    log = it.site.server.wait_for_log(line)
    assert "\n  → correct USER, PASSWORD and NAME in DATABASES" in log.partition(line)[2]
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"ALTER USER {database.user}@{host} IDENTIFIED BY 'not this one'")
    said = sentence(it, "outage over")
    log = it.site.server.wait_for_log("database 'default' lets the user log in again after")
    for text in (said, page, log):
        assert "cannot be reached" not in text
    assert it.site.server.get("/quick").status == 200
    assert [route["route"] for route in it.stats()["routes"]] == ["quick"], "probes are no use"


@torture
def test_overload(status: StartStatus) -> None:
    it = shop(status, "--pool-timeout", "1", cap=2)
    with load(it, "/quick", 60):
        said = sentence(it, "overload")
    assert "requests arrive faster than connections come back" in said
    assert "refused early" in said


@torture
def test_a_leak(status: StartStatus) -> None:
    it = shop(status, cap=2)
    it.site.server.get("/forget")
    with load(it, "/quick", 4):
        it.wait_for(lambda stats: stats["pools"]["default"]["oldest_held_seconds"] > 1)
        wait_until(
            lambda: it.pool()["oldest_held_seconds"] > LEAK_SECONDS, timeout=2 * LEAK_SECONDS
        )
        said = sentence(it, "leak")
    assert "--leak-threshold" in said


@torture
def test_a_burst_of_queries(status: StartStatus) -> None:
    it = shop(status, cap=1)
    with load(it, "/rows", 12):
        said = sentence(it, "N+1 queries")
    assert "GET rows runs 200 statements for each request" in said
    assert "select_related()" in said


@torture
def test_one_busy_worker(status: StartStatus) -> None:
    it = shop(status, "-w", "2", cap=2)
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        statement = stack.enter_context(gate(it.site.database))
        worker = min(it.site.server.worker_pids())
        with it.site.server.only(worker):
            answers = [threads.submit(it.site.run, statement) for _ in range(3)]
            it.wait_for(lambda stats: stats["pools"]["default"]["waiting"] == 1)
        said = sentence(it, "one busy worker")
        stack.close()
        assert [answer.result().status for answer in answers] == [200] * 3
    assert "the other worker has 2 of 2 free" in said
    assert "--max-per-host 4" in said


@torture
def test_pinned_leases(status: StartStatus) -> None:
    it = shop(status, "--pool-mode", "transaction", cap=2)
    with load(it, "/remember", 8):
        said = sentence(it, "pinned leases")
    assert "because of SET or a user variable" in said


@torture
def test_a_storm_of_connects(status: StartStatus) -> None:
    it = shop(status, "--pool-size", "1", cap=8)
    with load(it, "/quick", 5):
        said = sentence(it, "connect storm")
    assert "“surplus”" in said
    assert "--pool-size " in said


@torture
def test_too_large_a_pool(status: StartStatus) -> None:
    it = shop(status, cap=60)
    with load(it, "/quick", 2):

        def advised() -> str:
            said = it.stats()["advice"]
            return str(said[0]["text"]) if said else ""

        said = wait_until(advised, timeout=60)
        page = it.get("/", Accept="*/*").text
    assert said.startswith("Too large a pool: in 2")
    assert "of 60 connections were in use, nobody waited" in said
    assert "less than an hour" in said
    assert "All is well" in page
    assert "Too large" not in page, "too little was seen to bother whoever looks at the page"
