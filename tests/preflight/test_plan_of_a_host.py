"""The plan with --max-per-host."""

from __future__ import annotations

import math

from pooled_serve.errors import Level
from pooled_serve.options import AliasSize
from support.plans import database, levels, plan_for, the


def test_with_a_bound_of_the_host_workers_do_not_multiply() -> None:
    plan = plan_for(workers=8, per_host=100)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (4, 100)
    assert plan.pools["default"].per_host == 100
    assert [row.most for row in plan.budget] == [100]
    assert levels(plan) == {Level.OK}
    assert plan.judge(50) == []


def test_a_written_cap_still_counts() -> None:
    plan = plan_for(workers=2, per_host=100, cap=20)
    assert plan.pools["default"].cap == 20
    assert [row.most for row in plan.budget] == [40]


def test_a_cap_above_the_bound_is_the_bound() -> None:
    plan = plan_for(workers=2, per_host=10, cap=20)
    assert plan.pools["default"].cap == 10
    assert the(plan, Level.NOTE).message == (
        "--max-outstanding 20 means 10 here: this host may have no more"
    )


def test_an_unlimited_cap_is_the_bound_of_the_host() -> None:
    plan = plan_for(workers=2, per_host=10, cap=math.inf)
    assert plan.pools["default"].cap == 10
    assert levels(plan) == {Level.OK}


def test_a_default_size_yields_to_the_bound() -> None:
    plan = plan_for(workers=2, per_host=2)
    assert (plan.pools["default"].size, plan.pools["default"].cap) == (2, 2)


def test_a_written_size_above_the_bound_is_refused() -> None:
    finding = the(plan_for(size=5, per_host=4), Level.FAIL)
    assert finding.message.startswith("--max-per-host 4 is smaller than --pool-size 5: ")
    assert finding.hint == "use --pool-size 4, or at least --max-per-host 5"
    finding = the(plan_for(aliases=(AliasSize("default", 5),), per_host=4), Level.FAIL)
    assert finding.hint == "use --pool default:4:4, or --max-per-host 5"


def test_a_bound_above_the_budget_is_refused() -> None:
    plan = plan_for(database(limit=100, in_use=10), workers=8, replicas=2, per_host=60)
    finding = the(plan, Level.FAIL)
    assert finding.message == (
        "2 replicas × 60 connections per host = 120, the server allows 100 (10 in use)"
    )
    assert finding.hint == (
        "use --max-per-host 40, which leaves 20 or more to others, or raise max_connections"
    )
    plan = plan_for(database(limit=100, in_use=10), size=50, replicas=2, per_host=60)
    assert "use --pool-size 40 --max-per-host 40, which" in the(plan, Level.FAIL).hint


def test_each_database_of_a_server_has_the_bound() -> None:
    plan = plan_for(database("a", limit=100), database("b", limit=100), workers=9, per_host=60)
    assert [row.most for row in plan.budget] == [120]
    assert the(plan, Level.FAIL).hint.startswith("use --max-per-host 40, which leaves 20 ")


def test_a_smaller_cap_of_one_database_counts_as_it_is() -> None:
    own = (AliasSize("a", 2, 2),)
    two = database("a", limit=20), database("b", limit=20)
    plan = plan_for(*two, workers=2, per_host=12, aliases=own)
    assert [row.most for row in plan.budget] == [4 + 12]
    assert Level.FAIL not in levels(plan)
    assert plan.judge(1) == []
    assert plan.judge(6)[0].message.startswith("24 connections per host = 24, the server allows 20")


def test_no_bound_is_named_that_is_refused() -> None:
    notes = plan_for(database(limit=5000), workers=2, size=1000).findings
    assert any("--max-per-host 1024 would" in finding.message for finding in notes)


def test_idle_connections_that_the_host_cannot_keep_are_noted() -> None:
    assert the(plan_for(workers=3, size=4, per_host=4), Level.NOTE).message == (
        "pool-size 4 of 3 workers is 12, and this host may have 4: idle connections of a worker "
        "are closed to lend their place to another; --pool-size 1 closes fewer"
    )
    assert "--pool-size 3 " in the(plan_for(workers=3, size=4, per_host=11), Level.NOTE).message
    assert Level.NOTE not in levels(plan_for(workers=3, size=4, per_host=12))
    assert Level.NOTE not in levels(plan_for(workers=1, size=4, per_host=4))
    assert the(plan_for(workers=5, size=1, per_host=4), Level.NOTE).message.endswith("another")
