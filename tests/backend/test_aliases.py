"""Aliases that a project swaps, adds and removes while it runs, as packages for tenants do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.client import Admin
from support.ports import free_port
from support.processes import wait_until
from support.script import run_function
from support.serve import Client, Serve
from support.servers import Database, Server

SCRIPTS = "backend/aliases_scripts.py"
MODES = ("request", "transaction")


def as_settings(database: Database) -> dict[str, Any]:
    return {"NAME": database.name, "USER": database.user, "PASSWORD": database.password}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def tenants(mariadb: Server) -> list[Database]:
    """The first is the project's own. Each has a user of its own, who sees nothing else."""
    return [mariadb.create_database() for _ in range(3)]


@pytest.fixture
def script(project: Any, mariadb: Server, tenants: list[Database], mode: str) -> Callable[..., Any]:
    """Calls a function of SCRIPTS, which finds the settings of the databases as a, b and c."""

    def script(function: str, *args: Any) -> Any:
        watch = mariadb.create_database()
        for host in ("127.0.0.1", "localhost"):
            mariadb.admin.query(f"GRANT PROCESS ON *.* TO {watch.user}@{host}")
        databases = {"default": tenants[0].django(), "watch": watch.django()}
        settings = [as_settings(tenant) for tenant in tenants]
        call = ("with_tenants", settings, function, *args)
        return run_function(
            project(databases=databases), SCRIPTS, *call, POOLED_SERVE_POOL_MODE=mode
        )

    return script


# --- Settings that change ----------------------------------------------------------------------


@pytest.mark.parametrize("request_ends", [True, False])
def test_each_lease_goes_where_the_settings_point(
    script: Any, tenants: list[Database], request_ends: bool
) -> None:
    names = script("each_lease_goes_where_the_settings_point", request_ends)
    a, b, c = (tenant.name for tenant in tenants)
    assert names == [a, b, c, a, a, c, b]


def test_settings_may_change_in_place(script: Any, tenants: list[Database]) -> None:
    names = script("settings_may_change_in_place")
    a, b, c = (tenant.name for tenant in tenants)
    assert names == [a, b, c, a]


def test_options_count_however_deep_they_lie_and_whatever_they_are(script: Any) -> None:
    seen = script("options_count_however_deep_they_lie_and_whatever_they_are")
    assert seen == ["first", "second", "SERIALIZABLE", "converted", "converted", 1, True]


def test_a_password_that_is_wrong_by_now_is_not_let_in_by_the_pool(script: Any) -> None:
    script("a_password_that_is_wrong_by_now_is_not_let_in_by_the_pool")


def test_another_server_another_engine(
    script: Any, mysql: Server, tenants: list[Database], tmp_path: Any
) -> None:
    other = mysql.create_database()
    elsewhere = {**as_settings(other), "HOST": other.host, "PORT": other.port}
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db"), "OPTIONS": {}}
    facts = script("another_server_another_engine", elsewhere, sqlite)
    assert facts == [["MariaDB", 1], ["MySQL", 1], ["SQLite", 1], ["MariaDB", 1]]


def test_what_is_in_use_goes_on_and_is_closed_when_it_comes_back(script: Any) -> None:
    script("what_is_in_use_goes_on_and_is_closed_when_it_comes_back")


def test_the_age_limit_follows_conn_max_age(script: Any) -> None:
    script("the_age_limit_follows_conn_max_age")


# --- Aliases that come and go ------------------------------------------------------------------


def test_removed_aliases_leave_nothing_behind(script: Any) -> None:
    most, left, pools = script("removed_aliases_leave_nothing_behind")
    assert most <= 6
    assert left == ["default", "watch"]
    assert pools == 2


def test_aliases_that_stay_share_a_bound_on_what_is_idle(script: Any) -> None:
    most, left, pools, again = script("aliases_that_stay_share_a_bound_on_what_is_idle")
    assert most <= 10
    assert left == ["default", "tenant196", "tenant197", "tenant198", "tenant199", "watch"]
    assert pools == 6
    assert again == [1, 1, 1, 1]


