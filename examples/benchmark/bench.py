"""One measurement: a contender's web server, a load on it, and what both and the database saw.

Used by compare.py and startup.py. Standard library only, Linux only.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import report
from contenders import CEILING, Contender, contender
from environments import HERE, SHOP, Problem, shop_environment
from private_database import PrivateDatabase, tied_to_us

BOOT_TIMEOUT = 60.0  # seconds
TURN = 0.1  # seconds; with 0.5 the ceiling scored 0.81 to 1.20 against itself, so 0.96 to 1.02
CORES = sorted(os.sched_getaffinity(0))


def leave_a_core() -> None:
    """To the web server. Inherited by all that is started after this."""
    os.sched_setaffinity(0, CORES[1:] or CORES)


@dataclass(frozen=True)
class View:
    """One kind of load.

    A page that waits for the clock and not for the processor is measured `alone`, and `times` as
    long as others: it would go on waiting while it stands still for somebody else's turn. Nor does
    it always wait equally long, or clients would stay in step.
    """

    name: str
    title: str
    path: str
    clients: int = 32
    connections: int = 10
    close: bool = False
    alone: bool = False
    times: float = 1.0
    warm_up: str = ""  # a quicker page that opens the connections


class Bench:
    """Two databases, and the servers of a contender and of the ceiling.

    Each has a database of its own, so that what the observer counts is the contender's.
    """

    def __init__(
        self,
        database: PrivateDatabase,
        database_of_ceiling: PrivateDatabase,
        pythons: dict[str, Path],
        seconds: float,
    ) -> None:
        self._database = database
        self._database_of_ceiling = database_of_ceiling
        self._pythons = pythons
        self._seconds = seconds
        self._cleanup = ExitStack()

    def __enter__(self) -> Bench:
        self._observer = self._cleanup.enter_context(
            subprocess.Popen(
                tied_to_us([str(next(iter(self._pythons.values()))), str(HERE / "observer.py")]),
                env={**os.environ, "DATABASE_URL": self._database.admin_url()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._observer.stdin
        self._observer.stdin.close()
        self._cleanup.close()

    def about(self, name: str) -> dict[str, Any]:
        """What the contender's own server says of itself."""
        with self.serving(name, 1) as server:
            status, body = get(server.port, "/about")
            if status != 200:
                raise Problem(f"{name} answers /about with {status}", server.log[-2000:])
            said: dict[str, Any] = json.loads(body)
            return said

    def run(self, name: str, view: View) -> report.Run:
        """One view from one contender, served by a new process."""
        self._ask("reset")
        with ExitStack() as stack:
            server = stack.enter_context(self.serving(name, view.connections))
            load = stack.enter_context(Clients(server, view))
            if view.alone or CEILING not in self._pythons:
                load.turn(self._seconds * view.times, "rate", "latency")
                ceiling = None
            else:
                other = stack.enter_context(
                    self.serving(CEILING, view.connections, other_database=True)
                )
                ceiling = self.take_turns(load, stack.enter_context(Clients(other, view)))
                load.turn(self._seconds, "latency")
            run = load.result()
            if ceiling:
                ratio = run["per_second"] / (ceiling["per_second"] or math.nan)
                run |= {"ceiling": ceiling, "ratio": ratio}
            seen = self._ask("read")
            complaints = server.complaints()
        return {
            "contender": name,
            "view": view.name,
            **run,
            "connections": seen["connections"],
            "round_trips": seen["round_trips"] / max(run["sent"], 1),
            "complaints": complaints,
        }

    def take_turns(self, ours: Clients, theirs: Clients) -> dict[str, Any]:
        """What the others did in their turns."""
        for number in range(max(round(self._seconds / TURN), 1)):
            # To and fro, so that a machine that gets slower and slower favours nobody.
            for each in (ours, theirs) if number % 2 else (theirs, ours):
                each.turn(min(TURN, self._seconds), "rate")
        return theirs.result()

    def _ask(self, question: str) -> dict[str, int]:
        assert self._observer.stdin
        assert self._observer.stdout
        self._observer.stdin.write(f"{question}\n")
        self._observer.stdin.flush()
        answer = self._observer.stdout.readline()
        if not answer:
            raise Problem("the observer of the database ended", "its output above says why")
        counts: dict[str, int] = json.loads(answer)
        return counts

    @contextmanager
    def serving(
        self,
        name: str,
        connections: int,
        *,
        other_database: bool = False,
        page: str = "/bench/plaintext",
    ) -> Iterator[Server]:
        """The contender's server, once it answers that page."""
        served = contender(name, connections)
        database = self._database_of_ceiling if other_database else self._database
        environment = shop_environment(database) | {
            "DJANGO_SETTINGS_MODULE": "peers.settings",
            "CONTENDER": name,
            "CONNECTIONS": str(connections),
        }
        server = Server(self._pythons[name], served, environment)
        try:
            server.wait_until_it_answers(page)
            yield server
        finally:
            server.stop()


