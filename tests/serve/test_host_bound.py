"""One bound for all workers of a host, whatever becomes of them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode

import pytest

from conftest import MakeProject, StartServe
from support.client import BoundWatch, gate
from support.load import Hammer
from support.processes import wait_until
from support.serve import Serve
from support.servers import Database, Server
from support.torture import TORTURE, torture

VIEWS = tuple(Path(__file__).with_name(f"{name}_views.py") for name in ("host_bound", "serving"))
LIMIT = 6
WORKERS = 4


class Bounded:
    """Workers with one bound, and the only ones to use their server."""

    def __init__(self, server: Serve, mariadb: Server, database: Database) -> None:
        self.server = server
        self.mariadb = mariadb
        self.database = database

    @contextmanager
    def never_more_than(self, most: int) -> Iterator[None]:
        """However often the server is asked in this block."""
        with BoundWatch(self.mariadb, self.database) as watch:
            yield
        assert 0 < watch.peak <= most, "\n".join(watch.seen)

    def assert_all_can_be_taken(self) -> None:
        """All connections of the host, at the same time, however late a new worker is there."""
        wait_until(lambda: not self.at_work())
        with ThreadPoolExecutor(LIMIT) as threads:
            with gate(self.database) as statement:
                path = "/run?" + urlencode({"sql": statement})
                held = [threads.submit(self.server.get, path) for _ in range(LIMIT)]
                wait_until(lambda: self.at_work("GET_LOCK") == LIMIT)
            assert [each.result().status for each in held] == [200] * LIMIT

    def who_answers(self) -> int:
        """A worker that has just used a connection; 0 if the one that was asked could not."""
        with suppress(OSError, HTTPException):
            answer = self.server.get("/nap?seconds=0")
            return int(answer.text) if answer.status == 200 else 0
        return 0

    def at_work(self, function: str = "SLEEP") -> int:
        rows = self.mariadb.admin.processlist(self.database.user)
        return sum(function in str(row["Info"]) for row in rows)


StartBounded = Callable[..., Bounded]


@pytest.fixture
def bounded(
    project: MakeProject, serve: StartServe, start_mariadb: Callable[..., Server]
) -> StartBounded:
    def start(*args: str) -> Bounded:
        mariadb = start_mariadb()
        database = mariadb.create_database()
        folder = project(VIEWS, databases={"default": database.django()})
        numbers = ("--workers", str(WORKERS), "--max-per-host", str(LIMIT))
        server = serve(folder, *numbers, *args)
        wait_until(lambda: len(server.worker_pids()) == WORKERS)
        return Bounded(server, mariadb, database)

    return start


def load(it: Bounded, seconds: float) -> Hammer:
    return Hammer(it.server.port, "/nap", clients=24, seconds=seconds, keepalive=True)


@pytest.mark.parametrize(
    "options",
    [(), ("--preload",), ("--max-requests", "40", "--max-requests-jitter", "20")],
    ids=["", "preload", "max-requests"],
)
def test_all_workers_together_have_no_more_and_all_are_served(
    bounded: StartBounded, options: tuple[str, ...]
) -> None:
    # A 503 after five seconds without a connection; how long a client waits for a worker that is
    # replaced, this machine decides.
    it = bounded("--pool-timeout", "5", "--pool-overload", "wait", *options)
    with it.never_more_than(LIMIT), load(it, 4) as hammer:
        outcomes = hammer.finish()
    lost = {"BadStatusLine", "RemoteDisconnected", "ConnectionResetError"} if options else set()
    assert {outcome.result for outcome in outcomes} - lost == {200}
    assert {outcome.client for outcome in outcomes} == set(range(24)), "each was served"
    it.assert_all_can_be_taken()


@torture
def test_hup_does_not_double_the_bound(bounded: StartBounded) -> None:
    it = bounded()
    with it.never_more_than(LIMIT), load(it, 60) as hammer:
        for times in range(1, (20 if TORTURE else 3) + 1):
            before = it.server.worker_pids()
            it.server.signal(signal.SIGHUP)
            wait_until(lambda: not before & it.server.worker_pids())  # noqa: B023
            it.server.wait_for_log("Hang up: Master", times)
        hammer.stop()
        outcomes = hammer.finish()
    statuses = {outcome.result for outcome in outcomes}
    assert 200 in statuses
    assert not {result for result in statuses if isinstance(result, int)} - {200}
    it.assert_all_can_be_taken()


@torture
def test_more_and_fewer_workers_do_not_change_it(bounded: StartBounded) -> None:
    it = bounded()
    with it.never_more_than(LIMIT), load(it, 60) as hammer:
        for number, count in ((signal.SIGTTIN, 5), (signal.SIGTTIN, 6), (signal.SIGTTOU, 5)):
            it.server.signal(number)
            wait_until(lambda: len(it.server.worker_pids()) == count)  # noqa: B023
        for count in (4, 3, 2, 1):
            it.server.signal(signal.SIGTTOU)
            wait_until(lambda: len(it.server.worker_pids()) == count)  # noqa: B023
        hammer.stop()
        hammer.finish()
    it.assert_all_can_be_taken()


def test_workers_that_are_killed_lose_nothing(bounded: StartBounded) -> None:
    """At most one connection more, while what a dead worker has left at the server is ended.

    Only who serves is killed: if any were, most would die while they load the project.
    """
    it = bounded()
    rng = random.Random(7)
    with it.never_more_than(LIMIT + 1), load(it, 3600) as hammer:
        for _ in range(150 if TORTURE else 10):
            serving = wait_until(it.who_answers)
            time.sleep(rng.uniform(0.0, 0.2))
            os.kill(serving, signal.SIGKILL)
        hammer.stop()
        outcomes = hammer.finish()
    assert any(outcome.result == 200 for outcome in outcomes)
    it.assert_all_can_be_taken()


@torture
def test_a_statement_of_a_dead_worker_is_ended_before_its_place_is_given_on(
    bounded: StartBounded,
) -> None:
    it = bounded()
    with ThreadPoolExecutor(LIMIT) as threads:
        for _ in range(LIMIT):
            threads.submit(suppressed(it.server.get), "/nap?seconds=60")
        wait_until(lambda: it.at_work() == LIMIT)
        dead = it.server.worker_pids()
        with it.never_more_than(LIMIT + 1):
            for pid in dead:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(it.server.worker_pids() - dead) == WORKERS)
            assert it.server.get("/nap?seconds=0").status == 200
            wait_until(lambda: it.at_work() == 0)
    it.assert_all_can_be_taken()


def test_a_worker_that_is_stopped_keeps_what_it_has_and_nobody_else_waits_for_it(
    bounded: StartBounded,
) -> None:
    it = bounded("--timeout", "60")
    with load(it, 1) as hammer:
        hammer.finish()
    stopped = min(it.server.worker_pids())
    os.kill(stopped, signal.SIGSTOP)
    try:
        answers = []
        for _ in range(20):
            with suppress(OSError):
                answers.append(it.server.get("/nap?seconds=0", timeout=3).seconds)
        assert len(answers) > 5
        assert sorted(answers)[len(answers) // 2] < 0.5
    finally:
        os.kill(stopped, signal.SIGCONT)
    it.assert_all_can_be_taken()


def test_a_child_that_the_project_forks_owns_nothing_and_asks_for_its_own(
    bounded: StartBounded,
) -> None:
    it = bounded()
    with it.never_more_than(LIMIT):
        for _ in range(8):
            assert it.server.get("/fork").json()["child"] == 0, it.server.log
    it.assert_all_can_be_taken()


@torture
def test_a_new_master_shares_the_bound_with_the_old_one(bounded: StartBounded) -> None:
    it = bounded()
    old = it.server.worker_pids()
    # One more: the new master's preflight asks the server, as at any start.
    with it.never_more_than(LIMIT + 1), load(it, 60) as hammer:
        it.server.signal(signal.SIGUSR2)
        (new,) = wait_until(lambda: it.server.worker_pids() - old)
        it.server.wait_for_log("Booting worker", 2 * WORKERS)
        time.sleep(1)
        hammer.stop()
        outcomes = hammer.finish()
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: it.server.worker_pids() == old)
    assert {outcome.result for outcome in outcomes} == {200}
    it.assert_all_can_be_taken()


ANOTHER_FORM = """
import os

