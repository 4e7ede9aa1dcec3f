"""What the package relies on in other packages beyond their documented interfaces, and whether it
is there.

A release that moves any of it gets one line of explanation before a worker starts, not a TypeError
in every request. A test compares these tables with what the package uses: of Django, that is in
backend/patch.py, backend/wrappers.py and backend/unavailable.py; of Gunicorn, in serve/; and of
PyMySQL, in driver/.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from types import CodeType
from typing import Any

from pooled_serve.errors import StartupError, startup_error

NEWEST = {"django": "6.1", "gunicorn": "27.0", "pymysql": "1.2"}
"""The newest series that all tests have run with."""

_WRAPPER = "django.db.backends.base.base:BaseDatabaseWrapper"
_CONNECTION = "pymysql.connections:Connection"
_RESULT = "pymysql.connections:MySQLResult"
_CURSOR = "pymysql.cursors:Cursor"
_APPLICATION = "gunicorn.app.wsgiapp:WSGIApplication"
_CONFIG = "gunicorn.config:Config"
_WORKER = "gunicorn.workers.ggevent:GeventWorker"
_RESPONSE = "gunicorn.http.wsgi:Response"

# Functions that are overridden, replaced or called, and their parameters. Where other packages
# call the override, one parameter more is as bad as one less; a change of a default is not.
SIGNATURES: dict[str, tuple[tuple[str, str], ...]] = {
    "django": (
        ("django.db.utils:ConnectionHandler.create_connection", "self, alias"),
        ("django.core.handlers.exception:response_for_exception", "request, exc"),
        (
            "django.core.handlers.exception:handle_uncaught_exception",
            "request, resolver, exc_info",
        ),
        ("django.core.handlers.base:BaseHandler.resolve_request", "self, request"),
        ("django.core.handlers.wsgi:WSGIHandler.__call__", "self, environ, start_response"),
        (f"{_WRAPPER}.connect", "self"),
        (f"{_WRAPPER}.ensure_connection", "self"),
        (f"{_WRAPPER}.get_autocommit", "self"),
        (f"{_WRAPPER}.get_connection_params", "self"),
        (f"{_WRAPPER}.get_new_connection", "self, conn_params"),
        (f"{_WRAPPER}.init_connection_state", "self"),
        (f"{_WRAPPER}.is_usable", "self"),
        (
            f"{_WRAPPER}.set_autocommit",
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
        (f"{_CONNECTION}._execute_command", "self, command, sql"),
        (f"{_CONNECTION}._read_ok_packet", "self"),
        (f"{_CONNECTION}._read_query_result", "self, unbuffered"),
        (f"{_CONNECTION}._write_bytes", "self, data"),
        (f"{_CONNECTION}._force_close", "self"),
        (f"{_CONNECTION}._read_packet", "self, packet_type"),
        (f"{_CONNECTION}._read_bytes", "self, num_bytes"),
        (f"{_RESULT}.read", "self"),
        (f"{_RESULT}._get_descriptions", "self"),
        (f"{_RESULT}._check_packet_is_eof", "self, packet"),
        (f"{_RESULT}._read_rowdata_packet", "self"),
        (f"{_RESULT}._read_row_from_packet", "self, packet"),
        (f"{_RESULT}._read_rowdata_packet_unbuffered", "self"),
        ("pymysql.protocol:FieldDescriptorPacket.__init__", "self, data, encoding"),
        ("pymysql.protocol:MysqlPacket.get_all_data", "self"),
        ("pymysql.protocol:MysqlPacket.raise_for_error", "self"),
        (f"{_CURSOR}._get_db", "self"),
        (f"{_CURSOR}.execute", "self, query, args"),
        (f"{_CURSOR}.executemany", "self, query, args"),
        (f"{_CURSOR}.callproc", "self, procname, args"),
    ),
    "gunicorn": (
        ("gunicorn.util:http_date", "timestamp"),
        ("gunicorn.util:import_app", "module"),
        ("gunicorn.util:set_owner_process", "uid, gid, initgroups"),
        ("gunicorn.util:unlink", "filename"),
        ("gunicorn.arbiter:Arbiter.signal", "self, sig, frame"),
        ("gunicorn.sock:TCPSocket.__init__", "self, address, conf, log, fd"),
        ("gunicorn.sock:TCP6Socket.__init__", "self, address, conf, log, fd"),
        ("gunicorn.sock:UnixSocket.__init__", "self, addr, conf, log, fd"),
        ("gunicorn.systemd:listen_fds", "unset_environment"),
        ("gunicorn.http.parser:RequestParser.__init__", "self, cfg, source, source_addr"),
        (f"{_RESPONSE}.write", "self, arg"),
        (
            "gunicorn.workers.base:Worker.__init__",
            "self, age, ppid, sockets, app, timeout, cfg, log",
        ),
        (f"{_WORKER}.init_process", "self"),
        (f"{_WORKER}.load_wsgi", "self"),
        (f"{_WORKER}.patch", "self"),
        (f"{_WORKER}.init_signals", "self"),
        (f"{_WORKER}.handle_abort", "self, sig, frame"),
        (f"{_WORKER}.handle_exit", "self, sig, frame"),
        (f"{_WORKER}.handle_quit", "self, sig, frame"),
        (f"{_WORKER}.handle", "self, listener, client, addr"),
        (f"{_WORKER}.handle_request", "self, listener_name, req, sock, addr"),
        (f"{_WORKER}.handle_http2_request", "self, listener_name, req, sock, addr, h2_conn"),
        (f"{_WORKER}.notify", "self"),
        (f"{_WORKER}.run", "self"),
    ),
    "gevent": (
        ("gevent.server:StreamServer.__init__", "self, listener, handle, backlog, spawn, ssl_args"),
        ("gevent.server:StreamServer.do_read", "self"),
        ("gevent.server:StreamServer.start", "self"),
        ("gevent.server:StreamServer.start_accepting", "self"),
        ("gevent.server:StreamServer.stop", "self, timeout"),
        ("gevent.server:StreamServer.stop_accepting", "self"),
        ("gevent.server:StreamServer.close", "self"),
        ("gevent.os:fork_gevent", ""),
    ),
    # What the command needs before the preflight.
    "gunicorn.app": (
        ("gunicorn.util:is_ipv6", "addr"),
        ("gunicorn.util:parse_address", "netloc, default_port"),
        (f"{_APPLICATION}.__init__", "self, usage, prog"),
        (f"{_APPLICATION}.do_load_config", "self"),
        (f"{_APPLICATION}.load_default_config", "self"),
        (f"{_APPLICATION}.init", "self, parser, opts, args"),
        (f"{_APPLICATION}.load_config", "self"),
        (f"{_APPLICATION}.load_config_from_module_name_or_filename", "self, location"),
        (f"{_APPLICATION}.reload", "self"),
        (f"{_APPLICATION}.chdir", "self"),
        (f"{_APPLICATION}.load", "self"),
        (f"{_APPLICATION}.run", "self"),
        (f"{_CONFIG}.__init__", "self, usage, prog"),
        (f"{_CONFIG}.set", "self, name, value"),
        (f"{_CONFIG}.parser", "self"),
        (f"{_CONFIG}.get_cmd_args_from_env", "self"),
    ),
}

# Attributes and globals, with a class that has them or a function whose code names them. The latter
# finds, without a call, attributes that only instances have.
ATTRIBUTES: dict[str, tuple[tuple[str, str], ...]] = {
    "django": (("django.db.utils:ConnectionHandler.__init__", "_connections"),),
    "pymysql": (
        (f"{_CONNECTION}.__init__", "_read_timeout _write_timeout _result autocommit_mode"),
        (f"{_CONNECTION}.__init__", "host port user db unix_socket charset collation encoding"),
        (f"{_CONNECTION}.__init__", "client_flag connect_timeout"),
        (f"{_CONNECTION}.close", "_closed"),
        (f"{_CONNECTION}.connect", "_sock _rfile _next_seq_id _current_timeout"),
        (f"{_CONNECTION}.query", "_affected_rows"),
        (f"{_CONNECTION}._read_query_result", "_result server_status"),
        (f"{_CONNECTION}._write_bytes", "_sock _write_timeout"),
        (f"{_CONNECTION}._get_server_information", "server_version"),
        (f"{_RESULT}.__init__", "affected_rows insert_id has_next field_count rows"),
        (f"{_RESULT}.__init__", "unbuffered_active"),
        (f"{_RESULT}.__init__", "connection description warning_count"),
        (f"{_RESULT}._get_descriptions", "use_unicode encoding decoders fields converters"),
    ),
    "gunicorn": (
        ("gunicorn.http.wsgi:create", "Response"),
        (f"{_RESPONSE}.default_headers", "http_date"),
        (f"{_RESPONSE}.send_headers", "headers_sent sock"),
        ("gunicorn.sock:BaseSocket.__init__", "cfg_addr"),
        ("gunicorn.arbiter:Arbiter.setup", "app cfg log"),
        ("gunicorn.arbiter:Arbiter.start", "LISTENERS SD_LISTEN_FDS_START master_pid pidfile pid"),
        ("gunicorn.arbiter:Arbiter.init_signals", "signal"),
        ("gunicorn.workers.base:Worker.__init__", "alive app booted cfg pid sockets"),
        (f"{_WORKER}.run", "StreamServer max_accept sockets alive"),
    ),
    "gunicorn.app": (
        (f"{_CONFIG}.__init__", "settings env_orig"),
        (_CONFIG, "address env uid gid is_ssl reuse_port"),
        ("gunicorn.config:Setting", "section cli action nargs const meta type default desc value"),
        ("gunicorn.config:Setting", "get validator"),
        ("gunicorn.app.wsgiapp:WSGIApplication.load_config", "app_uri"),
    ),
    "gevent": (
        ("gevent.baseserver:BaseServer._do_read", "do_handle do_read full loop max_accept"),
        ("gevent.server:StreamServer", "do_close"),
        ("gevent.baseserver:BaseServer._start_accepting_if_started", "started"),
        ("gevent.baseserver:BaseServer._do_read", "_timer _start_accepting_if_started"),
        ("gevent.socket:socket.__init__", "_sock"),
        ("gevent.socket:socket.accept", "_wait _read_event"),
        ("gevent.socket:socket.__init__", "_write_event"),
    ),
}


def check(*packages: str) -> None:
    """Compare the installed packages with :data:`SIGNATURES` and :data:`ATTRIBUTES`.

    Takes about a millisecond; calls nothing of theirs.

    :param packages: keys of these tables.
    :raises StartupError: PS504, naming package, version and place.
    """
    for key in packages:
        package = key.partition(".")[0]
        for place, expected in SIGNATURES.get(key, ()):
            _check_signature(package, place, expected)
        for place, names in ATTRIBUTES.get(key, ()):
            _check_attributes(package, place, names)
    if "django" in packages:
        _check_storage()


def _check_signature(package: str, place: str, expected: str) -> None:
    name = place.partition(":")[2]
    code = _code(place)
    if code is None:
        raise _moved(package, f"there is no {name}({expected})")
    if code.co_flags & inspect.CO_VARARGS:
        return  # a wrapper of another package, which passes on all arguments
    # inspect.signature() would do, and take four times as long.
    number = code.co_argcount + code.co_kwonlyargcount
    number += bool(code.co_flags & inspect.CO_VARKEYWORDS)
    found = ", ".join(code.co_varnames[:number])
    if found != expected:
        raise _moved(package, f"{name} takes ({found}), not ({expected})")


def _check_attributes(package: str, place: str, names: str) -> None:
    name = place.partition(":")[2]
    found = _resolve(place)
    if isinstance(found, type):
        known: Container[str] = dir(found)
    elif (code := _code(place)) is None:
        raise _moved(package, f"there is no {name}")
    elif code.co_flags & inspect.CO_VARARGS:
        return  # a wrapper, as above
    else:
        known = code.co_names
    for attribute in names.split():
        if attribute not in known:
            raise _moved(package, f"{name} knows no {attribute}")


def _resolve(place: str) -> Any:
    """What stands there, without wrappers; None if nothing does."""
    try:
        module, _, name = place.partition(":")
        return inspect.unwrap(attrgetter(name)(import_module(module)))
    except (ImportError, AttributeError):
        return None


def _code(place: str) -> CodeType | None:
    """The code of a function; None if there is no function of that name."""
    found = _resolve(place)
    if found is not None and not hasattr(found, "__code__"):
        found = type(found).__call__  # a wrapper may be an instance
    code: CodeType | None = getattr(found, "__code__", None)
    return code


def _check_storage() -> None:
    """See that ``connections`` keeps its wrappers in a ``threading.local``, which can be emptied
    at the end of a request."""
    from django.db import connections

    local = connections._connections  # type: ignore[attr-defined]
    if not isinstance(getattr(getattr(local, "_storage", None), "__dict__", None), dict):
        raise _moved("asgiref", "there is no threading.local in Local._storage")


@contextmanager
def imports() -> Iterator[None]:
    """Around imports of modules of this package that import from other packages.

    :raises StartupError: PS504, a name is not where it was.
    """
    try:
        yield
    except ImportError as error:
        raise _moved((error.name or "").partition(".")[0], error.msg) from error
    except RuntimeError as error:  # gunicorn, when gevent is too old for it
        raise _moved("gevent", str(error)) from error


def _moved(package: str, what: str) -> StartupError:
    from importlib.metadata import PackageNotFoundError, version  # takes time, and is rarely needed

    try:
        installed = version(package)
    except (PackageNotFoundError, ValueError):
        installed = ""
    found = f"{package} {installed}".strip()
    hint = f"pip install --upgrade {package} pooled-serve"
    if package in NEWEST:
        wanted = f"=={NEWEST[package]}.*"
        if f"{installed}.".startswith(f"{NEWEST[package]}."):
            wanted = f"<{installed}"  # or pip would keep what is there
        hint = f"pip install '{package}{wanted}', or a newer pooled-serve"
    return startup_error("PS504", f"{found} does not fit: {what}", hint)
