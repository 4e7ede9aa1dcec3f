"""Errors: exit codes, what prevents a start, and the pool's exceptions.

Imports no other module of the package, so that every module may import it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# --- Exit codes of the command -----------------------------------------------------------------
# gunicorn's arbiter, too, exits with 3 or 4 when a worker does not boot.

EXIT_SERVER = 1
EXIT_USAGE = 2
EXIT_PROJECT = 4
EXIT_PLAN = 5
EXIT_DATABASE = 6

# --- Problems ----------------------------------------------------------------------------------
# problems.py lists the codes: PS1xx project, PS2xx plan, PS3xx database, PS4xx options, PS5xx run
# time.


class Level(enum.StrEnum):
    """Severity. ``--strict`` makes WARN fatal."""

    OK = "ok"
    NOTE = "note"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of problem and one line of remedy, for a person at 3 a.m.; or that all is well."""

    level: Level
    code: str  # as in PS203; empty for notes, and for what is well
    subject: str  # the database, server or setting that it is about; may be empty
    message: str
    hint: str = ""  # what to do about it
    detail: str = ""  # the user's own error, if their code failed
    exit_code: int = 0  # of --check and --strict, which refuse a warning that every request fails

    @property
    def label(self) -> str:
        """Code and subject, as in "PS203 default"."""
        return f"{self.code} {self.subject}".strip()

    def refusing(self) -> Finding:
        """The same, where a warning prevents the start."""
        return replace(self, level=Level.FAIL) if self.level is Level.WARN else self

    def __str__(self) -> str:
        detail = f"\n{self.detail}" if self.detail else ""
        return f"{self.label} {self.message}{detail}\n  → {self.hint}"


class StartupError(Exception):
    """pooled-serve does not start: the reasons, and the exit code for them."""

    def __init__(self, exit_code: int, problems: Iterable[Finding]) -> None:
        self.exit_code = exit_code
        self.problems = tuple(problems)
        super().__init__(self.exit_code, self.problems)  # pickle calls the class with these

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def startup_error(code: str, message: str, hint: str, detail: str = "") -> StartupError:
    """A :class:`StartupError` for one reason. A PS4xx code is a usage error, any other one the
    project's."""
    exit_code = EXIT_USAGE if code.startswith("PS4") else EXIT_PROJECT
    return StartupError(exit_code, [Finding(Level.FAIL, code, "", message, hint, detail)])


# --- The pool's exceptions ---------------------------------------------------------------------


class PoolError(Exception):
    """Base class of the pool's own exceptions."""


class PoolTimeout(PoolError):
    """No connection could be handed out before the deadline.

    ``seconds`` is what the wait was allowed. The counts are from the moment when it ended:
    connections in use (handed out), idle, being opened, and being reset or closed. ``state`` says
    the same in words; ``last_error`` is the error of the pool's last failed connect, if it has not
    connected since.
    """

    _problem = "no connection within {:g}s"

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
        connecting: int = 0,
        closing: int = 0,
        last_error: BaseException | None = None,
    ) -> None:
        self.pool = pool
        self.seconds = seconds
        self.in_use = in_use
        self.idle = idle
        self.connecting = connecting
        self.closing = closing
        self.waiting = waiting
        self.cap = cap
        self.state = state
        self.last_error = last_error
        why = f"; last connect error: {last_error}" if last_error is not None else ""
        super().__init__(f"pool {pool!r}: {self._problem.format(seconds)} ({state}){why}")


class PoolOverloaded(PoolTimeout):
    """A caller was refused before its deadline, because requests arrive faster than connections
    come back. ``seconds`` is how long it has waited."""

    _problem = "refused after {:.1f}s: requests arrive faster than connections come back"


class PoolOutage(PoolTimeout):
    """A caller was refused before its deadline, because no attempt to connect has worked for
    ``seconds``."""

    _problem = "refused: no connection to the database for {:.1f}s"


class PoolClientGone(PoolTimeout):
    """A caller left the queue after ``seconds``, because the client of its request has hung up; see
    ``--client-check``."""

    _problem = "gave up after {:.1f}s: the client has gone"


class PoolClosed(PoolError):
    """The pool was closed: the process is shutting down."""


def causes(error: BaseException | None, *, context: bool = True) -> Iterator[BaseException]:
    """Yields an error and what has caused it.

    :param context: whether what was handled when it was raised counts as a cause. That may be an
        error of the caller's, who asks for something in an ``except`` block of its own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # PyMySQL sets original_exception.
        cause = getattr(error, "original_exception", None) or error.__cause__
        error = cause or (error.__context__ if context else None)
