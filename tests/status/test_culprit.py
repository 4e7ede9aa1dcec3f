"""The view that blocks its worker is named: while that lasts, and afterwards."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from urllib.parse import urlencode

import pytest

from pooled_serve.status import leaks
from pooled_serve.status.culprit import NOBODY, Culprit, Watch
from support.client import gate
from support.log_lines import BLOCKED
from support.processes import wait_until
from support.serve import Client
from support.site import VIEWS
from support.status import StartStatus, Status
from support.torture import torture

INCIDENTS = Path(__file__).with_name("incidents_views.py")


# --- What was seen -----------------------------------------------------------------------------


class Seen:
    """What the watch sees of this thread, when it looks."""

    def __init__(self) -> None:
        self.route = ""
        self.told: list[tuple[float, str]] = []
        self.watch = Watch(lambda: 7.0, self.route_of, lambda *said: self.told.append(said))

    def route_of(self, frame: FrameType) -> str:
        return self.route if frame.f_code is Seen.look.__code__ else ""

    def look(self, *routes: str) -> Culprit:
        for self.route in routes:
            self.watch._look(7.0)
        return self.watch.culprit(7.0)


@pytest.mark.parametrize(
    ("routes", "name"),
    [
        (["GET a"], "probably GET a"),
        (["GET a", "GET a"], "GET a"),
        (["GET a", "GET b"], "GET a and GET b"),
        (["GET a", "GET b", "GET b"], "GET b and GET a"),
        (["GET a", "GET b", "GET c", "GET c", "GET b"], "GET b, GET c and others"),
    ],
)
def test_a_name_is_as_sure_as_what_was_seen(routes: list[str], name: str) -> None:
    it = Seen()
    culprit = it.look(*routes)
    assert culprit.name == name
    assert it.told[-1] == (7.0, name)
    here = f"Seen.look() in {__file__}, line "
    assert culprit.place.startswith(here)


def test_what_is_no_request_has_the_name_of_its_function() -> None:
    culprit = Seen().look("", "")
    assert culprit.name == f"{__name__}.Seen.look(), outside requests"


def test_nothing_is_said_of_what_was_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Seen()
    it.look("GET a")
    assert it.watch.culprit(8.0) == NOBODY, "it was in another block"
    monkeypatch.setattr("pooled_serve.status.culprit.is_own", lambda file: False)
    assert Seen().look("", "") == NOBODY, "that is no code of the project"
    assert Seen().look("", "GET a") == NOBODY, "it was not there as often as it was"
    assert Seen().look("", "GET a", "GET a").name == "GET a"


def test_what_came_after_the_block_is_not_taken_for_it() -> None:
    moments = iter([8.0])
    watch = Watch(lambda: next(moments), lambda frame: "GET a", lambda *said: None)
    watch._look(7.0)
    assert watch.culprit(7.0) == NOBODY


def test_this_package_is_no_code_of_a_project() -> None:
    """Also where it was installed with -e, outside of the libraries' folders."""
    assert not leaks.is_own(leaks.__file__)


# --- With real workers -------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("no_thread_left")


def shop(status: StartStatus, *args: str) -> Status:
    middleware = 'MIDDLEWARE = ["mysite.views.block_in_middleware"]'
    return status(*args, views=(VIEWS, INCIDENTS), django=middleware)


def told(it: Status, name: str) -> str:
    """The page's sentence, once it tells of this view; the number beside it is the same."""

    def found() -> str:
        stats = it.stats()
        finding = stats["findings"][0]
        known = any(worker["blocked_in"] == name for worker in stats["workers"])
        return str(finding["text"]) if known and f", in {name}" in finding["text"] else ""

    return wait_until(found, timeout=60)


@pytest.mark.parametrize(
    ("path", "name", "place"),
    [
        ("block", "GET block", "block"),
        ("compute", "GET compute", "_compute"),
        ("block_in_the_response", "GET block_in_the_response", "block"),
        ("block_in_a_greenlet", "mysite.views.block_alone(), outside requests", "block_alone"),
        ("nowhere", "GET (no route yet)", "block"),
    ],
)
def test_who_has_blocked_a_worker_is_named(
    status: StartStatus, path: str, name: str, place: str
) -> None:
    it = shop(status)
    it.site.server.get(f"/{path}?seconds=4")
    said = told(it, name)
    log = it.site.server.wait_for_log(BLOCKED)
    assert "Blocked worker: worker 1 let no other request run for" in said
    assert " → it computed, or waited without gevent" in said
    line = rf"{BLOCKED} \d\.\ds, until now, in {re.escape(name)}\n  → it "
    line += rf"computed, or waited without gevent \({place}\(\) in \S+views\.py, line \d+\): move"
    assert re.search(line, log)
    if path == "block":  # once is enough: it takes ten seconds
        it.wait_for(lambda stats: stats["workers"][0]["blocked_in"] is None)


def test_it_is_the_one_that_has_blocked_and_not_one_of_those_in_flight(status: StartStatus) -> None:
    """Which have been there for as long, and go on when it does."""
    it = shop(status)
    with ThreadPoolExecutor(3) as threads, gate(it.site.database) as statement:
        others = [threads.submit(it.site.run, statement) for _ in range(2)]
        it.wait_for(lambda stats: stats["pools"]["default"]["in_use"] == 2)
        path = "/block_and_go_on?" + urlencode({"seconds": 4, "sql": statement})
        others.append(threads.submit(it.site.server.get, path))
        told(it, "GET block_and_go_on")
        assert not any(other.done() for other in others)


@torture
def test_two_workers_name_what_blocks_each_of_them(status: StartStatus) -> None:
    """While it lasts, a third one says it."""
    it = shop(status, "-w", "3", "--keep-alive", "60")
    it.wait_for(lambda stats: len(stats["workers"]) == 3)
    server = it.site.server

    def both() -> str:
        """Once it is sure of both: after one look it names a view as probable."""
        for finding in it.stats()["findings"]:
            names = re.findall(r", worker \d in (GET block|GET compute)\b", finding["text"])
            if sorted(names) == ["GET block", "GET compute"]:
                return str(finding["text"])
        return ""

    with ThreadPoolExecutor(2) as threads, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address, timeout=60)) for _ in range(2)]
        for client, worker in zip(clients, server.worker_pids(), strict=False):
            with server.only(worker):
                assert client.get("/quick").status == 200
        for client, path in zip(clients, ("block", "compute"), strict=True):
            threads.submit(client.get, f"/{path}?seconds=10")
        said = wait_until(both, timeout=60)
    assert said.startswith("Blocked workers: "), said
    assert re.search(r" → they (compute, or wait|computed, or waited) without gevent", said)
