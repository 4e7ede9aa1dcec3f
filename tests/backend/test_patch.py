"""What is patched, under Django's own test runner."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from support.command import run
from support.django_project import ONE
from support.processes import wait_until
from support.servers import Database, Server

TESTS = Path(__file__).with_name("project_tests.py")

PATCHED = """
    from pooled_serve import pooling

    pooling.set_pool_size(1, max_outstanding=2, timeout=30)
    pooling.apply_patch()
"""


@pytest.mark.parametrize("options", [[], ["--parallel", "2"]], ids=["one", "parallel"])
def test_the_test_runner_works_through_the_pool(
    options: list[str], project: Any, mariadb: Server, database: Database, tmp_path: Path
) -> None:
    for host in ("127.0.0.1", "localhost"):
        mariadb.admin.query(f"GRANT ALL ON `test\\_{database.name}%`.* TO {database.user}@{host}")
    folder = project(ONE, databases={"default": database.django()}, settings=PATCHED)
    (folder / "mysite" / "tests.py").write_text(TESTS.read_text())
    # The databases of parallel runs are cloned with these programs; there is nothing to clone.
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mysqldump", "mysql"):
        (programs / name).write_text("#!/bin/sh\nexec cat /dev/null\n")
        (programs / name).chmod(0o755)
    done = run(
        "test",
        "mysite",
        "--noinput",
        *options,
        cwd=folder,
        env={
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        },
        command=(sys.executable, "-m", "django"),
    )
    assert done.code == 0, done.output
    assert "Ran 7 tests" in done.output
    assert "Traceback" not in done.output
    wait_until(lambda: not mariadb.admin.processlist(database.user))
