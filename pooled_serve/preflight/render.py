"""The plan as text: the start banner and ``--check``."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import compress

from pooled_serve import __version__
from pooled_serve.errors import Finding, Level
from pooled_serve.pool_plan import PoolPlan
from pooled_serve.preflight.budget import plural
from pooled_serve.preflight.plan import Plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport

SKIP = "–"


def versions(django: str | None = None) -> str:
    """Returns the versions of all that the command drives, in one line."""
    parts = [
        f"pooled-serve {__version__}",
        f"Django {django or version('django')}",
        f"gunicorn {version('gunicorn')}",
        f"gevent {version('gevent')}",
        f"PyMySQL {version('pymysql')}",
        f"Python {platform.python_version()}",
    ]
    return " · ".join(parts)


def full_plan(
    plan: Plan,
    report: ProjectReport,
    *,
    workers: int,
    worker_connections: int,
    addresses: Sequence[str],
    status: Sequence[str] = (),
) -> str:
    """Returns the whole plan as ``--check`` prints it, without the closing line."""
    settings = f"settings {report.settings_module}   " if report.settings_module else ""
    lines = [
        versions(report.django),
        "",
        f"Project   {report.app}   {settings}loaded in {report.load_seconds:.2f}s",
        f"Server    {plural(workers, 'worker')} × {worker_connections} greenlets on "
        + ", ".join(addresses),
        *(f"Status    {address}" for address in status),
        # As the banner has it; the timeout is the same for all.
        *(f"Pools     {_rules(plan, pool)}" for pool in list(plan.pools.values())[:1]),
    ]
    if report.databases:
        lines += ["", "Databases", *_table(*_databases(plan, report))]
    if plan.budget:
        lines += ["", "Connection budget", *_table(*_budget(plan))]
    lines += ["", "Checks", *findings(plan.findings), *_problems(report)]
    return "\n".join(lines)


def banner(plan: Plan, report: ProjectReport) -> str:
    """Returns what a start prints: versions, a line for each pool, and every finding but "ok"."""
    lines = [versions(report.django), *_pools(plan, report)]
    lines += findings([f for f in plan.findings if f.level is not Level.OK])
    problems = [d.problem for d in report.databases if d.problem]
    starts = not plan.contradictions and all(f.level is Level.WARN for f in problems)
    anyway = "; it starts nevertheless, --strict would refuse" if starts else ""
    lines += findings([replace(f, hint=f.hint + anyway) for f in problems])
    return "\n".join(lines)


def reloaded(plan: Plan) -> list[tuple[int, str]]:
    """Returns what a reload logs, each text with its level: what the options make of the pools, and
    what is wrong with these. (That they need too many connections, judge_workers() says.) The
    settings may have changed since the preflight has read them: what they decide, the server and
    mostly the age limit, is not told here. (Of a server that is another one the first of the new
    workers tells, which has read them.)"""
    lines = []
    for alias, pool in plan.pools.items():
        age = f"age {_seconds(pool.max_age)} · " if plan.options.max_age is not None else ""
        text = f"{_sizes(pool)} · {age}{_rules(plan, pool)}"
        lines.append((logging.INFO, f"Reloaded: {alias}: {text}"))
    found = [f for f in plan.warnings if f.code.startswith("PS4")]
    return lines + [(logging.WARNING, str(finding)) for finding in found]


def _pools(plan: Plan, report: ProjectReport) -> list[str]:
    """Returns a line for each pool."""
    by_alias = {database.alias: database for database in report.databases}
    return [
        f"  {alias}: {_server(by_alias[alias])} · {_sizes(pool)} · age {_seconds(pool.max_age)} · "
        + _rules(plan, pool)
        for alias, pool in plan.pools.items()
    ]


def _sizes(pool: PoolPlan) -> str:
    """Returns what a pool may have, and for whom that is: with --max-per-host a worker may use all
    of its host's, unless its own cap is lower."""
    caps = []
    if pool.cap != pool.per_host:
        caps.append("unlimited" if pool.cap == math.inf else f"{_cap(pool.cap)} per worker")
    if pool.per_host is not None:
        caps.append(f"{pool.per_host} per host")
    return f"pool {pool.size} · cap {', '.join(caps)}"


def _rules(plan: Plan, pool: PoolPlan) -> str:
    return f"pool-timeout {_seconds(pool.timeout)} · {plan.options.mode} mode"


def _databases(plan: Plan, report: ProjectReport) -> tuple[list[str], list[list[str]]]:
    head = ["alias", "server", "pool", "cap", "age limit", "wait_timeout", "answer", "encryption"]
    rows = []
    for database in report.databases:
        if not database.pooled:
            rows.append([database.alias, database.label, *[SKIP] * 4, "not pooled", ""])
            continue
        pool, facts = plan.pools[database.alias], database.facts
        rows.append(
            [
                database.alias,
                _server(database),
                str(pool.size),
                _cap(pool.cap),
                _seconds(pool.max_age),
                _seconds(facts.wait_timeout) if facts else SKIP,
                f"{facts.answer_seconds * 1000:.1f}ms" if facts else "none",
                facts.tls if facts else "",
            ]
        )
    return head, rows


def _budget(plan: Plan) -> tuple[list[str], list[list[str]]]:
    head = ["server", "at most", "limit", "in use now", "left"]
    rows = []
    for row in plan.budget:
        product = f"{row.workers} × {row.cap:.0f} = {row.most:.0f}"
        if row.bounded:
            product = f"{row.of_host:.0f} per host"
        if row.replicas > 1:
            product = f"{row.replicas} × {product}"
            product += f" = {row.most:.0f}" if row.bounded else ""
        left = row.limit - row.in_use - row.most
        rows.append([row.server, product, str(row.limit), str(row.in_use), f"{left:.0f}"])
    return head, rows


def findings(found: Sequence[Finding]) -> list[str]:
    """Returns a line for each finding, and one for its hint."""
    width = max((len(f.label) for f in found), default=0)
    lines = []
    for f in found:
        lines.append(f"  {f.level:<4}  {f.label:<{width}}  {f.message}")
        if f.hint:
            lines.append(f"  {'':<4}  {'':<{width}}  → {f.hint}")
    return lines


def _server(database: DatabaseReport) -> str:
    return f"{database.facts.engine} {database.address}" if database.facts else database.address


def _problems(report: ProjectReport) -> list[str]:
    return findings([d.problem for d in report.databases if d.problem])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Aligns columns: the first two, which are text, to the left, and numbers to the right. A
    column without a value is left out."""
    used = [bool(any(column)) for column in zip(*rows, strict=True)]
    head, *rows = (list(compress(row, used)) for row in (head, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in [head, *rows]:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _cap(cap: float) -> str:
    return "unlimited" if cap == math.inf else f"{cap:.0f}"


def _seconds(seconds: float) -> str:
    return "never" if seconds == math.inf else f"{seconds:g}s"
