"""More requests than the database can serve: all are answered, and the log says why."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.client import gate
from support.load import Hammer, hammer
from support.log_lines import EARLY, REFUSED, RELIEF
from support.log_lines import refused as told_refused
from support.processes import wait_until
from support.site import SLACK, SOON_CALM, Site
from support.torture import torture

StartSite = Callable[..., Site]


@torture
@pytest.mark.timing
def test_at_twice_the_capacity_most_of_it_is_answered_while_users_wait(site: StartSite) -> None:
    # Four connections at a fifth of a second each serve 20 requests a second. First come, first
    # served, all would wait for nearly two seconds. Few enough for a busy machine to do its part.
    capacity, patience, seconds, settled = 20, 1.0, 20, 5
    shop = site("--pool-timeout", "2", cap=4)
    path = "/run?sql=SELECT+SLEEP(0.2)"
    with Hammer(
        shop.server.port, path, clients=100, every=100 / (2 * capacity), seconds=seconds
    ) as load:
        wait_until(lambda: shop.pool()["shed_total"] > 0)
        answers = [shop.run("SELECT SLEEP(0.2)") for _ in range(20)]
        outcomes = load.finish()
    refused = [answer for answer in answers if answer.status == 503]
    assert refused, "about half of them"
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert {outcome.result for outcome in outcomes} == {200, 503}
    served = [one for one in outcomes if one.result == 200 and settled <= one.at < seconds]
    # A busy machine serves fewer; but those who wait for their whole time are never in time.
    assert len(served) >= 0.4 * capacity * (seconds - settled)
    assert sum(one.seconds < patience for one in served) >= 0.8 * len(served)

    stats = shop.pool()
    assert 0 < stats["shed_total"] <= stats["timeouts_total"]
    got_503 = len(refused) + sum(outcome.result == 503 for outcome in outcomes)
    shop.server.wait_until_log(lambda log: told_refused(log) == got_503)
    said = list(EARLY.finditer(shop.server.log))
    assert said
    assert max(int(line["in_use"]) for line in said) == shop.cap
    assert {(line["idle"], line["cap"], line["holder"]) for line in said} == {
        ("0", "4", "GET /run")
    }
    assert "Traceback" not in shop.server.log
    shop.assert_whole()


@torture
@pytest.mark.timing
def test_who_wants_to_wait_is_answered_by_the_deadline(site: StartSite) -> None:
    # Two connections at a tenth of a second each serve 20 requests a second. Of 40 clients, half
    # are served at once or wait for up to a second, and the others are told at its end.
    timeout, seconds = 1, 4
    shop = site("--pool-timeout", str(timeout), "--pool-overload", "wait", cap=2)
    path = "/run?sql=SELECT+SLEEP(0.1)"
    outcomes = hammer(shop.server.port, path, clients=40, seconds=seconds)
    took = max(outcome.at + outcome.seconds for outcome in outcomes)
    served = [outcome for outcome in outcomes if outcome.result == 200]
    refused = [outcome for outcome in outcomes if outcome.result == 503]
    assert len(served) + len(refused) == len(outcomes)
    assert max(outcome.seconds for outcome in outcomes) < timeout + SLACK
    assert min(outcome.seconds for outcome in refused) >= timeout, "refused before its deadline"
    # The pool was busy all the time: nearly 20 a second, less what a busy machine takes.
    assert len(served) >= seconds * 20 / 4

    # One that halts the clients for long enough makes the pressure end twice.
    shop.server.wait_until_log(lambda log: told_refused(log) == len(refused))
    lines = [line for line in shop.server.log.splitlines() if " pool 'default'" in line]
    assert RELIEF.search(lines[-1])
    told = [line for line in lines if not RELIEF.search(line)]
    # Of each kind a line at once, one a second later, and one after ten more.
    assert 2 <= len(told) <= 2 * (2 + took // 10)
    said = [REFUSED.search(line) for line in told if "503" in line]
    assert all(said), lines
    assert max(int(match["in_use"]) for match in said if match) == shop.cap
    assert "Traceback" not in shop.server.log
    shop.assert_whole()


def test_a_refusal_says_when_to_come_back_and_the_log_says_who_holds(site: StartSite) -> None:
    shop = site(cap=2, views=SOON_CALM)
    with ThreadPoolExecutor(2) as threads:
        with gate(shop.database) as sql:
            began = time.monotonic()
            holders = [threads.submit(shop.run, sql) for _ in range(2)]
            wait_until(lambda: shop.pool()["acquired_total"] == 2)
            shop.server.get("/tune?timeout=1")
            answer = shop.run("SELECT 1")
            took = time.monotonic() - began
        assert [holder.result().status for holder in holders] == [200] * 2
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.seconds >= 1
    log = shop.server.wait_for_log(RELIEF)
    (said,) = REFUSED.finditer(log)
    assert said.group("timeout", "in_use", "idle", "waiting", "cap") == ("1", "2", "0", "1", "2")
    assert said["holder"] == "GET /run"
    assert 1.0 <= float(said["held"]) <= took + 0.1
    shop.assert_whole()
