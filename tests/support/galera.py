"""A Galera cluster of private servers on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pymysql
import pytest

from support import servers
from support.client import Admin
from support.ports import free_port
from support.processes import resume, suspend, wait_until
from support.servers import USER, Server

LIBRARY = Path("/usr/lib/galera/libgalera_smm.so")

needs_galera = pytest.mark.skipif(
    not LIBRARY.exists(), reason=f"there is no Galera here: {LIBRARY}, Debian's galera-4"
)

SILENT_SECONDS = 3
"""After so many seconds without a word from a node, the others take it for lost. By default it is
5; with 2 they lose each other on a busy machine."""

CHECK_SECONDS = 3
"""A busy machine may keep a node, or these checks, from an answer for longer than a second. Two of
them that fail cut all clients of a node, and what they had in flight is lost."""

_scratch = tempfile.TemporaryDirectory(prefix="pooled-serve-tests-")


class Node(Server):
    """A server that joins the cluster whenever it starts, or founds it if no other node runs."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        super().__init__(directory, server=servers.mariadb_program())
        self.cluster = cluster
        self.group_port = free_port()
        # Changes of accounts go to all nodes, so that the password is the same on all of them, too.
        self._password = cluster.nodes[0]._password if cluster.nodes else self._password
        self.admin = Admin(self.admin_url())

    def start(self) -> None:
        """Return once it has all that the others have."""
        self.extra_options = self._options()
        super().start()
        wait_until(self.is_ready)

    def status(self, name: str) -> str:
        (row,) = self.admin.query("SHOW STATUS LIKE %s", name)
        return str(row["Value"])

    def is_ready(self) -> bool:
        try:
            return self.status("wsrep_ready") == "ON"
        except pymysql.OperationalError:  # one that joins may cut its first connections
            return False

    def times_lost(self) -> int:
        """How often it has found itself without the others."""
        return self._log.read_text(errors="replace").count("Received NON-PRIMARY")

    def isolate(self, *, on: bool) -> None:
        """Cut it off from the others, or let it join them again."""
        self.admin.query(f"SET GLOBAL wsrep_provider_options='gmcast.isolate={int(on)}'")
        wait_until(lambda: self.is_ready() is not on)

    def suspend(self) -> None:
        assert self.pid
        suspend({self.pid})

    def resume(self) -> None:
        assert self.pid
        resume({self.pid})

    def _create_data(self) -> None:
        """Those of a node that has already been in a cluster: then it lacks little, and the others
        have that in their cache."""
        seed = Path(_scratch.name, "seed")
        if not seed.exists():
            super()._create_data()
            self.extra_options = self._options()
            self._run_server()
            assert self._process
            self._process.terminate()
            self._process.wait()
            (self._data / "galera.cache").unlink()
            state = self._data / "grastate.dat"
            state.write_text(state.read_text().replace("bootstrap: 0", "bootstrap: 1"))
            servers.copy(self._data, seed)
        else:
            servers.copy(seed, self._data)

    def _options(self) -> list[str]:
        peers = ",".join(f"127.0.0.1:{node.group_port}" for node in self.cluster.nodes)
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{self.group_port}",
            "ist.recv_addr": f"127.0.0.1:{free_port()}",
            "evs.keepalive_period": "PT0.5S",
            "evs.inactive_check_period": "PT0.5S",
            "evs.suspect_timeout": f"PT{SILENT_SECONDS}S",
        }
        options = [
            *("--wsrep-on=ON", f"--wsrep-provider={LIBRARY}"),
            f"--wsrep-cluster-address=gcomm://{peers}",
            "--wsrep-provider-options=" + ";".join(f"{k}={v}" for k, v in provider.items()),
            *("--wsrep-node-address=127.0.0.1", "--wsrep-sst-method=ist"),
            # Newer ones would have a variable for each option instead, and none to isolate a node.
            "--loose-plugin-wsrep-provider=OFF",
            *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2"),
        ]
        if not any(node.pid for node in self.cluster.nodes):
            return [*options, "--wsrep-new-cluster"]
        if (self._data / "gvwstate.dat").exists():  # it was killed
            options.append(f"--wsrep-start-position={self._recovered(options)}")
        return options

    def _recovered(self, options: list[str]) -> str:
        """The last transaction that its data have."""
        socket = Path(_scratch.name, "recover.sock")
        done = subprocess.run(
            [
                *(str(self.server), "--no-defaults", *self._as_root, f"--datadir={self._data}"),
                *(*options, "--wsrep-recover", "--skip-networking", f"--socket={socket}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"Recovered position: *(\S+)", done.stderr)
        assert found, done.stderr
        return found[1]

    def _environment(self) -> dict[str, str]:
        """With the folder of wsrep_sst_ist."""
        own = super()._environment()
        return {**own, "PATH": f"{own.get('PATH', os.defpath)}:{Path(__file__).parent}"}


class Cluster:
    """So many nodes, of which the first has founded it."""

    def __init__(self, folder: Path, count: int) -> None:
        self.nodes: list[Node] = []
        for number in range(1, count + 1):
            self.nodes.append(Node(folder / f"node{number}", self))

    def wait_until_whole(self) -> None:
        """Each node has all others, and all that they have."""
        wait_until(lambda: all(map(self._is_whole, self.nodes)))
        wait_until(lambda: len({node.status("wsrep_last_committed") for node in self.nodes}) == 1)

    def _is_whole(self, node: Node) -> bool:
        size = str(len(self.nodes))
        return node.is_ready() and node.status("wsrep_cluster_size") == size


class _Check(BaseHTTPRequestHandler):
    node: Node

    def do_GET(self) -> None:
        """200 or 503, as Galera's own clustercheck answers."""
        try:
            with (
                pymysql.connect(
                    host="127.0.0.1",
                    port=self.node.port,
                    user=USER,
                    password=self.node._password,
                    ssl_disabled=True,
                    connect_timeout=CHECK_SECONDS,
                    read_timeout=CHECK_SECONDS,
                ) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SHOW STATUS LIKE 'wsrep_ready'")
                (_, ready) = cursor.fetchone() or ("", "")
        except (OSError, pymysql.MySQLError):
            ready = ""
        with suppress(ConnectionError):  # it did not wait
            self.send_response(200 if ready == "ON" else 503)
            self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def cluster_checks(nodes: list[Node]) -> Iterator[list[int]]:
    """For each node, a port that answers over HTTP whether it is ready: HAProxy cannot know."""
    with ExitStack() as stack:
        ports = []
        for node in nodes:
            handler: Callable[..., _Check] = type("Check", (_Check,), {"node": node})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(server.server_close)
            Thread(target=server.serve_forever, args=(0.05,)).start()
            stack.callback(server.shutdown)
            ports.append(server.server_port)
        yield ports
