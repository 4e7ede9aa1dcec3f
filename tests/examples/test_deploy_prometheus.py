"""Rules and dashboard of examples/deploy, with promtool and a Prometheus that scrapes us."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from conftest import StartServe
from pooled_serve.pool import metrics
from pooled_serve.status import instance_metrics
from pooled_serve.status.peaks import PEAK_METRICS
from support.deploy import DEPLOY, installed, text
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client
from support.servers import tied_to_us
from support.text import same_names
from support.torture import torture

LABELS = {
    *("db_client_connection_pool_name", "db_client_connection_state", "worker"),
    *("http_route", "http_request_method"),
}
NAME = "db_client_connection_"
OWN = {
    *(metric.key for metric in metrics.METRICS if not metric.otel),
    *(key for _, key, _ in instance_metrics.INSTANCE_METRICS),
    *(key for _, key, _ in instance_metrics.POOL_METRICS),
    *(f"host_{key}" for _, key, _ in instance_metrics.HOST_METRICS),
    *(f"worker_{key}" for _, key, _ in instance_metrics.WORKER_METRICS),
    *(f"route_{key}" for _, key, _ in instance_metrics.ROUTE_METRICS),
    *(f"peak_{key}" for key in PEAK_METRICS),
}
METRICS = {
    *(NAME + n for n in ("count", "max", "idle_max", "pending_requests", "timeouts_total")),
    *(
        f"{NAME}{what}_time_seconds_{part}"
        for what in ("create", "wait", "use")
        for part in ("bucket", "sum", "count")
    ),
    *(f"pooled_serve_{key}" for key in OWN),
}
# The histograms say the same, or others say more.
UNUSED = {
    *(f"peak_{key}" for key in PEAK_METRICS.keys() - {"in_use", "waiting"}),
    *("waited_total", "opened_total", "connecting", "closing", "failed_total"),
    *("uptime_seconds", "route_longest_held_seconds", "route_idle_seconds_total", "login_refused"),
    *(
        "asking",
        "most_in_use",
        "last_outage_seconds",
        "lost_seconds",
        "worker_loop_delay_seconds",
        "worker_no_descriptor_ago_seconds",
        "host_taken_elsewhere",
        "worker_cpu_seconds_total",
        "cpus",
        "stopping",
        "starting",
    ),
}


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(text("grafana-dashboard.json"))
    return board


def queries(**variables: str) -> list[str]:
    """Of the dashboard, with its variables filled in."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    filled = {"job": ".*", "instance": ".*", "pool": ".*", "__rate_interval": "5m", **variables}
    for name, value in filled.items():
        found = [expression.replace(f"${name}", value) for expression in found]
    assert not any("$" in expression for expression in found)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(text("prometheus-rules.yaml"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_the_lines_for_prometheus_are_a_configuration_of_it(tmp_path: Path) -> None:
    (lines,) = re.findall(
        r"^#     (scrape_configs:\n(?:# {5,}.*\n)+)", text("prometheus-rules.yaml"), re.M
    )
    (tmp_path / "prometheus.yml").write_text(re.sub(r"^# {5}", "", lines, flags=re.M))
    promtool = installed("promtool", "prometheus")
    subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], check=True)


def test_rules_and_dashboard_name_metrics_that_there_are() -> None:
    name = rf"\b(?:{NAME}|pooled_serve_)\w+"
    dashboard_names = set(re.findall(name, "\n".join(queries())))
    rule_names = set(re.findall(name, "\n".join(rule["expr"] for rule in rules())))
    assert dashboard_names | rule_names <= METRICS | LABELS
    unused = {f"pooled_serve_{key}" for key in OWN} - dashboard_names - rule_names
    same_names(
        {f"pooled_serve_{key}" for key in UNUSED},
        unused,
        lacks="examples/deploy/ shows no {}: add it to grafana-dashboard.json or "
        "prometheus-rules.yaml, or to UNUSED here",
        surplus="UNUSED here has {}, which examples/deploy/ shows, or which is no metric",
    )
    for kind in ("create", "wait", "use"):
        assert f"{NAME}{kind}_time_seconds_bucket" in dashboard_names
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


