"""A statement whose connection is dead runs on a fresh one, where that loses nothing.

What a restart of the server under load costs is in serve/test_outages.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from pooled_serve.driver import reads
from pooled_serve.driver.statements import classify
from support.script import run_function
from support.servers import Database, Server
from support.torture import TORTURE

SCRIPTS = "backend/again_scripts.py"


@pytest.fixture(params=["mariadb", "mysql"])
def folder(request: pytest.FixtureRequest, project: Any) -> Any:
    server: Server = request.getfixturevalue(request.param)
    database: Database = server.create_database()
    return project(databases={"default": database.django()})


def test_what_loses_nothing_runs_on_a_fresh_connection(folder: Any) -> None:
    run_function(folder, SCRIPTS, "what_loses_nothing_runs_on_a_fresh_connection")


def test_what_would_lose_something_fails(folder: Any) -> None:
    run_function(folder, SCRIPTS, "what_would_lose_something_fails")


def test_after_a_read_timeout_nothing_runs_again(folder: Any) -> None:
    run_function(folder, SCRIPTS, "after_a_read_timeout_nothing_runs_again")


def test_who_is_killed_while_a_fresh_one_is_leased_leaves_nothing(folder: Any) -> None:
    run_function(folder, SCRIPTS, "who_is_killed_while_a_fresh_one_is_leased_leaves_nothing")


def test_after_a_value_that_cannot_be_converted_all_goes_on(folder: Any) -> None:
    run_function(folder, SCRIPTS, "after_a_value_that_cannot_be_converted_all_goes_on")


@pytest.mark.parametrize("how", ["Timeout", "kill", "read_timeout"])
def test_a_connection_closed_by_its_own_side_is_replaced_and_says_why(
    folder: Any, how: str
) -> None:
    function = "a_connection_closed_by_its_own_side_is_replaced_and_says_why"
    run_function(folder, SCRIPTS, function, how)


def test_what_the_program_handles_meanwhile_is_no_tcp_reset(folder: Any) -> None:
    function = "what_the_program_handles_meanwhile_is_no_tcp_reset"
    run_function(folder, SCRIPTS, function)


def test_listeners_are_told(folder: Any) -> None:
    (told,) = run_function(folder, SCRIPTS, "listeners_are_told")
    assert told == "(2006, 'the server has closed the connection')"


def test_cursors_of_ones_own_class_run_again(folder: Any) -> None:
    run_function(folder, SCRIPTS, "cursors_of_one_s_own_class_run_again")


def test_after_a_statement_in_a_parameter_it_is_not_taken_for_that(folder: Any) -> None:
    function = "after_a_statement_in_a_parameter_it_is_not_taken_for_that"
    assert run_function(folder, SCRIPTS, function) == 1, "it was sent twice"


def test_rows_that_wait_to_be_read_are_no_sign_of_death(folder: Any) -> None:
    run_function(folder, SCRIPTS, "rows_that_wait_to_be_read_are_no_sign_of_death")


@pytest.mark.parametrize("known", [True, False])
def test_what_somebody_ends_does_not_run_again(folder: Any, known: bool) -> None:
    """Also where the server has not said who it is."""
    times = 10 if TORTURE else 3
    run_function(folder, SCRIPTS, "what_somebody_ends_does_not_run_again", times, known)


def test_no_stored_function_is_taken_for_one_of_the_servers(folder: Any) -> None:
    names = [f"{name}(" for name in sorted(reads.FUNCTIONS | reads.WORDS)]
    names += [f"{name} (" for name in sorted(reads.WORDS)]
    plain = [name for name in names if classify(f"SELECT {name}1)").repeatable]
    assert len(plain) > 200
    assert run_function(folder, SCRIPTS, "functions_that_write", plain) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select `a`.`id`, count(*) from `t` `a` where `id` in (%s, %s) group by `id`",
        "SELECT COALESCE(MAX(x), 0), DATE_FORMAT(d, '%%Y'), CAST(x AS CHAR(9)) FROM t FOR UPDATE",
        "(SELECT a FROM t) UNION ALL (SELECT b FROM u) ORDER BY 1",
        "SELECT x, ROW_NUMBER() OVER (PARTITION BY y ORDER BY z) FROM t WHERE EXISTS (SELECT 1)",
        "SHOW TABLES",
        "DESCRIBE t",
    ],
)
def test_what_only_reads_is_known(sql: str) -> None:
    assert classify(sql).repeatable


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET x = 1",
        "DELETE FROM t",
        "REPLACE INTO t VALUES (1)",
        "WITH a AS (SELECT 1) DELETE FROM t",
        "CALL f()",
        "SELECT f(1)",  # may write
        "SELECT `f`(1)",
        "SELECT a.f(1)",
        "SELECT COUNT(f (1)) FROM t",
        "SELECT count (1)",  # without IGNORE_SPACE
        "SELECT `count`(1)",
        "SELECT `offset`/* */(1)",
        'SELECT "in" (1)',
        "SELECT 1 INTO OUTFILE '/tmp/x'",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT NEXTVAL(s)",
        "SELECT GET_LOCK('x', 1)",
        "SELECT LAST_INSERT_ID()",
        "SELECT CONNECTION_ID()",
        "SELECT @x",
        "SELECT 1; SELECT 2",
        "BEGIN",
        "COMMIT",
        "CREATE TABLE t (x INT)",
    ],
)
def test_what_may_write_is_not_taken_for_a_read(sql: str) -> None:
    assert not classify(sql).repeatable


def test_a_long_word_is_read_in_no_time() -> None:
    assert not classify(f"SELECT f(0x{'ab' * 500_000})").repeatable
