"""Greenlets that never finish a request give back what they took, and leave it clean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.script import CAP, SIZE, run_function
from support.servers import Server

SCRIPTS = "backend/greenlets_scripts.py"


@pytest.fixture
def forty(project: Any) -> Any:
    """Calls a function of SCRIPTS, and returns the pool's statistics, with the rows in t."""

    def forty(function: str, *args: Any) -> dict[str, Any]:
        folder: Path = project()
        stats: dict[str, Any] = run_function(folder, SCRIPTS, "with_table", function, *args)
        assert stats["idle"] + stats["in_use"] <= CAP
        assert stats["waiting"] == 0
        return stats

    return forty


def test_forty_that_only_end_share_a_few_connections(forty: Any) -> None:
    stats = forty("forty_that_only_end_share_a_few_connections", CAP)
    assert stats["rows"] == 40 * 5
    assert set(stats["closed_total"]) <= {"surplus"}
    assert stats["timeouts_total"] == 0


def test_forty_that_are_killed_between_queries_share_one_connection(forty: Any) -> None:
    stats = forty("forty_that_are_killed_between_queries_share_one_connection")
    assert stats["opened_total"] <= SIZE
    assert stats["closed_total"] == {}


def test_forty_that_are_killed_while_they_hold_a_connection_return_it_clean(forty: Any) -> None:
    stats = forty("forty_that_are_killed_while_they_hold_a_connection_return_it_clean")
    assert stats["opened_total"] == CAP
    assert stats["timeouts_total"] == 0


@pytest.mark.parametrize("end", ["killed", "timed out"])
def test_forty_that_end_in_the_middle_of_a_query_close_their_connection(
    forty: Any, end: str
) -> None:
    stats = forty("forty_that_end_in_the_middle_of_a_query_close_their_connection", end)
    # Others took their places, and more of these than are kept may have become idle.
    assert stats["closed_total"].pop("killed") == 40
    assert set(stats["closed_total"]) <= {"surplus"}
    assert stats["timeouts_total"] == 0


DEATHS = [
    "raise gevent.GreenletExit",
    "gevent.getcurrent().throw(gevent.GreenletExit)",
    "with gevent.Timeout(0.01): gevent.sleep(1)",
    "raise ValueError('a bug')",
    "pass",
]


def test_forty_that_die_with_an_open_transaction_commit_nothing(forty: Any) -> None:
    stats = forty("forty_that_die_with_an_open_transaction_commit_nothing", DEATHS)
    assert stats["rows"] == 0
    assert stats["timeouts_total"] == 0


def test_forty_that_are_killed_in_atomic_commit_nothing(forty: Any) -> None:
    stats = forty("forty_that_are_killed_in_atomic_commit_nothing")
    assert stats["rows"] == 0
    assert stats["timeouts_total"] == 0
    # atomic() itself cleans up before they die.
    assert set(stats["closed_total"]) <= {"surplus"}


def test_a_greenlet_that_ends_while_others_wait_serves_them_in_order(forty: Any) -> None:
    stats = forty("a_greenlet_that_ends_while_others_wait_serves_them_in_order")
    assert stats["waited_total"] == 36
    assert stats["opened_total"] == CAP


def test_a_cursor_that_outlives_its_greenlet_does_not_run_on_a_strangers_connection(
    forty: Any,
) -> None:
    forty("a_cursor_that_outlives_its_greenlet_does_not_run_on_a_strangers_connection")


def test_a_cursor_that_outlives_its_session_in_another_greenlet_hurts_nobody(
    project: Any,
) -> None:
    """The connection is not passed on in the middle of the statement, nor are the old rows."""
    assert run_function(
        project(),
        SCRIPTS,
        "a_cursor_that_outlives_its_session_in_another_greenlet_hurts_nobody",
        size=1,
        cap=1,
    ) == {"helper": "OperationalError", "innocent": "mine"}


def test_watching_for_leaks_keeps_no_plain_greenlet_alive(project: Any) -> None:
    run_function(
        project(),
        SCRIPTS,
        "watching_for_leaks_keeps_no_plain_greenlet_alive",
        POOLED_SERVE_LEAK_THRESHOLD="5",
    )


def test_a_hand_back_that_is_interrupted_does_not_keep_the_other_databases_from_theirs(
    project: Any, mariadb: Server
) -> None:
    aliases = ("default", "other", "third")
    databases = {alias: mariadb.create_database().django() for alias in aliases}
    closed = run_function(
        project(databases=databases),
        SCRIPTS,
        "a_hand_back_that_is_interrupted_does_not_keep_the_other_databases_from_theirs",
    )
    assert sorted(closed, key=len) == [{}, {}, {"killed": 1}]
