"""A worker without file descriptors answers, and its log says what is wrong: what that takes has
been imported before."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

import pytest
from pymysql.err import OperationalError

from pooled_serve.status import shortage
from pooled_serve.status.shortage import shortage_behind
from support.client import gate
from support.log_lines import GOT_503, HELD, HELD_BACK, NO_DESCRIPTOR
from support.processes import wait_until
from support.serve import Client, connect
from support.status import StartStatus, Status, patience

pytestmark = pytest.mark.usefixtures("no_thread_left")

VIEWS = Path(__file__).with_name("descriptors_views.py")
LOGGING = """
LOGGING = {
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "INFO"}},
}
"""
NO_CLIENT = f"no client can be accepted: {NO_DESCRIPTOR}"
TEMPLATES = """
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": ["."]}]
"""


@contextmanager
def none_left(
    it: Status, clients: int = 1, excused: tuple[str, ...] = ()
) -> Iterator[list[Client]]:
    """Clients of a worker that has accepted them, and has no more descriptors. Until the end of the
    block it may need no module that it does not have, but excused ones."""
    with ExitStack() as stack:
        keeper, *guests = (
            stack.enter_context(it.site.server.keepalive()) for _ in range(1 + clients)
        )
        for client in (keeper, *guests):
            assert client.get("/pool").status == 200
        keeper.get("/note_imports")
        keeper.get("/keep_all")
        yield guests
        keeper.get("/recover")
        imported = keeper.get("/say_imports").json()
        assert [name for name in imported if not name.startswith(excused)] == []


@pytest.mark.parametrize("templates", ["", TEMPLATES], ids=["without_templates", "with"])
def test_each_error_of_a_view_is_answered_and_logged(status: StartStatus, templates: str) -> None:
    it = status(views=VIEWS, django=LOGGING + templates)
    paths = {"/missing": 404, **{f"/fail?status={code}": code for code in (500, 403, 400)}}
    with (
        connect(it.site.server.address) as raw,
        none_left(it, excused=("django.template.",)) as (client,),
    ):
        for path, code in paths.items():
            # An error page whose template cannot be read is an error itself.
            assert client.get(path).status == (500 if templates else code)
        raw.sendall(b"this is not HTTP\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 Bad Request")
    for text in ("ZeroDivisionError: of the view", "PermissionDenied: of the view"):
        it.site.server.wait_for_log(text)
    assert "Logging error" not in it.site.server.log


def test_who_waits_in_vain_gets_a_503_and_leases_are_watched(status: StartStatus) -> None:
    options = ("--leak-threshold", "0.2", "--client-check", "0.2")
    it = status(*options, cap=2, views=VIEWS, django=LOGGING + TEMPLATES)
    it.site.fill()
    with none_left(it, 4) as (*holders, waiter), ThreadPoolExecutor(2) as threads:
        with gate(it.site.database) as statement:
            path = "/run?" + urlencode({"sql": statement})
            held = [threads.submit(holder.get, path) for holder in holders[:2]]
            wait_until(lambda: waiter.get("/pool").json()["in_use"] == 2)
            it.site.server.wait_for_log(HELD)
            waiter.get("/tune?timeout=0.5")
            assert waiter.get("/run?sql=SELECT+1").status == 503
            waiter.get("/tune?timeout=30")  # for what is opened on a busy machine
        assert [answer.result().status for answer in held] == [200] * 2
        it.site.server.wait_for_log(HELD_BACK)
        for number in it.site.connection_ids():
            it.site.admin.kill(number)
        # A connection takes the descriptor of the one before.
        assert waiter.get("/run?sql=SELECT+1").status == 200
    assert "Logging error" not in it.site.server.wait_for_log(GOT_503)


def test_the_status_page_is_there(status: StartStatus, tmp_path: Path) -> None:
    it = status(*patience(tmp_path, 600), views=VIEWS)
    paths = ("/", "/stats.json", "/history.json", "/metrics", "/livez", "/readyz", "/missing")
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(it.address)) for _ in paths]
        assert it.get("/livez").status == 200  # so they are accepted
        with none_left(it):
            for each, path in zip(sockets, paths, strict=True):
                each.sendall(f"GET {path} HTTP/1.1\r\nHost: status\r\n\r\n".encode())
                with each.makefile("rb") as answer:
                    code = int(answer.read().split()[1])
                assert code == (404 if path == "/missing" else 200)


def test_a_worker_stops_in_good_order(status: StartStatus) -> None:
    it = status(views=VIEWS)
    with it.site.server.keepalive() as client:
        assert client.get("/keep_all").status == 200
    assert it.site.server.stop() == 0
    log = it.site.server.log
    assert "Worker exiting" in log
    assert "Traceback" not in log


def test_a_client_that_comes_now_is_served_later(status: StartStatus) -> None:
    it = status(views=VIEWS)
    with ThreadPoolExecutor(1) as threads:
        with none_left(it) as (client,):
            late = threads.submit(it.site.server.get, "/pool")
            it.site.server.wait_for_log(NO_CLIENT, times=2)
            assert client.get("/ask").text == "no"
            said = it.stats()["findings"][0]
            assert (said["level"], said["name"]) == ("bad", "no descriptors"), said
        assert late.result().status == 200
    log = it.site.server.log
    assert "Traceback" not in log
    assert log.count(NO_CLIENT) <= 3, "at once, after a second, after ten"
    assert f"{NO_CLIENT}, of 256\n  → raise the limit (ulimit -n, " in log


def test_a_probe_that_comes_now_is_answered_at_once(status: StartStatus) -> None:
    """Though others say nothing, and stay; and though many come."""
    it = status(views=VIEWS)
    with ExitStack() as stack, none_left(it):
        for _ in range(3):
            stack.enter_context(connect(it.address))
        took = []
        for _ in range(10):
            began = time.monotonic()
            assert it.get("/livez").status == 200
            took.append(time.monotonic() - began)
        # One that has to wait does so for a second; the machine may halt this test for some.
        assert median(took) < 1
        assert it.get("/").status == 200
    log = it.site.server.log
    assert "Traceback" not in log
    assert NO_CLIENT not in log, "none had to wait"


# --- Which errors are of this machine ---


def no_address(cause: OSError) -> OperationalError:
    """As PyMySQL's connect() raises it."""
    error = OperationalError(2003, "Can't connect to MySQL server")
    error.original_exception = cause
    return error


def test_a_resolver_that_could_not_open_a_file_is_told_from_a_name_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = no_address(socket.gaierror(socket.EAI_AGAIN, "Temporary failure"))
    assert shortage_behind(wrong) is None
    monkeypatch.setattr(shortage, "_error_of_opening", lambda: errno.EMFILE)
    assert shortage_behind(wrong) is not None


def test_an_error_that_is_its_own_cause_ends() -> None:
    error = OperationalError(2003, "circular")
    error.original_exception = error
    assert shortage_behind(error) is None
