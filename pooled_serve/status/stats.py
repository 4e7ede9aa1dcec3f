"""``/stats.json``: the numbers of all workers, what has happened lately, and what that means."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pooled_serve.pool import metrics
from pooled_serve.status.advice import advice, is_sure
from pooled_serve.status.episodes import KINDS, told
from pooled_serve.status.figures import hanging_statements, recent
from pooled_serve.status.findings import findings
from pooled_serve.status.history import History
from pooled_serve.status.scoreboard import Snapshot
from pooled_serve.status.sentence import as_json, banner, usual_hold
from pooled_serve.status.words import unusable


def as_stats(
    snapshots: Iterable[Snapshot],
    workers: dict[int, int],
    now: float,
    loads: Mapping[int, Mapping[str, float | str | None]] | None = None,
    addresses: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """``workers`` and ``pools`` of ``/stats.json``.

    :param workers: slot -> process id, of the living ones.
    :param now: monotonic seconds.
    :param loads: slot -> what load.py knows of the worker.
    :param addresses: see :func:`servers`.
    """

    def as_pool(engine: str, server: str, row: Sequence[float]) -> dict[str, Any]:
        pool = {"engine": engine, "server": server, **metrics.by_name(row, now)}
        why = unusable(pool["login_refused"], pool["stuck"], pool["connect_error"])
        return pool | {"unusable": why if pool["reachable"] is False else None}

    snapshots = list(snapshots)
    pools = {
        alias: as_pool(*names, metrics.total(r.row for r in snapshots if r.alias == alias))
        for alias, names in servers(snapshots, addresses).items()
    }
    return {
        "workers": [
            {
                "slot": slot,
                "pid": pid,
                **(loads or {}).get(slot, {}),
                "pools": {
                    r.alias: as_pool(r.engine, r.server, r.current)
                    for r in snapshots
                    if (r.slot, r.pid) == (slot, pid)
                },
            }
            for slot, pid in workers.items()
        ],
        "pools": pools,
    }


def servers(
    snapshots: Iterable[Snapshot], addresses: Mapping[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    """Returns alias -> engine and server, in the order of the aliases, as the workers know them
    that go on: those that end, or have ended, may have had other settings, because a HUP loads them
    anew, and the operator would be sent to a server that is well.

    :param addresses: alias -> server, as the settings of a present worker have it; for databases
        that nobody has used since it began.
    """
    found, snapshots = {}, list(snapshots)
    for alias in sorted({snapshot.alias for snapshot in snapshots}):
        of_alias = [s for s in reversed(snapshots) if s.alias == alias]
        present = [s.server for s in of_alias if s.pid and not s.ending]
        of_settings, others = (addresses or {}).get(alias, ""), [s.server for s in of_alias]
        server = next(filter(None, [*present, of_settings, *others]), "")
        engine = next((s.engine for s in of_alias if s.engine and s.server == server), "")
        found[alias] = engine, server
    return found


def with_history(
    stats: dict[str, Any],
    snapshots: Iterable[Snapshot],
    history: History,
    now: float,
    ending: Collection[int] = (),
    dying: Collection[int] = (),
) -> dict[str, Any]:
    """Returns stats with what has happened lately, and the sentences about all of it.

    :param stats: with all other keys of ``/stats.json``.
    :param snapshots: what they were made of.
    :param ending: slots of workers that are about to stop.
    :param dying: those of them that nobody has told to.
    """
    snapshots = list(snapshots)
    held = max((route["longest_held_seconds"] for route in stats["routes"]), default=0.0)
    longest, rows = held or math.inf, {}
    for alias, pool in stats["pools"].items():
        row = metrics.total(snapshot.row for snapshot in snapshots if snapshot.alias == alias)
        rows[alias] = row
        base = history.before(alias, now)
        seconds = stats["uptime_seconds"] if base is None else now - base.at
        former = None if base is None else base.row
        lately = history.lately(alias, now)
        pool["recent"] = recent(row, former, round(seconds, 3), lately, now, longest)
        pool["recent"]["lost_held_seconds"] = history.lost_held(alias, now)
        now_told = {kind: history.episode(alias, kind, row) for kind in told(pool["recent"])}
        pool["recent"] |= dict.fromkeys(KINDS) | now_told
        pool["peaks"] = history.peaks(alias, now)
        if host := (stats.get("hosts") or {}).get(alias):
            # Each worker's gauge is from another moment: what one has lent another, both count.
            for key in ("in_use", "most_in_use"):
                pool[key] = min(pool[key], host["limit"])
    stats["routes"] = history.recent_routes(stats["routes"], now)
    for alias, pool in stats["pools"].items():
        hung, usual = history.hangs(alias, now), partial(usual_hold, stats)
        pool["hanging_statements"] = hanging_statements(rows[alias], now, usual, all_hang=hung)
    found = findings(stats, ending, dying)
    advised = advice(stats, found)
    sure = [each for each in advised if is_sure(stats["pools"][each.pool])]
    stats["findings"] = as_json(banner(found, sure))
    stats["advice"] = as_json(advised)
    return stats
