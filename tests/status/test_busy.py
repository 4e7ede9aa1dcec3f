"""Workers that are blocked, or have no processor to spare: measured, told apart from a pool that is
too small, and shown."""

from __future__ import annotations

import copy
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status import shortage
from pooled_serve.status.advice import advice
from pooled_serve.status.culprit import Culprit
from pooled_serve.status.findings import findings
from pooled_serve.status.load import LOAD_BYTES, LoadRow, Meter
from pooled_serve.status.peaks import PEAK_KEYS
from support.answers import Answers, recent
from support.load import Hammer
from support.processes import wait_until
from support.site import VIEWS
from support.status import StartStatus, Status
from support.torture import torture

INCIDENTS = Path(__file__).with_name("incidents_views.py")

PAUSE = 0.25
IDLE: dict[str, Any] = {
    "cpu_share": 0.1,
    "cpu_wait_share": 0.0,
    "loop_delay_seconds": 0.0,
    "seen_ago_seconds": 0.1,
    "cpu_seconds_total": 1.0,
    "blocked_seconds_total": 0.0,
}
BUSY = {**IDLE, "cpu_share": 0.98}
QUEUE: dict[str, Any] = {"in_use": 12, "waiting": 7, "oldest_wait_seconds": 0.25}


def of(*workers: dict[str, Any], cpus: int = 4, **pool: Any) -> dict[str, Any]:
    stats: dict[str, Any] = copy.deepcopy(Answers(len(workers), **pool).stats)
    for worker, its in zip(stats["workers"], workers, strict=True):
        worker.update(its)
    return stats | {"cpus": cpus}


def said(stats: dict[str, Any]) -> list[str]:
    return [str(sentence) for sentence in findings(stats)]


# --- What is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "waited", "name"),
    [
        (0.1, 0.1, "waiting views"),
        (0.13, 0.49, "too small a pool"),
        (0.13, 0.51, "busy processor"),
    ],
)
def test_who_stands_in_line_for_a_processor_waits_for_no_other_service(
    used: float, waited: float, name: str
) -> None:
    worker = {**IDLE, "cpu_share": used, "cpu_wait_share": waited}
    stats = of(worker, **QUEUE, recent=recent(asking_share=0.3)) | {"pool_mode": "request"}
    assert [sentence.name for sentence in findings(stats)] == [name]


@pytest.mark.parametrize(
    ("deaths", "ago", "problem"),
    [
        (0, None, "All is well: "),
        (1, 7.3, "Worker died: one ended 7 s ago without being told to."),
        (3, 59.0, "Worker died: one ended 59 s ago without being told to, of 3 since the start."),
        (3, 61.0, "All is well: "),
    ],
)
def test_a_worker_that_died_is_told_of_for_a_minute(
    deaths: int, ago: float | None, problem: str
) -> None:
    died = {"worker_deaths_total": deaths, "worker_death_ago_seconds": ago}
    (sentence,) = said(of(IDLE) | died)
    assert sentence.startswith(problem)


def test_a_worker_that_is_blocked_at_this_moment() -> None:
    blocked = {**IDLE, "seen_ago_seconds": 15.2, "loop_delay_seconds": 15.0}
    remedy = (
        " → a view computes, or waits without gevent (a library in C, a lock of another thread):"
        " py-spy dump --pid 4194302 shows where, while it lasts; move that elsewhere"
    )
    assert said(of(IDLE, blocked)) == [
        f"Blocked worker: worker 2 has let no other request run for 15.2 s.{remedy}"
    ]
    assert said(of(IDLE, blocked, **QUEUE)) == [
        "Blocked worker: worker 2 has let no other request run for 15.2 s: 7 requests wait, the"
        f" longest 250 ms.{remedy}"
    ]
    assert findings(of(IDLE, blocked))[0].level == "bad"
    (both,) = said(of(IDLE, blocked, {**blocked, "seen_ago_seconds": 3.0}))
    assert both.startswith("Blocked workers: workers 2 and 3 have let no other request run for 15")


