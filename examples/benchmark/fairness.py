#!/usr/bin/env python3
"""Who waits how long while others are served: python3 examples/benchmark/fairness.py

Equal clients begin at the same moment, and each sends its next request when it has an answer. In
each cell of a matrix of workers, kinds of connections, pages and numbers of clients, this prints
for pooled-serve and for Gunicorn's gevent worker:

    answers  that the client with the fewest, the median client and the one with the most got
    wait     the longest, in seconds; those that still wait at the end count
    p99      slowest of a hundred answers, in ms
    CPU      of the web server per answer, in ms
    clients  of the worker with the fewest and of that with the most (keep-alive only)

A cell is fair if every client got between half and twice as many answers as the median client, and
if none waited longer than with Gunicorn. The longest of some hundred waits is a matter of chance:
up to 1.3 times as long is the same, and twice the time in which each client is served once is fair.
Where requests to Gunicorn failed, waits are not compared: an error is a quick answer.

The default takes some 12 minutes. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import report
from bench import Server
from client import Load, Visitor, percentile, tree_cpu
from contenders import contender
from environments import Problem, make_environments, say, shop_environment
from private_database import PrivateDatabase

OURS, STOCK = "pooled-request", "plain-60"
CONNECTIONS = 12  # of a worker's pool
KINDS = KEEP_ALIVE, CLOSING = "keep-alive", "closing"
PLAIN = "plain"
PAGES = (PLAIN, "1 ms", "100 ms")
CHANCE = 1.3
WARM_UP = 30.0  # seconds


class Cell(NamedTuple):
    """A place in the matrix."""

    workers: int
    kind: str
    page: str
    clients: int

    @property
    def path(self) -> str:
        """Two queries, then milliseconds of CPU; or neither."""
        ms, queries = (0, 0) if self.page == PLAIN else (int(self.page.split()[0]), 2)
        return f"/work?ms={ms}&queries={queries}"


@dataclass
class Run:
    """What a server did in one cell."""

    counts: list[int]
    """Answers that each client got, the fewest first."""
    longest: float
    p99: float
    cpu: float
    seconds: float
    failures: int
    by_worker: list[int]

    @property
    def median(self) -> float:
        return statistics.median(self.counts)

    @property
    def once(self) -> float:
        """Seconds in which each client is served once, if all are served alike."""
        return self.seconds * len(self.counts) / max(sum(self.counts), 1)

    def as_row(self) -> list[str]:
        return [
            f"{self.counts[0]} {self.median:g} {self.counts[-1]}",
            f"{self.longest:.2f}",
            f"{self.p99 * 1e3:.0f}",
            f"{self.cpu * 1e3:.2f}",
            f"{min(self.by_worker)} {max(self.by_worker)}" if self.by_worker else "",
        ]


def verdict(ours: Run, stock: Run) -> str:
    """Of the first one."""
    faults = []
    if ours.counts[0] < ours.median / 2:
        faults.append("starved")
    if ours.counts[-1] > ours.median * 2:
        faults.append("favoured")
    if ours.longest > max(stock.longest * CHANCE, ours.once * 2):
        faults.append(f"{ours.longest / stock.longest:.1f} x the wait")
    if ours.failures:
        faults.append(f"{ours.failures} failed")
    if stock.failures:
        # Errors are quick answers: neither its waits nor its CPU can be compared with.
        faults = [fault for fault in faults if not fault.endswith("the wait")]
        faults.append(f"Gunicorn: {stock.failures} failed")
        return ", ".join(faults) if len(faults) > 1 else f"fair ({faults[0]})"
    return ", ".join(faults) or "fair"


class Crowd(Load):
    """A load of which each client is counted on its own."""

    def __init__(self, port: int, path: str, *, clients: int, close: bool) -> None:
        super().__init__(port, path, clients=clients, close=close)
        self.answers = Counter(dict.fromkeys(self._visitors, 0))
        self.waits: list[float] = []
        self.workers: dict[Visitor, bytes] = {}

    def _answered(self, visitor: Visitor) -> None:
        self.answers[visitor] += 1
        self.waits.append(time.perf_counter() - visitor.began)
        _, _, rest = visitor.answer.partition(b"X-Worker: ")
        self.workers[visitor] = rest.partition(b"\r")[0]
        super()._answered(visitor)

    def run_for(self, seconds: float) -> float:
        """From the moment of the first connect on; the longest wait."""
        began = time.perf_counter()
        self.start()
        self.run(began + seconds)
        now = time.perf_counter()
        return max([*self.waits, *(now - each.began for each in self._visitors if each.asked)])


def measure(server: Server, cell: Cell, seconds: float) -> Run:
    close = cell.kind == CLOSING
    crowd = Crowd(server.port, cell.path, clients=cell.clients, close=close)
    cpu = tree_cpu(server.pid)
    longest = crowd.run_for(seconds)
    cpu = tree_cpu(server.pid) - cpu
    run = Run(
        counts=sorted(crowd.answers.values()),
        longest=longest,
        p99=percentile(sorted(crowd.waits), 0.99) if crowd.waits else math.inf,
        cpu=cpu / max(crowd.answers.total(), 1),
        seconds=seconds,
        failures=crowd.failures.total(),
        by_worker=[] if close else clients_by_worker(crowd, cell.workers),
    )
    crowd.stop()  # or the next cell would begin with what is left of this one
    return run


def clients_by_worker(crowd: Crowd, workers: int) -> list[int]:
    found = list(Counter(crowd.workers.values()).values())
    return found + [0] * (workers - len(found))


def warm_up(server: Server, workers: int) -> None:
    """Until each worker has had a request, which imports half of the project, and has opened as
    many connections to the database as it may."""
    seen: set[bytes] = set()
    give_up = time.perf_counter() + WARM_UP
    while len(seen) < workers:
        if time.perf_counter() > give_up:
            raise Problem("a worker serves nobody", server.log[-2000:])
        path = "/work?ms=1&queries=2"
        crowd = Crowd(server.port, path, clients=2 * CONNECTIONS * workers, close=True)
        crowd.run_for(1.0)
        crowd.stop()
        seen |= {*crowd.workers.values()}


class Servers:
    """Both, with so many workers each. The one that is not asked has nothing to do."""

    def __init__(self, pythons: dict[str, Path], database: PrivateDatabase, workers: int) -> None:
        self._cleanup = ExitStack()
        self._servers: dict[str, Server] = {}
        with self._cleanup:
            for name in (OURS, STOCK):
                environment = shop_environment(database) | {
                    "DJANGO_SETTINGS_MODULE": "peers.fairness_settings",
                    "CONTENDER": name,
                    "CONNECTIONS": str(CONNECTIONS),
                }
                served = contender(name, CONNECTIONS)
                server = Server(pythons[name], served, environment, workers=workers)
                self._cleanup.callback(server.stop)
                server.wait_until_it_answers("/bench/plaintext")
                warm_up(server, workers)
                self._servers[name] = server
            self._cleanup = self._cleanup.pop_all()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cleanup.close()

    def run(self, cell: Cell, seconds: float, *, ours_first: bool) -> tuple[Run, Run]:
        """Ours and Gunicorn's."""
        order = (OURS, STOCK) if ours_first else (STOCK, OURS)
        runs = {name: measure(self._servers[name], cell, seconds) for name in order}
        return runs[OURS], runs[STOCK]


