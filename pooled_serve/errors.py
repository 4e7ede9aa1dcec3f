"""What can go wrong, in one place: the pool's exceptions and the PSnnn problem codes.

Imports nothing of ours, so that every other module may import it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

# --- Exit codes of the command -----------------------------------------------------------------
# 3 and 4 are also what gunicorn's arbiter uses for workers that do not boot.

EXIT_SERVER = 1
EXIT_USAGE = 2
EXIT_PROJECT = 4
EXIT_PLAN = 5
EXIT_DATABASE = 6

# --- Problem codes -----------------------------------------------------------------------------

CODES: dict[str, str] = {
    "PS101": "the application module does not exist",
    "PS102": "the project fails while it is imported",
    "PS103": "the application module has no such attribute",
    "PS104": "the application is not a Django project",
    "PS105": "the settings module does not exist",
    "PS106": "the application is an ASGI application",
    "PS107": "a file path was given instead of a module name",
    "PS108": "the project has async views or middleware",
    "PS109": "the URL configuration fails while it is imported",
    "PS201": "the connection budget is larger than the server allows",
    "PS202": "the connection budget is larger than what the server has left now",
    "PS203": "connections would outlive the server's wait_timeout",
    "PS204": "max-outstanding is smaller than pool-size",
    "PS205": "--pool names a database that is not in DATABASES",
    "PS206": "connections never retire",
    "PS301": "the database server does not accept connections",
    "PS302": "the database host is unknown",
    "PS303": "the database refuses the user or password",
    "PS304": "the database does not exist or may not be used",
    "PS305": "the database server has no free connections",
    "PS306": "the login needs the cryptography package",
    "PS307": "the database server did not answer in time",
    "PS308": "the database server answers with an error",
    "PS309": "the TLS connection to the database server fails",
    "PS401": "an option has a value that cannot be used",
    "PS402": "an option is unknown",
    "PS403": "the configuration file cannot be used",
    "PS404": "the worker class is not gevent",
    "PS405": "no application was given",
    "PS501": "the address cannot be listened on",
    "PS502": "mysqlclient is loaded",
    "PS503": "another connection pool has patched Django",
    "PS504": "this Django has changed where pooled-serve plugs in",
}


class Level(enum.StrEnum):
    """How bad a :class:`Problem` is. ``--strict`` turns WARN into a refusal."""

    OK = "ok"
    NOTE = "note"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Problem:
    """One line of problem, one line of remedy, for a person at 3 a.m."""

    code: str
    problem: str
    remedy: str
    detail: str = ""  # the user's own error, where their code failed

    def __str__(self) -> str:
        detail = f"\n{self.detail}" if self.detail else ""
        return f"{self.code} {self.problem}{detail}\n  → {self.remedy}"


class Refusal(Exception):
    """pooled-serve will not start: which problems, and the exit code that says so."""

    def __init__(self, exit_code: int, problems: Iterable[Problem]) -> None:
        self.exit_code = exit_code
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def refuse(exit_code: int, code: str, problem: str, remedy: str, detail: str = "") -> Refusal:
    """Shorthand for a :class:`Refusal` with a single problem."""
    return Refusal(exit_code, [Problem(code, problem, remedy, detail)])


# --- The pool's exceptions ---------------------------------------------------------------------


class PoolError(Exception):
    """Base class of what a pool raises on its own account."""


class PoolTimeout(PoolError):
    """No connection could be handed out before the deadline.

    The counts are those of the moment when the wait ended; ``last_error`` is the error of the
    pool's last failed connect, if it has not connected since; ``longest_held`` is how long the
    longest lease has lasted, in seconds.
    """

    def __init__(
        self,
        pool: str,
        seconds: float,
        *,
        in_use: int,
        idle: int,
        waiting: int,
        cap: float,
        longest_held: float = 0.0,
        last_error: BaseException | None = None,
    ) -> None:
        self.pool = pool
        self.seconds = seconds
        self.in_use = in_use
        self.idle = idle
        self.waiting = waiting
        self.cap = cap
        self.longest_held = longest_held
        self.last_error = last_error
        why = f"; last connect error: {last_error}" if last_error is not None else ""
        limit = "unlimited" if cap == float("inf") else f"{cap:.0f}"
        super().__init__(
            f"pool {pool!r}: no connection within {seconds:g}s "
            f"({in_use} in use, {idle} idle, {waiting} waiting, cap {limit}, "
            f"longest held {longest_held:.1f}s){why}"
        )


class PoolClosed(PoolError):
    """The pool was closed: the process is shutting down."""
