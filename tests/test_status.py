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
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooled_serve.session import shorten
from support.load import Hammer, hammer
from support.netproxy import NetProxy
from support.processes import wait_until
from support.serve import Client, Response, Serve, ServerExited, free_port
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
        with closing(Client(self.address, timeout=10)) as client:
            return client.request(method, path, headers=headers)

    def stats(self) -> dict[str, Any]:
        answer = self.get("/stats.json")
        assert answer.status == 200
        stats: dict[str, Any] = answer.json()
        return stats

    def pool(self, alias: str = "default") -> dict[str, Any]:
        pool: dict[str, Any] = self.stats()["pools"][alias]
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
    it = status(cap=2)
    with ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(it.site.server.get, SLEEP.format(1.5)) for _ in range(5)]
        wait_until(lambda: it.stats()["pools"] and it.pool()["waiting"] == 3)
        time.sleep(0.6)
        pool = it.pool()
        assert (pool["in_use"], pool["idle"], pool["waiting"]) == (2, 0, 3)
        assert 0.5 < pool["oldest_wait_seconds"] < 3
        assert 0.5 < pool["oldest_held_seconds"] < 3
        assert [answer.result().status for answer in answers] == [200] * 5
    pool = it.pool()
    assert pool["waited_total"] == 3
    assert 1.5 * 3 <= pool["wait_seconds_total"] < 30
    assert pool["held_seconds_total"] >= 1.5 * 5
    assert pool["oldest_wait_seconds"] == pool["oldest_held_seconds"] == 0
    assert pool["held_seconds_buckets"]["1"] == 0
    assert pool["held_seconds_buckets"]["+Inf"] == 5
    assert pool["wait_seconds_buckets"]["1"] == 2, "two were served at once"


@pytest.mark.parametrize("workers", [2, 4])
def test_totals_are_the_sum_over_the_workers_and_the_dead(
    status: StartStatus, workers: int
) -> None:
    it = status("-w", str(workers), cap=3)
    wait_until(lambda: len(it.stats()["workers"]) == workers)
    with Hammer(it.site.server.port, SLEEP.format(0.01), clients=12, seconds=6) as load:
        time.sleep(1)
        seen = [it.stats()]
        victim = max(seen[0]["workers"], key=lambda w: w["pools"]["default"]["acquired_total"])
        os.kill(victim["pid"], signal.SIGKILL)
        while len(seen) < 60:
            time.sleep(0.05)
            with suppress(OSError, http.client.HTTPException):  # asked of the killed one
                seen.append(it.stats())
            if len(seen) == 20:
                it.site.server.signal(signal.SIGHUP)
            if len(seen) == 40:
                it.site.server.signal(signal.SIGTTIN)
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
    wait_until(lambda: len(it.stats()["workers"]) == workers + 1, timeout=15)
    stats = it.stats()
    assert victim["pid"] not in [w["pid"] for w in stats["workers"]]
    assert max(w["slot"] for w in stats["workers"]) <= 2 * workers + 1, "slots are reused"
    wait_until(lambda: it.pool()["in_use"] == it.pool()["waiting"] == 0, timeout=1)
    assert it.pool()["acquired_total"] >= victim["pools"]["default"]["acquired_total"]


def test_a_worker_that_ends_by_max_requests_leaves_its_counters(status: StartStatus) -> None:
    it = status("--max-requests", "10")
    outcomes = hammer(it.site.server.port, "/run?sql=SELECT+1", clients=2, requests=20)
    assert [outcome.result for outcome in outcomes] == [200] * 40
    wait_until(lambda: len(it.stats()["workers"]) == 1)
    assert it.pool()["acquired_total"] == 40
    assert it.stats()["workers"][0]["slot"] <= 2


def test_transaction_mode_tells_what_was_pinned(status: StartStatus) -> None:
    it = status("--pool-mode", "transaction")
    assert it.site.run("SELECT 1").status == 200
    for _ in range(3):
        assert it.site.run("SET @x = 1").status == 200
    pool = it.pool()
    assert pool["pinned_total"] == {"variable": 3}
    assert pool["reset_total"] == 3


# --- Health --------------------------------------------------------------------------------------


