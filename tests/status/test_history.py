"""Five minutes by the second, and peaks of a day, in memory that no worker's end takes away."""

from __future__ import annotations

import os
import random
import time
from bisect import bisect_left
from typing import Any

import pytest

from pooled_serve.pool import metrics
from pooled_serve.status.figures import RECENT_SECONDS, quantile, recent
from pooled_serve.status.history import MAX_POOLS, History
from pooled_serve.status.instance_metrics import ROUTE_METRICS
from pooled_serve.status.pool_history import BYTES_PER_POOL, KEPT_SECONDS
from pooled_serve.status.route_history import ROUTES_SECONDS
from pooled_serve.status.routes import OTHER, RouteUse, as_routes
from pooled_serve.status.scoreboard import Snapshot
from pooled_serve.status.stats import as_stats, with_history
from support.processes import forked


class Pool:
    """One worker's pool, which a test lets count."""

    def __init__(self, alias: str = "default", slot: int = 1) -> None:
        self.alias, self.slot = alias, slot
        self.row = [0.0] * metrics.ROW_LENGTH

    def snapshot(self) -> Snapshot:
        retired = [0.0] * metrics.FIRST_GAUGE
        return Snapshot(self.slot, 1, self.alias, "", "", list(self.row), retired)

    def count(self, **changes: float) -> None:
        for name, value in changes.items():
            if name == "in_use":  # as the pool's gauges: that is the least
                self.count(most_in_use=value)
            index = getattr(metrics, name.upper())
            is_counter = index < metrics.FIRST_GAUGE
            self.row[index] = self.row[index] + value if is_counter else value


def watch(history: History, pools: list[Pool], *seconds: float) -> None:
    for second in seconds:
        assert history.sample(lambda: [pool.snapshot() for pool in pools], second)


def test_a_burst_between_two_samples_is_in_the_peak_and_not_in_the_chart() -> None:
    """Else a smaller cap would be advised, which those of the burst would wait for."""
    history, pool = History(), Pool()
    pool.count(in_use=2)
    pool.count(most_in_use=9)
    watch(history, [pool], 1000, 1001)
    peaks = history.peaks("default", 1001)["1h"]
    assert (peaks["in_use"], peaks["in_use_worker"]) == (9, 9)
    assert history.charts(1001)["pools"]["default"]["in_use"][-1] == 2


def test_peaks_begin_anew_with_other_bounds() -> None:
    """Advice would say that who has waited for the old one had waited for the new one."""
    history, pool = History(), Pool()
    pool.count(in_use=4, waiting=9, waited=20)
    watch(history, [pool], *range(1000, 1030))
    assert history.peaks("default", 1029)["24h"]["waiting"] == 9
    pool.count(in_use=2, waiting=0)
    history.begin_peaks_anew(1029.5)
    watch(history, [pool], *range(1030, 1034))
    for second in (1034, 1100):
        watch(history, [pool], second)
        for window in history.peaks("default", second).values():
            assert (window["in_use"], window["waiting"], window["waited"]) == (2, 0, 0)
            assert window["seconds"] == second - 1029 if second < 1035 else 6
    assert history.charts(1100)["pools"]["default"]["waiting"][-80] == 9, "the chart goes on"


def test_the_peak_of_several_workers_is_that_of_their_sum() -> None:
    history, one, two = History(), Pool(slot=1), Pool(slot=2)
    for second, (first, second_one) in enumerate([(3, 0), (2, 2), (0, 3)], start=1000):
        one.count(in_use=first)
        two.count(in_use=second_one, waiting=first)
        watch(history, [one, two], second)
    peaks = history.peaks("default", 1003.0)["5m"]
    assert (peaks["in_use"], peaks["in_use_worker"], peaks["waiting"]) == (4, 3, 3)
    assert peaks["seconds"] == 3


def test_a_peak_is_never_above_the_bound_of_the_host() -> None:
    history, one, two = History(), Pool(slot=1), Pool(slot=2)
    one.count(in_use=4)
    two.count(in_use=4)  # one of them was lent by the other, which has not counted since
    assert history.sample(lambda: [one.snapshot(), two.snapshot()], 1000, 7)
    assert history.peaks("default", 1001)["1h"]["in_use"] == 7


def test_a_second_is_noted_once_by_whoever_comes_first() -> None:
    history, pool = History(), Pool()
    watch(history, [pool], 1000.1)
    assert not history.sample(lambda: [pool.snapshot()], 1000.9)
    assert not history.sample(lambda: [pool.snapshot()], 999.9)
    assert history.sample(lambda: [pool.snapshot()], 1001.0)
    assert history.peaks("default", 1001.5)["5m"]["seconds"] == 2


