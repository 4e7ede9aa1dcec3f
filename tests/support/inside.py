"""Inside the process of a project: asking its databases, and looking into its pools.

For scripts that support.script runs, and for views: nothing may be imported here that a server
would not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gevent
from django import db

from support.processes import source_of

# Of MySQL, which Django's types do not know; and with private parts that tests change.
connection: Any = db.connection
connections: Any = db.connections
patch: Any = import_module("pooled_serve.backend.patch")


def run(sql: str, *args: Any, alias: str = "default") -> list[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, args or None)
        return list(cursor.fetchall()) if cursor.description else []


def one(sql: str, *args: Any, alias: str = "default") -> Any:
    return run(sql, *args, alias=alias)[0][0]


def refused(error: type[Exception], do: Callable[..., object], *args: Any) -> str:
    """What the error says with which it ends."""
    try:
        do(*args)
    except error as caught:
        return str(caught)
    raise AssertionError(f"it was not refused: {args}")


def pool(alias: str = "default") -> Any:
    return patch.pools()[alias]


def in_use(alias: str = "default") -> int:
    return int(pool(alias).stats()["in_use"])


def settle(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            stats = {alias: pool(alias).stats() for alias in patch.pools()}
            raise AssertionError(f"not so within {seconds:g} s: {source_of(condition)}, {stats}")
        gevent.sleep(0.005)


def assert_sound(alias: str = "default") -> None:
    """No slot is lost, the server knows the pool's connections and no more."""
    patch.end_request()
    it = pool(alias)
    settle(lambda: it.stats()["in_use"] == it.stats()["waiting"] == 0)
    assert it.stats()["idle"] <= it.size
    cap = it.stats()["max_outstanding"]
    if cap is None:
        return
    # Connections opened for waiters have the pool's timeout, whatever the waiter's own is: one that
    # a test has made short must not be too short for a login on a busy machine.
    it.timeout = 30
    taken = [it.acquire(timeout=30) for _ in range(cap)]

    def known() -> set[int]:
        with taken[0].cursor() as cursor:
            cursor.execute("SHOW PROCESSLIST")
            return {row[0] for row in cursor.fetchall()}

    ours = {conn.thread_id() for conn in taken}
    assert len(ours) == cap
    settle(lambda: known() == ours)  # the server takes a moment to forget what was closed
    for conn in taken:
        assert not (conn._status_at_rest and conn.transaction_unknown)
        it.release(conn)
