"""Turn options and the servers' answers into numbers and findings. Pure: no I/O, no Django.

A default that does not fit is lowered, with a note. An explicit number is obeyed, or refused with a
hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pooled_serve.errors import Finding, Level
from pooled_serve.options import (
    DEFAULT_CAP_FACTOR,
    DEFAULT_MAX_AGE,
    DEFAULT_SIZE,
    PoolOptions,
)
from pooled_serve.pool_plan import SAFE_SHARE, PoolPlan
from pooled_serve.preflight.budget import (
    BudgetRow,
    by_server,
    fit_budget,
    judge_budget,
    limit_of,
    room,
    worst,
)
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport

PROXY_TIMEOUT_SECONDS = 30
"""Many proxies give up after it, such as the routers of hosting platforms. nginx waits for 60."""


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
        known = self.pools.get(alias, fresh)
        # A size above the cap is refused at the start, of the aliases that there are.
        size = int(min(known.size, known.cap))
        return replace(known, size=size, max_age=min(known.max_age, fresh.max_age))

    def judge(self, workers: int) -> list[Finding]:
        """Returns what is wrong with this number of workers, each with these caps, later on. Notes
        are not: they were told at the start."""
        return [
            finding
            for row in self.budget
            for finding in judge_budget(
                replace(row, workers=workers),
                [self.pools[alias] for alias in row.aliases],
                "at the start",
            )
            if finding.level is not Level.NOTE
        ]

    def room(self, alias: str, workers: int) -> int | None:
        """Returns how many connections this host may have for an alias; None if that is not known:
        the server did not answer at the start.

        :param workers: how many there are now.
        """
        rows = (row for row in self.budget if alias in row.aliases)
        return next((room(row, alias, workers) for row in rows), None)

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
        pools[database.alias], more = _fit_age(plan, database, options)
        findings += found + more + _fit_host(pools[database.alias], database.alias, workers)
    if pooled and options.timeout > PROXY_TIMEOUT_SECONDS:
        text = (
            f"a request may wait {options.timeout:g}s for a connection; most proxies give up after "
            f"{PROXY_TIMEOUT_SECONDS}s"
        )
        findings.append(Finding(Level.NOTE, "", "pool_timeout", text))
    budget = []
    for group in by_server(pooled):
        limit, limit_name, in_use = limit_of(group)
        if options.per_host is None:
            findings += fit_budget(pools, group, worker_connections, workers, options.replicas)
        plans = [pools[d.alias] for d in group]
        caps = tuple(worst(plan, worker_connections) for plan in plans)
        row = BudgetRow(
            group[0].server,
            options.replicas,
            workers,
            caps,
            limit,
            limit_name,
            in_use,
            tuple(d.alias for d in group),
            options.per_host,
        )
        budget.append(row)
        findings += judge_budget(row, plans, now)
    findings += [
        Finding(Level.NOTE, "", d.alias, f"{d.label} is not pooled; Django connects as usual")
        for d in report.databases
        if not d.pooled
    ]
    findings += [
        Finding(
            Level.NOTE,
            "",
            d.alias,
            f"MySQL Router is at {d.server}: limits are those of the server behind it; its own, "
            "max_connections and max_total_connections, cannot be asked",
        )
        for d in pooled
        if d.facts is not None and d.facts.behind_router
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
    # After a HUP it may be anything; a worker tells of that once it has loaded the project.
    if age is None and isinstance(conn_max_age, int | float) and conn_max_age > 0:
        age = conn_max_age
    most = options.per_host
    if most is not None and cap is not None and cap != math.inf and cap > most:
        text = f"--max-outstanding {cap:.0f} means {most} here: this host may have no more"
        findings.append(Finding(Level.NOTE, "", alias, text))
    if most is not None and cap is not None:
        cap = min(cap, most)
    plan = PoolPlan(
        size=size or DEFAULT_SIZE,
        cap=cap or most or DEFAULT_CAP_FACTOR * (size or DEFAULT_SIZE),
        timeout=options.timeout,
        max_age=age or DEFAULT_MAX_AGE,
        size_explicit=size is not None,
        cap_explicit=cap is not None,
        age_explicit=age is not None,
        reset=options.reset,
        overload=options.overload,
        leak_threshold=options.leak_threshold,
        per_host=most,
        named=alias if own else "",
    )
    if plan.size > plan.cap:
        if plan.size_explicit:
            name = "max-per-host" if plan.cap == most else "max-outstanding"
            hint = f"use --pool-size {plan.cap:.0f}, or at least --{name} {plan.size}"
            text = f"--{name} {plan.cap:.0f} is smaller than --pool-size {plan.size}"
            if own:  # which wins
                text = f"--{name} {plan.cap:.0f} is smaller than the size {plan.size} of --pool"
                if own.cap and plan.cap != most:
                    text = f"--pool: the cap {plan.cap:.0f} is smaller than the size {plan.size}"
                sizes = f"{alias}:{plan.cap:.0f}:{plan.cap:.0f}", f"{alias}:{plan.size}:{plan.size}"
                others = f"--{name} {plan.size}" if plan.cap == most else f"--pool {sizes[1]}"
                hint = f"use --pool {sizes[0]}, or {others}"
            findings.append(
                Finding(
                    Level.FAIL,
                    "PS204",
                    alias,
                    f"{text}: not all of the pool could ever be used",
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


def _fit_host(plan: PoolPlan, alias: str, workers: int) -> list[Finding]:
    """Tell of idle connections that this host cannot keep: workers close them for one another."""
    if plan.per_host is None or plan.size * workers <= plan.per_host:
        return []
    text = (
        f"pool-size {plan.size} of {workers} workers is {plan.size * workers}, and this host may "
        f"have {plan.per_host}: idle connections of a worker are closed to lend their place to "
        "another"
    )
    fitting = max(plan.per_host // workers, 1)
    if fitting < plan.size:
        text += f"; --pool-size {fitting} closes fewer"
    return [Finding(Level.NOTE, "", alias, text)]


def _fit_age(
    plan: PoolPlan, database: DatabaseReport, options: PoolOptions
) -> tuple[PoolPlan, list[Finding]]:
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
        use = f"--conn-max-age {safe}"
        if options.max_age is None:
            use = f"CONN_MAX_AGE {safe} in DATABASES, or {use}"
        hint = (
            f"use {use}, or on the server: "
            f"SET GLOBAL wait_timeout = {math.ceil(plan.max_age / SAFE_SHARE)}"
        )
        return plan, [Finding(Level.FAIL, "PS203", alias, text, hint)]
    if plan.age_explicit or plan.max_age <= safe:
        return plan, []
    text = f"age limit lowered from {plan.max_age:g}s to {safe}s: {server}"
    return replace(plan, max_age=float(safe)), [Finding(Level.NOTE, "", alias, text)]


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


def atomic_requests_notes(databases: Sequence[DatabaseReport]) -> Iterator[Finding]:
    """Tell of databases whose views are one transaction each: that is what transaction mode holds a
    connection for."""
    for database in databases:
        if database.pooled and database.atomic_requests:
            text = (
                "with ATOMIC_REQUESTS a view is one transaction, and holds its connection from its "
                "first query to its end: put @transaction.non_atomic_requests on views that call "
                "other services"
            )
            yield Finding(Level.NOTE, "", database.alias, text)


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
    if budget and not found("PS201", "PS202", "PS208"):
        for name in dict.fromkeys(row.limit_name for row in budget):
            rows = [row for row in budget if row.limit_name == name]
            text = ", ".join(f"{row.most:.0f} of {row.limit} on {row.server}" for row in rows)
            well.append(Finding(Level.OK, "", name, text))
    return well
