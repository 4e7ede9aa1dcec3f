"""One pooled database: an alias with its settings, and the pool behind it.

Can be imported without MySQLdb, unlike the wrappers (see wrappers.py) that lease from it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from pymysql.cursors import Cursor
from pymysql.err import MySQLError

from pooled_serve.backend.lease import Session
from pooled_serve.backend.routes import RouteAccount
from pooled_serve.backend.scope import GreenletScope
from pooled_serve.driver.abandoned import Left, finish, trace_of
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.error_codes import FULL, code_of, is_outage
from pooled_serve.driver.login import ConnectAgain
from pooled_serve.errors import (
    PoolClientGone,
    PoolClosed,
    PoolOutage,
    PoolOverloaded,
    PoolTimeout,
)
from pooled_serve.pool import ConnectionPool, metrics
from pooled_serve.pool.tokens import Tokens
from pooled_serve.pool_plan import PoolPlan
from pooled_serve.status import traces
from pooled_serve.status.pool_log import PoolLog
from pooled_serve.status.reachability import Reachability
from pooled_serve.status.scoreboard import PoolRow
from pooled_serve.status.shortage import shortage_behind

POOL_ATTRIBUTE = "_pooled_serve_pool"
"""Of an error of a connect that a request has got: the name of the pool."""


class DatabasePoolTimeout(PoolTimeout, OperationalError):
    """:class:`PoolTimeout` as one of Django's database errors. Becomes a 503.

    Not one of PyMySQL's: Django would wrap it, and the type would be lost.
    """

    def __init__(self, error: PoolTimeout) -> None:
        self.__dict__.update(error.__dict__)
        Exception.__init__(self, str(error))


class DatabasePoolOverloaded(PoolOverloaded, DatabasePoolTimeout):
    """:class:`PoolOverloaded` as one of Django's database errors."""


class DatabasePoolOutage(PoolOutage, DatabasePoolTimeout):
    """:class:`PoolOutage` as one of Django's database errors."""


class DatabasePoolClientGone(PoolClientGone, DatabasePoolTimeout):
    """:class:`PoolClientGone` as one of Django's database errors."""


_AS_DJANGOS: dict[type[PoolTimeout], type[DatabasePoolTimeout]] = {
    PoolTimeout: DatabasePoolTimeout,
    PoolOverloaded: DatabasePoolOverloaded,
    PoolOutage: DatabasePoolOutage,
    PoolClientGone: DatabasePoolClientGone,
}


class DatabasePoolClosed(PoolClosed, InterfaceError):
    """:class:`PoolClosed` as one of Django's database errors."""


class DatabaseSession(Session):
    """A session that raises the pool's errors as Django's."""

    wrapper: Any = None
    """Django's wrapper, whose ``connection`` this is."""

    def _lease(self) -> MySQLConnection:
        try:
            return super()._lease()
        except PoolTimeout as error:
            raise _AS_DJANGOS[type(error)](error) from error.last_error
        except PoolClosed as error:
            raise DatabasePoolClosed(str(error)) from None
        except MySQLError as error:  # of a connect; each request has its own
            setattr(error, POOL_ATTRIBUTE, self._pool.name)
            raise
        finally:
            if traces.noted:
                traces.tell()


