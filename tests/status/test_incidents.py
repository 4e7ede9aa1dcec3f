"""Incidents, staged for real: the sentence of the page alone says what it is, and what to do."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pymysql
import pytest

from pooled_serve.status.figures import RECENT_SECONDS
from pooled_serve.status.findings import LEAK_SECONDS
from support.client import gate
from support.load import Hammer
from support.log_lines import (
    FIRST_HAS_ENDED,
    FULL,
    LOGIN_AGAIN,
    LOGIN_REFUSED,
    OTHERS_ANSWERED,
    ROOM_AGAIN,
    STATEMENTS_GO_ON,
    STATEMENTS_HANG,
)
from support.processes import wait_until
from support.serve import Client
from support.servers import Server
from support.site import VIEWS
from support.status import SLEEP, StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

INCIDENTS = Path(__file__).with_name("incidents_views.py")


@contextmanager
def load(it: Status, path: str, clients: int, every: float = 0.0) -> Iterator[None]:
    port = it.site.server.port
    with Hammer(port, path, clients=clients, seconds=120, every=every) as running:
        yield
        running.stop()
        running.finish()


def sentence(it: Status, named: str, part: str = "") -> str:
    """The page's first sentence, once it has this name and says this; both pages begin with it."""

    seen: dict[str, Any] = {}

    def first() -> str:
        seen.update(it.stats()["findings"][0])
        return str(seen["text"]) if seen["name"] == named and part in seen["text"] else ""

    found = wait_until(first, timeout=60, showing=lambda: seen)
    assert found.lower().startswith(f"{named.lower()}: ")
    assert " → " in found, "there is something to do about it"
    return found


def names_now(it: Status) -> list[str]:
    """What the page says of the pool, the worst first. What it says of workers, such as that one
    lacks a processor, is true of this machine."""
    return [finding["name"] for finding in it.stats()["findings"] if finding["pool"]]


def names_for(it: Status, seconds: float) -> set[str]:
    """All that it says of it in this time."""
    end = time.monotonic() + seconds
    found: set[str] = set()
    while True:
        found |= {*names_now(it)}
        if time.monotonic() >= end:
            return found
        time.sleep(0.1)


@contextmanager
def all_others_taken(it: Status, own: int) -> Iterator[None]:
    """The server has no connection left, but for those that the application has."""
    wait_until(lambda: len(it.site.connection_ids()) == own)  # the preflight's has gone
    with ExitStack() as others:

        def connects() -> bool:
            with suppress(pymysql.OperationalError):
                connection = pymysql.connect(**it.site.database.connect_args())
                others.enter_context(closing(connection))
                return True
            return False

        while connects():
            pass
        yield


def shop(status: StartStatus, *args: str, **options: Any) -> Status:
    return status(*args, views=(VIEWS, INCIDENTS), **options)


def test_too_small_a_pool(status: StartStatus) -> None:
    it = shop(status, cap=2)
    it.site.server.get("/quick")
    with load(it, "/quick", 8):
        # Where clients do not get the processor for a moment, they were in use.
        full = "all 2 connections are in use"
        said = sentence(it, "too small a pool", full)
        wait_until(lambda: f"! Too small a pool: {full}" in it.get("/", Accept="*/*").text)
    assert "--max-outstanding 4" in said
    assert "GET quick holds most" in said


