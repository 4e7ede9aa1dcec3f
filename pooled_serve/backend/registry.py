"""The pooled databases of this process, and which of them serves a wrapper.

Projects may change ``connections.databases`` at any time: packages for many tenants swap the
settings of one alias, or add an alias for each tenant. So a database is an alias *and* its
settings, compared by value at each lease. It retires when the settings have changed, when the
alias is gone, or when the project has added more aliases than it is worth keeping connections for.
From then on it keeps nothing idle and closes what comes back; it is freed with the last lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from django.db import connections

from pooled_serve.backend.database import PooledDatabase
from pooled_serve.options import PoolPlans
from pooled_serve.pool import get_thread
from pooled_serve.status.scoreboard import PoolRow

MAX_ADDED_ALIASES = 4
"""Aliases that the project adds while it runs of which idle connections are kept."""

databases: dict[str, PooledDatabase] = {}
"""By alias. Those that the project has added stand in the order of their last use."""

_retired: WeakSet[PooledDatabase] = WeakSet()  # that are in use still
_plan: PoolPlans  # once there is one; nothing is pooled before
_thread = 0  # the OS thread whose event loop the pools belong to
_permanent: frozenset[str] | None = None  # aliases that were there from the start
_draining = False
_row_for: Callable[..., PoolRow | None] | None = None  # on the scoreboard, if there is one


def start(plan: PoolPlans) -> None:
    """Pool in this OS thread, with these numbers."""
    global _plan, _thread
    _plan, _thread = plan, get_thread()


def in_pool_thread() -> bool:
    """Whether the current OS thread may use the pools.

    A socket of one event loop is of no use in another thread (``sync_to_async``, gevent's
    threadpool); there Django connects as if there were no pool.
    """
    return bool(get_thread() == _thread)


def find(alias: str, connecting_class: type, settings: dict[str, Any]) -> PooledDatabase | None:
    """The database that serves these settings, if there is one. In any thread."""
    database = databases.get(alias)
    return database if database is not None and database.fits(connecting_class, settings) else None


def database_for(alias: str, connecting_class: type, settings: dict[str, Any]) -> PooledDatabase:
    """The database that serves these settings from now on. Does not switch.

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
        former.leave_scoreboard()  # the row is its successor's
        _retire(former)
    # If it is back before the last lease has ended, the old pool is: two would have two caps.
    back = (d for d in _retired if d.alias == alias and d.fits(connecting_class, settings))
    database = next(back, None)
    if database is None:
        plan = _plan.pool(alias, settings.get("CONN_MAX_AGE", 0))
        permanent = alias in remember_aliases()
        database = PooledDatabase(alias, settings, connecting_class, plan, permanent=permanent)
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
    """It is not there, or not pooled, any more."""
    database = databases.pop(alias, None)
    if database is not None:
        database.leave_scoreboard(free=True)
        _retire(database)


def retire_gone() -> None:
    """Forget the aliases that the project has removed."""
    # In every request, so in C: nearly always nothing is gone.
    if databases and not databases.keys() <= connections.settings.keys():
        for alias in databases.keys() - connections.settings.keys():
            forget(alias)


def remember_aliases() -> frozenset[str]:
    """The aliases that are there from the start: as of the first call."""
    global _permanent
    if _permanent is None:
        _permanent = frozenset(connections.settings)
    return _permanent


# --- The scoreboard ----------------------------------------------------------------------------


def join_scoreboard(row_for: Callable[..., PoolRow | None] | None) -> None:
    """Put present and future databases on the scoreboard; with None, on none.

    :param row_for: returns the row for an alias, if there is one left; takes ``permanent``, too.
    """
    global _row_for
    _row_for = row_for
    for database in databases.values():
        if row_for is None:
            database.leave_scoreboard()
        else:
            _join_scoreboard(database)


def _join_scoreboard(database: PooledDatabase) -> None:
    if _row_for is not None:
        pool_row = _row_for(database.alias, permanent=database.permanent)
        if pool_row is not None:
            database.join_scoreboard(pool_row)


# --- The end -----------------------------------------------------------------------------------


def clear() -> None:
    """See :meth:`ConnectionPool.clear`."""
    for database in _all():
        database.clear()


def drain() -> None:
    """Keep no connection idle, in the pools there are and those to come."""
    global _draining
    _draining = True
    for database in _all():
        database.drain()


def close() -> None:
    """Close every connection, with a goodbye to the server; refuse those who hold on to a pool.

    Exit handlers that come later find new ones.
    """
    every = _all()
    for database in every:
        database.close()
    for database in every:
        if databases.get(database.alias) is database:
            del databases[database.alias]


def _all() -> tuple[PooledDatabase, ...]:
    """As of now: others may come and go while one of them is waited for."""
    return (*databases.values(), *_retired)
