"""What the peaks say about the numbers of an instance: a table of a pure function."""

from __future__ import annotations

from typing import Any

import pytest

from pooled_serve.status.advice import advice, is_sure, no_advice
from pooled_serve.status.findings import findings
from pooled_serve.status.sentence import banner
from support.answers import QUEUE, a_route, of, recent

DAY = 86_400


def peaks(
    seconds: int = DAY, of_late: dict[str, int] | None = None, **changes: float
) -> dict[str, Any]:
    """
    :param of_late: what the last hour had, if that was less than the day.
    """
    found = {
        **dict.fromkeys(("in_use", "in_use_worker", "waiting", "wait_seconds", "occasions"), 0),
        "waited": 0,
        "refused": 0,
        "acquired": 10_000,
        "seconds": seconds,
        **changes,
    }
    lately = found if of_late is None else dict.fromkeys(found, 0) | of_late
    return {"peaks": {"5m": lately, "1h": lately, "24h": found}}


ADVICE: list[tuple[dict[str, Any], str]] = [
    (
        peaks(in_use=7, in_use_worker=7),
        "Too large a pool: in 24 h at most 7 of 12 connections were in use, nobody waited."
        " → --max-outstanding 8 would do",
    ),
    (
        peaks(in_use=1, in_use_worker=1),
        "Too large a pool: in 24 h at most 1 of 12 connections were in use, nobody waited."
        " → --pool-size 2 --max-outstanding 2 would do",
    ),
    (
        peaks(in_use=11, in_use_worker=11),
        "In 24 h at most 11 of 12 connections were in use, nobody waited. → leave it as it is",
    ),
    (
        peaks(720, in_use=7, in_use_worker=7),
        "Too large a pool: in 12 min at most 7 of 12 connections were in use, nobody waited"
        " (a hint only: it has been watched for 12 min, less than an hour)."
        " → --max-outstanding 8 would do",
    ),
    (
        peaks(in_use=12, in_use_worker=12, waiting=9, wait_seconds=1.2, waited=900, occasions=14),
        "Too small a pool: in 24 h waits began at 12 of 12 connections on 14 occasions, 9 % waited,"
        " the longest 1.2 s; of late GET report/ held 80 % of the connection time, 800 ms each."
        " → shorten what holds them, or --max-outstanding 21, if the server has room: --check shows"
        " its budget",
    ),
    (
        # The burst was hours ago.
        peaks(
            in_use=12,
            in_use_worker=12,
            waiting=8,
            wait_seconds=1.2,
            waited=900,
            occasions=1,
            of_late={"in_use": 1, "in_use_worker": 1},
        ),
        "Too small a pool: in 24 h waits began at 12 of 12 connections, 9 % waited, the"
        " longest 1.2 s; of late GET report/ held 80 % of the connection time, 800 ms each."
        " → shorten what holds them, or --max-outstanding 20, if the server has room: --check shows"
        " its budget",
    ),
    (
        peaks(in_use=12, waiting=2, wait_seconds=0.05, waited=90, occasions=14),
        "In 24 h < 1 % of requests waited, the longest 50 ms. → leave it as it is",
    ),
    (
        peaks(in_use=5, in_use_worker=5, wait_seconds=0.3, waited=900, occasions=1),
        "In 24 h waits began at 5 of 12 connections, 9 % waited, the longest 300 ms; of late"
        " GET report/ held 80 % of the connection time, 800 ms each."
        " → --pool-size 5 keeps as many open as are needed",
    ),
]


@pytest.mark.parametrize(("pool", "sentence"), ADVICE)
def test_peaks_say_what_would_fit(pool: dict[str, Any], sentence: str) -> None:
    slow = a_route("report/", leases=10, held_seconds=8.0)
    fast = a_route("quick/", leases=100, held_seconds=2.0)
    assert [str(each) for each in advice(of(slow, fast, **pool))] == [sentence]


