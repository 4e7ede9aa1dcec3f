"""--pool-mode transaction: how long a lease lasts, and that nothing else changes for Django."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.netproxy import NetProxy
from support.processes import wait_until
from support.script import run_function
from support.servers import Database, Server
from support.torture import torture

COM_QUERY = 3
SCRIPTS = "backend/transaction_scripts.py"
VIEWS = Path(__file__).with_name("transaction_views.py")
run_in_mode = partial(run_function, POOLED_SERVE_POOL_MODE="transaction")


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def script(project: Any, database: Database) -> Any:
    """Runs a function of SCRIPTS in transaction mode, with an empty table t."""

    def script(function: str, *args: Any, on: Database = database, **settings: Any) -> Any:
        folder = project(databases={"default": on.django(**settings)})
        return run_in_mode(folder, SCRIPTS, "with_table", function, *args)

    return script


# --- How long a lease lasts --------------------------------------------------------------------


@pytest.fixture(params=["mariadb", "mysql"])
def either(request: pytest.FixtureRequest) -> Database:
    """A database on MariaDB, then on MySQL."""
    server: Server = request.getfixturevalue(request.param)
    return server.create_database()


def test_a_lease_lasts_a_statement_or_a_transaction(script: Any, either: Database) -> None:
    script(
        "a_lease_lasts_a_statement_or_a_transaction",
        on=either,
    )


def test_a_statement_that_fails_ends_the_lease_too(script: Any) -> None:
    script("a_statement_that_fails_ends_the_lease_too")


def test_a_pool_without_connections_is_an_operational_error_of_django(script: Any) -> None:
    script("a_pool_without_connections_is_an_operational_error_of_django")


def test_many_requests_share_few_connections_between_their_queries(
    project: Any, serve: Any, mariadb: Server, database: Database
) -> None:
    # Each of them waits for the others between its queries.
    folder = project(VIEWS, databases={"default": database.django()})
    options = ("--pool-mode", "transaction", "--pool-size", "2", "--max-outstanding", "2")
    web = serve(folder, *options)
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(web.get, ["/outside"] * 30))
    assert {(answer.status, answer.text) for answer in answers} == {(200, "2")}
    wait_until(lambda: len(mariadb.admin.processlist(database.user)) <= 2)


def test_greenlets_that_are_killed_lose_no_slot(script: Any) -> None:
    script("greenlets_that_are_killed_lose_no_slot")


def test_a_killed_block_leaves_nothing(script: Any) -> None:
    script("a_killed_block_leaves_nothing")


# --- What it costs -----------------------------------------------------------------------------


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_atomic_costs_a_begin_and_a_commit_and_an_empty_one_nothing(
    project: Any, serve: Any, mariadb: Server, database: Database, proxy: NetProxy, mode: str
) -> None:
    """BEGIN and a statement that only reads are one round trip."""
    mariadb.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    folder = project(VIEWS, databases={"default": database.via(proxy.port).django()})
    web = serve(folder, "--pool-mode", mode)
    web.get("/bare")
    opened = proxy.traffic().accepted

    def sent(path: str) -> tuple[dict[int, int], int]:
        before = proxy.traffic()
        assert web.get(path).status == 200
        after = proxy.traffic()
        return dict(after.commands - before.commands), after.turns - before.turns

    assert sent("/bare") == ({COM_QUERY: 1}, 1)
    assert sent("/block") == ({COM_QUERY: 3}, 2)
    assert sent("/writing_block") == ({COM_QUERY: 3}, 3)
    assert sent("/empty") == ({}, 0)
    assert sent("/twice") == ({COM_QUERY: 6}, 4)
    assert proxy.traffic().accepted == opened


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_insert_returning_tells_no_stranger_s_key(
    project: Any, serve: Any, database: Database, proxy: NetProxy, mode: str
) -> None:
    """Its answer does not say whether it has generated one. To see to that costs no round trip."""
    folder = project(VIEWS, databases={"default": database.via(proxy.port).django()})
    web = serve(folder, "--pool-mode", mode)
    web.get("/tables")

    def turns(path: str, answer: str) -> int:
        before = proxy.traffic().turns
        assert web.get(path).text == answer
        return proxy.traffic().turns - before

    web.get("/no_key")
    opened = proxy.traffic().accepted
    fresh = turns("/no_key", "['none', 0]")
    assert turns("/key", "[1, 1]") == fresh
    assert turns("/no_key", "['none', 0]") == fresh
    assert turns("/key_before", "[2, 'none', 2]") == fresh + 1
    assert turns("/two", "['none', 'none']") == fresh
    assert web.get("/fails").text == "1054 ((0,),)"
    assert turns("/no_key", "['none', 0]") == fresh
    assert proxy.traffic().accepted == opened


def test_plain_django_needs_three_more(project: Any, database: Database, proxy: NetProxy) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    spent = []
    for rounds in (1, 11):
        before = proxy.traffic().commands
        run_function(folder, SCRIPTS, "some_blocks", rounds, pooled=False)
        spent.append((proxy.traffic().commands - before)[COM_QUERY])
    assert spent[1] - spent[0] == 10 * 4


# --- As plain Django ---------------------------------------------------------------------------


@torture
def test_both_modes_do_what_plain_django_does(
    project: Any, database: Database, subtests: pytest.Subtests
) -> None:
    folder = project(databases={"default": database.django()})
    play = partial(run_function, folder, "backend/transaction_scenes.py", "play_all")
    plain = play(pooled=False)
    for mode in ("request", "transaction"):
        pooled = play(POOLED_SERVE_POOL_MODE=mode)
        for scene in plain:
            with subtests.test(scene, mode=mode):
                assert plain[scene]
                assert pooled[scene] == as_with_mysqlclient(plain[scene])


def as_with_mysqlclient(seen: Any) -> Any:
    """What plain Django on PyMySQL has seen, but for the error of a closed connection, which is
    mysqlclient's here."""
    if seen == ["InterfaceError", 0]:
        return ["OperationalError", 2006]
    return [as_with_mysqlclient(each) for each in seen] if isinstance(seen, list) else seen


