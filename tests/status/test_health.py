"""/livez and /readyz: what they say while workers and databases come and go."""

from __future__ import annotations

import http.client
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest

from support.client import gate
from support.load import Hammer, hammer
from support.log_lines import AT_CAP, BACK, LOST, NO_MORE
from support.netproxy import NetProxy
from support.processes import wait_until
from support.serve import Response
from support.servers import Server
from support.status import SLEEP, StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")


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
    it.site.give_up_after(1)
    server.kill()
    assert it.site.run("SELECT 1").status == 503
    with ThreadPoolExecutor(8) as threads:
        visitors = [threads.submit(it.site.server.get, "/get_stuck") for _ in range(8)]
        try:
            wait_until(lambda: len(list(stuck.iterdir())) == 5)
            # It answers, though none of those goes on.
            for path, expected in (("/livez", 200), ("/readyz", 503), ("/stats.json", 200)):
                assert it.get(path).status == expected, path
            assert it.get("/readyz").text == "cannot be reached (error 2003): default\n"
            assert len(list(stuck.iterdir())) == 5
        finally:
            go_on.touch()
        assert [visitor.result().status for visitor in visitors] == [200] * 8
    it.site.server.wait_for_log(f"[ERROR] database 'default' {LOST} at 127.0.0.1:")
    it.site.server.get("/tune?timeout=30")  # for the next login, on a busy machine
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)  # and nobody sent a request
    log = it.site.server.wait_for_log(BACK)
    line = rf"\[WARNING\] database 'default' {BACK} \d+\.\d+s; failed attempts to connect: \d+$"
    assert re.search(line, log, re.MULTILINE)
    assert log.count(LOST) == 1, "one line for an outage"
    it.pool_at_rest()
    assert it.site.run("SELECT 1").status == 200


def test_a_lost_database_is_noticed_and_its_return_without_traffic(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    it = status(server=server)
    assert it.site.run("SELECT 1").status == 200
    acquired = it.pool_at_rest()["acquired_total"]
    server.stop()
    wait_until(lambda: it.get("/readyz").status == 503)
    assert "Outage: the database default" in it.get("/", Accept="*/*").text
    it.site.server.wait_for_log(f"database 'default' {LOST} at 127.0.0.1:")
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)
    it.site.server.wait_for_log(f"database 'default' {BACK}")
    assert it.pool_at_rest()["acquired_total"] == acquired


@pytest.mark.parametrize("age", ["60", "0.5"], ids=["idle connections", "none left"])
def test_a_frozen_database_is_noticed_without_traffic_and_served_at_once_afterwards(
    status: StartStatus, mariadb: Server, age: str
) -> None:
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        options = ("-w", "2", "--conn-max-age", age)
        it = status(*options, database=database, PORT=str(proxy.port))
        assert it.site.run("SELECT 1").status == 200
        proxy.freeze()
        wait_until(lambda: it.get("/readyz").status == 503)
        page = it.get("/", Accept="*/*").text
        assert "Stuck server" in page or "cannot be reached" in page
        proxy.thaw()
        wait_until(lambda: it.get("/readyz").status == 200)
        it.site.server.wait_for_log(f"database 'default' {BACK}")
        for _ in range(4):  # of each worker
            assert it.site.run("SELECT 1").status == 200


def test_a_stopped_database_is_noticed_though_no_connection_is_left(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    it = status("--conn-max-age", "0.5", server=server)
    assert it.site.run("SELECT 1").status == 200
    it.wait_for(lambda stats: stats["pools"]["default"]["idle"] == 0)
    server.stop()
    wait_until(lambda: it.get("/readyz").status == 503)
    it.site.server.wait_for_log(f"database 'default' {LOST} at 127.0.0.1:")


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
    where = rf"database 'default' {LOST} at 127\.0\.0\.1:"
    said = re.compile(rf"\[ERROR\] {where}.*\n  → see that the server")
    it.site.server.wait_for_log(said, times=2)
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)
    it.site.server.wait_for_log(BACK, times=2)
    # New workers know that, whatever the preflight found.
    old = it.site.server.worker_pids()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    it.wait_for(lambda stats: len({worker["pid"] for worker in stats["workers"]} - old) == 2)
    assert it.get("/readyz").status == 200
    assert it.site.server.log.count(BACK) == 2, "one of each of the first workers"


