"""The log of a server about its pools: leases that last, queues, and errors that repeat."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pooled_serve.backend.scope import shorten
from pooled_serve.status.pool_log import LOGGED_WAIT_SECONDS
from support.client import gate
from support.load import hammer
from support.log_lines import (
    AT_CAP,
    BACK,
    GOT_503,
    HELD,
    HELD_BACK,
    LOST,
    NO_DESCRIPTOR,
    OVER,
    PRESSURE,
    RELIEF,
    SILENT,
    STATEMENTS_HANG,
    STUCK,
)
from support.processes import wait_until
from support.site import VIEWS
from support.status import SLEEP, StartStatus
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

TAKEN = re.compile(
    rf"\[WARNING\] pool 'default': {HELD} (\d+\.\d)s by GET /run "
    r"\(.+\); it was taken here, the innermost call first:\n((?:  .*\n)+)"
)
TAKEN_BY_ANY = re.compile(r"it was taken here, the innermost call first:\n((?:  .*\n)+)")
INCIDENTS = Path(__file__).with_name("incidents_views.py")
LEAKS_VIEWS = Path(__file__).with_name("leaks_views.py")
TEMPLATES = 'TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]'


@pytest.mark.timing
def test_a_lease_that_lasts_too_long_is_told_with_the_stack_that_took_it(
    status: StartStatus,
) -> None:
    it = status("--leak-threshold", "0.5")
    quick = [it.site.run("SELECT 1") for _ in range(10)]
    # On a busy machine even those may take long. Only then may they be told.
    slow = sum(answer.seconds >= 0.5 for answer in quick)
    before = len(TAKEN.findall(it.site.server.log))
    assert before <= slow

    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        with gate(it.site.database) as statement:
            answer = threads.submit(it.site.run, statement)
            log = it.site.server.wait_for_log(HELD, times=before + 1)
            *_, told = TAKEN.finditer(log)
            most = time.monotonic() - began + 0.1  # they are rounded
        assert answer.result().status == 200
    assert 0.5 <= float(told[1]) <= most
    # Nothing of Django, which called the view, and which the view has called.
    assert re.fullmatch(
        r'  File ".+/mysite/views.py", line \d+, in run\n'
        r"    with connection.cursor\(\) as cursor:\n",
        told[2],
    )
    log = it.site.server.wait_for_log(HELD_BACK, times=before + 1)
    *_, back = re.findall(
        rf"\[INFO\] pool 'default': the connection of GET /run \(.+\) {HELD_BACK} (\d+\.\d)s",
        log,
    )
    assert float(told[1]) <= float(back) <= time.monotonic() - began + 0.1
    assert it.pool()["leaked_total"] == before + 1


def test_a_leak_in_a_greenlet_is_told_once_though_it_never_ends(status: StartStatus) -> None:
    views = """
        import gevent

        def forget(request):
            def hold():
                connection.cursor().execute("SET @held = 1")
                gevent.sleep(1)
            gevent.spawn(hold)
            return HttpResponse()
    """
    it = status("--leak-threshold", "0.3", views=views)
    assert it.site.server.get("/forget").status == 200
    log = it.site.server.wait_for_log(HELD_BACK)
    assert log.count(HELD) == 1
    assert "by a greenlet, not a request" in log
    assert it.pool()["leaked_total"] == 1
    it.site.assert_whole()


def test_a_report_has_the_frames_of_the_project_and_what_lies_between(status: StartStatus) -> None:
    it = status("--leak-threshold", "0.3", views=LEAKS_VIEWS, django=TEMPLATES)
    assert it.site.server.get("/through_a_library").text == "1"
    (told,) = TAKEN_BY_ANY.findall(it.site.server.wait_for_log(HELD_BACK))
    frames = re.findall(r'File "(.+)", line \d+, in (\w+)\n    (.+)', told)
    own = [(name, line) for file, name, line in frames if file.endswith("mysite/views.py")]
    assert own == [
        ("_ask", "with connection.cursor() as cursor:"),
        ("_rows", "_ask()"),
        ("through_a_library", 'answer = template.render({"rows": _rows})'),
    ]
    libraries = [file for file, _, _ in frames if not file.endswith("mysite/views.py")]
    assert libraries
    assert all("/django/template/" in file for file in libraries)
    assert frames[0][1] == "_ask"
    assert frames[-1][1] == "through_a_library"


def test_a_place_that_leaks_again_and_again_is_reported_once_a_minute_with_a_count(
    status: StartStatus,
) -> None:
    it = status("--leak-threshold", "0.2", cap=8, views=LEAKS_VIEWS)
    assert [answer.status for answer in it.site.at_once("/often", 8)] == [200] * 8
    more = "more connections taken at this place were held for too long, the last by GET /often "
    told = re.compile(rf"pool 'default': in the last 2s (\d+) {more}\(")
    # In one line, unless their logins took a busy machine more than two seconds.
    it.site.server.wait_until_log(lambda log: sum(map(int, told.findall(log))) == 7)
    log = it.site.server.log
    assert len(TAKEN_BY_ANY.findall(log)) == log.count(HELD_BACK) == 1
    lines = log.count(more)
    assert re.search(more + r'\(.+\):\n  File ".+views.py", line \d+, in _ask\n', log)
    assert it.pool()["leaked_total"] == 8
    wait_until(lambda: it.site.server.get("/reports").text == "0")  # nothing is left to tell
    assert it.site.server.get("/often").status == 200
    log = it.site.server.wait_for_log(HELD_BACK, times=2)
    assert len(TAKEN_BY_ANY.findall(log)) == 2
    assert log.count(more) == lines


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/17", "/orders/17"),
        ("/orders/17/", "/orders/17"),
        ("/orders/17/token", "/orders/17/…"),
        ("/a/b?token=c", "/a/b"),
        ("/a/b\n[ERROR] forged", "/a/b�[ERROR] forged"),
        ("/" + "x" * 200, "/" + "x" * 99),
    ],
)
def test_the_log_names_no_more_of_a_path_than_two_segments(path: str, short: str) -> None:
    assert shorten(path) == short


@torture
def test_a_full_pool_is_told_ever_more_rarely_and_that_it_is_over(status: StartStatus) -> None:
    it = status("--pool-timeout", "60", cap=2)
    with ThreadPoolExecutor(5) as threads:
        with gate(it.site.database) as statement:
            answers = [threads.submit(it.site.run, statement) for _ in range(5)]
            log = it.site.server.wait_for_log(PRESSURE, times=2)
            ended = time.monotonic()
        assert [answer.result().status for answer in answers] == [200] * 5
    told = list(PRESSURE.finditer(log))
    assert len(told) == 2, "and a third after ten seconds more"
    for line in told:
        assert line.group("level", "in_use", "idle", "cap") == ("INFO", "2", "0", "2")
        assert line["holder"] == "GET /run"
        assert int(line["waiting"]) > 0
    over = RELIEF.search(it.site.server.wait_for_log(RELIEF))
    assert over
    assert over.group("level", "long", "refused") == ("INFO", f"{LOGGED_WAIT_SECONDS:g}", "0")
    assert 5 <= int(over["calm"]) <= time.monotonic() - ended + 1


def test_short_queues_are_no_news(status: StartStatus) -> None:
    it = status(cap=2)
    outcomes = hammer(it.site.server.port, SLEEP.format(0.01), clients=6, requests=20)
    assert {outcome.result for outcome in outcomes} == {200}
    assert it.pool()["waited_total"] > 0
    time.sleep(0.5)
    log = it.site.server.log
    # On a busy machine the queue may have been longer.
    long = max(outcome.seconds for outcome in outcomes) >= LOGGED_WAIT_SECONDS
    assert long or AT_CAP not in log
    assert long or OVER not in log


def test_a_worker_that_ends_has_told_of_every_503(status: StartStatus) -> None:
    it = status(cap=1)
    it.site.give_up_after(1)

    def refuse(many: int) -> None:
        with ThreadPoolExecutor(1 + many) as threads, gate(it.site.database) as statement:
            threads.submit(it.site.run, statement)
            it.wait_for(lambda stats: stats["pools"].get("default", {}).get("in_use"))
            answers = [threads.submit(it.site.run, "SELECT 1") for _ in range(many)]
            assert {answer.result().status for answer in answers} == {503}

    refuse(6)
    it.site.server.wait_for_log(GOT_503, times=2)
    refuse(6)  # a third line would come ten seconds after the second
    assert it.site.server.stop() == 0
    told = re.findall(rf"{GOT_503}(?:, (\d+) times)?", it.site.server.log)
    assert sum(int(many or 1) for many in told) == 12


def test_without_file_descriptors_the_log_says_so_and_the_database_is_not_to_blame(
    status: StartStatus, tmp_path: Path
) -> None:
    views = Path(__file__).with_name("descriptors_views.py")
    it = status(views=views)
    with it.site.server.keepalive() as client:
        assert client.get("/ask").text == "yes"
        assert client.get("/exhaust").status == 200
        assert [client.get("/ask").text for _ in range(20)] == ["no"] * 20
        assert client.get("/flap").status == 200
        assert client.get("/recover").status == 200
        wait_until(lambda: client.get("/ask").text == "yes")
    assert it.get("/readyz").status == 200
    log = it.site.server.wait_for_log(NO_DESCRIPTOR)
    assert log.count(NO_DESCRIPTOR) == 1
    assert (
        f"[ERROR] pool 'default' cannot open a connection: {NO_DESCRIPTOR}, of 256\n"
        "  → raise the limit"
    ) in log
    assert LOST not in log
    assert BACK not in log


@torture
def test_exports_that_are_usual_do_not_hang(status: StartStatus) -> None:
    """The mean of all holds is short: that of the busiest route counts, as on the page."""
    it = status(views=(VIEWS, INCIDENTS), cap=4)
    assert it.site.server.get(SLEEP.format(3)).status == 200
    for _ in range(10):
        it.site.server.get("/quick")
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: it.site.server.get(SLEEP.format(7)), range(3)))
    assert [answer.status for answer in answers] == [200] * 3
    assert STATEMENTS_HANG not in it.site.server.log


@torture
def test_a_worker_that_computes_does_not_call_the_database_lost(status: StartStatus) -> None:
    """A report runs, so no statement has an answer; and inquiries take some turns of a loop in each
    of which a view computes."""
    it = status("--pool-size", "1", views=(VIEWS, INCIDENTS), cap=4)
    with ThreadPoolExecutor(1) as threads:
        report = threads.submit(it.site.server.get, SLEEP.format(12))
        hammer(it.site.server.port, "/block?seconds=0.3", clients=2, seconds=9)
        assert report.result().status == 200
    pool = it.pool()
    assert (pool["outages_total"], pool["stuck"], pool["last_outage_seconds"]) == (0, 0, None)
    assert pool["recent"]["lost_ago_seconds"] is None
    log = it.site.server.log
    assert STUCK not in log
    assert SILENT not in log