def test_a_worker_that_was_blocked_until_a_moment_ago() -> None:
    (sentence,) = said(of({**IDLE, "loop_delay_seconds": 15.0}, **QUEUE))
    assert sentence.endswith(
        "move that elsewhere; if it happens again, py-spy dump --pid 4194303 shows where, while it"
        " lasts"
    )
    assert sentence.startswith(
        "Blocked worker: worker 1 let no other request run for 15.0 s, a moment ago: 7 requests"
    )
    assert "--max-outstanding" not in sentence


def test_the_log_has_the_line_of_a_block_that_is_over() -> None:
    over = {**IDLE, "loop_delay_seconds": 15.0, "blocked_in": "GET a", "blocked_in_log": True}
    told = " (a library in C, a lock of another thread): the log has function, file and line; move"
    (sentence,) = said(of(over))
    assert sentence.endswith(f"{told} that elsewhere")
    assert "py-spy" not in sentence
    for other in ({**over, "blocked_in_log": False}, {**over, "seen_ago_seconds": 9.0}):
        (sentence,) = said(of(over, other))
        assert "py-spy" in sentence
        assert "the log has" not in sentence


@pytest.mark.parametrize("place", ["a() in views.py, line 3", ""])
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_whether_the_log_has_the_line(
    caplog: pytest.LogCaptureFixture, place: str, level: int
) -> None:
    caplog.set_level(level, logger="gunicorn.error")
    row = LoadRow(memoryview(bytearray(LOAD_BYTES)))
    meter = Meter(row, 0.25, who=lambda block: Culprit("GET a", place))
    for now in (1000.0, 1005.0, 1010.0):  # the second time it is not said again
        meter.look(now)
    shown = row.gauges(1010.0, 0.25)
    assert shown["blocked_in"] == "GET a"
    assert shown["blocked_in_log"] is (place in caplog.text and bool(place))


@pytest.mark.parametrize(
    ("names", "where", "remedy"),
    [
        (["GET a"], ", in GET a", "it computes, or waits"),
        (["probably GET a"], ", probably in GET a", "it computes, or waits"),
        (
            ["GET a and shop.poll(), outside requests"],
            ", in GET a and shop.poll(), outside requests",
            "it computes, or waits",
        ),
        (["GET a", "GET a"], ", in GET a", "they compute, or wait"),
        (["GET a", "GET b"], ", worker 1 in GET a, worker 2 in GET b", "they compute, or wait"),
        (["GET a", None], "", "a view computes, or waits"),
        (
            ["GET a", "GET b", "probably GET c", "GET d", "GET e"],
            ", worker 1 in GET a, worker 2 in GET b, worker 3 probably in GET c, worker 4 in GET d"
            ", ...",
            "they compute, or wait",
        ),
    ],
)
def test_the_views_that_block_workers_are_named(
    names: list[str | None], where: str, remedy: str
) -> None:
    blocked = [{**IDLE, "seen_ago_seconds": 15.2, "blocked_in": name} for name in names]
    (now,) = said(of(*({**its, "loop_delay_seconds": 15.0} for its in blocked)))
    assert f" no other request run for 15.2 s{where}. → {remedy} without gevent" in now
    past = [{**IDLE, "loop_delay_seconds": 15.0, "blocked_in": name} for name in names]
    (then,) = said(of(*past, **QUEUE))
    assert f" run for 15.0 s, a moment ago{where}: 7 requests wait" in then
    assert re.search(" → (a view|it|they) computed, or waited without gevent", then)


def test_a_busy_processor_explains_a_queue_and_more_connections_are_no_remedy() -> None:
    queue = "7 requests wait, the longest 250 ms"
    told = f"Busy processor: worker 1 used 98 % of a CPU in the last 10 s: {queue}. → "
    rest = "; or views that compute less; more connections do not help"
    assert said(of(BUSY, **QUEUE)) == [f"{told}-w 4, one for each CPU{rest}"]
    assert said(of(BUSY, cpus=1, **QUEUE)) == [f"{told}more hosts or CPUs{rest}"]
    assert said(of(BUSY, IDLE, IDLE, **QUEUE)) == [
        f"{told}other workers have CPU to spare: see what this one does for so long, or wait{rest}"
    ]
    (level,) = {sentence.level for sentence in findings(of(BUSY, **QUEUE))}
    assert level == "warn"


