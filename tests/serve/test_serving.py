"""pooled-serve as a process: starting, signals, workers, against a real server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlencode

import pytest

from support import processes
from support.client import BoundWatch, gate
from support.django_project import rewrite
from support.load import Hammer, hammer
from support.processes import children, wait_until
from support.serve import POOLED_SERVE, STOP_TIMEOUT, Serve, end_of, environment
from support.servers import Database, Server
from support.torture import TORTURE, torture

VIEWS = Path(__file__).with_name("serving_views.py")
HANG_UPS = 20 if TORTURE else 3
SMALL = ("--pool-size", "2", "--max-outstanding", "5")
# Instead of 2 s, for which a busy machine may keep the client from its next request.
PATIENT = ("--keep-alive", "60")


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def site(project: Any, database: Database) -> Path:
    folder: Path = project(VIEWS, databases={"default": database.django()})
    return folder


def run(sql: str) -> str:
    """The path of a page that runs it."""
    return "/run?" + urlencode({"sql": sql})


def stats(web: Serve) -> dict[str, Any]:
    """Of the pool of the worker that answers."""
    found: dict[str, Any] = web.get("/stats").json()["pools"]["default"]
    return found


def succeeded(outcomes: list[Any]) -> None:
    wrong = [outcome for outcome in outcomes if outcome.result != 200]
    assert outcomes
    assert not wrong, f"{len(wrong)} of {len(outcomes)}: {wrong[:3]}"


# --- Sharing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_clients_never_exceed_the_cap_and_leave_the_pool(
    workers: int, site: Path, no_aborts: None, serve: Any, mariadb: Server, database: Database
) -> None:
    web = serve(site, "--pool-size", "4", "--max-outstanding", "10", "-w", str(workers))
    before = mariadb.admin.status("Connections")
    with (
        BoundWatch(mariadb, database) as watch,
        Hammer(web.port, "/one", clients=100, seconds=2) as load,
    ):
        succeeded(load.finish())
    assert 4 < watch.peak <= 10 * workers, "\n".join(watch.seen)
    wait_until(lambda: len(mariadb.admin.processlist(database.user)) <= 4 * workers)
    # The server saw few connects: they were shared.
    assert mariadb.admin.status("Connections") - before < 100


def test_a_connection_is_used_by_one_client_after_the_other(site: Path, serve: Any) -> None:
    web = serve(site, *SMALL)
    assert len({web.get("/one").json()["id"] for _ in range(10)}) == 1


def test_requests_of_one_keep_alive_client_take_turns(site: Path, serve: Any) -> None:
    web = serve(site, "--pool-size", "1", "--max-outstanding", "1", *PATIENT)
    with web.keepalive() as first, web.keepalive() as second:
        ids = {client.get("/one").json()["id"] for _ in range(5) for client in (first, second)}
    assert len(ids) == 1


def test_idle_connections_retire_at_their_age(
    site: Path, no_aborts: None, serve: Any, mariadb: Server, database: Database
) -> None:
    web = serve(site, *SMALL, "--conn-max-age", "1")
    began = time.monotonic()
    before = web.get("/one").json()["id"]
    wait_until(lambda: not mariadb.admin.processlist(database.user))
    assert time.monotonic() - began >= 0.9
    assert web.get("/one").json()["id"] != before


def test_a_busy_keep_alive_client_does_not_starve_the_others(site: Path, serve: Any) -> None:
    web = serve(site, *SMALL, *PATIENT)
    over = threading.Event()
    request = b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def ask(busy: socket.socket) -> None:
        while not over.is_set():
            busy.sendall(request * 100)
        busy.shutdown(socket.SHUT_RDWR)

    def read(busy: socket.socket) -> None:
        while busy.recv(1 << 20):
            pass

    with socket.create_connection(web.address) as busy, ThreadPoolExecutor(2) as threads:
        asking, reading = threads.submit(ask, busy), threads.submit(read, busy)
        try:
            # The next request of the busy one is always there. Stock gunicorn serves nobody else.
            for _ in range(10):
                assert web.get("/one").status == 200
            assert not asking.done()
            assert not reading.done()
        finally:
            over.set()


# --- Signals -----------------------------------------------------------------------------------


def test_term_lets_requests_in_flight_and_queued_finish(
    site: Path, no_aborts: None, serve: Any, database: Database
) -> None:
    web = serve(site, *SMALL, "--pool-timeout", "60")
    web.get("/one")

    def refuses() -> bool:
        with suppress(ConnectionRefusedError):
            socket.create_connection(web.address).close()
            return False
        return True

    with ThreadPoolExecutor(20) as clients:
        with gate(database) as statement:
            answers = [clients.submit(web.get, run(statement)) for _ in range(20)]
            wait_until(lambda: stats(web)["waiting"] == 15)
            web.signal(signal.SIGTERM)
            wait_until(refuses)
        assert [answer.result().status for answer in answers] == [200] * 20
    assert web.wait() == 0


def test_a_query_longer_than_graceful_timeout_does_not_hold_up_the_end(
    site: Path, serve: Any
) -> None:
    web = serve(site, *SMALL, "--graceful-timeout", "1")
    web.get("/one")
    with ThreadPoolExecutor(1) as client:
        client.submit(web.get, run("SELECT SLEEP(300)"), timeout=300)
        wait_until(lambda: stats(web)["in_use"] == 1)
        web.signal(signal.SIGTERM)
        assert web.wait() == 0


def test_term_twice(site: Path, no_aborts: None, serve: Any) -> None:
    web = serve(site, *SMALL)
    web.get("/one")
    web.signal(signal.SIGTERM)
    web.signal(signal.SIGTERM)
    assert web.wait() == 0


@torture
def test_term_during_the_start(site: Path, no_aborts: None, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def said(text: str) -> Callable[[int], bool]:
        return lambda pid: text in log.read_text()

    stages: dict[str, Callable[[int], object]] = {
        "the interpreter": processes.is_running,
        "the preflight": children,
        "the master": said("Starting gunicorn"),
        "the listener": said("Listening at"),
        "the worker": said("Booting worker"),
    }
    for stage, reached in stages.items():
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*POOLED_SERVE, "mysite.wsgi", "-b", "127.0.0.1:0"],
                cwd=site,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stderr=output,
            )
        try:
            wait_until(lambda: reached(process.pid))  # noqa: B023
            process.terminate()
            assert process.wait(STOP_TIMEOUT) in (0, -signal.SIGTERM), (stage, log.read_text())
            assert "Traceback" not in log.read_text(), stage
        finally:
            process.kill()
            process.wait()


def test_term_reaches_a_worker_that_has_not_come_to_itself(site: Path, serve: Any) -> None:
    """As on a busy machine: the fork's first second is over before the worker does anything."""
    conf = """
        import logging, os, signal, time

        class Slow(logging.Handler):
            def emit(self, record):
                if "Booting worker" in record.getMessage() and not os.path.exists("slow"):
                    open("slow", "w").close()
                    os.kill(os.getppid(), signal.SIGTERM)
                    time.sleep(1)

        def on_starting(server):
            logging.getLogger("gunicorn.error").addHandler(Slow())
    """
    (site / "gunicorn.conf.py").write_text(dedent(conf))
    code, log = end_of(lambda: serve(site, *SMALL))
    assert code == 0
    assert (site / "slow").exists()
    assert "SIGKILL" not in log


