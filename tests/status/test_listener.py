"""The status listener against real workers: numbers, health, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooled_serve.backend.scope import shorten
from pooled_serve.status.clients import CLIENT_TIMEOUT_SECONDS
from pooled_serve.status.pool_log import LONG_WAIT_SECONDS
from support.client import gate
from support.django_project import rewrite
from support.load import Hammer, hammer
from support.netproxy import NetProxy
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Response, Serve, ServerExited
from support.servers import Server
from support.site import VIEWS, Site

StartSite = Callable[..., Site]

SLEEP = "/run?sql=SELECT+SLEEP({})"


class Status:
    """A site and its status listener."""

    def __init__(self, site: Site, address: Any) -> None:
        self.site = site
        self.address = address

    def get(self, path: str = "/", method: str = "GET", **headers: str) -> Response:
        with closing(Client(self.address)) as client:
            return client.request(method, path, headers=headers)

    def stats(self) -> dict[str, Any]:
        answer = self.get("/stats.json")
        assert answer.status == 200
        stats: dict[str, Any] = answer.json()
        return stats

    def pool(self, alias: str = "default") -> dict[str, Any]:
        pool: dict[str, Any] = self.stats()["pools"][alias]
        return pool

    def wait_for(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first numbers of which it is true. Whom a worker that ends hangs up on asks again."""

        def found() -> dict[str, Any]:
            with suppress(OSError, http.client.HTTPException):
                stats = self.stats()
                return stats if condition(stats) else {}
            return {}

        return wait_until(found)

    def pool_at_rest(self) -> dict[str, Any]:
        """Once all connections are idle: they are cleaned, and come back, after the answer. What
        is being cleaned is not in use any more, and not idle yet."""

        def rests(pool: dict[str, Any]) -> bool:
            there = pool["opened_total"] - sum(pool["closed_total"].values())
            return bool(pool["idle"] == there and pool["waiting"] == 0)

        stats = self.wait_for(lambda stats: all(map(rests, stats["pools"].values())))
        pool: dict[str, Any] = stats["pools"]["default"]
        return pool


@pytest.fixture
def status(site: StartSite) -> Callable[..., Status]:
    """Starts a site with a status listener; the arguments are those of `site`."""

    def start(*args: str, **options: Any) -> Status:
        address = ("127.0.0.1", free_port())
        served = site("--status", "{}:{}".format(*address), *args, **options)
        return Status(served, address)

    return start


StartStatus = Callable[..., Status]


# --- /stats.json ---------------------------------------------------------------------------------


def test_the_keys_of_the_contract(status: StartStatus) -> None:
    it = status()
    assert it.site.run("SELECT 1").status == 200
    stats = it.stats()
    assert set(stats) == {"version", "app", "uptime_seconds", "workers", "pools"}
    assert stats["app"] == "mysite.wsgi"
    assert 0 < stats["uptime_seconds"] < 60
    (worker,) = stats["workers"]
    assert worker["slot"] == 1
    assert {worker["pid"]} == it.site.server.worker_pids()
    pool = stats["pools"]["default"]
    assert set(pool) >= {
        *("engine", "server", "size", "max_outstanding", "in_use", "idle", "waiting"),
        *("acquired_total", "waited_total", "wait_seconds_total", "held_seconds_total"),
        *("timeouts_total", "opened_total", "connect_errors_total", "closed_total"),
        *("reset_total", "leaked_total", "pinned_total", "oldest_wait_seconds"),
        *("oldest_held_seconds", "wait_seconds_buckets", "held_seconds_buckets"),
    }
    assert pool["engine"].startswith("MariaDB 10.")
    assert pool["server"] == f"127.0.0.1:{it.site.database.port}/{it.site.database.name}"
    assert (pool["size"], pool["max_outstanding"]) == (4, 4)
    assert (pool["in_use"], pool["idle"], pool["waiting"]) == (0, 1, 0)
    assert (pool["acquired_total"], pool["opened_total"]) == (1, 1)
    assert pool["wait_seconds_buckets"]["+Inf"] == pool["held_seconds_buckets"]["+Inf"] == 1
    assert {k: v for k, v in worker["pools"]["default"].items() if "oldest" not in k} == {
        k: v for k, v in pool.items() if "oldest" not in k
    }


