"""Behind MySQL Router: with and without TLS to the client, and sharing connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import servers
from support.certificates import Authority
from support.client import gate
from support.ledger import CLUSTER_VIEWS, Ledger, create_book
from support.processes import wait_until
from support.router import Router
from support.servers import Server
from support.session_state import KINDS, run_cases
from support.site import Site
from support.torture import TORTURE

StartSite = Callable[..., Site]

ENCRYPTED = {"ssl": {"check_hostname": False}}

HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"client_ssl_mode": "DISABLED"}, {"ssl_disabled": True}),
    "tls": ({"client_ssl_mode": "REQUIRED"}, ENCRYPTED),
    # Without TLS it does not learn the password, which it needs to log in by itself.
    "sharing": (
        {
            "client_ssl_mode": "REQUIRED",
            "server_ssl_mode": "REQUIRED",
            "connection_sharing": 1,
            "connection_sharing_delay": 0,
        },
        ENCRYPTED,
    ),
}
"""Options of the router, and OPTIONS of Django's."""


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_router(folder: Path, server: Server, **options: Any) -> Router:
    certificate = Authority(folder / "certificates").issue("router")
    try:
        return Router(folder, server, tls=certificate, **options)
    except servers.ServerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def router(how: str, mysql: Server, tmp_path: Path) -> Iterator[Router]:
    with make_router(tmp_path, mysql, **HOW[how][0]) as router:
        yield router


KINDS_BEHIND = [kind for kind in KINDS if "next" not in kind]
"""One is looked for by the connection's id, which nobody knows behind a router."""


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_nothing_leaks(
    router: Router, how: str, mode: str, mysql: Server, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    endings = ("ok", "killed") if TORTURE else ("ok",)
    pairs = [(kind, ending) for kind in KINDS_BEHIND for ending in endings]
    results = run_cases(
        mysql, tmp_path / "project", mode, pairs, port=router.port, OPTIONS=HOW[how][1]
    )
    assert len(results) == len(pairs)
    for result in results:
        with subtests.test(result["kind"], ending=result["ending"]):
            assert "error" not in result, result
            assert result["differs"] == {}
            assert result["outside"] == []


@pytest.fixture
def shop(router: Router, how: str, mysql: Server, site: StartSite) -> Callable[..., Site]:
    """A site whose connections go through the router."""

    def start(*args: str, **options: Any) -> Site:
        database = mysql.create_database()
        create_book(mysql.admin, database)
        options = {"OPTIONS": HOW[how][1], "views": CLUSTER_VIEWS, **options}
        return site(*args, database=database.via(router.port), server=mysql, **options)

    return start


def test_sessions_are_reset_and_connections_last(shop: Callable[..., Site]) -> None:
    here = shop(cap=1)
    for trace in ("SET @mine = 1", "BEGIN", "SELECT GET_LOCK('mine', 0)"):
        assert here.run(trace).status == 200
        assert here.run("SELECT @mine, IS_FREE_LOCK('mine')").json() == [["None", "1"]]
    stats = here.pool_at_rest()
    assert (stats["opened_total"], stats["closed_total"]) == (1, {}), stats
    assert stats["reset_total"] == 6  # a question about a variable counts, too
    assert "cannot be compared" not in here.server.log


def test_a_restart_of_the_router_under_load_costs_what_was_in_flight(
    shop: Callable[..., Site], router: Router, mysql: Server
) -> None:
    here = shop("--pool-timeout", "60")
    with Ledger(here.server.port) as ledger:
        ledger.go_on()
        router.stop()
        wait_until(lambda: here.pool()["waiting"] > 4)  # the load has met the outage
        router.start()
        ledger.go_on()
    assert len(ledger.failures()) <= here.cap, ledger.codes()
    ledger.assert_adds_up(mysql.admin, here.database)
    assert here.pool()["timeouts_total"] == 0
    here.fill()


def test_a_statement_whose_request_is_gone_is_not_killed_by_an_id_that_may_be_anothers(
    shop: Callable[..., Site], mysql: Server
) -> None:
    """The router tells no id, and shares connections perhaps."""
    here = shop(cap=2)

    def waits_at_the_gate() -> bool:
        rows = here.admin.processlist(here.database.user)
        return any("GET_LOCK" in str(row["Info"]) for row in rows)

    with ThreadPoolExecutor(1) as threads:
        with gate(here.database.via(mysql.port)) as statement:
            other = threads.submit(here.run, statement)
            wait_until(waits_at_the_gate)
            assert here.server.get("/give_up").status == 200
            assert here.run("SELECT 1").status == 200
            assert not other.done(), "it was ended"
        assert other.result().json() == [["1", "1"]], "it was ended"
    stats = here.pool_at_rest()
    assert stats["killed_total"] == 0
    here.fill()


def test_connections_that_expire_cost_no_request(shop: Callable[..., Site], mysql: Server) -> None:
    mysql.admin.query("SET GLOBAL wait_timeout = 2")
    try:
        here = shop()
        # They have something to do all the time: one that waits for others may expire meanwhile.
        answers = here.at_once("/run?sql=SELECT+SLEEP(0.3)", here.cap)
        assert [answer.status for answer in answers] == [200] * here.cap
        wait_until(lambda: not here.connection_ids())
        assert [here.run("SELECT 1").status for _ in range(8)] == [200] * 8
    finally:
        mysql.admin.query("SET GLOBAL wait_timeout = 28800")


def test_commands_that_a_router_leaves_lying_are_sent_one_at_a_time(
    mysql: Server, tmp_path: Path, site: StartSite
) -> None:
    """One that only passes on what it gets, which nothing tells; without TLS."""
    database = mysql.create_database()
    with make_router(tmp_path, mysql, client_ssl_mode="PASSTHROUGH") as router:
        here = site(
            database=database.via(router.port), server=mysql, cap=1, OPTIONS={"ssl_disabled": True}
        )
        for _ in range(3):
            assert here.run("SET @mine = 1").status == 200
            assert here.run("SELECT @mine").json() == [["None"]]
        stats = here.pool_at_rest()
        assert stats["reset_total"] >= 3, stats
        assert "cannot be compared" not in here.server.log
        here.fill()


@pytest.mark.parametrize("how", ["plain"])
def test_where_the_router_has_fewer_connections_than_the_pool_requests_wait_for_those(
    how: str, mysql: Server, tmp_path: Path, site: StartSite
) -> None:
    """The preflight cannot ask for that number, and says so."""
    database = mysql.create_database()
    plain, options = HOW[how]
    with make_router(tmp_path, mysql, **plain, max_connections=3) as router:
        here = site(
            *("--pool-timeout", "60"),
            database=database.via(router.port),
            server=mysql,
            cap=6,
            OPTIONS=options,
        )
        assert f"MySQL Router is at 127.0.0.1:{router.port}" in here.server.log
        with ThreadPoolExecutor(8) as threads, gate(database) as statement:
            answers = [threads.submit(here.run, statement) for _ in range(8)]
            wait_until(lambda: here.pool()["in_use"] >= 1 and here.pool()["waiting"] >= 2)
        assert [answer.result().status for answer in answers] == [200] * 8, here.server.log
        assert here.pool()["timeouts_total"] == 0