@pytest.mark.parametrize("reason", ["lent", "surplus"])
@pytest.mark.parametrize("refused", [0, 200])
def test_nothing_beside_it_asks_for_more_connections(reason: str, refused: int) -> None:
    """Also where refusals hide it: to refuse costs time, too."""
    worker = {**IDLE, "cpu_share": 0.97, "cpu_wait_share": 0.0}
    stormy = recent(acquired=100, opened=84, closed={reason: 80}, timeouts=refused)
    stats = of(worker, worker, **{**QUEUE, "recent": stormy}) | {"pool_mode": "request"}
    stats["hosts"] = {"default": {"limit": 12, "taken": 12}}
    found = said(stats)
    assert "more connections do not help" in found[0]
    assert not any(re.search("--(max-per-host|max-outstanding|pool-size)", each) for each in found)


def test_who_waits_for_a_lock_does_not_wait_for_a_processor() -> None:
    starved = {**IDLE, "cpu_share": 0.22, "cpu_wait_share": 0.55}
    silent: dict[str, Any] = {"in_use": 12, "asking": 12, "in_statement": 12}
    silent |= {"oldest_statement_seconds": 1.9, "last_answer_seconds": 1.9}
    (sentence,) = said(of(starved, **{**QUEUE, **silent}))
    assert sentence.startswith("Silent server: ")
    assert "7 requests wait" in sentence
    (sentence,) = said(of(starved, **{**QUEUE, **silent, "asking": 11}))
    assert sentence.startswith("Busy processor: ")


def test_a_busy_processor_without_a_queue_is_worth_a_note() -> None:
    (sentence,) = findings(of(BUSY, {**BUSY, "cpu_share": 0.93}))
    assert sentence.level == "note"
    assert sentence.problem == (
        "Busy processor: worker 1 used 98 % of a CPU, and 1 other nearly as much in the last 10 s"
    )


def test_a_worker_may_stand_in_line_for_a_cpu() -> None:
    worker = {**IDLE, "cpu_share": 0.55, "cpu_wait_share": 0.4}
    assert said(of(worker, cpus=2, **QUEUE)) == [
        "Busy processor: worker 1 used 55 % of a CPU and stood in line for one for 40 % of the time"
        " in the last 10 s: 7 requests wait, the longest 250 ms. → this host has too few CPUs (2)"
        " for what runs on it: more, or another host; or views that compute less; more connections"
        " do not help"
    ]


def test_in_an_outage_or_an_overload_the_processor_is_the_consequence() -> None:
    (outage,) = said(of(BUSY, reachable=False, recent=recent(timeouts=900)))
    assert outage.startswith("Outage: ")
    (overload,) = said(of(BUSY, **QUEUE | {"recent": recent(acquired=90, timeouts=900, shed=900)}))
    assert overload.startswith("Overload: ")
    assert "--max-outstanding" not in overload
    assert "more connections do not help while worker 1 used 98 % of a CPU" in overload


@pytest.mark.parametrize(
    ("workers", "cpus", "waited", "what"),
    [
        (2, 2, 0.53, "this host has too few CPUs (2) for what runs on it: more, or another host"),
        (2, 2, 0.0, "more hosts or CPUs"),
        (2, 4, 0.0, "-w 4, one for each CPU"),
    ],
)
def test_one_state_has_one_remedy(workers: int, cpus: int, waited: float, what: str) -> None:
    """Whether it is the page that tells of it, with a queue or an overload, or the advice."""
    busy = [{**IDLE, "cpu_share": 1.0 - waited, "cpu_wait_share": waited}] * workers
    peaks = dict.fromkeys(PEAK_KEYS, 1) | {"seconds": 7200, "waited_busy": 1, "in_use": 12}
    pool = {**QUEUE, "peaks": {"24h": peaks}}
    overload = {**pool, "recent": recent(acquired=90, timeouts=900)}
    stats = of(*busy, cpus=cpus, **pool)
    told = [*findings(stats), *findings(of(*busy, cpus=cpus, **overload)), *advice(stats)]
    assert [each.name for each in told] == ["busy processor", "overload", "busy processor"]
    for each in told:
        assert each.remedy.startswith(f"{what}; or views that compute less; more connections do")


def test_refused_requests_make_it_an_emergency() -> None:
    (sentence,) = findings(of(BUSY, **QUEUE | {"recent": recent(acquired=90, timeouts=9)}))
    assert (sentence.name, sentence.level) == ("busy processor", "bad")


