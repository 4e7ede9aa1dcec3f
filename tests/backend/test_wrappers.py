"""Django's wrappers over pooled connections: what projects see of it, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.django_project import ONE
from support.netproxy import NetProxy
from support.processes import wait_until
from support.script import run_function
from support.servers import Database, Server

SCRIPTS = "backend/wrappers_scripts.py"

COM_QUIT, COM_QUERY, COM_PING, COM_RESET_CONNECTION = 1, 3, 14, 0x1F


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


# --- What it costs -----------------------------------------------------------------------------


def test_a_request_on_a_warm_connection_adds_no_round_trip(
    project: Any, serve: Any, database: Database, proxy: NetProxy
) -> None:
    web = serve(project(ONE, databases={"default": database.via(proxy.port).django()}))
    web.get("/one")
    before = proxy.traffic()
    with web.keepalive() as client:
        ids = {client.get("/one").text for _ in range(10)}
    ids |= {web.get("/one").text for _ in range(10)}
    after = proxy.traffic()
    assert after.commands - before.commands == {COM_QUERY: 20}
    assert after.accepted == before.accepted
    assert len(ids) == 1


def test_connecting_costs_few_round_trips(
    project: Any, database: Database, proxy: NetProxy
) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    run_function(folder, SCRIPTS, "connecting_costs_few_round_trips")
    # Each: SET NAMES, wait_timeout, isolation level. Once: what Django wants to know of a server.
    # Twice, if both ask at the same time. And in one round trip, what a login does: two resets,
    # with four statements each (role, SET NAMES, isolation level, autocommit), and three looks of
    # three statements.
    traffic = proxy.traffic()
    assert traffic.commands[COM_RESET_CONNECTION] == 2
    assert 7 + 17 <= traffic.commands[COM_QUERY] <= 8 + 17
    wait_until(lambda: proxy.traffic().commands[COM_QUIT] == 2)


# --- Wrappers and leases -----------------------------------------------------------------------


def test_each_greenlet_has_a_wrapper_of_its_own_and_they_share_a_connection(script: Any) -> None:
    wrappers, ids = script("each_greenlet_has_a_wrapper_of_its_own_and_they_share_a_connection")
    assert wrappers == 5
    assert len(set(ids)) == 1


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize(
    "left",
    [
        "connection.tenant = 'one'",
        "connection.ops.quote_name = lambda name: 'other'",
        "connection.features.uses_savepoints = False",
        "connection.mysql_server_data['version'] = '5.5.0'",
        "connection.sql_mode.add('NO_ZERO_DATE_EITHER')",
        "connection.settings_dict['OPTIONS']['init_command'] = 'SET @left = 1'",
        "connection.in_atomic_block = True",
        "connection.execute_wrappers.append(lambda *args: 1 / 0)",
        "connection.force_debug_cursor = True; run('SELECT 1')",
        "connections['default'] = connections['other']; run('SELECT 1')",
        "connections['other'] = connections['default']; run('SELECT 1', alias='other')",
        "connections['unknown'] = connections['default'].copy('unknown');"
        " run('SELECT 1', alias='unknown')",
        "run('SELECT 1'); del connections['default']",
        "run('SELECT 1'); connections['default'] = connections['default'].copy()",
        "transaction.atomic().__enter__(); run('SELECT 1'); del connections['default']",
        "run('SELECT 1', alias='lite')",
        "connections['lite'].execute_wrappers.append(lambda *args: 1 / 0)",
    ],
)
def test_what_a_request_leaves_in_a_wrapper_ends_with_it(
    project: Any, mariadb: Server, tmp_path: Path, left: str, mode: str
) -> None:
    databases = {
        "default": mariadb.create_database().django(),
        "other": mariadb.create_database().django(),
        "lite": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "db"),
            "CONN_MAX_AGE": 60,
        },
    }
    before = mariadb.admin.aborted_clients()
    run_function(
        project(databases=databases),
        SCRIPTS,
        "what_a_request_leaves_in_a_wrapper_ends_with_it",
        left,
        POOLED_SERVE_POOL_MODE=mode,
    )
    assert mariadb.admin.aborted_clients() == before


def test_greenlets_that_are_the_first_to_ask_share_one_pool(script: Any) -> None:
    script("greenlets_that_are_the_first_to_ask_share_one_pool")


def test_whatever_conn_max_age_says_the_request_ends_the_lease(
    project: Any, mariadb: Server
) -> None:
    ages = {"default": 0, "minute": 60, "hour": 3600, "ever": None}
    databases = {
        alias: mariadb.create_database().django(CONN_MAX_AGE=age, CONN_HEALTH_CHECKS=True)
        for alias, age in ages.items()
    }
    run_function(
        project(databases=databases),
        SCRIPTS,
        "whatever_conn_max_age_says_the_request_ends_the_lease",
    )


def test_a_receiver_of_connection_created_that_fails_does_not_keep_the_lease(script: Any) -> None:
    script(
        "a_receiver_of_connection_created_that_fails_does_not_keep_the_lease",
        CONN_MAX_AGE=60,
    )


def test_connection_created_is_sent_at_each_lease(script: Any) -> None:
    script("connection_created_is_sent_at_each_lease")


def test_a_project_without_autocommit_must_commit_itself(script: Any) -> None:
    script(
        "a_project_without_autocommit_must_commit_itself",
        AUTOCOMMIT=False,
    )


def test_closing_inside_atomic_gives_back_and_rolls_back(script: Any) -> None:
    script("closing_inside_atomic_gives_back_and_rolls_back")


def test_a_cursor_that_is_kept_does_not_run_on_somebody_elses_connection(script: Any) -> None:
    script("a_cursor_that_is_kept_does_not_run_on_somebody_elses_connection")


def test_copies_and_the_connection_without_a_database_are_not_pooled(script: Any) -> None:
    script("copies_and_the_connection_without_a_database_are_not_pooled")


def test_is_usable_knows_a_dead_connection_and_asks_nobody(
    project: Any, database: Database, proxy: NetProxy
) -> None:
    folder = project(databases={"default": database.via(proxy.port).django()})
    run_function(folder, SCRIPTS, "is_usable_knows_a_dead_connection_and_asks_nobody")
    assert proxy.traffic().commands[COM_PING] == 0


def test_another_server_version_is_noticed(script: Any) -> None:
    script("another_server_version_is_noticed")


def test_cursor_classes_that_are_made_anew_do_not_pile_up(script: Any) -> None:
    script("cursor_classes_that_are_made_anew_do_not_pile_up")


def test_a_django_that_asks_for_a_later_mysqlclient_starts(
    project: Any, database: Database
) -> None:
    """PyMySQL poses as one, as Django's MySQL backend asks for a minimum."""
    folder = project(databases={"default": database.django()})
    run_function(folder, SCRIPTS, "a_django_that_asks_for_a_later_mysqlclient_starts")
