"""Real threads connect as without a pool; async code is right or refused, never silently wrong."""

from __future__ import annotations

from typing import Any

import pytest

from support.script import run_script
from support.servers import Database, Server


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def script(project: Any, database: Database) -> Any:
    def script(source: str, *, gevent: bool = True, views: str = "") -> Any:
        folder = project(views, databases={"default": database.django(CONN_MAX_AGE=60)})
        return run_script(folder, THREADS + source, gevent=gevent)

    return script


THREADS = """
        import _thread, threading
        from gevent.monkey import get_original

        real_start = get_original("_thread", "start_new_thread")
        real_lock = get_original("_thread", "allocate_lock")

        def in_real_thread(work):
            # What C extensions and gevent's own threadpool start.
            done, result = real_lock(), []
            done.acquire()
            def run_it():
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

        def known():
            gc.collect()  # a wrapper of Django's is part of a cycle
            return {row[0] for row in run("SHOW PROCESSLIST")}

        def where():
            run("SELECT 1")
            return type(connections["default"].connection).__name__

        def where_and_close():
            # With gevent's patches nothing of a thread's dies with it: Django's own rule, that
            # threads close what they opened, is the only way then.
            try:
                return where()
            finally:
                connection.close()
"""


def test_gevents_threadpool_gets_plain_connections_which_are_closed(script: Any) -> None:
    script(
        """
        assert where() == "DatabaseSession"
        threads = gevent.get_hub().threadpool
        found = [threads.spawn(where).get() for _ in range(3)]
        assert set(found) == {"MySQLConnection"}, found
        assert pool().stats()["in_use"] == pool().stats()["opened_total"] == 1

        def leave():
            run("SELECT 1")
            connection.close()
        for _ in range(10):
            threads.spawn(leave).get()
        threads.kill()
        settle(lambda: len(known()) == 1)
        assert_sound()
        """
    )


@pytest.mark.parametrize("gevent", [True, False])
def test_a_real_thread_is_not_pooled_and_its_connection_ends_with_it_at_the_latest(
    script: Any, gevent: bool
) -> None:
    script(
        """
        assert where() == "DatabaseSession"
        work = where_and_close if gevent.monkey.is_module_patched("socket") else where
        for _ in range(5):
            assert in_real_thread(work) == "MySQLConnection"
        settle(lambda: len(known()) == 1)
        assert pool().stats()["opened_total"] == 1
        assert_sound()
        """,
        gevent=gevent,
    )


@pytest.mark.parametrize("gevent", [True, False])
def test_a_thread_that_is_the_first_to_ask_does_not_become_the_pools(
    script: Any, gevent: bool
) -> None:
    script(
        """
        assert in_real_thread(where_and_close) == "MySQLConnection"
        assert where() == "DatabaseSession"
        settle(lambda: len(known()) == 1)
        assert_sound()
        """,
        gevent=gevent,
    )


def test_many_real_threads_at_once_do_not_disturb_the_pool(script: Any) -> None:
    script(
        """
        threads = gevent.get_hub().threadpool
        def work():
            return one("SELECT 40 + 2")
        def greenlet():
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
        """
    )


def test_a_lease_that_dies_in_another_thread_comes_back(script: Any) -> None:
    script(
        """
        gc.disable()
        from pooled_serve.backend import scope
        class Cycle: pass
        def work():
            run("SELECT 1")
            cycle = Cycle()
            cycle.me, cycle.holder = cycle, scope._local.sentinel
        gevent.spawn(work).join()
        assert pool().stats()["in_use"] == 1  # kept alive by the cycle
        in_real_thread(gc.collect)
        settle(lambda: pool().stats()["in_use"] == 0)
        assert pool().stats()["idle"] == 1
        assert_sound()
        """
    )


def test_gevents_own_threads_are_greenlets_and_pooled(script: Any) -> None:
    script(
        """
        from concurrent.futures import ThreadPoolExecutor
        found = []
        thread = threading.Thread(target=lambda: found.append(where()))
        thread.start()
        thread.join()
        with ThreadPoolExecutor(3) as threads:
            found += threads.map(lambda _: where(), range(9))
        assert set(found) == {"DatabaseSession"}, found
        assert_sound()
        """
    )


def test_async_views_get_right_answers(script: Any) -> None:
    script(
        """
        from django.test import Client
        client = Client(raise_request_exception=False)
        import logging
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
        """,
        views="""
            from asgiref.sync import async_to_sync, sync_to_async
            from django.db import connection
            from django.http import HttpResponse

            def ask(number):
                with connection.cursor() as cursor:
                    cursor.execute("SELECT %s", [int(number)])
                    return HttpResponse(str(cursor.fetchone()[0]))

            def plain(request):
                return ask(request.GET["n"])

            async def asynchronous(request):
                return await sync_to_async(ask)(request.GET["n"])

            def through_sync(request):
                @async_to_sync
                async def go():
                    return await sync_to_async(ask, thread_sensitive=False)(request.GET["n"])
                return go()

            async def unsafe(request):
                return ask(1)
        """,
    )


def test_the_process_says_goodbye_also_for_connections_of_threads_that_closed_theirs(
    script: Any, mariadb: Server, database: Database
) -> None:
    before = mariadb.admin.aborted_clients()
    script(
        """
        def leave():
            run("SELECT 1")
            connection.close()
        for _ in range(3):
            in_real_thread(leave)
        run("SELECT 1")
        patch.end_request()
        """
    )
    assert mariadb.admin.aborted_clients() == before
