"""Remedies that the next start does not refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pooled_serve.options import PoolOptions
from pooled_serve.pool import metrics
from pooled_serve.preflight.plan import make_plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts
from pooled_serve.status import figures
from pooled_serve.status.advice import advice
from pooled_serve.status.figures import Second
from pooled_serve.status.findings import findings
from pooled_serve.status.peaks import PEAK_KEYS
from pooled_serve.status.remedies import NO_ROOM
from support.answers import Answers, a_route, recent

QUEUE: dict[str, Any] = {"in_use": 12, "waiting": 90, "oldest_wait_seconds": 0.25}


def remedy(workers: int = 1, limit: int = 0, **pool: Any) -> str:
    """
    :param limit: of the host.
    """
    stats: dict[str, Any] = copy.deepcopy(Answers(workers, **pool).stats)
    if limit:
        stats["hosts"] = {"default": {"limit": limit, "taken": limit}}
    (sentence,) = findings(stats)
    return sentence.remedy


def test_a_larger_cap_is_one_that_the_server_has_room_for() -> None:
    assert remedy(**QUEUE, budget=100) == "--max-outstanding 24"
    assert remedy(**QUEUE, budget=20) == "--max-outstanding 20"
    assert remedy(**QUEUE, budget=12) == NO_ROOM
    assert remedy(**QUEUE, budget=0) == NO_ROOM


def test_several_workers_get_a_bound_together_that_fits() -> None:
    pool = {**QUEUE, "in_use": 36, "max_outstanding": 36}
    assert remedy(3, **pool, budget=100) == "--max-per-host 72 instead of --max-outstanding"
    assert remedy(3, **pool, budget=40) == "--max-per-host 40 instead of --max-outstanding"
    assert remedy(3, **pool, budget=36) == NO_ROOM


def test_a_bound_of_the_host_grows_up_to_what_there_is_room_for() -> None:
    assert remedy(3, 12, **QUEUE, budget=80) == "--max-per-host 24"
    assert remedy(3, 12, **QUEUE, budget=15) == "--max-per-host 15"
    assert remedy(3, 12, **QUEUE, budget=12) == NO_ROOM


def test_in_an_overload_too() -> None:
    overload = {**QUEUE, "recent": recent(acquired=90, timeouts=9)}
    others = "more workers or hosts, shorter requests"
    assert remedy(**overload, budget=20) == f"{others}, or --max-outstanding 20"
    assert remedy(**overload, budget=12) == f"{others}; {NO_ROOM}"


@pytest.mark.parametrize(
    ("limit", "budget", "reason", "said"),
    [
        (12, 80, "lent", "workers take them from each other: --max-per-host 13"),
        (12, 12, "lent", f"workers take them from each other: {NO_ROOM}"),
        (30, 80, "surplus", "keep more of them open: --pool-size 6"),
        (15, 80, "surplus", "all that may be are kept open: --max-per-host 16"),
    ],
)
def test_a_storm_of_connects(limit: int, budget: int, reason: str, said: str) -> None:
    stormy = recent(acquired=100, opened=84, closed={reason: 80})
    pool = {"size": 15, "max_outstanding": 3 * limit, "budget": budget, "recent": stormy}
    assert remedy(3, limit, **pool, peaks={"1h": {"in_use_worker": 6}}) == said


def test_advice_fits_too() -> None:
    peaks = dict.fromkeys(PEAK_KEYS, 0) | {
        "in_use": 12,
        "in_use_worker": 12,
        "waiting": 90,
        "wait_seconds": 2.0,
        "seconds": 7200,
        "acquired": 1000,
        "waited": 500,
        "occasions": 3,
    }

    def advised(budget: int) -> str:
        stats: dict[str, Any] = Answers(budget=budget, peaks={"24h": peaks}).stats
        return advice(stats)[0].remedy

    assert advised(20) == "shorten what holds them, or --max-outstanding 20"
    assert advised(12) == NO_ROOM


# --- What there is room for --------------------------------------------------------------------


def room(
    workers: int, aliases: int = 1, *, limit: int = 100, **options: Any
) -> tuple[int | None, ...]:
    facts = ServerFacts("MariaDB 10.11.19", 28800, limit, 0, 1, 0.001)
    names = ["default", "other"][:aliases]
    databases = tuple(DatabaseReport(n, True, "", server="db:3306", facts=facts) for n in names)
    report = ProjectReport(databases=databases)
    made = make_plan(PoolOptions(**options), report, workers=workers, worker_connections=1000)
    return tuple(made.room(name, workers) for name in names)


def test_a_fifth_of_the_servers_connections_is_left_to_others() -> None:
    assert room(3, cap=10) == (80,)
    assert room(3, cap=10, replicas=2) == (40,)
    assert room(3, per_host=30, replicas=2) == (40,)
    assert room(3, limit=151, cap=10) == (120,)


def test_two_databases_on_one_server_share_it() -> None:
    assert room(2, 2, cap=10) == (60, 60)
    assert room(2, 2, per_host=10) == (40, 40)


def test_what_the_server_did_not_say_is_not_known() -> None:
    made = make_plan(PoolOptions(), ProjectReport(), workers=1, worker_connections=1000)
    assert made.room("default", 1) is None


# --- Views that hold connections for nothing ---------------------------------------------------


def waiting_views(mode: str, share: float | None, **pool: Any) -> list[str]:
    seen = recent(acquired=350, waited=300, waited_share=0.9, wait_p95_seconds=0.4)
    numbers = {"in_use": 12, **pool, "recent": {**seen, "asking_share": share}}
    stats: dict[str, Any] = copy.deepcopy(Answers(**numbers).stats)
    stats["routes"] = [a_route("outside/", leases=350, held_seconds=120.0)]
    stats["pool_mode"] = mode
    return [str(sentence) for sentence in findings(stats)]


def test_connections_that_run_no_statement_are_better_given_back() -> None:
    queue = (
        "Waiting views: 94 % of the connections in use run no statement in the last 10 s, their"
        " views wait for something else: 90 % of requests waited in the last 10 s, 95 % less than"
        " 400 ms; GET outside/ holds most, 100 % of the time, 343 ms each. → "
    )
    assert waiting_views("request", 0.06) == [
        f"{queue}--pool-mode transaction: a view that asks another service holds none meanwhile"
    ]
    assert waiting_views("transaction", 0.06) == [
        f"{queue}no atomic() around calls to another service; where ATOMIC_REQUESTS is on:"
        " @transaction.non_atomic_requests on these views"
    ]


@pytest.mark.parametrize(("share", "pool"), [(0.6, {}), (None, {}), (0.06, {"in_use": 3})])
def test_where_they_run_some_or_are_not_all_in_use_that_is_not_said(
    share: float | None, pool: dict[str, Any]
) -> None:
    (said,) = waiting_views("request", share, **pool)
    assert said.startswith("Too small a pool: ")


def seen(in_use: int, asking: int) -> list[float]:
    row = [0.0] * metrics.ROW_LENGTH
    row[metrics.IN_USE], row[metrics.ASKING] = in_use, asking
    return row


def test_how_many_run_a_statement_is_that_of_all_that_were_seen_in_ten_seconds() -> None:
    def share(*samples: tuple[int, int]) -> float | None:
        seconds = [Second(1000.0 + i, seen(*each)) for i, each in enumerate(samples)]
        now = 1000.0 + len(samples)
        found: float | None = figures.recent(seen(0, 0), None, 10.0, seconds, now)["asking_share"]
        return found

    assert share((4, 4), (4, 2), (4, 0)) == 0.5
    assert share(*[(4, 4)] * 5, *[(4, 0)] * 9) == 0.0, "what was earlier does not count"
    assert share((9, 0)) is None, "too few"
    assert share() is None