def test_int_and_quit_end_it_at_once_and_close_idle_connections(
    site: Path, no_aborts: None, serve: Any
) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT):
        web = serve(site, *SMALL)
        web.get("/one")
        web.signal(number)
        assert web.wait() == 0


def test_hup_under_load_fails_no_request_and_leaks_nothing(
    site: Path, no_aborts: None, serve: Any, mariadb: Server, database: Database
) -> None:
    web = serve(site, *SMALL, "-w", "2")

    def size() -> tuple[int, int]:
        """Open files of the master, and its memory in MB."""
        proc = Path(f"/proc/{web.master_pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return len(list((proc / "fd").iterdir())), pages * os.sysconf("SC_PAGESIZE") >> 20

    def hang_up() -> None:
        before = web.worker_pids()
        web.signal(signal.SIGHUP)
        wait_until(lambda: not before & web.worker_pids())
        # The new ones serve: replaced sooner than they start, on a busy machine, none ever would.
        assert web.get("/one").status == 200

    with Hammer(web.port, "/one", clients=20, seconds=600) as load:
        hang_up()
        files, memory = size()
        for _ in range(HANG_UPS - 1):
            hang_up()
        wait_until(lambda: size()[0] <= files + 2)  # it may still have those of the last workers
        assert size()[1] <= memory + 5
        load.stop()
        succeeded(load.finish())
    assert len(web.worker_pids()) == 2
    # The last requests of the load may still be giving theirs back.
    wait_until(lambda: len(mariadb.admin.processlist(database.user)) <= 4)


def test_hup_takes_up_new_numbers_and_keeps_the_old_if_they_are_wrong(
    site: Path, serve: Any
) -> None:
    config = site / "gunicorn.conf.py"
    config.write_text("pool_size = 1\nmax_outstanding = 3\n")
    web = serve(site)
    web.get("/one")

    def numbers() -> tuple[int, int]:
        web.get("/one")
        pool = web.get("/stats").json()["pools"]["default"]
        return pool["size"], pool["max_outstanding"]

    def reload(text: str) -> None:
        before = web.worker_pids()
        rewrite(config, text)
        web.signal(signal.SIGHUP)
        wait_until(lambda: (new := web.worker_pids()) and not before & new)

    assert numbers() == (1, 3)
    reload("pool_size = 2\nmax_outstanding = 6\n")
    assert numbers() == (2, 6)
    says = "Reloaded: default: pool 2 · cap 6 per worker · pool-timeout 10s · request mode"
    assert f"[INFO] {says}\n" in web.log
    reload("pool_sise = 8\npool_size = 2\nmax_outstanding = 6\n")
    says = r"\[WARNING\] PS402 \S*gunicorn\.conf\.py: there is no setting pool_sise\n  → did"
    assert re.search(says, web.log), web.log
    reload("pool_size = 8\nmax_outstanding = 6\n")
    assert numbers() == (2, 6)
    assert "Not reloaded" in web.log
    assert "PS204" in web.log
    reload("pool_size = )\n")
    assert numbers() == (2, 6)


def test_usr2_hands_over_to_a_new_master(
    site: Path, database: Database, no_aborts: None, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    with Serve("mysite.wsgi", *SMALL, "--pid", str(pidfile), cwd=site) as web:
        first = web.get("/one").json()["pid"]
        web.signal(signal.SIGUSR2)
        second_master = int(wait_until(lambda: _read(Path(f"{pidfile}.2"))))
        wait_until(lambda: children(second_master))
        os.kill(web.master_pid, signal.SIGTERM)
        try:
            assert web.wait() == 0
            answer = web.get("/one")
            assert answer.status == 200
            assert answer.json()["pid"] != first
        finally:
            os.kill(second_master, signal.SIGTERM)
        wait_until(lambda: not processes.is_running(second_master))


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


# --- Workers -----------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(site: Path, serve: Any) -> None:
    web = serve(site, *SMALL)
    victim = web.get("/one").json()["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: web.worker_pids() - {victim})
    assert web.get("/one").json()["pid"] != victim


@torture
def test_max_requests_replaces_workers_without_failing_requests(
    site: Path, no_aborts: None, serve: Any
) -> None:
    web = serve(site, *SMALL, "--max-requests", "100", "-w", "2")
    with Hammer(web.port, "/one", clients=10, seconds=600) as load:
        web.wait_for_log("Autorestarting", times=3)
        load.stop()
        succeeded(load.finish())


def test_workers_end_when_the_master_is_killed(
    site: Path, serve: Any, mariadb: Server, database: Database
) -> None:
    web = serve(site, *SMALL)
    worker = web.get("/one").json()["pid"]
    os.kill(web.master_pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_running(worker))
    wait_until(lambda: not mariadb.admin.processlist(database.user))


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_what_a_project_asks_while_it_is_imported_holds_no_connection(
    options: tuple[str, ...], site: Path, no_aborts: None, serve: Any
) -> None:
    wsgi = site / "mysite" / "wsgi.py"
    wsgi.write_text(
        wsgi.read_text()
        + "from django.db import connection\n"
        + "connection.cursor().execute('SELECT 1')\n"
    )
    web = serve(site, *SMALL, *options, "-w", "2")
    succeeded(hammer(web.port, "/one", clients=20, requests=10))
    workers = wait_until(lambda: len(pids := web.worker_pids()) == 2 and pids)
    for worker in workers:
        with web.only(worker):
            # Connections that were more than it needed may still be ending.
            wait_until(lambda: stats(web)["in_use"] == 0)
            assert stats(web)["idle"] <= 2


def test_fork_in_user_code_leaves_the_connections_of_the_parent_alone(
    project: Any, database: Database, serve: Any
) -> None:
    web = serve(project(VIEWS, databases={"default": database.django()}), *SMALL)
    web.get("/one")
    assert web.get("/fork").json() == {"same": True, "child": 0}
    assert web.get("/one").status == 200


def test_a_child_that_ends_before_its_parent_goes_on_is_not_waited_for_for_ever(
    project: Any, database: Database, serve: Any
) -> None:
    web = serve(project(VIEWS, databases={"default": database.django()}), *SMALL)
    assert web.get("/fork_and_sleep").json() == {"child": 3}


def test_the_users_own_hooks_all_run(site: Path, serve: Any) -> None:
    once = {
        "on_starting": "server",
        "when_ready": "server",
        "pre_fork": "server, worker",
        "post_fork": "server, worker",
        "post_worker_init": "worker",
        "pre_request": "worker, request",
        "post_request": "worker, request, environ, response",
        "worker_exit": "server, worker",
        "on_exit": "server",
    }
    hooks = "".join(
        f"def {name}({names}): print('hook {name}', flush=True)\n" for name, names in once.items()
    )
    hooks += "def child_exit(server, worker): print('size', worker.cfg.pool_size, flush=True)\n"
    (site / "gunicorn.conf.py").write_text(f"pool_size = 2\n{hooks}")
    with Serve("mysite.wsgi", cwd=site) as web:
        web.get("/one")
        web.stop()
        for name in once:
            assert web.log.count(f"hook {name}\n") == 1, name
        assert "size 2" in web.log


# --- The start ---------------------------------------------------------------------------------


def test_a_unix_socket_and_a_conf_file_are_enough(site: Path, serve: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    (site / "gunicorn.conf.py").write_text(f"bind = 'unix:{path}'\npool_size = 1\n")
    assert serve(site, address=path, bind=False).get("/one").status == 200


@torture
def test_control_socket_is_off_unless_named(site: Path, serve: Any, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    serve(site, *SMALL, env=home)
    serve(site, *SMALL, env=home)
    time.sleep(0.3)
    assert not list(tmp_path.rglob("gunicorn.ctl"))
    path = tmp_path / "named.ctl"
    serve(site, *SMALL, "--control-socket", str(path), env=home)
    wait_until(path.exists)


def test_the_banner_tells_the_numbers(site: Path, serve: Any, database: Database) -> None:
    web = serve(site, *SMALL)
    assert f"127.0.0.1:{database.port}/{database.name} · pool 2 · cap 5" in web.log
    assert database.password not in web.log