def test_a_reload_under_load_takes_no_host_out_of_service(
    status: StartStatus, mariadb: Server
) -> None:
    views = """
        import atexit
        import time

        time.sleep(1.5)  # so long it takes to load
        atexit.register(time.sleep, 2)  # and to end
    """
    it = status("-w", "2", server=mariadb, views=views)
    old = it.site.server.worker_pids()
    said: set[tuple[int, str]] = set()
    left: list[tuple[int, int, int]] = []  # what workers that have ended seem to have

    def replaced() -> bool:
        with suppress(OSError, http.client.HTTPException):  # of a worker that ends
            answer = it.get("/readyz")
            said.add((answer.status, answer.text))
            workers = {worker["pid"]: worker["pools"] for worker in it.stats()["workers"]}
            # Also before the new ones have loaded: on a busy machine the old may not outlast that.
            pools = [workers[pid]["default"] for pid in old & workers.keys()]
            left.extend((p["in_use"], p["idle"], p["waiting"]) for p in pools)
        return not it.site.server.worker_pids() & old

    path = "/run?sql=SELECT+SLEEP(0.05)"
    with Hammer(it.site.server.port, path, clients=8, seconds=60.0) as running:
        it.wait_for(lambda stats: sum("default" in w["pools"] for w in stats["workers"]) == 2)
        it.site.server.signal(signal.SIGHUP)
        wait_until(replaced)
        running.stop()
        outcomes = running.finish()
    assert said == {(200, "ok\n")}
    assert {outcome.result for outcome in outcomes} == {200}
    assert left[-1] == (0, 0, 0)


def test_only_workers_that_nobody_told_to_end_count_as_dead(status: StartStatus) -> None:
    it = status("-w", "2")
    before = it.site.server.worker_pids()
    it.site.server.signal(signal.SIGHUP)
    wait_until(lambda: not it.site.server.worker_pids() & before)
    assert it.stats()["worker_deaths_total"] == 0
    os.kill(min(it.site.server.worker_pids()), signal.SIGKILL)
    stats = it.wait_for(lambda stats: stats["worker_deaths_total"] == 1)
    assert 0 <= stats["worker_death_ago_seconds"] < 30
    (died,) = (f for f in stats["findings"] if f["name"] == "worker died")
    assert died["problem"].startswith("Worker died: one ended ")
    assert "pooled_serve_worker_deaths_total 1.0" in it.get("/metrics").text


ENDING = """
    import sys
    import time

    def leave(request):
        sys.exit(1)

    def leave_later(request):
        import gevent
        gevent.spawn(sys.exit, 1)
        gevent.sleep(60)

    def spin(request):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pass
"""


@pytest.mark.parametrize("path", ["/spin", "/leave_later"])
def test_a_worker_that_its_project_ends_counts_as_dead(status: StartStatus, path: str) -> None:
    """Also after WORKER TIMEOUT, where gunicorn ends it nearly as one that was told to end."""
    # A new worker has to be there in that time, too.
    it = status(*(("--timeout", "4") if path == "/spin" else ()), views=ENDING)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(it.site.server.get, path)
        stats = it.wait_for(lambda stats: stats["worker_deaths_total"] == 1)
        assert asked.exception() is not None
    assert "worker died" in [finding["name"] for finding in stats["findings"]]
    assert ("WORKER TIMEOUT" in it.site.server.log) == (path == "/spin")


def test_a_worker_that_is_killed_is_not_said_to_end_as_in_a_reload(status: StartStatus) -> None:
    """While it runs what its project has for its end, another worker tells of it."""
    views = f"{ENDING}\n    import atexit\n    atexit.register(time.sleep, 2)\n"
    it = status("-w", "2", "--timeout", "4", views=views)
    seen: set[str] = set()

    def over(stats: dict[str, Any]) -> bool:
        seen.update(finding["name"] for finding in stats["findings"])
        return bool(stats["worker_deaths_total"])

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(it.site.server.get, "/spin")
        it.wait_for(over)
        assert asked.exception() is not None
    assert "worker dies" in seen
    assert "workers end" not in seen


def test_a_view_that_exits_does_not_end_its_worker(status: StartStatus) -> None:
    it = status(views=ENDING)
    before = it.site.server.worker_pids()
    with pytest.raises((OSError, http.client.HTTPException)):
        it.site.server.get("/leave")
    assert it.site.run("SELECT 1").status == 200
    assert it.site.server.worker_pids() == before


def test_a_worker_that_was_told_to_end_does_not_count_as_dead_after_its_timeout(
    status: StartStatus,
) -> None:
    # The view that runs gets the signal, and does not end by it.
    views = ENDING.replace("end =", "os.kill(os.getpid(), 15)\n        end =")
    it = status("--timeout", "4", views=views.replace("import sys", "import os\n    import sys"))
    (before,) = it.site.server.worker_pids()
    with pytest.raises((OSError, http.client.HTTPException)):
        it.site.server.get("/spin")
    it.wait_for(lambda stats: [w["pid"] for w in stats["workers"]] not in ([], [before]))
    assert "WORKER TIMEOUT" in it.site.server.log
    assert it.stats()["worker_deaths_total"] == 0


