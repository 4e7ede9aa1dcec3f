"""What can go wrong, in one place: the pool's exceptions and the PSnnn problem codes.

Imports nothing of ours, so that every other module may import it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

# --- Exit codes of the command -----------------------------------------------------------------
# 3 and 4 are also what gunicorn's arbiter uses for workers that do not boot.

EXIT_SERVER = 1
EXIT_USAGE = 2
EXIT_PROJECT = 4
EXIT_PLAN = 5
EXIT_DATABASE = 6

# --- Problem codes -----------------------------------------------------------------------------


class Code(NamedTuple):
    """What a problem code stands for, and what usually helps. The message itself has the names
    and the numbers; this is what the README lists."""

    problem: str
    remedy: str


CODES: dict[str, Code] = {
    "PS101": Code(
        "the application module does not exist",
        "run the command where `manage.py` is, or add `--chdir DIR`",
    ),
    "PS102": Code(
        "the project fails while it is imported",
        "the error, file and line are in the message; `manage.py check` shows it too",
    ),
    "PS103": Code(
        "the application module has no such attribute, or it is not callable",
        "name what `get_wsgi_application()` returned, as in `myproject.wsgi:application`",
    ),
    "PS104": Code(
        "the application is not a Django project, or names no settings",
        "name the `wsgi` module of a Django project; set `DJANGO_SETTINGS_MODULE` or `--settings`",
    ),
    "PS105": Code(
        "the settings module does not exist",
        "correct `DJANGO_SETTINGS_MODULE`, or use `--settings MODULE`",
    ),
    "PS106": Code(
        "the application is an ASGI application",
        "use the project's `wsgi` module",
    ),
    "PS107": Code(
        "a file path was given instead of a module name",
        "write `myproject.wsgi`, not `myproject/wsgi.py`",
    ),
    "PS108": Code(
        "the project has async views or middleware",
        "make them plain functions: under gevent those do not block other requests",
    ),
    "PS109": Code(
        "the URL configuration fails while it is imported",
        "correct the error in the message, or every request will meet it",
    ),
    "PS201": Code(
        "the connection budget is larger than the server allows",
        "lower `--max-outstanding` or `--workers`, or raise the server's limit; see Sizing",
    ),
    "PS202": Code(
        "the connection budget is larger than what the server has left now",
        "fine during a deploy, if the old instance holds the rest; else as PS201",
    ),
    "PS203": Code(
        "connections would outlive the server's `wait_timeout`",
        "lower `--conn-max-age` (or `CONN_MAX_AGE`), or raise `wait_timeout`",
    ),
    "PS204": Code(
        "max-outstanding is smaller than pool-size",
        "lower the one or raise the other",
    ),
    "PS205": Code(
        "`--pool` names a database that is not in `DATABASES`",
        "use one of the aliases that the message lists",
    ),
    "PS206": Code(
        "connections never retire",
        "give `--conn-max-age` a number; an hour is long",
    ),
    "PS207": Code(
        "the project calls `pooled_serve.pooling`, whose numbers do not count under the command",
        "delete the calls; use `--pool-size` and `--max-outstanding`",
    ),
    "PS301": Code(
        "the database server does not accept connections",
        "start it, or correct `HOST` and `PORT` in `DATABASES`",
    ),
    "PS302": Code(
        "the database host is unknown",
        "correct `HOST` in `DATABASES`, or the name service",
    ),
    "PS303": Code(
        "the database refuses the user or password",
        "correct `USER` and `PASSWORD` in `DATABASES`; accounts depend on the client's host too",
    ),
    "PS304": Code(
        "the database does not exist or may not be used",
        "create it, or `GRANT` the user rights on it",
    ),
    "PS305": Code(
        "the database server has no free connections",
        "end idle connections of others (`SHOW PROCESSLIST`), or raise the limit",
    ),
    "PS306": Code(
        "the login needs the cryptography package",
        "`pip install 'pooled-serve[rsa]'`, or use TLS",
    ),
    "PS307": Code(
        "the database server did not answer in time",
        "it may be frozen, or a firewall drops packets; try `mysqladmin -h HOST ping`",
    ),
    "PS308": Code(
        "the database server answers with an error",
        "the error is in the message; see the server's error log",
    ),
    "PS309": Code(
        "the TLS connection to the database server fails",
        "correct the `ssl` options of `OPTIONS` in `DATABASES`",
    ),
    "PS401": Code(
        "an option has a value that cannot be used",
        "the message names the option, and the variable or file that it came from",
    ),
    "PS402": Code(
        "an option is unknown",
        "the message has the nearest name; `pooled-serve --help` lists all",
    ),
    "PS403": Code(
        "the configuration file cannot be used",
        "the error, file and line are in the message",
    ),
    "PS404": Code(
        "the worker class is not gevent",
        "remove `-k`; look in `gunicorn.conf.py` and `GUNICORN_CMD_ARGS` as well",
    ),
    "PS405": Code(
        "no application was given",
        "`pooled-serve myproject.wsgi`, or `wsgi_app` in `gunicorn.conf.py`",
    ),
    "PS406": Code(
        "the listening sockets were inherited, and none of them is the status page's",
        "add one where the others come from (systemd, `fd://`, USR2), or leave out `--status`",
    ),
    "PS501": Code(
        "the address cannot be listened on",
        "stop the process that the message names, or choose another with `-b`",
    ),
    "PS502": Code(
        "mysqlclient is loaded",
        "remove the import of `MySQLdb` from the configuration file or the project",
    ),
    "PS503": Code(
        "another connection pool has patched Django",
        "remove the call that applies it; the message names its module",
    ),
    "PS504": Code(
        "a package has changed where pooled-serve plugs in",
        "install the version of it that the message names, or a newer pooled-serve",
    ),
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

    def __reduce__(self) -> Any:
        # Exceptions are pickled by their text, which is not what this one is made of.
        return Refusal, (self.exit_code, self.problems)


def refuse(exit_code: int, code: str, problem: str, remedy: str, detail: str = "") -> Refusal:
    """Shorthand for a :class:`Refusal` with a single problem."""
    return Refusal(exit_code, [Problem(code, problem, remedy, detail)])


# --- The pool's exceptions ---------------------------------------------------------------------


class PoolError(Exception):
    """Base class of what a pool raises on its own account."""


class PoolTimeout(PoolError):
    """No connection could be handed out before the deadline.

    The counts are those of the moment when the wait ended, and ``state`` has them in words;
    ``last_error`` is the error of the pool's last failed connect, if it has not connected since.
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
        state: str,
        last_error: BaseException | None = None,
    ) -> None:
        self.pool = pool
        self.seconds = seconds
        self.in_use = in_use
        self.idle = idle
        self.waiting = waiting
        self.cap = cap
        self.state = state
        self.last_error = last_error
        why = f"; last connect error: {last_error}" if last_error is not None else ""
        super().__init__(f"pool {pool!r}: no connection within {seconds:g}s ({state}){why}")


class PoolClosed(PoolError):
    """The pool was closed: the process is shutting down."""
