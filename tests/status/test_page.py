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

from pooled_serve.pool import metrics
from support.answers import Answers, a_route, recent
from support.browser import BrowserMissing, StatusPage, browser
from support.client import gate
from support.django_project import APP, write_project
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Serve
from support.servers import ROOT, Database, Server
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
        return self.server.get("/run?" + urlencode({"sql": sql}), timeout=90).status


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
            stats: Callable[[], Any] | None = None,
            *,
            of: Shop = shop,
            width: int = 1200,
            history: Any = None,
        ) -> StatusPage:
            context = chromium.new_context(viewport={"width": width, "height": 740})
            stack.callback(context.close)
            opened.append(StatusPage(context, of.url, stats, history))
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
    # For seconds after an outage, which another test may just have had, the page speaks of that.
    wait_until(lambda: page.sentence.startswith("All is well"))
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
            assert page.value("idle") == page.value("unopened") == "0"
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
            # All wait for the same lock, and in the first seconds it may also be the server.
            # Whom the test has kept for seconds, while the other one got its requests, is told of
            # first, for ten seconds.
            said = rf"(Silent server|Hanging statements): .+: {waiting} requests wait,"
            said += r" the longest \d+(\.\d)? m?s"
            wait_until(lambda: re.match(said, page.sentence))
            assert "SHOW PROCESSLIST" in page.remedy
            assert f"waiting: now {waiting}," in page.chart("waiting")
        assert [request.result() for request in requests] == [200] * len(requests)

    wait_until(lambda: page.sentence.startswith(f"All is well: 0 of {in_use} connections in use"))
    wait_until(lambda: page.totals()["acquired"] == str(pool["acquired_total"] + waiting))
    # Some ten in as many seconds.
    assert re.search(r"highest (0\.[1-9]|[1-9])", page.chart("rate"))
    assert re.search(r"hold: now .+, highest .+s\.", page.chart("times"))


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


@torture
def test_it_says_that_the_database_is_down_and_when_it_is_back(
    open_page: OpenPage, shop: Shop, mariadb: Server
) -> None:
    page = open_page()
    mariadb.stop()
    try:
        assert shop.run("SELECT 1") == 503
        wait_until(
            lambda: page.sentence.startswith("Outage: the database default has been out of reach")
        )
        assert "cannot be reached (error 2003)" in page.value("server")
    finally:
        mariadb.start()
    # Nobody has to ask for anything: the worker that has lost it looks for it.
    wait_until(lambda: "cannot be reached" not in page.value("server"))
    wait_until(lambda: "1 request got 503" in page.sentence)
    assert page.sentence.startswith("Outage over: the database default could not be used ")
    assert page.tab.locator('[data-total="waited for the database"] dd').inner_text() == "1"


def test_it_is_allowed_to_load_nothing_but_itself(open_page: OpenPage, shop: Shop) -> None:
    page = open_page()
    wait_until(lambda: page.sentence.startswith("All is well"))
    assert page.response
    policy = page.response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert {url.removeprefix(shop.url) for url in page.requests} == {
        "",
        "stats.json",
        "history.json",
    }
    # Its style is in force, though the policy names it by its hash: the page is not black on white.
    assert page.tab.evaluate("getComputedStyle(document.body).maxWidth") == "1440px"
    # And the policy is, too.
    with page.tab.expect_console_message(lambda message: "Security Policy" in message.text):
        page.tab.evaluate("document.body.append(Object.assign(new Image(), {src: 'a.png'}))")
    page.complaints.clear()


# --- With numbers that no server can be made to have at a given moment ---


def test_a_mistake_of_the_page_is_no_silence_of_the_server(open_page: OpenPage) -> None:
    page = open_page(lambda: Answers().stats)
    page.tab.evaluate("void (understood = () => null.pools)")
    page.after(1)
    (complaint,) = page.complaints
    assert "TypeError" in complaint
    page.complaints.clear()


