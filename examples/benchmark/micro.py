"""What the pool itself costs, and what reading results does: python examples/benchmark/micro.py

Starts a private database, measures, prints tables. mysqlclient is compared with if it is installed;
pools.py compares with other pools what needs no database. Figures of one run compare with each
other; those of two machines, or of a busy one, do not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent import monkey

alone = len(sys.argv) > 2  # a part that runs in a process of its own
if not alone:
    monkey.patch_all()

import gevent  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

from pooled_serve.driver.connection import MySQLConnection  # noqa: E402
from pooled_serve.pool import ConnectionPool  # noqa: E402
from pooled_serve.status.scoreboard import Scoreboard  # noqa: E402
from private_database import PrivateDatabase  # noqa: E402
from pymysql.connections import Connection  # noqa: E402

ROUNDS = 7


def milliseconds(function: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Median of some rounds: wall time and CPU time of one call."""
    wall, cpu = [], []
    for _ in range(ROUNDS):
        clocks = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            function()
        wall.append((time.perf_counter() - clocks[0]) / repeat * 1e3)
        cpu.append((time.process_time() - clocks[1]) / repeat * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def returning(connection: MySQLConnection, use: Callable[[], object]) -> tuple[float, float]:
    """Median cost of making a connection clean again after some use."""
    wall, cpu = [], []
    for _ in range(500):
        use()
        clocks = time.perf_counter(), time.process_time()
        connection.reset()
        wall.append((time.perf_counter() - clocks[0]) * 1e3)
        cpu.append((time.process_time() - clocks[1]) * 1e3)
    return statistics.median(wall), statistics.median(cpu)


def touch(connection: MySQLConnection) -> None:
    connection.query("SET @x = 1")
    connection.dirty_reason = "variable"


def contended(pool: ConnectionPool[Any], users: int, cycles: int) -> tuple[float, float]:
    """Many greenlets, few connections: milliseconds of a cycle, and of the longest wait."""
    longest = 0.0

    def use() -> None:
        nonlocal longest
        for _ in range(cycles):
            began = time.perf_counter()
            connection = pool.acquire()
            longest = max(longest, time.perf_counter() - began)
            gevent.sleep(0)
            pool.release(connection)

    began = time.perf_counter()
    gevent.joinall([gevent.spawn(use) for _ in range(users)], raise_error=True)
    return (time.perf_counter() - began) / users / cycles * 1e3, longest * 1e3


ROWS = (1, 20, 100, 1000)
TABLE = """
    CREATE TABLE reading (
        id INT PRIMARY KEY, name VARCHAR(50), title VARCHAR(100), price DECIMAL(10,2), stock INT,
        text TEXT, changed DATETIME(6), active TINYINT, views INT, score DOUBLE
    ) CHARACTER SET utf8mb4
"""


def reading(arguments: dict[str, Any]) -> None:
    """Print the CPU time of a query of so many rows and its fetchall(), by driver.

    Without gevent, whose waits cost PyMySQL and pooled-serve the same, and which mysqlclient cannot
    use. The drivers take turns, a few queries at a time, so that all see the same machine.
    """
    plain = {**arguments, "charset": "utf8mb4"}
    drivers: dict[str, Any] = {
        "PyMySQL": Connection(**plain, ssl_disabled=True),
        "pooled-serve": MySQLConnection(**plain, ssl_disabled=True),
    }
    try:
        import MySQLdb

        drivers["mysqlclient"] = MySQLdb.connect(**plain, ssl_mode="DISABLED")
    except ImportError:
        print("\nmysqlclient is not installed, and not compared with")
    with drivers["PyMySQL"].cursor() as cursor:
        cursor.execute(TABLE)
        cursor.executemany(
            "INSERT INTO reading VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    *(n, f"name {n}", f"title é {n}", f"{n}.{n % 100:02}", n * 7, "x" * 120),
                    *(f"2024-01-{n % 28 + 1:02} 10:11:12.{n + 1:06}", 1, n * 1000, n / 7),
                )
                for n in range(ROWS[-1])
            ],
        )
    take_turns("a query of ten columns, CPU", drivers)


