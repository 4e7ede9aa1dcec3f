"""/stats.json with numbers that no server can be made to have at a given moment."""

from __future__ import annotations

import copy
from typing import Any

from pooled_serve.status.findings import findings
from pooled_serve.status.sentence import as_json


class Answers:
    """What the page is told; tests change it between polls."""

    def __init__(self, workers: int = 1, **pool: Any) -> None:
        self.stats: Any = {
            "version": "1.2.3",
            "app": "shop.wsgi",
            "uptime_seconds": 1000.0,
            "workers": [
                {"slot": slot, "pid": 4194304 - slot, "pools": {"default": a_pool(**pool)}}
                for slot in range(1, workers + 1)
            ],
            "pools": {"default": a_pool(**pool)},
            "hosts": {},
            "routes": [],
            "advice": [],
        }

    def __call__(self) -> Any:
        if isinstance(self.stats, dict) and "uptime_seconds" in self.stats:
            self.stats["uptime_seconds"] += 1
            self.stats["findings"] = as_json(findings(self.stats))
        return self.stats

    def set(self, alias: str = "default", **changes: Any) -> None:
        """Of a single worker."""
        for pools in (self.stats["pools"], self.stats["workers"][0]["pools"]):
            pools[alias] = a_pool(**{**pools.get(alias, {}), **changes})


def a_pool(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "MariaDB 10.11.19",
        "server": "127.0.0.1:3306/shop",
        "size": 4,
        "max_outstanding": 12,
        "in_use": 3,
        "idle": 1,
        "waiting": 0,
        "acquired_total": 0,
        "timeouts_total": 0,
        "shed_total": 0,
        "connect_errors_total": 0,
        "oldest_wait_seconds": 0.0,
        "oldest_held_seconds": 0.0,
        "reachable": True,
        "login_refused": 0,
        "recent": recent(),
        **changes,
    }


def recent(**changes: Any) -> dict[str, Any]:
    return {"seconds": 10.0, "acquired": 0, "timeouts": 0, "waited": 0, **changes}


def an_episode(lasted: float, **counted: float) -> dict[str, Any]:
    """A trouble that is over."""
    none = dict.fromkeys(("waited", "timeouts", "shed", "failed", "connect_errors"), 0)
    return {"seconds": lasted, "lasted_seconds": lasted, **none, **counted}


def a_route(route: str, **lately: float) -> dict[str, Any]:
    """In the last five minutes as in the last ten seconds."""
    return {
        "route": route,
        "method": "GET",
        "longest_held_seconds": 2.5,
        "recent": {"waited": 0, **lately},
        "lately": {"waited": 0, **lately},
    }


FULL: dict[str, Any] = {"in_use": 12, "idle": 0}
QUEUE: dict[str, Any] = {**FULL, "waiting": 7, "oldest_wait_seconds": 0.25}


def of(*routes: dict[str, Any], workers: int = 1, **pool: Any) -> dict[str, Any]:
    stats: dict[str, Any] = copy.deepcopy(Answers(workers, **pool).stats)
    stats["routes"] = list(routes)
    return stats
