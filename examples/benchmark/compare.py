#!/usr/bin/env python3
"""Compare pooled-serve with its peers: requests, CPU time, latency, failures, connections.

    python3 examples/benchmark/compare.py

It makes a virtual environment for each contender in the project's folder, starts two private
databases, fills each with the example shop and measures in rounds: each page, each contender, in
an order that is shuffled anew, from a server process that is new each time, on a core of its own
where there are several. The speed of a machine may double from one second to the next, so contender
and ceiling take turns of a tenth of a second; what counts is their ratio. Latencies come from one
long turn after that. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
from bench import CORES, TURN, Bench, View, fill_shop, leave_a_core
from contenders import contender, contenders
from environments import ROOT, chosen, make_environments, say
from private_database import DatabaseError, PrivateDatabase

PRODUCTS, QUICK_PRODUCTS = 10_000, 500
SEED = 2024  # of the order in which contenders are measured


VIEWS = (
    View("plaintext", "no database", "/bench/plaintext"),
    View("one", "1 query", "/bench/one"),
    View("one-128", "1 query, 128 clients", "/bench/one", clients=128),
    View("one-close", "1 query, closing", "/bench/one", close=True),
    View("ten", "10 queries", "/bench/ten"),
    View("fortunes", "fortunes", "/bench/fortunes"),
    View("objects-20", "20 rows", "/bench/objects?rows=20"),
    View("values-20", "20 rows, values()", "/bench/values?rows=20"),
    View("objects-100", "100 rows", "/bench/objects?rows=100"),
    View("values-100", "100 rows, values()", "/bench/values?rows=100"),
    View("update", "transaction", "/bench/update"),
    View(
        "outside",
        "300 ms outside call",
        "/bench/outside?ms=300&spread=100",
        clients=100,
        connections=4,
        alone=True,
        times=2.0,
        warm_up="/bench/one",
    ),
)
QUICK = ("plaintext", "one", "outside")
CHARTED = ("one", "one-close", "values-100", "update", "outside")
SUMMARIES = {
    "Requests served per second": "requests/s",
    "CPU time of the web server per request, ms": "CPU ms",
    "Slowest of a hundred requests (p99), ms": "p99 ms",
}


def main() -> int:
    options = parse_options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        compare(options)
    except DatabaseError as problem:
        say(problem)
        return 1
    except KeyboardInterrupt:
        say("Interrupted; nothing was written.")
        return 130
    return 0


def parse_options() -> argparse.Namespace:
    names = [each.name for each in contenders(10)]
    parser = argparse.ArgumentParser(
        description="Compare pooled-serve with its peers on this machine."
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 3")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each run; default: 2")
    parser.add_argument(
        "--contenders", default=",".join(names), metavar="A,B", help="default: %(default)s"
    )
    views = [view.name for view in VIEWS]
    parser.add_argument("--views", metavar="A,B", help=f"default: {','.join(views)}")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "benchmark",
        metavar="DIR",
        help="for results.json, results.md and chart.svg; default: build/benchmark",
    )
    parser.add_argument(
        "--quick", action="store_true", help="to see that it works: one short round of few views"
    )
    parser.add_argument(
        "--no-install",
        action="store_true",
        help="install nothing: all contenders run in the environment of this Python",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.contenders = chosen(parser, "--contenders", options.contenders, names)
    default = ",".join(QUICK if options.quick else views)
    options.views = chosen(parser, "--views", options.views or default, views)
    return options


def compare(options: argparse.Namespace) -> None:
    views = [view for view in VIEWS if view.name in options.views]
    started = time.monotonic()
    load_before = os.getloadavg()[0]
    leave_a_core()
    pythons, missing = make_environments(options.contenders, install=not options.no_install)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        theirs, of_ceiling = (
            stack.enter_context(PrivateDatabase(place / name)) for name in ("database", "ceiling")
        )
        products = QUICK_PRODUCTS if options.quick else PRODUCTS
        for database in (theirs, of_ceiling):
            fill_shop(next(iter(pythons.values())), database, products)
        with Bench(theirs, of_ceiling, pythons, options.seconds) as bench:
            about = {name: bench.about(name) for name in pythons}
            runs = list(measure(bench, list(pythons), views, options.rounds))
    result = {
        "machine": machine(load_before),
        "database": next(iter(about.values()))["server"],
        "seconds": options.seconds,
        "rounds": options.rounds,
        "took_seconds": round(time.monotonic() - started),
        "about": about,
        "missing": missing,
        "runs": runs,
    }
    write(options, result, views)


def measure(
    bench: Bench, names: list[str], views: Sequence[View], rounds: int
) -> Iterator[report.Run]:
    """All contenders next to each other in time, so that a busy moment is not only one's own."""
    rng = random.Random(SEED)
    for number in range(1, rounds + 1):
        for view in views:
            order = rng.sample(names, len(names))
            for name in order:
                run = bench.run(name, view) | {"round": number}
                say(
                    f"round {number}  {view.name:<10} {name:<25}"
                    f"{report.number(run['per_second']):>6}/s  "
                    f"{report.number(run.get('ratio')):>5}  {run['failures'] or ''}"
                )
                yield run


