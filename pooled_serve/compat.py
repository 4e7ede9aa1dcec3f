"""What we rely on in other packages beyond their documented ways in, and whether it is there.

A release that moves one of these must be told of in one line, before a worker starts; not by a
TypeError in every request.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

from pooled_serve.errors import StartupError, startup_error

NEWEST = {"django": "6.1", "gunicorn": "27.0", "pymysql": "1.2"}
"""The newest series that all tests have run with."""

_DJANGO = "django.db.backends.base.base:BaseDatabaseWrapper"
_CONNECTION = "pymysql.connections:Connection"
_CURSOR = "pymysql.cursors:Cursor"
_WORKER = "gunicorn.workers.ggevent:GeventWorker"

# Where we plug in, and the parameters. Others call our own in their place, so that one parameter
# more is as bad as one less; a change of its default is not.
SIGNATURES: dict[str, tuple[tuple[str, str], ...]] = {
    "django": (
        ("django.db.utils:ConnectionHandler.create_connection", "self, alias"),
        ("django.core.handlers.exception:response_for_exception", "request, exc"),
        ("django.core.handlers.wsgi:WSGIHandler.__call__", "self, environ, start_response"),
        (f"{_DJANGO}.connect", "self"),
        (f"{_DJANGO}.get_connection_params", "self"),
        (f"{_DJANGO}.get_new_connection", "self, conn_params"),
        (f"{_DJANGO}.init_connection_state", "self"),
        (f"{_DJANGO}.is_usable", "self"),
        (
            f"{_DJANGO}.set_autocommit",
            "self, autocommit, force_begin_transaction_with_broken_autocommit",
        ),
    ),
    "pymysql": (
        (f"{_CONNECTION}.connect", "self, sock"),
        (f"{_CONNECTION}._create_ssl_ctx", "self, sslp"),
        (f"{_CONNECTION}.query", "self, sql, unbuffered"),
        (f"{_CONNECTION}.next_result", "self, unbuffered"),
        (f"{_CONNECTION}.select_db", "self, db"),
        (f"{_CONNECTION}.set_character_set", "self, charset, collation"),
        (f"{_CONNECTION}.ping", "self, reconnect"),
        (f"{_CONNECTION}.autocommit", "self, value"),
        (f"{_CONNECTION}.begin", "self"),
        (f"{_CONNECTION}.commit", "self"),
        (f"{_CONNECTION}.rollback", "self"),
        (f"{_CONNECTION}.close", "self"),
        (f"{_CONNECTION}._read_ok_packet", "self"),
        (f"{_CONNECTION}._write_bytes", "self, data"),
        (f"{_CONNECTION}._force_close", "self"),
        ("pymysql.connections:MySQLResult._read_rowdata_packet_unbuffered", "self"),
        (f"{_CURSOR}._get_db", "self"),
        (f"{_CURSOR}.execute", "self, query, args"),
        (f"{_CURSOR}.executemany", "self, query, args"),
        (f"{_CURSOR}.callproc", "self, procname, args"),
    ),
    "gunicorn": (
        ("gunicorn.util:http_date", "timestamp"),
        ("gunicorn.util:set_owner_process", "uid, gid, initgroups"),
        ("gunicorn.sock:TCPSocket", "address, conf, log, fd"),
        ("gunicorn.sock:TCP6Socket", "address, conf, log, fd"),
        ("gunicorn.sock:UnixSocket", "addr, conf, log, fd"),
        ("gunicorn.systemd:listen_fds", "unset_environment"),
        ("gunicorn.workers.ggevent:StreamServer", "listener, handle, backlog, spawn, ssl_args"),
        (f"{_WORKER}.init_process", "self"),
        (f"{_WORKER}.load_wsgi", "self"),
        (f"{_WORKER}.init_signals", "self"),
        (f"{_WORKER}.handle_exit", "self, sig, frame"),
        (f"{_WORKER}.handle_quit", "self, sig, frame"),
        (f"{_WORKER}.handle_request", "self, listener_name, req, sock, addr"),
        (f"{_WORKER}.handle_http2_request", "self, listener_name, req, sock, addr, h2_conn"),
        (f"{_WORKER}.notify", "self"),
        (f"{_WORKER}.run", "self"),
    ),
}


def check(*packages: str) -> None:
    """Compare what is installed with :data:`SIGNATURES`. Takes about a millisecond.

    :raises StartupError: naming package, version and place.
    """
    for package in packages:
        for place, expected in SIGNATURES[package]:
            name = place.partition(":")[2]
            try:
                found = inspect.signature(pkgutil.resolve_name(place)).parameters
            except (ImportError, AttributeError, TypeError, ValueError):
                raise _moved(package, f"there is no {name}({expected})") from None
            if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in found.values()):
                continue  # somebody's wrapper, which passes on what it gets
            if ", ".join(found) != expected:
                raise _moved(package, f"{name} takes ({', '.join(found)}), not ({expected})")
    if "django" in packages:
        _check_storage()


def _check_storage() -> None:
    """Look for what a thread keeps in ``connections``: a request leaves nothing there."""
    from django.db import connections

    local = connections._connections  # type: ignore[attr-defined]
    if not isinstance(getattr(getattr(local, "_storage", None), "__dict__", None), dict):
        raise _moved("asgiref", "there is no threading.local in Local._storage")


@contextmanager
def imports() -> Iterator[None]:
    """Around imports of ours that import from other packages.

    :raises StartupError: a name is not where it was.
    """
    try:
        yield
    except ImportError as error:
        raise _moved((error.name or "").partition(".")[0], error.msg) from error
    except RuntimeError as error:  # gunicorn, when gevent is too old for it
        raise _moved("gevent", str(error)) from error


def _moved(package: str, what: str) -> StartupError:
    from importlib.metadata import PackageNotFoundError, version  # takes time, and is rarely wanted

    try:
        found = f"{package} {version(package)}"
    except (PackageNotFoundError, ValueError):
        found = package
    hint = f"pip install --upgrade {package} pooled-serve"
    if package in NEWEST:
        hint = f"pip install '{package}=={NEWEST[package]}.*', or a newer pooled-serve"
    return startup_error("PS504", f"{found} does not fit: {what}", hint)
