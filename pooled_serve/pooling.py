"""Pooling without the command, for projects with a launcher of their own. The interface is that of
django-db-pooling::

    from pooled_serve import pooling

    pooling.set_pool_size(4, max_outstanding=10, timeout=60)
    pooling.apply_patch()

under ``gunicorn -k gevent``. The calls may stand in wsgi.py, settings.py or an AppConfig: they read
no settings and open no connection. All other options come from ``POOLED_SERVE_*`` variables, or
have their defaults.
"""

from __future__ import annotations

import atexit
import math
import os
from typing import Any

from pooled_serve import compat, launcher, options
from pooled_serve.options import PoolOptions
from pooled_serve.preflight.plan import Plan

__all__ = ["apply_patch", "set_pool_size"]

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
    """
    if launcher.under_command:
        launcher.pooling_ignored = True
        return
    with compat.imports():
        from pooled_serve.backend import patch

    values = {o.setting: o.parse(text) for o, text in options.from_environment(os.environ)}
    plan = Plan(PoolOptions.from_values({**values, **_explicit}))
    patch.install(plan, own_launcher=True)
    atexit.register(patch.close)
