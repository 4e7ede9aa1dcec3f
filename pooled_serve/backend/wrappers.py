"""Django's connection wrappers, made to lease.

This imports Django's MySQL backend, which imports MySQLdb.

Each pooled engine (Django's, GIS, a third party's) gets two classes:

* one with ``ConnectingWrapper``, whose instances open the pool's connections, as the engine would;
* one with ``PooledWrapper``, for ``connections[alias]``, whose ``connection`` is a session.

Each greenlet gets a new wrapper for each alias, and in a worker each request does: the flags and
hooks that one request leaves in its wrapper never reach another.
"""

from __future__ import annotations

import functools
from typing import Any

import pymysql
from django.db import connections
from django.db.backends.mysql.base import DatabaseWrapper as MySQLWrapper
from django.utils.functional import cached_property
from pymysql.connections import Connection

from pooled_serve.backend import registry
from pooled_serve.backend.database import DatabaseSession, PooledDatabase
from pooled_serve.backend.instrumented import instrumented
from pooled_serve.backend.lease import Session
from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.driver import parameters
from pooled_serve.driver.connection import MySQLConnection


class ConnectingWrapper(MySQLWrapper):
    """Opens real connections.

    Stands between the engine's wrapper and Django's in the method resolution order: an engine that
    overrides ``get_new_connection()`` or ``init_connection_state()`` does its work, calls
    ``super()``, and ends here instead of at ``MySQLdb.connect``.
    """

    _database: PooledDatabase | None = None

    def get_new_connection(self, conn_params: dict[str, Any]) -> MySQLConnection:
        # At the connect this costs nothing, as it is nearly always the server's default; later it
        # would cost a round trip.
        conn_params.setdefault("autocommit", True)
        return MySQLConnection(**parameters.translate(conn_params))

    def _find_database(self) -> PooledDatabase | None:
        return self._database

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        # Django queries this once per wrapper; here it is queried once per server version.
        database = self._find_database()
        if database is None:
            return super().mysql_server_data
        if database.server_data is None:
            database.server_data = super().mysql_server_data
        return dict(database.server_data)  # a caller may change it


class PooledWrapper:
    """Takes a connection from the pool, in threads that have one.

    First in the method resolution order, above the engine's wrapper.
    """

    _connecting_class: type[ConnectingWrapper]
    _scope: GreenletScope | None = None  # None: a copy, or a wrapper without a database
    _lease_from: PooledDatabase | None = None  # set inside connect(), if that leases
    _only_asks = False  # is asked for, or told, the mode of commits: needs no connection for it

    alias: str
    connection: Any
    settings_dict: dict[str, Any]
    wrap_database_errors: Any

    def connect(self) -> None:
        """Connect as Django does, but lease a connection that is already set up: in request mode at
        once, else with the first statement."""
        only_asks = self._only_asks
        if self._scope is not None and registry.in_pool_thread():
            if self._scope:
                close_detached_wrappers(self._scope)
            self._lease_from = registry.database_for(
                self.alias, self._connecting_class, self.settings_dict
            )
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._lease_from = None
        if not only_asks and (session := self._session_without_lease()) is not None:
            session.lease_if_kept()

    def ensure_connection(self) -> None:
        """Connect, and in request mode lease at once: projects call this to see whether the
        database answers."""
        only_asks = self._only_asks
        super().ensure_connection()  # type: ignore[misc]
        if only_asks:
            self._only_asks = False  # not for hooks that run afterwards
        elif (session := self._session_without_lease()) is not None:
            with self.wrap_database_errors:
                session.lease_if_kept()

    def _session_without_lease(self) -> Session | None:
        connection = self.connection
        if type(connection) is DatabaseSession and connection._conn is not None:
            return None  # nearly always
        session = _session(connection)
        return session if session is not None and session._conn is None else None

    # What atomic() calls, which with ATOMIC_REQUESTS is around each view, also one without queries.

    def get_autocommit(self) -> Any:
        self._only_asks = True
        try:
            return super().get_autocommit()  # type: ignore[misc]
        finally:
            self._only_asks = False

    def set_autocommit(self, *args: Any, **options: Any) -> None:
        self._only_asks = True
        try:
            super().set_autocommit(*args, **options)  # type: ignore[misc]
        finally:
            self._only_asks = False

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        database = self._lease_from
        if database is None or self._scope is None:
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        # In the past: so close_old_connections() gives it back at the end of the request.
        self.close_at = 0.0
        session = database.session(self._scope)
        session.wrapper = self
        if pymysql.connect is Connection:  # not instrumented
            return session
        return instrumented(session, conn_params)

    def init_connection_state(self) -> None:
        if self._lease_from is None:  # else it was done when the connection was opened
            super().init_connection_state()  # type: ignore[misc]

    def is_usable(self) -> bool:
        session = _session(self.connection)
        if session is not None:
            return session.usable()
        return bool(super().is_usable())  # type: ignore[misc]

    def _find_database(self) -> PooledDatabase | None:
        if self._scope is None:
            return None
        find = registry.database_for if registry.in_pool_thread() else registry.find
        return find(self.alias, self._connecting_class, self.settings_dict)


