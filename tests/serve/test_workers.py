"""More workers or larger caps than at the start: the budget is judged again."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pymysql
import pytest

from conftest import MakeProject, StartServe
from support.django_project import rewrite
from support.processes import wait_until
from support.serve import Serve
from support.servers import Server
from support.torture import torture

HELLO = """
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")
"""
LIMIT = 30


@pytest.fixture
def small(start_mariadb: Callable[..., Server]) -> Server:
    return start_mariadb(f"--max-connections={LIMIT}")


def tell(server: Serve, number: int, workers: int) -> None:
    server.signal(number)
    wait_until(lambda: len(server.worker_pids()) == workers)


def warnings(server: Serve) -> list[str]:
    return re.findall(r"\[WARNING\] (PS20\d .*\n  → .*)\n", server.log)


def test_ttin_beyond_the_budget_is_worth_a_warning(
    project: MakeProject, serve: StartServe, small: Server
) -> None:
    database = small.create_database()
    folder = project(HELLO, databases={"default": database.django()})
    server = serve(folder, "-w", "1", "--max-outstanding", "12")
    tell(server, signal.SIGTTIN, 2)
    assert not warnings(server)
    tell(server, signal.SIGTTIN, 3)
    (first,) = wait_until(lambda: warnings(server))
    assert first.startswith(
        f"PS201 127.0.0.1:{database.port} 3 workers × 12 connections = 36, "
        f"the server allows {LIMIT} "
    )
    assert re.search(
        r"\(\d in use at the start\)\n  → use --max-per-host \d+ \(best: the workers "
        r"share them\), or --max-outstanding \d+, which",
        first,
    )
    tell(server, signal.SIGTTIN, 4)
    assert "4 workers × 12 connections = 48" in wait_until(lambda: warnings(server)[1:])[0]
    tell(server, signal.SIGTTOU, 3)
    assert "3 workers × 12 connections = 36" in wait_until(lambda: warnings(server)[2:])[0]
    tell(server, signal.SIGTTOU, 2)
    server.wait_for_log("2 workers fit the connection budget again")
    assert len(warnings(server)) == 3
    assert server.get("/hello").status == 200


@torture
def test_hup_with_more_is_worth_a_warning_or_refused(
    project: MakeProject, serve: StartServe, small: Server
) -> None:
    database = small.create_database()
    folder = project(HELLO, databases={"default": database.django()})
    conf = folder / "gunicorn.conf.py"
    conf.write_text("workers, max_outstanding = 2, 8\n")
    with ExitStack() as stack:
        for _ in range(8):
            connection = pymysql.connect(
                host=database.host,
                port=database.port,
                user=database.user,
                password=database.password,
            )
            stack.callback(connection.close)
        server = serve(folder)

    def hang_up(source: str) -> None:
        before = server.worker_pids()
        rewrite(conf, source)
        server.signal(signal.SIGHUP)
        wait_until(lambda: (new := server.worker_pids()) and not before & new)

    assert not warnings(server)
    hang_up("workers, max_outstanding = 3, 8\n")
    (first,) = warnings(server)
    found = re.search(
        r"3 workers × 8 connections = 24, but (\d+) of 30 were in use at the start", first
    )
    assert found
    assert 8 <= int(found[1]) <= 13
    hang_up("workers, max_outstanding = 2, 13\n")  # as many workers, and larger caps
    assert "2 workers × 13 connections = 26, but" in warnings(server)[1]
    hang_up("workers, max_outstanding = 4, 8\n")
    assert (
        "the old options stay (the workers are replaced, and load the project anew): PS201"
        in server.log
    )
    assert re.search(r"4 workers × 8 connections = 32, .* in use at the start", server.log)


def test_what_was_a_note_at_the_start_is_no_warning_later_on(
    project: MakeProject, serve: StartServe, small: Server
) -> None:
    folder = project(HELLO, databases={"default": small.create_database().django()})
    server = serve(folder, "-w", "3", "--max-outstanding", "9")  # which leaves 3 of 30
    server.signal(signal.SIGHUP)
    server.wait_for_log("Reloaded")
    server.wait_for_log("Booting worker", times=6)
    tell(server, signal.SIGTTOU, 2)
    assert "WARNING" not in server.log
    assert "fit the connection budget again" not in server.log, "they always did"


def test_the_users_own_hook_runs(project: MakeProject, serve: StartServe) -> None:
    folder = project(HELLO, databases={})
    (folder / "gunicorn.conf.py").write_text(
        "def nworkers_changed(server, new, old): print('hook', old, new, flush=True)\n"
    )
    server = serve(folder)
    tell(server, signal.SIGTTIN, 2)
    assert "hook None 1\n" in server.log
    assert "hook 1 2\n" in server.log
