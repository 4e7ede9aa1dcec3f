"""Pooling without the command, for projects with a launcher of their own. The interface is that of
django-db-pooling::

    from pooled_serve import pooling

    pooling.set_pool_size(4, max_outstanding=10, timeout=60)
    pooling.apply_patch()

under ``gunicorn -k gevent``. The calls may stand in wsgi.py, settings.py or an AppConfig: they read
no settings and open no connection. All other options come from ``POOLED_SERVE_*`` variables, or
have their defaults.

What differs from django-db-pooling:

* ``max_outstanding`` below the pool size is a ValueError. It used to mean "unlimited", which is
  still what None means.
* A request that waits for longer than ``timeout`` gets a 503 instead of a bare ``queue.Empty``.
* ``CONN_MAX_AGE`` need not be set.

What differs from the command:

* There is no preflight, no fair turns between clients, and no orderly end on TERM.
* Management commands and scripts that import the module with the calls use the pool as well.
* In request mode a greenlet that serves no request keeps its connection until it ends or closes
  it, as in plain Django.
* With ``POOLED_SERVE_MAX_PER_HOST`` the workers of a master meet in a file in ``/dev/shm``. A
  process that runs no event loop (a sync worker, a child that the project forks) keeps no
  connection idle then, because it could not lend it.
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from gevent import monkey

from pooled_serve import __version__, compat, launcher, options
from pooled_serve.options import PoolOptions
from pooled_serve.pool import set_loop
from pooled_serve.pool.host import Host
from pooled_serve.preflight.plan import Plan

__all__ = ["apply_patch", "set_pool_size"]

SHARED_MEMORY = Path("/dev/shm")
"""Is not cleaned while a process that uses it runs, as folders for temporary files may be."""

_explicit: dict[str, Any] = {}


def set_pool_size(n: int, max_outstanding: int | None = None, timeout: float | None = 60) -> None:
    """Set the size of the pools. Has no effect after :func:`apply_patch`.

    :param n: connections kept open per process and database.
    :param max_outstanding: cap on connections in use at once; None for no limit.
    :param timeout: seconds that a request may wait for a connection.
    :raises ValueError: a number below 1, or ``max_outstanding`` below ``n``.
    """
    size = options.count(n)
    cap = math.inf if max_outstanding is None else options.limit(max_outstanding)
    if cap < size:
        raise ValueError(f"max_outstanding ({cap:.0f}) must not be below the pool size ({size})")
    _explicit.update(
        pool_size=size,
        max_outstanding=cap,
        pool_timeout=options.seconds(60 if timeout is None else timeout),
    )


def apply_patch() -> None:
    """Pool the MySQL connections of this process, in the thread that calls this.

    Does nothing under the command ``pooled-serve``, which has patched already.

    :raises StartupError: mysqlclient is loaded, another pool has patched Django, or Django or
        PyMySQL has changed where pooled-serve plugs in.
    :raises ValueError: a ``POOLED_SERVE_*`` variable cannot be used.
    :raises OSError: with ``POOLED_SERVE_MAX_PER_HOST``, shared memory cannot be used.
    """
    if launcher.under_command:
        launcher.pooling_ignored = True
        return
    with compat.imports():
        from pooled_serve.backend import patch

    values = {o.setting: o.parse(text) for o, text in options.from_environment(os.environ)}
    plan = Plan(PoolOptions.from_values({**values, **_explicit}))
    host = None
    if plan.options.per_host is not None:
        host = _host_of_siblings()
        set_loop(runs=bool(monkey.is_module_patched("socket")))
    patch.install(plan, host, own_launcher=True)
    atexit.register(patch.close)


@functools.cache  # two in a process would not know of each other's locks
def _host_of_siblings() -> Host:
    """Returns the bound that this process shares with all that its parent has started: the workers
    of a gunicorn, which the patch is applied in, one by one, after the fork.

    They meet in a file that is named after the parent. What other parents have left is removed.
    """
    base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    folder = base / f"pooled-serve-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    space = f"{__version__}-{os.stat('/proc/self/ns/pid').st_ino}-"
    for path in folder.glob(f"{space}*"):
        pid = path.name.removeprefix(space).partition("-")[0]
        if path.name != space + _name_of(int(pid)):
            path.unlink(missing_ok=True)
    # Init is the parent of strangers, and a process in a container may have none.
    parent = os.getppid() if os.getppid() > 1 else os.getpid()
    return Host.open(str(folder / (space + _name_of(parent))))


def _name_of(pid: int) -> str:
    """Returns what no other process has had; its number alone if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return f"{pid}-"
    started = stat.rpartition(")")[2].split()[19]  # see proc(5); the name before may be anything
    return f"{pid}-{started}"
