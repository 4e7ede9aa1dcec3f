"""The plan: defaults yield, written values refuse."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve.errors import Finding, Level
from pooled_serve.options import AliasSize, PoolOptions
from pooled_serve.pool_plan import PoolPlan
from pooled_serve.preflight.budget import spared
from pooled_serve.preflight.plan import Plan, make_plan
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts
from support.plans import database, facts, levels, plan_for, the

# --- Sizes -------------------------------------------------------------------------------------


def test_defaults() -> None:
    plan = plan_for()
    assert plan.pools == {"default": PoolPlan(4, 12, 10, 60, "auto", "shed")}
    assert levels(plan) == {Level.OK}
    assert [f.message for f in plan.findings] == [
        "connections retire at 60s, MariaDB hangs up at 28800s",
        "12 of 151 on db:3306",
    ]


def test_the_cap_follows_the_size() -> None:
    assert plan_for(size=5).pools["default"].cap == 15


def test_a_default_size_yields_to_a_written_cap() -> None:
    plan = plan_for(cap=3)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (3, 3)
    assert the(plan, Level.NOTE).message == "pool size lowered from 4 to 3, the cap"


def test_a_written_size_above_a_written_cap_is_refused() -> None:
    finding = the(plan_for(size=5, cap=4), Level.FAIL)
    assert finding.label == "PS204 default"
    assert finding.hint == "use --pool-size 4, or at least --max-outstanding 5"


def test_one_database_may_have_its_own() -> None:
    plan = plan_for(
        database(),
        database("replica", server="db2:3306"),
        database("third", server="db3:3306"),
        aliases=(AliasSize("replica", 8, 16), AliasSize("third", 2)),
        cap=10,
    )
    assert [(p.size, p.cap) for p in plan.pools.values()] == [(4, 10), (8, 16), (2, 10)]


def test_the_last_word_on_a_database_counts() -> None:
    plan = plan_for(aliases=(AliasSize("default", 8, 16), AliasSize("default", 2, 3)))
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (2, 3)


def test_unknown_database() -> None:
    plan = plan_for(database("b"), database("a"), aliases=(AliasSize("nosuch", 1),))
    assert the(plan, Level.FAIL).label == "PS205 nosuch"
    assert the(plan, Level.FAIL).hint == "use one of: b, a"


# --- Age ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait_timeout", "age"), [(76, 60), (75, 60), (74, 59), (60, 48), (1, 0.8)]
)
def test_a_default_age_yields(wait_timeout: int, age: float) -> None:
    plan = plan_for(database(wait_timeout=wait_timeout))
    assert plan.pools["default"].max_age == age
    assert Level.FAIL not in levels(plan)
    if age < 60:
        assert the(plan, Level.NOTE).message.startswith(f"age limit lowered from 60s to {age:g}s")


@pytest.mark.parametrize("where", ["option", "settings"])
def test_a_written_age_is_obeyed_or_refused(where: str) -> None:
    def plan(age: float) -> Plan:
        if where == "option":
            return plan_for(database(wait_timeout=60), max_age=age)
        return plan_for(database(wait_timeout=60, age=age))

    assert plan(59.5).pools["default"].max_age == 59.5
    assert levels(plan(59.5)) == {Level.OK}
    finding = the(plan(60), Level.FAIL)
    assert finding.label == "PS203 default"
    assert finding.message == "connections live 60s but MariaDB hangs up after wait_timeout=60s"
    use = "" if where == "option" else "CONN_MAX_AGE 48 in DATABASES, or "
    remedy = "--conn-max-age 48, or on the server: SET GLOBAL wait_timeout = 75"
    assert finding.hint == f"use {use}{remedy}"


def test_never_retiring_is_allowed_with_a_warning() -> None:
    plan = plan_for(max_age=math.inf)
    assert plan.pools["default"].max_age == math.inf
    assert the(plan, Level.WARN).label == "PS206 default"


def test_no_conn_max_age_means_the_default_here() -> None:
    plan = plan_for(database(age=None))
    assert plan.pools["default"].max_age == 60
    assert the(plan, Level.NOTE).message.startswith("CONN_MAX_AGE=None means 60s here")


def test_where_nobody_could_ask_a_default_age_yields_later() -> None:
    default = plan_for().pools["default"]
    assert default.safe_age(None) == 60
    assert default.safe_age(28800) == 60
    assert default.safe_age(50) == 40
    written = plan_for(max_age=45.0).pools["default"]
    assert written.safe_age(50) == 45


# --- Waiting -----------------------------------------------------------------------------------


def test_to_wait_for_longer_than_proxies_do_is_worth_a_note() -> None:
    found = the(plan_for(timeout=31.0), Level.NOTE)
    assert found.label == "pool_timeout"
    assert found.message == (
        "a request may wait 31s for a connection; most proxies give up after 30s"
    )
    assert Level.NOTE not in levels(plan_for(timeout=30.0))


# --- Budget ------------------------------------------------------------------------------------


def test_a_default_cap_yields() -> None:
    plan = plan_for(database(limit=20), workers=3)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (4, 5)
    assert the(plan, Level.NOTE).message == (
        "cap lowered from 12 to 5 to fit max_connections=20 and leave 5 to others; "
        "--max-per-host 16 would let a worker use what others do not"
    )
    assert plan.budget[0].most == 15


def test_a_default_cap_yields_to_other_hosts() -> None:
    plan = plan_for(database(limit=20), replicas=4)
    assert plan.pools["default"].cap == 4
    assert Level.FAIL not in levels(plan)


def test_a_default_size_yields_with_it() -> None:
    plan = plan_for(database(limit=25), workers=10)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (2, 2)
    assert the(plan, Level.NOTE).message.startswith(
        "cap lowered from 12 to 2, and pool size from 4 to 2, to fit max_connections=25 and leave 5"
    )


def test_a_size_that_was_written_is_shown_as_it_was_though_it_is_refused() -> None:
    plan = plan_for(size=20, cap=10)
    assert the(plan, Level.FAIL).code == "PS204"
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (20, 10)
    # An alias that comes later was not there to be refused.
    for alias in ("default", "tenant"):
        pool = plan.pool(alias, 0)
        assert (pool.size, pool.cap) == (10, 10)


@pytest.mark.parametrize(
    ("written", "most", "cap"),
    [
        ({"size": 60}, 120, 120),  # and not 151 of 151
        ({"workers": 20}, 120, 6),
        ({"workers": 12}, 120, 10),  # 12 × 12 would fit, but leave 7
        ({"workers": 10}, 120, 12),
        # What was written is used as it is, if it fits.
        ({"size": 130}, 130, 130),
        ({"cap": 151}, 151, 151),
        ({"workers": 140}, 140, 1),
        ({"per_host": 151}, 151, 151),
    ],
)
def test_what_defaults_leave_to_others(written: dict[str, Any], most: int, cap: int) -> None:
    plan = plan_for(**written)
    assert (plan.budget[0].most, plan.pools["default"].cap) == (most, cap)
    assert Level.FAIL not in levels(plan)
    lowered = [f.message for f in plan.findings if "lowered" in f.message]
    if cap not in (12, 151):
        assert f" to fit max_connections=151 and leave {151 - most} to others" in lowered[0]


def test_remedies_leave_as_much_as_defaults() -> None:
    hint = the(plan_for(size=200), Level.FAIL).hint
    assert hint == (
        "use --pool-size 120 --max-outstanding 120, which leaves 31 or more to others, "
        "or raise max_connections"
    )
    # What others hold now counts as left to them.
    hint = the(plan_for(database(in_use=25), size=200), Level.FAIL).hint
    assert "--max-outstanding 120, which leaves 31 or more" in hint
    hint = the(plan_for(database(in_use=51), size=200), Level.FAIL).hint
    assert "--max-outstanding 100, which leaves 51 or more" in hint


def test_a_written_size_does_not() -> None:
    plan = plan_for(database(limit=20), workers=10, size=3)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (3, 3)
    assert the(plan, Level.FAIL).message == (
        "10 workers × 3 connections = 30, the server allows 20 (0 in use)"
    )


def test_a_written_cap_is_refused() -> None:
    plan = plan_for(database(in_use=9), workers=8, cap=48)
    finding = the(plan, Level.FAIL)
    assert finding.label == "PS201 db:3306"
    assert finding.message == ("8 workers × 48 connections = 384, the server allows 151 (9 in use)")
    assert finding.hint == (
        "use --max-per-host 120 (best: the workers share them), or --max-outstanding 15, "
        "which leaves 31 or more to others, or raise max_connections"
    )


def test_remedies_that_would_not_help_are_not_named() -> None:
    finding = the(plan_for(database(limit=10), workers=20), Level.FAIL)
    assert finding.hint == (
        "use --max-per-host 8 (best: the workers share them), or --workers 8, "
        "which leaves 2 or more to others, or raise max_connections"
    )
    finding = the(plan_for(database(limit=10), workers=3, replicas=11), Level.FAIL)
    assert finding.hint == "raise max_connections"
    finding = the(plan_for(database(limit=10), workers=4, size=5), Level.FAIL)
    assert finding.hint == (
        "use --max-per-host 8 (best: the workers share them), "
        "or --pool-size 2 --max-outstanding 2, "
        "which leaves 2 or more to others, or raise max_connections"
    )


def test_a_remedy_for_a_pool_with_an_option_of_its_own_is_that_option() -> None:
    """The options for all pools would change nothing."""
    own = (AliasSize("a", 5, 20),)
    finding = the(plan_for(database("a", limit=12), workers=4, aliases=own), Level.FAIL)
    assert finding.hint == (
        "use --max-per-host 9 (best: the workers share them), or --pool a:2:2, "
        "which leaves 3 or more to others, or raise max_connections"
    )
    two = database("a", limit=40), database("b", limit=40)
    finding = the(plan_for(*two, workers=4, size=9, cap=20, aliases=own), Level.FAIL)
    assert finding.hint == (
        "use --max-per-host 16 (best: the workers share them), "
        "or --pool a:4:4 --pool-size 4 --max-outstanding 4, "
        "which leaves 8 or more to others, or raise max_connections"
    )
    finding = the(plan_for(database("a"), aliases=(AliasSize("a", 5, 3),)), Level.FAIL)
    assert finding.hint == "use --pool a:3:3, or --pool a:5:5"


@pytest.mark.parametrize(
    ("size", "cap", "workers", "remedy"),
    [
        (4, 40, 1, "use --pool default:4:32, which"),
        (20, 50, 1, "use --pool default:20:32, which"),
        (4, 30, 2, ", or --pool default:4:16, which"),
        (40, 50, 1, "use --pool default:32:32, which"),
        (4, 60, 10, ", or --pool default:3:3, which"),
    ],
)
def test_a_size_that_fits_stays_in_the_remedy(
    size: int, cap: int, workers: int, remedy: str
) -> None:
    own = (AliasSize("default", size, cap),)
    findings = plan_for(database(limit=40), workers=workers, aliases=own).findings
    (hint,) = (f.hint for f in findings if f.code in ("PS201", "PS208"))
    assert remedy in hint


def test_hosts_multiply() -> None:
    plan = plan_for(database(limit=100), workers=2, replicas=5, cap=11)
    assert plan.budget[0].most == 110
    assert the(plan, Level.FAIL).message.startswith("5 replicas × 2 workers × 11 connections = 110")


def test_databases_on_one_server_share_its_limit() -> None:
    plan = plan_for(database("a"), database("b"), database("c", server="db2:3306"), cap=80)
    assert [(row.server, row.most) for row in plan.budget] == [("db:3306", 160), ("db2:3306", 80)]
    assert the(plan, Level.FAIL).label == "PS201 db:3306"
    assert "--max-outstanding 60, which" in the(plan, Level.FAIL).hint


def test_a_default_cap_yields_to_a_written_one_on_the_same_server() -> None:
    plan = plan_for(
        database("a", limit=20), database("b", limit=20), aliases=(AliasSize("a", 4, 15),)
    )
    assert (plan.pools["a"].cap, plan.pools["b"].cap) == (15, 1)


@pytest.mark.parametrize(
    ("written", "level", "numbers"),
    [
        ({"cap": 120}, Level.OK, ""),
        ({"cap": 121}, Level.NOTE, "1 worker × 121 connections = 121, which leaves 30 of 151"),
        ({"size": 140}, Level.WARN, "1 worker × 140 connections = 140, which leaves 11 of 151"),
        ({"cap": 151}, Level.WARN, "1 worker × 151 connections = 151, which leaves 0 of 151"),
        (
            {"per_host": 75, "workers": 8, "replicas": 2},
            Level.WARN,
            "2 replicas × 75 connections per host = 150, which leaves 1 of 151",
        ),
    ],
)
def test_what_is_written_should_leave_something_to_others(
    written: dict[str, Any], level: Level, numbers: str
) -> None:
    plan = plan_for(**written)
    others = "to others: migrations, cron jobs, backups, administrators"
    found = [finding for finding in plan.findings if others in finding.message]
    assert [finding.level for finding in found] == ([] if level is Level.OK else [level])
    for finding in found:
        assert finding.message == f"{numbers} {others}"
        assert finding.code == ("PS208" if level is Level.WARN else "")
        hint = "which leaves 31 or more to others, or raise max_connections"
        assert (hint in finding.hint) == (level is Level.WARN)
    said_well = "max_connections" in {f.label for f in plan.findings}
    assert said_well == (level is not Level.WARN), "a warning is no success"


def test_what_other_uses_of_the_account_are_left_is_only_a_note() -> None:
    """Backups and administrators have their own accounts, and this one may be the site's only."""
    plan = plan_for(database(of_user=20), workers=2, cap=10)
    assert Level.WARN not in levels(plan)
    assert the(plan, Level.NOTE).message == (
        "2 workers × 10 connections = 20, which leaves 0 of 20 to whatever else uses this account: "
        "manage.py, cron jobs"
    )


