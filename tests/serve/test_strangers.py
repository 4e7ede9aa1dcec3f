"""Nothing of one request reaches another, while workers are killed and clients hang up."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeProject, StartServe
from support.client import BoundWatch
from support.load import Hammer
from support.processes import wait_until
from support.serve import Serve
from support.servers import Server
from support.torture import TORTURE, torture

VIEWS = Path(__file__).with_name("strangers_views.py")
WORKERS = 4
LIMIT = 6
SERVED = 25
"""Answers between two kills: on a busy machine, workers that live for a time would serve nobody."""
KILLS = 20 if TORTURE else 4
CLIENTS: tuple[dict[str, Any], ...] = (
    {"clients": 4, "keepalive": True},
    {"clients": 2, "timeout": 0.02, "every": 0.3},  # these hang up
)
THINGS = ("a_variable", "a_table", "settings", "a_lock", "a_transaction", "a_block")

STAYS = '&stays HTTP/1.1" 200 '
"""In the access log: an answer to a client that has not hung up."""


def load(web: Serve, thing: str, **who: Any) -> Hammer:
    stays = "&stays" if "timeout" not in who else ""
    return Hammer(web.port, f"/left?what={thing}{stays}", seconds=600, **who)


def go_on(web: Serve) -> None:
    """Return when so many more were served."""
    before = web.log.count(STAYS)
    web.wait_until_log(lambda log: log.count(STAYS) >= before + SERVED)


@torture
@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_nobody_finds_what_another_has_left(
    project: MakeProject,
    serve: StartServe,
    kind: str,
    mode: str,
    request: pytest.FixtureRequest,
) -> None:
    server: Server = request.getfixturevalue(kind)
    database = server.create_database()
    server.admin.query(f"CREATE TABLE {database.name}.never (n INT) ENGINE=InnoDB")
    folder = project(VIEWS, databases={"default": database.django()})
    options = ("-w", str(WORKERS), "--max-per-host", str(LIMIT), "--pool-mode", mode)
    web = serve(folder, *options, "--access-logfile", "-")
    wait_until(lambda: len(web.worker_pids()) == WORKERS)
    with ExitStack() as stack:
        watch = stack.enter_context(BoundWatch(server, database))
        loads = [
            stack.enter_context(load(web, thing, **who)) for thing in THINGS for who in CLIENTS
        ]
        for _ in range(KILLS):
            go_on(web)
            with suppress(ProcessLookupError, ValueError):
                os.kill(min(web.worker_pids()), signal.SIGKILL)
        go_on(web)
        for each in loads:
            each.stop()
        outcomes = [outcome.result for each in loads for outcome in each.finish()]
    found = {result: outcomes.count(result) for result in set(outcomes)}
    answers = {result for result in found if isinstance(result, int)}
    assert answers <= {200, 503}, found
    assert found[200] > SERVED * KILLS, found
    assert 0 < watch.peak <= LIMIT + 1, "\n".join(watch.seen)
    wait_until(lambda: len(web.worker_pids()) == WORKERS)
    assert web.get("/rows").text == "(0,)"
    assert "Traceback" not in web.log
