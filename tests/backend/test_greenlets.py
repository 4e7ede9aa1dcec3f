"""Greenlets that never finish a request give back what they took, and leave it clean."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from support.script import CAP, SIZE, run_script
from support.servers import Server

START = """
    import greenlet
    from gevent.pool import Pool

    gc.disable()  # nothing may depend on it
    patch.end_request()
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    patch.end_request()
"""

END = """
    report({"rows": one("SELECT COUNT(*) FROM t"), **pool().stats()})
    assert_sound()
"""


@pytest.fixture
def forty(project: Any) -> Any:
    """Runs a script and returns the pool's statistics, with the number of rows in t."""

    def forty(body: str, **options: Any) -> dict[str, Any]:
        folder: Path = project()
        stats: dict[str, Any] = run_script(folder, dedented(START, body, END), **options)
        assert stats["idle"] + stats["in_use"] <= CAP
        assert stats["waiting"] == 0
        return stats

    return forty


def dedented(*parts: str) -> str:
    return "\n".join(dedent(part) for part in parts)


STARTS = [
    "gevent.joinall([gevent.spawn(work) for _ in range(40)], raise_error=True)",
    "Pool(40).map(lambda _: work(), range(40))",
    "gevent.joinall([gevent.spawn_later(0.001, work) for _ in range(40)], raise_error=True)",
    "for _ in range(40): greenlet.greenlet(work).switch()",
    "for _ in range(40): gevent.spawn_raw(work)",
]


def test_forty_that_only_end_share_a_few_connections(forty: Any) -> None:
    stats = forty(
        f"""
        done = []
        def work():
            run("INSERT INTO t VALUES (1)")
            done.append(1)
        for start in {STARTS!r}:
            before = pool().stats()["opened_total"]
            exec(start)
            settle(lambda: len(done) == 40)
            assert pool().stats()["opened_total"] - before <= {CAP}, start
            done.clear()
        """
    )
    assert stats["rows"] == 40 * len(STARTS)
    assert set(stats["closed_total"]) <= {"surplus"}
    assert stats["timeouts_total"] == 0


def test_forty_that_are_killed_between_queries_share_one_connection(forty: Any) -> None:
    stats = forty(
        """
        from gevent.event import Event
        asked = Event()
        def work():
            run("SELECT 1")
            asked.set()
            gevent.sleep(10)
        for _ in range(40):
            asked.clear()
            it = gevent.spawn(work)
            asked.wait()
            it.kill()
        """
    )
    assert stats["opened_total"] <= SIZE
    assert stats["closed_total"] == {}


def test_forty_that_are_killed_while_they_hold_a_connection_return_it_clean(forty: Any) -> None:
    stats = forty(
        """
        from gevent.event import Event
        never = Event()
        holding = []
        def work():
            run("SELECT 1")
            holding.append(gevent.getcurrent())
            never.wait()
        working = [gevent.spawn(work) for _ in range(40)]
        for _ in range(10):
            settle(lambda: len(holding) == 4)
            held, holding[:] = holding[:], []
            gevent.killall(held)
        gevent.joinall(working)
        """
    )
    assert stats["opened_total"] == CAP
    assert stats["timeouts_total"] == 0


@pytest.mark.parametrize("end", ["gevent.killall(four)", "gevent.sleep(0.1)"])
def test_forty_that_end_in_the_middle_of_a_query_close_their_connection(
    forty: Any, end: str
) -> None:
    stats = forty(
        f"""
        def work():
            run("SELECT 1")
            asking.append(1)
            with gevent.Timeout(0.1, False):
                run("SELECT SLEEP(2)")
        for _ in range(10):
            asking = []
            four = [gevent.spawn(work) for _ in range(4)]
            settle(lambda: len(asking) == 4)
            {end}
            settle(lambda: pool().stats()["in_use"] == 0)
        """
    )
    assert stats["closed_total"] == {"lost": 40}
    assert stats["timeouts_total"] == 0


DEATHS = [
    "raise gevent.GreenletExit",
    "gevent.getcurrent().throw(gevent.GreenletExit)",
    "with gevent.Timeout(0.01): gevent.sleep(1)",
    "raise ValueError('a bug')",
    "pass",
]