def test_nothing_of_a_block_survives_its_connection(script: Any, mariadb: Server) -> None:
    script("nothing_of_a_block_survives_its_connection")


def test_a_project_with_atomic_requests(project: Any, serve: Any, database: Database) -> None:
    folder = project(VIEWS, databases={"default": database.django(ATOMIC_REQUESTS=True)})
    web = serve(folder, "--pool-mode", "transaction")
    answers = [web.get(path).status for path in ("/make", "/good", "/bad", "/good")]
    assert answers == [200, 200, 500, 200]
    assert web.get("/rows").text == "((1,), (1,))"


def test_a_project_without_autocommit(script: Any) -> None:
    script(
        "a_project_without_autocommit",
        AUTOCOMMIT=False,
    )


def test_management_commands(project: Any, database: Database) -> None:
    folder = project(
        databases={"default": database.django()},
        settings="""
            INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth",
                              "django.contrib.sessions"]
        """,
    )
    assert run_in_mode(folder, SCRIPTS, "management_commands") == ["ada"]


# --- What pins a lease -------------------------------------------------------------------------


def test_what_touches_the_session_keeps_the_lease_to_the_end(
    script: Any, mariadb: Server, database: Database
) -> None:
    mariadb.admin.query(f"GRANT RELOAD ON *.* TO {database.user}@127.0.0.1")
    script("what_touches_the_session_keeps_the_lease_to_the_end")


def test_what_is_kept_is_there_until_the_end_and_no_longer(script: Any, either: Database) -> None:
    script(
        "what_is_kept_is_there_until_the_end_and_no_longer",
        on=either,
    )


def test_state_that_is_set_in_a_block_lasts_to_the_end_of_the_request(script: Any) -> None:
    script("state_that_is_set_in_a_block_lasts_to_the_end_of_the_request")


def test_unread_results_stay_readable(script: Any) -> None:
    script("unread_results_stay_readable")


# --- What raises -------------------------------------------------------------------------------

ASKS = [
    "SELECT LAST_INSERT_ID()",
    "SELECT FOUND_ROWS()",
    "SELECT ROW_COUNT()",
    "SHOW WARNINGS",
    "SHOW ERRORS",
    "SHOW COUNT(*) WARNINGS",
    "SELECT @@warning_count",
    "SELECT @@session.error_count",
    "SELECT @@last_insert_id",
    "SELECT @@identity",
    "SELECT LASTVAL(q)",
    "SELECT PREVIOUS VALUE FOR q",
    "SELECT @@local.last_insert_id",
    "SELECT @@session . `identity`",
    "SELECT `LAST_INSERT_ID`()",
    "SELECT `last_insert_id` /* ' */ ( -- '\n )",
    "SHOW VARIABLES",
    "SHOW LOCAL VARIABLES LIKE 'identit_'",
    "SHOW STATUS LIKE 'Bytes_sent'",
    "SELECT * FROM information_schema.`session_variables`",
    "GET DIAGNOSTICS @n = NUMBER",
    "GET CURRENT DIAGNOSTICS CONDITION 1 @m = MESSAGE_TEXT",
    "SELECT 1; SHOW WARNINGS",
    "PREPARE s FROM 'SELECT LAST_INSERT_ID()'",
    "SET @key = LAST_INSERT_ID()",
    "SELECT LAST_INSERT_ID(), 'a\\\\b'",
    "SELECT /*!50000 ROW_COUNT() */",
]


def test_a_question_about_the_statement_before_is_refused_outside_a_block(script: Any) -> None:
    script("a_question_about_the_statement_before_is_refused_outside_a_block", ASKS)


def test_a_question_inside_a_block_gets_the_right_answer(script: Any, either: Database) -> None:
    script(
        "a_question_inside_a_block_gets_the_right_answer",
        on=either,
    )


def test_a_block_cannot_read_what_another_request_inserted(script: Any) -> None:
    script("a_block_cannot_read_what_another_request_inserted")


def test_what_no_statement_has_done_was_on_no_other_connection(script: Any) -> None:
    script("what_no_statement_has_done_was_on_no_other_connection")


def test_whose_number_is_known_is_not_another_s(script: Any, either: Database) -> None:
    """A watchdog that kills by number later ends its own query, and nobody else's."""
    script(
        "whose_number_is_known_is_not_another_s",
        on=either,
    )


# --- Escaping ----------------------------------------------------------------------------------


def test_parameters_are_escaped_as_the_connection_that_runs_them_needs(script: Any) -> None:
    script("parameters_are_escaped_as_the_connection_that_runs_them_needs")


def test_requests_with_different_escaping_at_the_same_time(script: Any) -> None:
    script("requests_with_different_escaping_at_the_same_time")


def test_insert_returning(script: Any) -> None:
    script("insert_returning")


def test_a_cursor_is_used_again_and_again(script: Any) -> None:
    script("a_cursor_is_used_again_and_again")
