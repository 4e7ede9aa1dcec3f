"""The page for terminals, and --advise."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status import words
from pooled_serve.status.peaks import PEAK_KEYS, WINDOWS
from pooled_serve.status.sentence import Sentence, as_json
from pooled_serve.status.text import COLUMNS, TOTALS, advice_page, page
from support.answers import Answers, a_route, recent
from support.ports import free_port
from support.site import VIEWS
from support.status import StartSite, StartStatus, Status
from support.text import same_names

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
    headers: dict[str, Any] = {} if accept is None else {"Accept": accept}
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


def test_it_names_what_is_counted_since_the_start_as_the_page_for_browsers_does() -> None:
    html = (files("pooled_serve.status") / "page.html").read_text()
    (totals,) = re.findall(r"^function totals\(.*?^}", html, re.M | re.S)
    shown = [
        f'"{w}": "{k}"' for w, k in re.findall(r'"([a-z0-9 ]+)", pool\.([a-z_]+_total)', totals)
    ]
    # The other page has it in another place.
    told = [f'"{w}": "{k}"' for w, k in TOTALS.items() if w != "refused"]
    same_names(
        told,
        shown,
        lacks="TOTALS in status/text.py has no {}: add it, as totals() in status/page.html has it",
        surplus="TOTALS in status/text.py has {}, and totals() in status/page.html has not",
    )
    assert told == shown, "TOTALS in status/text.py has another order than totals() in page.html"


def test_it_tells_what_was_counted_since_the_start() -> None:
    reasons = {"surplus": 120, "age": 4, "reset failed": 3, "lent": 100, "dead": 0}
    counted = {"closed_total": reasons, "outage_waits_total": 33, "shed_total": 3}
    text = page(full(acquired_total=123_456, timeouts_total=12, pinned_total={}, **counted), {})
    assert (
        "in all   acquired 123,456 · refused 12 · closed 227 (surplus 120, age 4,\n"
        "         reset failed 3, lent 100) · refused early 3 ·\n"
        "         waited for the database 33\n"
    ) in text


@pytest.mark.parametrize(("starting", "facts"), [(0, "20 workers · "), (2, "20 workers, 2 start")])
def test_it_tells_of_workers_that_are_yet_to_serve(starting: int, facts: str) -> None:
    assert facts in page(full() | {"starting": starting}, {})


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


def test_what_another_instance_has_of_the_bound_cannot_be_opened_here() -> None:
    stats = full(in_use=1, idle=0, connecting=0, closing=0)
    host = {"limit": 12, "taken": 12, "hungry": 0, "trades_total": 0}
    stats["hosts"] = {"default": host | {"taken_elsewhere": 11}}
    text = page(stats, {})
    assert "12 of 12 taken" in text
    assert "\n         11 of them by other processes, as after USR2\n" in text
    assert " · 0 not opened, cap 12" in text
    stats["hosts"] = {"default": host | {"taken": 1, "taken_elsewhere": 0}}
    assert "other processes" not in (text := page(stats, {}))
    assert " · 11 not opened, cap 12" in text


def test_the_numbers_of_a_blocked_worker_are_not_shown_as_those_of_now() -> None:
    stats = full(in_use=7)
    stats["workers"][0] |= {"seen_ago_seconds": 5.3}
    (row,) = (line for line in page(stats, {}).splitlines() if line.startswith("worker   1 "))
    assert row.endswith("CPU blocked for 5.3 s, its numbers are not known meanwhile")
    assert "\n         worker 1 as of 5.3 s ago: it is blocked\nwaiting " in page(stats, {})
    stats["workers"][1] |= {"seen_ago_seconds": 2.4}
    assert "\n         workers 1 and 2 as of 5.3 s ago: they are blocked\n" in page(stats, {})
    stats["workers"][0] |= {"seen_ago_seconds": 0.1}
    stats["workers"][1] |= {"seen_ago_seconds": 0.2}
    assert "blocked" not in page(stats, {})
    (row,) = (line for line in page(stats, {}).splitlines() if line.startswith("worker   2 "))
    assert " 7 of 12 " in row


def test_routes_have_their_queries_and_times_their_average() -> None:
    lately = {"wait_mean_seconds": 0.0004, "wait_p95_at_most_seconds": 0.001}
    lately |= {"held_mean_seconds": 2.0, "held_p95_at_most_seconds": 2.5}
    stats = full(recent=recent(acquired_per_second=1.0, waited_share=0.1, **lately))
    stats["pool_mode"] = "transaction"
    stats["routes"] = [a_route("list/", leases=4, held_seconds=8.0, requests=4, statements=50)]
    lines = page(stats, {}).splitlines()
    assert " · transaction mode · up 17 min" in lines[0]
    times = "wait mean < 1 ms, 95 % ≤ 1 ms  hold mean 2.0 s, 95 % ≤ 2.5 s"
    assert f"waited 10 %  {times}" in lines
    head, row = lines[-2:]
    assert head.split()[-5:] == ["share", "leases", "each", "queries", "waits"]
    assert row.split() == ["GET", "list/", "100", "%", "4", "2.0", "s", "12", "0"]


@pytest.mark.parametrize(
    ("app", "head"),
    [
        ("m.wsgi", "pooled-serve 1.2.3  m.wsgi    1 worker · CPU 10 % · transaction mode · up"),
        (
            "mysite.wsgi",
            "pooled-serve  mysite.wsgi     1 worker · CPU 10 % · transaction mode · up",
        ),
        ("shop.project.conf.wsgi", "shop.project.conf.wsgi        1 worker · CPU 10 % · transact"),
        ("company.site.config.production.wsgi", "company.site.config.production.wsgi\n1 worker ·"),
    ],
)
def test_the_name_of_the_application_is_never_cut(app: str, head: str) -> None:
    """What matters less gives way."""
    stats = Answers().stats | {"app": app, "pool_mode": "transaction", "findings": []}
    stats["pools"] = {}
    stats["workers"][0] |= {"seen_ago_seconds": 0.1, "cpu_share": 0.1}
    text = page(stats, {})
    assert text.startswith(head)
    assert all(len(line) <= COLUMNS for line in text.splitlines())
    assert " · up 17 min\n" in text


def test_what_routes_held_in_an_outage_is_told() -> None:
    """Peaks leave it out."""
    stats = full(recent=recent(acquired_per_second=1.0, waited_share=0.1, lost_held_seconds=78.0))
    assert "while a database" not in page(stats, {}), "there is no table"
    stats["routes"] = [a_route("list/", leases=4, held_seconds=80.0)]
    told = "(of this time, 1 min 18 s while statements hung, summed over connections)"
    assert page(stats, {}).splitlines()[-1] == told
    stats["pools"]["default"]["recent"]["lost_held_seconds"] = 0.0
    assert told not in page(stats, {})


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


def test_beside_the_peaks_it_says_what_they_leave_out() -> None:
    stats = full()
    stats["pools"]["default"]["peaks"] = dict.fromkeys(WINDOWS, dict.fromkeys(PEAK_KEYS, 196.0))
    lines = [
        "most     in use 196 · 196 · 196   waiting 196 · 196 · 196   in 5m · 1h · 24h",
        "         wait 3 min 16 s · 3 min 16 s · 3 min 16 s",
        "         without outages, hangs and failing connects",
    ]
    for text in (page(stats, {}), advice_page(stats)):
        told = text.splitlines()
        assert all(line in told for line in lines), text
        assert max(map(len, lines)) <= COLUMNS


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


NO_ADDRESS = "PS401 --advise: must be HOST:PORT or unix:PATH"


@pytest.mark.parametrize(
    ("address", "code", "problem"),
    [
        ("127.0.0.1:{free}", 1, "PS505 no instance answers at 127.0.0.1:{free}: "),
        ("unix:/no/such/socket", 1, "PS505 no instance answers at unix:/no/such/socket: "),
        (
            "https://127.0.0.1:8001",
            2,
            "PS401 --advise: must be HOST:PORT, http://HOST:PORT or unix:PATH, not 'https://127.0.0.1:8001'",
        ),
        ("", 2, f"{NO_ADDRESS}, not ''"),
        (
            "127.0.0.1:port",
            2,
            f"{NO_ADDRESS}, not '127.0.0.1:port'\n  → for example --advise 127.0.0.1:8001",
        ),
        ("8201", 2, f"{NO_ADDRESS}, not '8201'\n  → use 127.0.0.1:8201"),
        ("::1:8201", 2, f"{NO_ADDRESS}, not '::1:8201'\n  → use [::1]:8201"),
        ("http://127.0.0.1:port", 2, "PS401 --advise: "),
    ],
)
def test_advise_without_an_instance(address: str, code: int, problem: str) -> None:
    free = free_port()
    done = advise(address.format(free=free))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(problem.format(free=free))
    assert "\n  → " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("greeting", "problem"),
    [
        (
            b"d\x00\x00\x00\x0a5.5.5-10.11.19-MariaDB\x00\x1b[31m",
            "something else answers at {}, and",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something else answers at {}, and not in HTTP\n  → give the"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 70000, "something else answers at {}, and not in HTTP"),
        (b"", "no instance answers at {}: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "no instance answers at {}: "),
    ],
)
def test_advise_asks_who_speaks_otherwise(greeting: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = advise(address)
        thread.join()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"PS505 {problem.format(address)}")
    assert done.stderr.replace("\n", "").isprintable()


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
