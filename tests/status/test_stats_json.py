"""/stats.json of real workers: its keys, and totals that outlive a worker."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.pool.metrics import CLOSE_REASONS, PIN_REASONS
from pooled_serve.status.episodes import KINDS
from pooled_serve.status.peaks import PEAK_KEYS, WINDOWS
from support.client import gate
from support.load import Hammer, hammer
from support.status import SLEEP, StartStatus
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

ROOT = Path(__file__).parents[2]
DOCUMENTS = "README.md", "examples/deploy/README.md"
NAMES = {"default", "5m", "1h", "24h", *CLOSE_REASONS, *PIN_REASONS}
"""Keys that are names of something: a database, a window of the peaks, a reason."""


def test_the_keys_of_the_contract(status: StartStatus) -> None:
    it = status()
    assert it.site.run("SELECT 1").status == 200
    stats = it.stats()
    assert set(stats) == {
        *("version", "app", "uptime_seconds", "workers", "pools", "hosts", "routes"),
        *("findings", "advice", "cpus", "pool_mode", "stopping", "starting"),
        *("worker_deaths_total", "worker_death_ago_seconds"),
        *("reload_problem", "reload_refused_ago_seconds"),
    }
    assert stats["hosts"] == {}
    assert stats["app"] == "mysite.wsgi"
    assert 0 < stats["uptime_seconds"] < 60
    (worker,) = stats["workers"]
    assert set(worker) == {
        *("slot", "pid", "pools", "cpu_seconds_total", "blocked_seconds_total", "cpu_share"),
        *("cpu_wait_share", "loop_delay_seconds", "seen_ago_seconds"),
        *("no_descriptor_ago_seconds", "urls_failed", "urls_error", "blocked_in", "blocked_in_log"),
    }
    assert worker["slot"] == 1
    assert {worker["pid"]} == it.site.server.worker_pids()
    pool = stats["pools"]["default"]
    assert set(pool) >= {
        *("engine", "server", "size", "max_outstanding", "in_use", "idle", "waiting"),
        *("acquired_total", "waited_total", "wait_seconds_total", "held_seconds_total"),
        *("timeouts_total", "shed_total", "retried_total", "killed_total", "outage_waits_total"),
        "client_gone_total",
        *("opened_total", "connect_errors_total", "closed_total"),
        *("reset_total", "leaked_total", "pinned_total", "oldest_wait_seconds"),
        *("oldest_held_seconds", "wait_seconds_buckets", "held_seconds_buckets"),
        *("longest_wait_seconds", "most_in_use", "login_refused", "recent", "peaks"),
        *("in_statement", "oldest_statement_seconds", "last_answer_seconds", "stuck"),
        *("unanswered_total", "outages_total", "last_outage_seconds", "asking", "budget"),
        *("lost_seconds", "connect_error", "atomic_requests", "in_settings", "unusable"),
        "hanging_statements",
    }
    assert set(pool["recent"]) == {
        *("seconds", "acquired", "acquired_per_second", "waited", "waited_share", "timeouts"),
        *("shed", "wait_p50_seconds", "wait_p95_seconds", "held_p50_seconds", "held_p95_seconds"),
        *("opened", "connect_errors", "unanswered", "lost_ago_seconds", "lost_held_seconds"),
        *("leaked", "closed", "pinned", "asking_share", "hung_ago_seconds"),
        "pressed_ago_seconds",
        *("wait_mean_seconds", "wait_p95_at_most_seconds"),
        *("held_mean_seconds", "held_p95_at_most_seconds", "failed", "connects_again"),
        *("connect_failed_error", "connect_failed_ago_seconds"),
        *KINDS,
    }
    assert set(pool["peaks"]) == set(WINDOWS)
    assert all(set(peaks) == set(PEAK_KEYS) for peaks in pool["peaks"].values())
    (finding,) = stats["findings"]
    assert set(finding) == {"level", "name", "pool", "problem", "remedy", "text"}
    assert pool["engine"].startswith("MariaDB 10.")
    assert pool["server"] == f"127.0.0.1:{it.site.database.port}/{it.site.database.name}"
    assert (pool["size"], pool["max_outstanding"]) == (4, 4)
    assert (pool["in_use"], pool["idle"], pool["waiting"]) == (0, 1, 0)
    assert (pool["acquired_total"], pool["opened_total"]) == (1, 1)
    assert 0 < pool["last_answer_seconds"] < stats["uptime_seconds"]
    assert pool["last_outage_seconds"] is None
    assert pool["wait_seconds_buckets"]["+Inf"] == pool["held_seconds_buckets"]["+Inf"] == 1
    (route,) = stats["routes"]
    assert set(route) == {
        *("route", "method", "leases_total", "held_seconds_total", "waited_total"),
        *("wait_seconds_total", "longest_held_seconds", "requests_total", "statements_total"),
        *("idle_seconds_total", "recent", "lately"),
    }
    assert (route["route"], route["method"], route["leases_total"]) == ("run", "GET", 1)
    assert (route["requests_total"], route["statements_total"]) == (1, 1)
    assert {k: v for k, v in worker["pools"]["default"].items() if "oldest" not in k} == {
        k: v
        for k, v in pool.items()
        if "oldest" not in k
        and k
        not in ("recent", "peaks", "budget", "atomic_requests", "in_settings", "hanging_statements")
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


@torture
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
    assert stats["worker_deaths_total"] == 0, "it was told to end, by its own count"


def test_transaction_mode_tells_what_was_pinned(status: StartStatus) -> None:
    it = status("--pool-mode", "transaction")
    assert it.site.run("SELECT 1").status == 200
    for _ in range(3):
        assert it.site.run("SET @x = 1").status == 200
    pool = it.pool_at_rest()
    assert pool["pinned_total"] == {"variable": 3}
    assert pool["reset_total"] == 3


def test_it_shows_the_bound_of_the_host(status: StartStatus) -> None:
    it = status("--max-per-host", "6", "--workers", "2")
    assert it.site.run("SELECT 1").status == 200
    bound = {"limit": 6, "taken": 1, "taken_elsewhere": 0, "hungry": 0, "trades_total": 0}
    assert it.wait_for(lambda stats: stats["hosts"] == {"default": bound})
    metrics = it.get("/metrics").text
    assert 'pooled_serve_host_limit{db_client_connection_pool_name="default"} 6.0' in metrics
    assert 'pooled_serve_host_taken{db_client_connection_pool_name="default"} 1.0' in metrics
    assert 'pooled_serve_host_trades_total{db_client_connection_pool_name="default"}' in metrics


def test_json_is_json(status: StartStatus) -> None:
    it = status("--max-outstanding", "unlimited", "--worker-connections", "50")
    it.site.run("SELECT 1")
    stats = json.loads(it.get("/stats.json").body, parse_constant=lambda name: pytest.fail(name))
    assert stats["pools"]["default"]["max_outstanding"] is None


def test_every_key_is_described(status: StartStatus) -> None:
    it = status("--max-per-host", "4")
    assert it.site.run("SELECT 1").status == 200
    text = "".join((ROOT / path).read_text() for path in DOCUMENTS)
    described = set(re.findall(r"`([a-z0-9_]+)`", text))

    def keys(value: object) -> Iterator[str]:
        if isinstance(value, list):
            for each in value:
                yield from keys(each)
        elif isinstance(value, dict):
            for key, each in value.items():
                if key not in NAMES:
                    yield key
                yield from keys(each)

    stats = it.wait_for(lambda stats: stats["routes"] and stats)
    # Buckets have the name of their histogram, and bounds that are no names.
    found = {re.sub("_(total|buckets)$", "", key) for key in keys(stats) if key[0].isalpha()}
    known = {re.sub("_(total|buckets)$", "", key) for key in described}
    known |= {key.replace("wait", "held") for key in known}  # as it says
    lacks = found - known
    assert not lacks, f'add to "More of /stats.json" in examples/deploy/README.md: {sorted(lacks)}'
