"""PyMySQL's own tests of results pass on our reader, if its source is at hand.

It is not downloaded: PYMYSQL_SOURCE names a checkout of https://github.com/PyMySQL/PyMySQL, whose
PyMySQL is then the one that is used, once as it is and once with our reader.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.servers import Server

ROOT = Path(__file__).parents[2]
PLUGIN = """
    import json, os, sys
    import pymysql, pymysql.connections
    from pymysql.tests import base

    base.PyMySQLTestCase.databases = json.loads(os.environ["DATABASES"])
    if os.environ["READER"] == "ours":
        from pooled_serve.driver.results import BulkConnection

        for module in [m for name, m in sys.modules.items() if name.startswith("pymysql")]:
            for name in ("Connection", "connect", "Connect"):
                if getattr(module, name, None) is BulkConnection.__base__:
                    setattr(module, name, BulkConnection)
        assert pymysql.connect is BulkConnection
"""


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_pymysqls_own_tests(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = os.environ.get("PYMYSQL_SOURCE")
    if not source:
        pytest.skip("PYMYSQL_SOURCE names no checkout of PyMySQL")
    server: Server = request.getfixturevalue(kind)
    (tmp_path / "reader_plugin.py").write_text(dedent(PLUGIN))
    stock, ours = (run(Path(source), tmp_path, server, reader) for reader in ("stock", "ours"))
    assert len(stock["passed"]) > 100
    assert ours == stock


def run(source: Path, plugin: Path, server: Server, reader: str) -> dict[str, Any]:
    """Names of tests by what became of them."""
    databases: list[dict[str, Any]] = []
    for _ in range(2):
        database = server.create_database()
        server.admin.query(f"GRANT ALL ON *.* TO {database.user}@127.0.0.1 WITH GRANT OPTION")
        server.admin.query("SET GLOBAL local_infile = 1")
        databases.append({**database.connect_args(), "use_unicode": True, "local_infile": True})
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (plugin, source, ROOT))),
        "DATABASES": json.dumps(databases),
        "READER": reader,
    }
    command = [sys.executable, "-m", "pytest", "-p", "reader_plugin", "-p", "no:randomly"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(source), "-rA", "-q"]
    done = subprocess.run(
        [*command, str(source / "pymysql" / "tests")],
        cwd=plugin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found: dict[str, Any] = {}
    for word in ("passed", "failed", "error"):
        names = re.findall(rf"^{word.upper()} (\S+)", done.stdout, re.M)
        found[word] = sorted(name.rpartition("tests/")[2] for name in names)
    assert found["passed"], done.stdout + done.stderr
    return found