@pytest.mark.parametrize("unknown", [{}, dict.fromkeys(IDLE), {**IDLE, "cpu_share": None}])
def test_what_is_not_known_is_not_judged(unknown: dict[str, Any]) -> None:
    assert said(of(unknown)) == ["All is well: 3 of 12 connections in use, nobody waits."]


def test_no_larger_pool_is_advised_where_the_processor_was_the_cause() -> None:
    peaks = dict.fromkeys(PEAK_KEYS, 0) | {
        "in_use": 12,
        "in_use_worker": 12,
        "waiting": 9,
        "wait_seconds": 2.0,
        "acquired": 1000,
        "waited": 500,
        "occasions": 3,
        "seconds": 7200,
    }
    larger, other = (
        str(advice(of(IDLE, peaks={"24h": peaks | {"waited_busy": waited}}))[0])
        for waited in (200, 300)
    )
    assert larger.startswith("Too small a pool: ")
    assert "--max-outstanding 21" in larger
    assert other == (
        "Busy processor: in 2 h waits began at 12 of 12 connections on 3 occasions, 50 % waited,"
        " the longest 2.0 s, most of this while a worker had used up its processor. → -w 4, one"
        " for each CPU; or views that compute less; more connections do not help"
    )


# --- What is measured --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_shortage_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had one."""
    monkeypatch.setattr(shortage, "out_of_descriptors_at", 0.0)


class Measured:
    """A meter with a clock of its own."""

    def __init__(self) -> None:
        self.row = LoadRow(memoryview(bytearray(LOAD_BYTES)))
        self.now, self.used, self.waited = 1000.0, 5.0, 2.0
        self.begin()

    def begin(self) -> None:
        def used() -> float:
            return self.used

        def waited() -> float:
            return self.waited

        self.meter = Meter(self.row, PAUSE, used=used, waited=waited)
        self.meter.look(self.now)

    def run(self, seconds: float, *, used: float = 0.0, waited: float = 0.0) -> None:
        """Looks in the rhythm of the loop, while shares of the time are used."""
        for _ in range(round(seconds / PAUSE)):
            self.pause(PAUSE, used=used, waited=waited)

    def pause(self, seconds: float, *, used: float = 0.0, waited: float = 0.0) -> None:
        self.now += seconds
        self.used += used * seconds
        self.waited += waited * seconds
        self.meter.look(self.now)

    def gauges(self, later: float = 0.0) -> dict[str, Any]:
        return self.row.gauges(self.now + later, PAUSE)


def test_the_share_is_that_of_the_last_ten_seconds() -> None:
    it = Measured()
    it.run(2, used=1.0)
    assert it.gauges()["cpu_share"] is None, "too short a time"
    it.run(8, used=1.0)
    assert it.gauges()["cpu_share"] == pytest.approx(1.0)
    assert it.row.busy
    it.run(10, used=0.4, waited=0.1)
    assert it.gauges()["cpu_share"] == pytest.approx(0.4)
    assert it.gauges()["cpu_wait_share"] == pytest.approx(0.1)
    assert not it.row.busy
    it.run(10, used=0.4, waited=0.55)
    assert it.row.busy


def test_the_log_tells_of_a_blocked_worker_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row, now = LoadRow(memoryview(bytearray(LOAD_BYTES))), 1000.0
    meter = Meter(row, 0.25)
    meter.look(now)
    for seconds in (6.25, 1.0, 3.25, 60.25):
        now += seconds
        meter.look(now)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("this worker let no request run for 6.0s, until now\n  → ")
    assert f"if it happens again, py-spy dump --pid {os.getpid()}" in first
    assert " for 60.0s" in second


def test_the_log_blames_nobody_for_the_pages_of_an_error_in_the_urls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each request imports them anew, and DEBUG's page of an error takes long: the log has it."""
    row, now = LoadRow(memoryview(bytearray(LOAD_BYTES))), 1000.0
    meter = Meter(row, 0.25, who=lambda block: Culprit("GET a", "__call__() in middleware.py"))
    told = []
    for error in ("ModuleNotFoundError in views.py, line 2", ""):
        row.note_urls(error)
        for seconds in (0.0, 3.25):
            now += seconds
            meter.look(now)
        told.append(len(caplog.records))
    assert told == [0, 1], "once they work, whoever blocks is named at once"


