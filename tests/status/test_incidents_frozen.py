"""A server that takes statements and answers none, and outages: what the page says meanwhile and
afterwards, and whether the instance is ready. For real, under load and without."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pooled_serve.pool.base import STALE_SECONDS
from pooled_serve.status.reachability import STUCK_SECONDS
from support.client import gate
from support.load import Hammer
from support.log_lines import SILENT
from support.netproxy import NetProxy
from support.processes import wait_until
from support.servers import Server
from support.site import VIEWS
from support.status import StartStatus, Status
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")

INCIDENTS = Path(__file__).with_name("incidents_views.py")

WRONG = {"slow view", "overload", "too small a pool", "slow connects", "leak", "one busy worker"}
"""What an outage is not: each has a remedy that is none of an outage's."""


class Seen(NamedTuple):
    """What an instance said of itself, between two moments; of its pool, or that all is well."""

    asked: float
    at: float
    name: str
    text: str
    ready: bool


class Watch:
    """Asks an instance again and again."""

    def __init__(self, it: Status) -> None:
        self.it = it
        self.seen: list[Seen] = []
        self.late = 0.0
        """Seconds for which this machine has kept the test or, by their own count, the workers from
        running, at most: nobody notices anything meanwhile."""

    def look(self) -> Seen:
        asked = time.monotonic()
        stats = self.it.stats()
        ready = self.it.get("/readyz").status == 200
        delays = [worker["loop_delay_seconds"] or 0.0 for worker in stats["workers"]]
        self.late = max(self.late, *delays)
        # What it says of workers, such as that one lacks a processor, is true of this machine.
        said = [each for each in stats["findings"] if each["pool"]]
        name, text = (said[0]["name"], said[0]["text"]) if said else ("all is well", "All is well")
        self.seen.append(Seen(asked, time.monotonic(), name, text, ready))
        return self.seen[-1]

    def until(self, end: float) -> None:
        while time.monotonic() < end:
            self.look()
            paused = time.monotonic()
            time.sleep(0.1)
            self.late = max(self.late, time.monotonic() - paused - 0.1)

    def between(self, begin: float, end: float) -> list[Seen]:
        """What was asked and answered in that time."""
        return [each for each in self.seen if begin <= each.asked and each.at < end]

    def until_well(self) -> None:
        """And for a while after that: nothing comes back."""
        end = time.monotonic() + 60
        while self.look().name != "all is well":
            assert time.monotonic() < end, self.story()
            time.sleep(0.1)
        self.until(time.monotonic() + 5)

    def story(self) -> str:
        """What was said, and when that began."""
        told = [each for i, each in enumerate(self.seen) if not i or self._is_news(i)]
        return "\n".join(f"{e.at - self.seen[0].at:.1f} {e.ready} {e.text}" for e in told)

    def _is_news(self, i: int) -> bool:
        before, now = self.seen[i - 1], self.seen[i]
        return (before.name, before.ready) != (now.name, now.ready)

    def names(self, begin: float = 0.0, end: float = float("inf")) -> list[str]:
        """What was said in that time, in its order."""
        said = [each.name for each in self.between(begin, end)]
        return [name for i, name in enumerate(said) if not i or said[i - 1] != name]


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def down(server: Server) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def load(it: Status, clients: int, every: float = 0.0, *, stop: bool = True) -> Iterator[None]:
    """
    :param stop: let each client end after its request, rather than hang up at once.
    """
    options: dict[str, Any] = {"seconds": 300, "timeout": 60, "every": every}
    with Hammer(it.site.server.port, "/quick", clients=clients, **options) as running:
        yield
        if stop:
            running.stop()
            running.finish()


StartShop = Callable[..., tuple[Status, Server]]


@pytest.fixture
def shop(status: StartStatus, start_mariadb: Callable[..., Server]) -> StartShop:
    """A shop with a server of its own, whose workers have a pool."""

    def start(*args: str, workers: int = 1, cap: int = 4) -> tuple[Status, Server]:
        server = start_mariadb()
        options = ("-w", str(workers), "--pool-size", str(cap), *args)
        it = status(*options, views=(VIEWS, INCIDENTS), cap=cap, database=server.create_database())
        it.wait_for(lambda stats: len(stats["workers"]) == workers)
        for pid in it.site.server.worker_pids():
            with it.site.server.only(pid):
                assert it.site.server.get("/quick").status == 200
        return it, server

    return start


def advised(it: Status) -> str:
    return " ".join(each["text"] for each in it.stats()["advice"])