def test_a_slow_view(status: StartStatus) -> None:
    it = shop(status, cap=2)
    with load(it, "/quick", 1), load(it, "/report", 4):
        said = sentence(it, "slow view")
    assert "GET report holds " in said
    assert "GET quick" not in said
    room = it.pool()["budget"]
    assert (
        f"until then --max-outstanding 4 lets requests wait less (this host may have {room}" in said
    )


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
    ("mode", "path", "remedy", "settings"),
    [
        ("request", "/outside", "--pool-mode transaction: ", {}),
        ("transaction", "/outside_atomic", "no atomic() around calls to another service", {}),
        (
            "request",
            "/outside",
            "--pool-mode transaction and, as ATOMIC_REQUESTS is on, "
            "@transaction.non_atomic_requests on GET outside: ",
            {"ATOMIC_REQUESTS": True},
        ),
        (
            "transaction",
            "/outside",
            "as ATOMIC_REQUESTS is on: @transaction.non_atomic_requests on GET outside, and ",
            {"ATOMIC_REQUESTS": True},
        ),
    ],
)
def test_views_that_wait_for_another_service(
    status: StartStatus, mode: str, path: str, remedy: str, settings: dict[str, Any]
) -> None:
    it = shop(status, "--pool-mode", mode, cap=2, **settings)
    assert f" · {mode} mode · up " in it.get("/", Accept="*/*").text.partition("\n")[0]
    with load(it, path, 8):
        it.wait_for(lambda stats: stats["routes"] and stats["routes"][0]["leases_total"] > 20)
        said = sentence(it, "waiting views")
    assert "of the connections in use run no statement in the last" in said
    assert said.partition(" → ")[2].startswith(remedy)
    assert "--max-outstanding" not in said
    assert f"GET {path[1:]} has most of this time, " in said


def test_the_view_that_waits_is_named_and_not_the_one_that_holds_most(status: StartStatus) -> None:
    it = shop(status, cap=4)
    with load(it, "/quick_often", 2), load(it, "/outside", 8):
        it.wait_for(lambda stats: stats["routes"] and stats["routes"][0]["leases_total"] > 20)
        said = sentence(it, "waiting views")
        routes = {route["route"]: route["lately"] for route in it.stats()["routes"]}
    assert "; GET outside has most of this time, " in said
    asked, waited = routes["quick_often"], routes["outside"]
    assert asked["idle_seconds"] < 0.3 * asked["held_seconds"]
    assert 0.7 * waited["held_seconds"] < waited["idle_seconds"] < 1.3 * waited["held_seconds"]


WRONG = {"slow view", "too small a pool", "waiting views", "slow connects", "overload"}
"""What a lock is not, nor a server that is full: their remedies would be none."""


@torture
def test_statements_that_hang_and_what_they_leave_behind(
    status: StartStatus,
) -> None:
    it = shop(status, cap=2)
    it.site.server.get("/quick")
    names: list[str] = []
    with ExitStack() as crowd, gate(it.site.database) as statement:
        crowd.enter_context(load(it, "/run?" + urlencode({"sql": statement}), 6, every=0.5))
        said = sentence(it, "hanging statements")
        log = it.site.server.wait_for_log(f"pool 'default': {STATEMENTS_HANG}")
    # The six would come at the same moments from now on, and wait in earnest on a busy machine.
    with load(it, "/quick", 2, every=0.5):
        end = time.monotonic() + 60
        while "all is well" not in names[-20:-19]:  # and nothing comes back
            assert time.monotonic() < end, names
            names.append([*names_now(it), "all is well"][0])
            time.sleep(0.1)
        over = it.site.server.wait_for_log(STATEMENTS_GO_ON)
    assert "→ SHOW PROCESSLIST there says what they wait for: often a lock" in said
    assert "\n  → SHOW PROCESSLIST on the server says what they wait for" in log
    assert over.count("statements hang, ") == over.count("statements go on, ") == 1
    assert "statements go on" in names
    assert not WRONG & {*names}, names
    peaks = it.pool()["peaks"]["24h"]
    assert (peaks["waiting"], peaks["wait_seconds"] < 2) == (0, True)


@torture
def test_statements_that_hang_one_in_each_worker(status: StartStatus) -> None:
    """So few in each, and with connections to spare, are not many for any worker alone."""
    it = shop(status, "-w", "3", cap=4)
    it.wait_for(lambda stats: len(stats["workers"]) == 3)
    server = it.site.server
    with ThreadPoolExecutor(4) as threads:
        with gate(it.site.database) as statement:
            for running, worker in enumerate(server.worker_pids(), start=1):
                with server.only(worker):
                    threads.submit(it.site.run, statement, timeout=120)
                    it.wait_for(lambda stats: stats["pools"]["default"]["in_use"] == running)  # noqa: B023
            said = sentence(it, "hanging statements")
            server.wait_for_log(f"pool 'default': {STATEMENTS_HANG}", times=3)
            # Its first statement is answered.
            late = threads.submit(it.site.run, statement, timeout=120)
            names = names_for(it, 4)
            it.wait_for(lambda stats: stats["pools"]["default"]["in_use"] == 4)
            names |= names_for(it, 0)
        assert late.result().status == 200
    assert "all 3 that run" in said
    assert names == {"hanging statements"}


