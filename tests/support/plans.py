"""Plans for servers that are made up."""

from __future__ import annotations

from typing import Any

from pooled_serve.errors import Finding, Level
from pooled_serve.options import PoolOptions
from pooled_serve.preflight.plan import Plan, make_plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts


def facts(
    *, wait_timeout: int = 28800, limit: int = 151, of_user: int = 0, in_use: int = 0, own: int = 0
) -> ServerFacts:
    return ServerFacts("MariaDB 10.11.19", wait_timeout, limit, of_user, in_use, 0.001, own)


def database(
    alias: str = "default",
    *,
    server: str = "db:3306",
    age: float | None = 0,
    found: ServerFacts | None = None,
    **more: Any,
) -> DatabaseReport:
    return DatabaseReport(
        alias, True, "MySQL", f"{server}/{alias}", server, age, found or facts(**more)
    )


def plan_for(
    *databases: DatabaseReport, workers: int = 1, connections: int = 1000, **written: Any
) -> Plan:
    report = ProjectReport(app="mysite.wsgi:application", databases=databases or (database(),))
    return make_plan(
        PoolOptions(**written), report, workers=workers, worker_connections=connections
    )


def the(plan: Plan, level: Level) -> Finding:
    (finding,) = (f for f in plan.findings if f.level is level)
    return finding


def levels(plan: Plan) -> set[Level]:
    return {finding.level for finding in plan.findings}
