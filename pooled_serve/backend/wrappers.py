"""Django's connection wrappers, made to lease.

Importing this imports Django's MySQL backend, which looks for MySQLdb.

Each pooled engine (Django's, GIS, a third party's) gets two classes:

* ``ConnectingWrapper``, whose instances open real connections, just as the engine would;
* ``PooledWrapper``, what ``connections[alias]`` gives, whose connection is a lease.

Each greenlet gets a new wrapper for each alias, and in a worker for each request: whatever a
request leaves in it ends with it.
"""

from __future__ import annotations

import functools
from typing import Any

from django.db import connections
from django.db.backends.mysql.base import DatabaseWrapper as MySQLWrapper
from django.utils.functional import cached_property

from pooled_serve.backend import registry
from pooled_serve.backend.database import PooledDatabase
from pooled_serve.backend.lease import Session
from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.driver.connection import MySQLConnection


class ConnectingWrapper(MySQLWrapper):
    """Comes right above Django's own wrapper in the order of methods, below the engine's.

    So an engine that overrides ``get_new_connection()`` or ``init_connection_state()`` does its
    work, calls ``super()``, and ends here instead of at ``MySQLdb.connect``.
    """

    _database: PooledDatabase | None = None

    def get_new_connection(self, conn_params: dict[str, Any]) -> MySQLConnection:
        # At connect the server's default is nearly always right; later it costs a round trip.
        conn_params.setdefault("autocommit", True)
        return MySQLConnection(**conn_params)

    def _find_database(self) -> PooledDatabase | None:
        return self._database

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        # Django asks once per wrapper, we once per server version.
        database = self._find_database()
        if database is None:
            return super().mysql_server_data
        if database.server_data is None:
            database.server_data = super().mysql_server_data
        return dict(database.server_data)  # for whoever changes it, changes his own


class PooledWrapper:
    """Comes first in the order of methods: a connection from the pool, where there is one."""

    _connecting_class: type[ConnectingWrapper]
    _scope: GreenletScope | None = None  # copies, and the wrapper without a database, have none
    _lease_from: PooledDatabase | None = None  # inside connect(), unless that connects for real

    alias: str
    connection: Any
    settings_dict: dict[str, Any]

    def connect(self) -> None:
        """Connect as Django does, to a connection that is set up already."""
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

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        database = self._lease_from
        if database is None or self._scope is None:
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        # Long past, so that close_old_connections() at the end of the request gives it back.
        self.close_at = 0.0
        session = database.lease(self._scope)
        session.wrapper = self
        return session

    def init_connection_state(self) -> None:
        if self._lease_from is None:  # else it was done when the connection was opened
            super().init_connection_state()  # type: ignore[misc]

    def is_usable(self) -> bool:
        if isinstance(self.connection, Session):
            return self.connection.usable()
        return bool(super().is_usable())  # type: ignore[misc]

    def _find_database(self) -> PooledDatabase | None:
        if self._scope is None:
            return None
        find = registry.database_for if registry.in_pool_thread() else registry.find
        return find(self.alias, self._connecting_class, self.settings_dict)


@functools.cache
def wrapper_class(engine: Any) -> Any:
    """The class of pooled wrappers of an engine, one for all aliases. Returns None for engines
    that cannot be pooled."""
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
    """``connections[alias]`` for the current greenlet."""
    wrapper = wrapper_class(settings, alias)
    wrapper._scope = scope_here()
    if alias not in registry.databases and registry.in_pool_thread():
        registry.database_for(alias, wrapper_class._connecting_class, settings)
    return wrapper


def wrappers_here() -> dict[str, Any]:
    """All that the current greenlet keeps in ``connections``, live.

    Below asgiref's Local there is a ``threading.local``, the only one to know the names of what
    it holds: those of aliases that were deleted since, or never were in the settings.
    """
    here: dict[str, Any] = connections._connections._storage.__dict__  # type: ignore[attr-defined]
    return here


def close_detached_wrappers(scope: GreenletScope) -> None:
    """Close the wrappers of this greenlet that are not in ``connections`` any more.

    Their users have deleted or replaced them, as happens for each tenant in a loop, and would
    fill the pool until the request ends. One that is used again all the same connects again; one
    with a transaction, or anything else that would be lost with the connection, is left alone.
    """
    here = [id(wrapper) for wrapper in wrappers_here().values()]
    for session in tuple(scope):
        wrapper: Any = getattr(session, "wrapper", None)
        detached = wrapper is not None and id(wrapper) not in here
        if detached and not wrapper.in_atomic_block and session.is_releasable():
            wrapper.close()


def close_wrappers_here() -> None:
    """Empty ``connections`` of the current greenlet. What is pooled has been given back before.

    :raises BaseException: what has interrupted it, but only once all is done.
    """
    interrupted: BaseException | None = None
    wrappers = wrappers_here()
    while wrappers:
        _, wrapper = wrappers.popitem()
        connection = getattr(wrapper, "connection", None)
        if connection is not None and not isinstance(connection, Session):
            try:
                wrapper.close()
            except Exception:
                pass  # it belongs to another greenlet
            except BaseException as error:
                interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