def measure_all(
    cells: Sequence[Cell], pythons: dict[str, Path], seconds: float
) -> Iterator[list[str]]:
    """A row of the table for each cell."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairness-")))
        database = stack.enter_context(PrivateDatabase(place / "database"))
        number = 0
        for workers in dict.fromkeys(cell.workers for cell in cells):
            with Servers(pythons, database, workers) as servers:
                for cell in (cell for cell in cells if cell.workers == workers):
                    number += 1
                    ours, stock = servers.run(cell, seconds, ours_first=number % 2 == 0)
                    row = [*map(str, cell), *ours.as_row(), *stock.as_row(), verdict(ours, stock)]
                    say(f"{number:>2} of {len(cells)}  {'  '.join(row)}")
                    yield row


def matrix(options: argparse.Namespace) -> Iterator[Cell]:
    for workers in options.workers:
        for kind in options.kinds:
            for page in options.pages:
                # The plain page shows what turns cost; one number of clients will do.
                for clients in options.clients[-1:] if page == PLAIN else options.clients:
                    yield Cell(workers, kind, page, clients)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure who waits how long on this machine.")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="default: 10")

    def several(option: str, kind: type, default: Sequence[object], more: str = "") -> None:
        parser.add_argument(
            option,
            type=lambda text: [kind(each) for each in text.split(",")],
            default=default,
            metavar="A,B",
            help=f"{more}default: {','.join(map(str, default))}",
        )

    several("--workers", int, [1, 2, 4])
    several("--clients", int, [8, 32])
    several("--kinds", str, KINDS)
    several("--pages", str, PAGES, "'plain', or CPU after two queries as in '10 ms'; ")
    parser.add_argument("--no-install", action="store_true", help="as that of compare.py")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    pythons, _ = make_environments([OURS, STOCK], install=not options.no_install)
    cells = list(matrix(options))
    load_before, began = os.getloadavg()[0], time.monotonic()
    rows = list(measure_all(cells, pythons, options.seconds))
    figures = ["answers", "wait", "p99", "CPU", "clients"]
    heading = [*Cell._fields, *figures, *(f"Gunicorn: {figures[0]}", *figures[1:]), "verdict"]
    print(report.as_markdown([heading, *rows]))
    print(
        f"\n{sum(row[-1].startswith('fair') for row in rows)} of {len(rows)} cells are fair. "
        f"{options.seconds:g} s each on {len(os.sched_getaffinity(0))} cores, load average "
        f"{load_before:.1f} before; took {time.monotonic() - began:.0f} s."
    )


if __name__ == "__main__":
    main()
