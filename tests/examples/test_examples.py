"""The example shop works, plainly and pooled, and its load generator tells the truth."""

from __future__ import annotations

import json
import os
import pty
import re
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urlencode

import pytest

from support import processes
from support.ports import free_port
from support.serve import Serve, environment
from support.servers import ROOT, Database, Server
from support.text import find
from support.torture import torture

SHOP = ROOT / "examples" / "shop"
PRODUCTS = 300
# Connections that are not the shop's. load.py does not count its own, the server does.
ADMIN, LOAD = 1, 1

POOLED_MANAGE = """
import sys
from pooled_serve import pooling
pooling.set_pool_size(2, max_outstanding=4)
pooling.apply_patch()
import manage
manage.main()
"""


def run(*args: str, env: Mapping[str, str], stderr: int = subprocess.PIPE) -> Any:
    return subprocess.run(
        [sys.executable, *args],
        cwd=SHOP,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=300,
        check=False,
    )


def url_of(database: Database) -> str:
    address = f"{database.host}:{database.port}"
    return f"mysql://{database.user}:{database.password}@{address}/{database.name}"


class Shop:
    """A catalogue in a database of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.database = server.create_database()
        self.env = {"DATABASE_URL": url_of(self.database), "CARRIER_DELAY": "0.05"}
        self.seed_showed = self._fill()

    def _fill(self) -> str:
        """What seeding shows on a terminal."""
        migrated = run("manage.py", "migrate", "--verbosity=0", env=self.env)
        assert migrated.returncode == 0, migrated.stderr
        ours, theirs = pty.openpty()
        try:
            seeded = run("manage.py", "seed", f"--products={PRODUCTS}", env=self.env, stderr=theirs)
            assert seeded.returncode == 0
            shown: str = os.read(ours, 10_000).decode() + seeded.stdout
            return shown
        finally:
            os.close(ours)
            os.close(theirs)

    def load(self, server: Serve, *args: str) -> Any:
        """load.py at work against this shop, watching its database."""
        url = f"http://127.0.0.1:{server.port}"
        return run("load.py", url, "--database", *args, env=self.env)

    def connections(self) -> int:
        return len(self.server.admin.processlist(self.database.user))

    def threads(self) -> int:
        """The connections of everybody."""
        return self.server.admin.status("Threads_connected")

    def wait_for_connections(self, count: int) -> None:
        """Those that are being closed are still there for a moment."""
        processes.wait_until(lambda: self.connections() == count)


@pytest.fixture(scope="module")
def shop(mariadb: Server) -> Shop:
    return Shop(mariadb)


@contextmanager
def opened(shop: Shop, *args: str) -> Iterator[Serve]:
    with Serve("shop.wsgi", *args, cwd=SHOP, env=shop.env) as server:
        yield server


# --- The shop ----------------------------------------------------------------------------------


@torture
@pytest.mark.parametrize("how", [["manage.py"], ["-c", POOLED_MANAGE]], ids=["plain", "pooled"])
def test_the_shops_own_tests_pass_on_mariadb(mariadb: Server, how: list[str]) -> None:
    done = run(*how, "test", "--noinput", env={"DATABASE_URL": mariadb.url()})
    assert done.returncode == 0, done.stderr
    assert "\nOK\n" in done.stderr


@torture
def test_seeding_shows_how_far_it_is(shop: Shop) -> None:
    assert f"[{'#' * 30}] {PRODUCTS}/{PRODUCTS}" in shop.seed_showed
    assert f"{PRODUCTS} products in 20 categories." in shop.seed_showed


class Visitor:
    """A browser, as far as a shop needs one."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._cookies = CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._cookies)
        )

    def open(self, path: str, **form: str) -> str:
        data = None
        if form:
            token = next(c.value for c in self._cookies if c.name == "csrftoken")
            data = urlencode({**form, "csrfmiddlewaretoken": token}).encode()
        with self._opener.open(self._base + path, data, timeout=60) as response:
            page: bytes = response.read()
            return page.decode()


def test_a_visitor_browses_and_buys(shop: Shop) -> None:
    with opened(shop, "--pool-size", "2") as server:
        visitor = Visitor(server.port)
        assert visitor.open("/").count('class="card"') == 24
        product = find(r"/product/\d+/", visitor.open("/search/?q=oak")).group()
        assert "oak" in visitor.open(product).lower()
        assert "At your door in" in visitor.open(f"{product}delivery/")
        assert "Log in" in visitor.open("/admin/login/?next=/admin/")
        visitor.open(product.replace("product", "cart"), quantity="1")
        assert "Thank you, Ada!" in visitor.open("/checkout/", name="Ada", email="a@example.com")
        # all of it on one connection: none of these requests met another
        shop.wait_for_connections(1)


# --- The load generator ------------------------------------------------------------------------


