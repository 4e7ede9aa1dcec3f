#!/usr/bin/env python3
"""What pools themselves cost, without a database: python3 examples/benchmark/pools.py

Each pool hands out dummies, in processes of its own and in the environment that compare.py makes
for its contender. CPU time, because a busy machine spoils other times first; one pool after the
other, and all of them again, because that has good and bad moments. Standard library only.

    alone     CPU of taking and giving back, nobody else there
    shared    the same with 100 greenlets on 10 connections, each held for 1 ms: CPU of a cycle, the
              sleep included; and the longest wait, which is 10 ms if all wait their turn
    queued    CPU of a hand-over, with 10 and with 10,000 greenlets in the queue
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import environments  # noqa: E402
import report  # noqa: E402
from private_database import tied_to_us  # noqa: E402

SIZE = 10
WAIT = 60  # seconds, where one may choose
PATIENCE = 120  # seconds for one pool; longer is "hangs"
ROUNDS, PROCESSES = 7, 5

Take = Callable[[], Any]
Give = Callable[[Any], object]


class Dummy:
    """Enough of a connection for all of them."""

    def cursor(self) -> Dummy:
        return self

    def nothing(self, *args: object) -> None:
        pass

    close = commit = rollback = ping = nothing


class Driver:
    """Enough of a DB-API module for DBUtils."""

    threadsafety = 1
    Error = DatabaseError = OperationalError = InterfaceError = InternalError = Exception
    connect = Dummy


def pooled_serve(size: int) -> tuple[Take, Give]:
    from pooled_serve.pool import ConnectionPool

    pool = ConnectionPool(Dummy, size=size, max_outstanding=size, timeout=WAIT)
    return pool.acquire, pool.release


def django_db_pooling(size: int) -> tuple[Take, Give]:
    from django_db_pooling import pooling

    # In the place of Django's way to make a connection, which the pool calls.
    pooling._original_get_item = lambda connections, alias: Dummy()
    pooling.make_connection_shareable = lambda connection: None
    pooling.set_pool_size(size, max_outstanding=size, timeout=WAIT)
    pool = pooling.ConnectionPool("default")
    return pool.acquire, pool.release


def django_mysql_geventpool(size: int) -> tuple[Take, Give]:
    from django_mysql_geventpool.backends.connection_pool import DatabaseConnectionPool

    class Pool(DatabaseConnectionPool):  # type: ignore[misc]
        def create_connection(self, parameters: object) -> Dummy:
            return Dummy()

        def is_usable(self, connection: object) -> bool:
            return True

    pool = Pool(size)
    return lambda: pool.get(None), pool.put


def sqlalchemy(size: int) -> tuple[Take, Give]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(Dummy, pool_size=size, max_overflow=0, timeout=WAIT)
    return pool.connect, lambda connection: connection.close()


def dbutils(size: int) -> tuple[Take, Give]:
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(Driver, maxcached=size, maxconnections=size, blocking=True)
    return pool.connection, lambda connection: connection.close()


def stack(size: int) -> tuple[Take, Give]:
    """No pool at all: the least that there is to pay. It has no bound and nobody waits."""
    idle = [Dummy() for _ in range(10_000)]
    return idle.pop, idle.append


POOLS: dict[str, tuple[str, Callable[[int], tuple[Take, Give]]]] = {
    "pooled-request": ("pooled-serve", pooled_serve),
    "django-db-pooling": ("django-db-pooling", django_db_pooling),
    "django-mysql-geventpool": ("django-mysql-geventpool", django_mysql_geventpool),
    "django-db-connection-pool": ("SQLAlchemy QueuePool", sqlalchemy),
    "dbutils": ("DBUtils PooledDB", dbutils),
    "ceiling": ("a list (no pool, nobody waits)", stack),
}


def alone(take: Take, give: Give, cycles: int = 20_000) -> float:
    """Microseconds of CPU: the median of some rounds."""
    costs = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(cycles):
            give(take())
        costs.append((time.process_time() - began) / cycles * 1e6)
    return statistics.median(costs)


def shared(take: Take, give: Give, users: int = 100, cycles: int = 50) -> tuple[float, float]:
    """Microseconds of CPU of a cycle, and milliseconds of the longest wait."""
    import gevent

    longest = 0.0

    def use() -> None:
        nonlocal longest
        for _ in range(cycles):
            began = time.perf_counter()
            connection = take()
            longest = max(longest, time.perf_counter() - began)
            gevent.sleep(0.001)
            give(connection)

    began = time.process_time()
    gevent.joinall([gevent.spawn(use) for _ in range(users)], raise_error=True)
    return (time.process_time() - began) / users / cycles * 1e6, longest * 1e3


def queued(take: Take, give: Give, waiting: int) -> float:
    """Microseconds of CPU of one hand-over: a queue that empties, divided by its length."""
    import gevent

    first = take()
    greenlets = [gevent.spawn(lambda: give(take())) for _ in range(waiting)]
    gevent.sleep(0.1)  # all of them are in the queue
    began = time.process_time()
    give(first)
    gevent.joinall(greenlets, raise_error=True)
    return (time.process_time() - began) / waiting * 1e6


def measure(make: Callable[[int], tuple[Take, Give]]) -> dict[str, float]:
    cycle, longest = shared(*make(SIZE))
    few = [queued(*make(1), 10) for _ in range(200)]
    return {
        "alone": alone(*make(SIZE)),
        "shared": cycle,
        "longest": longest,
        "queued_10": statistics.median(few),
        "queued_10000": queued(*make(1), 10_000),
    }


def figures_of(python: Path, name: str) -> dict[str, float]:
    """Of one pool, from a process of its own; nothing if it does not come to an end."""
    command = tied_to_us([str(python), __file__, "--alone", name])
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {}
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        from gevent import monkey

        monkey.patch_all()
        print(json.dumps(measure(POOLS[sys.argv[2]][1])))
        return
    parser = argparse.ArgumentParser(description="Compare what pools themselves cost.")
    parser.add_argument("--contenders", default=",".join(POOLS), metavar="A,B")
    parser.add_argument("--processes", type=int, default=PROCESSES, metavar="N")
    parser.add_argument("--no-install", action="store_true", help="as in compare.py")
    options = parser.parse_args()
    names = environments.chosen(parser, "--contenders", options.contenders, [*POOLS])
    pythons, _ = environments.make_environments(names, install=not options.no_install)
    head = ["µs of CPU", "alone", "shared", "longest wait, ms", "queued, 10", "queued, 10,000"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.processes):
        for name in names:
            # Who hung once is not asked again.
            if all(found[name]):
                found[name].append(figures_of(pythons[name], name))
    rows = []
    for name, runs in found.items():
        medians = (
            [report.number(statistics.median(run[figure] for run in runs)) for figure in runs[0]]
            if all(runs)
            else [f"hangs ({PATIENCE} s)"] * 5
        )
        rows.append([POOLS[name][0], *medians])
    print(report.as_markdown([head, *rows]))


if __name__ == "__main__":
    main()
