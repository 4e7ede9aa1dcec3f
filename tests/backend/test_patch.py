"""What is patched, under Django's own test runner."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.command import run
from support.django_project import ONE
from support.processes import wait_until
from support.servers import Database, Server

TESTS = """
    from concurrent.futures import ThreadPoolExecutor

    from django.db import connection, transaction
    from django.test import TestCase, TransactionTestCase

    class Both:
        def test_it_is_the_test_database(self):
            with connection.cursor() as cursor:
                cursor.execute("SELECT DATABASE()")
                self.assertTrue(cursor.fetchone()[0].startswith("test_"))
            self.assertEqual(type(connection.connection).__name__, "DatabaseSession")

        def test_it_writes(self):
            with connection.cursor() as cursor:
                cursor.execute("CREATE TEMPORARY TABLE temporary_one (n INT)")
                cursor.execute("INSERT INTO temporary_one VALUES (1)")
                cursor.execute("DROP TEMPORARY TABLE temporary_one")

        def test_a_view_that_needs_a_connection(self):
            self.assertEqual(self.client.get("/one").status_code, 200)

    class InTransaction(Both, TestCase):
        def test_on_commit(self):
            with self.captureOnCommitCallbacks(execute=True) as calls:
                transaction.on_commit(lambda: None)
            self.assertEqual(len(calls), 1)

    class WithoutTransaction(Both, TransactionTestCase):
        pass
"""

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
    (folder / "mysite" / "tests.py").write_text(dedent(TESTS))
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
