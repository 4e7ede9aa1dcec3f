"""The functions of Django that are replaced, and the calls that the worker makes.

Replaced are ``ConnectionHandler.create_connection``, ``WSGIHandler.__call__`` and
``response_for_exception`` (see :mod:`pooled_serve.backend.unavailable`). No signal is connected:
the test client disconnects Django's receivers only, and would leave the pool's connected.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gevent
import pymysql
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.db.utils import ConnectionHandler, load_backend

from pooled_serve import compat
from pooled_serve.backend import registry, rehearsal, routes, unavailable
from pooled_serve.backend import scope as scopes
from pooled_serve.backend.client_check import ClientCheck
from pooled_serve.backend.client_check import ClientGone as ClientGone  # for the worker
from pooled_serve.backend.registry import databases as _databases
from pooled_serve.backend.routes import route_of as route_of  # for the worker
from pooled_serve.backend.routes import try_urls as try_urls
from pooled_serve.backend.routes import watch_urls as watch_urls
from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.errors import startup_error
from pooled_serve.pool import set_loop
from pooled_serve.pool.host import Host
from pooled_serve.pool_plan import PoolPlans
from pooled_serve.status.hanging_log import nobody_hangs
from pooled_serve.status.routes import RouteTable
from pooled_serve.status.scoreboard import Loss, PoolRow

LAST_CALL_SECONDS = 5.0
"""Seconds after the last hook until threads lose their connections. Jobs have that long to finish;
a thread that queries for ever must not keep the process alive."""

_wrappers: Any = None  # the module wrappers, once PyMySQL stands in for MySQLdb

_create_connection = ConnectionHandler.create_connection
_handle = WSGIHandler.__call__


def install(plan: PoolPlans, host: Host | None = None, *, own_launcher: bool = False) -> None:
    """Pool the MySQL databases of the project, from now on. Opens nothing, reads no settings.

    :param host: see :func:`pooled_serve.backend.registry.start`.
    :param own_launcher: see :func:`pooled_serve.backend.scope.configure`.
    :raises StartupError: mysqlclient is loaded, another pool has patched Django, or Django or
        PyMySQL has changed what this relies on.
    """
    use_pymysql(own_launcher=own_launcher)
    refuse_other_pools()
    if _wrappers is None:  # else these functions have been replaced already
        compat.check("django", "pymysql")
        WSGIHandler.__call__ = handle  # type: ignore[assignment, method-assign]
    _import_wrappers()
    mode = plan.options.mode
    scopes.configure(per_transaction=mode == "transaction", own_launcher=own_launcher)
    registry.start(plan, host)
    ConnectionHandler.create_connection = create_connection  # type: ignore[assignment, method-assign]
    unavailable.install()
    rehearsal.rehearse()


def _import_wrappers() -> None:
    """Import the module now, before several threads do so at once.

    Under gevent OS threads that import a module for the first time at the same time can wait for
    each other for ever: a wake-up of the import lock is lost.
    """
    global _wrappers
    from pooled_serve.backend import wrappers  # imports MySQLdb, which must be PyMySQL

    _wrappers = wrappers


POSES_AS = (2, 999, 0, "final", 1)
"""What Django takes PyMySQL for: a version of mysqlclient."""


def use_pymysql(*, own_launcher: bool = False) -> None:
    """Install PyMySQL as MySQLdb, for Django's MySQL backend.

    :param own_launcher: whether this is pooling.apply_patch(), which users of the command have
        never seen.
    :raises StartupError: mysqlclient is loaded, which blocks a gevent worker: ten queries of half a
        second take five seconds.
    """
    loaded = sys.modules.get("MySQLdb")
    if loaded is not None and loaded is not pymysql:
        imported_by = "the configuration file and what that imports"
        if own_launcher:
            imported_by = "what runs before pooling.apply_patch()"
        raise startup_error(
            "PS502",
            "mysqlclient (the module MySQLdb) is loaded already; it blocks a gevent worker",
            f"remove the import of MySQLdb from {imported_by}; later ones get PyMySQL, and may "
            "stay",
        )
    pymysql.install_as_MySQLdb()
    # PyMySQL says that it is mysqlclient 2.2.8. For a Django that asks for a later one it will do,
    # too: compat.py looks whether there is what is used here.
    pymysql.version_info = max(pymysql.version_info, POSES_AS)


def translate_parameters() -> None:
    """Make Django's MySQL backend connect as the pool does, in a process that has no pool: that of
    the preflight, where the project may run queries while it is loaded."""
    from pooled_serve.backend import wrappers

    backend: Any = wrappers.ConnectingWrapper.__base__
    backend.get_new_connection = wrappers.ConnectingWrapper.get_new_connection


def refuse_other_pools() -> None:
    """Check that no other pool has patched Django: two pools on top of each other lose connections.

    :raises StartupError: naming the module that has.
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
    """Replaces ``ConnectionHandler.create_connection``."""
    if handler is not connections or _wrappers is None:
        return _create_connection(handler, alias)
    settings = handler.settings[alias]
    engine = load_backend(settings["ENGINE"]).DatabaseWrapper
    pooled = _wrappers.wrapper_class(engine)
    if pooled is not None:
        return _wrappers.make_wrapper(pooled, settings, alias)
    if alias in _databases and registry.in_pool_thread():  # its engine has changed
        registry.forget(alias)
    return engine(settings, alias)


