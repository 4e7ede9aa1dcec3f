#!/usr/bin/env python3
"""What each optimization saves on this Python: python3 examples/benchmark/switches.py

A server with all of them, one more that is the same, and one without each: they take turns of a
tenth of a second, on a core of their own, and are new processes in each round. Printed is the CPU
time of a request without the optimization, over that of a request with all of them: the median of
the rounds, and in parentheses half of them. Above 1 it saves something; "none" shows what is noise.

Then what share of a worker's CPU time goes into collecting garbage. That is far less noisy, because
it is of one process. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import report
from bench import TURN, Clients, Server, View, fill_shop, leave_a_core
from compare import PRODUCTS, QUICK_PRODUCTS, VIEWS
from contenders import contender
from environments import ROOT, make_environments, say, shop_environment
from fairness import OURS
from one_bound import workers_of
from peers import collector
from private_database import PrivateDatabase

sys.path.insert(0, str(ROOT))

from pooled_serve.tuning.switches import NAMES

ALL, NONE = "all", "none"
CONNECTIONS = 8
PAGES = ("plaintext", "ten", "objects-20")
COLLECTOR = ("", "freeze", "threshold", "freeze,threshold")
Ratios = dict[str, list[float]]
Costs = dict[tuple[str, str], list[tuple[float, float]]]


def serve(
    name: str, python: Path, database: PrivateDatabase, stack: ExitStack, *options: str
) -> Server:
    """With all optimizations, or without those of this name."""
    served = contender(OURS, CONNECTIONS)
    environment = shop_environment(database) | {
        "DJANGO_SETTINGS_MODULE": "peers.settings",
        "CONTENDER": OURS,
        "CONNECTIONS": str(CONNECTIONS),
        "POOLED_SERVE_WITHOUT": "" if name in (ALL, NONE) else name,
        "PYTHONHASHSEED": "0",  # or their luck with it is a part of the result
    }
    server = Server(python, replace(served, command=(*served.command, *options)), environment)
    stack.callback(server.stop)
    server.wait_until_it_answers("/bench/plaintext")
    return server


def collecting(
    view: View, without: str, python: Path, database: PrivateDatabase, seconds: float
) -> tuple[float, float]:
    """The share of a worker's CPU time that collecting garbage takes, and the milliseconds that the
    longest collection took."""
    with ExitStack() as stack:
        options = ("--config", collector.__file__)
        server = serve(without, python, database, stack, *options)
        with Clients(server, view) as load:
            load.turn(seconds, "rate")
            load.result()
        os.kill(server.pid, signal.SIGTERM)
        server.wait()
        line = server.log.rpartition(collector.WORD)[2].partition("\n")[0]
    share, longest = json.loads(line)
    return share, longest


def cpu_of(server: Server) -> float:
    """Seconds of CPU that its processes have used, to the nanosecond."""
    group = [server.pid, *workers_of(server)]
    tasks = (task for pid in group for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(view: View, servers: Mapping[str, Server], turns: int) -> dict[str, float]:
    """Seconds of CPU of a request of each."""
    with ExitStack() as stack:
        # From here on they stand still, but in their turns.
        load = {
            name: stack.enter_context(Clients(server, view)) for name, server in servers.items()
        }
        before = {name: cpu_of(server) for name, server in servers.items()}
        served = {}
        for number in range(turns):
            for name in random.Random(number).sample(list(load), len(load)):
                served[name] = load[name].turn(TURN, "rate")
        spent = {name: cpu_of(server) - before[name] for name, server in servers.items()}
        for clients in load.values():
            clients.result()
    return {name: spent[name] / max(served[name], 1) for name in servers}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each optimization saves here.")
    add = parser.add_argument
    add("--rounds", type=int, default=8, metavar="N", help="default: 8")
    add("--turns", type=int, default=40, metavar="N", help="of each in a round; default: 40")
    add("--pages", default=",".join(PAGES), metavar="A,B", help="default: %(default)s")
    add("--quick", action="store_true", help="to see that it works: one short round")
    add("--no-install", action="store_true", help="as that of compare.py")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.turns = 1, 5
    views = [view for view in VIEWS if view.name in options.pages.split(",")]
    leave_a_core()
    pythons, _ = make_environments([OURS], install=not options.no_install)
    python = pythons[OURS]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switches-")))
        database = stack.enter_context(PrivateDatabase(place / "database"))
        fill_shop(python, database, QUICK_PRODUCTS if options.quick else PRODUCTS)
        ratios: dict[str, Ratios] = {view.name: {} for view in views}
        for number in range(options.rounds):
            with ExitStack() as of_round:
                servers = {
                    name: serve(name, python, database, of_round) for name in (ALL, NONE, *NAMES)
                }
                for view in views:
                    found = measure(view, servers, options.turns)
                    say(f"round {number + 1}  {view.name:<12} {found[ALL] * 1e3:.2f} ms of CPU")
                    for name, cpu in found.items():
                        ratios[view.name].setdefault(name, []).append(cpu / found[ALL])
        costs: Costs = {
            (name, view.name): [
                collecting(view, name, python, database, options.turns * TURN * 3)
                for _ in range(max(1, options.rounds // 2))
            ]
            for name in COLLECTOR
            for view in views
        }
    rows = [
        [name, *(as_text(ratios[view.name][name]) for view in views)] for name in (NONE, *NAMES)
    ]
    print(report.as_markdown([["without", *(view.title for view in views)], *rows]))
    print("\nOf the CPU time, for collecting garbage; and the longest collection\n")
    rows = [
        [name or ALL, *(as_cost(costs[name, view.name]) for view in views)] for name in COLLECTOR
    ]
    print(report.as_markdown([["without", *(view.title for view in views)], *rows]))


def as_cost(costs: list[tuple[float, float]]) -> str:
    share, longest = map(statistics.median, zip(*costs, strict=True))
    return f"{share:.1%}, {longest:.0f} ms"


def as_text(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios * 2, n=4)  # of one round, too
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
