"""Other people's projects, served with the numbers of their pool at hand, and a browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from bs4 import BeautifulSoup

from support.client import Admin
from support.ports import free_port
from support.processes import wait_until
from support.serve import Serve, environment
from support.servers import Database, Server
from support.status import StatusListener

MODES = ["request", "transaction"]

POOL_SIZE, CAP = 2, 3

START_TIMEOUT = 120.0  # seconds; a large project is imported twice


def program(name: str) -> str:
    """The path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    said: str | None = None,
) -> str:
    """What a program prints that knows nothing of us. `said` is its standard input."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(env),
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Browser:
    """One, as far as forms need it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.session = requests.Session()

    def get(self, path: str) -> requests.Response:
        answer = self.session.get(urljoin(self.address, path))
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer

    def fill_in(self, path: str, marked: str, **values: str) -> requests.Response:
        """Send the form of a page that has a field of the name `marked`."""
        page = BeautifulSoup(self.get(path).text, "html.parser")
        field = page.find(attrs={"name": marked})
        assert field, f"no field {marked} in {path}"
        form = field.find_parent("form")
        data = {
            item["name"]: item.get("value", "")
            for item in form.find_all("input")
            if item.get("name") and item.get("type") not in ("checkbox", "file", "submit")
        }
        for menu in form.find_all("select"):
            if chosen := menu.find("option", selected=True):
                data[menu["name"]] = chosen["value"]
        where = urljoin(urljoin(self.address, path), form.get("action") or "")
        return self.session.post(where, {**data, **values}, headers={"Referer": where})


class Application:
    """A project that is served by a single worker, which is the only one to use `database`."""

    def __init__(
        self, server: Serve, numbers: StatusListener, admin: Admin, database: Database
    ) -> None:
        self.server = server
        self.admin = admin
        self._numbers = numbers
        self._database = database

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def browser(self) -> Browser:
        return Browser(self.address)

    def assert_whole(self, table: str, read: Callable[[], object]) -> None:
        """Nothing is lost: no slot, no waiter, no connection; the full cap can be taken, and no
        connection was given up on.

        :param read: a request that reads this table.
        """
        with ThreadPoolExecutor(CAP + 1) as threads:
            self.admin.query(f"LOCK TABLES {self._database.name}.{table} WRITE")
            try:
                answers = [threads.submit(read) for _ in range(CAP + 1)]
                self._numbers.wait_for(lambda stats: self._in_use(stats) == (CAP, 1))
            finally:
                self.admin.query("UNLOCK TABLES")
            for answer in answers:
                answer.result()
        pool = self._numbers.pool_at_rest()
        assert pool["in_use"] == 0
        assert 0 < pool["idle"] <= POOL_SIZE
        assert pool["timeouts_total"] == pool["connect_errors_total"] == 0
        # All else means that a connection could not be used again.
        assert {reason for reason, number in pool["closed_total"].items() if number} <= {"surplus"}
        wait_until(lambda: len(self.admin.processlist(self._database.user)) == pool["idle"])
        assert "Traceback" not in self.server.log, self.server.log

    @staticmethod
    def _in_use(stats: Mapping[str, Any]) -> tuple[int, int]:
        pool = stats["pools"]["default"]
        return pool["in_use"], pool["waiting"]


@contextmanager
def served(
    app: str, *arguments: str, mariadb: Server, database: Database, cwd: Path, **options: Any
) -> Iterator[Application]:
    """`options` are those of Serve."""
    status = ("127.0.0.1", free_port())
    given = (
        *("--pool-size", str(POOL_SIZE), "--max-outstanding", str(CAP)),
        *("--pool-timeout", "60", "--conn-max-age", "600"),  # however busy this machine is
        *("--status", "{}:{}".format(*status)),
    )
    options = {"start_timeout": START_TIMEOUT, **options}
    with Serve(app, *given, *arguments, cwd=cwd, **options) as server:
        yield Application(server, StatusListener(status), mariadb.admin, database)
