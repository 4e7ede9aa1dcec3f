"""A project on pooled-serve whose pool can be looked into, and what must be true of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support.client import Admin
from support.processes import wait_until
from support.serve import Response, Serve
from support.servers import Database

SLACK = 10.0
"""Seconds by which a busy machine may be late, where a test bounds how long something takes."""

CALM_SECONDS = 0.5
SOON_CALM = f"""
    from pooled_serve.status import pool_log, repeats

    pool_log.CALM_SECONDS = repeats.CALM_SECONDS = {CALM_SECONDS}
"""
"""Views of a site that takes an overload for over after so long; others take ten times as long."""

VIEWS = Path(__file__).with_name("site_views.py")


class Site:
    """VIEWS as served by a single worker, which is the only one to use `database`."""

    def __init__(self, server: Serve, admin: Admin, database: Database, cap: int) -> None:
        self.server = server
        self.admin = admin
        self.database = database
        self.cap = cap

    def run(self, sql: str, timeout: float = 30.0) -> Response:
        """A request with this statement."""
        return self.server.get("/run?" + urlencode({"sql": sql}), timeout=timeout)

    def give_up_after(self, seconds: float) -> None:
        """Let requests wait for a connection for no longer from now on, as --pool-timeout does, but
        for the one that it opens first: on a busy machine a login may take longer. Of one worker,
        until it ends."""
        assert self.run("SELECT 1").status == 200, self.server.log
        assert self.server.get(f"/tune?timeout={seconds}").status == 200

    def value(self, sql: str) -> str:
        """The last column of the only row."""
        answer = self.run(sql)
        assert answer.status == 200, self.server.log
        (row,) = answer.json()
        return str(row[-1])

    def is_encrypted(self) -> bool:
        """Whether the application speaks TLS to its server."""
        return bool(self.value("SHOW SESSION STATUS LIKE 'Ssl_cipher'"))

    def pool(self) -> dict[str, Any]:
        """The statistics of the worker's pool."""
        stats: dict[str, Any] = self.server.get("/pool").json()
        assert stats["in_use"] + stats["idle"] <= self.cap
        return stats

    def pool_at_rest(self) -> dict[str, Any]:
        """Those once all connections are idle: they are cleaned, and counted, after the answer,
        and what is being cleaned is not in use any more."""
        found: dict[str, Any] = {}

        def rests() -> bool:
            found.update(self.pool())
            there = found["opened_total"] - sum(found["closed_total"].values())
            return bool(found["idle"] == there and not found["waiting"])

        wait_until(rests)
        return found

    def connection_ids(self) -> set[int]:
        """What the server knows of the application."""
        return {row["Id"] for row in self.admin.processlist(self.database.user)}

    def sleepers(self) -> list[int]:
        """The connections on which the application runs a SLEEP(), as the server knows them."""
        rows = self.admin.processlist(self.database.user)
        return [row["Id"] for row in rows if "SLEEP" in str(row["Info"])]

    def fill(self) -> None:
        """Use the full cap at the same time."""
        path = f"/meet?guests={self.cap}"
        assert [answer.status for answer in self.at_once(path, self.cap)] == [200] * self.cap, (
            self.server.log
        )
        self.server.get("/part")

    def at_once(self, path: str, count: int) -> list[Response]:
        """The answers to so many requests at the same time."""
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(partial(self.server.get, timeout=60), [path] * count))

    def wait_until_served(self) -> float:
        """As after an outage: there is a second at most between two attempts to connect.

        Return when it was, in seconds of time.monotonic(). No request that begins later may fail.
        """
        wait_until(lambda: self.run("SELECT 1").status == 200, timeout=1 + SLACK)
        return time.monotonic()

    def assert_whole(self) -> None:
        """Nothing is lost: no slot, no waiter, no connection; the full cap can be taken."""
        self.server.get("/tune?timeout=30")  # by a busy machine, too, if not by --pool-timeout
        self.fill()
        try:
            wait_until(self._is_quiet)
        except AssertionError:
            stats, known = self.pool(), sorted(self.connection_ids())
            numbers = {key: stats[key] for key in ("in_use", "waiting", "idle")}
            raise AssertionError(
                f"the pool has {numbers}, and the server that site() was given, by default "
                f"MariaDB, knows {known} of {self.database.user}; site(server=...) takes another"
            ) from None

    def _is_quiet(self) -> bool:
        stats = self.pool()
        if stats["in_use"] or stats["waiting"]:
            return False
        if not stats["idle"]:  # a busy machine has looked only when all were too old
            self.fill()
            return False
        return len(self.connection_ids()) == int(stats["idle"])
