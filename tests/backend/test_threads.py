"""Real threads connect as without a pool; async code is right or refused, never silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pooled_serve.preflight.project import ASYNC_STALLS
from support.script import run_function
from support.servers import Database, Server

SCRIPTS = "backend/threads_scripts.py"


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def script(project: Any, database: Database) -> Any:
    def script(function: str, *, gevent: bool = True, views: str | Path = "") -> Any:
        folder = project(views, databases={"default": database.django(CONN_MAX_AGE=60)})
        return run_function(folder, SCRIPTS, function, gevent=gevent)

    return script


def test_gevents_threadpool_gets_plain_connections_which_are_closed(script: Any) -> None:
    script("gevents_threadpool_gets_plain_connections_which_are_closed")


@pytest.mark.parametrize("gevent", [True, False])
def test_a_real_thread_is_not_pooled_and_its_connection_ends_with_it_at_the_latest(
    script: Any, gevent: bool
) -> None:
    script(
        "a_real_thread_is_not_pooled_and_its_connection_ends_with_it_at_the_latest",
        gevent=gevent,
    )


@pytest.mark.parametrize("gevent", [True, False])
def test_a_thread_that_is_the_first_to_ask_does_not_become_the_pools(
    script: Any, gevent: bool
) -> None:
    script(
        "a_thread_that_is_the_first_to_ask_does_not_become_the_pools",
        gevent=gevent,
    )


def test_many_real_threads_at_once_do_not_disturb_the_pool(script: Any) -> None:
    script("many_real_threads_at_once_do_not_disturb_the_pool")


def test_a_lease_that_dies_in_another_thread_comes_back(script: Any) -> None:
    script("a_lease_that_dies_in_another_thread_comes_back")


def test_gevents_own_threads_are_greenlets_and_pooled(script: Any) -> None:
    script("gevents_own_threads_are_greenlets_and_pooled")


@pytest.mark.skipif(ASYNC_STALLS, reason="here they may never end: gevent issue 2213")
def test_async_views_get_right_answers(script: Any) -> None:
    script(
        "async_views_get_right_answers",
        views=Path(__file__).with_name("threads_views.py"),
    )


def test_the_process_says_goodbye_also_for_connections_of_threads_that_closed_theirs(
    script: Any, mariadb: Server, database: Database
) -> None:
    before = mariadb.admin.aborted_clients()
    script("the_process_says_goodbye_also_for_connections_of_threads_that_closed_theirs")
    assert mariadb.admin.aborted_clients() == before
