"""Remedies that the next start does not refuse."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from pooled_serve.options import PoolOptions, alias_sizes
from pooled_serve.pool import metrics
from pooled_serve.preflight.plan import make_plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts
from pooled_serve.status import figures
from pooled_serve.status.advice import advice
from pooled_serve.status.figures import Second
from pooled_serve.status.findings import findings
from pooled_serve.status.peaks import PEAK_KEYS
from pooled_serve.status.remedies import cap_of, size_option
from support.answers import Answers, a_route, recent

NO_ROOM = (
    "this host's share of the server is {} connections (a fifth is kept for others, and each of"
    " --replicas has as many): shorten what holds them, or raise the server's max_connections"
)
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
    assert remedy(**QUEUE, budget=12) == NO_ROOM.format(12)
    assert remedy(**QUEUE, budget=0) == NO_ROOM.format(0)


LOOK = (
    "nearly all wait for the server's answers, so see first what for (SHOW PROCESSLIST there):"
    " behind one lock more connections do not help; "
)
OTHER = "more workers or hosts, shorter requests"
CPU = (
    "-w 4, one for each CPU; or views that compute less; more connections do not help while worker"
    " 1 used 98 % of a CPU"
)


@pytest.mark.parametrize(
    ("asking", "overload", "limit", "budget", "said"),
    [
        (False, False, 0, 100, "--max-outstanding 24"),
        (False, False, 0, 12, NO_ROOM.format(12)),
        (False, True, 0, 100, f"{OTHER}, or --max-outstanding 24"),
        (False, True, 0, 12, f"{OTHER}; {NO_ROOM.format(12)}"),
        (True, False, 0, 100, f"{LOOK}else --max-outstanding 24"),
        (True, False, 0, 12, f"{LOOK}and {NO_ROOM.format(12)}"),
        (True, True, 0, 100, f"{LOOK}else {OTHER}, or --max-outstanding 24"),
        (True, True, 0, 12, f"{LOOK}else {OTHER}; {NO_ROOM.format(12)}"),
        (True, False, 12, 100, f"{LOOK}else --max-per-host 24"),
        (True, True, 12, 12, f"{LOOK}and {NO_ROOM.format(12)}"),
    ],
)
def test_more_connections_are_a_remedy_where_no_lock_is_behind_it(
    *, asking: bool, overload: bool, limit: int, budget: int, said: str
) -> None:
    lately = recent(acquired=90, asking_share=0.95 if asking else 0.7, timeouts=9 * overload)
    assert remedy(1, limit, **QUEUE, budget=budget, recent=lately) == said


@pytest.mark.parametrize("asking", [0.7, 0.95])
def test_more_connections_are_none_where_the_processor_is_used_up(asking: float) -> None:
    """What refuses more than it serves may be busy with that, and is told of as overload."""
    lately = recent(acquired=90, timeouts=900, asking_share=asking)
    stats: dict[str, Any] = copy.deepcopy(Answers(1, **QUEUE, recent=lately).stats) | {"cpus": 4}
    stats["workers"][0] |= {"seen_ago_seconds": 0.1, "cpu_share": 0.98, "cpu_wait_share": 0.0}
    (sentence,) = findings(stats)
    assert sentence.name == "overload"
    assert sentence.remedy == CPU


def test_several_workers_get_a_bound_together_that_fits() -> None:
    pool = {**QUEUE, "in_use": 36, "max_outstanding": 36}
    assert remedy(3, **pool, budget=100) == "--max-per-host 72 instead of --max-outstanding"
    assert remedy(3, **pool, budget=40) == "--max-per-host 40 instead of --max-outstanding"
    assert remedy(3, **pool, budget=36) == NO_ROOM.format(36)


def test_a_bound_of_the_host_grows_up_to_what_there_is_room_for() -> None:
    assert remedy(3, 12, **QUEUE, budget=80) == "--max-per-host 24"
    assert remedy(3, 12, **QUEUE, budget=15) == "--max-per-host 15"
    assert remedy(3, 12, **QUEUE, budget=12) == NO_ROOM.format(12)


def test_in_an_overload_too() -> None:
    overload = {**QUEUE, "recent": recent(acquired=90, timeouts=9)}
    others = "more workers or hosts, shorter requests"
    assert remedy(**overload, budget=20) == f"{others}, or --max-outstanding 20"
    assert remedy(**overload, budget=12) == f"{others}; {NO_ROOM.format(12)}"


@pytest.mark.parametrize(
    ("limit", "budget", "reason", "said"),
    [
        (12, 80, "lent", "workers take them from each other: --max-per-host 13"),
        (12, 12, "lent", f"workers take them from each other: {NO_ROOM.format(12)}"),
        (30, 80, "surplus", "keep more of them open: --pool-size 6"),
        (15, 80, "surplus", "all that may be are kept open: --max-per-host 16"),
    ],
)
def test_a_storm_of_connects(limit: int, budget: int, reason: str, said: str) -> None:
    stormy = recent(acquired=100, opened=84, closed={reason: 80})
    pool = {"size": 15, "max_outstanding": 3 * limit, "budget": budget, "recent": stormy}
    assert remedy(3, limit, **pool, peaks={"1h": {"in_use_worker": 6}}) == said


def test_a_database_that_a_request_has_added_has_no_option_of_its_own() -> None:
    """The next start would refuse it: it is not in DATABASES."""
    answers = Answers(in_settings=True)
    answers.set("tenant", **QUEUE, in_settings=False)
    (sentence,) = findings(answers.stats)
    assert sentence.remedy == (
        "--max-outstanding 24, if the server has room: --check shows its budget"
    )
    peaks = {"1h": {"in_use_worker": 6}}
    answers.set("tenant", peaks=peaks)
    answers.set("default", peaks=peaks)
    assert size_option(answers.stats, "tenant") == "--pool-size 6"
    assert size_option(answers.stats, "default") == "--pool default:6:12"
    answers.stats["hosts"] = {alias: {"limit": 12} for alias in ("default", "tenant")}
    assert cap_of(answers.stats, "tenant", 3) == "--pool default:3 --pool-size 3 --max-per-host 3"


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
    assert advised(12) == NO_ROOM.format(12)


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


def waiting_views(mode: str, share: float | None, idle: float = 96.0, **pool: Any) -> list[str]:
    seen = recent(acquired=350, waited=300, waited_share=0.9, wait_p95_at_most_seconds=0.5)
    numbers = {"in_use": 12, **pool, "recent": {**seen, "asking_share": share}}
    stats: dict[str, Any] = copy.deepcopy(Answers(**numbers).stats)
    stats["routes"] = [
        a_route("buy/", leases=350, held_seconds=150.0, idle_seconds=idle / 4),
        a_route("outside/", leases=350, held_seconds=120.0, idle_seconds=idle),
    ]
    stats["pool_mode"] = mode
    return [str(sentence) for sentence in findings(stats)]


def test_connections_that_run_no_statement_are_better_given_back() -> None:
    queue = (
        "Waiting views: 94 % of the connections in use run no statement in the last 10 s, their"
        " views wait for something else: 90 % of requests waited in the last 10 s, 95 % ≤"
        " 500 ms; GET outside/ has most of this time, 80 %. → "
    )
    assert waiting_views("request", 0.06) == [
        f"{queue}--pool-mode transaction: a view that asks another service holds none meanwhile"
    ]
    assert waiting_views("transaction", 0.06) == [
        f"{queue}no atomic() around calls to another service"
    ]
    assert waiting_views("request", 0.06, atomic_requests=True) == [
        f"{queue}--pool-mode transaction and, as ATOMIC_REQUESTS is on,"
        " @transaction.non_atomic_requests on GET outside/: only with both a view that asks another"
        " service holds none meanwhile"
    ]
    assert waiting_views("transaction", 0.06, atomic_requests=True) == [
        f"{queue}as ATOMIC_REQUESTS is on: @transaction.non_atomic_requests on GET outside/, and no"
        " atomic() around calls to another service"
    ]


def test_who_waits_is_not_named_if_that_is_not_known() -> None:
    (said,) = waiting_views("transaction", 0.06, idle=0.0, atomic_requests=True)
    assert "GET" not in said
    assert "@transaction.non_atomic_requests on these views" in said


def test_a_remedy_is_not_what_is_set_already() -> None:
    slow = a_route("report/", leases=10, held_seconds=8.0)
    for mode in ("request", "transaction"):
        stats = copy.deepcopy(Answers(**QUEUE).stats) | {"routes": [slow], "pool_mode": mode}
        (sentence,) = findings(stats)
        assert sentence.name == "slow view"
        assert ("--pool-mode transaction" in sentence.remedy) == (mode == "request")
        assert "no atomic() around that" in sentence.remedy
    stats["pools"]["default"]["recent"]["asking_share"] = 0.9
    (sentence,) = findings(stats)
    assert sentence.name == "slow view"
    assert "SHOW PROCESSLIST there says what for; behind a lock, shorter" in sentence.remedy
    leak: dict[str, Any] = Answers(oldest_held_seconds=40.0).stats
    assert findings(leak)[0].remedy.startswith("--leak-threshold 15 logs ")
    leak["pools"]["default"]["leaked_total"] = 1
    assert findings(leak)[0].remedy.startswith("the log names the request and the line ")


STOPGAP = "until then --max-outstanding {} lets requests wait less (this host may have {})"
SMALL: dict[str, Any] = {"size": 2, "max_outstanding": 2, "in_use": 2, "waiting": 20}
LATE: dict[str, Any] = {"oldest_wait_seconds": 5.0}


@pytest.mark.parametrize(
    ("asking", "changes", "said"),
    [
        (
            0.9,
            {"budget": 32},
            f", else faster statements, and {STOPGAP.format(4, '32 connections')}; ",
        ),
        (0.7, {"budget": 32}, f" around that; {STOPGAP.format(4, '32 connections')}"),
        (0.2, {"budget": 32}, ""),
        (0.9, {"budget": 3}, STOPGAP.format(3, "3 connections")),
        (0.9, {"budget": 2}, ""),
        (0.9, {"budget": None}, ""),
        (0.9, {"budget": 32, "max_outstanding": 4}, ""),
    ],
    ids=["answers", "neither", "others", "a little room", "none", "not known", "below the cap"],
)
def test_behind_a_slow_view_a_larger_cap_is_a_stopgap(
    asking: float, changes: dict[str, Any], said: str
) -> None:
    """The view is the cause; requests get 503 until it is mended, though the server has room."""
    lately = recent(acquired=90, asking_share=asking, timeouts=9)
    pool = {**SMALL, **LATE, "recent": lately, **changes}
    stats: dict[str, Any] = copy.deepcopy(Answers(**pool).stats) | {"pool_mode": "request"}
    stats["routes"] = [a_route("report/", leases=10, held_seconds=8.0)]
    (sentence,) = findings(stats)
    assert sentence.name == ("waiting views" if asking < 0.5 else "slow view")
    assert ("until then" in sentence.remedy) == bool(said)
    assert said in sentence.remedy
    stats["workers"][0] |= {"seen_ago_seconds": 0.1, "cpu_share": 0.98, "cpu_wait_share": 0.0}
    assert all("until then" not in each.remedy for each in findings(stats)), "a busy processor"


def test_while_connects_fail_nothing_asks_for_more_connections() -> None:
    full = {"connect_error": 1040, "budget": 80}
    errors = {"connect_errors": 9, "opened": 40, "acquired": 100, "closed": {"surplus": 40}}
    for queue in (QUEUE, {**QUEUE, "in_use": 4, "connecting": 2}, {"in_use": 4}):
        stats = Answers(**{**full, **queue, "recent": recent(**errors)}).stats
        (sentence,) = findings(stats)
        assert sentence.name == "failing connects"
        assert sentence.remedy.startswith("close idle connections (SHOW PROCESSLIST), or raise")
        assert ("90 requests wait, the longest 250 ms" in sentence.problem) == ("waiting" in queue)


def test_what_a_start_does_by_its_nature_has_no_sentence() -> None:
    opened = {"opened": 40, "acquired": 100, "waited": 40, "waited_share": 0.4}
    for closed, uptime, name in (
        ({"surplus": 40}, 1000.0, "connect storm"),
        ({"surplus": 40}, 5.0, "all is well"),
        ({"surplus": 32, "drain": 8}, 1000.0, "all is well"),
    ):
        stats = Answers(in_use=4, recent=recent(**opened, closed=closed)).stats
        stats["uptime_seconds"] = uptime
        assert [sentence.name for sentence in findings(stats)] == [name]


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


# --- The next start ----------------------------------------------------------------------------

FLAGS = {"--pool-size": "size", "--max-outstanding": "cap", "--max-per-host": "per_host"}


def started(remedy: str, names: tuple[str, ...] = ("default",), **given: Any) -> list[str]:
    """Returns what the next start has against the options of a remedy.

    :param given: the options before.
    """
    for flag, value in re.findall(r"(--(?:pool-size|max-outstanding|max-per-host)) (\d+)", remedy):
        given[FLAGS[flag]] = int(value)
    aliases = re.findall(r"--pool (\S+)", remedy)
    given["aliases"] = (*given.get("aliases", ()), *alias_sizes(aliases))
    facts = ServerFacts("MariaDB 10.11.19", 28800, 400, 0, 1, 0.001)
    databases = tuple(DatabaseReport(n, True, "", server="db:3306", facts=facts) for n in names)
    report = ProjectReport(databases=databases)
    plan = make_plan(PoolOptions(**given), report, workers=3, worker_connections=1000)
    return [finding.message for finding in plan.contradictions]


def of_day(in_use: int, **changes: float) -> dict[str, Any]:
    """A pool whose connections were in use by so many at most."""
    peaks = dict.fromkeys(PEAK_KEYS, 0) | {
        "in_use": in_use,
        "in_use_worker": in_use,
        "seconds": 86_400,
        "acquired": 1000,
        **changes,
    }
    return {"24h": peaks, "1h": peaks, "5m": peaks}


def three_workers(limit: int | None, **pools: dict[str, Any]) -> dict[str, Any]:
    stats: dict[str, Any] = copy.deepcopy(Answers(3).stats)
    its = stats["pools"].pop("default")
    for alias, changes in pools.items():
        stats["pools"][alias] = {**its, **changes}
        for worker in stats["workers"]:
            worker["pools"][alias] = {**its}
        if limit is not None:
            stats["hosts"][alias] = {"limit": limit, "taken": 0}
    return stats


@pytest.mark.parametrize(
    ("size", "most", "said"),
    [
        (10, 5, "--pool-size 6 --max-per-host 6 would do"),
        (5, 3, "--pool-size 4 --max-per-host 4 would do"),
        (5, 1, "--pool-size 2 --max-per-host 2 would do"),
        (5, 10, "--max-per-host 11 would do"),
    ],
)
def test_a_bound_that_would_do_is_not_below_what_a_worker_keeps(
    size: int, most: int, said: str
) -> None:
    pool = {"size": 3 * size, "max_outstanding": 180, "peaks": of_day(most)}
    (sentence,) = advice(three_workers(60, default=pool))
    assert sentence.remedy == said
    assert started(said, size=size, per_host=60) == []
    assert bool(started(said[said.index("--max") :], size=size)) == ("--pool-size" in said)


def test_a_bound_that_would_do_is_not_below_that_of_any_database() -> None:
    default = {"size": 12, "max_outstanding": 180, "peaks": of_day(5)}
    stats = three_workers(60, default=default, replica={**default, "size": 30})
    said = "--pool replica:6 --max-per-host 6 would do"
    assert [sentence.remedy for sentence in advice(stats)] == [said, said]
    names = "default", "replica"
    assert started(said, names, per_host=60, aliases=alias_sizes("replica:10")) == []
    assert started(said, names, per_host=60, size=10, aliases=alias_sizes("default:4")) == []


def test_databases_that_have_one_bound_get_one_remedy() -> None:
    pool = {"size": 12, "max_outstanding": 180}
    default, replica = {**pool, "peaks": of_day(50)}, {**pool, "peaks": of_day(2)}
    found = advice(three_workers(60, default=default, replica=replica))
    assert {sentence.remedy for sentence in found} == {"--max-per-host 56 would do"}
    for waits in ({"waited": 500, "wait_seconds": 2.0, "occasions": 3}, {"refused": 9}):
        default["peaks"] = of_day(50, **waits)
        first, second = advice(three_workers(60, default=default, replica=replica))
        assert first.name == "too small a pool"
        assert (second.name, second.remedy) == ("it fits", "leave it as it is")
    without = three_workers(None, default=default, replica={**replica, "max_outstanding": 36})
    assert advice(without)[1].remedy == "--pool replica:3:3 per worker would do"


def test_a_larger_pool_keeps_its_cap() -> None:
    waits = {"waited": 500, "wait_seconds": 2.0, "occasions": 3}
    pool = {"size": 12, "max_outstanding": 24, "peaks": of_day(6, **waits)}
    stats = three_workers(None, default=pool, replica=pool)
    said = advice(stats)[0].remedy
    assert said == "--pool default:6:8 keeps as many open as are needed"
    given = {"cap": 5, "aliases": alias_sizes("default:4:8")}
    assert started(said, ("default", "replica"), **given) == []
    stats["pools"]["default"]["max_outstanding"] = None
    assert size_option(stats, "default") == "--pool default:6:unlimited"


def test_a_number_of_the_command_line_has_no_separators() -> None:
    waits = {"waited": 500, "wait_seconds": 2.0, "occasions": 3}
    pool: dict[str, Any] = {"size": 300, "max_outstanding": 1020, "peaks": of_day(600, **waits)}
    pool["peaks"]["24h"]["in_use_worker"] = 340
    (sentence,) = advice(three_workers(None, default=pool))
    assert sentence.remedy == "--max-per-host 1020 lets busy workers use what others do not"
    full = {"in_use": 1024, "waiting": 90, "oldest_wait_seconds": 0.25, "max_outstanding": 3072}
    assert "--max-per-host is at most 1024" in remedy(3, 1024, **full)
    assert "--max-per-host 1024, if" in remedy(3, 1000, **full)