def test_with_a_bound_of_the_host_that_is_the_cap(open_page: OpenPage) -> None:
    answers = Answers(workers=2, in_use=7, idle=0, waiting=3, oldest_wait_seconds=0.2)
    for pools in (answers.stats["pools"], *(w["pools"] for w in answers.stats["workers"])):
        pools["default"]["max_outstanding"] = 24 if pools is answers.stats["pools"] else 12
    host = {"limit": 12, "taken": 12, "hungry": 1, "trades_total": 34}
    answers.stats["hosts"] = {"default": host}
    page = open_page(answers)
    assert page.value("max_outstanding") == "12"
    assert page.value("host") == "12 of this host's 12 taken · 1 worker lacks some · lent 34 times"
    assert page.sentence == (
        "Too small a pool: all 12 connections of this host are taken: 3 requests wait,"
        " the longest 200 ms."
    )
    assert page.remedy.startswith("--max-per-host ")
    answers.stats["hosts"] = {"default": host | {"taken": 2, "hungry": 0, "trades_total": 1}}
    answers.set(waiting=0, in_use=2)
    page.after(1)
    assert page.sentence.startswith("All is well: 2 of 12 connections in use")
    assert page.value("host") == "2 of this host's 12 taken · no worker lacks any · lent once"
    assert page.value("unopened") == "10"
    elsewhere = {"taken": 12, "taken_elsewhere": 8, "hungry": 0, "trades_total": 1}
    answers.stats["hosts"] = {"default": host | elsewhere}
    page.after(1)
    assert page.value("host").startswith(
        "12 of this host's 12 taken, 8 of them by other processes, as after USR2 · no worker lacks"
    )
    assert page.value("unopened") == "2", "the others have the rest"


def test_a_blocked_worker_has_no_numbers_of_now(open_page: OpenPage) -> None:
    answers = Answers(2, in_use=7)
    answers.stats["pool_mode"] = "transaction"
    answers.stats["workers"][0]["seen_ago_seconds"] = 5.3
    page = open_page(answers)
    shown = [page.cell(1, name) for name in ("cpu", "in_use", "waiting", "oldest_held")]
    assert shown == ["blocked 5 s", "–", "–", "–"]
    assert page.cell(2, "in_use") == "7"
    assert " · transaction mode · " in page.tab.locator('[data-value="facts"]').inner_text()


def test_rates_and_percentiles_are_those_of_the_server(open_page: OpenPage) -> None:
    answers = Answers(acquired_total=1000, timeouts_total=7)
    page = open_page(answers)
    assert page.value("rate") == page.value("wait_mean") == page.value("held_p95") == "–"
    lately = {
        "acquired_per_second": 20.0,
        "waited_share": 0.005,
        "wait_mean_seconds": 0.01,
        "wait_p95_at_most_seconds": 0.0911,
        "held_mean_seconds": 0.0004,
        "held_p95_at_most_seconds": 0.001,
    }
    answers.set(recent=recent(**lately))
    page.after(1)
    assert page.value("rate") == "20"
    assert page.value("waited_share") == "< 1 %"
    assert page.value("wait_mean") == "10 ms"
    assert page.value("wait_p95") == "95 % ≤ 91 ms"
    assert page.value("held_mean") == "< 1 ms"
    assert page.value("held_p95") == "95 % ≤ 1 ms"
    assert (page.value("refused"), page.value("timeouts")) == ("0", "7")
    answers.set(recent=recent(**lately | {"acquired_per_second": 50.0}))
    page.after(1)
    assert page.chart("rate") == (
        "Acquired per second, the last 1 min. rate: now 50, lowest 20, highest 50."
    )


def seconds(ages: range, **columns: Callable[[int], float | None]) -> dict[str, Any]:
    """``/history.json``."""
    known = {key: [value(age) for age in ages] for key, value in columns.items()}
    return {"ages_seconds": list(ages), "pools": {"default": known}}


def test_charts_are_full_when_the_page_opens_and_fill_what_it_has_missed(
    open_page: OpenPage,
) -> None:
    before = seconds(range(299, 0, -1), in_use=lambda age: 11 if age == 200 else 4)
    page = open_page(Answers(in_use=6), history=before)
    assert page.chart("connections") == (
        "Connections, the last 4 min 59 s. in use: now 6, lowest 4, highest 11."
    )
    assert page.line("connections", "first").count("M") == 1
    # As when a laptop was closed for two minutes.
    page.history = seconds(range(60, 0, -1), in_use=lambda age: 9)
    page.sleep(120)
    page.after(1)
    assert "highest 9." in page.chart("connections"), "the eleven are older than five minutes"
    assert page.line("connections", "first").count("M") == 2, "of a minute nothing is known"


