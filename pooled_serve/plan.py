"""Options and what the servers said, turned into numbers and verdicts. Pure: no I/O, no Django.

Defaults yield, written values refuse: a default that does not fit is lowered, with a note; a
number that a person wrote is obeyed, or refused with a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pooled_serve.errors import Level, Verdict
from pooled_serve.options import (
    DEFAULT_CAP_FACTOR,
    DEFAULT_MAX_AGE,
    DEFAULT_SIZE,
    DEFAULT_TIMEOUT,
    PoolOptions,
)

SAFE_SHARE = 0.8
"""Share of ``wait_timeout`` that a connection may live at most, unless a person says otherwise."""


@dataclass(frozen=True)
class ServerFacts:
    """What a database server told about itself."""

    engine: str  # as in MariaDB 10.11.19
    wait_timeout: int  # seconds
    max_connections: int
    max_user_connections: int  # 0: no limit of its own
    in_use: int  # connections of everybody, ours for this question excluded
    answer_seconds: float
    in_use_by_user: int = 0  # of our own user; counts against max_user_connections
    identity: str = ""  # the same for all names of one server: localhost, its socket, a proxy

    @property
    def kind(self) -> str:
        """MariaDB or MySQL."""
        return self.engine.partition(" ")[0]


@dataclass(frozen=True)
class DatabaseReport:
    """One alias of DATABASES, as found by the preflight."""

    alias: str
    pooled: bool
    label: str  # what to call it when it is not pooled: SQLite, PostgreSQL, ...
    address: str = ""  # host:port/name, without user and password
    server: str = ""  # host:port, the same for all aliases on one server
    conn_max_age: float | None = 0  # as in settings
    facts: ServerFacts | None = None
    problem: Verdict | None = None


@dataclass(frozen=True)
class ProjectReport:
    """What the preflight found."""

    app: str = ""
    settings_module: str = ""
    load_seconds: float = 0.0
    django: str = ""
    databases: tuple[DatabaseReport, ...] = ()
    warnings: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class PoolPlan:
    """The numbers of one pool."""

    size: int
    cap: float  # infinity: no limit
    timeout: float
    max_age: float  # infinity: never
    size_written: bool = False
    cap_written: bool = False
    age_written: bool = False
    mode: str = "request"
    reset: str = "auto"
    leak_threshold: float | None = None  # seconds; None: nobody looks

    def safe_age(self, wait_timeout: float | None) -> float:
        """The longest that a connection may live on a server with this ``wait_timeout``."""
        if wait_timeout is None or self.age_written:
            return self.max_age
        return min(self.max_age, SAFE_SHARE * wait_timeout)


@dataclass(frozen=True)
class BudgetRow:
    """One server: how many connections it may have to bear."""

    server: str
    replicas: int
    workers: int
    cap: float  # of one worker, all aliases on this server together
    limit: int
    limit_name: str
    in_use: int

    @property
    def most(self) -> float:
        """Connections if every pool is full."""
        return self.replicas * self.workers * self.cap


@dataclass(frozen=True)
class Plan:
    """Everything decided: rows for the tables, numbers for the pools, verdicts."""

    options: PoolOptions = field(default_factory=PoolOptions)
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    budget: tuple[BudgetRow, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    def pool(self, alias: str, conn_max_age: float | None) -> PoolPlan:
        """The numbers for an alias; its CONN_MAX_AGE may have changed since the preflight."""
        fresh, _ = _pool_plan(self.options, alias, conn_max_age)
        known = self.pools.get(alias)
        if known is None:
            return fresh
        return replace(known, max_age=min(known.max_age, fresh.max_age))

    @property
    def contradictions(self) -> list[Verdict]:
        """What refuses the start."""
        return [v for v in self.verdicts if v.level is Level.FAIL]

    @property
    def warnings(self) -> list[Verdict]:
        """What refuses it under ``--strict``."""
        return [v for v in self.verdicts if v.level is Level.WARN]


def make_plan(
    options: PoolOptions, report: ProjectReport, *, workers: int, worker_connections: int
) -> Plan:
    """Decide. Nothing is raised: what is wrong stands in the verdicts."""
    verdicts: list[Verdict] = []
    pooled = [database for database in report.databases if database.pooled]
    verdicts += _unknown_aliases(options, report.databases)

    pools: dict[str, PoolPlan] = {}
    for database in pooled:
        pools[database.alias], found = _pool_plan(options, database.alias, database.conn_max_age)
        verdicts += found

    hosts = options.replicas * workers
    for group in _by_server(pooled):
        found = _fit_budget(pools, group, hosts, worker_connections)
        verdicts += found
    for database in pooled:
        pools[database.alias], found = _fit_age(pools[database.alias], database)
        verdicts += found

    budget = [
        _budget_row(pools, group, options.replicas, workers, worker_connections)
        for group in _by_server(pooled)
    ]
    for row, group in zip(budget, _by_server(pooled), strict=True):
        verdicts += _judge_budget(row, [pools[d.alias] for d in group])
    verdicts += [
        Verdict(Level.NOTE, d.alias, f"{d.label} is not pooled; Django connects as without us")
        for d in report.databases
        if not d.pooled
    ]
    verdicts += report.warnings
    if report.app and not report.databases:
        verdicts.append(Verdict(Level.NOTE, "DATABASES", "no database: nothing to pool"))
    verdicts += _all_well(pools, pooled, budget, verdicts)
    return Plan(options, pools, tuple(budget), tuple(verdicts))


# --- One pool ----------------------------------------------------------------------------------


def _pool_plan(
    options: PoolOptions, alias: str, conn_max_age: float | None
) -> tuple[PoolPlan, list[Verdict]]:
    """The numbers of a pool before any server is asked."""
    verdicts = []
    own = options.alias(alias)
    size = own.size if own else options.size
    cap = own.cap if own and own.cap is not None else options.cap
    plan = PoolPlan(
        size=DEFAULT_SIZE if size is None else size,
        cap=DEFAULT_CAP_FACTOR * (size or DEFAULT_SIZE) if cap is None else cap,
        timeout=DEFAULT_TIMEOUT if options.timeout is None else options.timeout,
        max_age=DEFAULT_MAX_AGE,
        size_written=size is not None,
        cap_written=cap is not None,
        mode=options.mode,
        reset=options.reset,
        leak_threshold=options.leak_threshold,
    )
    if plan.size > plan.cap:
        if plan.size_written:
            verdicts.append(
                Verdict(
                    Level.FAIL,
                    f"PS204 {alias}",
                    f"max-outstanding {plan.cap:.0f} is smaller than pool-size {plan.size}: "
                    "not all of the pool could ever be used",
                    f"use --pool-size {plan.cap:.0f}, or --max-outstanding {plan.size} or more",
                )
            )
        else:
            verdicts.append(
                Verdict(
                    Level.NOTE,
                    alias,
                    f"pool size lowered from {plan.size} to {plan.cap:.0f}, the cap",
                )
            )
        plan = replace(plan, size=int(plan.cap))

    if options.max_age is not None:
        plan = replace(plan, max_age=options.max_age, age_written=True)
    elif conn_max_age is None:
        text = f"CONN_MAX_AGE=None means {DEFAULT_MAX_AGE:g}s here; --conn-max-age none for never"
        verdicts.append(Verdict(Level.NOTE, alias, text))
    elif conn_max_age > 0:
        plan = replace(plan, max_age=conn_max_age, age_written=True)
    return plan, verdicts


def _fit_age(plan: PoolPlan, database: DatabaseReport) -> tuple[PoolPlan, list[Verdict]]:
    """Retire connections before the server hangs up on them."""
    alias = database.alias
    if plan.max_age == math.inf:
        text = "connections never retire; a long-lived one keeps server memory, and a failover"
        return plan, [
            Verdict(Level.WARN, f"PS206 {alias}", text + " unnoticed", "use --conn-max-age 3600")
        ]
    if database.facts is None:
        return plan, []
    limit = database.facts.wait_timeout
    safe = math.floor(SAFE_SHARE * limit) or SAFE_SHARE
    server = f"{database.facts.kind} hangs up after wait_timeout={limit}s"
    if plan.age_written and plan.max_age >= limit:
        return plan, [
            Verdict(
                Level.FAIL,
                f"PS203 {alias}",
                f"connections live {plan.max_age:g}s but {server}",
                f"use --conn-max-age {safe}, or on the server: "
                f"SET GLOBAL wait_timeout = {math.ceil(plan.max_age / SAFE_SHARE)}",
            )
        ]
    if plan.age_written or plan.max_age <= safe:
        return plan, []
    text = f"age limit lowered from {plan.max_age:g}s to {safe}s: {server}"
    return replace(plan, max_age=float(safe)), [Verdict(Level.NOTE, alias, text)]


# --- The budget --------------------------------------------------------------------------------


def _by_server(pooled: Iterable[DatabaseReport]) -> list[list[DatabaseReport]]:
    groups: dict[str, list[DatabaseReport]] = {}
    for database in pooled:
        if database.facts is not None:
            groups.setdefault(database.facts.identity or database.server, []).append(database)
    return list(groups.values())


def _limit(group: Sequence[DatabaseReport]) -> tuple[int, str, int]:
    """How many connections the server allows us, the name of that limit, and its use now."""
    facts = [d.facts for d in group if d.facts is not None]
    limits = [(f.max_connections, "max_connections", f.in_use) for f in facts]
    limits += [(f.max_user_connections, "max_user_connections", f.in_use_by_user) for f in facts]
    return min(limit for limit in limits if limit[0] > 0)


def _worst(plan: PoolPlan, worker_connections: int) -> float:
    """Connections of one pool at most. Each greenlet of a request holds one at a time."""
    return worker_connections if plan.cap == math.inf else plan.cap


def _fit_budget(
    pools: dict[str, PoolPlan], group: Sequence[DatabaseReport], hosts: int, connections: int
) -> list[Verdict]:
    """Lower the default caps on one server until all workers together fit its limit."""
    limit, name, _ = _limit(group)
    share = limit // hosts  # of one worker
    written = sum(_worst(pools[d.alias], connections) for d in group if pools[d.alias].cap_written)
    yielding = [d.alias for d in group if not pools[d.alias].cap_written]
    wanted = sum(pools[alias].cap for alias in yielding)
    if not yielding or written + wanted <= share:
        return []
    verdicts = []
    for alias in yielding:
        plan = pools[alias]
        cap = max(1, math.floor((share - written) * plan.cap / wanted))
        if plan.size_written:
            cap = max(cap, plan.size)
        if cap >= plan.cap:
            continue
        text = f"cap lowered from {plan.cap:.0f} to {cap} to fit {name}={limit}"
        pools[alias] = replace(plan, cap=cap, size=min(plan.size, cap))
        verdicts.append(Verdict(Level.NOTE, alias, text))
    return verdicts


def _budget_row(
    pools: Mapping[str, PoolPlan],
    group: Sequence[DatabaseReport],
    replicas: int,
    workers: int,
    connections: int,
) -> BudgetRow:
    limit, name, in_use = _limit(group)
    cap = sum(_worst(pools[d.alias], connections) for d in group)
    return BudgetRow(group[0].server, replicas, workers, cap, limit, name, in_use)


def plural(number: int, what: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _judge_budget(row: BudgetRow, plans: Sequence[PoolPlan]) -> list[Verdict]:
    if row.most <= row.limit - row.in_use:
        return []
    hosts = row.replicas * row.workers
    left = max(0, row.limit - row.in_use)
    per_worker = left // hosts // len(plans)
    workers = int(left // (row.cap * row.replicas))
    unlimited = any(plan.cap == math.inf for plan in plans)
    who = f"{plural(row.workers, 'worker')} × {row.cap:.0f} connections"
    if row.replicas > 1:
        who = f"{row.replicas} replicas × {who}"
    if unlimited:
        who += " (no cap: one per greenlet, --worker-connections)"
    # Only what would help: fewer than one connection each cannot be had.
    too_big = any(p.size_written and p.size > per_worker for p in plans)
    size = f"--pool-size {per_worker} " if too_big else ""
    remedies = [f"use {size}--max-outstanding {per_worker}"] if per_worker else []
    remedies += [f"use --workers {workers}"] if workers else []
    remedies += [f"use --worker-connections {per_worker}"] if unlimited and per_worker else []
    remedy = ", or ".join([*remedies, f"raise {row.limit_name}"]).replace(", or use", ", or")
    if row.most > row.limit:
        text = f"{who} = {row.most:.0f}, the server allows {row.limit} ({row.in_use} in use)"
        return [Verdict(Level.FAIL, f"PS201 {row.server}", text, remedy)]
    text = (
        f"{who} = {row.most:.0f}, but {row.in_use} of {row.limit} are in use now "
        "(by a running instance of this project, perhaps)"
    )
    return [Verdict(Level.WARN, f"PS202 {row.server}", text, remedy)]


# --- The rest ----------------------------------------------------------------------------------


def _unknown_aliases(options: PoolOptions, databases: Sequence[DatabaseReport]) -> list[Verdict]:
    known = [d.alias for d in databases]
    names = ", ".join(known) or "none"
    return [
        Verdict(
            Level.FAIL,
            f"PS205 {item.alias}",
            f"--pool names the database {item.alias!r}, which is not in DATABASES",
            f"use one of: {names}",
        )
        for item in options.aliases
        if databases and item.alias not in known
    ]


def _all_well(
    pools: Mapping[str, PoolPlan],
    pooled: Sequence[DatabaseReport],
    budget: Sequence[BudgetRow],
    verdicts: Sequence[Verdict],
) -> list[Verdict]:
    """Lines that say what was checked and found good; only where nothing was found bad."""
    well = []
    bad = {v.subject.partition(" ")[0] for v in verdicts}
    asked = [d for d in pooled if d.facts is not None]
    if asked and not bad & {"PS203", "PS206"}:
        shortest = min(asked, key=lambda d: d.facts.wait_timeout if d.facts else 0)
        oldest = max(pools[d.alias].max_age for d in asked)
        assert shortest.facts is not None
        text = (
            f"connections retire at {oldest:g}s, {shortest.facts.kind} hangs up at "
            f"{shortest.facts.wait_timeout}s"
        )
        well.append(Verdict(Level.OK, "wait_timeout", text))
    if budget and not bad & {"PS201", "PS202"}:
        text = ", ".join(f"{row.most:.0f} of {row.limit} on {row.server}" for row in budget)
        well.append(Verdict(Level.OK, "max_connections", text))
    return well