def test_a_note_of_the_start_is_nothing_to_warn_of_later_on() -> None:
    plan = plan_for(workers=3, cap=42)
    assert the(plan, Level.NOTE).message.startswith(
        "3 workers × 42 connections = 126, which leaves"
    )
    assert not plan.judge(3)
    assert [finding.code for finding in plan.judge(4)] == ["PS201"]


def test_of_a_handful_of_connections_one_is_enough_for_others() -> None:
    assert {f.code for f in plan_for(database(limit=5), cap=4).findings} == {""}


# --- What is in use ----------------------------------------------------------------------------


def test_what_is_in_use_now_is_a_warning() -> None:
    plan = plan_for(database(in_use=145))
    finding = the(plan, Level.WARN)
    assert finding.label == "PS202 db:3306"
    assert finding.message == (
        "1 worker × 12 connections = 12, but 145 of 151 are in use now "
        "(by a running instance of this project, perhaps)"
    )


def test_the_limit_of_the_user_counts_the_users_connections() -> None:
    plan = plan_for(database(of_user=20, in_use=100, own=2))
    assert levels(plan) == {Level.OK}
    (row,) = plan.budget
    assert (row.limit, row.limit_name, row.in_use) == (20, "max_user_connections", 2)
    plan = plan_for(database(of_user=20, own=15))
    assert the(plan, Level.WARN).hint.endswith("or raise max_user_connections")