def test_every_rule_is_tested() -> None:
    tests = yaml.safe_load(text("prometheus-rules.test.yaml"))["tests"]
    for rule in rules():
        cases = [c for t in tests for c in t["alert_rule_test"] if c["alertname"] == rule["alert"]]
        assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description"}
    assert f"| {len(rules())} alerts, each" in text("README.md")


def promtool(*args: str) -> None:
    program = installed("promtool", "prometheus")
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_is_content(tmp_path: Path) -> None:
    promtool("test", "rules", str(DEPLOY / "prometheus-rules.test.yaml"))
    records = [
        {"record": f"query:{number}", "expr": expression}
        for number, expression in enumerate(queries())
    ]
    group = {"groups": [{"name": "dashboard", "rules": records}]}
    (tmp_path / "dashboard.yaml").write_text(yaml.safe_dump(group))
    promtool(
        "check", "rules", *map(str, (DEPLOY / "prometheus-rules.yaml", tmp_path / "dashboard.yaml"))
    )


def test_what_is_in_use_is_told_of_what_may_be(tmp_path: Path) -> None:
    """Two workers share --max-per-host 12; on another host, without it, each has a cap of 12."""
    common = f'job="web", {NAME}pool_name="default"'
    hosts = [("a", 1, 7), ("a", 2, 5), ("b", 1, 12), ("b", 2, 0)]
    series = {f'pooled_serve_host_limit{{{common}, instance="a"}}': 12}
    for host, worker, used in hosts:
        labels = f'{common}, instance="{host}", worker="{worker}"'
        series[f'{NAME}count{{{labels}, {NAME}state="used"}}'] = used
        series[f"{NAME}max{{{labels}}}"] = 12
    expected = {"a": (1.0, 12), "b": (0.5, 24), ".*": (24 / 36, 36)}
    cases = []
    for instance, (share, most) in expected.items():
        shown = [q for q in queries(instance=instance) if f"{NAME}max{{" in q]
        assert len(shown) == 3
        for query in shown:
            samples = [{"labels": "{}", "value": share if "/" in query else most}]
            cases.append({"expr": query, "eval_time": "1m", "exp_samples": samples})
    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": f"{n}x4"} for name, n in series.items()],
        "promql_expr_test": cases,
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


@torture
def test_prometheus_answers_every_query_of_the_dashboard(
    myproject: Path, env: dict[str, str], serve: StartServe, tmp_path: Path
) -> None:
    program = installed("prometheus", "prometheus")
    status, port = free_port(), free_port()
    # The timeout is for those that wait, and not too short for a login on a busy machine.
    options = ("--pool-size", "1", "--max-per-host", "2", "--pool-timeout", "1")
    server = serve(myproject, *options, "--status", f"127.0.0.1:{status}", env=env)
    scrape = {"job_name": "web", "static_configs": [{"targets": [f"127.0.0.1:{status}"]}]}
    (tmp_path / "prometheus.yaml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    command = [
        program,
        f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]

    def answer(query: str) -> list[Any]:
        with Client(("127.0.0.1", port)) as client:
            response = client.get("/api/v1/query?" + urlencode({"query": query}))
        if response.status == 503:  # it is still starting
            return []
        said = response.json()
        assert said["status"] == "success", said
        return [series["value"][1] for series in said["data"]["result"]]

    def is_scraped() -> bool:
        try:
            return bool(answer("sum(increase(db_client_connection_timeouts_total[10s])) > 0"))
        except OSError:
            return False

    over = threading.Event()

    def visit() -> None:
        # Each time one connection is opened, two are waited for in vain, and one is closed.
        while not over.is_set():
            with ThreadPoolExecutor(4) as visitors:
                list(visitors.map(server.get, ["/hold?seconds=1.3"] * 4))

    with subprocess.Popen(tied_to_us(command)) as process, ThreadPoolExecutor(1) as thread:
        visiting = thread.submit(visit)
        try:
            wait_until(is_scraped, timeout=120)
            for query in queries(__rate_interval="10s"):
                # Of the last ten seconds there may be too few numbers yet.
                wait_until(lambda: (values := answer(query)) and "NaN" not in values)  # noqa: B023
        finally:
            over.set()
            process.terminate()
        visiting.result()