def test_a_new_worker_knows_that_the_database_is_lost(
    status: StartStatus, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    it = status(server=server)
    it.site.give_up_after(1)
    server.kill()
    assert it.site.run("SELECT 1").status == 503
    (pid,) = it.site.server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.site.server.worker_pids() not in (set(), {pid}))
    assert it.get("/readyz").status == 503
    server.start()
    wait_until(lambda: it.get("/readyz").status == 200)


def test_a_child_of_a_worker_does_not_count_for_it(status: StartStatus, mariadb: Server) -> None:
    views = """
        import os
        from gevent import get_hub

        def fork(request):
            connection.cursor().execute("SELECT 1")
            get_hub().loop.install_sigchld()  # as below
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


def test_a_child_of_a_worker_that_is_told_to_stop_does_not_either(status: StartStatus) -> None:
    """It has its handlers."""
    # gevent hears of children from the first one on, but not if that has ended before it is told.
    views = """
        import os
        import signal
        from gevent import get_hub

        def fork(request):
            get_hub().loop.install_sigchld()
            pid = os.fork()
            if pid == 0:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            return HttpResponse()
    """
    it = status(views=views)
    (worker,) = it.site.server.worker_pids()
    assert it.site.server.get("/fork").status == 200
    assert it.get("/readyz").text == "ok\n"
    assert [each["pid"] for each in it.stats()["workers"]] == [worker]


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


def _reload_while_a_request_is_held(it: Status, statement: str) -> tuple[Future[Response], int]:
    """Returns the request's answer, which is yet to come, and the new worker."""
    (old,) = it.site.server.worker_pids()
    threads = ThreadPoolExecutor(1)
    answer = threads.submit(it.site.run, statement)
    threads.shutdown(wait=False)
    it.wait_for(lambda stats: stats["pools"] and stats["pools"]["default"]["in_use"] == 1)
    it.site.server.signal(signal.SIGHUP)
    (new,) = wait_until(lambda: it.site.server.worker_pids() - {old})
    return answer, new


def test_a_stop_of_the_master_in_a_reload_is_told_at_once(status: StartStatus) -> None:
    """It takes up the signal only when the old workers have ended."""
    it = status()
    with gate(it.site.database) as statement:
        answer, new = _reload_while_a_request_is_held(it, statement)
        it.wait_for(lambda stats: new in {worker["pid"] for worker in stats["workers"]})
        assert it.get("/readyz").status == 200
        it.site.server.signal(signal.SIGTERM)
        wait_until(lambda: it.get("/readyz").status == 503)
        assert it.get("/readyz").text == "stopping\n"
        assert it.stats()["findings"][0]["name"] == "stopping"
        assert "Handling signal: term" not in it.site.server.log
    assert answer.result().status == 200
    assert it.site.server.wait() == 0


def test_workers_that_are_told_to_stop_while_they_load_are_none_to_wait_for(
    status: StartStatus, tmp_path: Path
) -> None:
    """As when TERM goes to the whole process group."""
    loads, go_on = tmp_path / "loads", tmp_path / "go on"
    go_on.touch()
    settings = f"""
        import os
        import time

        open({str(loads)!r}, "w").close()
        while not os.path.exists({str(go_on)!r}):
            time.sleep(0.02)
    """
    it = status(django=settings)
    (old,) = it.site.server.worker_pids()
    with gate(it.site.database) as statement:
        try:
            loads.unlink()
            go_on.unlink()
            answer, new = _reload_while_a_request_is_held(it, statement)
            wait_until(loads.exists)
            assert it.get("/readyz").status == 200
            os.kill(old, signal.SIGTERM)
            os.kill(new, signal.SIGTERM)
            wait_until(lambda: it.get("/readyz").status == 503)
            assert it.get("/readyz").text == "stopping\n"
        finally:
            go_on.touch()
        wait_until(lambda: new not in it.site.server.worker_pids())
    assert answer.result().status == 200


@torture
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
    log = it.site.server.wait_for_log(f"[WARNING] pool 'default' {NO_MORE}")
    assert re.search(rf"{NO_MORE} to 127\.0\.0\.1:\d+/\w+: Too many connections", log)
    assert "\n  → close idle connections (SHOW PROCESSLIST), or raise the limit" in log
    assert BACK not in log
    assert AT_CAP not in log, "the pool has room, the server has not"
    for hog in hogs:
        hog.close()


def test_a_frozen_database_is_told_as_lost(status: StartStatus, mariadb: Server) -> None:
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        it = status("--pool-timeout", "1", database=database, PORT=str(proxy.port))
        proxy.freeze()
        assert it.site.run("SELECT 1").status == 503
        wait_until(lambda: it.get("/readyz").status == 503)
        it.site.server.wait_for_log(f"database 'default' {LOST}: the server did not answer")
        proxy.thaw()
        wait_until(lambda: it.get("/readyz").status == 200)