def test_no_cap_counts_greenlets() -> None:
    plan = plan_for(database(in_use=1), connections=1000, workers=2, cap=math.inf)
    finding = the(plan, Level.FAIL)
    assert finding.message.startswith(
        "2 workers × 1000 connections (no cap: one per greenlet, --worker-connections) = 2000"
    )
    assert finding.hint == (
        "use --max-per-host 120 (best: the workers share them), or --max-outstanding 60, "
        "which leaves 31 or more to others, or raise max_connections"
    )
    plan = plan_for(connections=60, workers=2, cap=math.inf)
    assert levels(plan) == {Level.OK}


def test_a_server_that_did_not_answer_has_no_budget() -> None:
    report = DatabaseReport(
        "default",
        True,
        "MySQL",
        "db:3306/x",
        "db:3306",
        problem=Finding(Level.WARN, "PS301", "", ""),
    )
    plan = plan_for(report, workers=99)
    assert plan.pools["default"].cap == 12
    assert plan.budget == ()
    assert plan.findings == ()


# --- What is not pooled ------------------------------------------------------------------------


def test_other_engines_are_left_alone() -> None:
    plan = plan_for(DatabaseReport("default", False, "SQLite"), size=4)
    assert the(plan, Level.NOTE).message == "SQLite is not pooled; Django connects as usual"
    assert plan.pools == {}