def pre_exec(arbiter):
    file = arbiter.app.host._fd
    os.ftruncate(file, os.fstat(file).st_size + 8)
"""


def test_a_new_master_of_another_version_says_that_there_are_two_bounds(
    bounded: StartBounded, tmp_path: Path
) -> None:
    (tmp_path / "conf.py").write_text(ANOTHER_FORM)
    it = bounded("-c", str(tmp_path / "conf.py"))
    old = it.server.worker_pids()
    it.server.signal(signal.SIGUSR2)
    (new,) = wait_until(lambda: it.server.worker_pids() - old)
    log = it.server.wait_for_log("Booting worker", 2 * WORKERS)
    assert "until it ends, this host may have those on top of --max-per-host 6\n" in log
    assert f"  → end the old one soon: kill -TERM {it.server.master_pid}\n" in log
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: it.server.worker_pids() == old)


def test_a_bound_that_comes_with_a_hup_says_that_old_workers_have_none(
    project: MakeProject, serve: StartServe, tmp_path: Path
) -> None:
    conf = tmp_path / "conf.py"
    conf.write_text("pool_max_per_host = None")
    server = serve(project(VIEWS), "-c", str(conf))
    warning = "until they have ended, it may have their connections on top of --max-per-host"
    conf.write_text("pool_max_per_host = 6")
    server.signal(signal.SIGHUP)
    server.wait_for_log(f"{warning} 6\n")
    conf.write_text("pool_max_per_host = 7")
    server.signal(signal.SIGHUP)
    assert server.wait_for_log("Hang up: Master", 2).count(warning) == 1


def suppressed(get: Callable[..., object]) -> Callable[..., None]:
    def run(*args: object) -> None:
        with suppress(Exception):
            get(*args)

    return run