def test_forty_that_die_with_an_open_transaction_commit_nothing(forty: Any) -> None:
    stats = forty(
        f"""
        gevent.get_hub().NOT_ERROR = (BaseException,)  # no tracebacks
        def work(die):
            run("BEGIN")
            run("INSERT INTO t VALUES (1)")
            exec(die)
        for die in {DEATHS!r}:
            gevent.joinall([gevent.spawn(work, die) for _ in range(40)])
        """
    )
    assert stats["rows"] == 0
    assert stats["timeouts_total"] == 0


def test_forty_that_are_killed_in_atomic_commit_nothing(forty: Any) -> None:
    stats = forty(
        """
        def work():
            with transaction.atomic():
                run("INSERT INTO t VALUES (1)")
                writing.append(1)
                gevent.sleep(10)
        for _ in range(10):
            writing = []
            four = [gevent.spawn(work) for _ in range(4)]
            settle(lambda: len(writing) == 4)
            gevent.killall(four)
        """
    )
    assert stats["rows"] == 0
    assert stats["timeouts_total"] == 0
    # atomic() itself cleans up before they die.
    assert set(stats["closed_total"]) <= {"surplus"}


def test_a_greenlet_that_ends_while_others_wait_serves_them_in_order(forty: Any) -> None:
    stats = forty(
        """
        from gevent.event import Event
        go, order = Event(), []
        def hold():
            run("SELECT 1")
            go.wait()
        holders = [gevent.spawn(hold) for _ in range(4)]
        settle(lambda: pool().stats()["in_use"] == 4)
        def wait(number):
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
        """
    )
    assert stats["waited_total"] == 36
    assert stats["opened_total"] == CAP


def test_a_cursor_that_outlives_its_greenlet_does_not_run_on_a_strangers_connection(
    forty: Any,
) -> None:
    forty(
        """
        from django.db import InterfaceError
        kept = []
        def work():
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
        """
    )


def test_a_cursor_that_outlives_its_session_in_another_greenlet_hurts_nobody(
    project: Any,
) -> None:
    """The connection is not passed on in the middle of the statement, nor are the old rows."""
    assert run_script(
        project(),
        """
        import warnings
        warnings.simplefilter("ignore", ResourceWarning)  # the helper still reads from the socket
        said = {}
        def helper(cursor):
            try:
                cursor.execute("SELECT SLEEP(1), 'new row'")
                said["helper"] = str(cursor.fetchall())
            except Exception as error:
                said["helper"] = type(error).__name__
        def job():
            cursor = connection.cursor()
            cursor.execute("SELECT 'old row'")
            helpers.append(gevent.spawn(helper, cursor))
            gevent.sleep(0.05)
            patch.end_request()
        helpers = []
        gevent.spawn(job).join()
        gevent.sleep(0.02)
        def innocent():
            said["innocent"] = one("SELECT 'mine'")
        gevent.spawn(innocent).join()
        gevent.joinall(helpers)
        assert_sound()
        report(said)
        """,
        size=1,
        cap=1,
    ) == {"helper": "OperationalError", "innocent": "mine"}


def test_watching_for_leaks_keeps_no_plain_greenlet_alive(project: Any) -> None:
    run_script(
        project(),
        """
        for _ in range(6):
            held = gevent.spawn_raw(one, "SELECT 1")
            del held
            gevent.sleep(0.05)
        settle(lambda: pool().stats()["in_use"] == 0)
        assert_sound()
        """,
        POOLED_SERVE_LEAK_THRESHOLD="5",
    )


def test_a_hand_back_that_is_interrupted_does_not_keep_the_other_databases_from_theirs(
    project: Any, mariadb: Server
) -> None:
    aliases = ("default", "other", "third")
    databases = {alias: mariadb.create_database().django() for alias in aliases}
    closed = run_script(
        project(databases=databases),
        """
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
            settle(lambda: pool(alias).stats()["in_use"] == 0)
            closed.append(pool(alias).stats()["closed_total"])
            assert one("SELECT COUNT(*) FROM t", alias=alias) == 0
            assert_sound(alias)
        report(closed)
        """,
    )
    assert sorted(closed, key=len) == [{}, {}, {"killed": 1}]
