#!/usr/bin/env python
"""Load the shop: many clients at once, one table of what they got.

    python load.py http://127.0.0.1:8000 --clients 100 --seconds 10 --path /bench/one
    DATABASE_URL=... python load.py --compare-modes --seconds 5

With --database it also watches how many connections the database server has open meanwhile. That
needs PyMySQL, as the shop does; all the rest is gevent and the standard library.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # first of all: what is imported before this would block the other clients

import argparse
import ipaddress
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import gevent
import gevent.event

DEFAULT_URL = "http://127.0.0.1:8000"
REQUEST_TIMEOUT = 30.0  # seconds
GRACE = 5.0  # how long requests that are under way at the end may still take
SAMPLE_EVERY = 0.1

# What visitors do, the more frequent the more often it stands here.
MIX = (
    *["/product/{id}/"] * 8,
    *["/", "/?page={id}", "/search/?q=oak+lamp"] * 2,
    *["/category/tea/", "/cart/", "/product/{id}/delivery/", "/bench/update"],
)


@dataclass
class Report:
    """What the clients got.

    Times are milliseconds, and only of answers below 400: to fail fast is no achievement.
    """

    url: str
    clients: int
    seconds: float = 0.0
    requests: int = 0
    ok: int = 0
    per_second: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    connections_max: int | None = None
    connections_final: int | None = None


@dataclass
class _Tally:
    """What all clients write to while they run."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def run(
    url: str = DEFAULT_URL,
    *,
    clients: int = 100,
    seconds: float = 10.0,
    paths: Sequence[str] = ("/bench/one",),
    keep_alive: bool = True,
    database: str | None = None,
) -> Report:
    """Load `url` and return when it is over: after `seconds`, and at most GRACE more.

    Raise ValueError for a server that is not on this machine: this is a demonstration, and a load
    generator pointed at somebody else is an attack.
    """
    host, port = _loopback(url)
    tally = _Tally()
    with _ConnectionWatch(database) if database else nullcontext() as watch:
        started = time.monotonic()
        deadline = started + seconds
        greenlets = [
            gevent.spawn(
                _client,
                *(host, port, random.Random(n), paths, deadline, tally),
                keep_alive=keep_alive,
            )
            for n in range(clients)
        ]
        gevent.joinall(greenlets, timeout=seconds + GRACE)
        if unfinished := sum(not greenlet.ready() for greenlet in greenlets):
            tally.errors["unfinished"] = unfinished
            gevent.killall(greenlets)
        report = _report(url, clients, time.monotonic() - started, tally)
    if watch:
        report.connections_max, report.connections_final = watch.most, watch.last
    return report