def test_the_log_names_each_view_that_blocks_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    culprits = {
        1000.0: Culprit("GET a", "a() in views.py, line 3"),
        1005.0: Culprit("probably GET b", "b() in views.py, line 7"),
        1010.0: Culprit("GET a", "a() in views.py, line 4"),
    }
    meter = Meter(LoadRow(memoryview(bytearray(LOAD_BYTES))), 0.25, who=culprits.__getitem__)
    for now in (1000.0, 1005.0, 1010.0, 1015.0):
        meter.look(now)
    rest = (
        f": move that elsewhere; if it happens again, py-spy dump --pid {os.getpid()} shows where,"
        " while it lasts"
    )
    assert [record.getMessage() for record in caplog.records] == [
        "this worker let no request run for 4.8s, until now, in GET a\n"
        f"  → it computed, or waited without gevent (a() in views.py, line 3){rest}",
        "this worker let no request run for 4.8s, until now, probably in GET b\n"
        f"  → it computed, or waited without gevent (b() in views.py, line 7){rest}",
    ]


def test_the_name_is_that_of_the_delay_beside_it() -> None:
    """Of several blocks the longest is told of; and while one lasts, that."""
    names = iter(["GET a", "GET b", ""])
    it = Measured()
    it.meter._who = lambda block: Culprit(next(names))
    for seconds, name in ((8.25, "GET a"), (3.25, "GET a")):
        it.pause(seconds)
        assert it.gauges()["blocked_in"] == name
    assert it.gauges()["loop_delay_seconds"] == pytest.approx(8.0)
    assert it.gauges(later=2.5)["blocked_in"] is None, "another one, of which nothing is known"
    it.row.name(it.row.last_seen(), "GET c")
    assert it.gauges(later=2.5)["blocked_in"] == "GET c"
    assert it.gauges()["blocked_in"] is None
    it.run(2)
    assert it.gauges()["blocked_in"] == "GET a"
    it.run(12)
    assert it.gauges()["blocked_in"] is None
    it.pause(5.25)
    assert it.gauges()["blocked_in"] is None
    it.row.name(it.row.last_seen(), "GET c")
    it.row.retire()
    it.begin()
    assert it.gauges(later=2.5)["blocked_in"] is None, "it was that of a former worker"


@pytest.mark.parametrize("name", ["GET " + "x" * 300, "GET " + "é" * 300])
def test_a_long_name_is_cut(name: str) -> None:
    it = Measured()
    it.row.name(0.0, name)
    shown = it.gauges()["blocked_in"]
    assert len(shown) > 100
    assert name.startswith(shown)
    assert it.row.copy().gauges(it.now, PAUSE)["blocked_in"] == shown


def test_a_delay_is_seen_by_others_at_once_and_forgotten_after_ten_seconds() -> None:
    it = Measured()
    it.run(5)
    assert it.gauges(later=7.0) == {
        "cpu_share": 0.0,
        "cpu_wait_share": 0.0,
        "loop_delay_seconds": 6.75,
        "seen_ago_seconds": 7.0,
        "blocked_in": None,
        "blocked_in_log": None,
        "no_descriptor_ago_seconds": None,
        "urls_failed": None,
        "urls_error": None,
    }
    it.pause(15.25, used=1.0)
    assert it.gauges()["loop_delay_seconds"] == pytest.approx(15.0)
    assert it.gauges()["cpu_share"] == pytest.approx(1.0, abs=0.1), (
        "of the time that it was blocked"
    )
    it.run(9)
    assert it.gauges()["loop_delay_seconds"] == pytest.approx(15.0)
    it.run(3)
    assert it.gauges()["loop_delay_seconds"] == 0.0
    assert it.row.counters["blocked_seconds_total"] == pytest.approx(15.0)


