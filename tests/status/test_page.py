"""The status page, as a real browser shows it."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from support.browser import BrowserMissing, StatusPage, browser
from support.client import gate
from support.django_project import APP, write_project
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Serve
from support.servers import Database, Server
from support.site import VIEWS
from support.torture import torture

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CAP = 2
WORKERS = 2

OpenPage = Callable[..., StatusPage]


class Shop:
    """Two workers with a cap of 2 each, and their status listener."""

    def __init__(self, folder: Path, database: Database, workers: int = WORKERS) -> None:
        write_project(folder, databases={"default": database.django()}, views=VIEWS)
        self.database = database
        self.status = ("127.0.0.1", free_port())
        self.server = Serve(
            APP,
            *("--status", "{}:{}".format(*self.status)),
            *("--workers", str(workers), "--pool-size", "1", "--max-outstanding", str(CAP)),
            *("--pool-timeout", "60"),
            cwd=folder,
        )

    @property
    def url(self) -> str:
        return "http://{}:{}/".format(*self.status)

    def stats(self) -> dict[str, Any]:
        with Client(self.status) as client:
            stats: dict[str, Any] = client.get("/stats.json").json()
            return stats

    def run(self, sql: str) -> int:
        return self.server.get("/run?" + urlencode({"sql": sql}), timeout=60).status


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(browser())
        except BrowserMissing as missing:
            pytest.skip(str(missing))
        yield opened


@pytest.fixture(scope="module")
def shop(
    chromium: Browser, mariadb: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """One for everyone; who stops it makes one of his own."""
    shop = Shop(tmp_path_factory.mktemp("shop") / "project", mariadb.create_database())
    with shop.server:
        yield shop


@pytest.fixture
def open_page(chromium: Browser, shop: Shop) -> Iterator[OpenPage]:
    """Opens the page of the shop, or of another one. It must not complain, nor ask anyone else.

    With `stats`, its numbers are what that returns.
    """
    with ExitStack() as stack:
        opened: list[StatusPage] = []

        def open_page(
            stats: Callable[[], Any] | None = None, *, of: Shop = shop, width: int = 1200
        ) -> StatusPage:
            context = chromium.new_context(viewport={"width": width, "height": 740})
            stack.callback(context.close)
            opened.append(StatusPage(context, of.url, stats))
            return opened[-1]

        yield open_page
        for page in opened:
            # The browser itself reports each poll that fails.
            assert [text for text in page.complaints if "Failed to load" not in text] == []
            assert page.strangers() == set()


# --- With the numbers of a real server ---


@torture
def test_under_load_it_shows_what_the_server_counts(open_page: OpenPage, shop: Shop) -> None:
    wait_until(lambda: len(shop.stats()["workers"]) == WORKERS)
    page = open_page()
    in_use, waiting = CAP * WORKERS, WORKERS
    with ThreadPoolExecutor(in_use + waiting) as threads:
        with gate(shop.database) as statement:
            requests = []
            for worker in shop.server.worker_pids():
                with shop.server.only(worker):
                    before = shop.stats()
                    requests += [threads.submit(shop.run, statement) for _ in range(CAP + 1)]
                    wait_until(lambda: queues(shop.stats(), worker, before))  # noqa: B023
            page.wait_for_news()
            # From here on nothing changes but the time.
            stats = shop.stats()
            pool = stats["pools"]["default"]
            assert page.aliases == ["default"]
            assert page.value("in_use") == str(in_use)
            assert page.value("idle") == page.value("free") == "0"
            assert page.value("max_outstanding") == str(in_use)
            assert page.value("timeouts") == str(pool["timeouts_total"])
            assert page.value("server") == f"{pool['engine']} · {pool['server']}"
            totals = page.totals()
            assert totals["acquired"] == str(pool["acquired_total"])
            assert totals["opened"] == str(pool["opened_total"])
            for worker in stats["workers"]:
                its = worker["pools"]["default"]
                slot = worker["slot"]
                assert page.cell(slot, "pid") == str(worker["pid"])
                for name in ("in_use", "idle", "waiting", "max_outstanding"):
                    assert page.cell(slot, name) == str(its[name])
                assert re.fullmatch(r"\d+(\.\d)? (s|ms)", page.cell(slot, "oldest_held"))
            assert re.fullmatch(
                rf"Workers 1 and 2 are at their cap: {waiting} requests queue,"
                r" the longest-held connection has been in use for \d+(\.\d)? m?s\.",
                page.sentence,
            )
            assert f"waiting: now {waiting}," in page.chart("connections")
        assert [request.result() for request in requests] == [200] * len(requests)

    wait_until(lambda: page.sentence.startswith(f"All is well: 0 of {in_use} connections in use"))
    wait_until(lambda: page.totals()["acquired"] == str(pool["acquired_total"] + waiting))
    assert float(page.value("rate")) > 0
    assert page.value("held_p50").endswith("s")


def queues(stats: dict[str, Any], worker: int, before: dict[str, Any]) -> bool:
    """Whether a worker has handed out all its connections since, and one request waits."""
    now = of_worker(stats, worker)
    handed_out = now["acquired_total"] - of_worker(before, worker)["acquired_total"]
    return (handed_out, now["in_use"], now["waiting"]) == (CAP, CAP, 1)


def of_worker(stats: dict[str, Any], pid: int) -> dict[str, Any]:
    """Its pool; numbers of one that it has not made yet are 0."""
    (pools,) = (worker["pools"] for worker in stats["workers"] if worker["pid"] == pid)
    found: dict[str, Any] = defaultdict(int, pools.get("default", {}))
    return found


@torture
def test_it_survives_a_restart_of_the_server(
    open_page: OpenPage, mariadb: Server, tmp_path: Path
) -> None:
    shop = Shop(tmp_path / "project", mariadb.create_database(), workers=1)
    with shop.server:
        shop.run("SELECT 1")
        page = open_page(of=shop)
        wait_until(lambda: page.sentence.startswith("All is well"))
        shop.server.stop()
        wait_until(lambda: re.fullmatch(r"No answer from the server for \d+ s\.", page.sentence))
        assert page.aliases == ["default"], "the last numbers stay"
        shop.server.start()
        wait_until(lambda: page.sentence.startswith("All is well"))
        assert page.aliases == ["default"], "its charts stay, though no worker has a pool yet"
        assert page.value("in_use") == "–"
        shop.run("SELECT 1")
        wait_until(lambda: page.totals()["acquired"] == "1")
        assert page.cell(1, "pid") == str(shop.stats()["workers"][0]["pid"])


def test_it_says_that_the_database_is_down_and_when_it_is_back(
    open_page: OpenPage, shop: Shop, mariadb: Server
) -> None:
    page = open_page()
    mariadb.stop()
    try:
        assert shop.run("SELECT 1") == 503
        wait_until(lambda: page.sentence == "Database default cannot be reached.")
        assert page.value("server").endswith("cannot be reached")
    finally:
        mariadb.start()
    # Nobody has to ask for anything: the worker that has lost it looks for it.
    wait_until(lambda: not page.value("server").endswith("cannot be reached"))
    wait_until(lambda: page.sentence.startswith("Nobody waits any more, 1 timed out"))
    (other,) = page.tab.locator('[data-list="more"] li').all_inner_texts()
    assert other.startswith("Connecting to default failed")
    assert page.tab.locator('[data-total="waited for the database"] dd').inner_text() == "1"


def test_it_is_allowed_to_load_nothing_but_itself(open_page: OpenPage, shop: Shop) -> None:
    page = open_page()
    wait_until(lambda: page.sentence.startswith("All is well"))
    assert page.response
    policy = page.response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert {url.removeprefix(shop.url) for url in page.requests} == {"", "stats.json"}
    # Its style is in force, though the policy names it by its hash: the page is not black on white.
    assert page.tab.evaluate("getComputedStyle(document.body).maxWidth") == "1440px"
    # And the policy is, too.
    with page.tab.expect_console_message(lambda message: "Security Policy" in message.text):
        page.tab.evaluate("document.body.append(Object.assign(new Image(), {src: 'a.png'}))")
    page.complaints.clear()


# --- With numbers that no server can be made to have at a given moment ---

BUCKETS = ("0.001", "0.01", "0.1", "1", "10", "+Inf")


class Answers:
    """What the page is told; tests change it between polls."""

    def __init__(self, workers: int = 1, **pool: Any) -> None:
        self.stats: Any = {
            "version": "1.2.3",
            "app": "shop.wsgi",
            "uptime_seconds": 1000.0,
            "workers": [
                {"slot": slot, "pid": 4194304 - slot, "pools": {"default": a_pool(**pool)}}
                for slot in range(1, workers + 1)
            ],
            "pools": {"default": a_pool(**pool)},
        }

    def __call__(self) -> Any:
        if isinstance(self.stats, dict) and "uptime_seconds" in self.stats:
            self.stats["uptime_seconds"] += 1
        return self.stats

    def set(self, alias: str = "default", **changes: Any) -> None:
        """Of a single worker."""
        for pools in (self.stats["pools"], self.stats["workers"][0]["pools"]):
            pools[alias] = a_pool(**{**pools.get(alias, {}), **changes})


def a_pool(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "MariaDB 10.11.19",
        "server": "127.0.0.1:3306/shop",
        "size": 4,
        "max_outstanding": 12,
        "in_use": 3,
        "idle": 1,
        "waiting": 0,
        "acquired_total": 0,
        "timeouts_total": 0,
        "shed_total": 0,
        "connect_errors_total": 0,
        "oldest_wait_seconds": 0.0,
        "oldest_held_seconds": 0.0,
        "wait_seconds_buckets": dict.fromkeys(BUCKETS, 0),
        "held_seconds_buckets": dict.fromkeys(BUCKETS, 0),
        "reachable": True,
        **changes,
    }


def cumulative(*counts: int) -> dict[str, int]:
    return {bound: sum(counts[: i + 1]) for i, bound in enumerate(BUCKETS)}


def test_rates_and_percentiles_are_those_of_the_last_ten_seconds(open_page: OpenPage) -> None:
    answers = Answers(
        acquired_total=1000,
        wait_seconds_buckets=cumulative(0, 0, 0, 0, 0, 1000),
        held_seconds_buckets=cumulative(1000),
    )
    page = open_page(answers)
    assert page.value("rate") == page.value("wait_p50") == page.value("held_p95") == "–"
    for second in range(1, 21):
        # In the first ten seconds 50 each second, then 20.
        acquired = 1000 + (50 * second if second <= 10 else 500 + 20 * (second - 10))
        answers.set(
            acquired_total=acquired,
            # Half of them up to 10 ms, the others up to 100 ms.
            wait_seconds_buckets=cumulative(0, acquired // 2, acquired // 2, 0, 0, 1000),
            # 90 % within 1 ms, 10 % up to 1 s: 95 % are in the middle of the latter's bucket.
            held_seconds_buckets=cumulative(1000 + acquired * 9 // 10, 0, 0, acquired // 10),
        )
        page.after(1)
        if second == 10:
            assert page.value("rate") == "50"
    assert page.value("rate") == "20"
    assert page.value("wait_p50") == "10 ms"
    assert page.value("wait_p95") == "91 ms"
    assert page.value("held_p50") == "< 1 ms"
    assert page.value("held_p95") == "550 ms"
    assert page.chart("rate") == (
        "Acquired per second, the last 5 minutes. rate: now 20, lowest 20, highest 50."
    )


def test_counters_that_begin_anew_make_no_peak_and_no_negative_rate(open_page: OpenPage) -> None:
    answers = Answers(acquired_total=100_000)
    page = open_page(answers)
    answers.set(acquired_total=100_010)
    page.after(1)
    assert page.value("rate") == "10"
    answers.stats["uptime_seconds"] = 0.0
    answers.set(acquired_total=3)
    page.after(1)
    assert page.value("rate") == "–"
    answers.set(acquired_total=7)
    page.after(1)
    assert page.value("rate") == "4"
    assert "highest 10." in page.chart("rate")
    assert page.line("rate", "first").count("M") == 2, "the line is broken at the restart"


def test_connections_that_are_opened_or_closed_are_not_free_and_not_in_use(
    open_page: OpenPage,
) -> None:
    page = open_page(Answers(in_use=3, idle=1, connecting=2, closing=1, max_outstanding=12))
    assert [page.value(name) for name in ("in_use", "idle", "connecting", "closing", "free")] == [
        *("3", "1", "2", "1", "5")
    ]


@torture
def test_the_charts_forget_what_is_older_than_five_minutes(open_page: OpenPage) -> None:
    answers = Answers(in_use=11)
    page = open_page(answers)
    page.after(2)
    answers.set(in_use=4)
    page.sleep(290)
    assert "in use: now 4, lowest 4, highest 11." in page.chart("connections")
    page.sleep(20)
    assert "in use: now 4, lowest 4, highest 4." in page.chart("connections")


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({}, "All is well: 3 of 12 connections in use, nobody waits."),
    ({"max_outstanding": None}, "All is well: 3 connections in use, nobody waits."),
    ({"reachable": None}, "All is well: 3 of 12 connections in use, nobody waits."),
    ({"in_use": 12, "idle": 0}, "Worker 1 is at its cap of 12, but nobody waits."),
    (
        {"in_use": 12, "idle": 0, "waiting": 7, "oldest_held_seconds": 8.91},
        "Worker 1 is at its cap of 12: 7 requests queue,"
        " the longest-held connection has been in use for 8.9 s.",
    ),
    (
        {"in_use": 12, "waiting": 1, "oldest_held_seconds": 75, "timeouts_total": 4},
        "Worker 1 is at its cap of 12: 1 request queues,"
        " the longest-held connection has been in use for 1 min 15 s,"
        " 4 timed out in the last 10 s.",
    ),
    (
        {"waiting": 2, "oldest_wait_seconds": 0.25},
        "2 requests wait for a connection, the longest 250 ms.",
    ),
    ({"timeouts_total": 3}, "Nobody waits any more, 3 timed out in the last 10 s."),
    (
        {"timeouts_total": 3, "shed_total": 3},
        "Nobody waits any more, 3 refused early in the last 10 s.",
    ),
    (
        {"waiting": 2, "oldest_wait_seconds": 0.25, "timeouts_total": 9, "shed_total": 7},
        "2 requests wait for a connection, the longest 250 ms, 2 timed out and 7 refused early"
        " in the last 10 s.",
    ),
    ({"connect_errors_total": 5}, "Connecting to default failed in the last 10 s, 5 times."),
    ({"connect_errors_total": 1}, "Connecting to default failed in the last 10 s, once."),
    (
        {"reachable": False, "connect_errors_total": 5, "in_use": 0},
        "Database default cannot be reached.",
    ),
]


def test_one_sentence_says_how_it_is(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    for changes, sentence in SENTENCES:
        answers.stats = Answers().stats  # as of a new server, of which nothing is remembered
        page.after(1)
        answers.set(**changes)
        page.after(1)
        assert page.sentence == sentence


def test_the_worst_comes_first_and_is_announced_once(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    assert page.announcement == page.sentence
    page.sleep(6)
    answers.set(in_use=12, waiting=5, oldest_held_seconds=1.0)
    answers.set("reports", reachable=False)
    page.after(1)
    assert page.sentence == "Database reports cannot be reached."
    (other,) = page.tab.locator('[data-list="more"] li').all_inner_texts()
    assert other.startswith("Worker 1 is at its cap of 12 for default: 5 requests queue")
    assert page.announcement == page.sentence
    assert page.tab.title().startswith("✕ ")
    answers.stats["pools"]["reports"]["reachable"] = True
    page.sleep(6)
    said = page.announcement
    assert said.startswith("Worker 1 is at its cap of 12 for default: 5 requests queue")
    answers.set(waiting=6)
    page.sleep(6)
    assert "6 requests queue" in page.sentence
    assert page.announcement == said, "numbers that change are not read aloud each second"


def test_a_slow_answer_is_waited_for_and_a_lost_one_is_not(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    slow: list[Any] = []
    url = next(url for url in page.requests if url.endswith("stats.json"))
    page.tab.unroute(url)
    page.tab.route(url, lambda route: slow.append(route))
    page.tab.clock.run_for(5000)
    wait_until(lambda: page.sentence == "No answer from the server for 5 s." and slow)
    assert len(slow) == 1, "never two polls at a time"
    with page.tab.expect_response(url):
        slow[0].fulfill(json=answers())
    wait_until(lambda: page.sentence.startswith("All is well"))
    page.tab.clock.run_for(1000)
    wait_until(lambda: page.polls and len(slow) == 2)
    slow[1].fulfill(status=502)
    wait_until(lambda: page.sentence.endswith("(status 502)."))
    assert page.value("in_use") == "3", "the last numbers stay"


def test_names_are_text_whatever_they_contain(open_page: OpenPage) -> None:
    bad = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
    answers = Answers()
    answers.set(
        bad,
        engine=bad,
        server=bad,
        reachable=False,
        closed_total={bad: 3},
        pinned_total={bad: 4},
    )
    answers.stats |= {"version": bad, "app": bad}
    answers.stats["workers"][0] |= {"slot": bad, "pid": bad}
    page = open_page(answers)
    page.after(1)
    assert page.aliases == ["default", bad]
    assert page.value("server", bad) == f"{bad} · {bad} · cannot be reached"
    assert page.totals(bad) == {"acquired": "0", "closed": f"3 ({bad} 3)", "pinned": f"4 ({bad} 4)"}
    assert page.sentence == f"Database {bad} cannot be reached."
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("script").count() == 1


def test_a_server_of_another_version_does_not_stop_it(open_page: OpenPage) -> None:
    answers = Answers()
    complete = copy.deepcopy(answers.stats)
    answers.stats = {}
    page = open_page(answers)
    assert page.sentence == "No worker is running."
    answers.stats = {"workers": [{"slot": 1, "pid": 7, "pools": {}}], "pools": {}}
    page.after(1)
    assert page.sentence == "All is well: no request has needed a database yet."
    assert page.aliases == []
    answers.stats["pools"] = {"default": {}}
    page.after(1)
    assert page.value("in_use") == page.value("wait_p95") == page.cell(1, "waiting") == "–"
    nonsense: list[Any] = [None, 500, [], "nonsense", {"pools": 3, "workers": {"a": 1}}]
    for broken in nonsense:
        answers.stats = broken
        page.after(1)
    complete["more"] = {"of": ["what", "comes"]}
    complete["pools"]["default"]["more_total"] = {"reason": 1}
    answers.stats = complete
    page.after(1)
    assert page.sentence == "All is well: 3 of 12 connections in use, nobody waits."
    assert page.value("in_use") == page.cell(1, "in_use") == "3"


@pytest.mark.parametrize("width", [360, 1200])
def test_sixteen_workers_fit_on_every_screen(open_page: OpenPage, width: int) -> None:
    answers = Answers(
        workers=16,
        max_outstanding=1200,
        in_use=1200,
        idle=0,
        waiting=1000,
        oldest_wait_seconds=9999.0,
        oldest_held_seconds=0.123,
        server="a-database-with-a-long-name.eu-central-1.provider.example:3306/warehouse",
        closed_total={"reset failed": 123_456, "surplus": 1_234_567},
    )
    page = open_page(answers, width=width)
    page.after(1)
    assert page.tab.locator("[data-worker]").count() == 16
    assert page.cell(16, "pid") == str(4194304 - 16)
    assert page.sentence.startswith("All 16 workers are at their cap: 16,000 requests queue")
    assert page.too_wide() == 0
    # Nor does anything stick out of its box.
    assert (
        page.tab.evaluate(
            """[...document.querySelectorAll("main *")].filter((element) =>
            element.getBoundingClientRect().right > innerWidth).length"""
        )
        == 0
    )