def _loopback(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = parts.hostname or ""
    if parts.scheme != "http":
        raise ValueError(f"only http:// is spoken here, not {parts.scheme}://")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{host} is not this machine; this demo loads 127.0.0.1 or localhost only")
    return host, parts.port or 80


def _client(
    host: str,
    port: int,
    rng: random.Random,
    paths: Sequence[str],
    deadline: float,
    tally: _Tally,
    *,
    keep_alive: bool,
) -> None:
    """One visitor: a request after the other, on one connection where the server lets it."""
    connection = _Connection(host, port, keep_alive=keep_alive)
    while (began := time.monotonic()) < deadline:
        try:
            status = connection.get(rng.choice(paths).format(id=rng.randint(1, 50)))
        except (OSError, ValueError) as error:
            tally.errors[type(error).__name__] += 1
            connection.close()
            gevent.sleep(0.1)  # a server that is down is not up sooner for being asked faster
            continue
        if status < 400:
            tally.latencies.append((time.monotonic() - began) * 1000)
        else:
            tally.errors[f"HTTP {status}"] += 1
    connection.close()


class _Connection:
    """As much of HTTP as it takes to read every answer to its end.

    http.client understands every header, for three times the CPU, and clients that share a machine
    with the server they measure take from it what they use.
    """

    def __init__(self, host: str, port: int, *, keep_alive: bool) -> None:
        self._address = (host, port)
        name = f"[{host}]" if ":" in host else host
        self._rest = f" HTTP/1.1\r\nHost: {name}:{port}\r\n"
        self._rest += "\r\n" if keep_alive else "Connection: close\r\n\r\n"
        self._socket: socket.socket | None = None
        self._answers: Any = None

    def get(self, path: str) -> int:
        """The status of the answer. Raise OSError or ValueError if there is none, or half of it."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, REQUEST_TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._answers = self._socket.makefile("rb")
        self._socket.sendall(f"GET {path}{self._rest}".encode())
        status = int(self._line().partition(b" ")[2][:3])
        length, chunked, close = None, False, False
        while (line := self._line().lower()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = b"chunked" in value
            elif name == b"connection":
                close = b"close" in value
        if chunked:
            while size := int(self._line(), 16):
                self._skip(size + 2)
            self._skip(2)
        elif length is not None:
            self._skip(length)
        elif status not in (204, 304):
            self._answers.read()
            close = True
        if close:
            self.close()
        return status

    def close(self) -> None:
        if self._socket is not None:
            self._answers.close()
            self._socket.close()
            self._socket = None

    def _line(self) -> bytes:
        line: bytes = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the server hung up before the end of its answer")
        return line

    def _skip(self, length: int) -> None:
        if len(self._answers.read(length)) < length:
            raise ConnectionResetError("the server hung up before the end of its answer")


def _report(url: str, clients: int, seconds: float, tally: _Tally) -> Report:
    latencies = sorted(tally.latencies)
    requests = len(latencies) + tally.errors.total()
    report = Report(
        url=url,
        clients=clients,
        seconds=round(seconds, 2),
        requests=requests,
        ok=len(latencies),
        per_second=round(len(latencies) / seconds, 1),
        errors=dict(tally.errors.most_common()),
    )
    if latencies:
        report.p50_ms, report.p95_ms, report.p99_ms, report.max_ms = (
            round(latencies[max(math.ceil(len(latencies) * share) - 1, 0)], 1)
            for share in (0.50, 0.95, 0.99, 1)
        )
    return report


class _ConnectionWatch:
    """Counts the database server's open connections, without its own, ten times a second.

    From the beginning of a `with` block to its end; then `most` is the highest number seen, and
    `last` the last one.
    """

    most = last = 0

    def __init__(self, url: str) -> None:
        import pymysql

        from shop import database_url

        settings = database_url.parse(url)
        if not settings["ENGINE"].endswith("mysql"):
            raise ValueError("only the connections of a mysql:// database can be watched")
        host, port = settings["HOST"], settings["PORT"]
        address: dict[str, Any] = (
            {"unix_socket": host}
            if host.startswith("/")
            else {"host": host, "port": int(port or 0)}
        )
        self._pymysql = pymysql
        self._connect = partial(
            pymysql.connect, user=settings["USER"], password=settings["PASSWORD"], **address
        )
        self._over = gevent.event.Event()

    def __enter__(self) -> "_ConnectionWatch":
        try:
            self._connection = self._connect()
            self._count()
        except self._pymysql.MySQLError as error:
            raise ValueError(f"the database does not let us watch it: {error}") from error
        self._greenlet = gevent.spawn(self._watch)
        return self

    def __exit__(self, exc_type: object, *exc_info: object) -> None:
        if exc_type is None:
            gevent.sleep(2 * SAMPLE_EVERY)  # connections that are being closed are gone by then
        # Not killed in the middle of a question: whoever hangs up on the server without a goodbye
        # is one of the "aborted clients" that it counts, and that somebody may be watching for.
        self._over.set()
        self._greenlet.join(GRACE)
        self._greenlet.kill()
        with suppress(self._pymysql.MySQLError):
            self._connection.close()

    def _count(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            [(_, count)] = cursor.fetchall()
        self.last = int(count) - 1
        self.most = max(self.most, self.last)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            try:
                self._count()
            except self._pymysql.MySQLError:
                # Restarting the database under load is a fair experiment: watch on after it.
                with suppress(self._pymysql.MySQLError):
                    self._connection = self._connect()


def _failures(report: Report) -> str:
    return ", ".join(f"{n} x {kind}" for kind, n in report.errors.items()) or "none"


def _table(report: Report) -> str:
    rows = [
        ("requests", f"{report.requests} in {report.seconds} s from {report.clients} clients"),
        ("succeeded", f"{report.ok}, {report.per_second} a second"),
        ("failed", _failures(report)),
    ]
    if report.ok:
        times = {"p50": report.p50_ms, "p95": report.p95_ms, "p99": report.p99_ms}
        shown = "  ".join(f"{name} {ms}" for name, ms in (times | {"max": report.max_ms}).items())
        rows.append(("milliseconds", shown))
    if report.connections_max is not None:
        shown = f"at most {report.connections_max}, at the end {report.connections_final}"
        rows.append(("database connections", shown))
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


MODES = ("request", "transaction")
COMPARED = ("--pool-size", "4", "--max-outstanding", "4", "--pool-timeout", "60")
COMPARED_PATH = "/bench/outside?ms=300&spread=100"


def compare_modes(clients: int, seconds: float) -> dict[str, Report]:
    """The page with an outside call between two queries, on 4 connections, in each pool mode."""
    return {mode: _in_mode(mode, clients, seconds) for mode in MODES}


def _in_mode(mode: str, clients: int, seconds: float) -> Report:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pooled_serve", "shop.wsgi", "-b", f"127.0.0.1:{port}"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*command, *COMPARED, "--pool-mode", mode],
            cwd=os.path.dirname(os.path.abspath(__file__)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                if run(url, clients=1, seconds=0.1).ok:
                    return run(url, clients=clients, seconds=seconds, paths=(COMPARED_PATH,))
                if server.poll() is not None:
                    break
            log.seek(0)
            raise ValueError(f"pooled-serve does not serve the shop\n{log.read()}")
        finally:
            server.terminate()
            server.wait()


def _comparison(reports: dict[str, Report]) -> str:
    rows = [
        f"{mode:<22}{report.per_second} requests a second, failed: {_failures(report)}"
        for mode, report in reports.items()
    ]
    request, transaction = (reports[mode].per_second for mode in MODES)
    rows.append(f"{'ratio':<22}{transaction / request if request else math.inf:.1f}")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Load the shop on this machine.")
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=100, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--path", default="/bench/one", help="default: %(default)s")
    what.add_argument("--mix", action="store_true", help="browse the shop as visitors do")
    what.add_argument(
        "--compare-modes",
        action="store_true",
        help=f"start the shop twice, in each --pool-mode on 4 connections, and load "
        f"{COMPARED_PATH}; url, --database and --keep-alive do not count. Needs DATABASE_URL",
    )
    parser.add_argument(
        "--keep-alive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="many requests on one connection, or a connection each",
    )
    parser.add_argument("--close", dest="keep_alive", action="store_false", help="--no-keep-alive")
    parser.add_argument(
        "--database",
        nargs="?",
        const=os.environ.get("DATABASE_URL", ""),
        metavar="URL",
        help="also watch this server's connections; without URL the one of $DATABASE_URL, which "
        "keeps the password off the command line",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args()
    if options.database == "":
        parser.error("--database needs a URL, or DATABASE_URL in the environment")
    if options.compare_modes and not os.environ.get("DATABASE_URL"):
        parser.error("--compare-modes needs DATABASE_URL in the environment")
    try:
        if options.compare_modes:
            compared = compare_modes(options.clients, options.seconds)
            as_json = json.dumps({mode: asdict(report) for mode, report in compared.items()})
            print(as_json if options.json else _comparison(compared))
            return 0 if all(report.ok for report in compared.values()) else 1
        report = run(
            options.url,
            clients=options.clients,
            seconds=options.seconds,
            paths=MIX if options.mix else (options.path,),
            keep_alive=options.keep_alive,
            database=options.database,
        )
    except ValueError as error:
        parser.exit(2, f"load.py: {error}\n")
    print(json.dumps(asdict(report)) if options.json else _table(report))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
