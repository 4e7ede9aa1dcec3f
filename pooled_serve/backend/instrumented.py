"""Sessions for OpenTelemetry's instrumentation of PyMySQL, which makes a span for each statement.

It wraps ``pymysql.connect()`` and returns a proxy of the connection, whose cursors make the spans.
A lease connects to nothing. So the same wrapper is called here, and its proxy put around the
session.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pymysql

_MAKERS = "opentelemetry."
"""Modules whose wrappers are known to do no more than that."""


def instrumented(session: Any, conn_params: dict[str, Any]) -> Any:
    """Returns the session in the proxy, or as it is, if PyMySQL is not instrumented.

    :param conn_params: those of ``connect()``, of which spans name server, database and user.
    """
    # What wrapt.wrap_function_wrapper() has put there; else a class, that of connections.
    wrapper = getattr(pymysql.connect, "_self_wrapper", None)
    if wrapper is None or not str(wrapper.__module__).startswith(_MAKERS):
        return session
    get = conn_params.get
    proxy = _proxy(
        wrapper, get("host", "localhost"), get("port", 3306), get("user"), get("database")
    )
    # One tracer for all sessions: to make it takes 80 microseconds. Old versions keep it in the
    # class, and take no notice.
    return type(proxy)(session, getattr(proxy, "_self_db_api_integration", None))


@functools.lru_cache(maxsize=64)
def _proxy(wrapper: Any, host: Any, port: Any, user: Any, database: Any) -> Any:
    """Returns the proxy of a connection that is none. Its attributes are read; to read those of a
    session would lease one."""
    described = SimpleNamespace(host=host, port=port, user=user, db=database)
    return wrapper(lambda: described, None, (), {})