def test_an_outage(status: StartStatus, start_mariadb: Callable[..., Server]) -> None:
    server = start_mariadb()
    it = shop(status, cap=2, database=server.create_database())
    assert it.site.run("SELECT 1").status == 200
    server.stop()
    with load(it, "/quick", 2):
        it.wait_for(lambda stats: stats["pools"]["default"]["lost_seconds"] > 1)
        said = sentence(it, "outage")
        lasts = it.stats()["pools"]["default"]["lost_seconds"]
    text = r": the database default has been out of reach for (\d+) s \(error 2003\)"
    assert 1 <= int("".join(re.findall(text, said)) or 0) <= lasts + 0.5, said
    assert f"127.0.0.1:{server.port}" in said
    assert "cannot be reached (error 2003)" in it.get("/", Accept="*/*").text
    server.start()
    it.wait_for(lambda stats: not stats["pools"]["default"]["lost_seconds"])


def test_what_an_outage_has_cost_does_not_rise_after_it(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    """There are more clients than connections: some wait at every moment."""
    server = start_mariadb()
    it = shop(status, cap=2, database=server.create_database())
    assert it.site.run("SELECT 1").status == 200
    with load(it, "/quick", 8):
        it.wait_for(lambda stats: stats["pools"]["default"]["waited_total"] > 20)
        server.stop()
        it.wait_for(lambda stats: stats["pools"]["default"]["lost_seconds"] > 1)
        server.start()
        sentence(it, "outage over")
        waited = it.pool()["waited_total"]
        # More than can have begun to wait in it; and not so many that the page has forgotten it.
        it.wait_for(lambda stats: stats["pools"]["default"]["waited_total"] > waited + 50)
        stats = it.stats()
    pool, said = stats["pools"]["default"], stats["findings"][0]["problem"]
    its = pool["recent"]["outage"]
    assert 0 < its["waited"] == pool["outage_waits_total"]
    assert f"; in all {its['waited']} requests waited" in said


@torture
def test_an_outage_that_is_over_is_told_whole(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    """It has lasted for longer than the numbers of now, and all workers have refused requests."""
    server = start_mariadb()
    it = shop(status, "-w", "2", cap=2, database=server.create_database())
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    for worker in it.site.server.worker_pids():
        with it.site.server.only(worker):
            it.site.give_up_after(1)
    server.stop()
    port = it.site.server.port
    with Hammer(port, "/quick", clients=8, seconds=120, every=0.2) as running:
        it.wait_for(lambda stats: stats["pools"]["default"]["lost_seconds"] > 2 * RECENT_SECONDS)
        lasted = it.stats()["pools"]["default"]["lost_seconds"]
        running.stop()
        refused = sum(outcome.result == 503 for outcome in running.finish())
    server.start()
    said = sentence(it, "outage over")
    text = r"could not be used for (\d+) s until \d s ago; in all .*?(\d+) requests got 503"
    seconds, told = map(int, re.findall(text, said)[0])
    assert seconds >= int(lasted)
    assert told == refused > 100


def test_a_server_that_others_have_filled(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb("--max-connections=10")
    database = server.create_database()
    it = shop(status, "--pool-timeout", "5", cap=2, server=server, database=database)
    with all_others_taken(it, own=0), load(it, "/quick", 2):
        said = sentence(it, "server full")
        assert it.get("/readyz").text == "server full (error 1040): default\n"
        assert "default  server full (error 1040) · " in it.get("/", Accept="*/*").text
        where = f"127.0.0.1:{server.port}/{database.name}"
        full = f"[ERROR] database 'default': the server at {where}{FULL}"
        log = it.site.server.wait_for_log(full)
    text = rf"(MariaDB \S+|the server) at {where} has (had )?no connection left for default"
    assert re.match(rf"Server full: {text}( for \d+ s)? \(error 1040\)", said)
    assert said.partition(" → ")[2].startswith("close idle connections (SHOW PROCESSLIST), or")
    assert f"database 'default' {ROOM_AGAIN}" in it.site.server.wait_for_log("again after")
    assert "→ close idle connections (SHOW PROCESSLIST), or" in log
    said += sentence(it, "server has room again")
    assert re.search(rf": {text.replace('has (had )?', 'had ')}( for \d+ s)? until \d s ago", said)
    assert "reached" not in said + log, "it runs"


def test_a_wrong_password(status: StartStatus, mariadb: Server) -> None:
    database = mariadb.create_database()
    it = shop(status, cap=2, database=database, PASSWORD="not this one")
    said = sentence(it, "login refused")
    where = f"the server at 127.0.0.1:{database.port}/{database.name}"
    refused = re.escape(where) + r" (refuses|has refused) the login of default"
    assert re.search(refused, said)
    assert "→ correct USER, PASSWORD and NAME in DATABASES" in said
    page = it.get("/", Accept="*/*").text
    assert "✕ Login refused: " in page
    assert it.get("/readyz").text == "refuses the login: default\n"
    line = f"[ERROR] database 'default': {where} {LOGIN_REFUSED}Access denied for user"
    log = it.site.server.wait_for_log(line)
    assert "\n  → correct USER, PASSWORD and NAME in DATABASES" in log.partition(line)[2]
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"ALTER USER {database.user}@{host} IDENTIFIED BY 'not this one'")
    said = sentence(it, "login works again")
    assert f"{database.port}/{database.name} refused the login of default" in said
    log = it.site.server.wait_for_log(f"database 'default' {LOGIN_AGAIN}")
    for text in (said, page, log):
        assert "cannot be reached" not in text
    assert it.site.server.get("/quick").status == 200
    assert [route["route"] for route in it.stats()["routes"]] == ["quick"], "probes are no use"


def test_a_password_that_is_corrected_with_a_hup(
    status: StartStatus, mariadb: Server, tmp_path: Path
) -> None:
    """The workers that were refused have ended by the time at which others can tell of it."""
    database = mariadb.create_database()
    file = tmp_path / "password"
    file.write_text("not this one")
    settings = f'DATABASES["default"]["PASSWORD"] = open({str(file)!r}).read()'
    it = shop(status, "-w", "2", database=database, django=settings)
    it.site.server.wait_for_log(f"{LOGIN_REFUSED}Access denied for user", times=2)
    before = it.site.server.worker_pids()
    file.write_text(str(database.django()["PASSWORD"]))
    began = time.monotonic()
    it.site.server.signal(signal.SIGHUP)
    again = f"database 'default' {LOGIN_AGAIN}"
    log = it.site.server.wait_for_log(again)
    assert re.search(rf"\[WARNING\] {again} \d+\.\ds$", log, re.M)
    # Said for ten seconds after the last refusal: on a busy machine new workers may need those.
    if time.monotonic() - began < RECENT_SECONDS / 2:
        assert "refused the login of default" in sentence(it, "login works again")
    wait_until(lambda: not it.site.server.worker_pids() & before)
    wait_until(lambda: it.get("/readyz").status == 200)
    assert it.site.server.log.count(again) <= 2, "two that come at once may both be the first"


def test_a_server_that_others_fill_while_it_is_used(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb("--max-connections=10")
    database = server.create_database()
    it = shop(status, "--pool-size", "1", cap=6, server=server, database=database)
    it.site.server.get("/quick")
    with all_others_taken(it, own=1), load(it, "/quick", 8):
        said = sentence(it, "failing connects")
        names = names_for(it, 3)
    assert " (error 1040): " in said
    assert said.partition(" → ")[2].startswith("close idle connections (SHOW PROCESSLIST), or")
    assert names == {"failing connects"}


@torture
def test_overload(status: StartStatus) -> None:
    it = shop(status, "--pool-timeout", "1", cap=2)
    with load(it, "/quick", 60):
        said = sentence(it, "overload")
        # The first of the burst have waited for the whole timeout.
        it.wait_for(lambda stats: " early" in stats["findings"][0]["problem"])
        # Of a load that is over at once, little is left to be told of.
        it.wait_for(lambda stats: stats["pools"]["default"]["acquired_total"] > 150)
    assert "requests arrive faster than connections come back" in said
    stats = it.wait_for(lambda stats: "until" in stats["findings"][0]["problem"])
    assert stats["findings"][0]["level"] == "warn"
    assert "requests arrived faster than connections came back" in sentence(it, "overload")


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
    it = shop(status, "-w", "2", "--keep-alive", "60", cap=2)
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    server, over = it.site.server, threading.Event()

    def visit(client: Client) -> None:
        while not over.is_set():  # statements that hang would have another sentence after a second
            assert client.get(SLEEP.format(0.3)).status == 200

    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        clients = [stack.enter_context(server.keepalive()) for _ in range(3)]
        with server.only(min(server.worker_pids())):
            assert [client.get("/quick").status for client in clients] == [200] * 3
        visits = [threads.submit(visit, client) for client in clients]
        try:
            said = sentence(it, "one busy worker", "the other worker has 2 of 2 free")
        finally:
            over.set()
        for ended in visits:
            ended.result()
    assert "--max-per-host 4" in said


@torture
def test_pinned_leases(status: StartStatus) -> None:
    it = shop(status, "--pool-mode", "transaction", cap=2)
    with load(it, "/remember", 8):
        said = sentence(it, "pinned leases")
    assert "because of SET or a user variable" in said


@torture
def test_a_storm_of_connects(status: StartStatus) -> None:
    """Who comes together in each round needs new connections, and they are closed again."""
    it = shop(status, "--pool-size", "1", cap=8)
    with ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(load(it, "/report", 1, every=1.5))
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

        def page_if_well() -> str:  # it says more of a worker that lacks a processor for a while
            page = it.get("/", Accept="*/*").text
            return page if "All is well" in page else ""

        said = wait_until(advised, timeout=60)
        page = wait_until(page_if_well)
    assert said.startswith("Too large a pool: in 2")
    assert "of 60 connections were in use, nobody waited" in said
    assert "less than an hour" in said
    assert "Too large" not in page, "too little was seen to bother whoever looks at the page"


@torture
@pytest.mark.parametrize("clients", [1, 8])
def test_statements_that_hang_while_others_are_served(status: StartStatus, clients: int) -> None:
    """The page, the log and /metrics tell of them, with a queue behind the others and without."""
    it = shop(status, cap=8)
    with ThreadPoolExecutor(5) as threads:
        with gate(it.site.database) as statement:
            hung = [threads.submit(it.site.run, statement, timeout=120) for _ in range(5)]
            it.wait_for(lambda stats: stats["pools"]["default"]["in_use"] == 5)
            with load(it, "/quick", clients):
                said = sentence(it, "slow statements")
                log = it.site.server.wait_for_log(OTHERS_ANSWERED)
                names = names_for(it, 0)
                told = it.get("/metrics").text
        assert [answer.result().status for answer in hung] == [200] * 5
        it.site.server.wait_for_log(FIRST_HAS_ENDED)
    it.wait_for(lambda stats: not stats["pools"]["default"]["hanging_statements"])
    assert said.startswith("Slow statements: 5 statements at ")
    assert (", while others are answered: " in said) == (clients > 3), "they make others wait"
    assert "pool 'default': 5 statements of this worker without an answer for a second or" in log
    assert re.search(r"^pooled_serve_hanging_statements\{.*\} 5\.0$", told, re.M)
    assert names == {"slow statements"}
