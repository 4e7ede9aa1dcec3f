"""/metrics: the numbers of /stats.json under the names of OpenTelemetry."""

from __future__ import annotations

import ast
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pooled_serve.options import OPTIONS
from pooled_serve.pool import metrics
from pooled_serve.pool.metric import Kind
from support.log_lines import GOT_503
from support.metrics import samples_in
from support.netproxy import NetProxy
from support.processes import wait_until
from support.serve import Response
from support.servers import ROOT, Server
from support.status import StartStatus

pytestmark = pytest.mark.usefixtures("no_thread_left")

KINDS = {"wait": "wait", "held": "use", "create": "create"}
TIMES = KINDS.values()
ROUTES_VIEWS = Path(__file__).with_name("routes_views.py")

Labels = tuple[tuple[str, str], ...]


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
    for label, values in (("worker", {"1", "2"}), ("db_client_connection_pool_name", {"default"})):
        assert {dict(ls).get(label) for n, ls in samples if n.startswith(prefix)} == values


def test_metrics_have_all_that_the_json_has(status: StartStatus) -> None:
    it = status("--pool-mode", "transaction", "--max-per-host", "6", "-w", "2", cap=3)
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    assert it.site.run("SET @x = 1").status == 200
    it.pool_at_rest()

    def both() -> tuple[dict[str, Any], Response] | None:
        """Of one moment: how many were in use in the last second or two falls by itself."""
        stats, answer, later = it.stats(), it.get("/metrics"), it.stats()
        most = [each["pools"]["default"]["most_in_use"] for each in (stats, later)]
        return (stats, answer) if most[0] == most[1] else None

    stats, answer = wait_until(both)
    samples = samples_in(answer)
    told: set[tuple[str, Labels]] = set()

    def value(name: str, **labels: str) -> float:
        """The sum over the rest of the labels."""
        found = {
            key: number
            for key, number in samples.items()
            if key[0] == name and labels.items() <= set(key[1])
        }
        assert found, (name, labels)
        told.update(found)
        return sum(found.values())

    for key, number in stats.items():
        if key == "pool_mode":
            assert number == "transaction"  # a setting, and of the same name
        elif key in ("version", "app"):
            assert value("pooled_serve_info", **{key: number}) == 1
        elif key == "uptime_seconds":
            assert 0 <= value("pooled_serve_uptime_seconds") - number < 30
        elif key == "workers":
            # Their process ids are no numbers to watch, and those in the pools are there.
            assert value("pooled_serve_workers") == len(number) == 2
            for worker in number:
                slot = str(worker.pop("slot"))
                for name in worker.keys() - {"pid", "pools", "blocked_in", "blocked_in_log"}:
                    if worker[name] is None:  # a share of less than five seconds
                        continue
                    of_worker = value(f"pooled_serve_worker_{name}", worker=slot)
                    assert abs(of_worker - worker[name]) < 30
        elif key in ("stopping", "starting"):
            assert value(f"pooled_serve_{key}") == number == 0
        elif key == "worker_death_ago_seconds":
            assert number is None, "none has; Prometheus knows when the number of them has risen"
        elif key in ("reload_problem", "reload_refused_ago_seconds"):
            assert number is None, "none was; the page and the log tell of it"
        elif key == "worker_deaths_total":
            assert value("pooled_serve_worker_deaths_total") == number == 0
        elif key == "cpus":
            assert value("pooled_serve_cpus") == number == len(os.sched_getaffinity(0))
        elif key == "hosts":
            for name, of_host in number["default"].items():
                labels = {"db_client_connection_pool_name": "default"}
                assert value(f"pooled_serve_host_{name}", **labels) == of_host
        elif key == "routes":
            for route in number:
                labels = {
                    f"http_{label}": route.pop(name)
                    for label, name in (("route", "route"), ("request_method", "method"))
                }
                del route["recent"], route["lately"]  # Prometheus derives its own
                for name, of_route in route.items():
                    assert value(f"pooled_serve_route_{name}", **labels) == of_route
        elif key not in ("findings", "advice"):  # sentences; the rules for alerts are others
            assert key == "pools", "this is not in /metrics"
            assert_pool_is_told(number["default"], value)
    assert stats["pools"]["default"]["pinned_total"] == {"variable": 1}
    unexpected = {name for name, _ in samples.keys() - told if not name.endswith("_created")}
    counts = {f"db_client_connection_{kind}_time_seconds_count" for kind in TIMES}
    # None in the JSON, where 0 could be taken for an error's number.
    assert unexpected == {*counts, "pooled_serve_connect_error"}, "the JSON has all that they have"


def assert_pool_is_told(pool: dict[str, Any], value: Callable[..., float]) -> None:
    names = {
        "in_use": "count",
        "idle": "count",
        "size": "idle_max",
        "max_outstanding": "max",
        "waiting": "pending_requests",
        "timeouts_total": "timeouts_total",
        **{f"{key}_seconds_total": f"{name}_time_seconds_sum" for key, name in KINDS.items()},
        **{f"{key}_seconds_buckets": f"{name}_time_seconds_bucket" for key, name in KINDS.items()},
    }
    states = {"in_use": "used", "idle": "idle"}
    for key, number in pool.items():
        name = f"db_client_connection_{names[key]}" if key in names else f"pooled_serve_{key}"
        if key in ("recent", "budget", "atomic_requests", "in_settings", "unusable"):
            continue  # Prometheus derives its own; what the servers allowed; words for others
        if key == "peaks":
            for window, highest in number.items():
                for name, peak in highest.items():
                    # There may be one second more by now.
                    assert value(f"pooled_serve_peak_{name}", window=window) >= peak
            continue
        if isinstance(number, str):
            assert value("pooled_serve_database_info", **{key: number}) == 1
        elif key in states:
            assert value(name, db_client_connection_state=states[key]) == number
        elif key.endswith("_buckets"):
            for bound, count in number.items():
                assert value(name, le=bound) == count
        elif isinstance(number, dict):
            for reason, count in number.items():
                assert value(name, reason=reason) == count
            assert value(name) == sum(number.values())
        elif "oldest" in key:
            assert value(name) == number == 0
        elif number is None:
            assert key in ("last_outage_seconds", "connect_error"), "there was none"
        elif key == "last_answer_seconds":
            # Each worker has its own, and the JSON the latest.
            assert value(name) >= number > 0
        elif key == "reachable":
            assert value(name) >= 1, "of the workers that have asked"
            assert number is True
        else:
            assert value(name) == number, (key, pool)