def test_no_databases() -> None:
    plan = make_plan(PoolOptions(), ProjectReport(app="x"), workers=1, worker_connections=1)
    assert the(plan, Level.NOTE).message == "no database: nothing to pool"


def test_warnings_of_the_project_are_passed_on() -> None:
    warning = Finding(Level.WARN, "PS108", "", "async", "plain")
    report = ProjectReport(warnings=(warning,))
    plan = make_plan(PoolOptions(), report, workers=1, worker_connections=1)
    assert plan.warnings == [warning]


def test_a_database_that_the_preflight_did_not_see() -> None:
    plan = Plan(PoolOptions(size=2))
    assert plan.pool("late", 30) == PoolPlan(
        2, 6, 10, 30, "auto", "shed", size_explicit=True, age_explicit=True
    )
    planned = plan_for(database(wait_timeout=50), size=2)
    assert planned.pool("default", 0).max_age == 40
    assert planned.pool("default", 30).max_age == 30


# --- Whatever the numbers ----------------------------------------------------------------------

small = st.integers(1, 200)
caps = st.none() | small | st.just(math.inf)
ages = st.floats(0.1, 1e6) | st.integers(1, 10**6) | st.just(math.inf)
aliases = st.sampled_from(["default", "replica", "third"])


@st.composite
def any_facts(draw: st.DrawFn) -> ServerFacts:
    return facts(
        wait_timeout=draw(st.integers(1, 31536000) | st.integers(1, 100)),
        limit=draw(st.integers(1, 100000) | st.integers(1, 300)),
        of_user=draw(st.just(0) | st.integers(1, 100)),
        in_use=draw(st.integers(0, 400)),
        own=draw(st.integers(0, 100)),
    )