class Server:
    """The web server of a contender: one worker on a core of its own, or several on all cores."""

    def __init__(
        self, python: Path, served: Contender, environment: dict[str, str], *, workers: int = 1
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._name = served.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the server runs
        command = [str(python), "-m", *served.command, served.app]
        # Clients stand still for longer than the 2 seconds that an idle connection has otherwise.
        command += ["-w", str(workers), "-b", f"127.0.0.1:{self.port}", "--keep-alive", "75"]
        command += ["--log-level", "warning"]
        self._process = subprocess.Popen(
            tied_to_us(command),
            cwd=SHOP,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = self._process.pid
        if workers == 1:
            # Or its luck with the other processes decides as much as its code: up to 5 % either way
            os.sched_setaffinity(self.pid, CORES[:1])

    @cached_property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def complaints(self) -> dict[str, int]:
        """The errors of its log, the most frequent first, without what differs between them."""
        found = re.findall(r"^[\w.]+(?:Error|Exception|Empty|Timeout|Full)\b.*", self.log, re.M)
        return dict(Counter(line[:200] for line in found).most_common(3))

    def wait_until_it_answers(self, page: str) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while True:
            with suppress(OSError, http.client.HTTPException):
                if get(self.port, page)[0] == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Problem(f"{self._name} does not serve the shop", self.log[-2000:])
            time.sleep(0.05)

    def wait(self) -> None:
        """Until it has ended by itself."""
        self._process.wait(BOOT_TIMEOUT)

    def stop(self) -> None:
        """At once: whoever hangs must not hold up the next one."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


class Clients:
    """The load on a server, from a process of its own; it begins once every client had an answer.

    Between turns the server stands still.
    """

    def __init__(self, server: Server, view: View) -> None:
        # Asked once per process, and not part of any view: the highest id.
        get(server.port, "/bench/one")
        command = [sys.executable, HERE / "client.py", server.port, view.path]
        command += ["--clients", view.clients, "--server-pid", server.pid, "--in-turns"]
        command += ["--warm-up", view.warm_up] if view.warm_up else []
        command += ["--close"] if view.close else []
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.__exit__(kind, raised, traceback)

    def turn(self, seconds: float, *what: str) -> int:
        """What to look at is "rate", "latency" or both. Returns how many requests have been served
        in all turns for the rate."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds} {' '.join(what)}\n")
        self._process.stdin.flush()
        served: int = self._read()["served"]
        return served

    def result(self) -> dict[str, Any]:
        """When all turns are over, and all that was asked is answered."""
        assert self._process.stdin
        self._process.stdin.close()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Problem("the load client ended", "its output above says why")
        said: dict[str, Any] = json.loads(line)
        return said


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def fill_shop(python: Path, database: PrivateDatabase, products: int) -> None:
    for command in (["migrate", "--verbosity=0"], ["seed", f"--products={products}"]):
        done = subprocess.run(
            [python, SHOP / "manage.py", *command],
            env=shop_environment(database),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Problem(f"manage.py {command[0]} failed", done.stderr[-2000:])
