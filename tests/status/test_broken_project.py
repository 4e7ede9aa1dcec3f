"""Workers that were loaded with a URL configuration that fails: the page tells of them."""

from __future__ import annotations

import signal
import time

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.status.findings import findings
from pooled_serve.status.load import LOAD_BYTES, LoadRow
from pooled_serve.status.scoreboard import Scoreboard
from support.answers import Answers
from support.command import run
from support.django_project import rewrite
from support.ports import free_port
from support.processes import wait_until
from support.status import StatusListener

SECRET = "as-in-mysql://shop:hunter2@db"
FAILS = f"import os\nraise ValueError('{SECRET}')"
MIDDLEWARE = """
    def middleware(get_response):
        def respond(request):
            if "X-Urls" in request.headers:
                request.urlconf = request.headers["X-Urls"]
            return get_response(request)
        return respond
"""


def test_how_many_it_was_and_what_to_do() -> None:
    stats = Answers(3).stats
    for worker in stats["workers"][:2]:
        worker["urls_failed"] = True
        worker["urls_error"] = "NameError in /srv/shop/urls.py, line 7"
    stats["workers"][2]["urls_failed"] = False
    (sentence,) = findings(stats)
    assert (sentence.level, sentence.name) == ("bad", "broken project")
    assert str(sentence) == (
        "Broken project: the URL configuration failed when 2 workers loaded it (PS109: NameError in"
        " /srv/shop/urls.py, line 7), and requests get a 500 until it can be imported. → the log "
        "has the error; correct it, and send HUP (with --preload it takes a restart)"
    )
    assert "when 1 worker loaded it" in findings(stats, [2])[0].problem
    assert [each.name for each in findings(stats, [1, 2])] == ["workers end"]


def test_what_its_errors_have_computed_is_no_news() -> None:
    """Each request imports the URL configuration anew, and DEBUG's page of an error takes long."""
    stats = Answers(2).stats
    late = {"seen_ago_seconds": 0.1, "loop_delay_seconds": 4.7}
    for worker in stats["workers"]:
        worker |= {**late, "urls_failed": True}
    assert [each.name for each in findings(stats)] == ["broken project"]
    worker["seen_ago_seconds"] = 4.7
    assert "blocked worker" in [each.name for each in findings(stats)], "it lasts"
    worker |= {**late, "urls_failed": False}
    names = [each.name for each in findings(stats)]
    assert names == ["broken project", "blocked worker"], "one that serves the project"


def test_it_stays_while_the_worker_does() -> None:
    row = LoadRow(memoryview(bytearray(LOAD_BYTES)))
    assert row.gauges(1.0, 0.25)["urls_failed"] is None
    row.note_urls("")
    assert row.gauges(1.0, 0.25)["urls_failed"] is False
    row.note_urls("NameError in urls.py, line 7")
    row.name(0.0, "GET report")
    row.begin(time.monotonic())  # its loop is watched from here on
    shown = row.gauges(1.0, 0.25)
    assert (shown["urls_failed"], shown["urls_error"]) == (True, "NameError in urls.py, line 7")
    row.note_urls("")
    shown = row.gauges(1.0, 0.25)
    assert (shown["urls_failed"], shown["urls_error"]) == (False, None)
    row.note_urls("NameError")
    row.retire()
    assert row.gauges(1.0, 0.25)["urls_failed"] is None
    assert row.urls_error == ""


def test_nobody_serves_if_all_that_go_on_have_failed() -> None:
    board = Scoreboard()
    for error in ("", "NameError"):
        slot = board.allocate()
        assert slot is not None
        board.load_row(slot).note_urls(error)
        board.register(slot)
    assert board.urls_error() == ""
    board.mark_stopping(1)  # as in a reload
    assert board.urls_error() == "NameError"
    board.mark_stopping(2)
    assert board.urls_error() == ""


# --- With real workers -------------------------------------------------------------------------


class Broken:
    """A site whose URL configuration fails on its second line, and its status page."""

    def __init__(
        self, project: MakeProject, serve: StartServe, *options: str, **sources: str
    ) -> None:
        self.folder = project(databases={}, urls=FAILS, **sources)
        address = ("127.0.0.1", free_port())
        self.server = serve(self.folder, "--status", "{}:{}".format(*address), *options)
        self.page = StatusListener(address)
        self.urls = self.folder / "mysite" / "urls.py"

    @property
    def failed(self) -> list[bool]:
        return [worker["urls_failed"] for worker in self.page.stats()["workers"]]


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_since_the_start(project: MakeProject, serve: StartServe, options: tuple[str, ...]) -> None:
    it = Broken(project, serve, "-w", "2", *options)
    it.page.wait_for(lambda stats: len(stats["workers"]) == 2)
    assert it.failed == [True, True]
    assert it.server.get("/").status == 500
    where = f"ValueError in {it.urls}, line 2"
    answer = it.page.get("/readyz")
    assert (answer.status, answer.text) == (503, f"URL configuration fails (PS109): {where}\n")
    assert it.page.get("/livez").status == 200
    said = it.page.stats()["findings"][0]["text"]
    assert f"failed when 2 workers loaded it (PS109: {where}), and requests get a 500" in said
    for path in ("/", "/stats.json", "/readyz", "/metrics"):
        assert SECRET not in it.page.get(path, Accept="*/*").text
    assert SECRET in it.server.log


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_request_that_finds_them_corrected(
    project: MakeProject, serve: StartServe, options: tuple[str, ...]
) -> None:
    it = Broken(project, serve, *options)
    assert it.server.get("/").status == 500
    assert it.failed == [True]
    rewrite(it.urls, "urlpatterns = []")
    assert it.server.get("/").status == 404
    assert it.failed == [False]
    # DEBUG's page of an error may have blocked a busy machine's worker for a moment.
    it.page.wait_for(lambda stats: stats["findings"][0]["name"] == "all is well")
    assert it.page.get("/readyz").text == "ok\n"


def test_who_asks_finds_out_where_no_requests_come(project: MakeProject, serve: StartServe) -> None:
    it = Broken(project, serve, "-w", "2")
    it.page.wait_for(lambda stats: len(stats["workers"]) == 2)
    assert it.page.get("/readyz").status == 503
    rewrite(it.urls, "urlpatterns = []")
    wait_until(lambda: it.page.get("/readyz").status == 200)
    assert False in it.failed


def test_a_view_of_another_url_configuration_says_nothing(
    project: MakeProject, serve: StartServe
) -> None:
    settings = "MIDDLEWARE = ['mysite.views.middleware']"
    it = Broken(project, serve, settings=settings, views=MIDDLEWARE)
    assert it.server.get("/").status == 500
    (it.folder / "mysite" / "other.py").write_text("urlpatterns = []\n")
    assert it.server.get("/", headers={"X-Urls": "mysite.other"}).status == 404
    assert it.failed == [True]


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
    wait_until(lambda: page.get("/readyz").status == 503)  # the old worker has ended
    advised = run("--advise", "{}:{}".format(*address), cwd=folder)
    assert "Broken project: the URL configuration failed when 1 worker" in advised.stdout
    rewrite(urls, "urlpatterns = []")
    server.signal(signal.SIGHUP)
    page.wait_for(lambda stats: stats["findings"][0]["name"] == "all is well")
    assert page.get("/readyz").status == 200
