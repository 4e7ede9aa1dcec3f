"""How many connections a server allows, and how many there may be: fitted, and judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pooled_serve.errors import Finding, Level
from pooled_serve.options import MAX_PER_HOST
from pooled_serve.pool_plan import PoolPlan
from pooled_serve.preflight.reports import DatabaseReport

OF_ACCOUNT = "max_user_connections"
"""The limit that holds for the connections of one account."""


def spared(limit: int) -> int:
    """Returns how many of a server's connections defaults and remedies leave to others: a fifth,
    for migrations, cron jobs, backups and administrators."""
    return math.ceil(limit / 5)


@dataclass(frozen=True)
class BudgetRow:
    """One server, and how many connections it may get."""

    server: str
    replicas: int
    workers: int
    caps: tuple[float, ...]  # of one worker, for each alias on this server
    limit: int
    limit_name: str
    in_use: int
    aliases: tuple[str, ...] = ()
    per_host: int | None = None  # of all workers of a host, for each alias

    @property
    def cap(self) -> float:
        """Of one worker, for all aliases."""
        return sum(self.caps)

    @property
    def of_host(self) -> float:
        """Of all workers of a host, for all aliases."""
        per_host = math.inf if self.per_host is None else self.per_host
        return sum(min(self.workers * cap, per_host) for cap in self.caps)

    @property
    def bounded(self) -> bool:
        """Whether the host's bound is less than what its workers could open by themselves."""
        return self.per_host is not None and self.of_host <= self.workers * self.cap

    @property
    def most(self) -> float:
        """Connections when every pool is full."""
        return self.replicas * self.of_host