def test_health_answers_while_the_main_port_is_full_and_the_database_is_down(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    views = """
        def stuck(request):
            import gevent
            gevent.sleep(3)
            return HttpResponse()
    """
    it = status("--worker-connections", "5", "--pool-timeout", "1", server=server, views=views)
    assert it.site.run("SELECT 1").status == 200
    server.kill()
    with ThreadPoolExecutor(8) as threads:
        first = [threads.submit(it.site.server.get, "/run?sql=SELECT+1") for _ in range(1)]
        assert first[0].result().status == 500
        stuck = [threads.submit(it.site.server.get, "/stuck") for _ in range(8)]
        time.sleep(0.3)
        for path, expected in (("/livez", 200), ("/readyz", 503), ("/stats.json", 200)):
            answer = it.get(path)
            assert answer.status == expected, path
            assert answer.seconds < 0.5, path
        assert it.get("/readyz").text == "cannot be reached: default\n"
        assert [answer.result().status for answer in stuck] == [200] * 8
    assert "[ERROR] database 'default' cannot be reached: " in it.site.server.log
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200, timeout=5)  # and nobody sent a request
    log = it.site.server.log
    assert re.search(r"\[WARNING\] database 'default' is back after \d+\.\d+s; connecting", log)
    assert log.count("cannot be reached") == 1, "one line for an outage"
    assert it.pool()["in_use"] == 0
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
    time.sleep(2.0)  # the first attempts follow each other faster
    errors = [it.pool()["connect_errors_total"]]
    time.sleep(2.0)
    errors.append(it.pool()["connect_errors_total"])
    assert 1 <= errors[1] - errors[0] <= 6, "about one attempt a second and worker"
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200, timeout=5)
    # New workers know that, whatever the preflight found.
    for pid in it.site.server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(it.stats()["workers"]) == 2, timeout=10)
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
    wait_until(lambda: it.get("/readyz").status == 200, timeout=5)


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
        answer = threads.submit(it.site.server.get, SLEEP.format(3))
        wait_until(lambda: it.stats()["pools"] and it.pool()["in_use"] == 1)
        it.site.server.signal(signal.SIGTERM)
        wait_until(lambda: it.get("/readyz").status == 503)
        assert it.get("/livez").status == 200
        assert answer.result().status == 200
    assert it.site.server.wait(10) == 0


