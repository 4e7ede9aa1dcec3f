"""After the last request: hooks, exit handlers and threads can query, and say goodbye."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from support.script import run_function
from support.servers import Database, Server
from support.torture import torture

LAST_QUERIES = Path(__file__).with_name("last_queries_views.py")
LAST_HOOKS = """
import atexit
import sys

def atexit_of_conf():
    if "mysite.views" in sys.modules:  # not so in the master
        sys.modules["mysite.views"].note("conf")

atexit.register(atexit_of_conf)

def worker_exit(server, worker):
    from mysite.views import note
    note("hook")
"""


@pytest.fixture
def last_queries(project: Any, database: Database, mariadb: Server) -> Path:
    mariadb.admin.query(f"CREATE TABLE {database.name}.notes (what TEXT) ENGINE=InnoDB")
    folder: Path = project(LAST_QUERIES, databases={"default": database.django()})
    (folder / "gunicorn.conf.py").write_text(LAST_HOOKS)
    return folder


def notes(mariadb: Server, database: Database) -> list[str]:
    return [row["what"] for row in mariadb.admin.query(f"SELECT what FROM {database.name}.notes")]


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_hooks_and_exit_handlers_can_query_and_say_goodbye(
    last_queries: Path,
    serve: Any,
    mode: str,
    preload: tuple[str, ...],
    database: Database,
    mariadb: Server,
    no_aborts: None,
) -> None:
    web = serve(last_queries, "--pool-mode", mode, *preload)
    assert web.get("/one").status == 200
    web.stop()
    said = notes(mariadb, database)
    # What is loaded before the fork is told of by the master, too.
    assert said[:5] == ["request", "hook", "thread", "atexit", "conf"], web.log
    assert "Traceback" not in web.log


@torture
@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_threads_that_never_end_do_not_keep_the_process(
    last_queries: Path, serve: Any, mode: str, database: Database, mariadb: Server, no_aborts: None
) -> None:
    web = serve(last_queries, "--pool-mode", mode, "--graceful-timeout", "60")
    assert web.get("/daemon").status == 200
    assert web.get("/no_daemon").status == 200
    web.signal(signal.SIGTERM)
    assert web.wait(30) == 0  # not killed after the minute that gunicorn gives it
    assert notes(mariadb, database) == ["hook", "thread", "atexit", "conf"]


def test_exit_handlers_of_a_script_can_query(
    project: Any, database: Database, mariadb: Server, no_aborts: None
) -> None:
    mariadb.admin.query(f"CREATE TABLE {database.name}.notes (what TEXT) ENGINE=InnoDB")
    folder = project(databases={"default": database.django()})
    run_function(folder, "serve/last_queries_scripts.py", "query_at_exit")
    assert notes(mariadb, database) == ["script", "atexit"]