def test_every_help_says_what_to_do(status: StartStatus) -> None:
    it = status("--max-per-host", "6")
    assert it.site.run("SELECT 1").status == 200  # before that the host has no numbers
    families = list(text_string_to_metric_families(it.get("/metrics").text))
    assert len(families) > 30
    # With --max-per-host the sum of the caps may never be reached.
    of_the_cap = {
        *(f"db_client_connection_{n}" for n in ("max", "count")),
        "pooled_serve_peak_in_use",
    }
    bound = {f.name for f in families if "pooled_serve_host_limit" in f.documentation}
    assert bound == of_the_cap
    for family in families:
        said = family.documentation
        if not re.search(r"If .*(rises|falls|changes)|A setting: ", said):
            form = "what it counts, then 'If it rises, ...' and what to do, or 'A setting: --...'"
            pytest.fail(f"the help of {family.name} lacks a part, it says {form}: {said}")
        # Those that it names are there, and so are the options.
        told = {f.name for f in families}
        for name in re.findall(r"(?:pooled_serve|db_client)_\w+", said):
            assert name.removesuffix("_total") in told, (family.name, name)
        for option in re.findall(r"--[a-z-]+", said):
            assert option in {o.flag for o in OPTIONS} | {"--workers"}, (family.name, option)


def test_routes_are_told_whatever_they_contain(status: StartStatus) -> None:
    it = status(views=ROUTES_VIEWS)
    assert it.site.server.get("/odd%22%5C%0A%7B%7Dx/").status == 200
    assert it.site.server.get("/").status == 200
    it.pool_at_rest()
    samples = samples_in(it.get("/metrics"))
    leases = {
        (dict(labels)["http_request_method"], dict(labels)["http_route"]): number
        for (name, labels), number in samples.items()
        if name == "pooled_serve_route_leases_total"
    }
    assert leases == {("GET", 'odd"\\\n{}<b>/'): 1, ("GET", "/"): 1}
    assert {dict(ls)["worker"] for (name, ls), _ in samples.items() if "route" in name} == {"1"}


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
        it = status("--pool-timeout", "5", cap=2, database=database, PORT=str(proxy.port))
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
        log = it.site.server.wait_for_log(GOT_503)
        assert re.search(r"no connection within 5s \(0 in use, 0 idle, ", log)
        assert "2 in use" not in log
        waits = it.pool()["wait_seconds_buckets"]
        assert waits["1"] == 0
        assert waits["+Inf"] >= 3, "and those of the probe"
        proxy.thaw()


# --- What is declared is counted ---------------------------------------------------------------


def declared() -> Iterator[tuple[str, set[str]]]:
    """The keys of pool/metrics.py, each with the names of the places that it has in a row."""
    for node in ast.parse(Path(metrics.__file__).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            texts = [arg.value for arg in node.value.args if isinstance(arg, ast.Constant)]
            if texts and texts[0] in KEYS:
                yield str(texts[0]), {name for target in node.targets for name in names_in(target)}


KEYS = {metric.key for metric in metrics.METRICS}


def names_in(node: ast.AST) -> Iterator[str]:
    """CLOSED of CLOSED[reason], and WAITED of metrics.WAITED."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def counted() -> set[str]:
    """What the package counts or stores: count(metrics.WAITED), row[metrics.IDLE] = 3."""
    found: set[str] = set()
    for path in (ROOT / "pooled_serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                found |= set(names_in(node.slice))
            elif isinstance(node, ast.Call) and {"count", "_observe"} & set(names_in(node.func)):
                found |= {name for argument in node.args for name in names_in(argument)}
    return found


def test_no_number_is_declared_in_vain() -> None:
    places, used = dict(declared()), counted()
    assert set(places) == KEYS
    for key, names in places.items():
        if names.isdisjoint(used):
            name = min(names)
            way = f"where it happens, self.count(metrics.{name}) or row[metrics.{name}] = ..."
            pytest.fail(f"nothing counts {key} of pool/metrics.py: {way}", pytrace=False)


DASHBOARD_TEST = "test_deploy_prometheus.py"


def test_each_counter_has_a_test() -> None:
    # Not that of the dashboard, which lists what it does not show.
    paths = [each for each in (ROOT / "tests").rglob("*.py") if each.name != DASHBOARD_TEST]
    tests = "".join(path.read_text() for path in paths)
    for metric in metrics.METRICS:
        if metric.kind is Kind.COUNTER and not re.search(rf"\b{metric.key}\b", tests):
            way = "make happen what it counts, and look for its key in it.pool()"
            pytest.fail(f"no test names {metric.key}: {way}", pytrace=False)
