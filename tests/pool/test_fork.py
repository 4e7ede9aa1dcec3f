"""A forked child leaves the connections of its parent alone, whatever they are in the middle of."""

from __future__ import annotations

import os

import gevent
import gevent.os
from gevent.event import Event

from support.driver import FakeDriver, settle
from support.pools import MakePool
from support.processes import MAX_WAIT_SECONDS


def test_a_forked_child_leaves_the_parents_connections_alone(driver: FakeDriver) -> None:
    pool = driver.pool(size=2, max_outstanding=2)
    idle, taken = pool.acquire(), pool.acquire()
    pool.release(idle)
    child = os.fork()
    if child == 0:
        try:
            assert idle.abandoned
            assert taken.abandoned
            assert driver.calls["close"] == 0
            pool.release(taken)  # the child's copy of its user does not know better
            fresh = [pool.acquire(), pool.acquire()]
            assert idle not in fresh
            assert taken not in fresh
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not taken.abandoned
    pool.release(taken)
    assert pool.stats()["idle"] == 2
    pool.close()


def test_forked_while_it_connects_the_child_leaves_the_connection_alone(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    connecting = driver.plan["connect"]
    gate = Event()
    connecting.append(gate)
    user = gevent.spawn(pool.acquire)
    settle(lambda: driver.connecting == 1)
    child = gevent.os.fork_gevent()
    gate.set()
    if child == 0:
        try:
            connection = user.get(timeout=MAX_WAIT_SECONDS)
            assert not connection.abandoned
            assert driver.open[0].abandoned
            assert driver.open[0] is not connection
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool.release(user.get(timeout=MAX_WAIT_SECONDS))


def test_forked_while_a_connection_is_reset_the_child_leaves_it_alone(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    pool = make_pool(size=1, max_outstanding=1)
    resetting = Event()
    driver.plan["reset"] = [resetting]
    taken = pool.acquire()
    taken.dirty = True
    user = gevent.spawn(pool.release, taken)
    settle(lambda: driver.calls["reset"] == 1)
    child = gevent.os.fork_gevent()
    resetting.set()
    if child == 0:
        try:
            user.get(timeout=MAX_WAIT_SECONDS)
            assert pool.stats()["idle"] == pool.stats()["in_use"] == 0
            assert pool.acquire() is not taken
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    user.get(timeout=MAX_WAIT_SECONDS)
    assert pool.acquire() is taken
    pool.release(taken)


def test_forked_during_an_inquiry_the_child_leaves_its_login_alone(
    make_pool: MakePool, driver: FakeDriver
) -> None:
    """It would say goodbye on the parent's socket."""
    pool = make_pool(size=1, max_outstanding=1)
    driver.plan["connect"] = [gate := Event()]
    inquiry = gevent.spawn(pool.inquire, MAX_WAIT_SECONDS)
    settle(lambda: driver.connecting == 1)
    child = gevent.os.fork_gevent()
    gate.set()
    if child == 0:
        try:
            assert inquiry.get(timeout=MAX_WAIT_SECONDS) is None
            assert driver.open[0].abandoned
            assert driver.calls["close"] == 0
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert inquiry.get(timeout=MAX_WAIT_SECONDS) is True
    assert not driver.open
