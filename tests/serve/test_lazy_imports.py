"""Lazy imports (PEP 810) delay no import past the time when gevent patches."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.command import run
from support.django_project import APP
from support.serve import Serve
from support.servers import Database, Server
from support.site import VIEWS, Site

pytestmark = pytest.mark.skipif(
    not hasattr(sys, "set_lazy_imports"), reason="this Python has no lazy imports"
)
LAZY = {"PYTHON_LAZY_IMPORTS": "all"}
CAP = 3


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_greenlets_share_connections_when_all_imports_are_lazy(
    project: Callable[..., Path],
    serve: Callable[..., Serve],
    mariadb: Server,
    database: Database,
    options: tuple[str, ...],
) -> None:
    folder = project(VIEWS, databases={"default": database.django()})
    server = serve(folder, "--max-outstanding", str(CAP), *options, env=LAZY)
    site = Site(server, mariadb.admin, database, CAP)
    with ThreadPoolExecutor(12) as threads:
        for status in threads.map(lambda _: site.run("SELECT SLEEP(0.05)").status, range(24)):
            assert status == 200
    assert site.run("SET @x = 1").status == 200
    assert site.run("SELECT @x").json() == [["None"]]
    site.assert_whole()
    assert "Traceback" not in server.log


def test_the_plan_is_the_same(project: Callable[..., Path], database: Database) -> None:
    folder = project(VIEWS, databases={"default": database.django()})
    eager, lazy = (run(APP, "--check", cwd=folder, env=env) for env in ({}, LAZY))
    said = [re.sub(r" *\d+\.\d+m?s", " a while", done.stdout) for done in (eager, lazy)]
    assert said[0] == said[1]
    assert (lazy.code, lazy.stderr) == (0, eager.stderr)
