"""What an application was told of its writes, and what became of them in the end."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from support.client import Admin
from support.processes import wait_until
from support.servers import Database

CLUSTER_VIEWS = Path(__file__).parents[1] / "serve" / "cluster_views.py"

TOTALS = 8
"""Rows that all entries share: the fewer, the more often two transactions meet."""


class Answer(NamedTuple):
    path: str
    number: int
    status: int  # 0 for none
    text: str
    seconds: float
    at: float  # when it was sent, in seconds of time.monotonic()


def create_book(admin: Admin, database: Database, engine: str = "InnoDB") -> None:
    name = database.name
    admin.query(f"CREATE TABLE {name}.entry (id SERIAL, number INT NOT NULL) ENGINE={engine}")
    admin.query(f"CREATE TABLE {name}.total (id INT PRIMARY KEY, sum INT) ENGINE={engine}")
    rows = ", ".join(f"({n}, 0)" for n in range(TOTALS))
    admin.query(f"INSERT INTO {name}.total VALUES {rows}")


class Ledger:
    """Clients that read, and clients that write in transactions, until the end of the block."""

    def __init__(
        self, port: int, *, writers: int = 6, readers: int = 6, every: float = 0.05
    ) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._every = every
        self._stopped = threading.Event()
        self._numbers = itertools.count(1)
        paths = ["enter"] * writers + ["read"] * readers
        self._threads = [threading.Thread(target=self._client, args=(path,)) for path in paths]

    def __enter__(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, count: int = 50) -> None:
        """Return when so many more writes and as many reads were answered with success."""
        goals = {path: self._done(path) + count for path in ("enter", "read")}
        wait_until(lambda: all(self._done(path) >= goal for path, goal in goals.items()))

    def _done(self, path: str) -> int:
        return sum(each.path == path and each.status == 200 for each in self.answers)

    def _client(self, path: str) -> None:
        while not self._stopped.wait(self._every):
            number, sent = next(self._numbers), time.monotonic()
            status, text = 0, ""
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", f"/{path}?number={number}")
                answer = connection.getresponse()
                status, text = answer.status, answer.read().decode(errors="replace")
            connection.close()
            taken = time.monotonic() - sent
            self.answers.append(Answer(path, number, status, text, taken, sent))

    def failures(self) -> list[Answer]:
        """What was neither served, nor refused because another transaction was in the way."""
        return [answer for answer in self.answers if answer.status not in (200, 409)]

    def conflicts(self) -> int:
        return sum(answer.status == 409 for answer in self.answers)

    def codes(self) -> dict[str, int]:
        """For messages: how often each error was answered."""
        found: dict[str, int] = {}
        for answer in self.failures():
            why: Any = answer.status
            with suppress(ValueError):
                why = json.loads(answer.text)["text"]
            found[f"{answer.path}: {why}"] = found.get(f"{answer.path}: {why}", 0) + 1
        return found

    def assert_adds_up(self, admin: Admin, database: Database) -> None:
        """What was acknowledged is there, once; what was refused is not; and totals agree."""
        rows = admin.query(f"SELECT number FROM {database.name}.entry")
        there = [int(row["number"]) for row in rows]
        entered = {
            answer.number: answer.status for answer in self.answers if answer.path == "enter"
        }
        served = {number for number, status in entered.items() if status == 200}
        refused = {number for number, status in entered.items() if status == 409}
        assert served - set(there) == set(), "acknowledged, and lost"
        assert len(there) == len(set(there)), "entered twice"
        assert set(there) & refused == set(), "refused, and there all the same"
        assert set(there) <= entered.keys()
        (row,) = admin.query(f"SELECT SUM(sum) AS sum FROM {database.name}.total")
        assert int(row["sum"]) == len(there), "half a transaction"
