"""What test_greenlets.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import gevent
import greenlet
from django.db import transaction
from gevent.event import Event
from gevent.pool import Pool

from support.inside import assert_sound, connection, connections, one, patch, pool, run, settle


def with_table(function: str, *args: Any) -> dict[str, Any]:
    """Call the function, with an empty table t; the pool's statistics then, and the rows in t."""
    gc.disable()  # nothing may depend on it
    patch.end_request()
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    patch.end_request()
    globals()[function](*args)
    found = {"rows": one("SELECT COUNT(*) FROM t"), **pool().stats()}
    assert_sound()
    return found


Work = Callable[[], None]
STARTS: dict[str, Callable[[Work], object]] = {
    "joinall": lambda work: gevent.joinall(
        [gevent.spawn(work) for _ in range(40)], raise_error=True
    ),
    "Pool": lambda work: Pool(40).map(lambda _: work(), range(40)),
    "spawn_later": lambda work: gevent.joinall(
        [gevent.spawn_later(0.001, work) for _ in range(40)], raise_error=True
    ),
    "plain greenlets": lambda work: [greenlet.greenlet(work).switch() for _ in range(40)],
    "spawn_raw": lambda work: [gevent.spawn_raw(work) for _ in range(40)],
}


def forty_that_only_end_share_a_few_connections(cap: int) -> None:
    done = []

    def work() -> None:
        run("INSERT INTO t VALUES (1)")
        done.append(1)

    for name, start in STARTS.items():
        before = pool().stats()["opened_total"]
        start(work)
        settle(lambda: len(done) == 40)
        assert pool().stats()["opened_total"] - before <= cap, name
        done.clear()


def forty_that_are_killed_between_queries_share_one_connection() -> None:
    asked = Event()

    def work() -> None:
        run("SELECT 1")
        asked.set()
        gevent.sleep(10)

    for _ in range(40):
        asked.clear()
        it = gevent.spawn(work)
        asked.wait()
        it.kill()


def forty_that_are_killed_while_they_hold_a_connection_return_it_clean() -> None:
    never = Event()
    holding = []

    def work() -> None:
        run("SELECT 1")
        holding.append(gevent.getcurrent())
        never.wait()

    working = [gevent.spawn(work) for _ in range(40)]
    for _ in range(10):
        settle(lambda: len(holding) == 4)
        held, holding[:] = holding[:], []
        gevent.killall(held)
    gevent.joinall(working)


def forty_that_end_in_the_middle_of_a_query_close_their_connection(end: str) -> None:
    asking: list[int] = []

    def work() -> None:
        run("SELECT 1")
        asking.append(1)
        with gevent.Timeout(0.1, False):
            run("SELECT SLEEP(2)")

    for _ in range(10):
        asking.clear()
        four = [gevent.spawn(work) for _ in range(4)]
        settle(lambda: len(asking) == 4)
        if end == "killed":
            gevent.killall(four)
        else:
            gevent.sleep(0.1)
        settle(lambda: pool().stats()["in_use"] == 0)


def forty_that_die_with_an_open_transaction_commit_nothing(deaths: Any) -> None:
    gevent.get_hub().NOT_ERROR = (BaseException,)  # no tracebacks

    def work(die: Any) -> None:
        run("BEGIN")
        run("INSERT INTO t VALUES (1)")
        exec(die)

    for die in deaths:
        gevent.joinall([gevent.spawn(work, die) for _ in range(40)])


def forty_that_are_killed_in_atomic_commit_nothing() -> None:
    writing: list[int] = []

    def work() -> None:
        with transaction.atomic():
            run("INSERT INTO t VALUES (1)")
            writing.append(1)
            gevent.sleep(10)

    for _ in range(10):
        writing.clear()
        four = [gevent.spawn(work) for _ in range(4)]
        settle(lambda: len(writing) == 4)
        gevent.killall(four)


def a_greenlet_that_ends_while_others_wait_serves_them_in_order() -> None:
    go, order = Event(), []

    def hold() -> None:
        run("SELECT 1")
        go.wait()

    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: pool().stats()["in_use"] == 4)

    def wait(number: Any) -> None:
        connection.ensure_connection()
        order.append(number)
        run("SELECT 1")

    waiting = []
    for number in range(36):
        waiting.append(gevent.spawn(wait, number))
        gevent.sleep(0)
    settle(lambda: pool().stats()["waiting"] == 36)
    go.set()
    gevent.joinall(holders + waiting, raise_error=True)  # all have connected by then
    assert order == list(range(36))


def a_cursor_that_outlives_its_greenlet_does_not_run_on_a_strangers_connection() -> None:
    kept = []

    def work() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        kept.append(cursor.cursor.cursor)  # PyMySQL's own

    gevent.spawn(work).join()
    settle(lambda: pool().stats()["in_use"] == 0)
    run("SELECT 1")  # somebody else has that connection now
    try:
        kept[0].execute("INSERT INTO t VALUES (1)")
    except Exception as error:
        assert type(error).__name__ == "InterfaceError", error
    else:
        raise AssertionError("it ran")
    assert one("SELECT COUNT(*) FROM t") == 0


def a_cursor_that_outlives_its_session_in_another_greenlet_hurts_nobody() -> Any:
    warnings.simplefilter("ignore", ResourceWarning)  # the helper still reads from the socket
    said = {}

    def helper(cursor: Any) -> None:
        try:
            cursor.execute("SELECT SLEEP(1), 'new row'")
            said["helper"] = str(cursor.fetchall())
        except Exception as error:
            said["helper"] = type(error).__name__

    def job() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 'old row'")
        helpers.append(gevent.spawn(helper, cursor))
        gevent.sleep(0.05)
        patch.end_request()

    helpers: list[gevent.Greenlet] = []
    gevent.spawn(job).join()
    gevent.sleep(0.02)

    def innocent() -> None:
        said["innocent"] = one("SELECT 'mine'")

    gevent.spawn(innocent).join()
    gevent.joinall(helpers)
    assert_sound()
    return said


def watching_for_leaks_keeps_no_plain_greenlet_alive() -> None:
    for _ in range(6):
        held = gevent.spawn_raw(one, "SELECT 1")
        del held
        gevent.sleep(0.05)
    settle(lambda: pool().stats()["in_use"] == 0)
    assert_sound()


def a_hand_back_that_is_interrupted_does_not_keep_the_other_databases_from_theirs() -> Any:
    for alias in connections:
        run("CREATE TABLE t (n INT) ENGINE=InnoDB", alias=alias)
        run("BEGIN", alias=alias)
        # As many as it takes for a ROLLBACK of some milliseconds.
        run("INSERT INTO t SELECT seq FROM seq_1_to_10000", alias=alias)
    limit = gevent.Timeout(0)
    try:
        with limit:
            patch.end_request()
    except gevent.Timeout as raised:
        assert raised is limit
    else:
        raise AssertionError("nothing was interrupted")
    closed = []
    for alias in connections:
        settle(lambda: pool(alias).stats()["in_use"] == 0)  # noqa: B023 - called before the next
        closed.append(pool(alias).stats()["closed_total"])
        assert one("SELECT COUNT(*) FROM t", alias=alias) == 0
        assert_sound(alias)
    return closed
