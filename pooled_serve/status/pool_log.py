"""Log lines about a pool: requests wait or are refused, the database is lost or back.

They are rare, in plain words, and true at the moment when they are written.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable

import gevent

from pooled_serve.driver.error_classes import CODE_REMEDY, failure_of_code
from pooled_serve.driver.error_codes import FULL, LOGIN_REFUSED, code_of, is_outage
from pooled_serve.pool.metrics import (
    BUCKET_BOUNDS_SECONDS,
    FAILED,
    NO,
    REACHABLE,
    WAIT_BUCKETS,
)
from pooled_serve.status.hanging_log import HangingLog, log_later
from pooled_serve.status.remedies import (
    FULL_REMEDY,
    LOGIN_REMEDY,
    LOST_REMEDY,
    STUCK_REMEDY,
)
from pooled_serve.status.repeats import CALM_SECONDS, Refusals, Repeats

log = logging.getLogger("gunicorn.error")

LOGGED_WAIT_SECONDS = 0.25
"""Shorter waits are not logged: short queues are what a pool is for. A bound of the histogram."""

OVERLOADED = "overloaded, late requests get 503"
AT_LIMIT = "at the limit of its host"
AT_CAP = "at its cap"
WAITING = "requests wait for the database"
PRESSURES = OVERLOADED, AT_LIMIT, AT_CAP, WAITING
"""What the log calls a pool whose requests wait."""

CHECK_REMEDY = "start it with --check instead, which says what may help"

POLL_SECONDS = 1.0
"""Between two looks at a queue that has had long waits."""

_LOGGED_WAITS = slice(
    WAIT_BUCKETS + bisect_right(BUCKET_BOUNDS_SECONDS, LOGGED_WAIT_SECONDS),
    WAIT_BUCKETS + len(BUCKET_BOUNDS_SECONDS) + 1,
)


class PoolLog(HangingLog):
    """Writes the lines about one pool.

    :param alias: names the pool in the lines.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(alias)
        self._watcher: gevent.Greenlet | None = None  # truthy while it runs
        self._pressure_logged = False
        self._refused = self._early = 0  # requests, and of these early, since the pressure began
        self._of_pressure, self._of_outage = Refusals(), Refusals()
        self._failed = 0  # requests, since the start
        self._of_failure = Refusals("500 Internal Server Error")
        self._pressure_lines, self._relief_lines = Repeats(), Repeats()
        self._lost_lines, self._failure_lines, self._shortage_lines = (Repeats() for _ in "123")
        self._retry_lines, self._gone_lines, self._abandoned_lines = (Repeats() for _ in "123")
        self._refusal_of_login_lines, self._hiccup_lines = Repeats(), Repeats()

    # --- Pressure ------------------------------------------------------------------------------

    def queued(self) -> None:
        """A request has begun to wait."""
        if not self._watcher:
            self._watcher = gevent.spawn(self._watch)

    def refused(self, error: str, *, early: bool = False) -> None:
        """A request was answered with 503.

        :param error: why, for the log.
        :param early: under overload, before its deadline.
        """
        self._refused += 1
        self._early += early
        cause = self._of_outage if self._unreachable else self._of_pressure
        cause.add(error, early=early)
        self._log_refusals()
        self.queued()

    def failed(self, error: Exception) -> None:
        """A request was answered with 500, because of an error of a connect that will not pass by
        itself; the log has it with a remedy already."""
        self._failed += 1
        self.pool.count(FAILED)
        self._of_failure.add(f"database {self._alias!r}: {in_a_line(error)}", early=False)
        self._log_refusals()
        self.queued()

    def _watch(self) -> None:
        """Run for as long as there is pressure: requests wait long, or are refused.

        Reads the queue, and the histogram for long waits that ended between two looks.
        """
        seen = self._logged_waits(), 0, self._failed - self._of_failure.unlogged
        began: float | None = None  # when pressure was seen first; last: when most recently
        last = 0.0
        while True:
            now = time.monotonic()
            waited = self.pool.longest_wait()
            signs = self._logged_waits(), self._refused, self._failed
            if waited >= LOGGED_WAIT_SECONDS or signs != seen:
                seen, last = signs, now
                if began is None:
                    began = now
                if waited >= LOGGED_WAIT_SECONDS:
                    self._log_pressure()
            elif began is None:
                if not self.pool.waiting:
                    self._watcher = None
                    return
            elif (
                now - last >= max(CALM_SECONDS, self._relief_lines.pause(now))
                and waited < LOGGED_WAIT_SECONDS / 2  # so that the line is true when it is written
                and not self.pool.full  # the next request would wait, too
                and not self._unreachable  # only the visitors have gone
            ):
                break
            self._log_refusals()
            soon = max(0.01, LOGGED_WAIT_SECONDS - waited)  # when the head may become a long wait
            gevent.sleep(soon if began is None else POLL_SECONDS)
        self._log_relief(last - began, int(now - last))

    @property
    def _unreachable(self) -> bool:
        return self.pool.row[REACHABLE] == NO

    def _logged_waits(self) -> float:
        """Returns how many there have been since the start."""
        return sum(self.pool.row[_LOGGED_WAITS])

    def _log_pressure(self) -> None:
        if self._pressure_lines.due(time.monotonic()):
            self._pressure_logged = True
            log.log(
                logging.WARNING if self._refused else logging.INFO,
                "pool %r%s: %s; the first has waited %.1fs",
                self._alias,
                self._pressure(),
                self.pool.describe(),
                self.pool.longest_wait(),
            )

    def _pressure(self) -> str:
        if self.pool.overloaded:
            return f" is {OVERLOADED}"
        if self.pool.host_is_full:
            return f" is {AT_LIMIT}"
        return f" is {AT_CAP}" if self.pool.full else f": {WAITING}"

    def _log_refusals(self) -> None:
        for cause in (self._of_pressure, self._of_outage):
            if text := cause.take(time.monotonic()):
                self._pressure_logged = True
                log.warning("%s", text)
        if text := self._of_failure.take(time.monotonic()):
            log.error("%s", text)

    def _log_relief(self, lasted: float, calm: int) -> None:
        causes = self._of_pressure, self._of_outage
        refused = self._refused
        logged = self._pressure_logged or any(cause.unlogged for cause in causes)
        early = f", {self._early} of them early" if self._early else ""
        self._refused = self._early = 0
        self._pressure_logged = False
        self._watcher = None  # first: a log handler may switch, and another queue form
        failures = self._of_failure.take(time.monotonic(), last=True)
        for cause in causes:
            cause.forget()  # the line below has them
        for lines in (self._pressure_lines, *(c.lines for c in (*causes, self._of_failure))):
            lines.anew()  # what comes now is another overload, or another trouble
        if failures:
            log.error("%s", failures)
        if logged:
            self._relief_lines.due(time.monotonic())
            log.log(
                logging.WARNING if refused else logging.INFO,
                "pool %r: the pressure is over, no wait above %gs in the last %ds; "
                "requests that got 503 in %.0fs: %d%s",
                self._alias,
                LOGGED_WAIT_SECONDS,
                calm,
                lasted,
                refused,
                early,
            )

    def log_rest(self) -> None:
        """Tell what is counted and no line has told yet: the worker ends. Not in another greenlet,
        which would not run any more."""
        for level, cause in (
            (logging.WARNING, self._of_pressure),
            (logging.WARNING, self._of_outage),
            (logging.ERROR, self._of_failure),
        ):
            if text := cause.take(time.monotonic(), last=True):
                log.log(level, "%s", text)
        for write, lines in (
            (self._write_retried, self._retry_lines),
            (self._write_gone, self._gone_lines),
        ):
            times, what = lines.rest(time.monotonic())
            if times is not None:
                write(log.log, times, what)

    # --- The database --------------------------------------------------------------------------

    def database_lost(self, error: Exception) -> bool:
        """The database cannot be reached. Returns whether a line was written."""
        due = self._lost_lines.event(time.monotonic())
        if due:
            text, said = "database %r cannot be reached%s: %s\n  → %s", in_a_line(error)
            if failure := failure_of_code(error):  # no server has said it
                text, said = "database %r: Python code fails in the connect%s: %s\n  → %s", failure
                remedy = CODE_REMEDY
            elif code_of(error) in FULL:  # it runs, and it answers
                text, remedy = "database %r: the server%s is full: %s\n  → %s", FULL_REMEDY
            else:
                # An outage is looked into at the server, any other error --check explains.
                remedy = LOST_REMEDY if is_outage(error) else CHECK_REMEDY
            log_later(logging.ERROR, text, self._alias, _at(error), said, remedy)
        return due

    def database_stuck(self, seconds: float) -> bool:
        """The server answers nothing. Returns whether a line was written."""
        due = self._lost_lines.event(time.monotonic())
        if due:
            log_later(
                logging.ERROR,
                "database %r does not answer: no statement and no inquiry had an answer in %.1fs\n"
                "  → %s",
                self._alias,
                seconds,
                STUCK_REMEDY,
            )
        return due

    def hiccup(self, seconds: float) -> None:
        """The server has answered nothing for a while, and does again."""
        if self._hiccup_lines.event(time.monotonic()):
            text = "database %r answered nothing for %.1fs, no statement and no inquiry"
            log_later(logging.WARNING, text, self._alias, seconds)
        self._hiccup_lines.over(time.monotonic())

    def login_refused(self, error: Exception) -> bool:
        """The server answers, but lets nobody in. Returns whether a line was written."""
        due = self._refusal_of_login_lines.event(time.monotonic())
        if due:
            log_later(
                logging.ERROR,
                "database %r: the server%s refuses the login: %s\n  → %s",
                self._alias,
                _at(error),
                in_a_line(error),
                LOGIN_REMEDY,
            )
        return due

    def usable(self) -> None:
        """The database lets this worker in, or answers again."""
        now = time.monotonic()
        self._of_outage.lines.over(now)
        self._of_failure.lines.over(now)
        for lines in (self._lost_lines, self._refusal_of_login_lines, self._failure_lines):
            lines.over(now)
        self._shortage_lines.over(now)

    def database_back(
        self, seconds: float, failures: int, *, refused: bool = False, full: bool = False
    ) -> None:
        """The database can be used again, after a line that said it cannot.

        :param failures: of this worker: none if only former ones have tried in vain.
        :param refused: the server could be reached, but refused the login.
        :param full: it could, but had no connection left.
        """
        room = "has connections left again" if full else "is back"
        log_later(
            logging.WARNING,
            "database %r %s after %.1fs%s",
            self._alias,
            "lets the user log in again" if refused else room,
            seconds,
            f"; failed attempts to connect: {failures}" if failures else "",
        )

    def retried(self, error: Exception) -> None:
        """A statement found its connection dead, and ran again."""
        what = in_a_line(error)
        if (times := self._retry_lines.count(time.monotonic(), what)) is not None:
            self._write_retried(log_later, times, what)

    def _write_retried(self, write: Callable[..., None], times: str, what: str) -> None:
        write(
            logging.WARNING,
            "pool %r: a statement found its connection dead, and runs on a fresh one%s: %s",
            self._alias,
            times,
            what,
        )

    def client_gone(self, what: str) -> None:
        """A request was ended, because its client has hung up."""
        if (times := self._gone_lines.count(time.monotonic(), what)) is not None:
            self._write_gone(log_later, times, what)

    def _write_gone(self, write: Callable[..., None], times: str, what: str) -> None:
        write(
            logging.INFO,
            "pool %r: a client has hung up, and its request was ended%s: %s",
            self._alias,
            times,
            what,
        )

    def not_let_go(self) -> None:
        """The server goes on with an abandoned statement."""
        if self._abandoned_lines.event(time.monotonic()):
            log_later(
                logging.WARNING,
                "pool %r: the server goes on with a statement whose request has gone, and may have "
                "more than %s connections of this worker until it ends",
                self._alias,
                f"{self.pool.cap:g}",
            )

    def no_more_connections(self, error: Exception) -> None:
        """The server refuses another connection; those that are open go on working."""
        if self._failure_lines.event(time.monotonic()):
            log_later(
                logging.WARNING,
                "pool %r cannot open another connection%s: %s\n  → %s",
                self._alias,
                _at(error, "to"),
                in_a_line(error),
                _remedy_for(code_of(error)),
            )

    def shortage(self, problem: str, remedy: str) -> bool:
        """This machine cannot open a connection. Returns whether a line was written."""
        due = self._shortage_lines.event(time.monotonic())
        if due:
            log_later(
                logging.ERROR,
                "pool %r cannot open a connection: %s\n  → %s",
                self._alias,
                problem,
                remedy,
            )
        return due

    def shortage_over(self, seconds: float, failures: int) -> None:
        """This machine can open connections again."""
        log_later(
            logging.WARNING,
            "pool %r can open connections again after %.1fs; failed attempts: %d",
            self._alias,
            seconds,
            failures,
        )


def _at(error: Exception, preposition: str = "at") -> str:
    """Which server has failed a connect, for a sentence: the driver names the host at most, and
    after a HUP it may be another one than before. Empty if no server was asked."""
    address = getattr(error, "address", "")
    return f" {preposition} {address}" if address else ""


def _remedy_for(code: int) -> str:
    if code in FULL:
        return FULL_REMEDY
    return LOGIN_REMEDY if code in LOGIN_REFUSED else LOST_REMEDY


def in_a_line(error: Exception) -> str:
    """A driver's error on one line, its code in parentheses."""
    code, *rest = error.args or ("",)
    text = f"{rest[0]} ({code})" if rest else f"{code}"
    return " ".join(text.split()) or type(error).__name__