SURPLUS = (
    "Small pool size: in {} 84 connections were opened and {} closed as “surplus”, as a worker"
)
WAITS: dict[str, Any] = {"waiting": 9, "wait_seconds": 1.2, "waited": 900, "occasions": 1}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (peaks(900, in_use=12, in_use_worker=10, opened=84, surplus=80, **WAITS), ("15 min", 80)),
        (peaks(900, in_use=11, in_use_worker=10, opened=84, surplus=42), ("15 min", 42)),
        (peaks(900, in_use=11, in_use_worker=10, opened=84, surplus=41), None),
        (peaks(900, in_use=11, in_use_worker=10, opened=9, surplus=9), None),
        (peaks(in_use=11, in_use_worker=10, opened=84, surplus=80), None),
        ({"size": 12, **peaks(900, in_use=12, in_use_worker=12, opened=84, surplus=80)}, None),
    ],
    ids=["and waits", "half of them", "fewer", "few", "few for a day", "all are kept"],
)
def test_connections_that_are_opened_to_be_closed_again_ask_for_a_larger_pool(
    pool: dict[str, Any], said: tuple[str, int] | None
) -> None:
    first, *others = advice(of(**pool))
    assert "--pool-size" not in first.remedy
    remedy = "--pool-size 10 keeps as many open as were in use"
    sentences = [f"{SURPLUS.format(*said)} keeps 4 idle at most. → {remedy}"] if said else []
    assert [str(each) for each in others] == sentences


def test_a_larger_pool_is_advised_once_and_not_where_it_does_not_help() -> None:
    pool = peaks(900, in_use=5, in_use_worker=5, opened=84, surplus=80, **WAITS)
    (sentence,) = advice(of(**pool))
    assert sentence.remedy == "--pool-size 5 keeps as many open as are needed"
    pool = peaks(900, in_use=12, in_use_worker=12, opened=84, surplus=80, **WAITS)
    stats = of(a_route("slow/", leases=10, held_seconds=8.0), **pool, **QUEUE)
    assert [each.name for each in advice(stats, findings(stats))] == ["too small a pool"]
    assert len(advice(stats)) == 2
    stats["workers"][0] |= {"seen_ago_seconds": 0.1, "cpu_share": 0.98, "cpu_wait_share": 0.0}
    assert [each.name for each in advice(stats)] == ["too small a pool"]


def test_where_views_are_to_blame_no_larger_cap_is_advised() -> None:
    pool = peaks(in_use=12, in_use_worker=12, waiting=9, wait_seconds=1.2, waited=900, occasions=1)
    stats = of(a_route("slow/", leases=10, held_seconds=8.0), **pool, **QUEUE)
    found = findings(stats)
    assert found[0].name == "slow view"
    (sentence,) = advice(stats, found)
    assert sentence.problem.startswith("Too small a pool: ")
    assert sentence.remedy == "first what is said of the slow view, and see again then"
    assert "--max-outstanding" in advice(stats)[0].remedy


@pytest.mark.parametrize(
    ("asking", "budget", "more"),
    [
        (
            0.7,
            32,
            "; until then --max-outstanding 21 lets requests wait less (this host may have 32",
        ),
        (0.9, 32, " connections), unless a lock is behind it"),
        (0.7, 12, ""),
    ],
)
def test_until_a_view_is_mended_requests_may_wait_less(
    asking: float, budget: int, more: str
) -> None:
    pool = peaks(in_use=12, in_use_worker=12, waiting=9, wait_seconds=1.2, waited=900, occasions=1)
    lately = recent(acquired=90, asking_share=asking)
    slow = a_route("slow/", leases=10, held_seconds=8.0)
    stats = of(slow, **pool, **QUEUE, budget=budget, recent=lately)
    (sentence,) = advice(stats, findings(stats))
    first = "first what is said of the slow view, and see again then"
    assert sentence.remedy.startswith(first)
    assert (sentence.remedy != first) == bool(more)
    assert more in sentence.remedy


def test_what_is_not_known_is_no_advice() -> None:
    assert advice(of(**peaks(10, in_use=1))) == []
    assert advice(of(**peaks(acquired=0))) == []
    assert advice(of()) == advice({}) == []


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        (peaks(12, in_use=1), "watched for 12 s of the 20 s that it takes"),
        ({}, "watched for 0 s of the 20 s that it takes"),
        (peaks(acquired=0), "no request has used it"),
    ],
)
def test_it_is_said_why_there_is_no_advice(pool: dict[str, Any], why: str) -> None:
    assert no_advice(of(**pool), "default") == f"no advice yet: {why}"