def test_numbers_on_the_move_are_not_noted() -> None:
    history, pool = History(), Pool()
    assert not history.sample(lambda: None, 1000.1)
    assert history.sample(lambda: [pool.snapshot()], 1000.3), "a moment later, of the same second"


def test_what_a_killed_process_noted_stays_and_its_lock_goes() -> None:
    history, pool = History(), Pool()
    pool.count(in_use=5, acquired=7)
    held: list[Any] = []

    def write_and_hang() -> None:
        watch(history, [pool], 1000)
        held.append(history._alone())  # killed in the middle of the next one
        held[0].__enter__()

    with forked(write_and_hang):
        assert not history.sample(lambda: [pool.snapshot()], 1001), "it is being written"
    assert history.peaks("default", 1001)["24h"]["in_use"] == 5
    watch(history, [pool], 1002)
    assert history.peaks("default", 1003)["24h"]["seconds"] == 2


def test_windows_forget_after_their_time() -> None:
    history, pool = History(), Pool()
    pool.count(in_use=9, waiting=4, longest_wait=1.5)
    watch(history, [pool], 100_000)
    pool.count(in_use=1, waiting=0, longest_wait=0.0)
    watch(history, [pool], 100_001)

    def most(now: float) -> list[int]:
        return [peaks["in_use"] for peaks in history.peaks("default", now).values()]

    assert most(100_002) == [9, 9, 9]
    assert most(100_299) == [9, 9, 9]
    assert most(100_320) == [0, 9, 9], "nothing was seen since"
    assert most(103_599) == [0, 9, 9]
    assert most(103_700) == [0, 0, 9]
    assert most(186_000) == [0, 0, 9]
    assert most(188_000) == [0, 0, 0]
    watch(history, [pool], 188_001)
    assert most(188_002) == [1, 1, 1]


def test_waits_are_counted_exactly_and_occasions_by_their_beginning() -> None:
    history, pool = History(), Pool()
    second = iter(range(1000, 2000))

    def next_second(**changes: float) -> None:
        pool.count(**changes)
        watch(history, [pool], next(second))

    next_second(acquired=10)
    next_second(acquired=5, waited=2)  # between two samples: nobody waits at either
    next_second(acquired=5, waited=1)
    next_second()
    next_second(waiting=1)
    next_second(timeouts=1, waiting=0)
    next_second()
    next_second()
    next_second(timeouts=3)
    peaks = history.peaks("default", 1010)["1h"]
    assert (peaks["acquired"], peaks["waited"], peaks["refused"]) == (20, 3, 4)
    assert peaks["occasions"] == 3


def test_of_the_connections_that_were_closed_those_of_a_burst_are_counted() -> None:
    history, pool = History(), Pool()
    pool.count(opened=4)
    watch(history, [pool], 1000)
    pool.count(opened=8)
    pool.row[metrics.CLOSED["surplus"]] += 7
    pool.row[metrics.CLOSED["age"]] += 2
    watch(history, [pool], 1001, 1002)
    peaks = history.peaks("default", 1010)["1h"]
    assert (peaks["opened"], peaks["surplus"]) == (12, 7)


@pytest.mark.parametrize(("gap", "occasions"), [(1, 1), (3, 1), (4, 2)])
def test_a_wait_goes_on_while_all_workers_are_blocked(gap: int, occasions: int) -> None:
    """Nobody samples meanwhile, and they did not begin to wait anew."""
    history, pool = History(), Pool()
    pool.count(waiting=2)
    watch(history, [pool], 1000, 1001)
    watch(history, [pool], 1001 + gap, 1002 + gap)
    pool.count(waiting=0, waited=2)  # it is known from the counter alone
    watch(history, [pool], 1003 + gap, 1010 + gap)
    assert history.peaks("default", 1011 + gap)["1h"]["occasions"] == occasions


def test_a_long_gap_does_not_count_everything_again() -> None:
    history, pool = History(), Pool()
    pool.count(acquired=100)
    watch(history, [pool], 1000)
    pool.count(acquired=50)
    watch(history, [pool], 3000)
    assert history.peaks("default", 3001)["24h"]["acquired"] == 100
    pool.count(acquired=1)
    watch(history, [pool], 3001)
    assert history.peaks("default", 3001)["24h"]["acquired"] == 101


