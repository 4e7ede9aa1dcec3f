"""The Django seam: where pooled connections enter, and where they leave a request.

Three functions of Django are replaced, ``ConnectionHandler.create_connection``,
``WSGIHandler.__call__`` and ``response_for_exception`` (see
:mod:`pooled_serve.backend.unavailable`); no signal is connected, because the test
client disconnects Django's.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import pymysql
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.db.utils import ConnectionHandler, load_backend

from pooled_serve import compat
from pooled_serve.backend import registry, unavailable
from pooled_serve.backend import scope as scopes
from pooled_serve.backend.registry import databases as _databases
from pooled_serve.backend.scope import scope_here
from pooled_serve.errors import startup_error
from pooled_serve.options import PoolPlans
from pooled_serve.status.scoreboard import PoolRow

LAST_CALL_SECONDS = 5.0
"""Seconds after the last hook until threads lose their connections. Jobs that come to their end
have that long; a thread that queries for ever must not keep the process."""

_wrappers: Any = None  # our module of that name, once PyMySQL is in the place of MySQLdb

_create_connection = ConnectionHandler.create_connection
_handle = WSGIHandler.__call__


def install(plan: PoolPlans, *, own_launcher: bool = False) -> None:
    """Pool the MySQL databases of the project, from now on. Opens nothing, reads no settings.

    :param own_launcher: see :func:`pooled_serve.backend.scope.configure`.
    :raises StartupError: mysqlclient is loaded, somebody else patched Django before, or Django or
        PyMySQL has changed where we plug in.
    """
    use_pymysql()
    refuse_other_pools()
    if _wrappers is None:  # else our own functions stand there
        compat.check("django", "pymysql")
        WSGIHandler.__call__ = handle  # type: ignore[assignment, method-assign]
    _import_wrappers()
    mode = plan.options.mode
    scopes.configure(per_transaction=mode == "transaction", own_launcher=own_launcher)
    registry.start(plan)
    ConnectionHandler.create_connection = create_connection  # type: ignore[assignment, method-assign]
    unavailable.install()


def _import_wrappers() -> None:
    """Now, while nobody else does.

    Under gevent OS threads that import a module for the first time, all at once, can wait for
    each other for ever: a wake-up of the import lock is lost.
    """
    global _wrappers
    from pooled_serve.backend import wrappers  # PyMySQL must be in the place of MySQLdb

    _wrappers = wrappers


def use_pymysql() -> None:
    """Let Django's MySQL backend find PyMySQL.

    :raises StartupError: it has found mysqlclient already, which blocks a gevent worker: ten
        queries of half a second take five seconds.
    """
    loaded = sys.modules.get("MySQLdb")
    if loaded is not None and loaded is not pymysql:
        raise startup_error(
            "PS502",
            "mysqlclient (the module MySQLdb) is loaded already; it blocks a gevent worker",
            "remove the import of MySQLdb from the configuration file or the project",
        )
    pymysql.install_as_MySQLdb()


def refuse_other_pools() -> None:
    """Two pools on top of each other lose connections.

    :raises StartupError: naming the module that replaced a part of Django that we rely on.
    """
    for name in ("__getitem__", "create_connection"):
        found = getattr(ConnectionHandler, name)
        if found is create_connection or found.__module__.startswith("django."):
            continue
        raise startup_error(
            "PS503",
            f"{found.__module__} has replaced Django's ConnectionHandler.{name}",
            f"remove the call that applies the patch of {found.__module__}; "
            "pooled-serve needs no line in the project",
        )


def create_connection(handler: ConnectionHandler, alias: str) -> Any:
    """In place of ``ConnectionHandler.create_connection``."""
    if handler is not connections or _wrappers is None:
        return _create_connection(handler, alias)
    settings = handler.settings[alias]
    engine = load_backend(settings["ENGINE"]).DatabaseWrapper
    pooled = _wrappers.wrapper_class(engine)
    if pooled is not None:
        return _wrappers.make_wrapper(pooled, settings, alias)
    if alias in _databases and registry.in_pool_thread():  # it has got another engine
        registry.forget(alias)
    return engine(settings, alias)


def is_poolable(engine: type[Any]) -> bool:
    """Whether a DatabaseWrapper class is Django's MySQL wrapper or extends it."""
    if engine.vendor != "mysql":
        return False  # without an import of what needs MySQLdb
    from pooled_serve.backend import wrappers

    pooled: Any = wrappers.wrapper_class(engine)  # type: ignore[arg-type]  # stubs of __hash__
    return pooled is not None