@st.composite
def any_plan(draw: st.DrawFn) -> tuple[Plan, ProjectReport, PoolOptions, int, int]:
    names = draw(st.lists(aliases, unique=True, max_size=3))
    servers = {name: draw(st.sampled_from(["db:3306", "db2:3306"])) for name in names}
    found = {server: draw(any_facts()) for server in sorted(set(servers.values()))}
    report = ProjectReport(
        app="x",
        databases=tuple(
            database(
                name,
                server=servers[name],
                age=draw(st.none() | st.just(0) | st.integers(1, 10**6)),
                found=found[servers[name]],
            )
            for name in names
        ),
    )
    options = PoolOptions(
        size=draw(st.none() | small),
        cap=draw(caps),
        max_age=draw(st.none() | ages),
        aliases=tuple(draw(st.lists(st.builds(AliasSize, aliases, small, caps), max_size=2))),
        replicas=draw(st.integers(1, 5)),
    )
    workers, connections = draw(st.integers(1, 40)), draw(st.integers(1, 2000))
    plan = make_plan(options, report, workers=workers, worker_connections=connections)
    return plan, report, options, workers, connections


@given(any_plan())
def test_what_is_not_refused_fits(made: tuple[Plan, ProjectReport, PoolOptions, int, int]) -> None:
    plan, report, options, workers, connections = made
    for finding in plan.findings:
        assert bool(finding.hint) == (finding.level in (Level.WARN, Level.FAIL))
        assert "\n" not in finding.message + finding.hint
        assert bool(re.fullmatch(r"PS2\d\d", finding.code)) == bool(finding.hint)
        assert finding.subject
    if plan.contradictions:
        return
    most: dict[str, float] = {}
    for found in report.databases:
        pool = plan.pools[found.alias]
        assert found.facts
        assert 1 <= pool.size <= pool.cap
        assert pool.max_age < found.facts.wait_timeout or options.max_age == math.inf
        most.setdefault(found.server, 0)
        most[found.server] += connections if pool.cap == math.inf else pool.cap
    for found in report.databases:
        assert found.facts
        total = options.replicas * workers * most[found.server]
        assert total <= found.facts.max_connections
        assert total <= (found.facts.max_user_connections or math.inf)


@given(any_plan())
def test_remedies_work(made: tuple[Plan, ProjectReport, PoolOptions, int, int]) -> None:
    plan, report, options, workers, connections = made
    if options.aliases or len(plan.budget) > 1:
        return  # what is said of one server or database need not help the other
    for finding in plan.contradictions:
        for remedy in finding.hint.removeprefix("use ").split(", or "):
            changed, number, clients = dict(vars(options)), workers, connections
            for flag, value in re.findall(r"--([a-z-]+) ([0-9.]+)", remedy):
                match flag:
                    case "max-per-host":
                        changed["per_host"] = int(value)
                    case "max-outstanding":
                        changed["cap"] = int(value)
                    case "pool-size":
                        changed["size"] = int(value)
                    case "conn-max-age":
                        changed["max_age"] = float(value)
                    case "workers":
                        number = int(value)
                    case "worker-connections":
                        clients = int(value)
            if (changed, number, clients) == (vars(options), workers, connections):
                continue
            again = make_plan(
                PoolOptions(**changed), report, workers=number, worker_connections=clients
            )
            labels = {f.label for f in again.contradictions}
            assert finding.label not in labels, remedy
            if finding.code == "PS201":
                assert all(row.most <= row.limit - spared(row.limit) for row in again.budget)