def test_it_shows_who_waits_and_for_how_long(status: StartStatus) -> None:
    it = status("--pool-timeout", "60", cap=2)
    began = time.monotonic()
    with ThreadPoolExecutor(5) as threads:
        with gate(it.site.database) as statement:
            # Each holds its connection for longer than a second, and three wait for as long.
            slow = f"{statement}, SLEEP(1.1)"
            answers = [threads.submit(it.site.run, slow) for _ in range(5)]
            it.wait_for(
                lambda stats: (
                    [(p["acquired_total"], p["waiting"]) for p in stats["pools"].values()]
                    == [(2, 3)]
                )
            )
            time.sleep(0.6)
            pool = it.pool()
            most = time.monotonic() - began
            assert (pool["in_use"], pool["idle"], pool["waiting"]) == (2, 0, 3)
            assert 0.6 <= pool["oldest_wait_seconds"] <= most
            assert 0.6 <= pool["oldest_held_seconds"] <= most
        assert [answer.result().status for answer in answers] == [200] * 5
    pool = it.pool_at_rest()
    most = time.monotonic() - began
    assert pool["waited_total"] == 3
    assert 1.1 * 3 <= pool["wait_seconds_total"] <= most * 3
    assert 1.1 * 5 <= pool["held_seconds_total"] <= most * 5
    assert pool["oldest_wait_seconds"] == pool["oldest_held_seconds"] == 0
    assert pool["held_seconds_buckets"]["1"] == 0
    assert pool["held_seconds_buckets"]["+Inf"] == 5
    assert pool["wait_seconds_buckets"]["1"] == 2, "two were served at once"


@pytest.mark.parametrize("workers", [2, 4])
def test_totals_are_the_sum_over_the_workers_and_the_dead(
    status: StartStatus, workers: int
) -> None:
    it = status("-w", str(workers), cap=3)
    it.wait_for(lambda stats: len(stats["workers"]) == workers)
    with Hammer(it.site.server.port, SLEEP.format(0.01), clients=12, seconds=60) as load:
        seen = [it.wait_for(lambda stats: stats["pools"] and busiest(stats)[0] > 20)]
        _, victim = busiest(seen[0])
        os.kill(victim["pid"], signal.SIGKILL)
        while len(seen) < 60:
            time.sleep(0.05)
            with suppress(OSError, http.client.HTTPException):  # asked of the killed one
                seen.append(it.stats())
            if len(seen) == 20:
                it.site.server.signal(signal.SIGHUP)
            if len(seen) == 40:
                it.site.server.signal(signal.SIGTTIN)
        load.stop()
        load.finish()
    last: dict[str, int] = {}
    for stats in seen:
        total = {k: v for k, v in stats["pools"]["default"].items() if k.endswith("_total")}
        plain = {k: v for k, v in total.items() if not isinstance(v, dict)}
        assert all(value >= last.get(key, 0) for key, value in plain.items()), "counters grow"
        last = plain
        for key in ("acquired_total", "opened_total"):
            living = sum(w["pools"]["default"][key] for w in stats["workers"] if w["pools"])
            assert living <= plain[key]
        for key in ("in_use", "idle", "waiting", "max_outstanding"):
            living = sum(w["pools"]["default"][key] for w in stats["workers"] if w["pools"])
            assert living == stats["pools"]["default"][key]
    stats = it.wait_for(lambda stats: len(stats["workers"]) == workers + 1)
    assert victim["pid"] not in [w["pid"] for w in stats["workers"]]
    assert max(w["slot"] for w in stats["workers"]) <= 2 * workers + 1, "slots are reused"
    done = stats["pools"]["default"]
    assert done["acquired_total"] >= victim["pools"]["default"]["acquired_total"]


