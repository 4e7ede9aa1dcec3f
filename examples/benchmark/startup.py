#!/usr/bin/env python3
"""What pooled-serve adds to Gunicorn's start and memory: python3 examples/benchmark/startup.py

    first answer  from the command to the first page with a query in it
    --help        from the command to its end
    memory        of the worker once it has served for a while, on ten connections
    many          requests served on 64 connections for 512 clients, to those on 4 for 32

Gunicorn is "Django, CONN_MAX_AGE=60" of compare.py, whose environments this shares. The two take
turns, figures are medians. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import report
from bench import Bench, Clients, fill_shop, leave_a_core
from compare import QUICK_PRODUCTS, VIEWS
from environments import make_environments
from private_database import PrivateDatabase

OURS, STOCK = "pooled-request", "plain-60"
SECONDS = 2.0  # of load
ONE = next(view for view in VIEWS if view.name == "one")
FEW, MANY = replace(ONE, clients=32, connections=4), replace(ONE, clients=512, connections=64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure start-up and memory on this machine.")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--no-install", action="store_true", help="as that of compare.py")
    options = parser.parse_args()
    pythons, _ = make_environments([OURS, STOCK], install=not options.no_install)
    rounds = range(options.rounds)
    leave_a_core()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="startup-")))
        database, of_ceiling = (
            stack.enter_context(PrivateDatabase(place / name)) for name in ("ours", "theirs")
        )
        for each in (database, of_ceiling):
            fill_shop(pythons[OURS], each, QUICK_PRODUCTS)
        bench = stack.enter_context(Bench(database, of_ceiling, pythons, SECONDS))
        started = [{name: first_answer(bench, name) for name in (OURS, STOCK)} for _ in rounds]
        used = [{name: memory(bench, name) for name in (OURS, STOCK)} for _ in rounds]
        helped = [seconds_of_help(pythons[OURS]) for _ in rounds]
        many = [many_to_few(bench) for _ in rounds]
    table = [["", "pooled-serve", "Gunicorn", "ratio or difference"]]
    ours, stock = (statistics.median(each[name] for each in started) for name in (OURS, STOCK))
    ratio = statistics.median(each[OURS] / each[STOCK] for each in started)
    table.append(["first answer, s", f"{ours:.2f}", f"{stock:.2f}", f"{ratio:.2f}"])
    ours, stock = (statistics.median(each[name] for each in used) for name in (OURS, STOCK))
    table.append(["memory, MB", f"{ours:.1f}", f"{stock:.1f}", f"{ours - stock:+.1f}"])
    table.append(["--help, s", f"{statistics.median(helped):.2f}", "-", "-"])
    table.append(["many to few", f"{statistics.median(many):.2f}", "-", "-"])
    print(report.as_markdown(table))


def first_answer(bench: Bench, name: str) -> float:
    """Seconds."""
    began = time.perf_counter()
    with bench.serving(name, ONE.connections, page=ONE.path):
        return time.perf_counter() - began


def memory(bench: Bench, name: str) -> float:
    """MB of the worker's own and shared pages (RSS), after some requests on all connections."""
    with bench.serving(name, ONE.connections) as server:
        with Clients(server, replace(ONE, clients=ONE.connections)) as clients:
            clients.turn(SECONDS, "rate")
            clients.result()
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        return max(map(resident, children))


def resident(pid: str) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    line = next(line for line in rollup.splitlines() if line.startswith("Rss:"))
    return int(line.split()[1]) / 1024


def seconds_of_help(python: Path) -> float:
    began = time.perf_counter()
    subprocess.run([python, "-m", "pooled_serve", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def many_to_few(bench: Bench) -> float:
    with ExitStack() as stack:
        many = stack.enter_context(bench.serving(OURS, MANY.connections))
        few = stack.enter_context(bench.serving(OURS, FEW.connections, other_database=True))
        ours = stack.enter_context(Clients(many, MANY))
        theirs = stack.enter_context(Clients(few, FEW))
        other = bench.take_turns(ours, theirs)
        ratio: float = ours.result()["per_second"] / other["per_second"]
        return ratio


if __name__ == "__main__":
    main()
