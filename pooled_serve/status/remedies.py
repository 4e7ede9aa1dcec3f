"""Options as remedies: with the numbers that a busy instance's own suggest, and for the database in
question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pooled_serve.driver.error_codes import FULL, GONE, LOGIN_REFUSED, NOT_REACHED
from pooled_serve.options import MAX_PER_HOST

LOGIN_REMEDY = (
    "correct USER, PASSWORD and NAME in DATABASES, or at the server the account and its rights "
    "(GRANT); new settings take a HUP, or a restart if they come from the environment"
)

FULL_REMEDY = (
    "close idle connections (SHOW PROCESSLIST), or raise the limit: max_connections, or the one of "
    "the account (if you get 1040, too: stop a client first, or log in at extra_port of MariaDB or "
    "admin_port of MySQL)"
)
LOCK_QUERY = "SELECT waiting_pid, blocking_pid FROM sys.innodb_lock_waits"
"""For an administrator of MySQL, or of MariaDB from 10.6 on. The process list does not name who
holds the lock of a row: often one that sleeps in an open transaction."""
TABLE_LOCKS = (
    "of a table (metadata lock): sys.schema_table_lock_waits, on MariaDB "
    "information_schema.metadata_lock_info (INSTALL SONAME 'metadata_lock_info')"
)
"""Such as that of LOCK TABLES, or of a transaction that an ALTER TABLE waits for, and others wait
for that; no lock of a row then."""
WHO_HOLDS = (
    f"who holds the lock of a row: {LOCK_QUERY} (a blocking_pid that is no waiting_pid); "
    f"{TABLE_LOCKS}"
)
"""Who waits for a lock keeps those behind it waiting, too, and is not to be killed."""
HANGING_REMEDY = (
    "SHOW PROCESSLIST there says what they wait for: often a lock, which another statement or an "
    f"open transaction holds (KILL ends it); {WHO_HOLDS}"
)
STUCK_REMEDY = (
    "see that the server's process runs and is not stopped, and that its disk and the network "
    "work; restart it if it stays; requests then go on"
)
LOST_REMEDY = "see that the server runs and lets this host in; requests then go on"


def connect_remedy(code: int | None) -> str:
    """Returns what helps where connections cannot be opened.

    :param code: of the error, if it is known; the log has its text.
    """
    if code in FULL:
        return FULL_REMEDY
    if code in LOGIN_REFUSED:
        return f"{LOGIN_REMEDY}; the log has the error"
    return LOST_REMEDY if code in NOT_REACHED | GONE else "the log has the error"


SPARE = 1.1
"""Times what was in use at most: a sample a second does not see every peak."""


def total_cap(stats: Mapping[str, Any], alias: str) -> float | None:
    """Returns how many connections all workers together may have; None if there is no limit."""
    pool = (stats.get("pools") or {}).get(alias) or {}
    host = (stats.get("hosts") or {}).get(alias)
    limits = [n for n in (pool.get("max_outstanding"), (host or {}).get("limit")) if n]
    return min(limits, default=None)


def no_room(pool: Mapping[str, Any]) -> str:
    """Returns the remedy where no more connections fit."""
    if pool.get("budget") is None:
        return f"--max-per-host is at most {MAX_PER_HOST}: shorten what holds them, or more hosts"
    return (
        f"this host's share of the server is {pool['budget']:.0f} connections (a fifth is "
        "kept for others, and each of --replicas has as many): shorten what holds them, or raise "
        "the server's max_connections"
    )


def cap_option(stats: Mapping[str, Any], alias: str, window: str = "5m") -> str:
    """Returns the option that lets in all that were in use or waited at the peaks of a window;
    twice as many as now at most, and no more than the server has room for. Empty if it has none.

    :param window: that which the sentence speaks of: one of ``peaks`` in ``/stats.json``.
    """
    pool = stats["pools"][alias]
    budget = pool.get("budget")
    cap, parts = _wanted_cap(stats, alias, window), shares(stats, alias)
    total = total_cap(stats, alias) or 0
    if budget is None:
        most = MAX_PER_HOST if _bound(stats, alias) else math.inf
        option = cap_of(stats, alias, int(min(cap, most)))
        return f"{option}, if the server has room: --check shows its budget" * (total < most)
    if parts > 1 and len(stats["pools"]) == 1:
        fits = min(budget, parts * cap)
        return f"--max-per-host {fits} instead of --max-outstanding" if fits > total else ""
    fits = min(budget // parts, cap)
    return cap_of(stats, alias, fits) if fits > total / parts else ""


def cap_remedy(stats: Mapping[str, Any], alias: str, other: str = "", window: str = "5m") -> str:
    """Returns the same as a remedy.

    :param other: what also helps; then the option is the last resort.
    """
    option = cap_option(stats, alias, window)
    if not option:
        full = no_room(stats["pools"][alias])
        return f"{other}; {full}" if other else full
    return f"{other}, or {option}" if other else option


def _wanted_cap(stats: Mapping[str, Any], alias: str, window: str) -> int:
    pool = stats["pools"][alias]
    peaks = (pool.get("peaks") or {}).get(window) or {}
    parts = shares(stats, alias)
    cap = total_cap(stats, alias)
    now_asked = (pool.get("in_use") or 0) + (pool.get("waiting") or 0)
    asked = max(now_asked, (peaks.get("in_use") or 0) + (peaks.get("waiting") or 0))
    now = math.ceil((cap or asked or 1) / parts)
    return max(now + 1, min(2 * now, math.ceil(asked / parts)))


def size_option(stats: Mapping[str, Any], alias: str, window: str = "1h") -> str:
    """Returns the option that keeps as many connections open as were in use at most in a window;
    empty if no more may be: each worker keeps as many, and the host has a bound."""
    pool = stats["pools"][alias]
    peaks = (pool.get("peaks") or {}).get(window) or {}
    parts = len(_workers(stats, alias)) or 1
    size = pool_size(stats, alias)
    cap = total_cap(stats, alias) or math.inf
    needed = int(min(max(peaks.get("in_use_worker") or 0, size + 1), cap // parts))
    if needed <= size:
        return ""
    if _has_its_own(stats, alias):
        # With the cap that it has: else it would be that of --max-outstanding, or another default.
        own, limit = pool.get("max_outstanding"), (stats.get("hosts") or {}).get(alias) or {}
        each = "unlimited" if own is None else math.floor(own / parts)
        return f"--pool {alias}:{needed}" + f":{each}" * (each != limit.get("limit"))
    return f"--pool-size {needed}"


def fitting_cap(stats: Mapping[str, Any], alias: str, window: str) -> float:
    """Returns what would do, for a worker or, where the host has a bound, for all together. There
    is one such bound for all databases: it must do for the one that needs most, and infinity says
    that requests waited for one.

    :param window: one of ``peaks`` in ``/stats.json``.
    """
    pools: Mapping[str, Any] = stats["pools"]
    if not _bound(stats, alias):
        return _with_spare(pools[alias]["peaks"][window]["in_use_worker"])
    peaks = [(pool.get("peaks") or {}).get(window) or {} for pool in pools.values()]
    if any(its.get("waited") or its.get("refused") for its in peaks):
        return math.inf
    return _with_spare(max(its.get("in_use") or 0 for its in peaks))


def _with_spare(most: float) -> int:
    return max(2, math.ceil(SPARE * most))


def cap_of(stats: Mapping[str, Any], alias: str, cap: int) -> str:
    """Returns the option that sets this cap: for a worker or, with a bound of the host, for all;
    and what makes the pools no larger than that, for the next start would refuse it else."""
    size = pool_size(stats, alias)
    smaller = f"--pool-size {cap} " if size > cap else ""
    if _bound(stats, alias):
        larger = [name for name in stats["pools"] if pool_size(stats, name) > cap]
        options = (
            f"--pool {name}:{cap} " if _has_its_own(stats, name) else f"--pool-size {cap} "
            for name in larger
        )
        smaller = "".join(dict.fromkeys(options))
        return f"{smaller}--max-per-host {cap}"
    each = " per worker" if len(_workers(stats, alias)) > 1 else ""
    if _has_its_own(stats, alias):
        return f"--pool {alias}:{min(size, cap) or cap}:{cap}{each}"
    return f"{smaller}--max-outstanding {cap}{each}"


def pool_size(stats: Mapping[str, Any], alias: str) -> int:
    """Returns how many connections each worker keeps open."""
    workers = len(_workers(stats, alias)) or 1
    return math.ceil((stats["pools"][alias].get("size") or 0) / workers)


def _has_its_own(stats: Mapping[str, Any], alias: str) -> bool:
    """Whether to use --pool: there are several databases, and the settings have this one. The next
    start would refuse that of one which the project has added meanwhile (PS205)."""
    return len(stats["pools"]) > 1 and stats["pools"][alias].get("in_settings", True)


def _bound(stats: Mapping[str, Any], alias: str) -> bool:
    return alias in (stats.get("hosts") or {})


def _workers(stats: Mapping[str, Any], alias: str) -> list[Any]:
    return [w for w in stats.get("workers") or () if alias in (w.get("pools") or {})]


def shares(stats: Mapping[str, Any], alias: str) -> int:
    """Returns how many caps make up the cap of all."""
    return 1 if _bound(stats, alias) else len(_workers(stats, alias)) or 1
