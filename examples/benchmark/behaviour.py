#!/usr/bin/env python3
"""What do pools hand on, and what do they survive? python3 examples/benchmark/behaviour.py

Each cell of the table it prints is the outcome of an experiment with a real pool and a private
database: requests go through Django's WSGI handler, each in a greenlet of its own, as Gunicorn's
gevent worker has it. Every experiment has a process of its own. The environments are those of
compare.py, as are --contenders and --no-install.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import contenders  # noqa: E402
import environments  # noqa: E402
import report  # noqa: E402
from private_database import PrivateDatabase, tied_to_us  # noqa: E402

PEERS = (
    "pooled-request",
    "pooled-transaction",
    "django-db-pooling",
    "django-mysql-geventpool",
    "django-db-connection-pool",
    "dbutils",
)
POOL = 4
WAIT = 1  # seconds, for those that let one choose
HELD = 3.0  # seconds that connections are held, so that WAIT is over before
PATIENCE = 60.0  # seconds; an experiment that takes longer hangs
REQUESTS = 40

Result = tuple[int, str]
"""The status, and the answer or the name of the exception."""


class Site:
    """The project in this process, and an administrator's own connection beside it."""

    def __init__(self, name: str, connections: int) -> None:
        """Import the project, only now: gevent has patched and the contender is known."""
        from pymysql.connections import Connection

        os.environ |= {"CONTENDER": name, "CONNECTIONS": str(connections)}
        contenders.WAIT = WAIT
        if name.startswith("pooled-"):
            from pooled_serve import pooling

            os.environ["POOLED_SERVE_POOL_MODE"] = name.removeprefix("pooled-")
            pooling.set_pool_size(connections, max_outstanding=connections, timeout=WAIT)
            pooling.apply_patch()
        self.application = import_module(contenders.contender(name, connections).app).application
        self.connections = connections

        import logging

        from django.conf import settings
        from django.core.signals import got_request_exception

        logging.disable(logging.CRITICAL)  # errors are what we are after
        got_request_exception.connect(self._note_exception)
        self._connect = partial(
            Connection,
            unix_socket=os.environ["ADMIN_SOCKET"],
            user="root",
            password=os.environ["ADMIN_PASSWORD"],
            database=settings.DATABASES["default"]["NAME"],
            autocommit=True,
        )
        self.user = settings.DATABASES["default"]["USER"]
        self.admin = self._connect()
        self.ask("CREATE TABLE IF NOT EXISTS probe (value INT)")
        self.ask("DELETE FROM probe")
        self.ask("INSERT INTO probe VALUES (0)")

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """As the administrator."""
        with self.admin.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def restart_database(self) -> None:
        """By those who started it."""
        self.admin.close()
        print("restart", flush=True)
        # A plain read would keep the other greenlets waiting, and there are none now.
        sys.stdin.readline()
        self.admin = self._connect()

    def spawn(self, view: Callable[[], object]) -> Any:
        """A request, in a greenlet of its own."""
        import gevent

        return gevent.spawn(self._respond, view)

    def request(self, view: Callable[[], object]) -> Result:
        """A request and its answer."""
        result: Result = self.spawn(view).get()
        return result

    def _respond(self, view: Callable[[], object]) -> Result:
        from wsgiref.util import setup_testing_defaults

        status: list[int] = []

        def start_response(line: str, headers: object) -> None:
            status.append(int(line.split()[0]))

        environ: dict[str, Any] = {"PATH_INFO": "/probe", "probe": view, "exceptions": []}
        setup_testing_defaults(environ)
        try:
            response = self.application(environ, start_response)
        except Exception as error:
            return 500, name_of(error)  # which is what Gunicorn makes of it
        body = b"".join(response).decode()
        with suppress(Exception):  # the answer is out; Gunicorn writes this to its log
            response.close()
        return status[0], next(iter(environ["exceptions"]), body)

    @staticmethod
    def _note_exception(request: Any, **kwargs: object) -> None:
        request.environ["exceptions"].append(name_of(sys.exception()))


def name_of(error: BaseException | None) -> str:
    kind = type(error)
    return f"{kind.__module__.partition('.')[0].lstrip('_')}.{kind.__name__}"


def sql(*statements: str) -> Callable[[], object]:
    """A view: the first column of the first row of the last statement."""

    def view() -> object:
        from django.db import connection

        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    return view


