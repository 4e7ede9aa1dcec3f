"""Turn options and the servers' answers into numbers and findings. Pure: no I/O, no Django.

A default that does not fit is lowered, with a note. An explicit number is obeyed, or refused with a
hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pooled_serve.errors import Finding, Level
from pooled_serve.options import (
    DEFAULT_CAP_FACTOR,
    DEFAULT_MAX_AGE,
    DEFAULT_SIZE,
    SAFE_SHARE,
    PoolOptions,
    PoolPlan,
)

PROXY_TIMEOUT_SECONDS = 30
"""Many proxies give up after it, such as the routers of hosting platforms. nginx waits for 60."""


@dataclass(frozen=True)
class ServerFacts:
    """What a database server reports about itself."""

    engine: str  # as in MariaDB 10.11.19
    wait_timeout: int  # seconds
    max_connections: int
    max_user_connections: int  # 0: no limit per user
    in_use: int  # connections of all users, without the one that asked
    answer_seconds: float
    in_use_by_user: int = 0  # of the same user; counts against max_user_connections
    identity: str = ""  # the same for all names of one server: localhost, its socket, a proxy

    @property
    def kind(self) -> str:
        """MariaDB or MySQL."""
        return self.engine.partition(" ")[0]


@dataclass(frozen=True)
class DatabaseReport:
    """One alias of DATABASES, as the preflight found it."""

    alias: str
    pooled: bool
    label: str  # its name if it is not pooled: SQLite, PostgreSQL, ...
    address: str = ""  # host:port/name, without user and password
    server: str = ""  # host:port, the same for all aliases on one server
    conn_max_age: float | None = 0  # as in the settings
    facts: ServerFacts | None = None
    problem: Finding | None = None


@dataclass(frozen=True)
class ProjectReport:
    """The result of the preflight."""

    app: str = ""
    settings_module: str = ""
    load_seconds: float = 0.0
    django: str = ""
    databases: tuple[DatabaseReport, ...] = ()
    warnings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class BudgetRow:
    """One server, and how many connections it may get."""

    server: str
    replicas: int
    workers: int
    cap: float  # of one worker, for all aliases on this server
    limit: int
    limit_name: str
    in_use: int
    aliases: tuple[str, ...] = ()

    @property
    def most(self) -> float:
        """Connections when every pool is full."""
        return self.replicas * self.workers * self.cap


@dataclass(frozen=True)
class Plan:
    """All decisions: rows for the tables, numbers for the pools, findings."""

    options: PoolOptions = field(default_factory=PoolOptions)
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    budget: tuple[BudgetRow, ...] = ()
    findings: tuple[Finding, ...] = ()

    def pool(self, alias: str, conn_max_age: float | None) -> PoolPlan:
        """The numbers for an alias, whose CONN_MAX_AGE may have changed since the preflight."""
        fresh, _ = _pool_plan(self.options, alias, conn_max_age)
        known = self.pools.get(alias)
        if known is None:
            return fresh
        return replace(known, max_age=min(known.max_age, fresh.max_age))

    def judge(self, workers: int) -> list[Finding]:
        """Returns what is wrong with this number of workers, each with these caps, later on."""
        return [
            finding
            for row in self.budget
            for finding in _judge_budget(
                replace(row, workers=workers),
                [self.pools[alias] for alias in row.aliases],
                "at the start",
            )
        ]

    @property
    def contradictions(self) -> list[Finding]:
        """The findings that prevent a start."""
        return [f for f in self.findings if f.level is Level.FAIL]

    @property
    def warnings(self) -> list[Finding]:
        """Those that prevent it under ``--strict``."""
        return [f for f in self.findings if f.level is Level.WARN]


def make_plan(
    options: PoolOptions,
    report: ProjectReport,
    *,
    workers: int,
    worker_connections: int,
    now: str = "now",
) -> Plan:
    """Decide. Raises nothing: whatever is wrong is a finding.

    :param now: when the report was made, for messages.
    """
    findings = list(_unknown_aliases(options, report.databases))
    pooled = [database for database in report.databases if database.pooled]
    pools: dict[str, PoolPlan] = {}
    for database in pooled:
        plan, found = _pool_plan(options, database.alias, database.conn_max_age)
        pools[database.alias], more = _fit_age(plan, database)
        findings += found + more
    if pooled and options.timeout > PROXY_TIMEOUT_SECONDS:
        text = (
            f"a request may wait {options.timeout:g}s for a connection; most proxies give up after "
            f"{PROXY_TIMEOUT_SECONDS}s"
        )
        findings.append(Finding(Level.NOTE, "", "pool_timeout", text))
    budget = []
    for group in _by_server(pooled):
        limit, limit_name, in_use = _limit(group)
        share = limit // (options.replicas * workers)  # one worker's
        findings += _fit_budget(pools, group, share, f"{limit_name}={limit}", worker_connections)
        plans = [pools[d.alias] for d in group]
        cap = sum(_worst(plan, worker_connections) for plan in plans)
        row = BudgetRow(
            group[0].server,
            options.replicas,
            workers,
            cap,
            limit,
            limit_name,
            in_use,
            tuple(d.alias for d in group),
        )
        budget.append(row)
        findings += _judge_budget(row, plans, now)
    findings += [
        Finding(Level.NOTE, "", d.alias, f"{d.label} is not pooled; Django connects as usual")
        for d in report.databases
        if not d.pooled
    ]
    findings += report.warnings
    if report.app and not report.databases:
        findings.append(Finding(Level.NOTE, "", "DATABASES", "no database: nothing to pool"))
    findings += _all_well(pools, pooled, budget, findings)
    return Plan(options, pools, tuple(budget), tuple(findings))


# --- One pool ----------------------------------------------------------------------------------


def _pool_plan(
    options: PoolOptions, alias: str, conn_max_age: float | None
) -> tuple[PoolPlan, list[Finding]]:
    """Returns the numbers of a pool before any server is asked."""
    findings = []
    own = options.alias(alias)
    size = own.size if own else options.size
    cap = own.cap if own and own.cap else options.cap
    age = options.max_age
    if age is None and conn_max_age is not None and conn_max_age > 0:
        age = conn_max_age
    plan = PoolPlan(
        size=size or DEFAULT_SIZE,
        cap=cap or DEFAULT_CAP_FACTOR * (size or DEFAULT_SIZE),
        timeout=options.timeout,
        max_age=age or DEFAULT_MAX_AGE,
        size_explicit=size is not None,
        cap_explicit=cap is not None,
        age_explicit=age is not None,
        mode=options.mode,
        reset=options.reset,
        overload=options.overload,
        leak_threshold=options.leak_threshold,
        named=alias if own else "",
    )
    if plan.size > plan.cap:
        if plan.size_explicit:
            hint = f"use --pool-size {plan.cap:.0f}, or --max-outstanding {plan.size} or more"
            if own:  # which wins
                sizes = f"{alias}:{plan.cap:.0f}:{plan.cap:.0f}", f"{alias}:{plan.size}:{plan.size}"
                hint = f"use --pool {sizes[0]}, or --pool {sizes[1]}"
            findings.append(
                Finding(
                    Level.FAIL,
                    "PS204",
                    alias,
                    f"max-outstanding {plan.cap:.0f} is smaller than pool-size {plan.size}: "
                    "not all of the pool could ever be used",
                    hint,
                )
            )
        else:
            text = f"pool size lowered from {plan.size} to {plan.cap:.0f}, the cap"
            findings.append(Finding(Level.NOTE, "", alias, text))
        plan = replace(plan, size=int(plan.cap))
    if age is None and conn_max_age is None:
        text = f"CONN_MAX_AGE=None means {DEFAULT_MAX_AGE:g}s here; --conn-max-age none for never"
        findings.append(Finding(Level.NOTE, "", alias, text))
    return plan, findings


def _fit_age(plan: PoolPlan, database: DatabaseReport) -> tuple[PoolPlan, list[Finding]]:
    """Retire connections before the server hangs up on them."""
    alias = database.alias
    if plan.max_age == math.inf:
        text = (
            "connections never retire: old ones hold on to memory in the server, and stay on the "
            "old primary after a failover"
        )
        return plan, [Finding(Level.WARN, "PS206", alias, text, "use --conn-max-age 3600")]
    if database.facts is None:
        return plan, []
    limit = database.facts.wait_timeout
    safe = math.floor(SAFE_SHARE * limit) or SAFE_SHARE
    server = f"{database.facts.kind} hangs up after wait_timeout={limit}s"
    if plan.age_explicit and plan.max_age >= limit:
        text = f"connections live {plan.max_age:g}s but {server}"
        hint = (
            f"use --conn-max-age {safe}, or on the server: "
            f"SET GLOBAL wait_timeout = {math.ceil(plan.max_age / SAFE_SHARE)}"
        )
        return plan, [Finding(Level.FAIL, "PS203", alias, text, hint)]
    if plan.age_explicit or plan.max_age <= safe:
        return plan, []
    text = f"age limit lowered from {plan.max_age:g}s to {safe}s: {server}"
    return replace(plan, max_age=float(safe)), [Finding(Level.NOTE, "", alias, text)]


# --- The budget --------------------------------------------------------------------------------


def _by_server(pooled: Iterable[DatabaseReport]) -> list[list[DatabaseReport]]:
    groups: dict[str, list[DatabaseReport]] = {}
    for database in pooled:
        if database.facts is not None:
            groups.setdefault(database.facts.identity or database.server, []).append(database)
    return list(groups.values())


def _limit(group: Sequence[DatabaseReport]) -> tuple[int, str, int]:
    """Returns how many connections the server allows, the name of that limit, and its use now."""
    facts = [d.facts for d in group if d.facts is not None]
    limits = [(f.max_connections, "max_connections", f.in_use) for f in facts]
    limits += [(f.max_user_connections, "max_user_connections", f.in_use_by_user) for f in facts]
    return min(limit for limit in limits if limit[0] > 0)


def _worst(plan: PoolPlan, worker_connections: int) -> float:
    """Returns the most connections of one pool. A greenlet holds one at a time."""
    return worker_connections if plan.cap == math.inf else plan.cap


def _fit_budget(
    pools: dict[str, PoolPlan],
    group: Sequence[DatabaseReport],
    share: int,
    limit: str,
    worker_connections: int,
) -> Iterator[Finding]:
    """Lower the default caps on one server until they fit the share of one worker."""
    adjustable = [d.alias for d in group if not pools[d.alias].cap_explicit]
    wanted = sum(pools[alias].cap for alias in adjustable)
    explicit = sum(_worst(pools[d.alias], worker_connections) for d in group) - wanted
    if explicit + wanted <= share:
        return
    for alias in adjustable:
        plan = pools[alias]
        cap = max(1, math.floor((share - explicit) * plan.cap / wanted))
        if plan.size_explicit:
            cap = max(cap, plan.size)
        if cap < plan.cap:
            pools[alias] = replace(plan, cap=cap, size=min(plan.size, cap))
            text = f"cap lowered from {plan.cap:.0f} to {cap} to fit {limit}"
            yield Finding(Level.NOTE, "", alias, text)


def plural(number: int, what: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _judge_budget(row: BudgetRow, plans: Sequence[PoolPlan], now: str = "now") -> Iterator[Finding]:
    """Compare the worst case with the server's limit.

    :param now: when the server was asked how many are in use, for messages.
    """
    left = max(0, row.limit - row.in_use)
    if row.most <= left:
        return
    per_worker = left // (row.replicas * row.workers) // len(plans)
    workers = int(left // (row.cap * row.replicas))
    unlimited = any(plan.cap == math.inf for plan in plans)
    who = f"{plural(row.workers, 'worker')} × {row.cap:.0f} connections"
    if row.replicas > 1:
        who = f"{row.replicas} replicas × {who}"
    if unlimited:
        who += " (no cap: one per greenlet, --worker-connections)"
    too_big = any(p.size_explicit and p.size > per_worker for p in plans if not p.named)
    size = f"--pool-size {per_worker} " if too_big else ""
    # Only what would help: nobody can use less than one connection.
    fitting = [f"--pool {plan.named}:{per_worker}:{per_worker}" for plan in plans if plan.named]
    if len(fitting) < len(plans):
        fitting.append(f"{size}--max-outstanding {per_worker}")
    uses = [" ".join(fitting)] if per_worker else []
    uses += [f"--workers {workers}"] if workers else []
    uses += [f"--worker-connections {per_worker}"] if unlimited and per_worker else []
    in_use, verb = f"{row.in_use} in use", "are"
    if now != "now":
        in_use, verb = f"{in_use} {now}", "were"
    hint = f"raise {row.limit_name}"
    if uses:
        hint = f"use {', or '.join(uses)}, or {hint}"
    if row.most > row.limit:
        text = f"{who} = {row.most:.0f}, the server allows {row.limit} ({in_use})"
        yield Finding(Level.FAIL, "PS201", row.server, text, hint)
    else:
        text = (
            f"{who} = {row.most:.0f}, but {row.in_use} of {row.limit} {verb} in use {now} "
            "(by a running instance of this project, perhaps)"
        )
        yield Finding(Level.WARN, "PS202", row.server, text, hint)


# --- The rest ----------------------------------------------------------------------------------


def _unknown_aliases(
    options: PoolOptions, databases: Sequence[DatabaseReport]
) -> Iterator[Finding]:
    known = [d.alias for d in databases]
    for item in options.aliases:
        if known and item.alias not in known:
            text = f"--pool names the database {item.alias!r}, which is not in DATABASES"
            hint = f"use one of: {', '.join(known)}"
            yield Finding(Level.FAIL, "PS205", item.alias, text, hint)


def _all_well(
    pools: Mapping[str, PoolPlan],
    pooled: Sequence[DatabaseReport],
    budget: Sequence[BudgetRow],
    findings: Sequence[Finding],
) -> list[Finding]:
    """Returns the findings for checks that passed."""

    def found(*codes: str) -> bool:
        return any(f.code in codes for f in findings)

    well = []
    asked = [(d.facts, pools[d.alias].max_age) for d in pooled if d.facts is not None]
    if asked and not found("PS203", "PS206"):
        shortest = min((facts for facts, _ in asked), key=lambda facts: facts.wait_timeout)
        text = (
            f"connections retire at {max(age for _, age in asked):g}s, {shortest.kind} hangs up at "
            f"{shortest.wait_timeout}s"
        )
        well.append(Finding(Level.OK, "", "wait_timeout", text))
    if budget and not found("PS201", "PS202"):
        for name in dict.fromkeys(row.limit_name for row in budget):
            rows = [row for row in budget if row.limit_name == name]
            text = ", ".join(f"{row.most:.0f} of {row.limit} on {row.server}" for row in rows)
            well.append(Finding(Level.OK, "", name, text))
    return well
