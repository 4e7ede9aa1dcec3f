#!/usr/bin/env python3
"""What it costs to have several workers: python3 examples/benchmark/one_bound.py

Twelve connections, for one worker, in equal parts for several, or as --max-per-host of several. 24
keep-alive clients ask for a page that holds its connection for 50 ms, each again as soon as it has
its answer; where it is uneven, 20 of them are clients of the same worker. The server is a new
process in each round. Printed are the medians of the rounds; in parentheses, what they are of those
of one worker:

    p50, p95, p99    of the time to an answer, in ms
    longest          of these
    answers          per second
    fewest, most     answers that a client got

The default takes some eight minutes. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import report
from bench import Server
from client import percentile
from contenders import contender
from environments import Problem, make_environments, say, shop_environment
from fairness import OURS, Crowd, warm_up
from private_database import PrivateDatabase

CONNECTIONS, CLIENTS = 12, 24
UNEVEN = 20
"""Clients of the same worker, where it is uneven."""

PATH = "/work?ms=0&queries=2&hold=50"
SETTLE = 2.0  # seconds


class Way(NamedTuple):
    """How the connections are shared."""

    title: str
    workers: int
    options: tuple[str, ...]
    uneven: bool = False


def in_parts(workers: int, title: str, *, uneven: bool = False) -> Way:
    each = str(CONNECTIONS // workers)
    return Way(title, workers, ("--pool-size", each, "--max-outstanding", each), uneven)


def bounded(workers: int, title: str, *, uneven: bool = False) -> Way:
    return Way(title, workers, ("--max-per-host", str(CONNECTIONS)), uneven)


WAYS = (
    in_parts(1, "one worker with 12"),
    in_parts(2, "2 workers with 6"),
    bounded(2, "2, --max-per-host 12"),
    in_parts(4, "4 workers with 3"),
    bounded(4, "4, --max-per-host 12"),
    in_parts(4, "4 with 3, uneven", uneven=True),
    bounded(4, "4, --max-per-host 12, uneven", uneven=True),
)


class Run(NamedTuple):
    """What clients saw."""

    p50: float
    p95: float
    p99: float
    longest: float
    answers: float
    fewest: float
    most: float


class Clients(Crowd):
    """Of the first worker, some; where it is uneven."""

    def start_at(self, server: Server, way: Way) -> None:
        if not way.uneven:
            self.start()
            self.run(time.perf_counter() + SETTLE)
            return
        first, *others = workers_of(server)
        for visitors, stopped in (
            (self._visitors[:UNEVEN], others),
            (self._visitors[UNEVEN:], [first]),
        ):
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            for visitor in visitors:
                self._connect(visitor)
            self.run(time.perf_counter() + SETTLE)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        self.run(time.perf_counter() + SETTLE)


def workers_of(server: Server) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def measure(server: Server, way: Way, seconds: float) -> Run:
    clients = Clients(server.port, PATH, clients=CLIENTS, close=False)
    clients.start_at(server, way)
    clients.waits.clear()
    before = dict(clients.answers)
    began = time.perf_counter()
    clients.run(began + seconds)
    took = time.perf_counter() - began
    waits = sorted(clients.waits)
    counts = sorted(clients.answers[each] - before[each] for each in before)
    if clients.failures or not waits:
        raise Problem(f"{way.title}: requests failed", f"{dict(clients.failures)}")
    clients.stop()
    p50, p95, p99 = (percentile(waits, share) * 1e3 for share in (0.5, 0.95, 0.99))
    return Run(p50, p95, p99, waits[-1] * 1e3, len(waits) / took, counts[0], counts[-1])


def serve(python: Path, way: Way, database: PrivateDatabase, stack: ExitStack) -> Server:
    environment = shop_environment(database) | {
        "DJANGO_SETTINGS_MODULE": "peers.fairness_settings",
        "CONTENDER": OURS,
        "CONNECTIONS": str(CONNECTIONS),
    }
    command = ("pooled_serve", "--pool-timeout", "30", "--timeout", "60", *way.options)
    served = replace(contender(OURS, CONNECTIONS), command=command)
    server = Server(python, served, environment, workers=way.workers)
    stack.callback(server.stop)
    server.wait_until_it_answers("/bench/plaintext")
    warm_up(server, way.workers)
    return server


def as_rows(runs: dict[Way, list[Run]]) -> list[list[str]]:
    medians = {
        way: Run(*map(statistics.median, zip(*found, strict=True))) for way, found in runs.items()
    }
    base = next(iter(medians.values()))
    return [
        [way.title, *(f"{n:.0f} ({n / of:.2f})" for n, of in zip(found, base, strict=True))]
        for way, found in medians.items()
    ]


def measure_all(ways: Sequence[Way], python: Path, rounds: int, seconds: float) -> None:
    runs: dict[Way, list[Run]] = {way: [] for way in ways}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="one-bound-")))
        database = stack.enter_context(PrivateDatabase(place / "database"))
        for number in range(rounds):
            for way in random.Random(number).sample(ways, len(ways)):
                with ExitStack() as server:
                    run = measure(serve(python, way, database, server), way, seconds)
                runs[way].append(run)
                say(f"round {number + 1}  {way.title:<30} {[round(each) for each in run]}")
    print(report.as_markdown([["", *Run._fields], *as_rows(runs)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a bound for the host is worth.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="default: 6")
    parser.add_argument("--ways", type=str, default="", metavar="0,4", help="default: all")
    parser.add_argument("--no-install", action="store_true", help="as that of compare.py")
    options = parser.parse_args()
    pythons, _ = make_environments([OURS], install=not options.no_install)
    ways = [WAYS[int(n)] for n in options.ways.split(",")] if options.ways else WAYS
    measure_all(ways, pythons[OURS], options.rounds, options.seconds)


if __name__ == "__main__":
    main()