def holding(seconds: float) -> Callable[[], object]:
    """A view that has its connection for so long, transaction mode included."""

    def view() -> object:
        import gevent
        from django.db import connection, transaction

        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            gevent.sleep(seconds)
            return cursor.fetchone()[0]

    return view


def answers(greenlets: Iterable[Any], timeout: float) -> list[Result]:
    """Of those that answer within so many seconds; the others are ended."""
    import gevent

    greenlets = list(greenlets)
    gevent.joinall(greenlets, timeout=timeout)
    done = [each.value for each in greenlets if each.successful() and isinstance(each.value, tuple)]
    gevent.killall(greenlets, timeout=5)
    return done


def outcome(results: Iterable[Result], expected: int) -> str:
    """How many requests failed, and how."""
    results = list(results)
    kinds = Counter(f"{status} {text}" for status, text in results if status != 200)
    if unanswered := expected - len(results):
        kinds["no answer"] += unanswered
    failed = ", ".join(f"{kind}" for kind, _ in kinds.most_common(2))
    return f"{kinds.total()} of {expected} fail: {failed}" if kinds else f"0 of {expected} fail"


def usable(site: Site) -> str:
    """How many connections the pool can still hand out at the same time."""
    got = answers((site.spawn(holding(0.5)) for _ in range(site.connections)), timeout=3)
    served = {text for status, text in got if status == 200}
    return f"{len(served)} of {site.connections} left"


# --- Experiments: what the next request sees ----------------------------------------------------


def transaction(site: Site) -> str:
    site.request(sql("START TRANSACTION", "UPDATE probe SET value = 1"))
    seen = site.request(sql("SELECT value FROM probe"))
    site.request(holding(0))  # its BEGIN would commit what is open
    if site.ask("SELECT value FROM probe") == [(1,)]:
        return "the next atomic() commits it"
    return "rolled back" if seen == (200, "0") else "the next request is in it"


def user_variable(site: Site) -> str:
    site.request(sql("SET @tenant = 7"))
    seen = site.request(sql("SELECT @tenant"))
    return "gone" if seen == (200, "None") else "handed on"


def session_variable(site: Site) -> str:
    before = site.request(sql("SELECT @@SESSION.time_zone"))
    site.request(sql("SET time_zone = '+09:00'"))
    return "restored" if site.request(sql("SELECT @@SESSION.time_zone")) == before else "handed on"


def locked_tables(site: Site) -> str:
    site.request(sql("LOCK TABLES probe WRITE"))
    # Our own next request is allowed to; this is anybody else.
    site.ask("SET lock_wait_timeout = 1")
    try:
        site.ask("SELECT value FROM probe")
    except site.admin.OperationalError:
        return "stay locked"
    return "unlocked"


def other_database(site: Site) -> str:
    before = site.request(sql("SELECT DATABASE()"))
    site.request(sql("USE information_schema"))
    return "restored" if site.request(sql("SELECT DATABASE()")) == before else "handed on"


# --- Experiments: what it survives --------------------------------------------------------------


def all_taken(site: Site) -> str:
    import gevent

    holders = [site.spawn(holding(HELD)) for _ in range(site.connections)]
    gevent.sleep(HELD / 6)
    began = time.monotonic()
    status, text = site.request(sql("SELECT 1"))
    waited = time.monotonic() - began
    gevent.joinall(holders)
    if status == 200:
        return "no limit: waits on"
    return f"{status}{'' if status == 503 else ' ' + text} after {waited:.1f} s"