# --- What comes out -----------------------------------------------------------------------------


def machine(load_before: float) -> dict[str, Any]:
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cores": len(CORES),
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "kernel": platform.release(),
        "load_before": round(load_before, 2),
    }


def write(options: argparse.Namespace, result: dict[str, Any], views: Sequence[View]) -> None:
    titles = {name: contender(name, 10).title for name in result["about"]}
    results = report.Results(
        result["runs"],
        titles,
        {view.name: view.title for view in views},
    )
    notes = how_measured(result, results)
    charted = [view.name for view in views if view.name in CHARTED]
    where = f"{result['machine']['cores']} cores of {result['machine']['cpu']}"
    chart = report.chart(
        results,
        charted,
        ours="pooled-",
        note=f"Requests served per second by one worker (red: failed on top); {where}",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "results.md").write_text(markdown(results, notes))
    (options.out / "chart.svg").write_text(chart)
    for view, title in results.views.items():
        print(f"{title}\n\n{report.as_text(report.details(results, view))}\n")
    print("\n".join(notes))
    print(f"\nIn {options.out}: results.json, results.md, chart.svg")


def markdown(results: report.Results, notes: Sequence[str]) -> str:
    parts = ["# pooled-serve and its peers", "\n".join(f"- {note}" for note in notes)]
    for title, what in SUMMARIES.items():
        parts += [f"## {title}", report.as_markdown(report.summary(results, what))]
    for view, title in results.views.items():
        parts += [f"## {title}", report.as_markdown(report.details(results, view))]
    return "\n\n".join([*parts, ""])


def how_measured(result: dict[str, Any], results: report.Results) -> list[str]:
    """What one must know to read the figures, a sentence or two a line."""
    about, machine = result["about"], result["machine"]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, load average "
        f"{machine['load_before']} before; the web server has the first core to itself, clients "
        "and database share the others.",
        f"{result['database']} on the same machine, over TCP; TLS to the database: "
        f"{same_or_each({name: each['tls'] for name, each in about.items()})}.",
        f"Python {same_or_each({name: each['python'] for name, each in about.items()})}.",
    ]
    for package in dict.fromkeys(p for each in about.values() for p in each["versions"]):
        found = {name: each["versions"].get(package) for name, each in about.items()}
        lines.append(f"{package} {same_or_each({n: v for n, v in found.items() if v})}.")
    lines += [f"{name} is not measured: {why}" for name, why in result["missing"].items()]
    lines += [
        f"Rounds of all pages and contenders: {result['rounds']}, in shuffled order; each page for "
        f"{result['seconds']} s from a new server process, once every client has had an answer, in "
        f"turns of {TURN} s with the ceiling, which has new processes and a database of its own; "
        f"then alone for another {result['seconds']} s, for latencies. The outside call, of 200 to "
        "400 ms, is measured alone only, twice as long.",
        "ratio: requests served to those of the ceiling in the same turns; the ceiling's own row "
        "tells what chance does. requests/s: the ratio times the median of all turns of the "
        "ceiling; CPU ms likewise, of the web server, per request served. Figures are medians of "
        "the rounds; max and connections are the highest, failures are of all rounds. round trips: "
        "to the database, per request.",
        "One worker; 10 connections where there is a bound, 4 for the outside call; 32 clients, "
        "100 for the outside call; each sends its next request when it has an answer, on the same "
        "connection, or on a new one where it says closing.",
    ]
    own = [results.median(name, "plaintext", "client_cpu_ms") for name in results.contenders]
    fastest = [results.median(name, "plaintext", "per_second") for name in results.contenders]
    if costs := [cost for cost in own if cost]:
        lines.append(
            f"The load client spends {statistics.median(costs) * 1e3:.0f} µs of CPU on a request, "
            f"so one core of it could send {1e3 / statistics.median(costs):.0f}/s; the most that "
            f"it had to send is {max(filter(None, fastest)):.0f}/s."
        )
    complaints: dict[str, Counter[str]] = {}
    for run in result["runs"]:
        complaints.setdefault(run["contender"], Counter()).update(run["complaints"])
    for name, found in complaints.items():
        for line, count in found.most_common(2):
            lines.append(f"{name} logged {count} times: `{line}`")
    return lines


def same_or_each(values: dict[str, str]) -> str:
    """One word if all agree."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({name})" for name, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
