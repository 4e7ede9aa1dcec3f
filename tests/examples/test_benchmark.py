"""examples/benchmark runs as it says, counts what happened, and draws it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.tuning import switches
from support import processes
from support.ports import free_port
from support.processes import wait_until
from support.serve import environment
from support.servers import ROOT
from support.torture import torture

BENCHMARK = ROOT / "examples" / "benchmark"
sys.path.append(str(BENCHMARK))

import client  # noqa: E402
import compare  # noqa: E402
import contenders  # noqa: E402
import fairness  # noqa: E402
import report  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"

VIEWS = """
    from django.db import connection
    from django.http import HttpResponse

    def good(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return HttpResponse("x" * 200_000, headers={"Content-Length": 200_000})

    def bad(request):
        return HttpResponse("no", status=500, headers={"Content-Length": 2})
"""


def run(script: str, *args: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARK / script, *args],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# --- The tables and the chart ------------------------------------------------------------------


def measured(
    contender: str, per_second: float, ceiling: float | None = None, **more: Any
) -> report.Run:
    run = {"contender": contender, "view": "one", "per_second": per_second}
    if ceiling:
        run |= {"ceiling": {"per_second": ceiling}, "ratio": per_second / ceiling}
    return {**run, "ok": 100, "failed": 0, **more}


@pytest.fixture
def results() -> report.Results:
    runs = [
        measured("ours", 90, 100, p99_ms=12.0, connections=3),
        measured("ours", 30, 30, p99_ms=14.0, connections=4),  # a busy moment, for both
        measured("ours", 80, 200, p99_ms=40.0, connections=4),
        measured("theirs", 100),
        measured("theirs", 30),
        measured("theirs", 200, failed=100),
        measured("down", 0, 50, ok=0, failed=5, p99_ms=None),
    ]
    contenders = {
        "ours": "Our <pool>",
        "theirs": "`their` pool",
        "down": "down",
        "absent": "absent",
    }
    return report.Results(runs, contenders, {"one": "1 query"})


def test_figures_are_medians_and_ratios_are_of_the_same_turns(results: report.Results) -> None:
    assert results.median("ours", "one", "per_second") == 80
    assert results.median("ours", "one", "ratio") == 0.9
    # 0.9 of what the ceiling did in the median of its turns: 30, 50, 100 and 200
    assert results.fair("ours", "one", "per_second") == 0.9 * 75
    assert results.fair("ours", "one", "p99_ms") == 14  # the ceiling's are not known
    assert results.fair("theirs", "one", "per_second") == 100  # was not measured in turns
    assert results.fair("down", "one", "per_second") == 0
    assert results.failed_share("theirs", "one") == 100 / 400
    assert results.most("ours", "one", "connections") == 4
    assert results.median("down", "one", "p99_ms") is None
    assert results.median("absent", "one", "per_second") is None
    assert results.fair("absent", "one", "per_second") is None


def test_failures_are_in_the_summary(results: report.Results) -> None:
    assert report.summary(results, "requests/s") == [
        ["", "1 query"],
        ["Our <pool>", "67.5"],
        ["`their` pool", "100 (25 % failed)"],
        ["down", "0.00 (100 % failed)"],
        ["absent", "-"],
    ]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0 %"), (1e-6, "<0.1 %"), (0.015, "1.5 %"), (0.99999, "99.9 %"), (1, "100 %")],
)
def test_few_failures_are_not_none_and_many_are_not_all(share: float, shown: str) -> None:
    assert report.percent(share) == shown


def test_tables_are_readable_as_text_and_as_markdown(results: report.Results) -> None:
    table = report.details(results, "one")
    assert [line[0] for line in table] == ["", "Our <pool>", "`their` pool", "down"]
    text = report.as_text(table).splitlines()
    assert text[1].split()[:4] == ["Our", "<pool>", "67.5", "0.90"]
    assert text[2].startswith("their pool  ")
    head, rule, *rows = report.as_markdown(table).splitlines()
    assert head.startswith("|  | requests/s | ratio |")
    assert rule.count("---:") == len(report.DETAILS)
    assert len(rows) == 3
    assert {line.count("|") for line in (head, rule, *rows)} == {len(report.DETAILS) + 2}


def test_the_chart_has_a_bar_for_each_and_fits_its_frame(results: report.Results) -> None:
    drawing = ET.fromstring(report.chart(results, ["one"], ours="ours", note="a & b"))
    bars = {(bar.get("class"), float(bar.get("width", ""))) for bar in drawing.iter(f"{SVG}rect")}
    # theirs is the longest: 100 served, 33 failed; ours is 67.5
    assert {("bar", 67.5), ("failed", 22.5), ("bar ours", 45.6)} <= bars
    width, height = float(drawing.get("width", "")), float(drawing.get("height", ""))
    for element in (*drawing.iter(f"{SVG}rect"), *drawing.iter(f"{SVG}text")):
        assert 0 <= float(element.get("x", "")) < width
        assert 0 <= float(element.get("y", "")) < height
    shown = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"Our <pool>", "their pool", "not measured", "1 query", "a & b"} <= {*shown}
    assert "prefers-color-scheme: dark" in ET.tostring(drawing, encoding="unicode")


# --- The load client ---------------------------------------------------------------------------


@pytest.fixture
def load(project: MakeProject, serve: StartServe) -> Callable[..., Mapping[str, Any]]:
    server = serve(project(VIEWS), "--pool-size", "2", "--max-outstanding", "2")

    def run_client(*args: str) -> Mapping[str, Any]:
        common = ("--clients", "5", "--seconds", "0.3", "--server-pid", str(server.master_pid))
        done = run("client.py", str(server.port), *args, *common)
        assert done.returncode == 0, done.stderr
        result: Mapping[str, Any] = json.loads(done.stdout)
        return result

    return run_client


def test_the_client_counts_answers_and_failures(load: Callable[..., Mapping[str, Any]]) -> None:
    for kind in ((), ("--close",)):
        # Once the machine has let it run long enough for CPU time to be counted.
        found = wait_until(lambda: (it := load("/good", *kind))["server_cpu_ms"] and it)  # noqa: B023
        assert found["failures"] == {}
        assert found["ok"] >= 5  # the last of each client, at least
        assert found["sent"] > found["ok"]  # to warm up
        assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    found = load("/bad", "--warm-up", "/good")  # none of whose answers counts
    assert found["ok"] == 0
    assert found["failures"] == {"HTTP 500": found["failed"]}
    assert found["p50_ms"] is found["server_cpu_ms"] is None


@torture
@pytest.mark.parametrize(
    ("turns", "timed"),
    [
        (["0.2 rate", "0.4 rate"], False),
        (["0.2 rate", "0.4 latency"], True),
        (["0.2 rate latency"], True),
    ],
)
def test_between_turns_server_and_clocks_stand_still(
    turns: list[str], timed: bool, project: MakeProject, serve: StartServe
) -> None:
    server = serve(project(VIEWS), "--pool-size", "2", "--keep-alive", "75")
    command = [
        sys.executable,
        str(BENCHMARK / "client.py"),
        str(server.port),
        "/good",
        "--in-turns",
    ]
    command += ["--clients", "5", "--server-pid", str(server.master_pid)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert json.loads(process.stdout.readline()) == {"served": 0}
        for turn in turns:
            time.sleep(2)
            assert processes.members(server.master_pid) <= processes.suspended()
            process.stdin.write(f"{turn}\n")
            process.stdin.flush()
            served = json.loads(process.stdout.readline())["served"]
            assert (served > 0) == ("rate" in turns[0])
        process.stdin.close()
        result = json.loads(process.stdout.readline())
    assert result["failed"] == 0
    assert result["ok"] > 0
    assert result["per_second"] > 0
    if timed:
        assert result["max_ms"] < 2000  # the time in which nobody could be served
    else:
        assert result["max_ms"] is None
    assert server.get("/good").status == 200


@pytest.mark.timing
def test_a_server_that_is_down_is_a_failure_of_each_attempt() -> None:
    load = client.Load(free_port(), "/", clients=3)
    began = time.perf_counter()
    load.start()

    def failures() -> int:
        load.run(time.perf_counter() + 0.05)
        return load.failures["cannot connect"]

    wait_until(lambda: failures() >= 9)
    load.stop()
    assert load.latencies == []
    # At once, and again after each pause, but not as fast as it can.
    pauses = (time.perf_counter() - began) / client.PAUSE
    assert load.failures["cannot connect"] <= 3 * (pauses + 1)


def test_a_load_counts_each_client_and_what_still_waits(
    project: MakeProject, serve: StartServe
) -> None:
    views = """
        import os, time
        from django.http import HttpResponse

        def good(request):
            headers = {"Content-Length": 2, "X-Worker": os.getpid()}
            return HttpResponse("ok", headers=headers)

        def never(request):
            time.sleep(300)
    """
    server = serve(project(views, databases={}))
    (worker,) = server.worker_pids()
    crowd = fairness.Crowd(server.port, "/good", clients=3, close=False)
    crowd.run_for(0.1)

    def all_served() -> bool:
        crowd.run(time.perf_counter() + 0.1)
        return min(crowd.answers.values()) > 0

    wait_until(all_served)
    crowd.stop()
    assert [*crowd.workers.values()] == [str(worker).encode()] * 3
    assert crowd.answers.total() == crowd.ok == len(crowd.waits)
    with server.only(-1):  # which is none of them
        crowd = fairness.Crowd(server.port, "/good", clients=3, close=False)
        assert crowd.run_for(1.0) >= 1.0
        assert crowd.answers.total() == 0
    crowd.stop()


def fair_run(counts: list[int], longest: float = 1.0, **more: Any) -> fairness.Run:
    figures = {"p99": 1.0, "cpu": 0.001, "seconds": 10.0, "failures": 0, "by_worker": []}
    return fairness.Run(counts, longest, **{**figures, **more})


def test_what_is_fair() -> None:
    stock = fair_run([1, 10, 40], 2.0)
    assert fairness.verdict(fair_run([10, 20, 40], 2.6), stock) == "fair"
    assert fairness.verdict(fair_run([9, 20, 40], 2.0), stock) == "starved"
    assert fairness.verdict(fair_run([10, 20, 41], 2.0), stock) == "favoured"
    assert fairness.verdict(fair_run([10, 20, 40], 2.8), stock) == "1.4 x the wait"
    # Once every 2.5 seconds is as often as the server can.
    assert fairness.verdict(fair_run([4, 4, 4], 5.0), stock) == "fair"
    assert fairness.verdict(fair_run([10, 20, 40], failures=2), stock) == "2 failed"


# --- The programs ------------------------------------------------------------------------------


@torture
def test_a_quick_comparison_from_beginning_to_end(tmp_path: Path) -> None:
    args = ("--quick", "--seconds", "2", "--no-install", "--views", "one")
    done = run(
        "compare.py", *args, "--contenders", "pooled-request,ceiling", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["machine"]["cores"] >= 1
    found = {run["contender"]: run for run in result["runs"]}
    assert {*found} == {"pooled-request", "ceiling"}
    for name, about in result["about"].items():
        assert about["tls"] == "none"
        assert about["driver"] == "pymysql"
        assert about["versions"]["django"]
        assert found[name]["failures"] == {}
        assert found[name]["complaints"] == {}
        assert found[name]["ok"] > 10
        assert found[name]["server_cpu_ms"] > 0
        # a query, and what it takes to open the connections
        assert 1 <= found[name]["round_trips"] < 10
    assert 1 <= found["pooled-request"]["connections"] <= 10 < found["ceiling"]["connections"] <= 33
    markdown = (tmp_path / "results.md").read_text()
    assert re.search(r"^\| pooled-serve \| [\d.]+ \|$", markdown, re.M)
    assert "TLS to the database: none." in done.stdout
    assert len(list(ET.parse(tmp_path / "chart.svg").iter(f"{SVG}rect"))) == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--contenders", "nobody"], 2, "'nobody' is none of pooled-request, "),
        (["--views", "one,two"], 2, "'two' is none of plaintext, "),
        (["--no-install", "--contenders", "dbutils"], 1, "dbutils needs packages of its own\n→ "),
    ],
)
def test_what_it_refuses(args: list[str], code: int, says: str) -> None:
    done = run("compare.py", *args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@torture
def test_behaviour_is_measured() -> None:
    args = ("--no-install", "--contenders", "pooled-request", "--experiments", "transaction")
    done = run("behaviour.py", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == ["| a request leaves a transaction open | rolled back |"]


@torture
def test_all_the_promises_that_the_table_shows() -> None:
    done = run("behaviour.py", "--no-install", "--contenders", "pooled-request,pooled-transaction")
    assert done.returncode == 0, done.stderr
    good = {"rolled back", "gone", "restored", "unlocked", "4 of 4 left", "0 of 40 fail"}
    _, _, *rows = done.stdout.splitlines()
    assert len(rows) == 11
    for row in rows:
        for cell in row.strip("|").split("|")[1:]:
            # not before the limit, and a busy machine may come to it later
            assert cell.strip() in good or re.fullmatch(r" 503 after [1-4]\.\d s ", cell), row


def test_the_tables_that_are_shown_are_those_of_the_results() -> None:
    result = json.loads((BENCHMARK / "results.json").read_text())
    titles = {name: contenders.contender(name, 10).title for name in result["about"]}
    measured = {run["view"] for run in result["runs"]}
    views = {view.name: view.title for view in compare.VIEWS if view.name in measured}
    results = report.Results(result["runs"], titles, views)
    table = report.as_markdown(report.summary(results, "requests/s"))
    assert f"\n\n{table}\n\n" in (BENCHMARK / "README.md").read_text()
    assert table in (BENCHMARK / "results.md").read_text()


@torture
def test_start_and_memory_are_measured() -> None:
    done = run("startup.py", "--no-install", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == [
        *("first answer, s", "memory, MB", "--help, s", "many to few"),
    ]
    figures = [float(cell) for row in rows for cell in re.findall(r"[\d.]+", row)]
    assert all(figures)


@torture
def test_fairness_is_measured() -> None:
    args = ("--seconds", "2", "--workers", "2", "--clients", "2,4", "--pages", "plain,1 ms")
    done = run("fairness.py", "--no-install", *args)
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [cell[:4] for cell in cells] == [
        ["2", kind, page, clients]
        for kind in ("keep-alive", "closing")
        for page, clients in (("plain", "4"), ("1 ms", "2"), ("1 ms", "4"))
    ]
    for cell in cells:
        fewest, median, most = map(float, cell[4].split())
        assert 0 < fewest <= median <= most
        assert "failed" not in cell[-1]
    assert re.search(r"^\d of 6 cells are fair. 2 s each on \d+ cores", done.stdout, re.M)


@torture
def test_pools_are_measured_alone() -> None:
    done = run(
        "pools.py", "--no-install", "--processes", "1", "--contenders", "pooled-request,ceiling"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| pooled-serve(?: \| [\d.]+){5} \|$", done.stdout, re.M)


@torture
def test_each_optimization_is_measured() -> None:
    done = run("switches.py", "--quick", "--no-install", "--pages", "plaintext,ten")
    assert done.returncode == 0, done.stderr
    savings, _, costs = done.stdout.split("\n\n")
    _, _, *rows = savings.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["none", *switches.NAMES]
    for row in rows:
        assert re.fullmatch(r"\| [\w-]+ (\| \d\.\d{3} \(\d\.\d{3}-\d\.\d{3}\) ){2}\|", row)
    _, _, *rows = costs.splitlines()
    assert len(rows) == 4
    for row in rows:
        assert re.fullmatch(r"\| [\w,]+ (\| \d+\.\d%, \d+ ms ){2}\|", row)