@torture
@pytest.mark.parametrize(
    ("workers", "kind"),
    [(1, ["--mix", "--close"]), (1, ["--path", "/bench/outside?ms=100"]), (2, ["--mix"])],
    ids=["one worker", "one worker, slow views", "two workers"],
)
def test_a_hundred_clients_share_ten_connections_a_worker(
    shop: Shop, workers: int, kind: list[str]
) -> None:
    admin = shop.server.admin
    options = ["--workers", str(workers), "--pool-size", "4", "--max-outstanding", "10"]
    with opened(shop, *options) as server:
        admin.aborted_clients()  # waits until nobody else is there
        admin.query("FLUSH STATUS")  # all begins anew, Max_used_connections at what is open now
        aborted = admin.aborted_clients()
        done = shop.load(server, *kind, "--clients", "100", "--seconds", "1.5", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["errors"] == {}, server.log
        assert report["ok"] == report["requests"] >= 100
        assert report["connections_max"] - ADMIN <= 10 * workers
        # load.py looks ten times a second; the server itself misses nothing
        assert admin.status("Max_used_connections") - ADMIN - LOAD <= 10 * workers
        # the last ones of the load may have been coming back, or being closed, when it looked
        assert 4 <= report["connections_final"] - ADMIN <= 10 * workers
        if workers == 1:
            shop.wait_for_connections(4)
        else:
            processes.wait_until(lambda: 4 <= shop.connections() <= 4 * workers)
    assert admin.aborted_clients() == aborted


def test_the_table_and_what_counts_as_a_failure(shop: Shop) -> None:
    with opened(shop) as server:
        done = shop.load(server, "--clients", "5", "--seconds", "0.3")
        # Those of the pool stay, the others are ending; the next load needs none.
        processes.wait_until(lambda: shop.threads() - ADMIN == shop.connections() <= 4)
        idle = shop.connections()
        args = ["--clients", "3", "--seconds", "0.2", "--path", "/nowhere", "--json"]
        failed = shop.load(server, *args)
    assert done.returncode == 0, done.stderr
    number = r"\d+(\.\d+)?"
    times = "  ".join(f"{name} {number}" for name in ("p50", "p95", "p99", "max"))
    rows = [
        rf"requests              \d+ in {number} s from 5 clients",
        rf"succeeded             \d+, {number} a second",
        r"failed                none",
        rf"milliseconds          {times}",
        r"database connections  at most \d+, at the end \d+",
    ]
    assert re.fullmatch("\n".join(rows) + "\n", done.stdout), done.stdout

    report = json.loads(failed.stdout)
    assert report["ok"] == 0
    assert report["errors"] == {"HTTP 404": report["requests"]}
    assert report["p50_ms"] is None
    assert report["connections_max"] == report["connections_final"] == idle + ADMIN
    assert failed.returncode == 1


# With calls of 300 ms, as it comes, a busy machine cannot serve as many as transaction mode allows.
# What is unfinished then takes longer, too.
LONG_CALL = """
import load
load.COMPARED_PATH = "/bench/outside?ms=2000"
load.COMPARED += ("--graceful-timeout", "1")
raise SystemExit(load.main())
"""


@torture
def test_transaction_mode_serves_many_times_as_much_around_an_outside_call(shop: Shop) -> None:
    done = run("-c", LONG_CALL, "--compare-modes", "--seconds", "3", env=shop.env)
    assert done.returncode == 0, done.stderr
    number = r"(\d+\.\d+)"
    rows = [
        # a hundred clients wait for longer than load.py does
        rf"request               {number} requests a second, failed: (?:\d+ x unfinished|none)",
        rf"transaction           {number} requests a second, failed: none",
        rf"ratio                 {number}",
    ]
    found = re.fullmatch("\n".join(rows) + "\n", done.stdout)
    assert found, done.stdout
    assert float(found.group(3)) >= 8
    shop.wait_for_connections(0)


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        (["--compare-modes"], {}, "--compare-modes needs DATABASE_URL"),
        (["http://example.com"], {}, "is not this machine"),
        (["https://127.0.0.1"], {}, "only http:// is spoken here"),
        (["--database"], {}, "--database needs a URL"),
        (["--database", "sqlite:///x"], {}, "only the connections of a mysql:// database"),
        (["--database", "mysql://a:hidden@127.0.0.1:1/a"], {}, "does not let us watch it"),
    ],
)
def test_what_the_load_generator_refuses(
    args: list[str], env: Mapping[str, str], says: str
) -> None:
    done = run("load.py", *args, "--seconds", "0.1", env={"DATABASE_URL": "", **env})
    assert done.returncode == 2
    assert says in done.stderr
    assert "hidden" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", None),
        ("200 OK\r\nContent-Length: 3\r\n\r\nabc", None),
        ("204 No Content\r\n\r\n", None),
        ("200 OK\r\n\r\nup to the end", None),
        ("200 OK\r\nContent-Length: 9\r\n\r\nhalf", "ConnectionResetError"),
        ("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "ConnectionResetError"),
        ("200 OK\r\nContent-Le", "ConnectionResetError"),
        ("nonsense\r\n", "ValueError"),
    ],
)
def test_an_answer_counts_when_all_of_it_is_there(answer: str, error: str | None) -> None:
    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(4096):
                self.request.sendall(f"HTTP/1.1 {answer}".encode())
                if error or "to the end" in answer:
                    break

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            done = run("load.py", url, "--clients", "1", "--seconds", "0.1", "--json", env={})
        finally:
            server.shutdown()
    report = json.loads(done.stdout)
    assert list(report["errors"]) == ([error] if error else [])
    assert bool(report["ok"]) == (error is None)


def test_a_server_that_is_down_is_an_error_not_a_crash() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run("load.py", url, "--clients", "2", "--seconds", "0.2", "--json", env={})
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"]["ConnectionRefusedError"] >= 2