@torture
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("more", [0, 24])
def test_a_frozen_server_under_load(shop: StartShop, workers: int, more: int) -> None:
    """With fewer requests than connections, so that nobody waits for one, and with many more."""
    it, server = shop(workers=workers)
    watch = Watch(it)
    with load(it, 3, every=0.5):
        wait_until(lambda: it.pool()["acquired_total"] > 20)
        watch.until(time.monotonic() + 2)
        with frozen(server), ExitStack() as crowd:
            began = time.monotonic()
            if more:
                crowd.enter_context(load(it, more, every=0.5, stop=False))
            watch.until(began + 20)
        thawed = time.monotonic()
        ready_after = wait_until(lambda: watch.look().ready and time.monotonic() - thawed)
        watch.until_well()
    late = watch.late
    assert watch.names(0, began) == ["all is well"]
    assert "stuck server" in watch.names(began, began + 4 + late), watch.story()
    assert watch.names(began + 4 + late, thawed) == ["stuck server"], watch.story()
    told = watch.between(began + 4, thawed)
    assert f"127.0.0.1:{server.port}" in told[-1].text
    assert "has answered nothing for " in told[-1].text
    # A hiccup is no reason to take a host out of service, and 20 s are one.
    assert all(each.ready for each in watch.between(0, began + STUCK_SECONDS - 1))
    assert not any(each.ready for each in watch.between(began + STUCK_SECONDS + 3 + late, thawed))
    assert ready_after < 2.5 + late
    assert watch.names(thawed + 1 + late) == ["outage over", "all is well"], watch.story()
    over = [each.at for each in watch.seen if each.name == "outage over"]
    assert over[-1] - thawed > 10, "as long as the numbers of the last ten seconds have it"
    assert it.pool()["outages_total"] == workers
    assert "Too small a pool" not in advised(it)


@torture
@pytest.mark.parametrize("every", [0.0, 2.0], ids=["cap_full", "light"])
def test_each_worker_of_a_host_with_a_bound_notices_in_time(shop: StartShop, every: float) -> None:
    """One of them at a time may have a connection more to ask the server with."""
    it, server = shop("--max-per-host", "4", "--max-outstanding", "4", workers=2, cap=2)
    watch = Watch(it)

    def are_stuck() -> bool:
        watch.look()
        return all(worker["pools"]["default"]["stuck"] for worker in it.stats()["workers"])

    with load(it, 12, every=every, stop=False):
        wait_until(lambda: it.pool()["acquired_total"] > 20)
        with frozen(server):
            began = time.monotonic()
            wait_until(are_stuck)
            noticed = time.monotonic() - began
            wait_until(lambda: not watch.look().ready)
            lost = time.monotonic() - began
            watch.until(began + 8)
        wait_until(lambda: watch.look().ready)
    assert noticed < 4 + every + watch.late, watch.story()
    most = STUCK_SECONDS + 3 + every + watch.late
    assert STUCK_SECONDS - 1 < lost < most, watch.story()
    assert not WRONG & {*watch.names(began + 1.5, began + 8)}, watch.story()


@torture
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_said_of_a_hiccup_of_three_seconds_is_true(shop: StartShop, workers: int) -> None:
    it, server = shop(workers=workers)
    watch = Watch(it)
    with load(it, 3, every=0.5):
        wait_until(lambda: it.pool()["acquired_total"] > 20)
        with frozen(server):
            began = time.monotonic()
            watch.until(began + 3)
        thawed = time.monotonic()
        watch.until_well()
    assert not WRONG & {*watch.names()}, watch.story()
    after = watch.names(thawed + 1 + watch.late)
    assert after == ["outage over", "all is well"], watch.story()
    assert all(each.ready for each in watch.seen), "nobody takes a host out of service for that"
    assert it.pool()["outages_total"] == 0
    it.site.server.wait_for_log(f"database 'default' {SILENT} ")


@torture
@pytest.mark.parametrize(("freezes", "cap"), [(True, 1), (True, 4), (False, 4)])
def test_a_server_that_is_gone_while_who_has_a_connection_asks_nothing(
    shop: StartShop, cap: int, freezes: bool
) -> None:
    """A job of the project's own, such as one that looks into a queue once an hour."""
    it, server = shop(cap=cap)
    assert it.site.server.get("/forget").status == 200
    wait_until(lambda: it.pool()["in_use"] == 1 and it.pool()["asking"] == 0)
    watch = Watch(it)
    with frozen(server) if freezes else down(server):
        watch.until(time.monotonic() + STALE_SECONDS + STUCK_SECONDS + 4)
        assert not watch.seen[-1].ready, watch.story()
    wait_until(lambda: watch.look().ready)