def test_charts_show_as_much_as_there_is(open_page: OpenPage) -> None:
    page = open_page(Answers(in_use=6), history=seconds(range(90, 0, -1), in_use=lambda age: 1))
    assert "the last 1 min 30 s." in page.chart("connections")
    page = open_page(Answers(in_use=6))
    assert "the last 1 min." in page.chart("connections")


def test_charts_are_read_with_the_keyboard(open_page: OpenPage) -> None:
    page = open_page(Answers(in_use=6), history=seconds(range(90, 0, -1), in_use=lambda age: age))
    legend = page.tab.locator('[data-chart="connections"] [data-series] b')
    page.tab.locator('[data-chart="connections"] svg').focus()
    assert legend.inner_text() == "6"
    for _ in range(3):
        page.tab.keyboard.press("ArrowLeft")
    assert legend.inner_text() == "15"
    page.tab.keyboard.press("ArrowRight")
    assert legend.inner_text() == "10"
    page.tab.keyboard.press("Escape")
    assert legend.inner_text() == "6"


def test_routes_have_a_table(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    assert not page.tab.locator('[data-section="routes"]').is_visible()
    answers.stats["routes"] = [
        a_route("report/", leases=2, held_seconds=1.0, requests=2, statements=3),
        a_route("shop/<slug:slug>/", leases=750, held_seconds=3.0, waited=70),
        a_route("forgotten/", leases=0, held_seconds=0.0),
    ]
    page.after(1)
    busiest, other = (page.route(name) for name in ("shop/<slug:slug>/", "report/"))
    assert busiest == ["GET", "shop/<slug:slug>/", "75 %", "4.0 ms", "750", "–", "70", "2.5 s"]
    assert other == ["GET", "report/", "25 %", "500 ms", "2", "1.5", "0", "2.5 s"]
    assert page.tab.locator("[data-route]").count() == 2
    told = page.tab.locator('[data-value="lost held"]')
    assert not told.is_visible()
    answers.set(recent=recent(lost_held_seconds=78.0))
    page.after(1)
    lost = "Of this time, 1 min 18 s while statements hung, summed over connections"
    assert told.inner_text() == lost


def test_peaks_and_what_they_suggest(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    peaks = {"in_use": 7, "waiting": 3, "wait_seconds": 0.25, "acquired": 90, "refused": 10}
    day = {**peaks, "in_use": 9, "waited": 15, "seconds": 3600}
    answers.set(peaks={"5m": {**peaks, "waited": 0}, "24h": day})
    said = {"pool": "default", "text": "In 24 h at most 9 of 12. → --max-outstanding 10 would do"}
    answers.stats["advice"] = [said]
    page.after(1)
    rows = page.tab.locator("[data-peak]").all_inner_texts()
    assert [row.split("\t") for row in rows] == [
        ["5 min", "7", "3", "250 ms", "10 %"],
        ["24 h", "9", "3", "250 ms", "25 %"],
    ]
    caption = page.tab.locator("caption[data-term=peaks]")
    assert caption.inner_text() == "Peaks, without outages, hangs and failing connects"
    assert page.value("advice") == said["text"]
    assert page.tab.locator(".advice code").inner_text() == "--max-outstanding 10"
    day["seconds"] = 3599
    page.after(1)
    assert not page.tab.locator(".advice").is_visible(), "a hint is for --advise"


def test_every_term_is_explained(open_page: OpenPage) -> None:
    closed = dict.fromkeys(metrics.CLOSE_REASONS, 1)
    answers = Answers(
        closed_total=closed, pinned_total={"variable": 1}, leaked_total=1, shed_total=1
    )
    page = open_page(answers)
    assert page.tab.locator("[data-term]:not([title])").count() == 0
    unexplained = page.tab.locator('[data-total] dt:not([title]), [data-total] dt[title=""]')
    assert unexplained.count() == 0
    said = page.tab.locator('[data-total="closed"] dd span')
    reasons = dict(zip(said.all_inner_texts(), attributes(said, "title"), strict=True))
    assert {name for name, title in reasons.items() if not title} == {"other 1"}
    page.tab.locator("summary").click()
    assert "--pool-size says how many are kept" in page.tab.locator("details").inner_text()
    files = ("README.md", "examples/deploy/README.md")
    readme = "".join((ROOT / file).read_text() for file in files)
    terms = page.tab.locator("details dt").all_inner_texts()
    assert {t for t in terms if f"**{t}**" not in readme and f"`{t}`" not in readme} == set()


def attributes(found: Any, name: str) -> list[str]:
    values: list[str] = found.evaluate_all(f"all => all.map((one) => one.{name})")
    return values


def test_connections_that_are_opened_or_closed_are_not_free_and_not_in_use(
    open_page: OpenPage,
) -> None:
    page = open_page(Answers(in_use=3, idle=1, connecting=2, closing=1, max_outstanding=12))
    assert [
        page.value(name) for name in ("in_use", "idle", "connecting", "closing", "unopened")
    ] == [*("3", "1", "2", "1", "5")]


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


def test_the_worst_comes_first_and_is_announced_once(open_page: OpenPage) -> None:
    answers = Answers()
    page = open_page(answers)
    assert page.announcement == page.sentence
    page.sleep(6)
    answers.set(in_use=12, waiting=5, oldest_wait_seconds=1.0)
    answers.set("reports", reachable=False, unusable="cannot be reached")
    page.after(1)
    assert page.sentence == "Outage: the database reports cannot be reached."
    (other,) = page.other_sentences
    full = "Too small a pool: all 12 connections for default are in use: "
    assert other.startswith(f"{full}5 requests for default wait, the longest 1.0 s")
    assert page.announcement == page.sentence
    assert page.tab.title().startswith("✕ ")
    answers.stats["pools"]["reports"]["reachable"] = True
    page.sleep(6)
    said = page.announcement
    assert said.startswith(f"{full}5 requests for default wait")
    answers.set(waiting=6)
    page.sleep(6)
    assert "6 requests for default wait" in page.sentence
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
        unusable="cannot be reached",
        closed_total={bad: 3},
        pinned_total={bad: 4},
    )
    answers.stats |= {"version": bad, "app": bad}
    answers.stats["workers"][0] |= {"slot": bad, "pid": bad}
    answers.stats["routes"] = [a_route(bad, leases=1, held_seconds=1.0)]
    page = open_page(answers)
    page.after(1)
    assert page.aliases == ["default", bad]
    assert page.value("server", bad) == f"{bad} · {bad} · cannot be reached"
    assert page.totals(bad) == {"acquired": "0", "closed": f"3 ({bad} 3)", "pinned": f"4 ({bad} 4)"}
    assert page.sentence == f"Outage: the database {bad} cannot be reached."
    assert page.route(bad)[1] == bad
    assert page.tab.locator("img").count() == 0
    assert page.tab.locator("script").count() == 1


def test_a_server_of_another_version_does_not_stop_it(open_page: OpenPage) -> None:
    answers = Answers()
    complete = copy.deepcopy(answers.stats)
    answers.stats = {}
    page = open_page(answers)
    answers.stats = {"workers": [{"slot": 1, "pid": 7, "pools": {}}], "pools": {}}
    page.after(1)
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
    page.history = nonsense
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
    answers.stats["routes"] = [
        a_route("shop/<slug:slug>/<int:page>/" * 4, leases=1, held_seconds=0.1)
    ]
    page.after(1)
    assert page.tab.locator("[data-worker]").count() == 16
    assert page.cell(16, "pid") == str(4194304 - 16)
    assert page.sentence.startswith(
        "Too small a pool: all 1,200 connections are in use: 1,000 requests"
    )
    assert page.tab.locator('[data-worker="16"] .bar').is_visible(), "on a phone, too"
    assert page.too_wide() == 0
    # Nor does anything stick out of its box.
    assert (
        page.tab.evaluate(
            """[...document.querySelectorAll("main *")].filter((element) =>
            element.getBoundingClientRect().right > innerWidth).length"""
        )
        == 0
    )