def test_what_a_worker_has_used_stays_when_it_dies() -> None:
    it = Measured()
    it.run(5)
    it.pause(4.25)
    before = it.row.counters
    assert before["blocked_seconds_total"] == pytest.approx(4.0)
    assert before["cpu_seconds_total"] > 0
    it.row.retire()
    assert it.row.counters == before
    assert set(it.gauges().values()) == {None}
    assert not it.row.busy
    it.begin()
    it.run(2)
    it.pause(3.25)
    assert it.row.counters["blocked_seconds_total"] == pytest.approx(7.0)
    assert it.row.counters["cpu_seconds_total"] > before["cpu_seconds_total"]


def test_a_worker_that_is_not_watched_any_more_is_not_blocked() -> None:
    it = Measured()
    it.run(5, used=1.0)
    it.meter.stop()
    assert set(it.gauges(later=60.0).values()) == {None}
    assert not it.row.busy


# --- With real workers -------------------------------------------------------------------------


def shop(status: StartStatus, *args: str, **options: Any) -> Status:
    it = status(*args, views=(VIEWS, INCIDENTS), **options)
    it.site.server.get("/quick")
    return it


def first(it: Status, named: str, part: str = "", patience: float = 30.0) -> str:
    """The page's first sentence, once it has this name.

    :param part: of the sentence, for which it waits, too.
    :param patience: seconds until it asks again. Whom a worker has accepted that is blocked since
        would hear of it when it is over.
    """

    def told() -> str:
        with suppress(TimeoutError):
            finding = it.stats(patience)["findings"][0]
            return str(finding["text"]) * (finding["name"] == named and part in finding["text"])
        return ""

    return wait_until(told, timeout=60)


@torture
@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("path", ["/compute?seconds=6", "/block?seconds=6"])
def test_a_worker_that_is_blocked_is_named_by_another_one(status: StartStatus, path: str) -> None:
    it = shop(status, "-w", "2")
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    view = f", in GET {path[1:].partition('?')[0]}"  # no more only probably
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(it.site.server.get, path)
        said = first(it, "blocked worker", view, patience=2.0)
        workers = {worker["slot"]: worker for worker in it.stats()["workers"]}
        page = it.get("/", Accept="*/*").text
        assert answer.result().status == 200
    (blocked,) = (w for w in workers.values() if w["seen_ago_seconds"] > 1.5)
    assert f"worker {blocked['slot']} has let no other request run for" in said
    assert re.search(rf"{view}(: [^→]+)?\. → it computes, or waits without gevent", said)
    assert f"py-spy dump --pid {blocked['pid']}" in said
    assert "Blocked worker: " in page
    after = first(it, "blocked worker")
    assert re.search(rf" let no other request run for \d\.\d s(, a moment ago)?{view}\b", after)

    def has_line() -> bool:
        return "the log has function, file and line" in first(it, "blocked worker")

    wait_until(has_line)
    assert re.search(r"\(\w+\(\) in \S+\.py, line \d+\)", it.site.server.log)
    if path.startswith("/block"):  # once is enough: it takes ten seconds
        it.wait_for(lambda stats: stats["findings"][0]["name"] != "blocked worker")
    (worker,) = (w for w in it.stats()["workers"] if w["slot"] == blocked["slot"])
    assert 4 < worker["blocked_seconds_total"] < 60


@pytest.mark.usefixtures("no_thread_left")
def test_a_single_worker_says_afterwards_that_it_was_blocked(status: StartStatus) -> None:
    it = shop(status)
    assert it.site.server.get("/block?seconds=3").status == 200
    assert "worker 1 let no other request run for" in first(it, "blocked worker")
    assert "1 worker · CPU " in it.get("/", Accept="*/*").text


@pytest.mark.usefixtures("no_thread_left")
def test_a_busy_processor_is_no_pool_that_is_too_small(status: StartStatus) -> None:
    it = shop(status, cap=2)
    with Hammer(it.site.server.port, "/compute", clients=12, seconds=120) as running:
        said = first(it, "busy processor")
        time.sleep(1)
        stats = it.stats()
        running.stop()
        running.finish()
    assert "worker 1 used " in said
    assert "more connections do not help" in said
    names = {sentence["name"] for sentence in stats["findings"]}
    assert not names & {"too small a pool", "slow connects", "overload"}
    assert not any("--max-outstanding" in sentence["text"] for sentence in stats["findings"])
    (worker,) = stats["workers"]
    assert worker["cpu_share"] + worker["cpu_wait_share"] > 0.8