HANG = {
    "in_use": 2,
    "in_statement": 2,
    "asking": 2,
    "waiting": 3,
    "oldest_statement_seconds": 20.0,
    "last_answer_seconds": 19.0,
}


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ({"reachable": False}, "the database cannot be used"),
        ({"stuck": 1}, "the database cannot be used"),
        ({"reachable": False, "connect_error": 1040}, "the server is full"),
        ({"recent": recent(connect_errors=1)}, "attempts to connect fail"),
        ({"recent": recent(hung_ago_seconds=2.0)}, "statements have hung until 2 s ago"),
        (
            {**HANG, "recent": recent(hung_ago_seconds=0.0)},
            "statements hang",
        ),
        *(
            ({"last_outage_seconds": last}, f"the last trouble with the database ended {told}")
            for last, told in (
                (0.0, "0 s ago, see again in 3 min"),
                (100.0, "2 min ago, see again in 2 min"),
                (150.0, "2 min ago, see again in 30 s"),
                (179.5, "3 min ago, see again in 1 s"),
            )
        ),
    ],
)
def test_in_trouble_there_is_no_advice(trouble: dict[str, Any], why: str) -> None:
    stats = of(**peaks(in_use=1, in_use_worker=1), **trouble)
    assert advice(stats) == []
    assert no_advice(stats, "default") == f"no advice now: {why}"


@pytest.mark.parametrize(
    ("running", "changes", "advised"),
    [
        (1, {}, True),
        (2, {}, True),
        (3, {}, False),
        (2, {"waiting": 1, "oldest_wait_seconds": 9.0}, False),
        (2, {"recent": recent(timeouts=3)}, False),
    ],
)
def test_a_report_that_somebody_runs_is_no_trouble(
    running: int, changes: dict[str, Any], advised: bool
) -> None:
    report = {**HANG, "waiting": 0, "in_use": running, "in_statement": running, "asking": running}
    stats = of(**peaks(in_use=1, in_use_worker=1), **{**report, **changes})
    hangs = [sentence.name for sentence in findings(stats)] == ["hanging statements"]
    assert (bool(advice(stats)), hangs) == (advised, not advised)


def test_what_advice_speaks_of_is_the_time_without_outages() -> None:
    numbers = peaks(720, in_use=7, in_use_worker=7)
    (sentence,) = advice(of(**numbers, outages_total=2, last_outage_seconds=180.0))
    assert sentence.problem.startswith("Too large a pool: in 12 min without outages at most 7 of")


def test_caps_are_those_of_a_worker_unless_the_host_has_one() -> None:
    stats = of(workers=3, **peaks(in_use=9, in_use_worker=5))
    stats["pools"]["default"] |= {"max_outstanding": 36, "size": 12}
    (sentence,) = advice(stats)
    assert sentence.problem.startswith("Too large a pool: in 24 h at most 9 of 36")
    assert sentence.remedy == "--max-outstanding 6 per worker would do"
    stats["hosts"] = {"default": {"limit": 30}}
    (sentence,) = advice(stats)
    assert sentence.problem.startswith("Too large a pool: in 24 h at most 9 of 30")
    assert sentence.remedy == "--max-per-host 10 would do"


def test_an_unlimited_pool_gets_a_limit() -> None:
    (sentence,) = advice(of(max_outstanding=None, **peaks(in_use=7, in_use_worker=7)))
    assert str(sentence).endswith(
        "in 24 h at most 7 connections were in use, nobody waited. → --max-outstanding 8 would do"
    )


def test_from_less_than_an_hour_there_is_only_a_hint() -> None:
    for seconds in (3599, 3600):
        pool = of(**peaks(in_use=1, in_use_worker=1, seconds=seconds))["pools"]["default"]
        assert is_sure(pool) == (seconds == 3600)


def test_a_better_fit_is_no_news_while_something_is_wrong() -> None:
    stats = of(**peaks(in_use=1, in_use_worker=1))
    names = [sentence.name for sentence in banner(findings(stats), advice(stats))]
    assert names == ["all is well", "too large a pool"]
    stats = of(**QUEUE, **peaks(in_use=12, waited=9000, wait_seconds=1.0, occasions=1))
    assert [sentence.level for sentence in banner(findings(stats), advice(stats))] == ["warn"]
