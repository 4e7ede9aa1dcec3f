"""The pooled databases of this process, and the lookup of the one for a wrapper.

Projects may change ``connections.databases`` at any time: packages for many tenants swap the
settings of one alias, or add an alias for each tenant. So a pooled database is an alias *and* its
settings, compared by value at each lease. It retires when the settings change, when the alias is
removed, or when the project has added more than :data:`MAX_ADDED_ALIASES` others since. A retired
one keeps no idle connections and closes those that come back; it is freed with the last lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from django.db import connections

from pooled_serve.backend.database import PooledDatabase
from pooled_serve.backend.routes import RouteAccount
from pooled_serve.pool import get_thread
from pooled_serve.pool.host import Host
from pooled_serve.pool.tokens import tokens_of
from pooled_serve.pool_plan import PoolPlans
from pooled_serve.status.hanging_log import nobody_hangs
from pooled_serve.status.scoreboard import PoolRow

MAX_ADDED_ALIASES = 4
"""Of the aliases that the project adds while it runs, so many keep idle connections."""

databases: dict[str, PooledDatabase] = {}
"""By alias. Those that the project has added are in the order of their last use."""

_retired: WeakSet[PooledDatabase] = WeakSet()  # with leases
_plan: PoolPlans  # set by start(); nothing is pooled before
_host: Host | None = None  # if it has a bound
_thread = 0  # the OS thread whose event loop the pools belong to
_permanent: frozenset[str] | None = None  # aliases of the loaded project
_draining = False
_row_for: Callable[..., PoolRow | None] | None = None  # None without a scoreboard
_account: RouteAccount | None = None
_usual_hold: Callable[[], float] = float
_all_hang: Callable[..., bool] = nobody_hangs


def start(plan: PoolPlans, host: Host | None) -> None:
    """Pool databases in the current OS thread, with these numbers.

    :param host: shared by all workers, if the plan bounds them together.
    """
    global _plan, _host, _thread
    _plan, _host, _thread = plan, host, get_thread()


def in_pool_thread() -> bool:
    """Whether the current OS thread may use the pools.

    The sockets belong to this thread's event loop. In other threads (``sync_to_async``, gevent's
    threadpool) Django connects as if there were no pool.
    """
    return bool(get_thread() == _thread)


def find(alias: str, connecting_class: type, settings: dict[str, Any]) -> PooledDatabase | None:
    """Returns the database with these settings; None if there is none. For any thread."""
    database = databases.get(alias)
    return database if database is not None and database.fits(connecting_class, settings) else None


def database_for(alias: str, connecting_class: type, settings: dict[str, Any]) -> PooledDatabase:
    """Returns the database with these settings, made if there is none. Does not switch greenlets.

    :param connecting_class: the class of wrappers that open its connections.
    """
    database = databases.get(alias)
    if database is None or not database.fits(connecting_class, settings):
        return _replace(alias, connecting_class, settings)
    if not database.permanent:
        databases[alias] = databases.pop(alias)
    return database


def _replace(alias: str, connecting_class: type, settings: dict[str, Any]) -> PooledDatabase:
    retire_gone()
    former = databases.pop(alias, None)
    if former is not None:
        former.leave_scoreboard()  # its successor gets the row
        _retire(former)
    # Settings that come back before the last lease has ended get their old pool back: two pools
    # would have two caps.
    back = (d for d in _retired if d.alias == alias and d.fits(connecting_class, settings))
    database = next(back, None)
    if database is None:
        plan = _plan.pool(alias, settings.get("CONN_MAX_AGE", 0))
        tokens = None
        if _host is not None and plan.per_host is not None:
            tokens = tokens_of(_host, alias, plan.per_host)
        permanent = alias in remember_aliases()
        database = PooledDatabase(
            alias, settings, connecting_class, plan, permanent=permanent, tokens=tokens
        )
    _retired.discard(database)
    databases[alias] = database
    database.drain() if _draining else database.resume()
    _join_scoreboard(database)
    if not database.permanent:
        added = [name for name, other in databases.items() if not other.permanent]
        for name in added[:-MAX_ADDED_ALIASES]:
            forget(name)
    return database


def _retire(database: PooledDatabase) -> None:
    _retired.add(database)
    database.drain()


def forget(alias: str) -> None:
    """Retire the database of an alias that is removed, or no longer pooled."""
    database = databases.pop(alias, None)
    if database is not None:
        database.leave_scoreboard(free=True)
        _retire(database)


def retire_gone() -> None:
    """Forget the aliases that the project has removed."""
    # Runs in every request, and nearly always finds nothing: one comparison in C.
    if databases and not databases.keys() <= connections.settings.keys():
        for alias in databases.keys() - connections.settings.keys():
            forget(alias)


def remember_aliases() -> frozenset[str]:
    """Returns the aliases of the loaded project, which are those at the first call."""
    global _permanent
    if _permanent is None:
        _permanent = frozenset(connections.settings)
    return _permanent


# --- The scoreboard ----------------------------------------------------------------------------


def join_scoreboard(
    row_for: Callable[..., PoolRow | None] | None,
    account: RouteAccount | None = None,
    usual_hold: Callable[[], float] = float,
    all_hang: Callable[..., bool] = nobody_hangs,
) -> None:
    """Put present and future databases on the scoreboard; with None, take them off.

    :param row_for: called with an alias and ``permanent``; returns a row, or None if none is left.
    :param account: told of each use of a pool.
    :param usual_hold: see :attr:`PoolLog.usual_hold`.
    :param all_hang: see :attr:`PoolLog.all_hang`.
    """
    global _row_for, _account, _usual_hold, _all_hang
    _row_for, _account, _usual_hold, _all_hang = row_for, account, usual_hold, all_hang
    for database in databases.values():
        if row_for is None:
            database.leave_scoreboard()
        else:
            _join_scoreboard(database)


def _join_scoreboard(database: PooledDatabase) -> None:
    if _row_for is not None and _account is not None:
        pool_row = _row_for(database.alias, permanent=database.permanent)
        if pool_row is not None:
            database.join_scoreboard(pool_row, _account, _usual_hold, _all_hang)


# --- The end -----------------------------------------------------------------------------------


def clear() -> None:
    """See :meth:`ConnectionPool.clear`."""
    for database in _all():
        database.clear()


def log_rest() -> None:
    """See :meth:`PoolLog.log_rest`."""
    for database in _all():
        database.log_rest()


def drain() -> None:
    """Keep no idle connections, in present and future pools."""
    global _draining
    _draining = True
    for database in _all():
        database.drain()


def close() -> None:
    """Close every connection with a COM_QUIT, and every pool: its callers get a PoolClosed.

    Exit handlers that run later get new pools.
    """
    every = _all()
    for database in every:
        database.close()
    for database in every:
        if databases.get(database.alias) is database:
            del databases[database.alias]


def _all() -> tuple[PooledDatabase, ...]:
    """Returns a copy: the caller may switch greenlets, in which others change the collections."""
    return (*databases.values(), *_retired)
