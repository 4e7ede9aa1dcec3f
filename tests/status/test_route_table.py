"""The table of routes of one worker: the busiest have rows, and no sum ever shrinks."""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooled_serve.status import routes as module
from pooled_serve.status.instance_metrics import ROUTE_HELD, ROUTE_LEASES, ROUTE_LONGEST, ROUTE_WAIT
from pooled_serve.status.routes import (
    LEAD,
    MAX_KNOWN,
    MAX_ROUTES,
    OTHER,
    OTHER_METHOD,
    TABLE_BYTES,
    RouteTable,
    as_routes,
)
from support.processes import forked
from support.torture import torture


def memory() -> mmap.mmap:
    return mmap.mmap(-1, TABLE_BYTES)


def sums(table: RouteTable) -> dict[str, list[float]]:
    """What the rows say, by route."""
    rows = table.read()
    assert len({(row.route, row.method) for row in rows}) == len(rows)
    return {row.route: row.numbers for row in rows}


def total(table: RouteTable, number: int = ROUTE_HELD) -> float:
    return sum(numbers[number] for numbers in sums(table).values())


def test_a_route_has_what_was_counted_for_it() -> None:
    table = RouteTable(memory(), 0)
    for seconds in (0.25, 1.0, 0.5):
        table.usage("shop/<slug:slug>/", "GET").returned(seconds)
    table.usage("shop/<slug:slug>/", "GET").waited(2.0, served=True)
    table.usage("shop/<slug:slug>/", "GET").waited(4.0, served=False)
    table.usage("shop/<slug:slug>/", "GET").requested(statements=7)
    table.usage("shop/<slug:slug>/", "GET").idled(0.75)
    table.usage("", "GET").returned(3.0)
    table.outside.returned(0.125)
    assert as_routes(table.read()) == [
        {
            "route": route,
            "method": method,
            "leases_total": leases,
            "held_seconds_total": held,
            "waited_total": waited,
            "wait_seconds_total": wait,
            "longest_held_seconds": longest,
            "requests_total": requests,
            "statements_total": statements,
            "idle_seconds_total": idle,
        }
        for route, method, leases, held, waited, wait, longest, requests, statements, idle in (
            ("", "GET", 1, 3.0, 0, 0.0, 3.0, 0, 0, 0.0),
            ("shop/<slug:slug>/", "GET", 3, 1.75, 1, 6.0, 1.0, 1, 7, 0.75),
            ("outside requests", "", 1, 0.125, 0, 0.0, 0.125, 0, 0, 0.0),
        )
    ]


def test_workers_are_summed_and_the_longest_is_the_longest_of_all() -> None:
    tables = [RouteTable(memory(), 0) for _ in range(3)]
    for seconds, table in enumerate(tables, start=1):
        table.usage("a", "GET").returned(seconds)
        table.usage(f"b{seconds}", "GET").returned(1.5)
    found = as_routes(row for table in tables for row in table.read())
    assert [route["route"] for route in found] == ["a", "b1", "b2", "b3"]
    assert found[0]["held_seconds_total"] == 6
    assert found[0]["longest_held_seconds"] == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 3 * MAX_ROUTES), st.integers(1, 1000)), min_size=1, max_size=800
    ),
    st.integers(1, 400),
)
def test_no_sum_shrinks_and_none_is_wrong(uses: list[tuple[int, int]], lasts: int) -> None:
    shared = memory()
    table = RouteTable(shared, 0)
    held = other = 0.0
    waits = 0.0
    longest = 0.0
    for n, (number, seconds) in enumerate(uses):
        if n % lasts == lasts - 1:
            table = RouteTable(shared, 0)  # of the next worker
        usage = table.usage(f"route {number}", "GET")
        usage.returned(seconds)
        usage.waited(seconds / 2, served=True)
        held += seconds
        waits += seconds / 2
        longest = max(longest, seconds)
        if n % 50 == 49 or n == len(uses) - 1:
            now = sums(table)
            assert total(table) == pytest.approx(held)
            assert total(table, ROUTE_WAIT) == pytest.approx(waits)
            assert total(table, ROUTE_LEASES) == n + 1
            assert max(numbers[ROUTE_LONGEST] for numbers in now.values()) == longest
            now_other = now.get(OTHER, [0.0] * 5)[ROUTE_HELD]
            assert now_other >= other - 1e-6
            assert all(min(numbers) >= 0 for numbers in now.values())
            other = now_other


def test_the_busiest_have_rows() -> None:
    chance = random.Random(1)
    table = RouteTable(memory(), 0)
    used: Counter[str] = Counter()
    for _ in range(20_000):
        # The first ones to come are not those that come most often.
        route = f"{int(chance.paretovariate(0.7)) % 300}"
        used[route] += 1
        table.usage(route, "GET").returned(1.0)
    with_row = sums(table).keys() - {OTHER}
    assert len(with_row) == MAX_ROUTES
    least = min(used[route] for route in with_row)
    assert max(used[route] for route in used.keys() - with_row) <= LEAD * least


