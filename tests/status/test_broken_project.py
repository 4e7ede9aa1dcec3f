"""Workers that were loaded with a URL configuration that fails: the page tells of them."""

from __future__ import annotations

import signal
import time

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.status.findings import findings
from pooled_serve.status.load import LOAD_BYTES, LoadRow
from support.answers import Answers
from support.command import run
from support.django_project import rewrite
from support.ports import free_port
from support.status import StatusListener


def test_how_many_it_was_and_what_to_do() -> None:
    stats = Answers(3).stats
    for worker in stats["workers"][:2]:
        worker["urls_failed"] = True
    stats["workers"][2]["urls_failed"] = False
    (sentence,) = findings(stats)
    assert (sentence.level, sentence.name) == ("bad", "broken project")
    assert str(sentence) == (
        "Broken project: the URL configuration failed when 2 workers loaded it (PS109): requests "
        "get a 500 until it can be imported. → the log has file and line; correct it, and send HUP"
        " (with --preload it takes a restart)"
    )
    assert "when 1 worker loaded it" in findings(stats, [2])[0].problem
    assert [each.name for each in findings(stats, [1, 2])] == ["workers end"]


def test_it_stays_while_the_worker_does() -> None:
    row = LoadRow(memoryview(bytearray(LOAD_BYTES)))
    assert row.gauges(1.0, 0.25)["urls_failed"] is None
    row.note_urls(failed=False)
    assert row.gauges(1.0, 0.25)["urls_failed"] is False
    row.note_urls(failed=True)
    row.begin(time.monotonic())  # its loop is watched from here on
    assert row.gauges(1.0, 0.25)["urls_failed"] is True
    row.retire()
    assert row.gauges(1.0, 0.25)["urls_failed"] is None


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_since_the_start(project: MakeProject, serve: StartServe, options: tuple[str, ...]) -> None:
    folder = project(databases={}, urls="import no_such_thing")
    address = ("127.0.0.1", free_port())
    server = serve(folder, "--status", "{}:{}".format(*address), "-w", "2", *options)
    page = StatusListener(address)
    stats = page.wait_for(lambda stats: len(stats["workers"]) == 2)
    assert [worker["urls_failed"] for worker in stats["workers"]] == [True, True]
    assert server.get("/").status == 500
    assert page.get("/readyz").status == 200


def test_from_one_reload_to_the_next(project: MakeProject, serve: StartServe) -> None:
    folder = project(databases={})
    address = ("127.0.0.1", free_port())
    server = serve(folder, "--status", "{}:{}".format(*address))
    page = StatusListener(address)
    (before,) = page.wait_for(lambda stats: stats["workers"])["findings"]
    assert before["name"] == "all is well"
    urls = folder / "mysite" / "urls.py"
    rewrite(urls, "import no_such_thing")
    server.signal(signal.SIGHUP)
    page.wait_for(lambda stats: stats["findings"][0]["name"] == "broken project")
    advised = run("--advise", "{}:{}".format(*address), cwd=folder)
    assert "Broken project: the URL configuration failed when 1 worker" in advised.stdout
    rewrite(urls, "urlpatterns = []")
    server.signal(signal.SIGHUP)
    page.wait_for(lambda stats: stats["findings"][0]["name"] == "all is well")
