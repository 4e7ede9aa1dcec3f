"""The plan as text."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from pooled_serve.errors import Finding, Level
from pooled_serve.options import PoolOptions
from pooled_serve.preflight import render
from pooled_serve.preflight.plan import make_plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts

FACTS = ServerFacts("MySQL 9.7.1", 600, 151, 0, 3, 0.0012)
DATABASES = (
    DatabaseReport("default", True, "MySQL", "db:3306/shop", "db:3306", 0, FACTS),
    DatabaseReport(
        "reports",
        True,
        "MySQL",
        "far:3306/shop",
        "far:3306",
        0,
        problem=Finding(
            Level.WARN, "PS301", "", "far:3306 does not accept connections", "start it"
        ),
    ),
    DatabaseReport("legacy", False, "SQLite"),
)


def banner(**written: object) -> str:
    found = ProjectReport(app="shop.wsgi:application", databases=DATABASES)
    plan = make_plan(
        PoolOptions(**written),  # type: ignore[arg-type]
        found,
        workers=1,
        worker_connections=100,
    )
    return render.banner(plan, found)


def test_banner() -> None:
    first, *lines = banner().splitlines()
    assert first == render.versions()
    assert lines == [
        "  default: MySQL 9.7.1 db:3306/shop · pool 4 · cap 12 per worker · age 60s · "
        "pool-timeout 10s · request mode",
        "  reports: far:3306/shop · pool 4 · cap 12 per worker · age 60s · "
        "pool-timeout 10s · request mode",
        "  note  legacy  SQLite is not pooled; Django connects as usual",
        "  WARN  PS301  far:3306 does not accept connections",
        "               → start it; it starts nevertheless, --strict would refuse",
    ]


def test_banner_without_limits() -> None:
    text = banner(cap=math.inf, max_age=math.inf, timeout=0.25)
    assert "· pool 4 · cap unlimited · age never · pool-timeout 0.25s · request mode" in text
    assert "WARN  PS206 default" in text


@pytest.mark.parametrize(("written", "age"), [({}, ""), ({"max_age": 30.0}, "age 30s · ")])
def test_a_reload_tells_what_the_options_decide(written: dict[str, Any], age: str) -> None:
    """The new workers read the settings anew, and may be with another server by now."""
    found = ProjectReport(databases=DATABASES[:1])
    options = PoolOptions(size=2, cap=6, **written)
    plan = make_plan(options, found, workers=1, worker_connections=100)
    says = f"Reloaded: default: pool 2 · cap 6 per worker · {age}pool-timeout 10s · request mode"
    assert render.reloaded(plan) == [(logging.INFO, says)]


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({}, "pool 4 · cap 12 per worker · "),
        ({"per_host": 12}, "pool 4 · cap 12 per host · "),
        ({"per_host": 24, "cap": 8}, "pool 4 · cap 8 per worker, 24 per host · "),
        ({"cap": math.inf}, "pool 4 · cap unlimited · "),
        ({"cap": math.inf, "per_host": 24}, "pool 4 · cap 24 per host · "),
        ({"mode": "transaction"}, " · pool-timeout 10s · transaction mode"),
    ],
)
def test_the_lines_say_whose_cap_it_is(written: dict[str, Any], says: str) -> None:
    """Or one that loses --max-per-host in a reload looks as before."""
    found = ProjectReport(databases=DATABASES[:1])
    plan = make_plan(PoolOptions(**written), found, workers=1, worker_connections=100)
    ((_, reloaded),) = render.reloaded(plan)
    assert says in f"{reloaded}\n"
    assert says in banner(**written)


def test_what_is_fine_needs_no_line_at_the_start() -> None:
    assert "ok  " not in banner()


@pytest.mark.parametrize(("workers", "said"), [(1, "1 worker × "), (2, "2 workers × ")])
def test_check_without_databases(workers: int, said: str) -> None:
    found = ProjectReport("shop.wsgi:application", "shop.settings", 0.4, "6.1.3")
    plan = make_plan(PoolOptions(), found, workers=workers, worker_connections=1000)
    text = render.full_plan(
        plan, found, workers=workers, worker_connections=1000, addresses=["http://a", "unix:/b"]
    )
    assert text.splitlines()[1:] == [
        "",
        "Project   shop.wsgi:application   settings shop.settings   loaded in 0.40s",
        f"Server    {said}1000 greenlets on http://a, unix:/b",
        "",
        "Checks",
        "  note  DATABASES  no database: nothing to pool",
    ]
    assert "Django 6.1.3" in text


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_check_says_the_pool_mode(mode: str) -> None:
    found = ProjectReport(app="shop.wsgi:application", databases=DATABASES)
    plan = make_plan(PoolOptions(mode=mode), found, workers=1, worker_connections=100)
    text = render.full_plan(
        plan, found, workers=1, worker_connections=100, addresses=["http://a"], status=["http://b"]
    )
    assert text.splitlines()[3:7] == [
        "Server    1 worker × 100 greenlets on http://a",
        "Status    http://b",
        f"Pools     pool-timeout 10s · {mode} mode",
        "",
    ]


def test_columns_are_as_wide_as_they_need() -> None:
    lines = render._table(["a", "server", "n"], [["default", "x", "1"], ["b", "longer one", "100"]])
    assert lines == [
        "  a        server        n",
        "  default  x             1",
        "  b        longer one  100",
    ]