def test_a_route_that_becomes_busy_takes_the_place_of_an_idle_one() -> None:
    table = RouteTable(memory(), 0)
    for n in range(MAX_ROUTES):
        table.usage(f"{n}", "GET").returned(10.0 + n)
    new = table.usage("new", "POST")
    new.returned(10.0)
    assert "new" not in sums(table)
    assert sums(table)[OTHER][ROUTE_HELD] == 10.0
    new.returned(10.0)
    now = sums(table)
    assert "0" not in now
    # There was room for ten seconds: the others stay where they were counted.
    assert now["new"][ROUTE_HELD] == 10.0
    assert now[OTHER][ROUTE_HELD] == 20.0
    assert now["new"][ROUTE_LONGEST] == 10.0
    new.returned(5.0)
    assert sums(table)["new"][ROUTE_HELD] == 15.0
    assert sums(table)[OTHER][ROUTE_HELD] == 20.0


def test_the_next_worker_goes_on_and_has_its_own_busiest() -> None:
    shared = memory()
    with forked(lambda: RouteTable(shared, 0).usage("a", "GET").returned(100.0)):
        pass
    table = RouteTable(shared, 0)
    table.usage("a", "GET").returned(1.0)
    assert sums(table)["a"][ROUTE_HELD] == 101.0
    for n in range(MAX_ROUTES - 1):
        table.usage(f"{n}", "GET").returned(2.0)
    table.usage("new", "GET").returned(1.5)
    assert "a" not in sums(table), "a new release may have other routes"
    assert sums(table)["new"][ROUTE_HELD] == 1.5
    assert total(table) == 101.0 + (MAX_ROUTES - 1) * 2.0 + 1.5


def test_routes_without_end_do_not_fill_the_memory() -> None:
    table = RouteTable(memory(), 0)
    for n in range(10 * MAX_KNOWN):
        table.usage(f"{n}", "GET").returned(1.0)
        assert len(table._known) <= MAX_KNOWN
    assert total(table) == 10 * MAX_KNOWN
    for n in range(10 * MAX_KNOWN):
        table.usage("a" * 200 + f"{n}", "GET").returned(1.0)
        assert len(table._known) <= MAX_KNOWN
    assert total(table) == 20 * MAX_KNOWN
    assert len(table._placed) == MAX_ROUTES
    assert table._placed.keys() <= set(table._known.values())


@given(st.text(max_size=300), st.text(max_size=20))
def test_any_name_comes_back_as_far_as_it_fits(route: str, method: str) -> None:
    table = RouteTable(memory(), 0)
    for _ in range(2):
        table.usage(route, method).returned(1.0)
    table.usage(route + "/", method)  # it may be the same, as far as there is space
    ((name, numbers),) = sums(table).items()
    assert route.startswith(name)
    assert name == route or len(route.encode()) > 160
    assert numbers[ROUTE_HELD] == 2
    assert table.read()[0].method in (method, OTHER_METHOD)


def test_methods_that_clients_make_up_are_one() -> None:
    table = RouteTable(memory(), 0)
    for method in ("GET", "BREW", "WHEN", "", "get"):
        table.usage("pot", method).returned(1.0)
    assert Counter(row.method for row in table.read()) == {"GET": 1, OTHER_METHOD: 1}


@torture
def test_a_reader_never_sees_rows_on_the_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ATTEMPTS", 1_000_000)  # a busy machine may halt it there
    shared = memory()

    def watch() -> None:
        table, last, moves = RouteTable(shared, 0), 0.0, 0
        while moves < 100:
            before = table._sequence[0]
            now = total(table, ROUTE_LEASES)
            assert now >= last
            last = now
            moves += table._sequence[0] != before
        os._exit(0)

    pid = os.fork()
    if pid == 0:
        try:
            watch()
        finally:
            os._exit(1)
    table, ended, n = RouteTable(shared, 0), 0, 0
    while not ended:
        n += 1
        for i in range(MAX_ROUTES):
            table.usage(f"{n % 2}/{i}", "GET").returned(float(n))
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0


def test_a_worker_that_was_killed_while_it_moved_rows_delays_nobody_for_long() -> None:
    shared = memory()
    table = RouteTable(shared, 0)
    table.usage("a", "GET").returned(1.0)
    table._begin_move()
    assert total(table) == 1.0
    table.end_move()
    assert table._sequence[0] % 2 == 0
    RouteTable(shared, 0).end_move()
    assert table._sequence[0] % 2 == 0


def test_a_lease_costs_few_calls() -> None:
    table = RouteTable(memory(), 0)
    usage = table.usage("a", "GET")
    calls = 0

    def profiler(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profiler)
    try:
        usage.returned(1.0)
    finally:
        sys.setprofile(None)
    assert calls <= 2, "itself, and the end of the count"


def test_a_table_is_whole_words() -> None:
    assert TABLE_BYTES % 8 == module._ROW_BYTES % 8 == module._TEXT.size % 8 == 0
    assert os.sysconf("SC_PAGE_SIZE") * 4 >= TABLE_BYTES, "so many pages of memory for a worker"