def test_more_connections_refused_while_some_are_open_is_no_outage(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    """Error 1040: the requests wait for the connections there are."""
    server = start_mariadb("--max-connections=10")
    it = status(server=server)
    assert it.site.run("SELECT 1").status == 200
    hogs, other = [], server.create_database().connect_args()
    with suppress(pymysql.MySQLError):
        while True:
            hogs.append(pymysql.connect(**other))
    outcomes = hammer(it.site.server.port, SLEEP.format(0.2), clients=4, requests=5)
    assert {outcome.result for outcome in outcomes} == {200}
    assert it.pool()["connect_errors_total"] > 0
    assert it.get("/readyz").status == 200
    assert "[WARNING] pool 'default' cannot open another connection: Too many connections" in (
        it.site.server.log
    )
    assert "is back" not in it.site.server.log
    assert "at its cap" not in it.site.server.log, "the pool has room, the server has not"
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
    count = 0
    while sum(bool(worker["pools"]) for worker in it.stats()["workers"]) < 2:
        assert it.site.run("SELECT 1").status == 200
        count += 1
        assert count < 500
    wait_until(lambda: it.pool()["idle"] == 2, timeout=1)  # the other worker has marked it, too
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
    total = it.pool()

    def summed(name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(
            value for (n, ls), value in samples.items() if n == prefix + name and wanted <= set(ls)
        )

    assert summed("use_time_seconds_count") == total["acquired_total"] == count
    assert summed("wait_time_seconds_count") == count
    assert summed("create_time_seconds_count") == total["opened_total"]
    assert summed("count", db_client_connection_state="idle") == total["idle"]
    assert summed("max") == total["max_outstanding"]
    assert {dict(ls).get("worker") for _, ls in samples} == {"1", "2"}
    assert {dict(ls).get("db_client_connection_pool_name") for _, ls in samples} == {"default"}


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
    assert "livez" not in it.site.server.log
    assert "HOOK /run" in it.site.server.log


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_reading_is_allowed(status: StartStatus, method: str) -> None:
    it = status()
    answer = it.get("/stats.json", method)
    assert answer.status == 405
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
        with socket.create_connection(it.address, timeout=10) as client:
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


def test_slow_clients_do_not_take_it_away(status: StartStatus) -> None:
    it = status()
    idlers = [socket.create_connection(it.address) for _ in range(60)]
    try:
        assert it.get("/livez").seconds < 0.5
        assert idlers[0].recv(1) == b"", "after some seconds they are sent away"
    finally:
        for idler in idlers:
            idler.close()


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
    assert f"[WARNING] Whoever reaches 0.0.0.0:{port} can read the status page" in server.log
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
        "    s = socket.socket(); s.bind(address); s.listen()\n"
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
        assert it.pool()["acquired_total"] == 10
        assert len(it.stats()["workers"]) == 2


@pytest.mark.parametrize("setting", ["pool_status", "bind"])
def test_hang_up_does_not_move_it(
    project: Callable[..., Path], serve: Callable[..., Serve], setting: str
) -> None:
    """Gunicorn cannot bind anew what its old workers still listen on, and would end itself."""
    folder = project(VIEWS)
    conf = folder / "gunicorn.conf.py"
    addresses = {name: ("127.0.0.1", free_port()) for name in ("bind", "pool_status")}

    def write() -> None:
        lines = (f"{name} = '{host}:{port}'\n" for name, (host, port) in addresses.items())
        conf.write_text("".join(lines))

    write()
    before = dict(addresses)
    server = serve(folder, address=addresses["bind"], bind=False)
    addresses[setting] = ("127.0.0.1", free_port())
    write()
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    flag = {"pool_status": "--status", "bind": "--bind"}[setting]
    wait_until(lambda: f"{flag} stays as it was: with a status page" in server.log)
    wait_until(lambda: server.worker_pids() and not server.worker_pids() & old, timeout=10)
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
    conf.write_text(f"pool_status = '127.0.0.1:{free_port()}'")
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    wait_until(lambda: "--status stays as it was" in server.log)
    wait_until(lambda: server.worker_pids() and not server.worker_pids() & old, timeout=10)
    assert server.get("/run?sql=SELECT+1").status == 200


# --- The log -------------------------------------------------------------------------------------

TAKEN = re.compile(
    r"\[WARNING\] pool 'default': a connection is held for (\d\.\d)s by GET /run "
    r"\(.+\); it was taken here:\n(?:  .*\n)+"
)


def test_a_lease_that_lasts_too_long_is_told_with_the_stack_that_took_it(
    status: StartStatus,
) -> None:
    it = status("--leak-threshold", "0.5")
    assert it.site.run("SELECT SLEEP(0.1)").status == 200
    assert "is held for" not in it.site.server.log
    assert it.site.run("SELECT SLEEP(1.2)").status == 200
    wait_until(lambda: "came back after" in it.site.server.log)
    (told,) = TAKEN.finditer(it.site.server.log)
    assert told[1] in ("0.5", "0.6", "0.7")
    assert "in run\n    with connection.cursor() as cursor:" in told[0]
    assert "pooled_serve" not in told[0]
    (back,) = re.findall(
        r"\[INFO\] pool 'default': the connection of GET /run \(.+\) came back after (\d\.\d)s",
        it.site.server.log,
    )
    assert 1.2 <= float(back) < 3
    assert it.pool()["leaked_total"] == 1


def test_a_leak_in_a_greenlet_is_told_once_though_it_never_ends(status: StartStatus) -> None:
    views = """
        import gevent

        def forget(request):
            def hold():
                connection.cursor().execute("SELECT 1")
                gevent.sleep(2)
            gevent.spawn(hold)
            return HttpResponse()
    """
    it = status("--leak-threshold", "0.3", views=views)
    assert it.site.server.get("/forget").status == 200
    wait_until(lambda: "came back after" in it.site.server.log)
    log = it.site.server.log
    assert log.count("is held for") == 1
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


def test_a_full_pool_is_told_once_a_second_and_that_it_is_over(status: StartStatus) -> None:
    it = status(cap=2)
    began = time.monotonic()
    outcomes = hammer(it.site.server.port, SLEEP.format(0.5), clients=10, seconds=3)
    assert {outcome.result for outcome in outcomes} == {200}
    over = "pool 'default': the pressure is over, nobody waits; 0 requests got 503"
    wait_until(lambda: over in it.site.server.log)
    told = re.findall(
        r"\[WARNING\] pool 'default' is at its cap: 2 in use, 0 idle, (\d+) waiting, cap 2, "
        r"longest held (\d\.\d)s by GET /run; the first waits for (\d\.\d)s",
        it.site.server.log,
    )
    assert 2 <= len(told) <= time.monotonic() - began + 1
    assert all(int(waiting) > 0 for waiting, _, _ in told)


def test_short_queues_are_no_news(status: StartStatus) -> None:
    it = status(cap=2)
    outcomes = hammer(it.site.server.port, SLEEP.format(0.01), clients=6, requests=20)
    assert {outcome.result for outcome in outcomes} == {200}
    assert it.pool()["waited_total"] > 0
    time.sleep(0.5)
    assert "at its cap" not in it.site.server.log
    assert "pressure" not in it.site.server.log


def test_a_frozen_database_is_told_as_lost(status: StartStatus, mariadb: Server) -> None:
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        it = status("--pool-timeout", "1", database=database, PORT=str(proxy.port))
        proxy.freeze()
        assert it.site.run("SELECT 1").status == 503
        wait_until(lambda: it.get("/readyz").status == 503)
        assert "database 'default' cannot be reached: the server did not answer" in (
            it.site.server.log
        )
        proxy.thaw()
        wait_until(lambda: it.get("/readyz").status == 200, timeout=10)


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
