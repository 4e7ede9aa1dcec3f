"""A sentence about an instance: a name, what is the matter in numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pooled_serve.status.routes import route_name

LEVELS = ("bad", "warn", "note", "ok")
"""The worst first."""


@dataclass(frozen=True)
class Sentence:
    """A finding."""

    level: str
    name: str
    pool: str  # alias; empty if it is about all
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.problem}. → {self.remedy}" if self.remedy else f"{self.problem}."


def banner(found: Sequence[Sentence], advised: Sequence[Sentence]) -> list[Sentence]:
    """Returns what both pages begin with: what is the matter, and, unless something is wrong, what
    would fit better.

    :param advised: that which is more than a hint.
    """
    if found[0].level in ("bad", "warn"):
        return list(found)
    return [*found, *(sentence for sentence in advised if sentence.level != "ok")]


def as_json(sentences: Iterable[Sentence]) -> list[dict[str, str]]:
    """``findings`` and ``advice`` of ``/stats.json``."""
    return [asdict(sentence) | {"text": str(sentence)} for sentence in sentences]


def recent_routes(
    stats: Mapping[str, Any], key: str = "recent"
) -> list[tuple[str, Mapping[str, Any], float | None]]:
    """Returns name, recent numbers and share of the connection time of routes, the busiest first.

    Routes that have held nothing in that time are left out.

    :param key: ``recent``, of five minutes, or ``lately``, of ten seconds.
    """
    found = [
        (route_name(route.get("route") or "", route.get("method") or ""), its)
        for route in stats.get("routes") or ()
        if (its := route.get(key)) and its.get("leases")
    ]
    total = sum(its["held_seconds"] for _, its in found)
    found.sort(key=lambda item: -item[1]["held_seconds"])
    return [(name, its, its["held_seconds"] / total if total else None) for name, its in found]


def usual_hold(stats: Mapping[str, Any]) -> float:
    """Returns for how long a connection is held on average, on the route where that is longest, in
    the time for which :func:`recent_routes` has numbers.

    Without what views do between statements; and without what was held while all statements hung:
    else a lock that is held again and again would seem to be usual.
    """
    lost = lost_seconds(stats)

    def used(its: Mapping[str, Any]) -> float:
        return float(its["held_seconds"] - (its.get("idle_seconds") or 0.0) - lost)

    routes = recent_routes(stats)
    return max((max(0.0, used(its)) / its["leases"] for _, its, _ in routes), default=0.0)


def lost_seconds(stats: Mapping[str, Any]) -> float:
    """Returns for how long connections were held while statements hung, of the time for which
    :func:`recent_routes` has numbers; the sum of all connections."""
    pools = (stats.get("pools") or {}).values()
    return sum((pool.get("recent") or {}).get("lost_held_seconds") or 0.0 for pool in pools)
