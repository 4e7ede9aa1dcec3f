"""The Django seam: where pooled connections enter, and where they leave a request.

Two functions of Django are replaced, ``ConnectionHandler.create_connection`` and
``response_for_exception``; no signal is connected, because the test client disconnects Django's.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import gevent
import pymysql
from django.core.handlers import exception as handlers
from django.db import connections
from django.db.utils import ConnectionHandler, load_backend
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from pooled_serve.errors import EXIT_PROJECT, PoolTimeout, refuse
from pooled_serve.plan import Plan
from pooled_serve.pool import get_thread

log = logging.getLogger("gunicorn.error")

RETRY_AFTER = "1"
"""Seconds after which a client that got a 503 may try again."""

WARN_EVERY = 1.0
"""Seconds between two log lines about timeouts; a full pool can produce thousands."""

_databases: dict[str, Any] = {}  # alias -> backend.Database, for MySQL aliases in use
_plan: Plan | None = None
_thread = 0  # the OS thread whose event loop the pools belong to
_refused: dict[str, list[str]] = {}  # alias -> not told of yet; there is a _watch for each

_create_connection = ConnectionHandler.create_connection
_response_for_exception = handlers.response_for_exception


def install(plan: Plan) -> None:
    """Pool the MySQL databases of the project, from now on. Opens nothing, reads no settings.

    :raises Refusal: mysqlclient is loaded, or somebody else patched Django before.
    """
    global _plan, _thread
    use_pymysql()
    refuse_other_pools()
    _plan, _thread = plan, get_thread()
    ConnectionHandler.create_connection = create_connection  # type: ignore[assignment, method-assign]
    handlers.response_for_exception = response_for_exception  # type: ignore[assignment]


def use_pymysql() -> None:
    """Let Django's MySQL backend find PyMySQL.

    :raises Refusal: it has found mysqlclient already, which blocks a gevent worker: ten queries
        of half a second take five seconds.
    """
    loaded = sys.modules.get("MySQLdb")
    if loaded is not None and loaded is not pymysql:
        raise refuse(
            EXIT_PROJECT,
            "PS502",
            "mysqlclient (the module MySQLdb) is loaded already; it blocks a gevent worker",
            "remove the import of MySQLdb from the configuration file or the project",
        )
    pymysql.install_as_MySQLdb()


def refuse_other_pools() -> None:
    """Two pools on top of each other lose connections.

    :raises Refusal: naming the module that replaced a part of Django that we rely on.
    """
    for name in ("__getitem__", "create_connection"):
        found = getattr(ConnectionHandler, name)
        if found is create_connection or found.__module__.startswith("django."):
            continue
        raise refuse(
            EXIT_PROJECT,
            "PS503",
            f"{found.__module__} has replaced Django's ConnectionHandler.{name}",
            f"remove the call that applies the patch of {found.__module__}; "
            "pooled-serve needs no line in the project",
        )


def create_connection(handler: ConnectionHandler, alias: str) -> Any:
    """In place of ``ConnectionHandler.create_connection``."""
    if handler is not connections or _plan is None:
        return _create_connection(handler, alias)
    database = _databases.get(alias)
    if database is None:
        settings_dict = handler.settings[alias]
        engine = load_backend(settings_dict["ENGINE"]).DatabaseWrapper
        if not is_poolable(engine):
            return _create_connection(handler, alias)
        from pooled_serve.backend import Database

        plan = _plan.pool(alias, settings_dict["CONN_MAX_AGE"])
        database = Database(alias, settings_dict, engine, plan, _thread)
        # Another greenlet or thread may have come first, while this one imported.
        database = _databases.setdefault(alias, database)
    return database.wrapper()


def is_poolable(engine: type[Any]) -> bool:
    """Whether a DatabaseWrapper class is Django's MySQL wrapper or extends it."""
    if engine.vendor != "mysql":
        return False
    from django.db.backends.mysql.base import DatabaseWrapper

    return issubclass(engine, DatabaseWrapper)


def response_for_exception(request: HttpRequest, exc: Exception) -> HttpResponseBase:
    """In place of Django's: a request that got no connection in time is told to come back.

    No middleware can do that, because Django has made a 500 of the exception before any sees it.
    """
    if not isinstance(exc, PoolTimeout):
        return _response_for_exception(request, exc)
    if exc.pool in _refused:
        _refused[exc.pool].append(str(exc))  # not itself, which holds on to the request
    else:
        _refused[exc.pool] = []
        log.warning("503 Service Unavailable: %s", exc)
        gevent.spawn(_watch, exc.pool)
    return HttpResponse(
        b"The server is busy. Please try again.\n",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": RETRY_AFTER},
    )


def _watch(alias: str) -> None:
    """Tell of the requests that are refused, in a line a second, until the pressure is over."""
    began, total = time.monotonic(), 1
    while True:
        gevent.sleep(WARN_EVERY)
        refused = _refused[alias]
        total += len(refused)
        if refused:
            log.warning("503 Service Unavailable, %d times: %s", len(refused), refused[-1])
            refused.clear()
        elif alias not in pools() or not pools()[alias].stats()["waiting"]:
            break
    del _refused[alias]
    log.warning(
        "pool %r: the pressure is over, nobody waits; %d requests got 503 in %.0fs",
        alias,
        total,
        time.monotonic() - began,
    )


def end_request() -> None:
    """Leave nothing of this request to the next one in the same greenlet.

    Django hands connections back at ``request_finished``, which a request that was killed, timed
    out or never closed its response does not reach. And gunicorn serves all requests of a
    keep-alive client in one greenlet: wrappers with their flags must not pass from one to the
    other.
    """
    if not _databases:
        return
    from pooled_serve.backend import sessions_here

    for session in tuple(sessions_here()):
        session.close()
    mine = connections._connections  # type: ignore[attr-defined]
    for alias in _databases:
        if hasattr(mine, alias):
            delattr(mine, alias)


def pools() -> dict[str, Any]:
    """alias -> :class:`ConnectionPool`, of the databases used so far."""
    return {alias: database.pool for alias, database in _databases.items()}


def end_load(*, fork_follows: bool) -> None:
    """Give back what the project asked the database for while it was imported.

    Else the main greenlet, which never ends a request, would hold a connection for the life of
    the worker. Before a fork nothing is kept: no child could use it.
    """
    end_request()
    if fork_follows:
        for database in _databases.values():
            database.clear()


def drain() -> None:
    """The worker is about to stop: keep no connection idle."""
    for database in _databases.values():
        database.drain()


def close() -> None:
    """The worker stops: close what is idle, with a goodbye to the server."""
    for database in _databases.values():
        database.close()