def handle(handler: WSGIHandler, environ: Any, start_response: Any) -> Any:
    """In place of ``WSGIHandler.__call__``: what is on the stack here is for the view."""
    scope = scope_here()
    nested = scope.enter_view()
    try:
        return _handle(handler, environ, start_response)
    finally:
        scope.leave_view(nested)


def begin_request(request: Any) -> None:
    """What follows in this greenlet is for a request, gunicorn's; for the log to name it."""
    scope_here().request = request


def end_request() -> None:
    """Leave nothing of this request to the next one in the same greenlet.

    Django hands connections back at ``request_finished``, which a request that was killed, timed
    out or never closed its response does not reach. And gunicorn serves all requests of a
    keep-alive client in one greenlet: wrappers with their flags must not pass from one to the
    other.

    :raises BaseException: what has interrupted a hand-back, but only once all are done.
    """
    scope = scope_here()
    scope.request = None
    try:
        if scope:
            scopes.for_each(scope, lambda session: session.close())
    finally:
        try:
            _wrappers.close_wrappers_here()
        finally:
            registry.retire_gone()


def pools() -> dict[str, Any]:
    """alias -> :class:`ConnectionPool`, of the databases used so far.

    Where nobody has asked anything yet the pool is made now, so that its size and cap can be told.
    """
    return {alias: database.pool for alias, database in _databases.items()}


def join_scoreboard(row_for: Callable[..., PoolRow | None], unreachable: Iterable[str]) -> None:
    """Put this worker's pools on the scoreboard, those there are and those to come.

    :param row_for: returns the row for an alias, if there is one left.
    :param unreachable: databases that could not be reached; asked again until they can.
    """
    registry.join_scoreboard(row_for)
    for alias in unreachable:
        if alias in connections.settings:
            connections[alias]  # makes it, if it is not there yet
            _databases[alias].pool  # noqa: B018 - made at first use
            _databases[alias].reachability.lose()
    end_request()


def _leave_scoreboard() -> None:
    """In a forked child: the numbers there are the parent's."""
    registry.join_scoreboard(None)


os.register_at_fork(after_in_child=_leave_scoreboard)


def end_load(*, fork_follows: bool) -> None:
    """Import the engines, see :func:`_import_backend`, and give back what the project asked the
    database for while it was imported.

    Else the main greenlet, which never ends a request, would hold a connection for the life of
    the worker. Before a fork nothing is kept: no child could use it.
    """
    registry.remember_aliases()
    for settings_dict in connections.settings.values():
        with contextlib.suppress(Exception):  # told to whoever uses it
            load_backend(settings_dict["ENGINE"])
    end_request()
    if fork_follows:
        registry.clear()


def drain() -> None:
    """The worker is about to stop: keep no connection idle."""
    registry.drain()


def end_serving() -> None:
    """The last request was served. Hooks, exit handlers and threads still get connections, but
    none is kept."""
    registry.drain()
    registry.clear()


def last_call() -> None:
    """The last hook has run: only exit handlers and threads may come now, those for
    :data:`LAST_CALL_SECONDS`. Python waits for threads first."""
    end_request()
    timer = gevent.get_hub().loop.timer(LAST_CALL_SECONDS, ref=False)
    timer.start(gevent.spawn_raw, registry.close)
    atexit.register(timer.stop)


def close() -> None:
    """The process ends: close all that is left, with a goodbye to the server."""
    if _wrappers is not None:
        with contextlib.suppress(Exception):
            end_request()  # what handlers have not given back
        registry.close()
