"""/metrics: the numbers of /stats.json under the names of OpenTelemetry."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.metrics import samples_in
from support.netproxy import NetProxy
from support.processes import wait_until
from support.servers import Server
from support.status import StartStatus

pytestmark = pytest.mark.usefixtures("no_thread_left")

KINDS = {"wait": "wait", "held": "use", "create": "create"}


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
    samples = samples_in(answer)
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
    samples = samples_in(it.get("/metrics"))
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


def test_the_counters_of_a_slot_outlive_its_worker(status: StartStatus) -> None:
    it = status()
    for _ in range(5):
        it.site.run("SELECT 1")
    key = (
        "db_client_connection_use_time_seconds_count",
        (("db_client_connection_pool_name", "default"), ("worker", "1")),
    )
    assert samples_in(it.get("/metrics"))[key] == 5
    (pid,) = it.site.server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: it.site.server.worker_pids() not in (set(), {pid}))
    it.site.run("SELECT 1")
    assert samples_in(it.get("/metrics"))[key] == 6


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
            samples = samples_in(it.get("/metrics"))
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
