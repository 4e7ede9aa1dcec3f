#!/usr/bin/env python3
"""What each optimization saves on this Python: python3 examples/benchmark/switches.py

A server with all of them, one more that is the same, and one without each: they take turns of a
tenth of a second, on a core of their own, and are new processes in each round. Printed is the CPU
time of a request without the optimization, over that of a request with all of them; the median of
the rounds, and in parentheses the lowest and the highest. Above 1 it saves something; "none" shows
what is noise.

Then how long a full collection of garbage lasts in a worker that has loaded the shop, with its
objects frozen and without. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import report
from bench import TURN, Clients, Server, View, fill_shop, leave_a_core
from compare import PRODUCTS, QUICK_PRODUCTS, VIEWS
from contenders import contender
from environments import SHOP, make_environments, say, shop_environment
from fairness import OURS
from private_database import PrivateDatabase

ALL, NONE = "all", "none"
CONNECTIONS = 8
PAGES = ("plaintext", "ten", "objects-20")
COLLECT = """
import django, gc, json, pymysql, time
from django.urls import get_resolver
from pooled_serve.tuning.switches import NAMES
pymysql.install_as_MySQLdb()
django.setup()
get_resolver().url_patterns

def collect():
    took = []
    for _ in range(5):
        began = time.process_time()
        gc.collect()
        took.append(time.process_time() - began)
    return min(took) * 1e3

before = collect()
gc.freeze()
print(json.dumps({"names": NAMES, "collect_ms": [before, collect()],
                  "threshold": gc.get_threshold()}))
"""
Ratios = dict[str, list[float]]


def measure(
    view: View, without: Sequence[str], python: Path, database: PrivateDatabase, seconds: float
) -> dict[str, float]:
    """Milliseconds of CPU of a request, with all and without each."""
    with ExitStack() as stack:
        load: dict[str, Clients] = {}
        for name in (ALL, NONE, *without):
            environment = shop_environment(database) | {
                "DJANGO_SETTINGS_MODULE": "peers.settings",
                "CONTENDER": OURS,
                "CONNECTIONS": str(CONNECTIONS),
                "POOLED_SERVE_WITHOUT": "" if name in (ALL, NONE) else name,
            }
            server = Server(python, contender(OURS, CONNECTIONS), environment)
            stack.callback(server.stop)
            server.wait_until_it_answers("/bench/plaintext")
            # They stand still from here on, but in their turns.
            load[name] = stack.enter_context(Clients(server, view))
        for number in range(max(round(seconds / TURN), 1)):
            for name in random.Random(number).sample(list(load), len(load)):
                load[name].turn(min(TURN, seconds), "rate")
        return {name: clients.result()["server_cpu_ms"] for name, clients in load.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each optimization saves here.")
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    add("--seconds", type=float, default=4.0, metavar="S", help="of each server; default: 4")
    add("--pages", default=",".join(PAGES), metavar="A,B", help="default: %(default)s")
    add("--quick", action="store_true", help="to see that it works: one short round")
    add("--no-install", action="store_true", help="as that of compare.py")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, TURN
    views = [view for view in VIEWS if view.name in options.pages.split(",")]
    leave_a_core()
    pythons, _ = make_environments([OURS], install=not options.no_install)
    python = pythons[OURS]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switches-")))
        database = stack.enter_context(PrivateDatabase(place / "database"))
        fill_shop(python, database, QUICK_PRODUCTS if options.quick else PRODUCTS)
        about = json.loads(
            subprocess.run(
                [python, "-c", COLLECT],
                cwd=SHOP,
                env=shop_environment(database) | {"DJANGO_SETTINGS_MODULE": "shop.settings"},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
        ratios: dict[str, Ratios] = {view.name: {} for view in views}
        for number in range(options.rounds):
            for view in views:
                found = measure(view, about["names"], python, database, options.seconds)
                say(f"round {number + 1}  {view.name:<12} {found[ALL]:.3f} ms of CPU")
                for name, cpu in found.items():
                    ratios[view.name].setdefault(name, []).append(cpu / found[ALL])
    rows = [
        [name, *(as_text(ratios[view.name][name]) for view in views)]
        for name in (NONE, *about["names"])
    ]
    print(report.as_markdown([["without", *(view.title for view in views)], *rows]))
    before, frozen = about["collect_ms"]
    print(f"\nA full collection: {before:.1f} ms of CPU, frozen {frozen:.2f} ms.")
    print(f"Python's own thresholds: {about['threshold']}")


def as_text(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


if __name__ == "__main__":
    main()