def room(row: BudgetRow, alias: str, workers: int) -> int:
    """Returns how many connections this host may have for an alias without taking those that are
    left to others, if nothing else changes. With a bound of the host, which is the same for each
    alias, each gets the same.

    :param workers: how many there are now.
    """
    usable = (row.limit - spared(row.limit)) // row.replicas
    if row.per_host is not None:
        return min(usable // len(row.caps), MAX_PER_HOST)
    others = (cap for name, cap in zip(row.aliases, row.caps, strict=True) if name != alias)
    return max(0, int(min(usable - workers * sum(others), MAX_PER_HOST)))


def by_server(pooled: Iterable[DatabaseReport]) -> list[list[DatabaseReport]]:
    groups: dict[str, list[DatabaseReport]] = {}
    for database in pooled:
        if database.facts is not None:
            groups.setdefault(database.facts.identity or database.server, []).append(database)
    return list(groups.values())


def limit_of(group: Sequence[DatabaseReport]) -> tuple[int, str, int]:
    """Returns how many connections the server allows, the name of that limit, and its use now."""
    facts = [d.facts for d in group if d.facts is not None]
    limits = [(f.max_connections, "max_connections", f.in_use) for f in facts]
    limits += [(f.max_user_connections, OF_ACCOUNT, f.in_use_by_user) for f in facts]
    return min(limit for limit in limits if limit[0] > 0)


def worst(plan: PoolPlan, worker_connections: int) -> float:
    """Returns the most connections of one pool. A greenlet holds one at a time."""
    return worker_connections if plan.cap == math.inf else plan.cap


def fit_budget(
    pools: dict[str, PoolPlan],
    group: Sequence[DatabaseReport],
    worker_connections: int,
    workers: int,
    replicas: int,
) -> Iterator[Finding]:
    """Lower the default caps on one server until they leave :func:`spared` connections, if the
    numbers that the user wrote allow that."""
    limit, limit_name, _ = limit_of(group)
    usable = limit - spared(limit)
    share = usable // (replicas * workers)  # one worker's
    adjustable = [d.alias for d in group if not pools[d.alias].cap_explicit]
    wanted = sum(pools[alias].cap for alias in adjustable)
    explicit = sum(worst(pools[d.alias], worker_connections) for d in group) - wanted
    if explicit + wanted <= share:
        return
    lowered = {}
    for alias in adjustable:
        plan = pools[alias]
        cap = max(1, math.floor((share - explicit) * plan.cap / wanted))
        if plan.size_explicit:
            cap = max(cap, plan.size)
        if cap < plan.cap:
            pools[alias] = replace(plan, cap=cap, size=min(plan.size, cap))
            lowered[alias] = f"cap lowered from {plan.cap:.0f} to {cap}"
            if plan.size > cap:
                lowered[alias] += f", and pool size from {plan.size} to {cap},"
    most = sum(worst(pools[d.alias], worker_connections) for d in group) * workers * replicas
    if most > limit:  # which is a refusal with a text of its own
        return
    for alias, text in lowered.items():
        text += f" to fit {limit_name}={limit} and leave {limit - most:.0f} to others"
        if workers > 1:
            each = min(max(1, usable // replicas // len(group)), MAX_PER_HOST)
            text += f"; --max-per-host {each} would let a worker use what others do not"
        yield Finding(Level.NOTE, "", alias, text)


def plural(number: int, what: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def judge_budget(row: BudgetRow, plans: Sequence[PoolPlan], now: str = "now") -> Iterator[Finding]:
    """Compare the worst case with the server's limit.

    :param now: when the server was asked how many are in use, for messages.
    """
    left = row.limit - row.most
    if left >= max(row.in_use, spared(row.limit)):
        return
    # What is in use may be what is kept for others.
    kept = min(row.limit, max(row.in_use, spared(row.limit)))
    usable = row.limit - kept
    per_worker = usable // (row.replicas * row.workers) // len(plans)
    workers = int(usable // (row.cap * row.replicas))
    unlimited = any(plan.cap == math.inf for plan in plans)
    who = f"{plural(row.workers, 'worker')} × {row.cap:.0f} connections"
    if row.bounded:
        who = f"{row.of_host:.0f} connections per host"
    if row.replicas > 1:
        who = f"{row.replicas} replicas × {who}"
    if unlimited and not row.bounded:
        who += " (no cap: one per greenlet, --worker-connections)"
    too_big = any(p.size_explicit and p.size > per_worker for p in plans if not p.named)
    size = f"--pool-size {per_worker} " if too_big else ""
    # Only what would help: nobody can use less than one connection. A size that fits stays.
    fitting = [
        f"--pool {plan.named}:{min(plan.size, per_worker)}:{per_worker}"
        for plan in plans
        if plan.named
    ]
    if len(fitting) < len(plans):
        fitting.append(f"{size}--max-outstanding {per_worker}")
    uses = [" ".join(fitting)] if per_worker else []
    uses += [f"--workers {workers}"] if workers else []
    uses += [f"--worker-connections {per_worker}"] if unlimited and per_worker else []
    if row.bounded:
        uses = []
    # First what serves most: a worker may have what the others do not use. Who has to choose among
    # more than two takes the first one that is easy, which is a smaller pool for each worker.
    uses = [*_uses_per_host(row, plans, usable), *uses][:2]
    if row.workers > 1 and len(uses) > 1 and "--max-per-host" in uses[0]:
        uses[0] += " (best: the workers share them)"
    in_use, verb = f"{row.in_use} in use", "are"
    if now != "now":
        in_use, verb = f"{in_use} {now}", "were"
    hint = f"raise {row.limit_name}"
    if uses:
        hint = f"use {', or '.join(uses)}, which leaves {kept} or more to others, or {hint}"
    if row.in_use <= left:
        text = f"{who} = {row.most:.0f}, which leaves {left:.0f} of {row.limit}"
        if row.limit_name == OF_ACCOUNT:
            # Backups and administrators have accounts of their own.
            text += " to whatever else uses this account: manage.py, cron jobs"
            yield Finding(Level.NOTE, "", row.server, text)
            return
        text += " to others: migrations, cron jobs, backups, administrators"
        if left < spared(row.limit) / 2:
            yield Finding(Level.WARN, "PS208", row.server, text, hint)
        else:
            yield Finding(Level.NOTE, "", row.server, text)
    elif row.most > row.limit:
        text = f"{who} = {row.most:.0f}, the server allows {row.limit} ({in_use})"
        yield Finding(Level.FAIL, "PS201", row.server, text, hint)
    else:
        text = (
            f"{who} = {row.most:.0f}, but {row.in_use} of {row.limit} {verb} in use {now} "
            "(by a running instance of this project, perhaps)"
        )
        yield Finding(Level.WARN, "PS202", row.server, text, hint)


def _uses_per_host(row: BudgetRow, plans: Sequence[PoolPlan], usable: int) -> list[str]:
    """Returns the bound of a host that would fit, in a list; an empty one where none helps."""
    most = min(usable // row.replicas // len(plans), MAX_PER_HOST)
    if most < 1 or (row.workers == 1 and not row.bounded):
        return []
    too_big = any(plan.size_explicit and plan.size > most for plan in plans)
    if too_big and not row.bounded:
        return []
    return [f"--pool-size {most} --max-per-host {most}" if too_big else f"--max-per-host {most}"]
