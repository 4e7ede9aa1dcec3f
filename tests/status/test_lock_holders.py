"""Where page and log lead to who holds the lock of a table: true on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pymysql
import pytest

from pooled_serve.status.remedies import LOCK_QUERY, WHO_HOLDS
from support import servers
from support.processes import wait_until
from support.servers import Server

INSTALL = "INSTALL SONAME 'metadata_lock_info'"
VIEWS = {"mariadb": "information_schema.metadata_lock_info", "mysql": "sys.schema_table_lock_waits"}
QUERIES = {
    "mariadb": f"SELECT thread_id AS pid FROM {VIEWS['mariadb']} WHERE table_name = 't'",
    "mysql": f"SELECT blocking_pid AS pid FROM {VIEWS['mysql']}",
}


@pytest.fixture(params=["mariadb", "mysql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, start_mariadb: Callable[..., Server], tmp_path: Path) -> Iterator[Server]:
    if kind == "mariadb":
        yield start_mariadb()
        return
    try:
        made = servers.mysql(tmp_path / "mysql", "--performance-schema=ON")  # its default
    except servers.ServerMissing as missing:
        pytest.skip(str(missing))
    with made:
        yield made


def test_who_holds_the_lock_of_a_table(kind: str, server: Server) -> None:
    assert VIEWS[kind] in WHO_HOLDS
    if kind == "mariadb":
        assert INSTALL in WHO_HOLDS
        try:
            server.admin.query(INSTALL)
        except Exception as error:
            if "cannot open shared object" not in str(error):
                raise
            pytest.skip("this MariaDB comes without the plugin")
    args = server.create_database().connect_args()
    with closing(pymysql.connect(**args)) as holder, closing(pymysql.connect(**args)) as waiter:
        with holder.cursor() as cursor:
            cursor.execute("CREATE TABLE t (id INT)")
            cursor.execute("LOCK TABLES t WRITE")

        def waits() -> bool:
            rows = server.admin.query("SHOW PROCESSLIST")
            return "Waiting for table metadata lock" in str(rows)

        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(waiter.cursor().execute, "SELECT * FROM t")
            try:
                wait_until(waits)
                found = {row["pid"] for row in server.admin.query(QUERIES[kind])}
                assert holder.thread_id() in found
                assert server.admin.query(LOCK_QUERY) == []  # that is about rows
            finally:
                server.admin.query(f"KILL {holder.thread_id()}")
            assert answer.result() == 0