def test_a_request_that_loops_over_tenants_needs_one_connection_at_a_time(script: Any) -> None:
    # Stock Django drops the connection with the wrapper; the cap here is 4.
    most = script("a_request_that_loops_over_tenants_needs_one_connection_at_a_time")
    assert most <= 2


def test_written_sizes_are_for_their_aliases(project: Any, mariadb: Server, mode: str) -> None:
    database = mariadb.create_database()
    sizes = run_function(
        project(databases={"default": database.django()}),
        SCRIPTS,
        "written_sizes_are_for_their_aliases",
        POOLED_SERVE_POOL_MODE=mode,
        POOLED_SERVE_POOL="big:3:7",
    )
    assert sizes == [[2, 4], [3, 7], [2, 4]]


# --- Under Gunicorn ----------------------------------------------------------------------------

VIEWS = Path(__file__).with_name("aliases_views.py")


@pytest.fixture
def databases(mariadb: Server, tenants: list[Database]) -> dict[str, Any]:
    mariadb.admin.query(f"CREATE TABLE {tenants[1].name}.t (n INT) ENGINE=InnoDB")
    return {"default": tenants[0].django(), "replica": tenants[1].django()}


def test_a_wrapper_under_another_alias_ends_with_its_request(
    project: Any, serve: Any, databases: Any, tenants: list[Database], mariadb: Server, mode: str
) -> None:
    web: Serve = serve(project(VIEWS, databases=databases), "--pool-mode", mode)
    names = [tenants[0].name, tenants[1].name]
    with web.keepalive() as client:
        assert client.get("/which").json() == names
        assert client.get("/put").status == 200
        assert client.get("/which").json() == names
    with ThreadPoolExecutor(2) as clients:
        answers = clients.map(web.get, ["/write?n=1", "/write?n=2&fail=1"])
        assert [answer.status for answer in answers] == [200, 200]
    rows = mariadb.admin.query(f"SELECT n FROM {tenants[1].name}.t")
    assert rows == [{"n": 1}]  # committed, whatever the other did


@pytest.fixture
def stats(project: Any, serve: Any, databases: Any) -> tuple[Serve, Any]:
    port = free_port()
    web = serve(project(VIEWS, databases=databases), "--status", f"127.0.0.1:{port}")

    def pools() -> dict[str, Any]:
        with closing(Client(("127.0.0.1", port))) as client:
            found: dict[str, Any] = client.get("/stats.json").json()["pools"]
            return found

    return web, pools


def test_the_board_has_room_for_aliases_to_come(
    stats: Any, mariadb: Server, tenants: list[Database]
) -> None:
    web, pools = stats
    web.get("/which")
    for n in range(20):
        assert web.get(f"/add?alias=gone{n}&remove=1").status == 200
    for n in range(20):
        assert web.get(f"/add?alias=tenant{n}").status == 200
    newest = [f"tenant{n}" for n in range(16, 20)]
    assert sorted(pools()) == ["default", "replica", *newest]
    assert all(pools()[alias]["acquired_total"] == 1 for alias in newest)
    in_settings = {alias for alias, pool in pools().items() if pool["in_settings"]}
    assert in_settings == {"default", "replica"}
    assert pools()["default"]["acquired_total"] == 1
    assert "does not show everything" not in web.log
    admin: Admin = mariadb.admin
    wait_until(lambda: len(admin.processlist(tenants[0].user)) == 5)


def test_a_worker_that_dies_leaves_the_places_of_added_aliases(stats: Any) -> None:
    web, pools = stats
    web.get("/which")
    for n in range(4):
        web.get(f"/add?alias=tenant{n}")
    (worker,) = web.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: web.worker_pids() - {worker})
    web.get("/which")
    assert sorted(pools()) == ["default", "replica"]
    assert pools()["default"]["acquired_total"] == 2  # those of the first are kept
