"""Spans of a traced project's requests, with OpenTelemetry's own packages."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status.traces import CONNECT, POOL_NAME, QUEUE_LENGTH, WAIT
from support.client import gate
from support.processes import wait_until
from support.site import Site
from support.status import StartSite

VIEWS = Path(__file__).with_name("traces_views.py")
TRACED = {"views": VIEWS, "django": "import traces_setup"}
FOLDER = ("--pythonpath", str(VIEWS.parent))


def told(site: Site, *names: str) -> list[dict[str, Any]]:
    """The spans with these names, in the order in which they ended."""
    spans = site.server.get("/told").json()
    return [span for span in spans if span["name"] in names]


def test_a_connect_and_a_long_wait_are_spans_of_their_request(site: StartSite) -> None:
    it = site(*FOLDER, cap=1, **TRACED)
    assert it.server.get("/ask").status == 200
    (connect,) = told(it, CONNECT)
    assert connect["parent"] == "GET ask"
    assert connect["attributes"] == {POOL_NAME: "default", QUEUE_LENGTH: 0}
    assert 0 < connect["seconds"] < 10
    assert connect["ok"]
    assert told(it, WAIT) == []
    with ThreadPoolExecutor(3) as threads:
        with gate(it.database) as statement:
            first = threads.submit(it.run, statement)
            wait_until(lambda: it.pool()["in_use"] == 1)
            second = threads.submit(it.server.get, "/ask?seconds=0.1")
            wait_until(lambda: it.pool()["waiting"] == 1)
            third = threads.submit(it.server.get, "/ask")
            wait_until(lambda: it.pool()["waiting"] == 2)
            time.sleep(0.1)
        assert [answer.result().status for answer in (first, second, third)] == [200] * 3
    waits = told(it, WAIT)
    assert [wait["parent"] for wait in waits] == ["GET ask"] * 2
    assert [wait["attributes"] for wait in waits] == [
        {POOL_NAME: "default", QUEUE_LENGTH: ahead} for ahead in (0, 1)
    ]
    assert all(0.05 < wait["seconds"] < 10 for wait in waits)
    assert len(told(it, CONNECT)) == 1
    it.assert_whole()


def test_what_fails_says_so(site: StartSite) -> None:
    it = site(*FOLDER, cap=1, **TRACED)
    it.give_up_after(1)
    with ThreadPoolExecutor(1) as threads:
        with gate(it.database) as statement:
            slow = threads.submit(it.run, statement)
            wait_until(lambda: it.pool()["in_use"] == 1)
            assert it.server.get("/ask").status == 503
        assert slow.result().status == 200
    (wait,) = told(it, WAIT)
    assert not wait["ok"]
    assert wait["attributes"]["error.type"] == "PoolTimeout"
    assert 1 <= wait["seconds"] < 10


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_nothing_is_lost_when_a_greenlet_is_killed_while_its_spans_are_sent(
    site: StartSite, mode: str
) -> None:
    it = site(*FOLDER, "--pool-mode", mode, cap=2, **TRACED)
    assert it.server.get("/killed").status == 200
    assert told(it, WAIT)
    assert told(it, CONNECT)
    it.assert_whole()


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_the_instrumentation_of_pymysql_sees_statements_on_leases(
    site: StartSite, mode: str
) -> None:
    it = site(*FOLDER, "--pool-mode", mode, **TRACED)
    connection = it.server.get("/ask").text
    assert it.server.get("/ask").text == connection, "nothing makes a connection unfit for others"
    statements = told(it, "SELECT")
    assert [statement["parent"] for statement in statements] == ["GET ask"] * 2
    said = statements[0]["attributes"]
    assert it.database.name in said.values()
    assert it.database.port in said.values()
    assert it.database.password not in str(told(it, "SELECT", CONNECT))
    assert it.server.get("/write").text == "2"
    assert len(told(it, "CREATE", "INSERT")) >= 2
    assert it.pool_at_rest()["closed_total"] == {}
    it.assert_whole()
