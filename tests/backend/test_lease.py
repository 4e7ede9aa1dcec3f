"""What Django holds as its connection: what it answers, what may be done with it, how long it has
a connection of the pool's."""

from __future__ import annotations

from typing import Any

import pytest

from support.script import run_function
from support.servers import Database, Server
from support.torture import torture

SCRIPTS = "backend/lease_scripts.py"
MODES = ["request", "transaction"]


@pytest.fixture(params=["mariadb", "mysql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A database on MariaDB, then on MySQL."""
    server: Server = request.getfixturevalue(request.param)
    return server.create_database()


# --- Questions about the statement before ------------------------------------------------------

QUESTIONS = [
    *("SELECT LAST_INSERT_ID()", "SELECT @@last_insert_id", "SELECT @@identity"),
    *("SELECT ROW_COUNT()", "SELECT FOUND_ROWS()", "SELECT @@warning_count, @@error_count"),
    *("SHOW WARNINGS", "SHOW ERRORS", "SHOW COUNT(*) WARNINGS"),
    *("c.insert_id()", "c.affected_rows()", "c.show_warnings()"),
]
SEQUENCE = ["SELECT LASTVAL(q)", "SELECT PREVIOUS VALUE FOR q"]  # MariaDB's
UPDATE = "UPDATE t SET s = 'b' WHERE id < 3"
BEFORE: list[list[str]] = [
    [],
    ["SELECT 1"],
    ["SELECT id FROM t LIMIT 2"],
    ["SET @x = 1"],
    [UPDATE],
    ["INSERT INTO t (s) VALUES ('own')"],
    ["INSERT IGNORE INTO t (id) VALUES (1)"],
    ["INSERT IGNORE INTO t (id) VALUES (1)", "SHOW COUNT(*) WARNINGS"],
    ["SELECT nonsense"],
    ["SELECT SQL_CALC_FOUND_ROWS id FROM t LIMIT 1"],
    ["CALL inserts()"],
]


def test_a_question_is_answered_as_on_a_connection_of_its_own(
    project: Any, either: Database, mariadb: Server
) -> None:
    sequence = either.port == mariadb.port
    questions = QUESTIONS + (SEQUENCE if sequence else [])
    answers = []
    for pooled in (False, True):
        folder = project(databases={"default": either.django()})
        run_function(folder, SCRIPTS, "drop_all", sequence, pooled=False)
        ask = ("ask_all", BEFORE, questions, UPDATE, pooled, sequence)
        answers.append(run_function(folder, SCRIPTS, *ask, pooled=pooled, size=1, cap=1))
    plain, found = answers
    assert found == plain


def test_where_sessions_are_not_reset_a_question_takes_a_fresh_connection(project: Any) -> None:
    run_function(
        project(),
        SCRIPTS,
        "where_sessions_are_not_reset_a_question_takes_a_fresh_connection",
        POOLED_SERVE_POOL_RESET="rollback",
    )


# --- When a lease begins -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_block_without_a_query_needs_no_connection(project: Any, mode: str) -> None:
    run_function(
        project(),
        SCRIPTS,
        "a_block_without_a_query_needs_no_connection",
        POOLED_SERVE_POOL_MODE=mode,
    )


def test_ensure_connection_takes_one(project: Any) -> None:
    run_function(project(), SCRIPTS, "ensure_connection_takes_one")


# --- Statements inside of others ---------------------------------------------------------------


def test_statements_inside_of_others_do_what_they_do_in_plain_django(
    project: Any, mariadb: Server
) -> None:
    plain = run_function(project(), SCRIPTS, "nest_all", pooled=False)
    for mode in MODES:
        assert run_function(project(), SCRIPTS, "nest_all", POOLED_SERVE_POOL_MODE=mode) == plain


# --- Direct use --------------------------------------------------------------------------------


@torture
@pytest.mark.parametrize("mode", MODES)
def test_what_was_used_directly_is_closed(project: Any, mode: str) -> None:
    run_function(
        project(), SCRIPTS, "what_was_used_directly_is_closed", POOLED_SERVE_POOL_MODE=mode
    )


@pytest.mark.parametrize("mode", MODES)
def test_attributes_of_the_connection_can_be_read_and_written(project: Any, mode: str) -> None:
    run_function(
        project(),
        SCRIPTS,
        "attributes_of_the_connection_can_be_read_and_written",
        POOLED_SERVE_POOL_MODE=mode,
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_django_and_its_cursors_use_is_no_direct_use(project: Any, mode: str) -> None:
    run_function(
        project(),
        SCRIPTS,
        "what_django_and_its_cursors_use_is_no_direct_use",
        POOLED_SERVE_POOL_MODE=mode,
    )