@torture
@pytest.mark.parametrize("idle_seconds", [1, 31])
def test_a_server_that_froze_while_nobody_asked(shop: StartShop, idle_seconds: int) -> None:
    """A connection that was idle for long is pinged before it is used, a fresh one is not."""
    it, server = shop()
    watch = Watch(it)
    time.sleep(idle_seconds)
    with ThreadPoolExecutor(1) as threads:
        with frozen(server):
            # Who asks for the page lets it ask a server that was not heard of for some seconds.
            watch.until(time.monotonic() + 3)
            assert watch.names() in (["all is well"], ["all is well", "stuck server"])
            assert ("stuck server" in watch.names()) == (idle_seconds > STALE_SECONDS)
            asked = time.monotonic()
            answer = threads.submit(it.site.server.get, "/quick", timeout=60)
            watch.until(asked + 9)
            assert watch.names(asked + 3 + watch.late) == ["stuck server"], watch.story()
            assert not watch.seen[-1].ready
        thawed = time.monotonic()
        assert answer.result().status == 200
        ready_after = wait_until(lambda: watch.look().ready and time.monotonic() - thawed)
        assert ready_after < 2.5 + watch.late
    watch.until_well()
    after = watch.names(thawed + 1 + watch.late)
    assert after == ["outage over", "all is well"], watch.story()
    assert not WRONG & {*watch.names()}, watch.story()


@torture
def test_a_network_that_has_become_a_black_hole(status: StartStatus, mariadb: Server) -> None:
    """No packet comes back, and no attempt to connect is refused."""
    database = mariadb.create_database()
    with NetProxy(database.port) as proxy:
        it = status(views=(VIEWS, INCIDENTS), database=database, PORT=str(proxy.port))
        assert it.site.server.get("/quick").status == 200
        watch = Watch(it)
        with load(it, 3, every=0.5):
            wait_until(lambda: it.pool()["acquired_total"] > 20)
            proxy.freeze()
            began = time.monotonic()
            watch.until(began + 15)
            proxy.thaw()
            thawed = time.monotonic()
            wait_until(lambda: watch.look().ready)
            watch.until_well()
        assert watch.names(began + 4 + watch.late, thawed) == ["stuck server"], watch.story()
        assert it.pool()["unanswered_total"] > 0
        assert not WRONG & {*watch.names()}, watch.story()


@torture
@pytest.mark.parametrize("workers", [1, 2])
def test_an_outage_under_load_and_its_aftermath(shop: StartShop, workers: int) -> None:
    it, server = shop("--pool-timeout", "5", workers=workers)
    watch = Watch(it)
    with load(it, 3, every=0.5):
        wait_until(lambda: it.pool()["acquired_total"] > 20)
        watch.until(time.monotonic() + 1)
        began = time.monotonic()
        server.stop()
        stopped = time.monotonic()
        with ExitStack() as crowd:
            crowd.enter_context(load(it, 24, every=0.5, stop=False))
            watch.until(stopped + 12)
            server.start()
            started = time.monotonic()
        wait_until(lambda: watch.look().ready)
        watch.until_well()
    late = watch.late
    assert watch.names(stopped + 2 + late, started - 1) == ["outage"], watch.story()
    assert watch.names(started + 2 + late) == ["outage over", "all is well"], watch.story()
    assert not WRONG & {*watch.names(0, began), *watch.names(stopped + 2 + late)}, watch.story()
    peaks = it.pool()["peaks"]["24h"]
    assert (peaks["refused"], peaks["wait_seconds"] < 2) == (0, True)
    assert "Too small a pool" not in advised(it)
    assert it.pool()["outages_total"] == workers


@torture
def test_statements_that_wait_for_a_lock_are_no_stuck_server(shop: StartShop) -> None:
    """The server is well, and says so when it is asked: nobody takes a host out of service."""
    it, _ = shop()
    watch = Watch(it)
    with ThreadPoolExecutor(6) as threads:
        with gate(it.site.database) as statement:
            began = time.monotonic()
            answers = [threads.submit(it.site.run, statement, timeout=60) for _ in range(6)]
            watch.until(began + 12)
            most = len(it.site.connection_ids())
        assert [answer.result().status for answer in answers].count(200) >= 4
    late = watch.late
    assert watch.names(began + 7 + late, began + 12) == ["hanging statements"], watch.story()
    told = [each.text for each in watch.seen if each.name == "hanging statements"]
    assert "has answered no statement for " in told[-1]
    assert "all 4 that run" in told[-1]
    assert "SHOW PROCESSLIST" in told[-1]
    assert all(each.ready for each in watch.seen)
    assert "stuck server" not in watch.names()
    assert most <= it.site.cap + 2, "the gate's, and one that asks the server"
    assert it.pool()["outages_total"] == it.pool()["unanswered_total"] == 0


@torture
@pytest.mark.parametrize("others", [0, 2])
def test_a_long_report_is_no_stuck_server(shop: StartShop, others: int) -> None:
    it, _ = shop()
    watch = Watch(it)
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        if others:
            stack.enter_context(load(it, others, every=0.2))
        answer = threads.submit(it.site.run, "SELECT SLEEP(12)", timeout=60)
        while not answer.done():
            watch.until(time.monotonic() + 0.5)
        assert answer.result().status == 200
        watch.until(time.monotonic() + 3)
    assert {*watch.names()} == {"all is well"}, watch.story()
    assert all(each.ready for each in watch.seen)
    assert it.pool()["outages_total"] == it.pool()["unanswered_total"] == 0