def killed_holding(site: Site) -> str:
    import gevent

    for _ in range(REQUESTS // site.connections):
        holders = [site.spawn(holding(30)) for _ in range(site.connections)]
        gevent.sleep(0.1)
        gevent.killall(holders)
    gevent.sleep(0.5)
    return usable(site)


def killed_waiting(site: Site) -> str:
    import gevent

    holders = [site.spawn(holding(HELD / 3)) for _ in range(site.connections)]
    gevent.sleep(HELD / 6)
    waiters = [site.spawn(sql("SELECT 1")) for _ in range(REQUESTS)]
    gevent.sleep(0.1)
    gevent.killall(waiters)
    gevent.joinall(holders)
    return usable(site)


def spawned(site: Site) -> str:
    """Greenlets that a project starts for itself end no request."""
    import gevent

    for _ in range(site.connections):
        gevent.spawn(sql("SELECT 1")).join(5)
    gevent.sleep(0.5)
    return usable(site)


def restarted(site: Site) -> str:
    fill(site)
    site.restart_database()
    return outcome(in_turn(site), REQUESTS)


def killed_idle(site: Site) -> str:
    fill(site)
    for (number,) in site.ask(
        f"SELECT id FROM information_schema.processlist WHERE user = '{site.user}'"
    ):
        site.ask(f"KILL {number}")
    return outcome(in_turn(site), REQUESTS)


def fill(site: Site) -> None:
    """All connections are open and idle."""
    answers([site.spawn(holding(0.5)) for _ in range(site.connections)], timeout=5)


def in_turn(site: Site) -> list[Result]:
    """As many at a time as there are connections."""
    got: list[Result] = []
    for _ in range(REQUESTS // site.connections):
        got += answers([site.spawn(sql("SELECT 1")) for _ in range(site.connections)], timeout=5)
    return got


Experiment = Callable[[Site], str]

EXPERIMENTS: dict[str, tuple[str, int, Experiment]] = {
    experiment.__name__: (title, connections, experiment)
    for title, connections, experiment in (
        ("a request leaves a transaction open", 1, transaction),
        ("... sets a user variable", 1, user_variable),
        ("... sets a session variable", 1, session_variable),
        ("... locks tables", 1, locked_tables),
        ("... changes the database", 1, other_database),
        (f"all connections are taken; limit {WAIT} s", POOL, all_taken),
        (f"{REQUESTS} requests killed while they hold a connection", POOL, killed_holding),
        (f"{REQUESTS} requests killed while they wait for one", POOL, killed_waiting),
        (f"{POOL} greenlets use the ORM outside a request", POOL, spawned),
        ("the database restarts", POOL, restarted),
        ("the server ends all idle connections", POOL, killed_idle),
    )
}


# --- The parent ---------------------------------------------------------------------------------


def outcome_of(python: Path, database: Any, name: str, experiment: str) -> str:
    """Run one experiment in a process of its own."""
    secrets = {"ADMIN_SOCKET": str(database.socket), "ADMIN_PASSWORD": password_of(database)}
    process = subprocess.Popen(
        tied_to_us([str(python), __file__, "--alone", name, experiment]),
        env=environments.shop_environment(database)
        | {"DJANGO_SETTINGS_MODULE": "peers.settings"}
        | secrets,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    deadline = time.monotonic() + PATIENCE
    with process:
        try:
            while select.select([process.stdout], [], [], deadline - time.monotonic())[0]:
                line = process.stdout.readline()
                if line.startswith("{"):
                    outcome: str = json.loads(line)["outcome"]
                    return outcome
                if not line:
                    raise SystemExit(f"{name}, {experiment}:\n{process.stderr.read()[-2000:]}")
                database.restart()
                process.stdin.write("done\n")
                process.stdin.flush()
            return f"hangs (for {PATIENCE:.0f} s)"
        finally:
            process.kill()


def password_of(database: Any) -> str:
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(database.admin_url()).password or "")


def alone(name: str, experiment: str) -> None:
    """What the child does."""
    _, connections, run = EXPERIMENTS[experiment]
    print(json.dumps({"outcome": run(Site(name, connections))}), flush=True)
    os._exit(0)  # a pool that hangs must not hang the end


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        from gevent import monkey

        monkey.patch_all()
        alone(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="Try what pools hand on and what they survive.")
    parser.add_argument("--contenders", default=",".join(PEERS), metavar="A,B")
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), metavar="A,B")
    parser.add_argument("--no-install", action="store_true", help="as in compare.py")
    options = parser.parse_args()
    names = environments.chosen(parser, "--contenders", options.contenders, PEERS)
    experiments = environments.chosen(parser, "--experiments", options.experiments, [*EXPERIMENTS])
    pythons, _ = environments.make_environments(names, install=not options.no_install)
    with tempfile.TemporaryDirectory() as folder, PrivateDatabase(folder) as database:
        rows = []
        for experiment in experiments:
            cells = []
            for name in names:
                cells.append(outcome_of(pythons[name], database, name, experiment))
                environments.say(f"{experiment:<18} {name:<27} {cells[-1]}")
            rows.append([EXPERIMENTS[experiment][0], *cells])
    head = ["", *(contenders.contender(name, POOL).title for name in names)]
    print(report.as_markdown([head, *rows]))


if __name__ == "__main__":
    main()
