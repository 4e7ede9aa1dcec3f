"""What test_costs.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.test import RequestFactory

from pooled_serve.status.scoreboard import Scoreboard
from support.inside import one, patch, run


def calls(function: Callable[[], object], *where: str) -> int:
    """How many Python functions of these files it calls."""
    count = 0

    def profiler(frame: Any, event: Any, arg: Any) -> None:
        nonlocal count
        file = frame.f_code.co_filename
        count += event == "call" and any(name in file for name in where)

    sys.setprofile(profiler)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def a_request_with_a_query_makes_few_calls_of_ours_and_the_driver() -> int:
    def request() -> None:
        request_started.send(None)
        one("SELECT %s", 1)
        request_finished.send(None)
        patch.end_request()

    request()  # in the first the server is asked what it can do
    request()
    assert "opentelemetry" not in sys.modules, "a project that does not trace pays nothing"
    return calls(request, "pooled_serve", "pymysql")


def a_route_is_counted_in_few_calls_and_in_none_without_a_status_page() -> list[int]:
    handler = WSGIHandler()
    environ = RequestFactory().get("/one").environ
    start_response: Any = lambda *args: None  # noqa: E731

    def request() -> None:
        patch.begin_request(SimpleNamespace(method="GET", path="/one"))
        handler(environ, start_response).close()
        patch.end_request()

    request()
    request()
    without, of_routes = calls(request, "pooled_serve"), calls(request, "/routes.py")
    scoreboard = Scoreboard()
    slot = scoreboard.allocate() or 0
    patch.join_scoreboard(partial(scoreboard.pool_row, slot), scoreboard.route_table(slot), {})
    request()
    found = [of_routes, calls(request, "pooled_serve") - without]
    leases = {row[:2]: row.numbers[0] for row in scoreboard.read_routes()[slot]}
    assert leases == {("outside requests", ""): 4, ("one", "GET"): 2}, "what was before has none"
    return found


def rows_and_columns_cost_no_calls() -> list[int]:
    def select(rows: int, columns: int) -> int:
        sql = "SELECT " + ", ".join(f"{n} AS a{n}, '{n}' AS b{n}" for n in range(columns))
        sql += " UNION ALL ".join([""] + [sql] * (rows - 1))
        run(sql)
        return calls(lambda: run(sql), "pymysql", "pooled_serve")

    return [select(1, 2), select(1, 22), select(20, 2), select(100, 2), select(100, 22)]


def a_date_costs_one_call() -> float:
    def select(rows: int) -> int:
        row = "SELECT TIMESTAMP'2024-01-02 03:04:05.5', DATE'2024-01-02'"
        sql = " UNION ALL ".join([row] * rows)
        run(sql)
        return calls(lambda: run(sql), "pymysql", "pooled_serve", "MySQLdb", "re/")

    return (select(30) - select(10)) / 20