def reading_by_django(arguments: dict[str, Any]) -> None:
    """Print the same for Django's cursor: of its own connection with PyMySQL, and of a pooled one
    that a view has leased."""
    from django.conf import settings

    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    names["database"] = "NAME"
    database = {name: arguments[key] for key, name in names.items()}
    options = {"ssl_disabled": True}
    settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.mysql", "OPTIONS": options, **database}
        },
        USE_TZ=True,
    )
    import django
    from django.db import connections
    from django.db.utils import load_backend
    from pooled_serve import pooling
    from pooled_serve.backend.scope import scope_here

    django.setup()
    pooling.apply_patch()
    scope_here().keep_leases = True  # as while a view runs
    pooled = connections["default"]
    stock = load_backend(pooled.settings_dict["ENGINE"]).DatabaseWrapper(
        pooled.settings_dict.copy(), "default"
    )
    take_turns("the same, Django's cursor", {"PyMySQL": stock, "pooled-serve": pooled})


def take_turns(title: str, drivers: dict[str, Any]) -> None:
    """Print what each driver takes for some numbers of rows, and how ours compares."""

    def query(driver: Any, rows: int) -> Any:
        with driver.cursor() as cursor:
            cursor.execute(f"SELECT * FROM reading LIMIT {rows}")
            return cursor.fetchall()

    print(f"\n{title:28}" + "".join(f"{name:>16}" for name in drivers))
    for rows in ROWS:
        assert query(drivers["PyMySQL"], rows) == query(drivers["pooled-serve"], rows)
        times: dict[str, list[float]] = {name: [] for name in drivers}
        repeat = max(1, 200 // rows)
        for _ in range(100):
            for name, driver in drivers.items():
                began = time.process_time()
                for _ in range(repeat):
                    query(driver, rows)
                times[name].append((time.process_time() - began) / repeat * 1e6)
        costs = {name: statistics.median(found) for name, found in times.items()}
        line = "".join(f"{cost:13.0f} µs" for cost in costs.values())
        ours = costs.pop("pooled-serve")
        ratios = ", ".join(f"{ours / cost:.2f} x {name}" for name, cost in costs.items())
        print(f"{rows:>8} rows{'':15}{line}   {ratios}")
    for driver in drivers.values():
        driver.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, PrivateDatabase(folder) as database:
        arguments = connect_arguments(database)
        rows = [
            ("connect, PyMySQL", *milliseconds(lambda: Connection(**arguments).close(), 5)),
            (
                "connect, pooled-serve",
                *milliseconds(lambda: MySQLConnection(**arguments).close(), 50),
            ),
        ]
        pool = ConnectionPool(
            lambda: MySQLConnection(**arguments),
            size=10,
            max_outstanding=10,
            max_age=60,
            check=MySQLConnection.alive,
            condition=MySQLConnection.condition,
            reset=MySQLConnection.reset,
        )
        pool.release(pool.acquire())
        rows.append(
            (
                "acquire and release, clean",
                *milliseconds(lambda: pool.release(pool.acquire()), 20_000),
            )
        )
        scoreboard = Scoreboard()
        pool_row = scoreboard.pool_row(scoreboard.allocate() or 0, "default")
        assert pool_row is not None
        pool.attach_row(pool_row.current)
        rows.append(
            ("the same with --status", *milliseconds(lambda: pool.release(pool.acquire()), 20_000))
        )
        connection = pool.acquire()
        connection.set_up()
        rows += [
            ("a ping", *milliseconds(connection.ping, 500)),
            ("return: ROLLBACK", *returning(connection, connection.begin)),
            ("return: session reset", *returning(connection, lambda: touch(connection))),
        ]
        pool.release(connection)
        cycle, longest = contended(pool, 100, 100)
        pool.close()

        print(f"{'':28}{'wall':>12}{'CPU':>12}")
        for name, wall, cpu in rows:
            print(f"{name:28}{wall * 1e3:9.1f} µs{cpu * 1e3:9.1f} µs")
        print(f"a connect takes {rows[1][2] / rows[0][2]:.3f} of PyMySQL's CPU time")
        cycle *= 1e3
        print(f"100 users of 10 connections: {cycle:.1f} µs a cycle, longest wait {longest:.1f} ms")
        sys.stdout.flush()
        for which in WITHOUT_GEVENT:
            subprocess.run([sys.executable, __file__, which, json.dumps(arguments)], check=True)


def connect_arguments(database: PrivateDatabase) -> dict[str, Any]:
    """For PyMySQL, from the database's URL."""
    from urllib.parse import unquote, urlsplit

    url = urlsplit(database.url())
    return {
        "host": url.hostname,
        "port": url.port,
        "user": url.username,
        "password": unquote(url.password or ""),
        "database": url.path.strip("/"),
        "autocommit": True,
    }


WITHOUT_GEVENT = {"reading": reading, "django": reading_by_django}

if __name__ == "__main__":
    if alone:
        WITHOUT_GEVENT[sys.argv[1]](json.loads(sys.argv[2]))
    else:
        main()
