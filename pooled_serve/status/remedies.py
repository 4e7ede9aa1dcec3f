"""Options as remedies: with the numbers that a busy instance's own suggest, and for the database in
question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LOGIN_REMEDY = "correct USER, PASSWORD and NAME in DATABASES, or the rights of the account"

FULL_REMEDY = (
    "close idle connections (SHOW PROCESSLIST), or raise the limit: max_connections, or the one of "
    "the account"
)
LOST_REMEDY = "see that the server runs and lets this host in; requests then go on"

SPARE = 1.1
"""Times what was in use at most: a sample a second does not see every peak."""


def total_cap(stats: Mapping[str, Any], alias: str) -> float | None:
    """Returns how many connections all workers together may have; None if there is no limit."""
    pool = (stats.get("pools") or {}).get(alias) or {}
    host = (stats.get("hosts") or {}).get(alias)
    limits = [n for n in (pool.get("max_outstanding"), (host or {}).get("limit")) if n]
    return min(limits, default=None)


NO_ROOM = (
    "the server has no room for more connections: shorten what holds them, or raise its "
    "max_connections"
)


def cap_option(stats: Mapping[str, Any], alias: str, window: str = "5m") -> str:
    """Returns the option that lets in all that were in use or waited at the peaks of a window;
    twice as many as now at most, and no more than the server has room for. Empty if it has none.

    :param window: that which the sentence speaks of: one of ``peaks`` in ``/stats.json``.
    """
    pool = stats["pools"][alias]
    budget = pool.get("budget")
    cap, parts = _wanted_cap(stats, alias, window), shares(stats, alias)
    if budget is None:
        return f"{cap_of(stats, alias, cap)}, if the server has room: --check shows its budget"
    total = total_cap(stats, alias) or 0
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
        return f"{other}; {NO_ROOM}" if other else NO_ROOM
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
    size = math.ceil((pool.get("size") or 0) / parts)
    cap = total_cap(stats, alias) or math.inf
    needed = int(min(max(peaks.get("in_use_worker") or 0, size + 1), cap // parts))
    if needed <= size:
        return ""
    size = needed
    if len(stats["pools"]) > 1:
        return f"--pool {alias}:{size}"
    return f"--pool-size {size}"


def fitting_cap(stats: Mapping[str, Any], alias: str, peaks: Mapping[str, Any]) -> int:
    """Returns what would do, for a worker or, where the host has a bound, for all together."""
    most = peaks["in_use"] if _bound(stats, alias) else peaks["in_use_worker"]
    fits: int = max(2, math.ceil(SPARE * most))
    return fits


def cap_of(stats: Mapping[str, Any], alias: str, cap: int) -> str:
    """Returns the option that sets this cap: for a worker or, with a bound of the host, for all."""
    if _bound(stats, alias):
        return f"--max-per-host {cap}"
    workers = len(_workers(stats, alias)) or 1
    size = math.ceil((stats["pools"][alias].get("size") or 0) / workers)
    each = " per worker" if workers > 1 else ""
    if len(stats["pools"]) > 1:
        return f"--pool {alias}:{min(size, cap) or cap}:{cap}{each}"
    smaller = f"--pool-size {cap} " if size > cap else ""
    return f"{smaller}--max-outstanding {cap}{each}"


def _bound(stats: Mapping[str, Any], alias: str) -> bool:
    return alias in (stats.get("hosts") or {})


def _workers(stats: Mapping[str, Any], alias: str) -> list[Any]:
    return [w for w in stats.get("workers") or () if alias in (w.get("pools") or {})]


def shares(stats: Mapping[str, Any], alias: str) -> int:
    """Returns how many caps make up the cap of all."""
    return 1 if _bound(stats, alias) else len(_workers(stats, alias)) or 1
