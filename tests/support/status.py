"""A status listener, a site that has one, and the fixture that starts it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest

from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Response
from support.site import Site

StartSite = Callable[..., Site]

SLEEP = "/run?sql=SELECT+SLEEP({})"


class StatusListener:
    """The numbers of whatever is served."""

    def __init__(self, address: Any) -> None:
        self.address = address

    def get(
        self, path: str = "/", method: str = "GET", *, timeout: float = 30.0, **headers: str
    ) -> Response:
        with closing(Client(self.address, timeout)) as client:
            return client.request(method, path, headers=headers)

    def stats(self, timeout: float = 30.0) -> dict[str, Any]:
        answer = self.get("/stats.json", timeout=timeout)
        assert answer.status == 200
        stats: dict[str, Any] = answer.json()
        return stats

    def pool(self, alias: str = "default") -> dict[str, Any]:
        pool: dict[str, Any] = self.stats()["pools"][alias]
        return pool

    def wait_for(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first numbers of which it is true. Of what is not there yet, such as a pool that no
        request has needed, it is not. Whom a worker that ends hangs up on asks again."""

        last: dict[str, Any] = {}

        def found() -> dict[str, Any]:
            nonlocal last
            with suppress(OSError, http.client.HTTPException):
                last = self.stats()
                with suppress(LookupError):
                    return last if condition(last) else {}
            return {}

        def numbers() -> str:
            return f"the last numbers are:\n{pformat(last, compact=True, width=100)}"

        return wait_until(found, asked=condition, showing=numbers)

    def pool_at_rest(self) -> dict[str, Any]:
        """Once all connections are idle: they are cleaned, and come back, after the answer. What
        is being cleaned is not in use any more, and not idle yet."""

        def rests(pool: dict[str, Any]) -> bool:
            there = pool["opened_total"] - sum(pool["closed_total"].values())
            return bool(pool["idle"] == there and pool["waiting"] == 0)

        stats = self.wait_for(lambda stats: all(map(rests, stats["pools"].values())))
        pool: dict[str, Any] = stats["pools"]["default"]
        return pool


def patience(folder: Path, seconds: float) -> tuple[str, str]:
    """Options that give clients of the status listener so much time."""
    conf = folder / "patience.py"
    conf.write_text(
        "def post_worker_init(worker):\n"
        "    from pooled_serve.status import clients\n"
        f"    clients.CLIENT_TIMEOUT_SECONDS = {seconds}\n"
    )
    return ("-c", str(conf))


class Status(StatusListener):
    """A site and its status listener."""

    def __init__(self, site: Site, address: Any) -> None:
        super().__init__(address)
        self.site = site


StartStatus = Callable[..., Status]


@pytest.fixture
def status(site: StartSite) -> StartStatus:
    """Starts a site with a status listener; the arguments are those of `site`."""

    def start(*args: str, **options: Any) -> Status:
        address = ("127.0.0.1", free_port())
        served = site("--status", "{}:{}".format(*address), *args, **options)
        return Status(served, address)

    return start


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Of the test's own: its requests have ended, whatever came of them."""
    threads = threading.active_count()
    yield
    assert threading.active_count() == threads