def test_charts_have_every_second_that_was_sampled() -> None:
    history, pool = History(), Pool()
    for second in range(1000, 1400):
        pool.count(in_use=second % 7, acquired=20)
        if second % 100:  # a gap
            watch(history, [pool], second)
    charts = history.charts(1399.5)
    assert len(charts["ages_seconds"]) == KEPT_SECONDS
    assert charts["ages_seconds"][-1] == 0.5
    in_use, rate = (charts["pools"]["default"][key] for key in ("in_use", "rate"))
    for age, value in zip(charts["ages_seconds"], in_use, strict=True):
        second = round(1399.5 - age)
        assert value == (second % 7 if second % 100 else None)
    assert rate[-1] == 20
    assert {value for value in rate[RECENT_SECONDS:] if value is not None} == {20}
    assert history.charts(2000)["pools"] == {}


def test_the_place_of_an_alias_that_is_gone_is_taken() -> None:
    history = History()
    pools = [Pool(f"db{i}") for i in range(MAX_POOLS + 1)]
    watch(history, pools, 1000)
    assert set(history.aliases()) == {f"db{i}" for i in range(MAX_POOLS)}
    watch(history, pools[1:], 1001 + KEPT_SECONDS)
    assert set(history.aliases()) == {f"db{i}" for i in range(1, MAX_POOLS + 1)}
    assert history.peaks("db0", 1001 + KEPT_SECONDS)["24h"]["seconds"] == 0


def test_the_memory_of_a_database_is_small() -> None:
    assert BYTES_PER_POOL < 400_000


def test_routes_are_those_of_the_last_minutes() -> None:
    history = History()

    def route(n: int, held: float) -> dict[str, Any]:
        return {
            "route": "shop/<slug:slug>/",
            "method": "GET",
            "leases_total": n,
            "held_seconds_total": held,
            "longest_held_seconds": 1.0,
        }

    (now,) = history.recent_routes([route(3, 0.5)], 1000)
    assert now["recent"] == {"leases": 3, "held_seconds": 0.5}, "all, as nothing older is known"
    for i, second in enumerate(range(1020, 1020 + 2 * ROUTES_SECONDS, 60)):
        history.sample_routes(lambda: [route(10 * i, float(i))], second)  # noqa: B023
        history.sample_routes(lambda: [route(999_999, 0.0)], second + 30)  # not every minute
    (now,) = history.recent_routes([route(100, 10.0)], 1020 + 2 * ROUTES_SECONDS - 30)
    assert now["recent"] == {"leases": 60, "held_seconds": 6.0}


def test_what_routes_have_used_lately_is_of_ten_seconds() -> None:
    history = History()

    def route(n: int) -> dict[str, Any]:
        return {"route": "shop/", "method": "GET", "leases_total": n}

    def lately(n: int, second: float) -> int:
        (now,) = history.recent_routes([route(n)], second)
        leases: int = now["lately"]["leases"]
        return leases

    for second in range(1000, 1061):
        history.sample_routes(lambda: [route(7 * second)], second)  # noqa: B023
    assert lately(7 * 1060, 1060.5) == 70
    assert lately(7 * 1060, 1065.0) == 5 * 7 + 7, "a page has the seconds of two"
    assert lately(7 * 1060, 1085.0) == 0
    assert lately(7 * 1060 + 3, 1085.0) == 3, "all workers were blocked"


def a_route(name: str, used: float, method: str = "GET") -> dict[str, Any]:
    numbers = {"leases_total": int(used), "held_seconds_total": used}
    return {"route": name, "method": method} | numbers


def used_lately(history: History, routes: list[dict[str, Any]], now: float) -> dict[str, float]:
    found = history.recent_routes(routes, now)
    return {route["route"]: route["lately"]["held_seconds"] for route in found}


def test_hundreds_of_routes_fit_on_a_page() -> None:
    numbers = random.Random(1)
    uses = [
        RouteUse(
            f"api/v1/customers/<int:pk>/orders/{i:03}/",
            "GET",
            [float(numbers.randrange(10**6)) for _ in ROUTE_METRICS],
        )
        for i in range(256)
    ]
    history, routes = History(), as_routes(uses)
    history.sample_routes(lambda: routes, 1000)
    assert history._lately.before(1001).is_whole
    assert set(used_lately(history, routes, 1001).values()) == {0.0}


