"""Whatever requests do, at random and many at a time, no trace of one is visible to another.

Each request takes a few steps of step_views.py: it sets state, fails, is killed, queries in
generators, swaps aliases, spawns and leaves. Others only look, and must find what the first request
of the worker found. At the end each row that was committed is there, none that was rolled back,
and the pools are whole.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support.processes import wait_until
from support.serve import Client, Serve
from support.servers import Server
from support.torture import TORTURE

CLIENTS = 10
REQUESTS = 600 if TORTURE else 150
SEED = int(os.environ.get("SEED", "0")) or random.randrange(10**6)
VIEWS = Path(__file__).with_name("step_views.py").read_text()

SERVERS = ["mariadb", "mysql"]
MODES = ["request", "transaction"]


class Schedule:
    """What the clients do, and what they have seen."""

    def __init__(self, server: Serve, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._steps, self._last = server.get("/names").json()
        self._lock = threading.Lock()
        self._left = REQUESTS
        self._number = 0
        self._recent: list[str] = []
        self.faults: list[str] = []
        self.answers: Counter[int] = Counter()
        self.clean = self.look()

    def run(self) -> None:
        """Until each request has been sent, or one has shown a fault."""
        clients = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def look(self, client: Client | None = None) -> Any:
        answer = (client or self._server).get("/look")
        return answer.json() if answer.status == 200 else answer.text[:500]

    def _client(self) -> None:
        client = self._server.keepalive(90)
        while (path := self._next()) is not None:
            try:
                if path == "/look":
                    self._judge(self.look(client))
                elif path.startswith("leave "):
                    self._leave(path.removeprefix("leave "))
                else:
                    self.answers[client.get(path).status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[0] += 1
                if isinstance(error, TimeoutError):
                    self.faults.append(f"no answer to {path}")
                client.close()
        client.close()

    def _next(self) -> str | None:
        with self._lock:
            if self._left == 0 or self.faults:
                return None
            self._left -= 1
            chance = self._chance
            if chance.random() < 0.3:
                return "/look"
            steps = [
                *chance.choices(self._steps, k=chance.randint(1, 4)),
                chance.choice(self._last),
            ]
            query = {"number": str(self._number), "steps": ",".join(steps)}
            self._number += len(steps)
            match chance.randrange(12):
                case 0:
                    query["kill"] = str(chance.uniform(0, 0.05))
                case 1:
                    query["timeout"] = str(chance.uniform(0, 0.05))
            if chance.random() < 0.2:
                query["stream"] = "1"
            path = "/act?" + urlencode(query)
            self._recent = [*self._recent[-40:], path]
            return f"leave {path}" if chance.random() < 0.05 else path

    def _judge(self, found: Any) -> None:
        if found != self.clean:
            self.faults.append(
                difference(self.clean, found) + "\nafter\n" + "\n".join(self._recent)
            )

    def _leave(self, path: str) -> None:
        """A client that does not wait for its answer."""
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=30) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.005)


def difference(clean: Any, found: Any) -> str:
    """Where two looks differ."""
    if not isinstance(found, dict):
        return f"a look failed: {found}"
    lines = []
    for alias in ("default", "replica"):
        pairs = zip(clean[alias], found[alias], strict=False)
        lines += [f"{alias}: {now!r}, not {then!r}" for then, now in pairs if now != then]
    return "\n".join(lines) or json.dumps(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server_name", SERVERS)
def test_no_trace_of_a_request_is_visible_to_another(
    server_name: str, mode: str, project: Any, serve: Any, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(server_name)
    home = server.create_database()
    other = f"{home.name}_other"
    server.admin.query(f"CREATE DATABASE {other} CHARACTER SET utf8mb4")
    for host in ("127.0.0.1", "localhost"):
        server.admin.query(f"GRANT ALL ON {other}.* TO {home.user}@{host}")
    ledger = "ledger (id BIGINT PRIMARY KEY AUTO_INCREMENT, number BIGINT)"
    server.admin.query(f"CREATE TABLE {home.name}.{ledger}")
    server.admin.query(f"CREATE TABLE {other}.{ledger}")
    views = VIEWS.replace('HOME: str = ""', f"HOME = {home.name!r}")
    views = views.replace('OTHER: str = ""', f"OTHER = {other!r}")
    views = views.replace("CAN_ASK = True", f"CAN_ASK = {mode == 'request'}")
    databases = {"default": home.django(), "replica": home.django(NAME=other)}
    web: Serve = serve(
        project(views, databases=databases),
        *("--pool-size", "2", "--max-outstanding", "3", "--pool-mode", mode),
        *("--pool-timeout", "60"),  # one that only looks must not be refused by a busy machine
    )

    schedule = Schedule(web, SEED)
    schedule.run()

    said = f"seed {SEED}, answers {dict(schedule.answers)}"
    if schedule.faults:
        pytest.fail(f"{said}\n{schedule.faults[0]}", pytrace=False)
    wait_until(lambda: is_quiet(web, server, home.user), timeout=60)
    state = web.get("/state", timeout=60).json()
    assert state["broken"] == [], said
    rows = server.admin.query(f"SELECT number, COUNT(*) n FROM {home.name}.ledger GROUP BY number")
    books = {str(row["number"]): str(row["n"]) for row in rows}
    wrong = {
        number: f"{books.get(number, '0')} rows, not {allowed}"
        for number, allowed in state["facts"].items()
        if books.get(number, "0") not in allowed.split()
    }
    assert not wrong, f"{said}: {wrong}"
    assert schedule.look() == schedule.clean, said
    assert schedule.answers[200] > REQUESTS / 10, said  # it did do something


def is_quiet(web: Serve, server: Server, user: str) -> bool:
    """Whether nothing is in use, and the server knows of nothing but what is idle."""
    state = web.get("/state", timeout=60).json()
    connections = len(server.admin.processlist(user))
    whole: bool = state["in_use"] == state["waiting"] == 0 and connections == state["idle"] > 0
    return whole