def is_poolable(engine: type[Any]) -> bool:
    """Whether a DatabaseWrapper class is Django's MySQL wrapper or extends it."""
    if engine.vendor != "mysql":
        return False  # before the import, which needs MySQLdb
    from pooled_serve.backend import wrappers

    pooled: Any = wrappers.wrapper_class(engine)  # type: ignore[arg-type]  # stubs of __hash__
    return pooled is not None


def handle(handler: WSGIHandler, environ: Any, start_response: Any) -> Any:
    """Replaces ``WSGIHandler.__call__``: a view runs exactly while this is on the stack."""
    scope = scope_here()
    nested = scope.enter_view()
    try:
        return _handle(handler, environ, start_response)
    finally:
        scope.leave_view(nested)


def begin_request(request: Any) -> GreenletScope:
    """Note the request, gunicorn's, that this greenlet serves from now on; logs name it. Returns
    the scope."""
    scope = scope_here()
    scope.request = request
    if routes.table is not None:
        scope.usage = routes.Unresolved()
        scope.statements_before = scope.statements
    return scope


def check_clients(seconds: float) -> ClientCheck:
    """Returns a running check; see :mod:`pooled_serve.backend.client_check`."""
    check = ClientCheck(seconds)
    check.start()
    return check


def end_request(scope: GreenletScope | None = None) -> None:
    """Drop all that this request leaves, so that the next one in the same greenlet starts clean.

    Django gives connections back at ``request_finished``, which a request that was killed, timed
    out or never closed its response does not reach. And gunicorn serves all requests of a
    keep-alive client in one greenlet, where they would share wrappers and their flags.

    :param scope: that of this greenlet.
    :raises BaseException: the first exception that interrupted a hand-back, after all of them.
    """
    if scope is None:
        scope = scope_here()
    scope.request = None
    try:
        if scope:
            scopes.for_each(scope, lambda session: session.close())
    finally:
        try:
            _wrappers.close_wrappers_here()
        finally:
            if scope.usage is not None:
                routes.end_request(scope)
            registry.retire_gone()


def pools() -> dict[str, Any]:
    """Returns alias -> :class:`ConnectionPool`, for the databases used so far.

    Makes the pool of a database that was not queried yet, for its size and cap.
    """
    return {alias: database.pool for alias, database in _databases.items()}


