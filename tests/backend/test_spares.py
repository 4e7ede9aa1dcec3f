"""Wrappers that are used again: as good as new, or not at all."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest

from pooled_serve.backend.spares import MOST
from support.script import run_script
from support.servers import Server

REQUEST = """
def request(left=""):
    run("SELECT 1")
    wrapper = connections["default"]
    connection.close()  # which Django does at the end of a request
    exec(left)
    patch.end_request()
    return wrapper

request()  # the server is known now
"""


@pytest.fixture
def script(project: Any, mariadb: Server) -> Any:
    def script(source: str, **env: str) -> Any:
        folder = project(databases={"default": mariadb.create_database().django()})
        return run_script(folder, dedent(REQUEST) + dedent(source), **env)

    return script


def test_the_next_request_in_another_greenlet_uses_the_wrapper_again(script: Any) -> None:
    script(
        """
        left = "with transaction.atomic(), transaction.atomic(): run('SELECT 1')"
        left += chr(10) + "connection.close()"
        used = [gevent.spawn(request, left).get() for _ in range(5)]
        assert len(set(map(id, used))) == 1
        assert_sound()
        """
    )


def test_its_off_switch(script: Any) -> None:
    script("assert request() is not request()", POOLED_SERVE_WITHOUT="wrappers")


def test_a_django_that_has_moved_what_we_rely_on_is_served_all_the_same(script: Any) -> None:
    script(
        """
        from pooled_serve.backend import spares
        spares._RELIED_ON.add("gone")
        patch._databases.clear()
        assert request() is not request()
        """
    )


def test_flags_are_restored(script: Any) -> None:
    script(
        """
        wrapper = connections["default"]
        new = {
            name: value for name, value in vars(wrapper).items()
            if isinstance(value, (bool, int, type(None)))
            and name not in ("connection", "in_atomic_block", "needs_rollback", "_thread_ident",
                             "_thread_sharing_count")
        }
        assert len(new) > 8
        for name, value in new.items():
            setattr(wrapper, name, 1 if value is None else not value)
        patch.end_request()
        assert connections["default"] is wrapper
        assert {name: getattr(wrapper, name) for name in new} == new
        """
    )


@pytest.mark.parametrize(
    "left",
    [
        "connection.tenant = 'one'",
        "connection.cursor = connection.cursor",
        "transaction.atomic().__enter__()",
        "connection.in_atomic_block = True",
        "connection.needs_rollback = True",
        "connection.savepoint_ids.append('s1')",
        "connection.execute_wrappers.append(print)",
        "connection.run_on_commit.append((set(), print, False))",
        "connection.inc_thread_sharing()",
        "connection.force_debug_cursor = True; run('SELECT 1'); connection.close()",
        "run('SELECT 1')",  # and it is not closed
        "del connection.run_on_commit",
        "connections['default'] = connections['default'].copy()",
    ],
)
def test_what_a_request_left_in_it_is_not_seen_again(script: Any, left: str) -> None:
    script(
        f"""
        wrapper = request()
        assert request({left!r}) is wrapper
        assert request() is not wrapper
        assert not hasattr(connection, "tenant")
        assert_sound()
        """
    )


def test_whoever_keeps_it_cannot_use_it_any_more(script: Any) -> None:
    script(
        """
        from django.db import DatabaseError

        def refused(wrapper):
            try:
                wrapper.cursor()
            except DatabaseError as error:
                return "can only be used in that same thread" in str(error)

        kept = request()
        assert refused(kept)  # while nobody has it
        assert gevent.spawn(lambda: connections["default"]).get() is kept
        assert refused(kept)  # while another greenlet does
        """
    )


def test_a_spike_does_not_leave_more_than_so_many(script: Any) -> None:
    used = script(
        """
        from gevent.event import Event
        def crowd():
            go, wrappers = Event(), []
            def wait():
                wrappers.append(connections["default"])
                go.wait()
                patch.end_request()
            greenlets = [gevent.spawn(wait) for _ in range(100)]
            gevent.sleep(0)
            go.set()
            gevent.joinall(greenlets, raise_error=True)
            return wrappers
        first, second = crowd(), crowd()
        report(len(set(map(id, first)) & set(map(id, second))))
        """
    )
    assert used == MOST
