"""What comes of a HUP, for the log and the status page: whether it was refused, which databases are
elsewhere now, and what is wrong with the settings.

The master reads the options, and the new workers the settings of the project. So one of these tells
of them: the first one of each reload.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gunicorn.arbiter import Arbiter

from pooled_serve.errors import Finding, StartupError
from pooled_serve.preflight.plan import Plan
from pooled_serve.preflight.reports import DatabaseReport
from pooled_serve.status.scoreboard import Scoreboard

log = logging.getLogger("gunicorn.error")

BOOT_ERRORS = (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR)
"""With which gunicorn's master exits then."""

_ROOM = 1 << 20
"""For names of databases. Nothing is told of more, which tenants may make: the log would be full of
them."""


class Reloads:
    """Made by the master, once, before it forks.

    :param scoreboard: of the status page; None without one.
    :param databases: as the preflight has found them.
    """

    def __init__(self, scoreboard: Scoreboard | None, databases: Sequence[DatabaseReport]) -> None:
        self._scoreboard = scoreboard
        self._memory = mmap.mmap(-1, _ROOM)  # written by one worker of each reload
        self._teller = 0
        self._master = os.getpid()
        self._remember({each.alias: each.address for each in databases if each.pooled})

    def refused(self, error: StartupError, *, anew: bool) -> None:
        """The new options cannot be used. The page says so until others can: a log of many workers
        is long, and the next restart may be far away.

        :param anew: whether the new workers load the project anew.
        """
        if self._scoreboard is not None:
            self._scoreboard.note_reload(error.problems[0].code)
        also = ", and load the project anew" if anew else ""
        log.error(
            "Not reloaded, the old options stay (the workers are replaced%s): %s", also, error
        )

    def done(self, plan: Plan) -> None:
        """The new options are in use."""
        from pooled_serve.preflight import render

        if self._scoreboard is not None:
            self._scoreboard.note_reload()
        for level, text in render.reloaded(plan):
            log.log(level, "%s", text)

    def begin(self, last_age: int) -> None:
        """New workers are about to be forked.

        :param last_age: gunicorn's number of the last worker so far.
        """
        self._teller = last_age + 1

    def tell(
        self,
        age: int,
        addresses: Callable[[], Mapping[str, str]],
        problems: Callable[[Mapping[str, str]], Sequence[Finding]] = lambda _: (),
    ) -> None:
        """Log which databases are elsewhere than before the reload, and what is wrong with the
        settings: a HUP asks no preflight. Runs in each worker.

        :param age: gunicorn's number of this worker.
        :param addresses: returns alias -> server, as this worker's settings have it.
        :param problems: see :func:`pooled_serve.preflight.loaded.problems`.
        """
        if age != self._teller:
            return
        former, found = self._remembered(), addresses()
        now = {alias: address for alias, address in found.items() if address}
        for alias, address in now.items():
            if (was := former.get(alias, address)) != address:
                log.info("Reloaded: %s: %s (was %s)", alias, address, was)
        self._remember({**former, **now})
        refused = problems(found)
        for problem in refused:
            log.error("Reloaded with settings that --check refuses: %s", problem)
        if refused and self._scoreboard is not None:
            self._scoreboard.note_reload(refused[0].code)

    @contextlib.contextmanager
    def last_line(self) -> Iterator[None]:
        """Say why the server ends, if a worker could not load the project: what the worker has said
        stands above many lines of tracebacks."""
        try:
            yield
        except SystemExit as end:
            if os.getpid() == self._master and end.code in BOOT_ERRORS:
                log.error(
                    "the server has ended, as a worker could not load the project\n"
                    "  → see the line with PS above, or run the same command with --check"
                )
            raise

    def _remember(self, addresses: Mapping[str, str]) -> None:
        packed = json.dumps(addresses).encode()
        if len(packed) >= _ROOM:
            packed = b"{}"
        self._memory[: len(packed) + 1] = packed + b"\0"

    def _remembered(self) -> dict[str, str]:
        packed, _, _ = self._memory[:].partition(b"\0")
        try:
            found: Any = json.loads(packed)
        except ValueError:  # the worker that wrote it was killed meanwhile
            return {}
        return dict(found)