def test_many_routes_are_cut_to_what_fits_and_what_is_cut_has_used_nothing() -> None:
    """As far as is known."""
    history, numbers = History(), random.Random(1)
    routes = [a_route(numbers.randbytes(80).hex(), used) for used in (1e6 - i for i in range(1000))]
    history.sample_routes(lambda: routes, 1000)
    past = history._lately.before(1001)
    assert not past.is_whole
    kept = len(past.routes)
    assert 100 < kept < 1000
    assert set(used_lately(history, routes, 1001).values()) == {0.0}
    later = [a_route(route["route"], route["held_seconds_total"] + 3) for route in routes]
    assert list(used_lately(history, later, 1003).values()) == [3.0] * kept + [0.0] * (1000 - kept)
    # One that comes on a page is known from then on.
    last = a_route(routes[-1]["route"], 2e6)
    history.sample_routes(lambda: [last, *later[:-1]], 1004)
    assert used_lately(history, [last], 1005) == {last["route"]: 0.0}
    more = a_route(last["route"], 2e6 + 5)
    assert used_lately(history, [more], 1006) == {last["route"]: 5.0}


def test_what_a_route_had_used_before_it_got_a_row_is_not_of_lately() -> None:
    history, other = History(), a_route(OTHER, 50.0, method="")
    history.sample_routes(lambda: [a_route("busy/", 99.0)], 1000)
    assert used_lately(history, [a_route("new/", 7.0)], 1001) == {"new/": 7.0}
    history.sample_routes(lambda: [a_route("busy/", 99.0), other], 1020)
    now = [a_route("slow/", 45.0), other]
    assert used_lately(history, now, 1021) == {"slow/": 0.0, OTHER: 0.0}
    history.sample_routes(lambda: now, 1022)
    assert used_lately(history, [a_route("slow/", 46.5), other], 1023)["slow/"] == 1.5


@pytest.mark.parametrize(
    ("counts", "p50"),
    [
        ([], None),
        ([0, 0], None),
        ([10], 0.0005),
        ([0, 0, 0, 0, 0, 0, 100], 0.075),
        ([0] * 14 + [9], 30.0),  # of the last bucket its lower end
    ],
)
def test_percentiles_are_those_of_prometheus(counts: list[int], p50: float | None) -> None:
    counts = counts + [0] * (15 - len(counts))
    found = quantile(0.5, counts)
    assert found == (None if p50 is None else pytest.approx(p50))


def test_lately_is_what_has_happened_since() -> None:
    pool = Pool()
    pool.count(acquired=1000, waited=500, timeouts=3)
    before = list(pool.row)
    pool.count(acquired=90, waited=9, timeouts=10, shed=4, opened=2)
    observe(pool, "WAIT", [0.2] * 19)
    observe(pool, "HELD", [0.008] * 90)
    pool.row[metrics.CLOSED["age"]] += 2
    found = recent(pool.row, before, 10.0)
    assert found["acquired_per_second"] == 9
    assert found["waited_share"] == pytest.approx(19 / 100)
    assert (found["timeouts"], found["shed"], found["opened"]) == (10, 4, 2)
    assert found["closed"] == {"age": 2}
    assert found["pinned"] == {}
    assert found["wait_p50_seconds"] < 0.001, "those who did not wait count"
    assert 0.1 < found["wait_p95_seconds"] <= 0.25
    assert 0.005 < found["held_p50_seconds"] <= 0.01


def test_what_is_said_of_nearly_all_is_true_of_them() -> None:
    """Where a percentile is but an estimate: all took two seconds."""
    pool = Pool()
    before = list(pool.row)
    pool.count(acquired=8)
    observe(pool, "HELD", [2.0] * 8)
    found = recent(pool.row, before, 10.0)
    assert found["held_mean_seconds"] == 2.0
    assert 2.0 <= found["held_p95_at_most_seconds"] <= 2.5
    assert found["wait_p95_at_most_seconds"] <= 0.001
    nothing = recent(before, before, 10.0)
    assert nothing["held_mean_seconds"] is nothing["held_p95_at_most_seconds"] is None


def observe(pool: Pool, histogram: str, durations: list[float]) -> None:
    total = getattr(metrics, f"{histogram}_SECONDS")
    for seconds in durations:
        pool.row[total] += seconds
        pool.row[total + 1 + bisect_left(metrics.BUCKET_BOUNDS_SECONDS, seconds)] += 1