def _session(connection: Any) -> Session | None:
    """Returns the session of a wrapper's ``connection``, also from inside a proxy."""
    if type(connection) is not DatabaseSession:
        # Not of a connection that is none: to ask it could do anything.
        connection = getattr(connection, "__wrapped__", None)
    return connection if type(connection) is DatabaseSession else None


@functools.cache
def wrapper_class(engine: Any) -> Any:
    """Returns the class of an engine's pooled wrappers; None for engines that cannot be pooled."""
    if not issubclass(engine, MySQLWrapper) or engine.vendor != "mysql":
        return None
    members = {"__module__": engine.__module__}
    bases = (ConnectingWrapper,) if engine is MySQLWrapper else (engine, ConnectingWrapper)
    connecting_class = type("DatabaseWrapper", bases, members)
    return type(
        "DatabaseWrapper",
        (PooledWrapper, *bases),
        {**members, "_connecting_class": connecting_class},
    )


def make_wrapper(wrapper_class: Any, settings: dict[str, Any], alias: str) -> Any:
    """Returns a new ``connections[alias]`` for the current greenlet."""
    wrapper = wrapper_class(settings, alias)
    wrapper._scope = scope_here()
    if alias not in registry.databases and registry.in_pool_thread():
        registry.database_for(alias, wrapper_class._connecting_class, settings)
    return wrapper


def connecting_wrapper(engine: Any, settings: dict[str, Any], alias: str) -> Any:
    """Returns the wrapper with which a pool makes its connections."""
    return wrapper_class(engine)._connecting_class(dict(settings), alias)


def address(engine: Any, settings: dict[str, Any], alias: str) -> str:
    """Returns which server and database the settings name, without connecting; empty if an engine
    has its own way to find that out, which may ask some service for a password and take long."""
    if engine.get_connection_params is not MySQLWrapper.get_connection_params:
        return ""
    wrapper = connecting_wrapper(engine, settings, alias)
    params = parameters.translate(wrapper.get_connection_params()) | {"defer_connect": True}
    return MySQLConnection(**params).address


def wrappers_here() -> dict[str, Any]:
    """Returns alias -> wrapper in the current greenlet's ``connections``: the dict itself.

    Only the ``threading.local`` below asgiref's Local can list its names, among which there may be
    aliases that are no longer in the settings, or never were.
    """
    here: dict[str, Any] = connections._connections._storage.__dict__  # type: ignore[attr-defined]
    return here


def close_detached_wrappers(scope: GreenletScope) -> None:
    """Close the wrappers of this greenlet that are no longer in ``connections``.

    The project has deleted or replaced them, as in a loop over tenants, and they would fill the
    pool until the request ends. A wrapper that is used again nevertheless connects again. One with
    a transaction, or other state that would be lost with the connection, stays open.
    """
    here = [id(wrapper) for wrapper in wrappers_here().values()]
    for session in tuple(scope):
        wrapper: Any = getattr(session, "wrapper", None)
        detached = wrapper is not None and id(wrapper) not in here
        if detached and not wrapper.in_atomic_block and session.is_releasable():
            wrapper.close()


def close_wrappers_here() -> None:
    """Empty ``connections`` of the current greenlet, and close the connections that are not pooled.
    The pooled ones were given back before.

    :raises BaseException: the first exception that interrupted a close, after all of them.
    """
    interrupted: BaseException | None = None
    wrappers = wrappers_here()
    while wrappers:
        _, wrapper = wrappers.popitem()
        connection = getattr(wrapper, "connection", None)
        if connection is not None and _session(connection) is None:
            try:
                wrapper.close()
            except Exception:
                pass  # it belongs to another greenlet
            except BaseException as error:
                interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
