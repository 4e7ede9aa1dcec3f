"""Django's side of a pooled database: wrapper classes that lease, and the pool behind them.

Importing this imports Django's MySQL backend, which looks for MySQLdb.

Each pooled engine (Django's, GIS, a third party's) gets two classes of its own:

* ``Opener``, whose instances open real connections, just as the engine would;
* ``Wrapper``, what ``connections[alias]`` gives, whose connection is a lease.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from django.db.backends.mysql.base import DatabaseWrapper as MySQLWrapper
from django.utils.functional import cached_property
from pymysql.cursors import Cursor

from pooled_serve.backend.lease import Session
from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.backend.spares import Spares
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.login import ConnectAgain
from pooled_serve.errors import PoolClosed, PoolTimeout
from pooled_serve.pool import ConnectionPool, get_thread
from pooled_serve.pool.stats import new_row
from pooled_serve.preflight.plan import PoolPlan
from pooled_serve.status.pool_log import PoolLog
from pooled_serve.status.reachability import Reachability
from pooled_serve.status.scoreboard import Place


class DatabasePoolTimeout(PoolTimeout, OperationalError):
    """:class:`PoolTimeout`, as Django code expects database trouble. Becomes a 503.

    No PyMySQL class: Django would rewrap it and lose the type.
    """

    def __init__(self, error: PoolTimeout) -> None:
        self.__dict__.update(error.__dict__)
        Exception.__init__(self, str(error))


class DatabasePoolClosed(PoolClosed, InterfaceError):
    """:class:`PoolClosed`, as Django code expects database trouble."""


class DatabaseSession(Session):
    """A session whose trouble with the pool is database trouble."""

    def _lease(self) -> MySQLConnection:
        try:
            return super()._lease()
        except PoolTimeout as error:
            raise DatabasePoolTimeout(error) from error.last_error
        except PoolClosed as error:
            raise DatabasePoolClosed(str(error)) from None


class Opener(MySQLWrapper):
    """Comes right above Django's own wrapper in the order of methods, below the engine's.

    So an engine that overrides ``get_new_connection()`` or ``init_connection_state()`` does its
    work, calls ``super()``, and ends here instead of at ``MySQLdb.connect``.
    """

    database: Database

    def get_new_connection(self, conn_params: dict[str, Any]) -> MySQLConnection:
        # At connect the server's default is nearly always right; later it costs a round trip.
        conn_params.setdefault("autocommit", True)
        return MySQLConnection(**conn_params)

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        # Django asks once per wrapper, we once per server version.
        if self.database.server_data is None:
            self.database.server_data = super().mysql_server_data
        return self.database.server_data


class Leasing:
    """Comes first in the order of methods: a connection from the pool, where there is one."""

    database: Database
    _scope: GreenletScope | None = None  # copies, and the wrapper without a database, have none
    _spares: Spares | None = None  # likewise
    _leasing: GreenletScope | None = None  # inside connect(), if it is to be a lease

    def connect(self) -> None:
        """Connect as Django does, to a connection that is set up already."""
        if self.database.serves_this_thread():
            self._leasing = self._scope
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._leasing = None

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self._leasing is not None:
            # Long past, so that close_old_connections() at the end of the request gives it back.
            self.close_at = 0.0
            return self.database.lease(self._leasing)
        return super().get_new_connection(conn_params)  # type: ignore[misc]

    def init_connection_state(self) -> None:
        if self._leasing is None:  # else it was done when the connection was opened
            super().init_connection_state()  # type: ignore[misc]

    def is_usable(self) -> bool:
        connection = self.connection  # type: ignore[attr-defined]
        if isinstance(connection, Session):
            return connection.usable()
        return bool(super().is_usable())  # type: ignore[misc]


class Database:
    """One alias of DATABASES: its wrapper classes, and its pool, made at first use.

    :param settings_dict: Django's, live: the test runner renames the database in it.
    :param plan: what the numbers are.
    :param thread: the OS thread that may use the pool.
    """

    def __init__(
        self,
        alias: str,
        settings_dict: dict[str, Any],
        engine: type[MySQLWrapper],
        plan: PoolPlan,
        thread: int,
    ) -> None:
        self.alias = alias
        self._settings = settings_dict
        self._plan = plan
        self._thread = thread
        self._pool: ConnectionPool[MySQLConnection] | None = None
        self._target: object = None
        self.server_data: dict[str, Any] | None = None  # Django's mysql_server_data
        self._server_version = ""
        self._place: Place | None = None
        self.log = PoolLog(alias)
        self.reachability = Reachability(self.log)

        members = {"database": self, "__module__": engine.__module__}
        bases = (Opener,) if engine is MySQLWrapper else (engine, Opener)
        self._opener = type("DatabaseWrapper", bases, members)
        wrapper = type("DatabaseWrapper", (Leasing, *bases), members)
        self._make_wrapper = partial(wrapper, settings_dict, alias)
        self._spares = Spares(self._make_wrapper)

    def wrapper(self) -> Any:
        """``connections[alias]`` for the current greenlet, as good as new."""
        wrapper: Any = self._spares.take()
        wrapper._scope = scope_here()
        return wrapper

    def serves_this_thread(self) -> bool:
        """Whether the current OS thread may use the pool.

        A socket of one event loop is of no use in another thread (``sync_to_async``, gevent's
        threadpool); there Django connects as if there were no pool.
        """
        return bool(get_thread() == self._thread)

    def lease(self, scope: GreenletScope) -> Session:
        """What Django is to hold as its connection.

        :raises DatabasePoolTimeout, DatabasePoolClosed, MySQLError:
        """
        return DatabaseSession(
            self.pool,
            scope,
            self._settings["OPTIONS"].get("cursorclass", Cursor),
            self._plan.reset,
            self._plan.leak_threshold,
        )

    @property
    def pool(self) -> ConnectionPool[MySQLConnection]:
        """The pool; a new one if the settings point elsewhere than they did."""
        settings = self._settings
        target = (settings["NAME"], settings["HOST"], settings["PORT"], settings["USER"])
        if self._pool is None or target != self._target:
            if self._pool is not None:
                self._pool.attach_row(new_row())  # the place is its successor's
                self._pool.drain()
            self._pool, self._target = self._make_pool(), target
            self._forget_server()
            self.log.pool = self.reachability.pool = self._pool
            self._report()
        return self._pool

    def _forget_server(self) -> None:
        """What it can do may have changed."""
        self.server_data = None
        self._spares = Spares(self._make_wrapper)

    def report_on(self, place: Place) -> None:
        """Count on the board from now on, and find out without traffic that a lost database is
        back: somebody looks."""
        self._place = place
        self.reachability.probing = True
        self._report()
        self.reachability.resume()  # it may have been lost while the project was loaded

    def leave_board(self) -> None:
        """Count for this process alone again."""
        self._place = None
        self.reachability.probing = False

    def _report(self) -> None:
        if self._place is not None and self._pool is not None:
            self._pool.attach_row(self._place.row)

    def _make_pool(self) -> ConnectionPool[MySQLConnection]:
        plan = self._plan

        def max_age(conn: MySQLConnection) -> float | None:
            if plan.max_age == math.inf:
                return None
            # The preflight may not have reached the server, or it may have changed its mind.
            return plan.safe_age(conn.wait_timeout)

        return ConnectionPool(
            self._open,
            size=plan.size,
            max_outstanding=None if plan.cap == math.inf else int(plan.cap),
            timeout=plan.timeout,
            max_age=max_age,
            check=MySQLConnection.alive,
            ping=MySQLConnection.ping,
            condition=MySQLConnection.condition,
            reset=MySQLConnection.reset,
            abandon=MySQLConnection.abandon,
            holder=MySQLConnection.holder,
            listeners=(self.log, self.reachability),
            name=self.alias,
        )

    def _open(self) -> MySQLConnection:
        """A real connection, set up by the engine as for any other user of Django."""
        try:
            return self._connect()
        except ConnectAgain:
            # Another server may answer, of which nothing is known either: once is enough.
            return self._connect(compare=False)

    def _connect(self, *, compare: bool = True) -> MySQLConnection:
        opener: Any = self._opener(self._settings, self.alias)
        conn = opener.get_new_connection(opener.get_connection_params())
        if not isinstance(conn, MySQLConnection):
            conn.close()
            raise ImproperlyConfigured(
                f"{self._settings['ENGINE']} connects without its base class; it cannot be pooled"
            )
        try:
            if conn.server_version != self._server_version:
                self._server_version = conn.server_version
                self._forget_server()
            opener.connection = conn
            opener.set_autocommit(True)  # sessions open transactions themselves
            opener.init_connection_state()
            conn.set_up(compare=compare)
        except BaseException:
            conn.close()
            raise
        if self._place is not None:
            self._place.label(self.alias, conn.engine, conn.address)
        return conn

    def drain(self) -> None:
        """See :meth:`ConnectionPool.drain`."""
        if self._pool is not None:
            self._pool.drain()

    def clear(self) -> None:
        """See :meth:`ConnectionPool.clear`."""
        if self._pool is not None:
            self._pool.clear()

    def close(self) -> None:
        """See :meth:`ConnectionPool.close`."""
        if self._pool is not None:
            self._pool.close()