def busiest(stats: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The worker that has acquired the most, and how many that is."""

    def acquired(worker: dict[str, Any]) -> int:
        return int(worker["pools"].get("default", {}).get("acquired_total", 0))

    worker = max(stats["workers"], key=acquired)
    return acquired(worker), worker


def test_a_worker_that_ends_by_max_requests_leaves_its_counters(status: StartStatus) -> None:
    it = status("--max-requests", "10")
    (first,) = it.site.server.worker_pids()
    outcomes = hammer(it.site.server.port, "/run?sql=SELECT+1", clients=2, requests=20)
    assert [outcome.result for outcome in outcomes] == [200] * 40
    stats = it.wait_for(lambda stats: [w["pid"] for w in stats["workers"]] not in ([], [first]))
    (worker,) = stats["workers"]
    assert worker["slot"] <= 2
    assert stats["pools"]["default"]["acquired_total"] == 40


def test_transaction_mode_tells_what_was_pinned(status: StartStatus) -> None:
    it = status("--pool-mode", "transaction")
    assert it.site.run("SELECT 1").status == 200
    for _ in range(3):
        assert it.site.run("SET @x = 1").status == 200
    pool = it.pool_at_rest()
    assert pool["pinned_total"] == {"variable": 3}
    assert pool["reset_total"] == 3


# --- Health --------------------------------------------------------------------------------------


def test_health_answers_while_the_main_port_is_full_and_the_database_is_down(
    status: StartStatus, start_mariadb: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_mariadb()
    stuck, go_on = tmp_path / "stuck", tmp_path / "go on"
    stuck.mkdir()
    views = f"""
        import os
        import tempfile

        def get_stuck(request):
            import gevent
            tempfile.mkstemp(dir={str(stuck)!r})
            while not os.path.exists({str(go_on)!r}):
                gevent.sleep(0.02)
            return HttpResponse()
    """
    it = status("--worker-connections", "5", server=server, views=views)
    assert it.site.run("SELECT 1").status == 200
    server.kill()
    assert it.site.run("SELECT 1").status == 500
    with ThreadPoolExecutor(8) as threads:
        visitors = [threads.submit(it.site.server.get, "/get_stuck") for _ in range(8)]
        try:
            wait_until(lambda: len(list(stuck.iterdir())) == 5)
            # It answers, though none of those goes on.
            for path, expected in (("/livez", 200), ("/readyz", 503), ("/stats.json", 200)):
                assert it.get(path).status == expected, path
            assert it.get("/readyz").text == "cannot be reached: default\n"
            assert len(list(stuck.iterdir())) == 5
        finally:
            go_on.touch()
        assert [visitor.result().status for visitor in visitors] == [200] * 8
    it.site.server.wait_for_log("[ERROR] database 'default' cannot be reached: ")
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)  # and nobody sent a request
    log = it.site.server.wait_for_log("is back after")
    line = (
        r"\[WARNING\] database 'default' is back after \d+\.\d+s; failed attempts to connect: \d+$"
    )
    assert re.search(line, log, re.MULTILINE)
    assert log.count("cannot be reached") == 1, "one line for an outage"
    it.pool_at_rest()
    assert it.site.run("SELECT 1").status == 200


def test_ready_starts_from_the_preflight_and_heals_without_traffic(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    database = server.create_database()
    server.stop()
    it = status("-w", "2", server=server, database=database)
    assert it.get("/livez").status == 200
    wait_until(lambda: it.get("/readyz").status == 503)

    def attempts(stats: dict[str, Any]) -> list[int]:
        pools = (worker["pools"].get("default", {}) for worker in stats["workers"])
        return [pool.get("connect_errors_total", 0) for pool in pools]

    # The first attempts of each worker follow each other faster.
    start = it.wait_for(lambda stats: len(attempts(stats)) == 2 and min(attempts(stats)) >= 5)
    end = it.wait_for(lambda stats: sum(attempts(stats)) >= sum(attempts(start)) + 5)
    seconds = it.stats()["uptime_seconds"] - start["uptime_seconds"]
    more = sum(attempts(end)) - sum(attempts(start))
    assert more <= 2 * (seconds + 1.5), "about one attempt a second and worker"
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)
    it.site.server.wait_for_log("is back after", times=2)
    # New workers know that, whatever the preflight found.
    old = it.site.server.worker_pids()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    it.wait_for(lambda stats: len({worker["pid"] for worker in stats["workers"]} - old) == 2)
    assert it.get("/readyz").status == 200
    assert it.site.server.log.count("is back after") == 2, "one of each of the first workers"


def test_a_new_worker_knows_that_the_database_is_lost(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    it = status(server=server)
    assert it.site.run("SELECT 1").status == 200
    server.kill()
    assert it.site.run("SELECT 1").status == 500
    (pid,) = it.site.server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.site.server.worker_pids() not in (set(), {pid}))
    assert it.get("/readyz").status == 503
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)


def test_a_child_of_a_worker_does_not_count_for_it(status: StartStatus, mariadb: Server) -> None:
    views = """
        import os

        def fork(request):
            connection.cursor().execute("SELECT 1")
            pid = os.fork()
            if pid == 0:
                try:
                    connections["other"].cursor().execute("SELECT 1")
                    connection.cursor().execute("SELECT 1")
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            return HttpResponse()
    """
    it = status(views=views, more={"other": mariadb.create_database().django()})
    assert [it.site.server.get("/fork").status for _ in range(3)] == [200] * 3
    pools = it.stats()["pools"]
    assert pools["default"]["acquired_total"] == 3
    assert pools.get("other", {"opened_total": 0})["opened_total"] == 0
    assert sum(pool["in_use"] for pool in pools.values()) == 0


def test_a_worker_that_stops_is_not_ready_but_alive(status: StartStatus) -> None:
    it = status()
    with ThreadPoolExecutor(1) as threads:
        with gate(it.site.database) as statement:
            answer = threads.submit(it.site.run, statement)
            it.wait_for(lambda stats: stats["pools"] and stats["pools"]["default"]["in_use"] == 1)
            it.site.server.signal(signal.SIGTERM)
            wait_until(lambda: it.get("/readyz").status == 503)
            assert it.get("/livez").status == 200
        assert answer.result().status == 200
    assert it.site.server.wait() == 0


def test_more_connections_refused_while_some_are_open_is_no_outage(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    """Error 1040: the requests wait for the connections there are."""
    server = start_mariadb("--max-connections=10")
    it = status("--pool-timeout", "30", server=server)
    assert it.site.run("SELECT 1").status == 200
    wait_until(lambda: len(it.site.connection_ids()) == 1)  # the preflight's has gone
    hogs, other = [], server.create_database().connect_args()
    with suppress(pymysql.MySQLError):
        while True:
            hogs.append(pymysql.connect(**other, ssl_disabled=True))
    outcomes = hammer(it.site.server.port, SLEEP.format(0.1), clients=4, requests=5)
    assert {outcome.result for outcome in outcomes} == {200}
    assert it.pool()["connect_errors_total"] > 0
    assert it.get("/readyz").status == 200
    log = it.site.server.wait_for_log("[WARNING] pool 'default' cannot open another connection: ")
    assert "cannot open another connection: Too many connections" in log
    assert "is back" not in log
    assert "at its cap" not in log, "the pool has room, the server has not"
    for hog in hogs:
        hog.close()


# --- /metrics ------------------------------------------------------------------------------------


def _samples(answer: Response) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_metrics_have_the_names_of_opentelemetry(status: StartStatus) -> None:
    it = status("-w", "2")
    stats = it.wait_for(lambda stats: len(stats["workers"]) == 2)
    for count, worker in enumerate(stats["workers"], start=1):
        with it.site.server.only(worker["pid"]):
            for _ in range(count):
                assert it.site.run("SELECT 1").status == 200
    stats = it.wait_for(lambda stats: stats["pools"]["default"]["idle"] == 2)
    total = stats["pools"]["default"]
    answer = it.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    samples = _samples(answer)
    names = {name for name, _ in samples}
    prefix = "db_client_connection_"
    assert names >= {
        *(f"{prefix}{name}" for name in ("count", "max", "idle_max", "pending_requests")),
        f"{prefix}timeouts_total",
        *(
            f"{prefix}{what}_time_seconds_{part}"
            for what in ("create", "wait", "use")
            for part in ("bucket", "sum", "count")
        ),
    }

    def summed(name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(
            value for (n, ls), value in samples.items() if n == prefix + name and wanted <= set(ls)
        )

    assert summed("use_time_seconds_count", worker="1") == 1
    assert summed("use_time_seconds_count", worker="2") == 2
    assert summed("use_time_seconds_count") == total["acquired_total"] == 3
    assert summed("wait_time_seconds_count") == 3
    assert summed("create_time_seconds_count") == total["opened_total"]
    assert summed("count", db_client_connection_state="idle") == total["idle"]
    assert summed("max") == total["max_outstanding"]
    assert {dict(ls).get("worker") for _, ls in samples} == {"1", "2"}
    assert {dict(ls).get("db_client_connection_pool_name") for _, ls in samples} == {"default"}


def test_metrics_have_every_number_of_the_json(status: StartStatus) -> None:
    it = status("--pool-mode", "transaction")
    assert it.site.run("SET @x = 1").status == 200
    pool = it.pool_at_rest()
    samples = _samples(it.get("/metrics"))
    otel = {
        "in_use": "count",
        "idle": "count",
        "size": "idle_max",
        "max_outstanding": "max",
        "waiting": "pending_requests",
        "timeouts_total": "timeouts_total",
        **{f"{key}_seconds_total": f"{name}_time_seconds_sum" for key, name in KINDS.items()},
        **{f"{key}_seconds_buckets": f"{name}_time_seconds_bucket" for key, name in KINDS.items()},
    }
    names = {name for name, _ in samples}
    for key, value in pool.items():
        if isinstance(value, str):
            continue
        name = f"db_client_connection_{otel[key]}" if key in otel else f"pooled_serve_{key}"
        assert name in names, key
        if isinstance(value, dict) and not key.endswith("_buckets"):
            told = {dict(labels)["reason"]: n for (n_, labels), n in samples.items() if n_ == name}
            assert {reason: n for reason, n in told.items() if n} == value
        elif key.endswith("_total"):
            total = sum(n for (n_, _), n in samples.items() if n_ == name)
            assert total == value, (key, pool)
    assert pool["pinned_total"] == {"variable": 1}


KINDS = {"wait": "wait", "held": "use", "create": "create"}


def test_the_counters_of_a_slot_outlive_its_worker(status: StartStatus) -> None:
    it = status()
    for _ in range(5):
        it.site.run("SELECT 1")
    key = (
        "db_client_connection_use_time_seconds_count",
        (("db_client_connection_pool_name", "default"), ("worker", "1")),
    )
    assert _samples(it.get("/metrics"))[key] == 5
    (pid,) = it.site.server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.site.server.worker_pids() not in (set(), {pid}))
    it.site.run("SELECT 1")
    assert _samples(it.get("/metrics"))[key] == 6


def test_metrics_without_the_package_say_what_to_install(
    status: StartStatus, tmp_path: Path
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "prometheus_client.py").write_text("raise ImportError")
    it = status("--pythonpath", str(tmp_path / "hidden"))
    answer = it.get("/metrics")
    assert answer.status == 501
    assert "pip install 'pooled-serve[metrics]'" in answer.text
    assert it.get("/stats.json").status == 200


# --- The listener --------------------------------------------------------------------------------


def test_a_unix_socket_serves_it_too(site: StartSite, tmp_path: Path) -> None:
    path = str(tmp_path / "status.sock")
    it = Status(site("--status", f"unix:{path}"), path)
    assert it.get("/livez").status == 200
    assert it.site.run("SELECT 1").status == 200
    assert it.pool()["acquired_total"] == 1


def test_it_is_plain_http_even_under_tls(
    project: Callable[..., Path], serve: Callable[..., Serve], tmp_path: Path
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem"
    subprocess.run(
        [*command.split(), "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    address, main = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    args = ["--certfile", str(tmp_path / "cert.pem"), "--keyfile", str(tmp_path / "key.pem")]
    args += ["--status", "{}:{}".format(*address), "-b", "{}:{}".format(*main)]
    server = serve(project(VIEWS), *args, address=address, bind=False)
    assert server.get("/livez").text == "ok\n"
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    context.check_hostname = False
    with (
        socket.create_connection(main) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(b"GET /run?sql=SELECT+1 HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in secure.recv(100)


def test_requests_to_it_are_nobodys_business(status: StartStatus, tmp_path: Path) -> None:
    """No access log, no hooks, no max_requests: those are about the application."""
    (tmp_path / "conf.py").write_text(
        "def pre_request(worker, req): worker.log.info('HOOK %s', req.path)\n"
    )
    it = status("--max-requests", "20", "--access-logfile", "-", "-c", str(tmp_path / "conf.py"))
    (pid,) = it.site.server.worker_pids()
    for _ in range(30):
        assert it.get("/livez").status == 200
    assert it.site.run("SELECT 1").status == 200
    assert {pid} == it.site.server.worker_pids()
    log = it.site.server.wait_for_log("GET /run")
    assert "HOOK /run" in log
    assert "livez" not in log
    assert "Autorestarting" not in log


def test_only_reading_is_allowed(status: StartStatus) -> None:
    it = status()
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = it.get("/stats.json", method)
        assert answer.status == 405, method
        assert answer.headers["Allow"] == "GET, HEAD"


def test_what_it_answers_and_what_not(status: StartStatus) -> None:
    it = status("--limit-request-line", "500")
    head = it.get("/stats.json", "HEAD")
    assert head.status == 200
    assert head.body == b""
    assert int(head.headers["Content-Length"]) > 0
    page = it.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy
    for path in ("/stats.json", "/", "/livez", "/readyz", "/nothing"):
        headers = it.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert it.get("/nothing").status == 404
    assert it.get("/../../etc/passwd").status == 404
    assert it.get("/stats.json?x=1").status == 200
    assert it.get("/" + "x" * 600).status == 400

    def raw(text: bytes) -> bytes:
        with socket.create_connection(it.address, timeout=30) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            return client.recv(1000)

    assert raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(b"\x16\x03\x01\x02\x00\x01").startswith((b"HTTP/1.1 400 ", b""))
    assert raw(b"") == b""
    assert it.get("/livez").status == 200
    assert "Traceback" not in it.site.server.log


def test_the_main_port_never_serves_it(status: StartStatus) -> None:
    it = status()
    for path in ("/stats.json", "/livez", "/readyz", "/metrics"):
        forged = {"Host": "{}:{}".format(*it.address), "X-Forwarded-Host": "127.0.0.1"}
        answer = it.site.server.get(path, headers=forged)
        assert answer.status in (400, 404)
        assert "db_client" not in answer.text


def patience(folder: Path, seconds: float) -> tuple[str, str]:
    """Options that give clients of the status listener so much time."""
    conf = folder / "patience.py"
    conf.write_text(
        "def post_worker_init(worker):\n"
        "    from pooled_serve.status import clients\n"
        f"    clients.CLIENT_TIMEOUT_SECONDS = {seconds}\n"
    )
    return ("-c", str(conf))


def test_slow_clients_do_not_take_it_away(status: StartStatus, tmp_path: Path) -> None:
    it = status(*patience(tmp_path, 600))
    with ExitStack() as stack:
        idlers = [stack.enter_context(socket.create_connection(it.address)) for _ in range(60)]
        assert it.get("/livez").status == 200
        for idler in idlers:
            idler.setblocking(False)
            with pytest.raises(BlockingIOError):  # it is still there
                idler.recv(1)


def test_slow_clients_are_sent_away_in_the_end(status: StartStatus, tmp_path: Path) -> None:
    it = status(*patience(tmp_path, 0.5))
    with (
        socket.create_connection(it.address, timeout=30) as idler,
        socket.create_connection(it.address, timeout=30) as dawdler,
    ):
        dawdler.sendall(b"GET /livez HTTP/1.1\r\n")
        began = time.monotonic()
        assert idler.recv(1) == dawdler.recv(1) == b""
        assert time.monotonic() - began < CLIENT_TIMEOUT_SECONDS, "the option above counts"


def test_it_tells_no_secrets(status: StartStatus, mariadb: Server) -> None:
    database = replace(mariadb.create_database(), user="the_user")
    account = f"the_user@'%' IDENTIFIED BY '{database.password}'"
    mariadb.admin.query(f"GRANT ALL ON {database.name}.* TO {account}")
    it = status("--leak-threshold", "0.2", database=database)
    path = "/run?sql=SELECT+SLEEP(0.6)+/*hush*/"
    assert it.site.server.get(path).status == 200
    everything = "".join(
        it.get(path).text + str(it.get(path).headers)
        for path in ("/", "/stats.json", "/metrics", "/livez", "/readyz", "/x")
    )
    assert it.site.database.user not in everything
    assert it.site.database.password not in everything + it.site.server.log
    assert "hush" not in everything + it.site.server.log


def test_hostile_aliases_are_only_text(status: StartStatus, mariadb: Server) -> None:
    alias = '<img src=x onerror="alert(1)">\n"} 1'
    views = f"""
        def other(request):
            connections[{alias!r}].cursor().execute("SELECT 1")
            return HttpResponse()
    """
    more = {alias: mariadb.create_database().django()}
    it = status(views=views, more=more)
    assert it.site.server.get("/other").status == 200
    assert it.pool(alias)["acquired_total"] == 1
    samples = _samples(it.get("/metrics"))
    assert alias in {dict(labels).get("db_client_connection_pool_name") for _, labels in samples}


# --- Starting ------------------------------------------------------------------------------------


def test_an_address_that_others_can_reach_is_worth_a_warning(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    port = free_port()
    server = serve(project(VIEWS), "--status", f"0.0.0.0:{port}", "--strict")
    assert f"[WARNING] Anyone who can reach 0.0.0.0:{port} can read the status page" in server.log
    with closing(Client(("127.0.0.1", port))) as client:
        assert client.get("/livez").status == 200


def test_the_applications_own_address_is_a_usage_error(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    address = ("127.0.0.1", free_port())
    with pytest.raises(ServerExited) as ended:
        serve(project(VIEWS), "--status", "{}:{}".format(*address), address=address)
    assert ended.value.returncode == 2
    assert "PS401 --status: 127.0.0.1:" in ended.value.log


@pytest.mark.parametrize("inherited", [1, 2])
def test_inherited_sockets_must_have_one_for_it(
    project: Callable[..., Path], serve: Callable[..., Serve], inherited: int
) -> None:
    """As from systemd, which passes sockets from descriptor 3 on."""
    addresses = [("127.0.0.1", free_port()) for _ in range(2)]
    program = (
        "import os, socket, sys\n"
        f"for fd, address in enumerate({addresses[:inherited]!r}, 3):\n"
        "    s = socket.create_server(address)\n"
        "    s.set_inheritable(True); assert s.detach() == fd\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{inherited}')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, sys.executable, "-m", "pooled_serve"]
    status = "{}:{}".format(*addresses[1])
    options: dict[str, Any] = {"command": command, "address": addresses[0], "bind": False}
    if inherited == 2:
        server = serve(project(VIEWS), "--status", status, **options)
        with closing(Client(addresses[1])) as client:
            assert client.get("/livez").status == 200
        assert server.get("/run?sql=SELECT+1").status == 200
        return
    with pytest.raises(ServerExited) as ended:
        serve(project(VIEWS), "--status", status, **options)
    assert ended.value.returncode == 2
    assert f"PS406 the sockets were inherited, and none listens on --status {status}" in (
        ended.value.log
    )


def test_preload_and_reuse_port_work_with_it(status: StartStatus) -> None:
    for option in ("--preload", "--reuse-port"):
        it = status("-w", "2", option)
        for _ in range(10):
            assert it.site.run("SELECT 1").status == 200
        stats = it.wait_for(lambda stats: len(stats["workers"]) == 2)
        assert stats["pools"]["default"]["acquired_total"] == 10


@pytest.mark.parametrize("setting", ["pool_status", "bind"])
def test_hang_up_does_not_move_it(
    project: Callable[..., Path], serve: Callable[..., Serve], setting: str
) -> None:
    """Gunicorn cannot bind anew what its old workers still listen on, and would end itself."""
    folder = project(VIEWS)
    conf = folder / "gunicorn.conf.py"
    addresses = {name: ("127.0.0.1", free_port()) for name in ("bind", "pool_status")}

    def source() -> str:
        return "".join(f"{name} = '{host}:{port}'\n" for name, (host, port) in addresses.items())

    conf.write_text(source())
    before = dict(addresses)
    server = serve(folder, address=addresses["bind"], bind=False)
    addresses[setting] = ("127.0.0.1", free_port())
    rewrite(conf, source())
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    flag = {"pool_status": "--status", "bind": "--bind"}[setting]
    server.wait_for_log(f"{flag} stays as it was: with a status page")
    wait_until(lambda: (new := server.worker_pids()) and not new & old)
    assert server.get("/run?sql=SELECT+1").status == 200
    with closing(Client(before["pool_status"])) as client:
        assert client.get("/livez").status == 200


def test_hang_up_does_not_turn_it_on(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    folder = project(VIEWS)
    conf = folder / "gunicorn.conf.py"
    conf.write_text("")
    server = serve(folder)
    rewrite(conf, f"pool_status = '127.0.0.1:{free_port()}'")
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_for_log("--status stays as it was")
    wait_until(lambda: (new := server.worker_pids()) and not new & old)
    assert server.get("/run?sql=SELECT+1").status == 200


# --- The log -------------------------------------------------------------------------------------

TAKEN = re.compile(
    r"\[WARNING\] pool 'default': a connection has been held for (\d+\.\d)s by GET /run "
    r"\(.+\); it was taken here:\n(?:  .*\n)+"
)


@pytest.mark.timing
def test_a_lease_that_lasts_too_long_is_told_with_the_stack_that_took_it(
    status: StartStatus,
) -> None:
    it = status("--leak-threshold", "0.5")
    quick = [it.site.run("SELECT 1") for _ in range(10)]
    # On a busy machine even those may take long. Only then may they be told.
    slow = sum(answer.seconds >= 0.5 for answer in quick)
    before = len(TAKEN.findall(it.site.server.log))
    assert before <= slow

    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        with gate(it.site.database) as statement:
            answer = threads.submit(it.site.run, statement)
            log = it.site.server.wait_for_log("been held for", times=before + 1)
            *_, told = TAKEN.finditer(log)
            most = time.monotonic() - began + 0.1  # they are rounded
        assert answer.result().status == 200
    assert 0.5 <= float(told[1]) <= most
    assert "in run\n    with connection.cursor() as cursor:" in told[0]
    assert "pooled_serve" not in told[0]
    log = it.site.server.wait_for_log("came back after", times=before + 1)
    *_, back = re.findall(
        r"\[INFO\] pool 'default': the connection of GET /run \(.+\) came back after (\d+\.\d)s",
        log,
    )
    assert float(told[1]) <= float(back) <= time.monotonic() - began + 0.1
    assert it.pool()["leaked_total"] == before + 1


def test_a_leak_in_a_greenlet_is_told_once_though_it_never_ends(status: StartStatus) -> None:
    views = """
        import gevent

        def forget(request):
            def hold():
                connection.cursor().execute("SET @held = 1")
                gevent.sleep(1)
            gevent.spawn(hold)
            return HttpResponse()
    """
    it = status("--leak-threshold", "0.3", views=views)
    assert it.site.server.get("/forget").status == 200
    log = it.site.server.wait_for_log("came back after")
    assert log.count("been held for") == 1
    assert "by a greenlet, not a request" in log
    assert it.pool()["leaked_total"] == 1
    it.site.assert_whole()


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/17", "/orders/17"),
        ("/orders/17/", "/orders/17"),
        ("/orders/17/token", "/orders/17/…"),
        ("/a/b?token=c", "/a/b"),
        ("/a/b\n[ERROR] forged", "/a/b�[ERROR] forged"),
        ("/" + "x" * 200, "/" + "x" * 99),
    ],
)
def test_the_log_names_no_more_of_a_path_than_two_segments(path: str, short: str) -> None:
    assert shorten(path) == short


def test_a_full_pool_is_told_ever_more_rarely_and_that_it_is_over(status: StartStatus) -> None:
    it = status("--pool-timeout", "60", cap=2)
    with ThreadPoolExecutor(5) as threads:
        with gate(it.site.database) as statement:
            answers = [threads.submit(it.site.run, statement) for _ in range(5)]
            log = it.site.server.wait_for_log("pool 'default' is at its cap", times=2)
        assert [answer.result().status for answer in answers] == [200] * 5
    told = re.findall(
        r"\[INFO\] pool 'default' is at its cap: 2 in use, 0 idle, (\d+) waiting, cap 2, "
        r"longest held (\d+\.\d)s by GET /run; the first has waited (\d+\.\d)s",
        log,
    )
    assert len(told) == 2, "and a third after ten seconds more"
    assert all(int(waiting) > 0 for waiting, _, _ in told)
    log = it.site.server.wait_for_log("pool 'default': the pressure is over, ")
    assert re.search(
        r"\[INFO\] pool 'default': the pressure is over, no wait above 0\.25s "
        r"in the last [56]s; requests that got 503 in \d+s: 0$",
        log,
        re.MULTILINE,
    )


def test_short_queues_are_no_news(status: StartStatus) -> None:
    it = status(cap=2)
    outcomes = hammer(it.site.server.port, SLEEP.format(0.01), clients=6, requests=20)
    assert {outcome.result for outcome in outcomes} == {200}
    assert it.pool()["waited_total"] > 0
    time.sleep(0.5)
    log = it.site.server.log
    # On a busy machine the queue may have been longer.
    long = max(outcome.seconds for outcome in outcomes) >= LONG_WAIT_SECONDS
    assert long or "at its cap" not in log
    assert long or "pressure" not in log


def test_with_a_server_that_never_answers_nothing_is_in_use(
    status: StartStatus, mariadb: Server
) -> None:
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        it = status("--pool-timeout", "2", cap=2, database=database, PORT=str(proxy.port))
        proxy.freeze()
        with ThreadPoolExecutor(3) as threads:
            answers = [threads.submit(it.site.run, "SELECT 1") for _ in range(3)]
            stats = it.wait_for(
                lambda stats: [pool["waiting"] for pool in stats["pools"].values()] == [1]
            )
            pool = stats["pools"]["default"]
            samples = _samples(it.get("/metrics"))
            assert [answer.result().status for answer in answers] == [503] * 3
        assert (pool["in_use"], pool["idle"], pool["connecting"], pool["closing"]) == (0, 0, 2, 0)
        labels = {"db_client_connection_pool_name": "default", "worker": "1"}
        used = {**labels, "db_client_connection_state": "used"}
        assert samples["db_client_connection_count", tuple(sorted(used.items()))] == 0
        assert samples["pooled_serve_connecting", tuple(sorted(labels.items()))] == 2
        log = it.site.server.wait_for_log("503 Service Unavailable")
        assert re.search(r"no connection within 2s \(0 in use, 0 idle, ", log)
        assert "2 in use" not in log
        waits = it.pool()["wait_seconds_buckets"]
        assert waits["1"] == 0
        assert waits["+Inf"] >= 3, "and those of the probe"
        proxy.thaw()


def test_without_file_descriptors_the_log_says_so_and_the_database_is_not_to_blame(
    status: StartStatus, tmp_path: Path
) -> None:
    views = """
        import os
        import resource

        import gevent
        from django.db import OperationalError

        kept = []

        def ask(request):
            try:
                connection.cursor().execute("SELECT 1")
            except OperationalError:  # Django's own answer would open files
                return HttpResponse("no")
            return HttpResponse("yes")

        def flap(request):
            for _ in range(10):  # there is a descriptor, and then there is none
                os.close(kept.pop())
                while ask(request).content == b"no":
                    gevent.sleep(0.01)
                connection.close()
                the_pool().clear()
                kept.append(os.open(os.devnull, os.O_RDONLY))
                ask(request)
            return HttpResponse()

        def exhaust(request):
            the_pool().clear()
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            try:
                while True:
                    kept.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                return HttpResponse()

        def recover(request):
            while kept:
                os.close(kept.pop())
            return HttpResponse()
    """
    it = status(views=views)
    with it.site.server.keepalive() as client:
        assert client.get("/ask").text == "yes"
        assert client.get("/exhaust").status == 200
        assert [client.get("/ask").text for _ in range(20)] == ["no"] * 20
        assert client.get("/flap").status == 200
        assert client.get("/recover").status == 200
        wait_until(lambda: client.get("/ask").text == "yes")
    assert it.get("/readyz").status == 200
    log = it.site.server.wait_for_log("no file descriptor left")
    assert log.count("no file descriptor left") == 1
    assert (
        "[ERROR] pool 'default' cannot open a connection: this process has no file descriptor "
        "left, of 256\n  → raise the limit"
    ) in log
    assert "cannot be reached" not in log
    assert "is back" not in log


def test_a_frozen_database_is_told_as_lost(status: StartStatus, mariadb: Server) -> None:
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        it = status("--pool-timeout", "1", database=database, PORT=str(proxy.port))
        proxy.freeze()
        assert it.site.run("SELECT 1").status == 503
        wait_until(lambda: it.get("/readyz").status == 503)
        it.site.server.wait_for_log(
            "database 'default' cannot be reached: the server did not answer"
        )
        proxy.thaw()
        wait_until(lambda: it.get("/readyz").status == 200)


def test_json_is_json(status: StartStatus) -> None:
    it = status("--max-outstanding", "unlimited", "--worker-connections", "50")
    it.site.run("SELECT 1")
    stats = json.loads(it.get("/stats.json").body, parse_constant=lambda name: pytest.fail(name))
    assert stats["pools"]["default"]["max_outstanding"] is None


@pytest.fixture(autouse=True)
def _nothing_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = threading.active_count()
    yield
    assert threading.active_count() == threads