def test_no_percentile_is_above_the_longest() -> None:
    """Of waits that ended at a timeout of ten seconds, and so in the bucket that ends at 30."""
    history, pool = History(), Pool()
    watch(history, [pool], 1000)
    before = list(pool.row)
    observe(pool, "WAIT", [10.0004] * 8)
    observe(pool, "HELD", [10.5, 10.2])
    pool.count(timeouts=8, longest_wait=10.0004)
    watch(history, [pool], 1001)
    pool.count(longest_wait=0.0)
    watch(history, [pool], 1004)
    found = recent(pool.row, before, 4.0, history.lately("default", 1005), 1005)
    assert 10 <= found["wait_p50_seconds"] <= found["wait_p95_seconds"] <= 10.0004
    assert 10 <= found["held_p50_seconds"] <= found["held_p95_seconds"] <= 10.7
    charts = history.charts(1004)["pools"]["default"]
    assert charts["wait_p95"][-1] == round(found["wait_p95_seconds"], 5)
    assert charts["held_p95"][-1] == round(found["held_p95_seconds"], 5)
    # The average is exact, and a bound is one: the end of a bucket, or the longest of all.
    assert found["held_mean_seconds"] == pytest.approx(10.35)
    assert found["wait_p95_at_most_seconds"] == 10.0004
    known = recent(pool.row, before, 4.0, longest_hold=10.5)
    assert known["held_p95_at_most_seconds"] == 10.5
    assert known["wait_p95_at_most_seconds"] <= 10.01
    # A worker was blocked, and the longest is not among the samples.
    missed = recent(pool.row, before, 4.0, history.lately("default", 1013.5), 1013.5)
    assert 10 <= missed["wait_p95_seconds"] <= 10.01


def test_who_waits_now_counts_among_those_who_have_to() -> None:
    pool = Pool()
    pool.count(acquired=12, waiting=8)
    assert recent(pool.row, None, 10.0)["waited_share"] == 0.4


def test_no_more_than_all_have_to() -> None:
    """The row of an alias that a request has added goes with its worker, and so do its counts."""
    pool = Pool()
    pool.count(acquired=100, waited=40)
    before = list(pool.row)
    pool.count(acquired=-98, waited=10, timeouts=1)
    assert recent(pool.row, before, 10.0)["waited_share"] == 1.0


def test_it_is_known_when_the_database_was_last_lost() -> None:
    history, pool = History(), Pool()
    for second in range(1000, 1020):
        pool.count(reachable=metrics.NO if second in (1003, 1004) else metrics.YES)
        watch(history, [pool], second)
    ago = [
        recent(pool.row, None, 10.0, history.lately("default", now), now)["lost_ago_seconds"]
        for now in (1013.5, 1015.5, 1016.5, 1019.5)
    ]
    assert ago == [9.5, 11.5, None, None], "as long as the oldest number of now may have it"


def test_a_sample_is_cheap() -> None:
    """Call counts: all that is done while a second is not over is one look at a number."""
    history, pool = History(), Pool()
    now = time.monotonic()
    watch(history, [pool], now)
    reads: list[int] = []

    def read() -> list[Snapshot]:
        reads.append(os.getpid())
        return []

    for _ in range(100):
        history.sample(read, int(now) - 1)
    assert reads == []


def test_workers_that_lend_each_other_connections_never_seem_to_have_more_than_the_host() -> None:
    retired = [0.0] * metrics.FIRST_GAUGE
    snapshots = []
    for slot in (1, 2):
        row = metrics.new_row()
        row[metrics.IN_USE] = row[metrics.MOST_IN_USE] = 7.0
        snapshots.append(Snapshot(slot, slot, "default", "", "", list(row), retired))
    for hosts, in_use in (({}, 14), ({"default": {"limit": 10}}, 10)):
        stats = {"uptime_seconds": 5.0, "hosts": hosts, "routes": []}
        stats |= as_stats(snapshots, {1: 1, 2: 2}, 100.0)
        told = with_history(stats, snapshots, History(), 100.0)
        assert told["pools"]["default"]["in_use"] == in_use
        assert told["pools"]["default"]["most_in_use"] == in_use
        assert [worker["pools"]["default"]["in_use"] for worker in told["workers"]] == [7, 7]


@pytest.mark.parametrize(("phase", "asked"), [(0.1, 0.05), (0.1, 0.95), (0.9, 0.05), (0.9, 0.95)])
def test_the_last_ten_seconds_are_ten(phase: float, asked: float) -> None:
    """Whenever in a second the samples are taken, and whenever somebody asks."""
    history, pool = History(), Pool()
    watch(history, [pool], *(second + phase for second in range(1000, 1030)))
    before = history.before("default", 1029 + asked)
    assert before is not None
    assert round(1029 + asked - before.at) == RECENT_SECONDS
