"""A database that cannot be used: what is said of it, when it counts as lost, and what of that must
not be taken for a pool that is too small."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from pooled_serve.errors import PoolTimeout
from pooled_serve.pool import LOST
from pooled_serve.status import reachability
from pooled_serve.status.findings import findings
from pooled_serve.status.pool_log import PoolLog
from pooled_serve.status.reachability import Reachability
from pooled_serve.status.sentence import usual_hold
from support.answers import Answers, a_route, an_episode, recent
from support.driver import NEVER, DriverError, FakeDriver, settle
from support.pools import Clock

SERVER = "MariaDB 10.11.19 at 127.0.0.1:3306/shop"
ALIVE = (
    "see that the server's process runs and is not stopped, and that its disk and the network "
    "work; restart it if it stays; requests then go on"
)
HOLDS = (
    "who holds the lock of a row: SELECT waiting_pid, blocking_pid FROM sys.innodb_lock_waits (a "
    "blocking_pid that is no waiting_pid); of a table (metadata lock): "
    "sys.schema_table_lock_waits, on MariaDB information_schema.metadata_lock_info (INSTALL SONAME "
    "'metadata_lock_info')"
)
ASKED = (
    "wait some seconds: it is asked whether it answers at all; if it does, SHOW PROCESSLIST there"
    f" says what the statements wait for; {HOLDS}"
)
SILENT: dict[str, Any] = {
    "in_use": 12,
    "idle": 0,
    "in_statement": 12,
    "oldest_statement_seconds": 12.3,
    "last_answer_seconds": 12.0,
}
QUEUE: dict[str, Any] = {"waiting": 7, "oldest_wait_seconds": 9.0}


def said(*routes: dict[str, Any], **pool: Any) -> list[str]:
    stats = Answers(**pool).stats
    stats["routes"] = list(routes)
    return [str(sentence) for sentence in findings(stats)]


# --- Sentences ---------------------------------------------------------------------------------

SENTENCES: list[tuple[dict[str, Any], str]] = [
    (
        {**SILENT, **QUEUE, "stuck": 1, "reachable": False, "recent": recent(timeouts=2)},
        f"Stuck server: {SERVER} has answered nothing for 12.0 s, 12 statements wait for it,"
        f" 7 requests wait for a connection, 2 refused in the last 10 s. → {ALIVE}",
    ),
    (
        {**SILENT, "in_use": 1, "in_statement": 1, "last_answer_seconds": 2.2, "stuck": 1},
        f"Stuck server: {SERVER} has answered nothing for 2.2 s, 1 statement waits for it."
        f" → {ALIVE}",
    ),
    (
        {"stuck": 2, "reachable": False, "in_use": 0, "idle": 0, "waiting": 1},
        f"Stuck server: {SERVER} does not answer, 1 request waits. → {ALIVE}",
    ),
    (
        {**SILENT, "last_answer_seconds": None, "stuck": 1},
        f"Stuck server: {SERVER} has answered nothing for 12.3 s, 12 statements wait for it."
        f" → {ALIVE}",
    ),
    (
        # It answers those who have a connection.
        {**SILENT, "last_answer_seconds": 0.1, "stuck": 1, "reachable": False},
        f"Outage: the database default cannot be reached. → see that {SERVER} runs and lets this"
        " host in; requests then go on",
    ),
    (
        # Its answer to an inquiry has come, and no other.
        {**SILENT, **QUEUE},
        f"Hanging statements: {SERVER} has answered no statement for 12.0 s, all 12 that run:"
        " 7 requests wait, the longest 9.0 s. → SHOW PROCESSLIST there says what they wait for:"
        " often a lock, which another statement or an open transaction holds (KILL ends it);"
        f" {HOLDS}",
    ),
    (
        # Whether it answers anybody is not known yet.
        {**SILENT, **QUEUE, "asking": 12, "last_answer_seconds": 1.3},
        f"Silent server: {SERVER} has answered nothing for 1.3 s: 7 requests wait, the longest"
        f" 9.0 s. → {ASKED}",
    ),
    (
        # No connection was open, and those who open some get no answer.
        {**SILENT, **QUEUE, "in_use": 0, "in_statement": 0, "asking": 0, "connecting": 12}
        | {"last_answer_seconds": None, "oldest_statement_seconds": 1.3},
        f"Silent server: {SERVER} has answered nothing for 1.3 s: 7 requests wait, the longest"
        f" 9.0 s. → {ASKED}",
    ),
    (
        {"recent": recent(lost_ago_seconds=3.7)},
        "Outage over: the database default could not be used until 4 s ago."
        " → nothing to do: the log says why",
    ),
    (
        # What is left of it in the numbers has no sentence of its own.
        {
            **QUEUE,
            "in_use": 12,
            "recent": recent(
                acquired=90,
                waited=60,
                waited_share=0.7,
                wait_p95_seconds=9.0,
                timeouts=9,
                shed=7,
                lost_ago_seconds=0.4,
                outage=an_episode(12.4, waited=80, timeouts=19, shed=7),
            ),
        },
        "Outage over: the database default could not be used for 12 s until 0 s ago; in all 80"
        " requests waited and 19 requests got 503 (7 early, in an overload). → nothing to do: the"
        " log says why",
    ),
    (
        # A lock is gone, and what it did is still in the numbers.
        {
            **QUEUE,
            "in_use": 12,
            "recent": recent(
                acquired=90,
                waited_share=0.9,
                timeouts=9,
                hung_ago_seconds=3.6,
                hang=an_episode(250.0, waited=80, timeouts=109),
            ),
        },
        f"Statements go on: all that ran at {SERVER} hung, and kept requests waiting, for 4 min"
        " until 4 s ago; in all 80 requests waited and 109 requests got 503. → nothing to do now;"
        " if it happens again, SHOW PROCESSLIST there says meanwhile what they wait for;"
        f" {HOLDS}",
    ),
    (
        {"in_use": 2, "recent": recent(acquired=90, hung_ago_seconds=3.6)},
        f"Statements go on: all that ran at {SERVER} hung until 4 s ago. → nothing to do now; if it"
        f" happens again, SHOW PROCESSLIST there says meanwhile what they wait for; {HOLDS}",
    ),
    (
        # Another request has come, whose first statement was answered, and waits for the lock, too.
        {"in_use": 4, "in_statement": 3, "oldest_statement_seconds": 7.3}
        | {"last_answer_seconds": 0.4, "recent": recent(acquired=1, hung_ago_seconds=1.0)},
        f"Hanging statements: 3 statements at {SERVER} hang, the first for 7.3 s. → SHOW"
        " PROCESSLIST there says what they wait for: often a lock, which another statement or an"
        f" open transaction holds (KILL ends it); {HOLDS}",
    ),
    (
        # All others go on.
        {"in_use": 4, "in_statement": 1, "oldest_statement_seconds": 7.3}
        | {"last_answer_seconds": 0.4, "recent": recent(acquired=90, hung_ago_seconds=1.0)},
        f"Statements go on: all that ran at {SERVER} hung until 1 s ago, and the first still does,"
        " for 7.3 s. → nothing to do now; if it happens again, SHOW PROCESSLIST there says"
        f" meanwhile what they wait for; {HOLDS}",
    ),
    (
        {**SILENT, **QUEUE, "recent": recent(hung_ago_seconds=0.4)},
        f"Hanging statements: {SERVER} has answered no statement for 12.0 s, all 12 that run:"
        " 7 requests wait, the longest 9.0 s. → SHOW PROCESSLIST there says what they wait for:"
        " often a lock, which another statement or an open transaction holds (KILL ends it);"
        f" {HOLDS}",
    ),
    (
        {**SILENT, "in_use": 2, "in_statement": 2},
        "All is well: 2 of 12 connections in use, nobody waits.",
    ),
    (
        # Fewer clients than connections: nobody waits for one, and all for the answers.
        {**SILENT, "in_use": 10, "in_statement": 10},
        f"Hanging statements: {SERVER} has answered no statement for 12.0 s, all 10 that run."
        " → SHOW PROCESSLIST there says what they wait for: often a lock, which another statement"
        f" or an open transaction holds (KILL ends it); {HOLDS}",
    ),
    (
        # A row is locked, and other requests go on.
        {**SILENT, "in_use": 5, "in_statement": 3, "last_answer_seconds": 0.02},
        f"Slow statements: 3 statements at {SERVER} have had no answer for a second or more, the"
        " first for 12.3 s, while others are answered. → SHOW PROCESSLIST there says what they wait"
        " for: often a lock, which another statement or an open transaction holds (KILL ends it);"
        f" {HOLDS}",
    ),
    (
        # They have most of the connections, so that others wait; and none of them was forgotten.
        {**SILENT, **QUEUE, "in_use": 8, "in_statement": 5, "last_answer_seconds": 0.02}
        | {"oldest_held_seconds": 120.0, "oldest_statement_seconds": 119.0},
        f"Slow statements: 5 statements at {SERVER} have had no answer for a second or more, the"
        " first for 1 min 59 s, while others are answered: 7 requests wait, the longest 9.0 s."
        " → SHOW PROCESSLIST there says what they wait for: often a lock, which another statement"
        f" or an open transaction holds (KILL ends it); {HOLDS}",
    ),
    (
        # Two reports beside other requests.
        {**SILENT, "in_use": 5, "in_statement": 2, "last_answer_seconds": 0.02},
        "All is well: 5 of 12 connections in use, nobody waits.",
    ),
    (
        # A report that runs for long, and nobody waits.
        {**SILENT, "in_use": 1, "in_statement": 1, "oldest_held_seconds": 300.0},
        "All is well: 1 of 12 connections in use, nobody waits.",
    ),
]


@pytest.mark.parametrize(
    ("code", "failures", "level", "problem"),
    [
        (
            1045,
            9,
            "warn",
            f"Login works again: {SERVER} refused the login of default for 25 s until",
        ),
        (
            1049,
            9,
            "warn",
            f"Login works again: {SERVER} refused the login of default for 25 s until",
        ),
        (
            1040,
            9,
            "warn",
            f"Server has room again: {SERVER} had no connection left for default for",
        ),
        (2003, 9, "warn", "Outage over: the database default could not be used for 25 s until 4 s"),
        # The error is that of another time.
        (1045, 0, "warn", "Outage over: the database default could not be used for 25 s until 4 s"),
        (1040, 0, "warn", "Outage over: the database default could not be used for 25 s until 4 s"),
    ],
)
def test_what_is_over_has_the_name_that_it_had(
    code: int, failures: int, level: str, problem: str
) -> None:
    """A refused login is no outage; and of a full server, who had a connection went on."""
    for cost, its in ({"failed": 482}, level), ({"timeouts": 612}, level), ({}, "note"):
        over = an_episode(25.0, connect_errors=failures, **cost)
        lately = recent(lost_ago_seconds=4.0, outage=over)
        (sentence,) = findings(Answers(connect_error=code, recent=lately).stats)
        assert sentence.problem.startswith(problem)
        assert (sentence.level, sentence.problem.count(" got 50")) == (its, len(cost))


def test_requests_that_failed_weigh_as_much_after_a_hang_or_failing_connects() -> None:
    for trouble in (
        recent(hung_ago_seconds=3.6, hang=an_episode(9.0, failed=3)),
        recent(connect_errors=4, connects_again=True, failing_connects=an_episode(9.0, failed=3)),
    ):
        (sentence,) = findings(Answers(recent=trouble).stats)
        assert (sentence.level, "3 requests got 500" in sentence.problem) == ("warn", True)


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES)
def test_one_sentence_says_how_it_is(changes: dict[str, Any], sentence: str) -> None:
    assert said(**changes) == [sentence]


@pytest.mark.parametrize(
    ("numbers", "usual"),
    [
        ({}, 20.0),
        ({"idle_seconds": 38.0}, 1.0),  # the view slept, or asked another service
    ],
)
def test_only_statements_make_a_hang_usual(numbers: dict[str, Any], usual: float) -> None:
    route = a_route("row/", held_seconds=40.0, leases=2, **numbers)
    assert usual_hold(Answers().stats | {"routes": [route]}) == usual
    (sentence,) = said(route, **{**SILENT, "in_use": 4, "in_statement": 4})
    assert sentence.startswith("Hanging statements" if usual < 4 else "All is well")


def test_what_hung_before_is_not_usual() -> None:
    """The same row was locked a minute ago, for as long."""
    route = a_route("row/", held_seconds=76.0, leases=4)
    stats = Answers(recent=recent(lost_held_seconds=78.0)).stats | {"routes": [route]}
    assert usual_hold(stats) == 0.0


def test_connects_that_work_again_need_nothing() -> None:
    failed = an_episode(0.0, seconds=240.0, connect_errors=231, timeouts=4)
    again: dict[str, Any] = {"connects_again": True, "connect_failed_ago_seconds": 7.8}
    after = recent(connect_errors=3, failing_connects=failed, **again)
    assert said(recent=after, connect_error=1040, idle=9) == [
        "Connects work again: connecting to default failed 231 times in 4 min until 8 s ago (error"
        " 1040), and has worked since; in all 4 requests got 503. → nothing to do now"
    ]
    once = an_episode(0.0, connect_errors=1)
    after = recent(connect_errors=1, failing_connects=once, **again)
    assert said(recent=after, connect_error=1040, idle=9) == [
        "Connects work again: connecting to default failed once, 8 s ago (error 1040), and has"
        " worked since. → nothing to do now"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"last_answer_seconds": 0.2},
        {"in_statement": 11, "last_answer_seconds": 30.0},
        {"last_answer_seconds": 4.9},
        {"in_statement": 0, "oldest_statement_seconds": 0.0},
    ],
)
def test_where_connections_come_back_nothing_hangs(changes: dict[str, Any]) -> None:
    (sentence,) = said(**{**SILENT, **QUEUE, **changes})
    assert sentence.startswith("Too small a pool: ")


def test_statements_that_are_always_slow_do_not_hang() -> None:
    slow = a_route("report/", leases=10, held_seconds=60.0)
    assert said(slow, **SILENT, **QUEUE)[0].startswith("Slow view: GET report/ holds 100 %")
    longer = {"oldest_statement_seconds": 20.0, "last_answer_seconds": 19.0}
    assert said(slow, **{**SILENT, **QUEUE, **longer})[0].startswith("Hanging statements: ")


def test_what_a_view_held_in_an_outage_is_no_fault_of_it() -> None:
    """It is in the numbers of five minutes, not in those that a sentence speaks of."""
    quick = a_route("quick/", leases=100, held_seconds=245.0)
    waits = {"in_use": 12, **QUEUE}
    assert said(quick, **waits)[0].startswith("Slow view: ")
    quick["lately"] |= {"leases": 50, "held_seconds": 2.5}
    (sentence,) = said(quick, **waits)
    assert sentence.startswith("Too small a pool: ")
    assert "; GET quick/ holds most, 100 % of the time, 50 ms each. → " in sentence
    quick["lately"] |= {"leases": 0, "held_seconds": 0.0}
    (sentence,) = said(quick, **waits)
    assert "GET quick/" not in sentence, "it was not called in the last 10 s"


def test_several_databases_are_told_apart() -> None:
    stats = Answers(**SILENT, **QUEUE, stuck=1, reachable=False).stats
    for pools in (stats["pools"], stats["workers"][0]["pools"]):
        pools["other"] = {**pools["default"], "stuck": 0, "reachable": True, "in_statement": 0}
    first, second = findings(stats)
    assert (first.pool, first.name, first.level) == ("default", "stuck server", "bad")
    assert (second.pool, second.name) == ("other", "too small a pool")


# --- When it counts as lost --------------------------------------------------------------------


LOOK_SECONDS = 0.25
"""Between two looks at the gauges, as in a worker."""


class Watched:
    """A pool of a worker with a status page, on a driver that waits when it is told to."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.driver = FakeDriver()
        self.reachability = Reachability(PoolLog("default"))
        self.hangs = False
        self.pool = self.driver.pool(
            listeners=[self.reachability],
            awaits=lambda conn: LOST if conn.fault else conn if self.hangs else None,
            clock=clock.monotonic,
        )
        self.reachability.pool = self.reachability._log.pool = self.pool
        self.reachability.probing = True
        self.connections = [self.pool.acquire() for _ in range(2)]

    def freeze(self, *, wholly: bool = True) -> None:
        """
        :param wholly: whether inquiries have no answer either.
        """
        self.hangs = True
        if wholly:
            self.driver.always["connect"] = NEVER

    def give_up_after(self, seconds: float) -> None:
        """The clients leave, or the statements hit their read_timeout."""
        self.watch(seconds)
        for connection in self.connections:
            connection.fault = "lost"
        self.watch(1)

    def thaw(self) -> None:
        self.hangs = False
        self.driver.always.clear()

    def watch(self, seconds: float) -> dict[str, Any]:
        """Look at the gauges as often as a worker does."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.pool.refresh_gauges()
            for _ in range(10):
                gevent.sleep(0.0001)  # a turn of the loop: an inquiry runs, if there is one
                self.clock.now += LOOK_SECONDS / 10
        return self.pool.stats()


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    clock = Clock()  # of the pool and of who watches it
    monkeypatch.setattr(reachability, "time", clock)
    watched = Watched(clock)
    yield watched
    watched.reachability.probing = False
    watched.thaw()
    for connection in watched.connections:
        watched.pool.release(connection)
    watched.pool.close()


def test_a_server_that_answers_nothing_is_lost_until_it_does(it: Watched) -> None:
    it.freeze()
    stats = it.watch(1.5)
    assert (stats["stuck"], stats["reachable"]) == (0, True), "no silence yet"
    stats = it.watch(2)
    assert (stats["stuck"], stats["reachable"]) == (1, True), "a hiccup, so far"
    stats = it.watch(6)
    assert (stats["stuck"], stats["reachable"], stats["outages_total"]) == (1, False, 1)
    assert stats["last_outage_seconds"] < 1
    it.thaw()
    stats = it.watch(0.5)
    assert (stats["stuck"], stats["reachable"], it.reachability.lost) == (0, True, False)


def test_one_whose_statement_has_timed_out_has_no_answer_though_it_is_held(it: Watched) -> None:
    it.freeze()
    assert it.watch(8)["reachable"] is False
    for connection in it.connections:
        connection.fault = "lost"
    stats = it.watch(1)
    assert (stats["stuck"], stats["reachable"], it.reachability.lost) == (1, False, True)


def test_the_end_of_a_hiccup_is_noticed_though_nobody_waits_any_more(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, "INQUIRY_SECONDS", 0.05)
    it.freeze()
    it.give_up_after(3)
    assert it.pool.stats()["stuck"] == 1
    it.thaw()
    settle(lambda: it.pool.stats()["stuck"] == 0)
    stats = it.pool.stats()
    assert (stats["reachable"], stats["outages_total"]) == (True, 0)
    settle(lambda: not it.reachability._prober)


def test_the_next_answer_ends_a_hiccup_though_nobody_has_waited_for_it(it: Watched) -> None:
    it.freeze()
    it.give_up_after(3)
    it.reachability.probing = False  # it would find out first
    it.thaw()
    connection = it.connections.pop()
    connection.fault = None
    it.pool.release(connection)
    assert it.watch(0.5)["stuck"] == 0


def test_locks_are_told_from_a_stuck_server_by_its_answer(it: Watched) -> None:
    it.freeze(wholly=False)
    stats = it.watch(17)
    assert (stats["stuck"], stats["reachable"], stats["outages_total"]) == (0, True, 0)
    assert stats["oldest_statement_seconds"] > 10
    asked = it.driver.calls["connect"] - 2
    assert 2 <= asked <= 5, "again and again, but not at each look"


def test_an_inquiry_that_is_killed_proves_nothing(it: Watched) -> None:
    it.freeze()
    assert it.watch(1.75)["stuck"] == 0
    assert it.driver.calls["connect"] == 3
    assert it.reachability._inquiry is not None
    it.reachability._inquiry.kill()
    it.driver.always.clear()  # it was slow to log in, and statements wait for a lock
    it.clock.now += LOOK_SECONDS
    stats = it.watch(12)
    assert (stats["stuck"], stats["reachable"], stats["outages_total"]) == (0, True, 0)
    assert stats["last_outage_seconds"] is None
    assert it.driver.calls["connect"] > 3, "another has followed"


def test_when_all_is_well_nobody_is_asked(it: Watched) -> None:
    it.watch(5)
    assert (it.driver.calls["connect"], it.driver.calls["ping"]) == (2, 0)


def no_answer_within_read_timeout() -> Exception:
    error = DriverError(2013, "Lost connection to MySQL server during query (timed out)")
    error.__cause__ = TimeoutError("timed out")
    return error


@pytest.mark.parametrize(
    "error",
    [no_answer_within_read_timeout(), DriverError(2013, "Lost connection"), TimeoutError()],
    ids=["read_timeout", "a proxy hangs up", "timeout"],
)
def test_inquiries_that_fail_at_once_are_in_vain_too(it: Watched, error: Exception) -> None:
    it.freeze(wholly=False)
    it.driver.always["connect"] = error
    stats = it.watch(3)
    assert (stats["stuck"], stats["reachable"]) == (1, True)
    assert it.driver.calls["connect"] <= 2 + 3, "servers ban hosts that ask too often"
    stats = it.watch(6)
    assert (stats["stuck"], stats["reachable"], stats["outages_total"]) == (1, False, 1)
    asked = it.driver.calls["connect"]
    settle(lambda: it.driver.calls["connect"] >= asked + 2)
    assert it.reachability.lost, "the probe has had no answer either"
    it.driver.always.clear()
    settle(lambda: not it.reachability.lost)


@pytest.mark.parametrize("error", [DriverError(1040, "full"), DriverError(2003, "refused")])
def test_an_error_of_the_server_is_an_answer(it: Watched, error: Exception) -> None:
    it.freeze(wholly=False)
    it.driver.always["connect"] = error
    stats = it.watch(12)
    assert stats["stuck"] == 0
    assert stats["reachable"] is True
    assert it.driver.calls["connect"] > 2, "it was asked"


def test_one_worker_does_not_ask_what_another_process_may_answer(it: Watched) -> None:
    """Without a scoreboard, as in a management command, there is nobody to tell."""
    it.reachability.probing = False
    it.freeze()
    stats = it.watch(5)
    assert (stats["stuck"], it.driver.calls["connect"]) == (0, 2)


def test_a_worker_that_was_blocked_has_not_read_its_answers_yet(it: Watched) -> None:
    it.freeze()
    it.watch(1.5)
    it.clock.now += 3  # nothing looked at the gauges, and nothing was read
    it.pool.refresh_gauges()
    assert it.pool.stats()["stuck"] == 0
    assert it.watch(1.5)["stuck"] == 1


@pytest.mark.parametrize("turn", [0.3, 0.9])
def test_a_worker_whose_loop_is_slow_has_not_read_them_either(it: Watched, turn: float) -> None:
    """A login takes some turns of the loop, in each of which a view computes."""
    it.freeze()
    for _ in range(20):
        it.pool.refresh_gauges()
        gevent.sleep(0.0001)  # a turn
        it.clock.now += turn
    assert it.pool.stats()["stuck"] == 0
    assert it.watch(1.5)["stuck"] == 1, "it has time for it now"


def test_a_server_that_lets_nobody_connect_in_time_is_stuck_too() -> None:
    it = Watched(time)  # for the deadlines of the event loop
    for connection in it.connections:
        connection.fault = "lost"
        it.pool.release(connection)
    settle(lambda: not it.driver.open)
    it.driver.always["connect"] = NEVER
    for _ in range(5):  # it does not count where the machine halts this process meanwhile
        with pytest.raises(PoolTimeout):
            it.pool.acquire(reachability.UNANSWERED_SECONDS + 0.5)
        stats = it.pool.stats()
        if stats["stuck"]:
            break
    assert (stats["stuck"], stats["reachable"]) == (1, False)
    it.driver.always.clear()
    settle(lambda: not it.reachability.lost)
    assert it.pool.stats()["stuck"] == 0
    it.pool.close()
