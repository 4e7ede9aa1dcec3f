"""What the sentences say of numbers: a table of pure functions."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pooled_serve.status.advice import advice, is_sure, no_advice
from pooled_serve.status.findings import findings
from pooled_serve.status.sentence import banner
from support.answers import Answers, a_route, recent

FULL: dict[str, Any] = {"in_use": 12, "idle": 0}
QUEUE: dict[str, Any] = {**FULL, "waiting": 7, "oldest_wait_seconds": 0.25}


def said(stats: dict[str, Any]) -> list[str]:
    return [str(sentence) for sentence in findings(stats)]


def of(*routes: dict[str, Any], workers: int = 1, **pool: Any) -> dict[str, Any]:
    stats: dict[str, Any] = copy.deepcopy(Answers(workers, **pool).stats)
    stats["routes"] = list(routes)
    return stats


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({}, "All is well: 3 of 12 connections in use, nobody waits."),
    ({"reachable": None}, "All is well: 3 of 12 connections in use, nobody waits."),
    (FULL, "All is well: 12 of 12 connections in use, nobody waits."),
    (
        {"recent": recent(acquired=200, waited=10, waited_share=0.05, wait_p95_seconds=0.004)},
        "All is well: 3 of 12 connections in use, 5 % of requests waited a moment, 95 % of all less"
        " than 4.0 ms.",
    ),
    (
        QUEUE,
        "Too small a pool: all 12 connections are in use: 7 requests wait, the longest 250 ms."
        " → --max-outstanding 19, if the server has room: --check shows its budget",
    ),
    (
        {"recent": recent(acquired=99, waited=50, waited_share=0.5, wait_p95_seconds=2.4)},
        "Too small a pool: up to 3 of 12 connections are in use: 50 % of requests waited in the"
        " last 10 s, 95 % less than 2.4 s."
        " → --max-outstanding 13, if the server has room: --check shows its budget",
    ),
    (
        {**QUEUE, "recent": recent(acquired=90, timeouts=9, shed=7)},
        "Overload: requests arrive faster than connections come back, all 12 connections are in"
        " use: 7 requests wait, the longest 250 ms, 9 refused (7 early, in an overload) in the last"
        " 10 s. → more workers or hosts, shorter requests, or --max-outstanding 19, if the server"
        " has room: --check shows its budget",
    ),
    (
        {"reachable": False, "in_use": 0, "waiting": 1, "recent": recent(timeouts=3)},
        "Outage: the database default cannot be reached, 1 request waits, 3 refused in the last"
        " 10 s. → see that MariaDB 10.11.19 at 127.0.0.1:3306/shop runs and lets this host in;"
        " requests then go on",
    ),
    (
        {"reachable": False, "login_refused": 1, "recent": recent(connect_errors=9)},
        "Login refused: MariaDB 10.11.19 at 127.0.0.1:3306/shop refuses the login of default."
        " → correct USER, PASSWORD and NAME in DATABASES, or the rights of the account: the log has"
        " the error",
    ),
    (
        {"reachable": False, "engine": "", "server": "", "in_use": 0, "idle": 0},
        "Outage: the database default cannot be reached. → see that the server of default runs and"
        " lets this host in; requests then go on",
    ),
    (
        {"recent": recent(connect_errors=16, timeouts=3, waited=9, lost_ago_seconds=3.7)},
        "Outage over: the database default could not be used until 4 s ago, 16 attempts to connect"
        " failed, 3 refused in the last 10 s. → nothing to do: the log says why, and for how"
        " long",
    ),
    (
        {"recent": recent(connect_errors=1, lost_ago_seconds=0.6)},
        "Outage over: the database default could not be used until 1 s ago, 1 attempt to connect"
        " failed in the last 10 s. → nothing to do: the log says why, and for how long",
    ),
    (
        {"in_use": 12, "waiting": 3, "recent": recent(acquired=9)},
        "All is well: 12 of 12 connections in use, 25 % of requests waited a moment.",
    ),
    (
        {"recent": recent(connect_errors=1)},
        "Failing connects: connecting to default failed once in the last 10 s."
        " → the log has the server's error: often its limit of connections, or an account",
    ),
    (
        {**QUEUE, "in_use": 4, "connecting": 2},
        "Slow connects: 7 requests wait, the longest 250 ms, while 2 connections had to be opened."
        " → keep more of them open: --pool-size 5",
    ),
    (
        {"oldest_held_seconds": 31.0, "recent": recent(held_p95_seconds=0.1)},
        "Leak: a connection has been in use for 31.0 s, the others 100 ms at most (95 %)."
        " → --leak-threshold 15 logs the request and the line that took it",
    ),
    (
        {"oldest_held_seconds": 31.0, "recent": recent(held_p95_seconds=20.0)},
        "All is well: 3 of 12 connections in use, nobody waits.",
    ),
    (
        {"recent": recent(acquired=100, opened=84, closed={"surplus": 80, "age": 3})},
        "Connect storm: 84 connections were opened in the last 10 s for 100 hand-outs; 80 were"
        " closed as “surplus”. → keep more of them open: --pool-size 5",
    ),
    (
        {"recent": recent(acquired=100, opened=30, closed={"dead": 30})},
        "Connect storm: 30 connections were opened in the last 10 s for 100 hand-outs; 30 were"
        " closed as “dead”. → --conn-max-age below the time after which the server or a proxy"
        " closes idle ones",
    ),
    (
        {"recent": recent(acquired=100, opened=84)},  # a start
        "All is well: 3 of 12 connections in use, nobody waits.",
    ),
    (
        {"recent": recent(acquired=10, pinned={"variable": 5, "lock": 2})},
        "Pinned leases: 70 % of leases are kept to the end of the request, 5 times because of SET"
        " or a user variable in the last 10 s. → do that in an atomic() block or on an alias of"
        " its own, or not at all",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES)
def test_one_sentence_says_how_it_is(changes: dict[str, Any], sentence: str) -> None:
    assert said(of(**changes)) == [sentence]


def test_who_holds_the_connections_is_named() -> None:
    slow = a_route("report/", leases=10, held_seconds=8.0)
    fast = a_route("quick/", leases=100, held_seconds=2.0)
    assert said(of(fast, slow, **QUEUE)) == [
        "Slow view: GET report/ holds 80 % of the connection time, 800 ms each: 7 requests wait,"
        " the longest 250 ms. → make its statements faster; if it waits for another service:"
        " --pool-mode transaction, and no atomic() around that"
    ]
    assert "; GET quick/ holds most, 100 % of the time, 20 ms each." in said(of(fast, **QUEUE))[0]
    many = a_route("list/", leases=10, held_seconds=5.0, requests=10, statements=2000)
    (note, *_) = said(of(many))
    assert note.startswith(
        "N+1 queries: GET list/ runs 200 statements for each request and holds 100 % of the"
    )
    assert said(of(many, fast, **QUEUE))[0].startswith("N+1 queries: ")
    assert findings(of(many))[0].level == "note"
    assert findings(of(many, **QUEUE))[0].level == "warn"


def test_what_a_view_usually_takes_is_no_leak() -> None:
    report = {"route": "export/", "method": "GET", "longest_held_seconds": 40.0}
    assert "Leak" in said(of(oldest_held_seconds=50.0))[0]
    assert "Leak" not in said(of(report, oldest_held_seconds=50.0))[0]
    assert "Leak" in said(of(report, oldest_held_seconds=90.0))[0]


def test_without_a_cap_who_waits_waits_for_connects() -> None:
    assert said(of(**{**QUEUE, "max_outstanding": None, "connecting": 2})) == [
        "Slow connects: 7 requests wait, the longest 250 ms, while 2 connections had to be opened."
        " → keep more of them open: --pool-size 5"
    ]


def test_one_busy_worker_is_told_from_a_small_pool() -> None:
    stats = of(workers=3, **QUEUE)
    stats["workers"][0]["pools"]["default"]["waiting"] = 7
    for worker in stats["workers"][1:]:
        worker["pools"]["default"] |= {"in_use": 2, "waiting": 0}
    assert said(stats) == [
        "One busy worker: worker 1 is at the cap, while 2 others have 20 of 24 free: 7 requests"
        " wait, the longest 250 ms. → --max-per-host 36 lets workers lend each other connections"
    ]
    stats["workers"][1]["pools"]["default"]["in_use"] = 11
    assert not said(stats)[0].startswith("One busy worker")


def test_the_bound_of_a_host_has_its_own_remedy() -> None:
    stats = of(workers=2, **QUEUE)
    stats["hosts"] = {"default": {"limit": 12, "taken": 12}}
    assert said(stats) == [
        "Too small a pool: all 12 connections of this host are taken: 7 requests wait, the longest"
        " 250 ms. → --max-per-host 19, if the server has room: --check shows its budget"
    ]


STORM = recent(
    acquired=100, waited=60, wait_p95_seconds=0.2, waited_share=0.6, opened=84, closed={"lent": 80}
)


def test_one_load_has_one_sentence() -> None:
    (slow,) = said(of(recent=STORM, in_use=4))
    assert slow.startswith(
        "Connect storm: 84 connections were opened in the last 10 s for 100 hand-outs; 80 were"
        " closed as “lent”: 60 % of requests waited in the last 10 s, 95 % less than 200 ms. → "
    )
    (small,) = said(of(recent=STORM, in_use=12))
    assert small.startswith("Too small a pool: all 12 connections are in use: ")
    dead = {**STORM, "closed": {"dead": 80}}
    small, other = said(of(recent=dead, in_use=12))
    assert other.startswith("Connect storm: "), "another fault"


def test_what_was_in_use_is_told_from_what_is() -> None:
    queue = recent(acquired=99, waited=50, waited_share=0.5, wait_p95_seconds=2.4)
    (sentence,) = said(of(in_use=7, peaks={"5m": {"in_use": 12}}, recent=queue))
    assert "all 12 connections were in use" in sentence
    (sentence,) = said(of(in_use=7, peaks={"5m": {"in_use": 11}}, recent=queue))
    assert "up to 11 of 12 connections were in use" in sentence


def test_with_several_databases_each_is_named_and_the_worst_comes_first() -> None:
    stats = of(**QUEUE)
    for pools in (stats["pools"], stats["workers"][0]["pools"]):
        pools["reports"] = {**pools["default"], "reachable": False}
    first, second = findings(stats)
    assert (first.pool, first.level, second.pool, second.level) == (
        *("reports", "bad"),
        *("default", "warn"),
    )
    assert second.remedy.startswith("--pool default:4:19, if")


def test_without_a_worker_it_says_so() -> None:
    assert said({})[0].startswith("No worker is running. → ")
    assert said({"workers": [{}]}) == ["All is well: no request has needed a database yet."]


def test_while_it_stops_not_all_is_well() -> None:
    stats = of(in_use=1) | {"stopping": True}
    assert [str(sentence) for sentence in findings(stats)] == [
        "Stopping: 1 connection is still in use."
        " → --graceful-timeout bounds how long that takes, or twice that if a reload was under way"
    ]


# --- Advice ------------------------------------------------------------------------------------

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
        "Too small a pool: in 24 h waits began at 12 of 12 connections once, 9 % waited, the"
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
        "In 24 h waits began at 5 of 12 connections once, 9 % waited, the longest 300 ms; of late"
        " GET report/ held 80 % of the connection time, 800 ms each."
        " → --pool-size 5 keeps as many open as are needed",
    ),
]


@pytest.mark.parametrize(("pool", "sentence"), ADVICE)
def test_peaks_say_what_would_fit(pool: dict[str, Any], sentence: str) -> None:
    slow = a_route("report/", leases=10, held_seconds=8.0)
    fast = a_route("quick/", leases=100, held_seconds=2.0)
    assert [str(each) for each in advice(of(slow, fast, **pool))] == [sentence]


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
    assert no_advice(of(**pool)["pools"]["default"]) == f"no advice yet: {why}"


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
