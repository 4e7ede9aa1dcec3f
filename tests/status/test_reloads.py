"""What a HUP changes, as the page and the log tell of it: the servers of the databases, and that it
was refused."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.pool import metrics
from pooled_serve.preflight.reports import DatabaseReport
from pooled_serve.serve.reloads import Reloads
from pooled_serve.status.scoreboard import Scoreboard, Snapshot
from pooled_serve.status.stats import servers
from support.django_project import rewrite
from support.log_lines import LOST
from support.ports import free_port
from support.processes import wait_until
from support.status import StartStatus, Status

OLD, NEW = ("MariaDB 10.11", "127.0.0.1:3306/app"), ("MariaDB 11.8", "127.0.0.1:3307/app")
NOBODY = ("", "")


def snapshot(
    slot: int, texts: tuple[str, str], *, pid: int = 1, ending: bool = False, alias: str = "default"
) -> Snapshot:
    row = [0.0] * metrics.ROW_LENGTH
    return Snapshot(slot, pid, alias, *texts, row, row[: metrics.FIRST_GAUGE], ending)


@pytest.mark.parametrize(
    ("snapshots", "server"),
    [
        ([snapshot(1, NEW), snapshot(2, OLD, pid=0)], NEW),
        ([snapshot(1, NEW), snapshot(2, OLD, ending=True)], NEW),
        # It has not let the new worker in, and is another one: its engine is not known.
        ([snapshot(1, ("", NEW[1])), snapshot(2, OLD, pid=0)], ("", NEW[1])),
        # The same one is down: what a former worker has seen of it still holds.
        ([snapshot(1, ("", OLD[1])), snapshot(2, OLD, pid=0)], OLD),
        ([snapshot(1, OLD, pid=0), snapshot(2, NOBODY)], ("", "127.0.0.1:3308/app")),
        ([snapshot(1, OLD, ending=True)], ("", "127.0.0.1:3308/app")),
    ],
)
def test_the_server_is_that_of_the_workers_that_go_on(
    snapshots: list[Snapshot], server: tuple[str, str]
) -> None:
    assert servers(snapshots, {"default": "127.0.0.1:3308/app"}) == {"default": server}


def test_without_another_source_it_is_the_last_known_one() -> None:
    found = servers([snapshot(1, OLD, pid=0), snapshot(1, NEW, alias="a")])
    assert found == {"a": NEW, "default": OLD}
    assert list(found) == ["a", "default"]


def test_a_new_worker_forgets_the_server_of_the_slots_former_one() -> None:
    board = Scoreboard()
    for texts in (OLD, NOBODY):
        slot = board.allocate()
        assert slot == 1
        board.register(slot)
        row = board.pool_row(slot, "default")
        assert row is not None
        assert row.texts[1:] == NOBODY
        row.label("default", *texts)
        row.current[metrics.ACQUIRED] = 1.0
        board.retire(slot)
    (left,) = board.read()
    assert left.retired[metrics.ACQUIRED] == 2.0


# --- Where the databases are, in the log -------------------------------------------------------


def reloads(**servers: str) -> Reloads:
    found = [DatabaseReport(alias, True, "MySQL", address=at) for alias, at in servers.items()]
    return Reloads(None, [*found, DatabaseReport("lite", False, "SQLite")])


def test_the_first_worker_of_a_reload_tells_what_has_moved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    told = reloads(default="a:3306/app", other="a:3306/other", third="a:3306/third")
    told.tell(1, lambda: {"default": "no reload"})
    told.begin(2)
    told.tell(3, lambda: {"default": "b:3306/app", "other": "a:3306/other", "new": "b:3306/x"})
    told.tell(4, lambda: {"default": "the second worker"})
    told.begin(4)
    told.tell(5, lambda: {"default": "c:3306/app", "third": ""})  # not known without a connect
    told.begin(6)
    told.tell(7, lambda: {"default": "c:3306/app", "third": "c:3306/third"})
    assert [record.getMessage() for record in caplog.records] == [
        "Reloaded: default: b:3306/app (was a:3306/app)",
        "Reloaded: default: c:3306/app (was b:3306/app)",
        "Reloaded: third: c:3306/third (was a:3306/third)",
    ]


def test_a_worker_that_is_killed_while_it_tells_keeps_no_other_from_its_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    told = reloads(default="a:3306/app")
    told._memory[:10] = b'{"default\0'  # and no more
    told.begin(2)
    told.tell(3, lambda: {"default": "b:3306/app"})
    assert not caplog.records, "it is not known where it was"
    told.begin(3)
    told.tell(4, lambda: {"default": "c:3306/app"})
    assert caplog.messages == ["Reloaded: default: c:3306/app (was b:3306/app)"]


def test_more_databases_than_there_is_room_for_are_not_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    told = reloads(**{f"tenant{i}": "db.example:3306/" + "x" * 60 for i in range(20_000)})
    told.begin(2)
    told.tell(3, lambda: {"tenant1": "elsewhere:3306/x"})
    assert not caplog.records


# --- All of it ---------------------------------------------------------------------------------


def hang_up(it: Status) -> None:
    before = it.site.server.worker_pids()
    it.site.server.signal(signal.SIGHUP)
    wait_until(lambda: (new := it.site.server.worker_pids()) and not before & new)
    it.wait_for(lambda stats: not before & {worker["pid"] for worker in stats["workers"]})


def named(stats: dict[str, Any]) -> set[str]:
    """Every server in the numbers."""
    workers = [worker["pools"] for worker in stats["workers"]]
    return {pool["server"] for pools in (*workers, stats["pools"]) for pool in pools.values()}


@pytest.mark.parametrize("what", ["PORT", "NAME"])
def test_after_a_hup_with_other_settings_the_page_names_the_server_that_is_asked(
    status: StartStatus, what: str
) -> None:
    """It named the old one, which was well, and sent the operator there."""
    it = status("-w", "2")
    assert it.site.run("SELECT 1").status == 200
    old = it.pool()["server"]
    place, _, name = old.partition("/")
    new = f"127.0.0.1:{free_port()}/{name}" if what == "PORT" else f"{place}/nosuch"
    settings = next(it.site.server.cwd.glob("*/settings.py"))
    port, wanted = place.rpartition(":")[2], new.partition("/")[0].rpartition(":")[2]
    good = settings.read_text()
    bad = good.replace(port, wanted) if what == "PORT" else good.replace(repr(name), "'nosuch'")
    assert bad != good
    rewrite(settings, bad)
    hang_up(it)
    assert it.pool()["server"] == new, "nobody has used it yet"
    assert it.site.run("SELECT 1").status in (500, 503)
    stats = it.wait_for(lambda stats: stats["pools"]["default"]["reachable"] is False)
    assert named(stats) - {""} == {new}
    problem = stats["findings"][0]
    assert new in problem["text"]
    assert old not in it.get("/", Accept="*/*").text
    assert f'server="{old}"' not in it.get("/metrics").text
    log = it.site.server.wait_for_log(f"Reloaded: default: {new} (was {old})\n")
    assert log.count("Reloaded: default: 127.0.0.1:") == 1, "of two workers one tells of it"
    said = rf"{LOST} at {new}: " if what == "PORT" else f"the server at {new} refuses the login: "
    it.site.server.wait_for_log(said)
    rewrite(settings, good)
    hang_up(it)
    assert it.site.run("SELECT 1").status == 200
    stats = it.wait_for(lambda stats: stats["pools"]["default"]["reachable"])
    assert named(stats) - {""} == {old}
    it.site.server.wait_for_log(f"Reloaded: default: {old} (was {new})\n")


def test_a_refused_hup_is_on_the_page_until_one_succeeds(status: StartStatus) -> None:
    it = status()
    assert it.site.run("SELECT 1").status == 200
    config = it.site.server.cwd / "gunicorn.conf.py"
    refused = {
        "pool_size = 'abc'": "PS401",
        "pool_size = )": "PS403",
        "conn_max_age = 99999": "PS203",
    }
    for text, code in refused.items():
        rewrite(config, text) if config.exists() else config.write_text(text)
        hang_up(it)
        stats = it.wait_for(partial(_has_problem, code))
        assert 0 <= stats["reload_refused_ago_seconds"] < 60
        (sentence,) = [each for each in stats["findings"] if each["name"] == "not reloaded"]
        assert f"({code})" in sentence["problem"]
        assert "Not reloaded" in it.get("/", Accept="*/*").text
    rewrite(config, "")
    hang_up(it)
    stats = it.wait_for(partial(_has_problem, None))
    assert "not reloaded" not in {each["name"] for each in stats["findings"]}


WITH_MODELS = 'INSTALLED_APPS = ["django.contrib.contenttypes"]'
BROKEN = {
    f'{WITH_MODELS}\nDATABASES["default"]["CONN_MAX_AGE"] = "90"': ("PS110", "is '90', not"),
    'DATABASES["default"]["CONN_MAX_AGE"] = "60"': ("PS110", "is '60', not"),
    'DATABASES["default"]["PORT"] = "33961x"': ("PS110", "PORT of the database 'default' is '33"),
    'DATABASES["default"]["OPTIONS"] = {"connect_timeot": 3}': ("PS112", "knows 'connect_timeot'"),
    'DATABASES["x"] = {"ENGINE": "django.db.backends.mysqll"}': ("PS102", "'django.db.backends.m"),
    "DEBUG, ALLOWED_HOSTS = False, []": ("PS113", "every request will get 400"),
}


def test_settings_that_the_preflight_would_refuse_are_told_of_after_a_hup(
    status: StartStatus,
) -> None:
    """The page said that all was well, while each request failed."""
    it = status("-w", "2")
    assert it.site.run("SELECT 1").status == 200
    settings = next(it.site.server.cwd.glob("*/settings.py"))
    good = settings.read_text()
    for line, (code, says) in BROKEN.items():
        rewrite(settings, f"{good}\n{line}\n")
        hang_up(it)
        stats = it.wait_for(partial(_has_problem, code))
        problem = stats["findings"][0]
        assert (problem["level"], problem["name"]) == ("bad", "broken settings")
        said = rf"\[ERROR\] Reloaded with settings that --check refuses: {code} .*{says}"
        refused = rf"{said}(?:.*\n  )+→ "
        log = it.site.server.wait_for_log(re.compile(refused))
        assert len(re.findall(refused, log)) == 1, "of two workers one tells of it"
    rewrite(settings, good)
    hang_up(it)
    stats = it.wait_for(partial(_has_problem, None))
    assert "broken settings" not in {each["name"] for each in stats["findings"]}
    assert it.site.run("SELECT 1").status == 200


def _has_problem(code: str | None, stats: dict[str, Any]) -> bool:
    return bool(stats["reload_problem"] == code)


def test_after_usr2_the_page_and_the_log_tell_the_instances_apart(
    status: StartStatus, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    it = status("--max-per-host", "4", "--pid", str(pidfile))
    server = it.site.server
    it.site.fill()
    mine = {"limit": 4, "taken": 4, "taken_elsewhere": 0}
    it.wait_for(lambda stats: stats["hosts"]["default"].items() >= mine.items())
    server.signal(signal.SIGUSR2)
    second = wait_until(lambda: _number(Path(f"{pidfile}.2")))
    try:
        url = "{}:{}".format(*it.address)
        log = server.wait_for_log(re.compile(rf"Listening at: .*{url}[\s\S]*Listening at: .*{url}"))
        lines = re.findall(r"Listening at: (.*) \(\d+\)", log)
        assert lines[0] == lines[1]
        assert f", status page at http://{url}" in lines[1]
        # Whichever of the two answers: one has all of them, and the other none.
        theirs = mine | {"taken_elsewhere": 4}
        it.wait_for(lambda stats: stats["hosts"]["default"].items() >= theirs.items())
        os.kill(server.master_pid, signal.SIGTERM)
        assert server.wait() == 0
        free = {"taken": 0, "taken_elsewhere": 0}
        it.wait_for(lambda stats: stats["hosts"]["default"].items() >= free.items())
    finally:
        os.kill(second, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{second}").exists())


def _number(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0
