"""The page for terminals, and --advise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status import words
from pooled_serve.status.peaks import PEAK_KEYS, WINDOWS
from pooled_serve.status.sentence import Sentence, as_json
from pooled_serve.status.text import COLUMNS, advice_page, page
from support.answers import Answers, a_route, recent
from support.ports import free_port
from support.site import VIEWS
from support.status import StartSite, StartStatus, Status

HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, HTML),
        ("text/html,application/xhtml+xml,*/*;q=0.8", HTML),
        ("TEXT/HTML", HTML),
        ("*/*", TEXT),  # curl's
        ("text/plain", TEXT),
        ("", TEXT),
    ],
)
def test_browsers_get_a_page_and_curl_text(
    status: StartStatus, accept: str | None, kind: str
) -> None:
    it = status()
    headers = {} if accept is None else {"Accept": accept}
    answer = it.get("/", **headers)
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["Vary"] == "Accept"


def test_it_has_the_numbers_of_a_real_server(status: StartStatus) -> None:
    it = status("-w", "2")
    for _ in range(5):
        assert it.site.run("SELECT 1").status == 200
    it.wait_for(lambda stats: len(stats["workers"]) == 2)
    it.pool_at_rest()
    pool = it.pool()
    text = it.get("/", Accept="*/*").text
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert "mysite.wsgi" in text
    assert "✓ All is well: 0 of " in text
    assert f"default  {pool['engine']} · {pool['server']}" in text
    assert f"= {pool['idle']} idle" in text
    assert "GET run" in text
    assert it.get("/", "HEAD", Accept="*/*").body == b""


def full(**pool: Any) -> dict[str, Any]:
    """With all that a real server has."""
    lately = dict.fromkeys(
        ("wait_p50_seconds", "wait_p95_seconds", "held_p50_seconds", "held_p95_seconds"), 0.0911
    )
    known = recent(acquired_per_second=12_345.6, waited_share=0.123, **lately)
    highest = dict.fromkeys(PEAK_KEYS, 123_456.0)
    more = {
        "connecting": 0,
        "closing": 0,
        "recent": known,
        "peaks": dict.fromkeys(WINDOWS, highest),
    }
    stats: dict[str, Any] = Answers(20, **{**more, **pool}).stats
    stats["findings"] = as_json([])
    return stats


def test_nothing_is_wider_than_a_terminal() -> None:
    stats = full(
        max_outstanding=12_000,
        in_use=11_999,
        waiting=1234,
        oldest_wait_seconds=98_765.0,
        oldest_held_seconds=98_765.0,
        server="a-database-with-a-long-name.eu-central-1.provider.example:3306/warehouse",
    )
    stats["app"] = "a.very.long.package.name.of.a.project.with.many.parts.wsgi:application"
    stats["routes"] = [a_route("shop/<slug:slug>/" * 9, leases=123_456_789, held_seconds=9e9)]
    stats["hosts"] = {"default": {"limit": 9, "taken": 9, "hungry": 9, "trades_total": 10**9}}
    charts = {"default": {"in_use": [None] * 50 + [3] * 250, "waiting": [9] * 300}}
    text = page(stats, {"pools": charts})
    assert max(map(len, text.splitlines())) == COLUMNS
    assert "4 more workers: " in text
    assert " " * 8 + "▃" * 42 in text, "of the first 50 seconds nothing is known"


def test_what_projects_name_is_no_command_for_a_terminal() -> None:
    stats = full(server="\x1b[2Jhost")
    stats["routes"] = [a_route("a\x1b]0;title\x07\r/", leases=1, held_seconds=1.0)]
    stats["app"] = "\x9b31mapp"
    text = page(stats, {})
    assert {c for c in text if not c.isprintable()} == {"\n"}


# --- Words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "–"), (0, "0 s"), (0.0004, "< 1 ms"), (0.0041, "4.1 ms"), (0.25, "250 ms")),
        *((0.9999, "1.0 s"), (59.9, "59.9 s"), (59.96, "1 min"), (75, "1 min 15 s")),
        *((3599.9, "1 h"), (3600, "1 h"), (9999, "2 h 47 min"), (90_000, "1 d 1 h")),
    ],
)
def test_durations_in_words(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_shares_never_round_to_all_or_nothing() -> None:
    shares = (0.0, 0.004, 0.5, 0.999, 1.0, None)
    assert [*map(words.percent, shares)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %", "–"]


# --- --advise ----------------------------------------------------------------------------------


def advise(address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pooled_serve", "--advise", address]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_advise_asks_a_running_instance(status: StartStatus) -> None:
    it = status()
    assert it.site.run("SELECT 1").status == 200
    where = "{}:{}".format(*it.address)
    for address in (where, f"http://{where}", f"http://{where}/"):
        done = advise(address)
        assert (done.returncode, done.stderr) == (0, ""), address
        assert "✓ All is well: 0 of 4 connections in use" in done.stdout
        assert "most     in use " in done.stdout
        assert re.search(r"no advice yet: watched for \d+ s of the 20 s", done.stdout)


def test_advise_says_nothing_twice() -> None:
    stats = full()
    said = Sentence("note", "too small a pool", "default", "Too small a pool: so it is", "more")
    now = Sentence(
        "warn", "too small a pool", "default", "Too small a pool: all are in use", "more"
    )
    stats["findings"], stats["advice"] = as_json([now]), as_json([said])
    assert advice_page(stats).count("Too small a pool") == 1
    stats["findings"] = as_json([said])
    assert advice_page(stats).count("Too small a pool") == 1
    stats["advice"] = []
    assert advice_page(stats).count("Too small a pool") == 1


def test_advise_takes_a_unix_socket(site: StartSite, tmp_path: Path) -> None:
    path = str(tmp_path / "status.sock")
    site("--status", f"unix:{path}")
    done = advise(f"unix:{path}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "All is well" in done.stdout


@pytest.mark.parametrize(
    ("address", "code", "problem"),
    [
        ("127.0.0.1:{free}", 1, "PS505 no instance answers at 127.0.0.1:{free}: "),
        ("unix:/no/such/socket", 1, "PS505 no instance answers at unix:/no/such/socket: "),
        ("https://127.0.0.1:8001", 2, "PS401 --advise: 'https://127.0.0.1:8001' is no address"),
        ("", 2, "PS401 --advise: '' is no address of a status page"),
        ("127.0.0.1:port", 2, "PS401 --advise: '127.0.0.1:port' is no address"),
    ],
)
def test_advise_without_an_instance(address: str, code: int, problem: str) -> None:
    free = free_port()
    done = advise(address.format(free=free))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(problem.format(free=free))
    assert "\n  → " in done.stderr
    assert "Traceback" not in done.stderr


def test_advise_asks_the_site_itself(site: StartSite) -> None:
    served = site()
    done = advise(f"127.0.0.1:{served.server.port}")
    assert done.returncode == 1
    assert "answers 404, and not with the numbers of this version" in done.stderr
    assert "not that of the site" in done.stderr


def test_json_keys_of_a_real_server_are_all_that_the_pages_need(status: StartStatus) -> None:
    it: Status = status(views=VIEWS)
    assert it.site.run("SELECT 1").status == 200
    stats = json.loads(it.get("/stats.json").body)
    assert page(stats, json.loads(it.get("/history.json").body)).startswith("pooled-serve ")
