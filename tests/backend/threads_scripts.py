"""What test_threads.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
from django.test import Client
from gevent.monkey import get_original

from pooled_serve.backend import scope
from support.inside import assert_sound, connection, connections, one, patch, pool, run, settle

real_start = get_original("_thread", "start_new_thread")
real_lock = get_original("_thread", "allocate_lock")


def in_real_thread(work: Callable[[], Any]) -> Any:
    """What it returns in what C extensions and gevent's own threadpool start."""
    done = real_lock()
    result: list[Any] = []
    done.acquire()

    def run_it() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)
        finally:
            done.release()

    real_start(run_it, ())
    while not done.acquire(False):
        time.sleep(0.005)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def known() -> set[int]:
    """The connections that the server knows."""
    gc.collect()  # a wrapper of Django's is part of a cycle
    return {row[0] for row in run("SHOW PROCESSLIST")}


def where() -> str:
    run("SELECT 1")
    return type(connections["default"].connection).__name__


def where_and_close() -> str:
    # With gevent's patches nothing of a thread's dies with it: Django's own rule, that
    # threads close what they opened, is the only way then.
    try:
        return where()
    finally:
        connection.close()


def gevents_threadpool_gets_plain_connections_which_are_closed() -> None:
    assert where() == "DatabaseSession"
    threads = gevent.get_hub().threadpool
    found = [threads.spawn(where).get() for _ in range(3)]
    assert set(found) == {"MySQLConnection"}, found
    assert pool().stats()["in_use"] == pool().stats()["opened_total"] == 1

    def leave() -> None:
        run("SELECT 1")
        connection.close()

    for _ in range(10):
        threads.spawn(leave).get()
    threads.kill()
    settle(lambda: len(known()) == 1)
    assert_sound()


def a_real_thread_is_not_pooled_and_its_connection_ends_with_it_at_the_latest() -> None:
    assert where() == "DatabaseSession"
    work = where_and_close if gevent.monkey.is_module_patched("socket") else where
    for _ in range(5):
        assert in_real_thread(work) == "MySQLConnection"
    settle(lambda: len(known()) == 1)
    assert pool().stats()["opened_total"] == 1
    assert_sound()


def a_thread_that_is_the_first_to_ask_does_not_become_the_pools() -> None:
    assert in_real_thread(where_and_close) == "MySQLConnection"
    assert where() == "DatabaseSession"
    settle(lambda: len(known()) == 1)
    assert_sound()


def many_real_threads_at_once_do_not_disturb_the_pool() -> None:
    threads = gevent.get_hub().threadpool

    def work() -> Any:
        return one("SELECT 40 + 2")

    def greenlet() -> None:
        for _ in range(10):
            assert work() == 42

    greenlets = [gevent.spawn(greenlet) for _ in range(8)]
    tasks = [threads.spawn(where_and_close) for _ in range(40)]
    gevent.joinall(greenlets, raise_error=True)
    assert {task.get() for task in tasks} == {"MySQLConnection"}
    threads.kill()
    assert pool().stats()["opened_total"] <= 4
    settle(lambda: len(known()) <= 4)
    assert_sound()


def a_lease_that_dies_in_another_thread_comes_back() -> None:
    gc.disable()

    class Cycle:
        me: object
        holder: object

    def work() -> None:
        run("SELECT 1")
        cycle = Cycle()
        cycle.me, cycle.holder = cycle, scope._local.sentinel

    gevent.spawn(work).join()
    assert pool().stats()["in_use"] == 1  # kept alive by the cycle
    in_real_thread(gc.collect)
    settle(lambda: pool().stats()["in_use"] == 0)
    assert pool().stats()["idle"] == 1
    assert_sound()


def gevents_own_threads_are_greenlets_and_pooled() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(where()))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(3) as threads:
        found += threads.map(lambda _: where(), range(9))
    assert set(found) == {"DatabaseSession"}, found
    assert_sound()


def async_views_get_right_answers() -> None:
    client = Client(raise_request_exception=False)
    logging.getLogger("django.request").disabled = True
    for path in ("asynchronous", "through_sync"):
        for number in range(5):
            answer = client.get(f"/{path}?n={number}")
            # Right or refused.
            assert answer.status_code in (200, 500), answer
            if answer.status_code == 200:
                assert answer.content == str(number).encode(), answer.content
    assert client.get("/unsafe").status_code == 500  # SynchronousOnlyOperation
    assert client.get("/plain?n=7").content == b"7"
    assert_sound()


def the_process_says_goodbye_also_for_connections_of_threads_that_closed_theirs() -> None:
    def leave() -> None:
        run("SELECT 1")
        connection.close()

    for _ in range(3):
        in_real_thread(leave)
    run("SELECT 1")
    patch.end_request()
