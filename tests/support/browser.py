"""A real browser in front of the status page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from support.processes import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Route

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# It runs as root here and in containers, and must not go and look for updates.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserMissing(Exception):
    """There is no browser here; str() is one line that says what to install."""


@contextmanager
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise BrowserMissing("no browser to drive: pip install playwright") from None
    if not (program := next(filter(None, map(shutil.which, PROGRAMS)), None)):
        raise BrowserMissing("no browser: apt install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield opened
        opened.close()


class StatusPage:
    """The page in a browser tab, with all that it asks for and complains about.

    Where `stats` is given, the page gets its answers and not the server's, and nothing moves but by
    :meth:`after`: the tab has a clock of its own. `history` is what the server then knows of the
    time before, by default nothing.
    """

    def __init__(
        self,
        context: BrowserContext,
        url: str,
        stats: Callable[[], Any] | None = None,
        history: Any = None,
    ) -> None:
        self.tab = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self._stats_url = urljoin(url, "stats.json")
        if stats:
            self.tab.clock.install(time=0)
            self.tab.clock.pause_at(1)
            self.tab.route(self._stats_url, lambda route: _answer(route, stats()))
            self.history = history or {"ages_seconds": [], "pools": {}}
            history_url = urljoin(url, "history.json")
            self.tab.route(history_url, lambda route: _answer(route, self.history))
        self.response = self.tab.goto(url)
        wait_until(lambda: self.polls > 0)

    @property
    def polls(self) -> int:
        """How many polls have ended, well or not."""
        return int(self.tab.locator("main").get_attribute("data-polls") or 0)

    def wait_for_news(self) -> None:
        """Until what is shown was asked for after this call: the next poll may be under way."""
        before = self.polls
        wait_until(lambda: self.polls >= before + 2)

    def after(self, seconds: int) -> None:
        """As many polls later, for a page whose answers are ours."""
        for _ in range(seconds):
            next_one = self.polls + 1
            self.tab.clock.run_for(1000)
            wait_until(lambda: self.polls == next_one)  # noqa: B023

    def sleep(self, seconds: int) -> None:
        """As when a laptop is opened again after so long: a single poll."""
        next_one = self.polls + 1
        self.tab.clock.fast_forward(seconds * 1000)
        wait_until(lambda: self.polls == next_one)

    @property
    def sentence(self) -> str:
        """The first of the findings, without its remedy."""
        return self._text('[data-list="findings"] li:first-child .problem')

    @property
    def remedy(self) -> str:
        """That of the first of the findings."""
        return self._text('[data-list="findings"] li:first-child .remedy')

    @property
    def other_sentences(self) -> list[str]:
        return self.tab.locator('[data-list="findings"] li + li .problem').all_inner_texts()

    @property
    def announcement(self) -> str:
        return self._text('[data-value="announcement"]')

    @property
    def aliases(self) -> list[str]:
        sections = self.tab.locator("[data-alias]")
        return list(sections.evaluate_all("all => all.map((section) => section.dataset.alias)"))

    def value(self, name: str, alias: str = "default") -> str:
        """One of the figures of a database."""
        return self._text(f"{_quoted('alias', alias)} {_quoted('value', name)}")

    def totals(self, alias: str = "default") -> dict[str, str]:
        """What has happened since the start, as far as it has."""
        rows = self.tab.locator(f"{_quoted('alias', alias)} [data-total]")
        # At once: the next poll may add rows.
        return dict(
            rows.evaluate_all(
                "all => all.map((row) => [row.dataset.total, row.querySelector('dd').innerText])"
            )
        )

    def cell(self, worker: int, name: str, alias: str = "default") -> str:
        """One of the figures of a worker."""
        row = f"{_quoted('alias', alias)} {_quoted('worker', str(worker))}"
        return self._text(f"{row} {_quoted('cell', name)}")

    def route(self, name: str) -> list[str]:
        """The figures of a route."""
        cells = self.tab.locator(f"{_quoted('route', name)} [data-cell]")
        return cells.all_inner_texts()

    def chart(self, name: str, alias: str = "default") -> str:
        """What somebody who cannot see the chart is told."""
        figure = f"{_quoted('alias', alias)} {_quoted('chart', name)}"
        return self.tab.locator(f"{figure} svg").get_attribute("aria-label") or ""

    def line(self, name: str, kind: str, alias: str = "default") -> str:
        """How a line of a chart is drawn: the first or the second."""
        figure = f"{_quoted('alias', alias)} {_quoted('chart', name)}"
        return self.tab.locator(f"{figure} path.{kind}").get_attribute("d") or ""

    def too_wide(self) -> int:
        """By how many pixels the page is wider than its window."""
        wide, window = self.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return int(wide - window)

    def strangers(self) -> set[str]:
        """Other hosts that it has asked for something."""
        own = urlsplit(self._stats_url).netloc
        return {url for url in self.requests if urlsplit(url).netloc != own}

    def _text(self, selector: str) -> str:
        return self.tab.locator(selector).inner_text()


def _answer(route: Route, stats: Any) -> None:
    if isinstance(stats, int):
        route.fulfill(status=stats)
    elif stats is None:
        route.abort()
    else:
        route.fulfill(body=json.dumps(stats), content_type="application/json")


def _quoted(name: str, value: str) -> str:
    return f"[data-{name}={json.dumps(value)}]"