def atomic_aliases() -> set[str]:
    """Returns the databases with ATOMIC_REQUESTS: their views are one transaction each."""
    settings = connections.settings
    return {alias for alias, values in settings.items() if values.get("ATOMIC_REQUESTS")}


@functools.cache  # of this worker: the settings are loaded once
def addresses() -> dict[str, str]:
    """Returns alias -> server, as the settings of the loaded project name it, of the databases that
    are pooled. Connects to none, and counts none as used."""
    found = {}
    for alias in sorted(registry.remember_aliases() & connections.settings.keys()):
        with contextlib.suppress(Exception):  # raised again when the database is used
            settings = connections.settings[alias]
            engine: Any = load_backend(settings["ENGINE"]).DatabaseWrapper
            if is_poolable(engine):
                found[alias] = _wrappers.address(engine, settings, alias)
    return found


def join_scoreboard(
    row_for: Callable[..., PoolRow | None],
    table: RouteTable,
    unreachable: Mapping[str, Loss],
    usual_hold: Callable[[], float] = float,
    all_hang: Callable[..., bool] = nobody_hangs,
    is_used: Callable[[str], bool] = lambda alias: False,
) -> None:
    """Put this worker's present and future pools on the scoreboard.

    :param row_for: see :func:`pooled_serve.backend.registry.join_scoreboard`.
    :param table: of the routes of this worker.
    :param unreachable: databases that could not be used, by alias. They are probed until they can
        be.
    :param usual_hold: see :attr:`pooled_serve.status.pool_log.PoolLog.usual_hold`.
    :param all_hang: see :attr:`pooled_serve.status.pool_log.PoolLog.all_hang`.
    :param is_used: whether another worker can use a database.
    """
    registry.join_scoreboard(row_for, routes.count_in(table), usual_hold, all_hang)
    for alias, loss in unreachable.items():
        if alias in connections.settings:
            connections[alias]  # makes the database, if it was not used yet
            _databases[alias].pool  # noqa: B018 - made at first use
            _databases[alias].reachability.inherit(
                loss.since, refused=loss.refused, is_used=partial(is_used, alias)
            )
    end_request()


def _leave_scoreboard() -> None:
    """Runs in a forked child, whose row on the scoreboard is the parent's."""
    routes.stop()
    registry.join_scoreboard(None)


os.register_at_fork(after_in_child=_leave_scoreboard)


def end_load(*, fork_follows: bool) -> None:
    """Import the engines, for the reason in :func:`_import_wrappers`, and give back the connections
    that the project has used while it was imported.

    Otherwise the main greenlet, which never ends a request, would keep them for the life of the
    worker.

    :param fork_follows: keep none idle either: no child could use them.
    """
    registry.remember_aliases()
    for settings_dict in connections.settings.values():
        with contextlib.suppress(Exception):  # raised again when the database is used
            load_backend(settings_dict["ENGINE"])
    end_request()
    if fork_follows:
        registry.clear()


def begin_serving() -> None:
    """This process is a worker: its event loop runs."""
    set_loop(runs=True)


def drain() -> None:
    """Keep no connection idle: the worker is about to stop."""
    registry.drain()


def end_serving() -> None:
    """Close what is idle: the last request was served. Hooks, exit handlers and threads still get
    connections, but none is kept idle."""
    registry.log_rest()
    registry.drain()
    registry.clear()


def last_call() -> None:
    """Close all connections in :data:`LAST_CALL_SECONDS`, unless the exit handlers run earlier.

    The last hook has run; what may still query are threads, for which Python waits, and then exit
    handlers, which get new pools.
    """
    end_request()
    timer = gevent.get_hub().loop.timer(LAST_CALL_SECONDS, ref=False)
    timer.start(gevent.spawn_raw, registry.close)
    atexit.register(timer.stop)


def close() -> None:
    """Close all connections with a COM_QUIT: the process ends."""
    if _wrappers is not None:
        with contextlib.suppress(Exception):
            end_request()  # gives back what exit handlers have not
        registry.close()