class PooledDatabase:
    """An alias with the settings of one moment. Its pool is made at first use.

    :param alias: also the name of the pool.
    :param settings: copied, because projects may change Django's at any time.
    :param connecting_class: the class of wrappers that open real connections.
    :param plan: the numbers of the pool.
    :param permanent: whether the alias existed when the project was loaded. The project may add
        any number of others, one for each tenant.
    :param tokens: of the host, if that has a bound.
    """

    def __init__(
        self,
        alias: str,
        settings: dict[str, Any],
        connecting_class: type,
        plan: PoolPlan,
        *,
        permanent: bool,
        tokens: Tokens | None = None,
    ) -> None:
        self.alias = alias
        self.settings: dict[str, Any] = _copied(settings)
        self.permanent = permanent
        self.server_data: dict[str, Any] | None = None  # Django's mysql_server_data
        self.log = PoolLog(alias)
        self.reachability = Reachability(self.log)
        self.traces = traces.Traces(alias)
        self._connecting_class = connecting_class
        self._plan = plan
        self._tokens = tokens
        self._pool: ConnectionPool[MySQLConnection] | None = None
        self._keeps_idle = True
        self._server_version = ""
        self._pool_row: PoolRow | None = None
        self._account: RouteAccount | None = None

    def fits(self, connecting_class: type, settings: dict[str, Any]) -> bool:
        """Whether connections made with this class and these settings would be the same."""
        # By value, in C: below a microsecond, for nearly all values are identical objects.
        return self.settings == settings and self._connecting_class is connecting_class

    def session(self, scope: GreenletScope) -> DatabaseSession:
        """Returns the session that becomes the connection of Django's wrapper. It leases a
        connection with its first statement."""
        return DatabaseSession(
            self.pool,
            scope,
            self.settings.get("OPTIONS", {}).get("cursorclass", Cursor),
            self._plan.reset,
            self._plan.leak_threshold,
        )

    @property
    def pool(self) -> ConnectionPool[MySQLConnection]:
        """The pool. Made by the first thread that asks; only that thread may use it."""
        if self._pool is None:
            self._pool = self._make_pool()
            self.log.pool = self.reachability.pool = self.traces.pool = self._pool
            if not self._keeps_idle:
                self._pool.drain()
            self._attach_row()
        return self._pool

    # --- The scoreboard ------------------------------------------------------------------------

    def join_scoreboard(
        self,
        pool_row: PoolRow,
        account: RouteAccount,
        usual_hold: Callable[[], float],
        all_hang: Callable[..., bool],
    ) -> None:
        """Count on the scoreboard from now on, and probe a lost database without traffic: the
        readiness of the worker depends on it.

        :param usual_hold: see :attr:`PoolLog.usual_hold`.
        :param all_hang: see :attr:`PoolLog.all_hang`.
        """
        self._pool_row, self._account = pool_row, account
        self.log.usual_hold, self.log.all_hang = usual_hold, all_hang
        self.reachability.probing = True
        self._attach_row()
        self.reachability.resume()  # it may have been lost while the project was loaded

    def leave_scoreboard(self, *, free: bool = False) -> None:
        """Count in this process alone again.

        :param free: make the row available to another alias.
        """
        pool_row, self._pool_row = self._pool_row, None
        self.reachability.probing = False
        if pool_row is None:
            return
        if self._pool is not None:
            row = metrics.new_row()
            self._pool.attach_row(row)
            for i in range(metrics.FIRST_GAUGE):
                row[i] = 0.0  # these counts stay in the row on the scoreboard
        if free:
            pool_row.free()

    def _attach_row(self) -> None:
        if self._pool_row is not None and self._pool is not None and self._account is not None:
            self._account.joins(self._pool.row)
            self._pool.attach_row(self._pool_row.current, self._account)

    # --- The pool ------------------------------------------------------------------------------

    def _make_pool(self) -> ConnectionPool[MySQLConnection]:
        plan = self._plan

        def max_age(conn: MySQLConnection) -> float | None:
            if plan.max_age == math.inf:
                return None
            # Per connection: the preflight may not have reached the server, and wait_timeout may
            # have changed since.
            return plan.safe_age(conn.wait_timeout)

        return ConnectionPool(
            self._open,
            size=plan.size,
            max_outstanding=None if plan.cap == math.inf else int(plan.cap),
            timeout=plan.timeout,
            shed=plan.overload == "shed",
            is_outage=self._is_outage,
            max_age=max_age,
            check=MySQLConnection.alive,
            ping=MySQLConnection.ping,
            condition=MySQLConnection.condition,
            reset=MySQLConnection.reset,
            unfinished=MySQLConnection.unfinished,
            finish=finish,
            abandon=lambda conn: conn.abandon(),
            tokens=self._tokens,
            part=MySQLConnection.part,
            trace=trace_of,
            restore=_left,
            holder=MySQLConnection.holder,
            awaits=MySQLConnection.awaits,
            listeners=(self.log, self.reachability, self.traces),
            name=self.alias,
        )

    def _open(self) -> MySQLConnection:
        """Returns a real connection, set up by the engine as without a pool."""
        try:
            return self._connect()
        except ConnectAgain:
            # Once: behind a balancer each connect may reach another server of which nothing is
            # known, and each would be used up.
            return self._connect(compare=False)

    def _connect(self, *, compare: bool = True) -> MySQLConnection:
        wrapper = self._connecting_class(_copied(self.settings), self.alias)
        wrapper._database = self
        try:
            conn = wrapper.get_new_connection(wrapper.get_connection_params())
        except Exception as error:
            self._name_server(getattr(error, "address", ""))
            raise
        if not isinstance(conn, MySQLConnection):
            conn.close()
            raise ImproperlyConfigured(
                f"{self.settings['ENGINE']} connects without its base class; it cannot be pooled"
            )
        try:
            if conn.server_version != self._server_version:
                self._server_version = conn.server_version
                self.server_data = None  # its features may have changed
            wrapper.connection = conn
            wrapper.set_autocommit(True)  # sessions open transactions themselves
            wrapper.init_connection_state()
            conn.set_up(compare=compare)
        except ConnectAgain:
            if self._tokens is not None:  # else the host would have one more for a moment
                with contextlib.suppress(OSError):
                    conn.part()
            conn.close()
            raise
        except BaseException:
            conn.close()
            raise
        if self._pool_row is not None:
            self._pool_row.label(self.alias, conn.engine, conn.address)
        return conn

    def _name_server(self, address: str) -> None:
        """Let the status page name a server that has not let anybody in so far. What the row has
        may be another one: an option file or a tenant's settings can change under an alias."""
        if self._pool_row is not None and address not in ("", self._pool_row.texts[2]):
            self._pool_row.label(self.alias, "", address)

    def _is_outage(self, error: Exception) -> bool:
        """Whether to wait because nobody answers. What this machine lacks may last; and where the
        server is full, but some of its connections are ours, these will come back."""
        ours = self._pool is not None and not self._pool.empty
        full = code_of(error) in FULL
        return is_outage(error) and not (full and ours) and shortage_behind(error) is None

    def drain(self) -> None:
        """See :meth:`ConnectionPool.drain`."""
        self._keeps_idle = False
        if self._pool is not None:
            self._pool.drain()

    def resume(self) -> None:
        """See :meth:`ConnectionPool.resume`."""
        self._keeps_idle = True
        if self._pool is not None:
            self._pool.resume()

    def log_rest(self) -> None:
        """See :meth:`PoolLog.log_rest`."""
        self.log.log_rest()

    def clear(self) -> None:
        """See :meth:`ConnectionPool.clear`."""
        if self._pool is not None:
            self._pool.clear()

    def close(self) -> None:
        """See :meth:`ConnectionPool.close`; connections in use are closed, too."""
        self.log_rest()
        if self._pool is not None:
            self._pool.close(in_use=True)


def _left(trace: bytes) -> MySQLConnection:
    left: Any = Left(trace)  # as much of a connection as finish() needs
    return left  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    """Returns a value of the settings with containers of its own, so that a later change of the
    original makes the two unequal.

    deepcopy() would fail on TLS contexts, and copies of other objects are not equal to them.
    """
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_copied, value))
    return value
