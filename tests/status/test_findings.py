"""What the sentences say of numbers: a table of pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from pooled_serve.status.findings import findings
from support.answers import FULL, QUEUE, a_route, an_episode, of, recent


def said(stats: dict[str, Any]) -> list[str]:
    return [str(sentence) for sentence in findings(stats)]


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({}, "All is well: 3 of 12 connections in use, nobody waits."),
    ({"reachable": None}, "All is well: 3 of 12 connections in use, nobody waits."),
    (FULL, "All is well: 12 of 12 connections in use, nobody waits."),
    (
        {
            "recent": recent(
                acquired=200, waited=10, waited_share=0.05, wait_p95_at_most_seconds=0.005
            )
        },
        "All is well: 3 of 12 connections in use, 5 % of requests waited a moment, 95 % of all ≤"
        " 5.0 ms.",
    ),
    (
        {"recent": recent(acquired=900, waited=5, wait_p95_at_most_seconds=0.0004)},
        "All is well: 3 of 12 connections in use, < 1 % of requests waited a moment, 95 % of all"
        " < 1 ms.",
    ),
    (
        QUEUE,
        "Too small a pool: all 12 connections are in use: 7 requests wait, the longest 250 ms."
        " → --max-outstanding 19, if the server has room: --check shows its budget",
    ),
    (
        {**QUEUE, "recent": recent(acquired=90, asking_share=0.95)},
        "Too small a pool: all 12 connections are in use: 7 requests wait, the longest 250 ms."
        " → nearly all wait for the server's answers, so see first what for (SHOW PROCESSLIST"
        " there): behind one lock more connections do not help; else --max-outstanding 19, if the"
        " server has room: --check shows its budget",
    ),
    (
        {"recent": recent(acquired=99, waited=50, waited_share=0.5, wait_p95_at_most_seconds=2.4)},
        "Too small a pool: up to 3 of 12 connections are in use: 50 % of requests waited in the"
        " last 10 s, 95 % ≤ 2.4 s."
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
        {"reachable": False, "login_refused": 1}
        | {"recent": recent(connect_errors=9, failed=3900)},
        "Login refused: MariaDB 10.11.19 at 127.0.0.1:3306/shop refuses the login of default,"
        " 3,900 got 500 in the last 10 s. → correct USER, PASSWORD and NAME in DATABASES, or at"
        " the server the account and its rights (GRANT); new settings take a HUP, or a restart if"
        " they come from the environment; the log has the error",
    ),
    (
        {
            "reachable": False,
            "login_refused": 1,
            "connect_error": 1045,
            "lost_seconds": 40.0,
            "recent": recent(connect_errors=9),
        },
        "Login refused: MariaDB 10.11.19 at 127.0.0.1:3306/shop has refused the login of default"
        " for 40 s (error 1045). → correct USER, PASSWORD and NAME in DATABASES, or at the server"
        " the account and its rights (GRANT); new settings take a HUP, or a restart if they come"
        " from the environment; the log has the error",
    ),
    (
        {"reachable": False, "connect_error": 2003, "lost_seconds": 14.2, "in_use": 0},
        "Outage: the database default has been out of reach for 14 s (error 2003). → see that"
        " MariaDB 10.11.19 at 127.0.0.1:3306/shop runs and lets this host in; requests then go on",
    ),
    (
        {"reachable": False, "connect_error": 1040, "lost_seconds": 14.2, "waiting": 2},
        "Server full: MariaDB 10.11.19 at 127.0.0.1:3306/shop has had no connection left for"
        " default for 14 s (error 1040), 2 requests wait. → close idle connections (SHOW"
        " PROCESSLIST), or raise the limit: max_connections, or the one of the account (if you get"
        " 1040, too: stop a client first, or log in at extra_port of MariaDB or admin_port of"
        " MySQL); requests then go on",
    ),
    (
        {"connect_error": 1040, "recent": recent(connect_errors=4)},
        "Failing connects: connecting to default failed 4 times in the last 10 s (error 1040)."
        " → close idle connections (SHOW PROCESSLIST), or raise the limit: max_connections, or the"
        " one of the account (if you get 1040, too: stop a client first, or log in at extra_port of"
        " MariaDB or admin_port of MySQL)",
    ),
    (
        {"connect_error": 2003, "recent": recent(connect_errors=3)},
        "Failing connects: connecting to default failed 3 times in the last 10 s (error 2003)."
        " → see that the server runs and lets this host in; requests then go on",
    ),
    (
        # After a HUP, which has ended the workers that know the error.
        {"recent": recent(connect_errors=3, connect_failed_error=1044)},
        "Failing connects: connecting to default failed 3 times in the last 10 s (error 1044)."
        " → correct USER, PASSWORD and NAME in DATABASES, or at the server the account and its"
        " rights (GRANT); new settings take a HUP, or a restart if they come from the environment;"
        " the log has the error",
    ),
    (
        # Who waits at this moment may do so because of them.
        {
            **QUEUE,
            "connect_error": 2003,
            "recent": recent(connect_errors=3, connects_again=True, connect_failed_ago_seconds=1.2),
        },
        "Failing connects: connecting to default failed 3 times until 1 s ago (error 2003), and"
        " has worked since: 7 requests wait, the longest 250 ms. → see that the server runs and"
        " lets this host in; requests then go on",
    ),
    (
        # Those who have waited are served.
        {
            "connect_error": 2003,
            "recent": recent(
                connect_errors=3,
                timeouts=1,
                connects_again=True,
                connect_failed_ago_seconds=7.7,
                pressed_ago_seconds=7.0,
            ),
        },
        "Connects work again: connecting to default failed 3 times until 8 s ago (error 2003), and"
        " has worked since. → nothing to do now",
    ),
    (
        {"connect_error": 2005, "recent": recent()},
        "All is well: 3 of 12 connections in use, nobody waits.",
    ),
    (
        {"reachable": False, "engine": "", "server": "", "in_use": 0, "idle": 0},
        "Outage: the database default cannot be reached. → see that the server of default runs and"
        " lets this host in; requests then go on",
    ),
    (
        # The whole of it, not what is left of it in the numbers of the last seconds.
        {
            "recent": recent(
                connect_errors=6,
                timeouts=3,
                waited=9,
                lost_ago_seconds=3.7,
                outage=an_episode(242.0, connect_errors=160, timeouts=312, waited=9, failed=1),
            )
        },
        "Outage over: the database default could not be used for 4 min until 4 s ago; in all 9"
        " requests waited, 312 requests got 503, 1 request got 500 and 160 attempts to connect"
        " failed. → nothing to do: the log says why",
    ),
    (
        {"recent": recent(lost_ago_seconds=0.6, outage=an_episode(0.4, connect_errors=1))},
        "Outage over: the database default could not be used until 1 s ago; in all 1 attempt to"
        " connect failed. → nothing to do: the log says why",
    ),
    (
        # It came back in between.
        {"recent": recent(lost_ago_seconds=0.6, outage=an_episode(40.0, seconds=61.0))},
        "Outage over: the database default could not be used for 40 s of 1 min until 1 s ago."
        " → nothing to do: the log says why",
    ),
    (
        {"in_use": 12, "waiting": 3, "recent": recent(acquired=9)},
        "All is well: 12 of 12 connections in use, 25 % of requests waited a moment.",
    ),
    (
        {"recent": recent(connect_errors=1)},
        "Failing connects: connecting to default failed once in the last 10 s."
        " → the log has the error",
    ),
    (
        {**QUEUE, "in_use": 4, "connecting": 2},
        "Slow connects: 7 requests wait, the longest 250 ms, while 2 connections had to be opened."
        " → keep more of them open: --pool-size 5",
    ),
    (
        {"oldest_held_seconds": 31.0, "recent": recent(held_p95_at_most_seconds=0.1)},
        "Leak: a connection has been in use for 31.0 s, 95 % of the others ≤ 100 ms."
        " → --leak-threshold 15 logs the request and the line that took it",
    ),
    (
        {"oldest_held_seconds": 31.0, "recent": recent(held_p95_at_most_seconds=20.0)},
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


def test_who_has_the_rest_of_a_bound_after_usr2_is_told() -> None:
    stats = of(workers=2, **QUEUE)
    stats["hosts"] = {"default": {"limit": 12, "taken": 12, "taken_elsewhere": 8}}
    assert said(stats) == [
        "Too small a pool: all 12 connections of this host are taken, 8 of them by other processes,"
        " as after USR2: 7 requests wait, the longest 250 ms. → end the old instance, if it is one"
        " (TERM to its master); else --max-per-host 19, if the server has room: --check shows its"
        " budget"
    ]


STORM = recent(
    acquired=100,
    waited=60,
    wait_p95_at_most_seconds=0.2,
    waited_share=0.6,
    opened=84,
    closed={"lent": 80},
)


def test_one_load_has_one_sentence() -> None:
    (slow,) = said(of(recent=STORM, in_use=4))
    assert slow.startswith(
        "Connect storm: 84 connections were opened in the last 10 s for 100 hand-outs; 80 were"
        " closed as “lent”: 60 % of requests waited in the last 10 s, 95 % ≤ 200 ms. → "
    )
    (small,) = said(of(recent=STORM, in_use=12))
    assert small.startswith("Too small a pool: all 12 connections are in use: ")
    dead = {**STORM, "closed": {"dead": 80}}
    small, other = said(of(recent=dead, in_use=12))
    assert other.startswith("Connect storm: "), "another fault"


def test_what_was_in_use_is_told_from_what_is() -> None:
    queue = recent(acquired=99, waited=50, waited_share=0.5, wait_p95_at_most_seconds=2.4)
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


@pytest.mark.parametrize(
    ("ending", "problem"),
    [
        ([], "All is well: "),
        ([1], "All is well: "),
        ([1, 2], "Workers end: 2 finish their requests, 1 other serves. → nothing to do"),
        ([1, 2, 3], "Workers end: 3 finish their requests. → nothing to do"),
    ],
)
def test_a_reload_is_told_of(ending: list[int], problem: str) -> None:
    stats = of(workers=3)
    (sentence,) = findings(stats, ending)
    assert str(sentence).startswith(problem)
    assert findings(stats | {"stopping": True}, ending)[0].name == "stopping"


@pytest.mark.parametrize(
    ("workers", "ending", "dying", "problems"),
    [
        (2, [1], [1], ["Worker dies: worker 1 ends without being told to, after --timeout"]),
        (3, [1, 3], [1, 3], ["Workers die: workers 1 and 3 end without being told to, after "]),
        (3, [1, 2], [1], ["Worker dies: worker 1 "]),
        (2, [1, 2], [1], ["Worker dies: worker 1 ", "Workers end: 1 finishes its requests. → "]),
        (2, [1, 2], [1, 2], ["Workers die: workers 1 and 2 "]),
    ],
)
def test_a_worker_that_is_killed_does_not_end_as_in_a_reload(
    workers: int, ending: list[int], dying: list[int], problems: list[str]
) -> None:
    stats = of(workers=workers)
    found = [str(sentence) for sentence in findings(stats, ending, dying)]
    assert [text[: len(start)] for text, start in zip(found, problems, strict=True)] == problems
    assert "nothing to do" not in found[0], "requests may be lost"
    names = [each.name for each in findings(stats | {"stopping": True}, ending, dying)]
    assert ("stopping" in names) == (ending != dying), "nobody has told these to"


def test_a_refused_reload_is_told_of_until_one_succeeds() -> None:
    stats = of(workers=2) | {"reload_problem": "PS201", "reload_refused_ago_seconds": 720.0}
    assert said(stats) == [
        "Not reloaded: the options were refused (PS201) 12 min ago. → the log says what to correct;"
        " then send HUP again: until it succeeds the old options stay, and a restart is likely to"
        " be refused, too"
    ]
    assert said(stats | {"reload_problem": "PS110"})[0] == (
        "Broken settings: --check refuses (PS110) what was loaded 12 min ago. → the log says what "
        "to correct; then send HUP again"
    )
    stats |= {"reload_problem": None, "reload_refused_ago_seconds": None}
    assert said(stats)[0].startswith("All is well")


@pytest.mark.parametrize("code", [None, 1040])
def test_what_lacks_descriptors_is_not_put_down_to_the_server(code: int | None) -> None:
    stats = of(
        recent=recent(connect_errors=5, timeouts=3), connect_error=code, waiting=3, in_use=12
    )
    stats["workers"][0] |= {"seen_ago_seconds": 0.1, "no_descriptor_ago_seconds": 0.2}
    found = findings(stats)
    names = [sentence.name for sentence in found]
    assert names == ["no descriptors", *["failing connects"] * (code is not None)]
    assert found[0].problem.endswith("have to wait, 3 requests got 503")
    # Which of the two it was is in the log.
    assert all(
        limit in found[0].remedy for limit in ("the log says whose", "ulimit -n", "file-max")
    )


# --- When not all is well ----------------------------------------------------------------------

SUFFERING: list[dict[str, Any]] = [
    {"recent": {"timeouts": 120}},
    {"recent": {"timeouts": 120, "shed": 120}},
    {"waiting": 9, "oldest_wait_seconds": 6.0},
    {"recent": {"waited": 9, "wait_p95_seconds": 6.0}},
]
"""Requests were refused, or have waited for seconds."""

CIRCUMSTANCES: list[dict[str, Any]] = [
    {},
    {"in_use": 12},
    {"in_use": 12, "in_statement": 12, "oldest_statement_seconds": 1.5},
    {"connecting": 2},
    {"max_outstanding": None},
    {"recent": {"opened": 40, "closed": {"surplus": 40}}},
    {"recent": {"connect_errors": 3}},
    {"peaks": {"5m": {"in_use": 12}}},
]


@pytest.mark.parametrize("suffering", SUFFERING)
@pytest.mark.parametrize("circumstances", CIRCUMSTANCES)
@pytest.mark.parametrize("uptime", [5.0, 1000.0])
@pytest.mark.parametrize("drained", [0, 24])
def test_not_all_is_well_while_requests_are_refused_or_wait_for_seconds(
    suffering: dict[str, Any], circumstances: dict[str, Any], uptime: float, drained: int
) -> None:
    lately = recent(acquired=900, waited_share=0.1)
    for numbers in (circumstances, suffering):
        lately |= numbers.get("recent", {})
    if drained:
        lately["closed"] = {**lately.get("closed", {}), "drain": drained}
    stats = of(**{**circumstances, **suffering, "recent": lately}) | {"uptime_seconds": uptime}
    found = findings(stats)
    assert found[0].level in ("bad", "warn")
    if lately["timeouts"]:
        assert any("120 refused" in sentence.problem for sentence in found)


def test_an_overload_in_a_reload_is_one_though_old_and_new_workers_have_twice_the_cap() -> None:
    lately = recent(acquired=900, timeouts=120, shed=100, closed={"drain": 24}, opened=24)
    stats = of(
        workers=4,
        in_use=20,
        max_outstanding=48,
        waiting=9,
        oldest_wait_seconds=6.0,
        peaks={"5m": {"in_use": 24}},
        recent=lately,
    )
    (sentence,) = said(stats)
    assert sentence.startswith(
        "Overload: requests arrive faster than connections come back, up to 24 of 48 connections"
        " were in use: 9 requests wait, the longest 6.0 s, 120 refused (100 early, in an overload)"
        " in the last 10 s. → more workers or hosts, shorter requests, or "
    )


# --- When it is over ---------------------------------------------------------------------------

PAST = {"acquired": 90, "waited": 60, "waited_share": 0.7, "wait_p95_seconds": 2.0}
"""What is left of a queue in the numbers of the last ten seconds."""


VIEW = a_route("report/", leases=10, held_seconds=8.0)


@pytest.mark.parametrize(
    ("routes", "lately", "level", "now", "then"),
    [
        (
            [],
            {"timeouts": 9},
            "bad",
            "Overload: requests arrive faster than connections come back, ",
            "Overload: requests arrived faster than connections came back, ",
        ),
        (
            [VIEW],
            {"timeouts": 9},
            "bad",
            "Slow view: GET report/ holds 100 % of the connection time, ",
            "Slow view: GET report/ held 100 % of the connection time, ",
        ),
        (
            [a_route("rows/", leases=10, held_seconds=2.0, requests=10, statements=2000)],
            {},
            "warn",
            "N+1 queries: GET rows/ runs 200 statements for each request and holds ",
            "N+1 queries: GET rows/ ran 200 statements for each request and held ",
        ),
        (
            [],
            {"asking_share": 0.1},
            "warn",
            "Waiting views: 90 % of the connections in use run no statement in the last 10 s, their"
            " views wait for something else: ",
            "Waiting views: 90 % of the connections in use ran no statement in the last 10 s, their"
            " views waited for something else: ",
        ),
        (
            [],
            {"pinned": {"variable": 80}},
            "warn",
            "Pinned leases: 89 % of leases are kept to the end of the request, ",
            "Pinned leases: 89 % of leases were kept to the end of the request, ",
        ),
        (
            [a_route("quick/", leases=90, held_seconds=2.0)],
            {},
            "warn",
            "Too small a pool: all 12 connections are in use: ",
            "Too small a pool: all 12 connections were in use: ",
        ),
    ],
)
def test_what_is_over_is_told_in_the_past_tense_and_is_no_emergency(
    routes: list[dict[str, Any]], lately: dict[str, Any], level: str, now: str, then: str
) -> None:
    """The numbers of the last seconds still have it, and the log says that it is over."""
    peaks = {"5m": {"in_use": 12}}
    for ago, waiting, told, its in (
        (None, 0, now, level),  # of an older instance
        (1.2, 0, now, level),
        (6.1, 3, now, level),
        (6.1, 0, then, "warn"),
    ):
        past = recent(**{**PAST, **lately}, pressed_ago_seconds=ago)
        in_use = 12 if told == now else 0
        stats = of(*routes, waiting=waiting, in_use=in_use, peaks=peaks, recent=past)
        stats["pool_mode"] = "request"
        (found,) = findings(stats)
        assert found.problem.startswith(told)
        assert found.level == its
        assert (", until 6 s ago" in found.problem) == (told == then)
        if "quick" in str(routes):
            assert f"; GET quick/ {'holds' if told == now else 'held'} most, " in found.problem
