"""Group Replication: MySQL servers of which one takes writes, and the next when it is lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support import servers
from support.client import Admin, Row
from support.ports import free_port
from support.processes import wait_until
from support.servers import Server

REPLICATOR = "replicator"
LOOK = (
    "SELECT member_port AS port, member_state AS state, member_role AS role"
    " FROM performance_schema.replication_group_members"
)


def members(server: Server) -> list[Row]:
    """As this one sees the group."""
    return server.admin.query(LOOK)


def is_primary(server: Server) -> bool:
    return {"port": server.port, "state": "ONLINE", "role": "PRIMARY"} in members(server)


@contextmanager
def group(folder: Path, count: int) -> Iterator[list[Server]]:
    """The first is the primary; the next one follows it, when it is lost.

    Raise ServerMissing where there is no MySQL.
    """
    ports = [free_port() for _ in range(count)]
    name = str(uuid.uuid4())
    made: list[Server] = []
    with ExitStack() as stack:
        for number, port in enumerate(ports, 1):
            server = servers.mysql(
                folder / f"member{number}",
                *("--log-bin", "--gtid-mode=ON", "--enforce-gtid-consistency=ON"),
                *("--performance-schema=ON", f"--server-id={number}", "--report-host=127.0.0.1"),
                "--plugin-load-add=group_replication.so",
                f"--group-replication-group-name={name}",
                f"--group-replication-local-address=127.0.0.1:{port}",
                "--group-replication-group-seeds=" + ",".join(f"127.0.0.1:{p}" for p in ports),
                "--group-replication-start-on-boot=OFF",
                "--group-replication-recovery-get-public-key=ON",
                "--group-replication-member-expel-timeout=0",
                f"--group-replication-member-weight={100 - number}",
            )
            if made:  # accounts are replicated
                server._password = made[0]._password
                server.admin = Admin(server.admin_url())
            server.directory.mkdir(parents=True)
            server._create_data()
            (server._data / "auto.cnf").unlink(missing_ok=True)  # its identity, in a copy
            stack.enter_context(server)
            _join(server, found=not made)
            made.append(server)
        wait_until(lambda: [row["state"] for row in members(made[0])] == ["ONLINE"] * count)
        yield made


def _join(server: Server, *, found: bool) -> None:
    run = server.admin.query
    run("SET SESSION sql_log_bin = 0")
    run(f"CREATE USER {REPLICATOR}@'%%' IDENTIFIED BY %s", server._password)
    run(f"GRANT REPLICATION SLAVE, GROUP_REPLICATION_STREAM ON *.* TO {REPLICATOR}@'%'")
    run("SET SESSION sql_log_bin = 1")
    run("RESET BINARY LOGS AND GTIDS")
    run(f"SET GLOBAL group_replication_bootstrap_group = {int(found)}")
    run("START GROUP_REPLICATION USER = %s, PASSWORD = %s", REPLICATOR, server._password)
    run("SET GLOBAL group_replication_bootstrap_group = 0")
