"""Whether a pool's database can be reached, for ``/readyz`` and the log; and the probe that finds
out, without traffic, that a lost database is back.

A server that is frozen (its disk is stuck, its host too, or the network drops all packets) takes
statements, and refuses nothing. So when no statement has had an answer for a second, it is asked
something that waits for no lock, by a ping or a login. Slow statements and locks are told from a
stuck server by its answer to that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent

from pooled_serve.driver.error_codes import (
    FULL,
    HUNG_UP,
    LOGIN_REFUSED,
    NOT_REACHED,
    code_of,
    is_answer,
)
from pooled_serve.pool import ConnectionPool, PoolListener, metrics
from pooled_serve.pool.asked import Asked
from pooled_serve.pool.backoff import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from pooled_serve.pool.connecting import got_no_answer
from pooled_serve.pool.metrics import NO, REACHABLE, YES
from pooled_serve.status import shortage as shortages
from pooled_serve.status.figures import LONG_SECONDS
from pooled_serve.status.pool_log import PoolLog
from pooled_serve.status.repeats import CALM_SECONDS
from pooled_serve.status.shortage import Shortage, shortage_behind

UNANSWERED_SECONDS = 1.0
"""An inquiry without an answer for so long means that the server is stuck, if no statement was
answered meanwhile either."""

STUCK_SECONDS = 5.0
"""After so long without any answer the database counts as lost. Shorter ones are hiccups, for which
nobody should take a host out of service."""

INQUIRY_SECONDS = 10.0
"""How long an inquiry may take. Servers ban hosts that log in and hang up again and again."""

AGAIN_SECONDS = 1.0
"""Between the beginnings of two inquiries, while they are in vain: they may fail at once. The same
if the server could not be asked, for whatever hinders that may be over."""

PAUSE_SECONDS = 5.0
"""Between two inquiries, while the server answers them, but no statement."""

BLOCKED_SECONDS = 1.0
"""If a worker has not looked for so long, its event loop was blocked, and what has been answered is
still to be read."""


def _no() -> bool:
    return False


class Reachability(PoolListener):
    """Whether the last attempt to connect reached the database, and whether it answers.

    :param log: writes the lines.
    """

    pool: ConnectionPool[Any]
    probing = False
    """Whether to probe a lost database, so that its return is noticed without traffic."""

    def __init__(self, log: PoolLog) -> None:
        self._log = log
        self._prober: gevent.Greenlet | None = None  # truthy while it runs
        self._lost_since: float | None = None
        self._failures = 0  # in a row
        self._loss_logged = False
        self._is_first: Callable[[], bool] = _no
        """Asked whether to tell of the end of a loss that former workers have told of."""
        self._refused = False  # the server answers, but does not let anybody in
        self._full = False  # the same, because it has no connection left
        self._stuck = False  # it neither answers nor refuses
        self._inquiry: gevent.Greenlet | None = None  # truthy while it runs
        self._asked = Asked(lambda: time.monotonic())  # since there are inquiries, and all in vain
        self._ask_again_at = 0.0
        self._heard_at = 0.0  # when unanswered() was last called
        self._silence = 0.0  # what it was told then
        self._hanging_logged = False
        self._hung_since = 0.0  # when the first of the statements that the log speaks of began
        self._hung_seconds = 0.0
        self._slow_since = 0.0  # when the first of those began that the log calls slow
        self._slow_seconds = 0.0
        self._slow_look_at = 0.0
        self._short_since: float | None = None
        self._short_last = 0.0
        self._short_failures = 0
        self._shortage_logged = False

    @property
    def lost(self) -> bool:
        """Whether the last attempt to reach the database failed."""
        return self._lost_since is not None

    def connected(self) -> None:
        """A connection was opened."""
        now = time.monotonic()
        self._log.usable()
        if self._lost_since is not None and (self._loss_logged or self._is_first()):
            how = {"refused": self._refused, "full": self._full}
            self._log.database_back(now - self._lost_since, self._failures, **how)
        elif self._stuck and self._lost_since is None:
            self._log.hiccup(self._silence)
        self._lost_since = None
        self._is_first = _no
        self._asked.end()
        self._refused = self._full = self._stuck = False
        self._write_row()
        self._failures = 0
        # One freed descriptor is used up at once, and the next attempt fails again.
        if self._short_since is not None and now - self._short_last >= CALM_SECONDS:
            if self._shortage_logged:
                lasted = self._short_last - self._short_since
                self._log.shortage_over(lasted, self._short_failures)
            self._short_since = None

    def connect_failed(self, error: Exception) -> None:
        """An attempt to connect failed."""
        shortage = shortage_behind(error)
        # A shortage is this machine's, and has a number of another kind.
        self.pool.row[metrics.CONNECT_ERROR] = 0.0 if shortage else float(code_of(error))
        self.pool.row[metrics.CONNECT_ERROR + 1] = time.monotonic()
        if shortage is not None:
            shortages.note(shortage)
            self._note_shortage(shortage)
            return
        self._failures += 1
        if self._lost_since is None:
            if not self.pool.empty and code_of(error) not in NOT_REACHED:
                self._log.no_more_connections(error)
                return
            self.lose(logged=False, counts=code_of(error) not in LOGIN_REFUSED)
        self._stuck = got_no_answer(error)
        refused, full = code_of(error) in LOGIN_REFUSED, code_of(error) in FULL
        if (refused, full) != (self._refused, self._full):
            self._loss_logged = False  # what the log says is true no longer
        self._refused, self._full = refused, full
        self._write_row()
        if not self._loss_logged:
            tell = self._log.login_refused if refused else self._log.database_lost
            self._loss_logged = tell(error)

    # --- Nothing is answered -------------------------------------------------------------------

    def unanswered(self, seconds: float) -> None:
        """The server has answered no statement for so long."""
        now = time.monotonic()
        heard_at, self._heard_at, self._silence = self._heard_at, now, seconds
        if not self.probing:
            return
        if self._hanging_logged and self._hung_since < self.pool.row[metrics.OLDEST_STATEMENT]:
            self._end_hang()  # an end that was not seen
        self._hung_seconds = max(self._hung_seconds, seconds)
        if not self.lost and now >= self._ask_again_at:
            self._begin_inquiry()
        if now - heard_at > BLOCKED_SECONDS:
            self._asked.end()
        if not self._asked.asks:
            if not self._inquiry:
                return
            self._asked.begin()
        asked = self._asked.seconds
        if asked >= UNANSWERED_SECONDS and not self._stuck:
            self._stuck = True
            self.resume()
        # Half of the time for a ping on a link that may have been lost while it was idle, and half
        # for a login.
        if self._stuck and not self.lost and min(seconds, 2 * asked) >= STUCK_SECONDS:
            logged = self._log.database_stuck(seconds)
            self.lose(logged=logged, counts=True, seconds=seconds)
        if not self._stuck and not self.lost and not self._hanging_logged:
            self._hanging_logged = self._log.hanging(seconds)
            self._hung_since = self.pool.row[metrics.OLDEST_STATEMENT]
            self._hung_seconds = seconds

    def answered(self) -> None:
        """A statement was answered, at last."""
        self._asked.end()
        # The first statement of another request may be, before that waits for the same lock.
        if self._hanging_logged and not self._first_hangs_on:
            self._end_hang()
        if self._stuck:
            self.connected()

    def asking(self, seconds: float) -> None:
        """A statement has had no answer for so long, whatever others get."""
        if self._slow_since:
            if 0 < self.pool.row[metrics.OLDEST_STATEMENT] <= self._slow_since:
                self._slow_seconds = seconds
            else:
                self._log.slow_over(self._slow_seconds)
                self._slow_since = 0.0
        elif seconds >= LONG_SECONDS and not self._out and not self._hanging_logged:
            now = time.monotonic()
            if now >= self._slow_look_at:
                self._slow_look_at = now + AGAIN_SECONDS
                if self._log.slow(seconds):
                    self._slow_since = self.pool.row[metrics.OLDEST_STATEMENT]
                    self._slow_seconds = seconds

    def stale(self) -> None:
        """Nobody has asked the server anything for a while, and somebody wants to know."""
        if not self.probing or self._out or time.monotonic() < self._ask_again_at:
            return
        if self.pool.empty:
            self.pool.probe()  # which may be refused, too, and then it is lost
        else:
            self._begin_inquiry()

    @property
    def _first_hangs_on(self) -> bool:
        return 0 < self.pool.row[metrics.OLDEST_STATEMENT] <= self._hung_since

    def _end_hang(self) -> None:
        self._hanging_logged = False
        self._log.hanging_over(self._hung_seconds)

    def _begin_inquiry(self) -> None:
        if not self._inquiry:
            self._inquiry = gevent.spawn(self._inquire)

    def _inquire(self) -> None:
        began = time.monotonic()
        answered = None  # nor known if it is killed
        try:
            answered = self._ask()
        finally:
            if answered is not False:
                self._asked.end()
            if answered:
                self._ask_again_at = time.monotonic() + PAUSE_SECONDS
            else:
                self._ask_again_at = began + AGAIN_SECONDS
        if answered and self._stuck:
            self.connected()

    def _ask(self) -> bool | None:
        """Returns whether the server answers an inquiry; None if that cannot be known."""
        try:
            return self.pool.inquire(INQUIRY_SECONDS)
        except Exception as error:  # of the connect
            if is_answer(error):
                return True
            in_vain = got_no_answer(error) or code_of(error) in HUNG_UP
            if in_vain and shortage_behind(error) is None:
                return False
            # Any other one, such as a refusal by its host, says nothing of the statements. But
            # newcomers would meet it, too, so the pool shall find out.
            self.pool.probe()
            return None

    # --- Lost ----------------------------------------------------------------------------------

    def lose(self, *, logged: bool = True, counts: bool = False, seconds: float = 0.0) -> None:
        """Note that the database cannot be reached.

        :param logged: whether the log says so already, as it does after the preflight.
        :param counts: whether it is an outage that begins.
        :param seconds: for how long that has been so.
        """
        self._lost_since = time.monotonic() - seconds
        self._loss_logged = logged
        if counts:
            self.pool.count(metrics.OUTAGES)
        self._write_row()
        self.resume()

    def inherit(self, since: float, *, refused: bool, is_used: Callable[[], bool]) -> None:
        """Note what former workers have found, as :meth:`lose` does.

        :param since: in monotonic seconds; 0 if it was the preflight, which has not told the log.
        :param refused: whether the server can be reached, and refuses the login.
        :param is_used: whether another worker can use the database, and has told so. A HUP that
            corrects a password ends a loss for all workers at once.
        """
        self._refused = refused
        if since:
            self._is_first = lambda: not is_used()
        self.lose(logged=False, seconds=time.monotonic() - since if since else 0.0)

    def resume(self) -> None:
        """Start to probe, if :attr:`probing` is set and the database cannot be used."""
        if self.probing and self._out:
            self._write_row()
            if not self._prober:
                self._prober = gevent.spawn(self._probe)

    @property
    def _out(self) -> bool:
        return self.lost or self._stuck

    def _write_row(self) -> None:
        self.pool.row[REACHABLE] = NO if self.lost else YES
        self.pool.row[metrics.LOST] = self._lost_since or 0.0
        self.pool.row[metrics.LOGIN_REFUSED] = float(self._refused)
        self.pool.row[metrics.STUCK] = float(self._stuck)

    def _note_shortage(self, shortage: Shortage) -> None:
        self._short_last = time.monotonic()
        if self._short_since is None:
            self._short_since = self._short_last
            self._short_failures = 0
            self._shortage_logged = False
        self._short_failures += 1
        if not self._shortage_logged:
            self._shortage_logged = self._log.shortage(shortage.problem, shortage.remedy)

    def _probe(self) -> None:
        """Take a connection, as a request would, or inquire, until that works. Perhaps nobody else
        finds out: those who waited have gone, or an orchestrator sends no requests until then."""
        pause = FIRST_PAUSE_SECONDS
        while self._out and self.probing:
            gevent.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
            if not self._out:
                return  # a request has found out meanwhile
            if self.pool.out:
                self.pool.probe()  # connected() is called when that has worked
            elif self._stuck:
                self._begin_inquiry()  # calls it, too
            elif self.pool.ping():  # an idle connection proves nothing by itself
                self.connected()
