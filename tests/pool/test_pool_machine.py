"""Whatever happens to its users, in whatever order: the pool loses nothing.

A state machine makes up the story (users come, leave, are killed, time out; the driver fails,
stalls and recovers; connections die, get dirty, age) and the rules are checked after every step.

No rule has a precondition: what the pool looks like depends on real time, and Hypothesis must be
able to tell the same story twice. A rule that finds nobody to happen to does nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event
from hypothesis import strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from pooled_serve.errors import PoolOverloaded, PoolTimeout
from pooled_serve.pool.overload import LATE, STALL, Overload
from support.driver import DriverError, FakeConnection, FakeDriver, assert_sound
from support.stories import tell_stories

CAP = 3

index = strategies.integers(min_value=0, max_value=50)
trouble = strategies.sampled_from([None, "error", "stall", 0.0, 0.002])

end = strategies.builds(
    lambda make: make(), strategies.sampled_from([GreenletExit, gevent.Timeout])
)


class Unreachable(DriverError):
    """Nobody answers."""


class User:
    """A greenlet that wants a connection, uses it until told to stop, and gives it back.

    :param lease: whether it uses ``with pool.lease()``; then nobody else can give it back.
    """

    def __init__(self, machine: PoolMachine, timeout: float, *, lease: bool = False) -> None:
        self.stop = Event()
        self.connection: FakeConnection | None = None
        self.machine = machine
        self.timeout = timeout
        self.served = False
        self.began = machine.pool._clock()
        self.greenlet = gevent.spawn(self.run_lease if lease else self.run)

    def waits(self) -> bool:
        return not self.served and not self.greenlet.ready()

    def run(self) -> None:
        try:
            self.connection = self.machine.pool.acquire(timeout=self.timeout)
        except PoolTimeout as error:
            self.machine.refused(self, error)
            return
        except DriverError:
            return
        try:
            self.use(self.connection)
        finally:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.user = None
                self.machine.pool.release(connection)

    def run_lease(self) -> None:
        try:
            with (
                suppress(DriverError),
                self.machine.pool.lease(timeout=self.timeout) as connection,
            ):
                try:
                    self.use(connection)
                finally:
                    connection.user = None
        except PoolTimeout as error:
            self.machine.refused(self, error)

    def use(self, connection: FakeConnection) -> None:
        self.served = True
        if connection.user is not None or connection.closed or connection.dirty or connection.fault:
            self.machine.scandals.append(f"{connection} was handed out: {vars(connection)}")
        connection.user = self
        self.stop.wait()


class WatchedOverload(Overload):
    """Tells what may not be: somebody refused who is not late, or nobody served."""

    def __init__(self, machine: PoolMachine) -> None:
        super().__init__()
        self.machine = machine

    def late(self, queue: Any, now: float, timeout: float) -> int:
        late = super().late(queue, now, timeout)
        waits = [now - waiter.since for waiter in queue]
        if late >= len(waits) or (late and min(waits[:late]) <= timeout * LATE):
            self.machine.scandals.append(f"of these, {late} were refused: {waits}")
        return late


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.driver = FakeDriver()
        self.now = 0.0
        self.pool = self.driver.pool(
            size=2,
            max_outstanding=CAP,
            timeout=5.0,
            max_age=100.0,
            ping_after=20.0,
            is_outage=lambda error: isinstance(error, Unreachable),
            clock=lambda: gevent.get_hub().loop.now() + self.now,
        )
        self.pool._overload = WatchedOverload(self)
        self.shed = 0
        self.users: list[User] = []
        self.stalled: list[Event] = []
        self.scandals: list[str] = []

    # --- Users come and go

    @rule(
        many=strategies.integers(1, 4),
        timeout=strategies.sampled_from([0.001, 0.005, 5.0]),
        lease=strategies.booleans(),
    )
    def some_come(self, many: int, timeout: float, lease: bool) -> None:
        self.users += [User(self, timeout, lease=lease) for _ in range(many)]

    @rule(which=index)
    def somebody_leaves(self, which: int) -> None:
        for user in self.pick(which):
            user.stop.set()

    @rule(which=index, how=end)
    def somebody_is_killed(self, which: int, how: BaseException) -> None:
        for user in self.pick(which):
            user.greenlet.kill(how, block=False)

    @rule(which=index)
    def somebody_forgets_the_connection(self, which: int) -> None:
        for user in self.pick(which):
            connection, user.connection = user.connection, None
            if connection is not None:
                connection.user = None
                self.pool.reclaim(connection)
            user.stop.set()

    @rule(step=strategies.sampled_from(["connect", "ping", "reset"]), how=end)
    def somebody_is_killed_inside_a_step(self, step: str, how: BaseException) -> None:
        self.stalled.append(Event())
        self.driver.plan[step].insert(0, self.stalled[-1])
        users = [user for user in self.users if user.connection is not None]
        if step == "reset" and users:
            assert users[0].connection is not None
            users[0].connection.dirty = True
            users[0].stop.set()
            victim = users[0]
        else:
            victim = User(self, 5.0)
            self.users.append(victim)
        gevent.sleep(0.001)
        victim.greenlet.kill(how, block=False)

    @rule(which=index, killed_first=strategies.booleans(), how=end)
    def somebody_is_killed_as_a_connection_comes_back(
        self, which: int, killed_first: bool, how: BaseException
    ) -> None:
        holders = [user for user in self.users if user.connection is not None]
        others = [user for user in self.users if user.waits()]
        if not holders:
            return
        holder = holders[which % len(holders)]
        connection, holder.connection = holder.connection, None
        assert connection is not None
        victim = others[0] if others else User(self, 5.0)  # the first in the queue, mostly
        connection.user = None
        if killed_first:  # dies with the connection in its hands
            victim.greenlet.kill(how, block=False)
        self.pool.release(connection)
        if not killed_first:
            victim.greenlet.kill(how, block=False)
        holder.stop.set()

    # --- Connections suffer

    @rule(which=index, harm=strategies.sampled_from(["dirty", "lost", "dead", "abandoned"]))
    def a_connection_suffers(self, which: int, harm: str) -> None:
        if not self.driver.open:
            return
        connection = self.driver.open[which % len(self.driver.open)]
        if harm == "dirty" and connection.user is not None:
            connection.dirty = True
        elif harm == "lost" and connection.user is not None:
            connection.fault = "lost"
        elif harm == "abandoned" and connection.user is not None:
            connection.fault, connection.at_work = "killed", True
        elif harm == "dead":
            connection.alive = False

    @rule()
    def somebody_looks_for_dead_ones(self) -> None:
        self.pool.drop_dead()
        assert all(entry.conn.alive for entry in self.pool._idle)

    @rule(step=strategies.sampled_from([*FakeDriver().plan]), what=trouble)
    def the_driver_gets_in_trouble(self, step: str, what: Any) -> None:
        if what == "stall":
            what = Event()
            self.stalled.append(what)
        self.driver.plan[step].append(DriverError(step) if what == "error" else what)

    @rule(error=strategies.sampled_from(["refused", "stall"]))
    def nobody_answers(self, error: str) -> None:
        if error == "stall":
            self.stalled.append(Event())
        self.driver.always["connect"] = self.stalled[-1] if error == "stall" else Unreachable()

    @rule()
    def the_driver_recovers(self) -> None:
        self.driver.always.clear()
        for event in self.stalled:
            event.set()
        self.stalled.clear()

    # --- Time passes

    @rule(seconds=strategies.sampled_from([0.0, 0.0, 0.002, 0.002, 0.06]))
    def time_passes(self, seconds: float) -> None:
        gevent.sleep(seconds)

    @rule(seconds=strategies.sampled_from([25.0, 120.0]))
    def much_time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(turns=strategies.integers(3, 8))
    def requests_arrive_faster_than_connections_come_back(self, turns: int) -> None:
        for _ in range(turns):
            self.some_come(many=3, timeout=60.0, lease=False)
            gevent.sleep(0)
            self.now += self.pool.timeout * STALL
            holders = [user for user in self.users if user.connection is not None]
            for user in holders[:1]:
                user.stop.set()
            gevent.sleep(0)

    # --- What must hold

    def refused(self, user: User, error: PoolTimeout) -> None:
        """Somebody got no connection in time."""
        shed = isinstance(error, PoolOverloaded)
        self.shed += shed
        if shed and user.connection is not None:
            self.scandals.append(f"{user.connection} was handed to one who was refused")

    @invariant()
    def refusals_are_counted(self) -> None:
        stats = self.pool.stats()
        assert self.shed <= stats["shed_total"] <= stats["timeouts_total"], "or killed meanwhile"

    @invariant()
    def each_entry_is_in_exactly_one_state(self) -> None:
        entries = self.pool._entries
        unopened = list(entries.connecting)
        opened = [*entries.leased.values(), *entries.idle, *entries.resetting, *entries.closing]
        assert len(set(unopened + opened)) == len(unopened + opened) == len(entries) <= CAP
        assert [entry.conn for entry in opened] == [entry.conn for entry in entries.open()]
        # The server may be at work for one that is closed.
        waiting = {entry for entry in entries.closing if entry.conn.closed}
        assert set(self.pool._to_replace) <= waiting
        there = {id(entry.conn) for entry in opened if entry not in waiting}
        assert there == {id(conn) for conn in self.driver.open}
        assert len(unopened) >= self.driver.connecting  # some have not begun yet

    @invariant()
    def the_gauges_agree(self) -> None:
        stats, entries = self.pool.stats(), self.pool._entries
        assert stats["in_use"] == len(entries.leased)
        assert stats["idle"] == len(entries.idle)
        assert stats["connecting"] == len(entries.connecting)
        assert stats["closing"] == len(entries.resetting) + len(entries.closing)
        states = ("in_use", "idle", "connecting", "closing")
        assert sum(stats[state] for state in states) == len(entries)
        used = [connection for connection in self.driver.open if connection.user is not None]
        assert len(used) <= stats["in_use"]

    @invariant()
    def the_cap_holds(self) -> None:
        stats = self.pool.stats()
        assert stats["in_use"] + stats["idle"] <= CAP
        assert len(self.driver.open) + self.driver.connecting <= CAP
        assert self.driver.peak <= CAP
        assert stats["idle"] <= self.pool.size

    @invariant()
    def nobody_got_what_is_not_fit_for_use(self) -> None:
        assert not self.scandals

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        stats = self.pool.stats()
        assert not (stats["waiting"] and stats["idle"])

    def pick(self, which: int) -> list[User]:
        """One of the users, if there are any; nothing else will happen to them."""
        return [self.users.pop(which % len(self.users))] if self.users else []

    def teardown(self) -> None:
        self.the_driver_recovers()
        for plan in self.driver.plan.values():
            plan.clear()
        for user in self.users:
            user.stop.set()
        assert_sound(self.pool, self.driver)
        stats = self.pool.stats()
        waits = stats["wait_seconds_buckets"]["+Inf"]
        assert waits >= stats["acquired_total"] + stats["timeouts_total"], "or killed meanwhile"
        self.pool.close()


def test_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tell_stories(PoolMachine, monkeypatch)
