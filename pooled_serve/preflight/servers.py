"""Ask the database servers of the project for their limits, all at once, and say what is wrong with
those that do not answer.

Runs in the child of the preflight, which has real threads.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pooled_serve.driver import error_codes as codes
from pooled_serve.errors import Finding, Level, StartupError, startup_error
from pooled_serve.preflight import databases, failures
from pooled_serve.preflight.origins import Origins
from pooled_serve.preflight.reports import DatabaseReport, ServerFacts

ANSWER_TIMEOUT_SECONDS = 5.0
"""Seconds for all database servers together."""


@contextlib.contextmanager
def usable(problem: str, hint: str = "") -> Iterator[None]:
    """Turn errors in the body, which wrong DATABASES cause, into a StartupError.

    :param hint: the remedy; without it a general one.
    :raises StartupError: PS102, with the problem and the original error.
    """
    hint = hint or "correct DATABASES in the settings, or install what it needs"
    try:
        yield
    except StartupError:
        raise
    except UnicodeError as error:  # its text shows what could not be encoded
        raise startup_error("PS102", f"{problem}: a password that is not latin-1", hint) from error
    except Exception as error:
        raise startup_error("PS102", problem, hint, failures.where(error)) from error


class Question(NamedTuple):
    """A database, and how to ask its server."""

    report: DatabaseReport
    connection: Any = None  # not connected yet; None for engines that cannot be pooled
    has_authority: bool = True  # for the server's certificate
    origins: Origins | None = None


def describe(alias: str, settings: Mapping[str, Any]) -> Question:
    """Returns a database as the settings describe it, and how to ask its server.

    :raises StartupError: PS102, PS110, PS112: the settings cannot be used.
    """
    from django.db import connections

    from pooled_serve.backend import patch

    engine = settings["ENGINE"]
    with usable(_no_engine(alias, settings), failures.engine_meant(engine)):
        wrapper: Any = connections[alias]
    if not patch.is_poolable(type(wrapper)):
        label = wrapper.display_name if wrapper.vendor != "mysql" else engine
        return Question(DatabaseReport(alias, pooled=False, label=label))
    from pooled_serve.driver import parameters

    databases.check(alias, settings)
    connection, params = not_connected(alias, settings, wrapper)
    report = DatabaseReport(
        alias,
        pooled=True,
        label="MySQL",
        # From the connection: OPTIONS and option files may name the server, too.
        address=connection.address,
        server=connection.server,
        conn_max_age=settings["CONN_MAX_AGE"],
        atomic_requests=bool(settings["ATOMIC_REQUESTS"]),
        problem=_no_answer(connection.server, connection.connect_timeout),  # until there is one
    )
    authority = parameters.has_authority(params)
    return Question(report, connection, authority, Origins(settings))


def engine_of(alias: str, settings: Mapping[str, Any]) -> Any:
    """Returns the class of a database's engine.

    :raises StartupError: PS102: it cannot be loaded.
    """
    from django.db.utils import load_backend

    with usable(_no_engine(alias, settings), failures.engine_meant(settings["ENGINE"])):
        return load_backend(settings["ENGINE"]).DatabaseWrapper


def _no_engine(alias: str, settings: Mapping[str, Any]) -> str:
    return f"the engine {settings['ENGINE']!r} of the database {alias!r} cannot be loaded"


def not_connected(
    alias: str, settings: Mapping[str, Any], wrapper: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns a connection as the settings want it, before it connects, and its arguments.

    :param wrapper: Django's, of the same settings.
    :raises StartupError: PS102, PS110, PS112: the settings cannot be used.
    """
    from pooled_serve.driver import parameters
    from pooled_serve.driver.connection import MySQLConnection

    said = f"PyMySQL cannot use the settings of the database {alias!r}"
    with usable(said, "correct DATABASES in the settings"):
        databases.check_isolation(alias, settings["OPTIONS"], wrapper.isolation_levels)
        given = wrapper.get_connection_params()
        try:
            params = parameters.translate(given)
            parameters.check_tls_files(params)
        except parameters.UnsupportedOption as error:
            text = f"OPTIONS of the database {alias!r}: {error.problem}"
            raise startup_error("PS112", text, error.hint) from None
        seconds = min(params.get("connect_timeout", 10), ANSWER_TIMEOUT_SECONDS)
        params |= {"connect_timeout": seconds, "defer_connect": True}
        try:
            connection = MySQLConnection(**params)
        except ssl.SSLError as error:
            text = f"OPTIONS of the database {alias!r}: no TLS with these files ({error.reason})"
            hint = "correct OPTIONS['ssl']: PEM files, and the key that belongs to the certificate"
            raise startup_error("PS112", text, hint) from None
    return connection, params


def ask_all(found: Sequence[Question]) -> tuple[DatabaseReport, ...]:
    """Returns the reports with all answers that arrive within ANSWER_TIMEOUT_SECONDS."""
    reports = {question.report.alias: question.report for question in found}

    def ask(question: Question) -> None:
        report, connection, has_authority, origins = question
        try:
            answer = replace(report, facts=_ask(connection), problem=None)
        except databases.WrongRows:
            problem = databases.wrong_rows(report.alias, connection.cursorclass)
            answer = replace(report, problem=problem)
        except Exception as error:
            problem = connect_problem(
                error,
                report.server,
                connection.connect_timeout,
                has_authority=has_authority,
                origins=origins,
                option=databases.option_behind(connection, error),
            )
            answer = replace(report, problem=problem)
        reports[report.alias] = answer

    threads = [
        threading.Thread(target=ask, args=(question,), daemon=True)
        for question in found
        if question.connection is not None
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + ANSWER_TIMEOUT_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return tuple(reports.values())


def _ask(connection: Any) -> ServerFacts:
    connection.connect()
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT @@wait_timeout, @@max_connections, @@max_user_connections, "
            "SUBSTRING_INDEX(USER(), '@', 1), "
            "CONCAT_WS(':', @@hostname, @@port, @@socket, @@server_id), @@port"
        )
        row = cursor.fetchone()
        if not isinstance(row, tuple | list):
            raise databases.WrongRows
        wait_timeout, most, most_of_user, user, identity, port = row
        seconds = time.monotonic() - began
        cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
        connected = int(cursor.fetchone()[1])
        cursor.execute("SHOW PROCESSLIST")  # without the privilege: only this user's
        own = sum(row[1] == user for row in cursor.fetchall())
    tls = _tls(connection)
    connection.close()
    return ServerFacts(
        engine=connection.engine,
        wait_timeout=int(wait_timeout),
        max_connections=int(most),
        max_user_connections=int(most_of_user),
        in_use=connected - 1,
        in_use_by_user=own - 1,
        behind_router=connection.behind_router,
        identity=identity,
        tls=tls,
        port=int(port),
        answer_seconds=seconds,
    )


def _tls(connection: Any) -> str:
    """Returns how the connection is encrypted; nothing for one that no network carries."""
    if connection.server.startswith("/"):
        return ""
    context = connection.tls
    if context is None:
        return "no TLS"
    return "TLS, verified" if context.verify_mode is ssl.CERT_REQUIRED else "TLS, not verified"


def _no_answer(server: str, seconds: float) -> Finding:
    hint = "it may be frozen, or a firewall drops packets; try: mysqladmin -h HOST -P PORT ping"
    if server.startswith("/"):
        hint = f"it may be frozen; try: mysqladmin -S {shlex.quote(server)} ping"
    return Finding(
        Level.WARN,
        "PS307",
        "",
        f"{server} did not answer within {seconds:g}s",
        hint,
    )


# OpenSSL's codes for a certificate that is good, but for another host name or address.
_OTHER_NAME = (62, 64)

# Those for one that no known authority has signed.
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)


# HOST:PORT, or a URL; not an IPv6 address, which has more colons.
_MORE_THAN_HOST = re.compile(
    r"\[(?P<scheme>\w+://)?(?P<host>[\w.-]+|\[[\da-f:.]+\])(:(?P<port>\d+))?(?P<path>/.*)?\]:\d+",
    re.I,
)


def _apart(server: str) -> str:
    """Returns the settings that were meant by one HOST with a port in it, or by a URL; empty if it
    is neither. What follows the host of a URL is not shown: it may hold a password."""
    found = _MORE_THAN_HOST.fullmatch(server)
    if found is None or not any(found[part] for part in ("scheme", "port", "path")):
        return ""
    host = f'HOST = "{found["host"].strip("[]")}"'
    return f'{host}, PORT = "{found["port"]}"' if found["port"] else host


def _is_late(text: str) -> bool:
    return "timed out" in text or "handshake" in text


def connect_problem(
    error: Exception,
    server: str,
    timeout: float,
    *,
    has_authority: bool = True,
    origins: Origins | None = None,
    option: str | None = None,
) -> Finding:
    """Returns the finding for a failed connect. Contains no password.

    :param timeout: the seconds that the server had.
    :param has_authority: whether the settings name one for the server's certificate.
    :param origins: where its values are from.
    :param option: the one of OPTIONS whose statement has failed.
    """
    origins = origins or Origins({})
    return origins.explain(
        _connect_problem(
            error, server, timeout, has_authority=has_authority, origins=origins, option=option
        )
    )


def _connect_problem(
    error: Exception,
    server: str,
    timeout: float,
    *,
    has_authority: bool,
    origins: Origins,
    option: str | None,
) -> Finding:
    # Not above: --help does without PyMySQL.
    from pooled_serve.driver.error_classes import CODE_REMEDY, failure_of_code

    number = codes.code_of(error)
    text = " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
    cause = getattr(error, "original_exception", None)
    problem = f"{server}: {text}"
    match number:
        case codes.ACCESS_DENIED_ERROR | codes.ACCESS_DENIED_NO_PASSWORD_ERROR:
            code = "PS303"
            hint = (
                f"correct {origins.login()}, or the account, which depends on the "
                "client's host, too; if it requires TLS or a client certificate, also set "
                "OPTIONS['ssl']"
            )
        case codes.DBACCESS_DENIED_ERROR | codes.BAD_DB_ERROR:
            code, hint = "PS304", "create the database, or GRANT the user rights on it"
            if file := origins.file_of("database"):
                hint = "create the database, GRANT the user rights on it, or correct database in "
                hint += file
        case codes.MUST_CHANGE_PASSWORD | codes.MUST_CHANGE_PASSWORD_LOGIN:
            code = "PS303"
            hint = "set a new password with ALTER USER, and correct " + origins.place("password")
        case _ if number in codes.LOCKED:
            code = "PS303"
            hint = "unlock the account: ALTER USER ... ACCOUNT UNLOCK"
            if number == codes.USER_IS_BLOCKED:
                hint = "then unblock the account: FLUSH PRIVILEGES"
                hint = f"correct {origins.place('password')}, {hint}"
            elif number == codes.BLOCKED_BY_PASSWORD_LOCK:
                hint = f"correct {origins.place('password')}, then {hint}"
        case codes.HOST_NOT_PRIVILEGED:
            code = "PS303"
            hint = "CREATE USER for that host ('user'@'host', '%' for any), and GRANT it rights"
        case codes.PLUGIN_IS_NOT_LOADED:
            code = "PS303"
            hint = (
                "change the account to a plugin that the server has (SHOW PLUGINS): ALTER USER ... "
                "IDENTIFIED ..., or load that one"
            )
        case codes.CR_AUTH_PLUGIN_CANNOT_LOAD:
            code = "PS303"
            hint = (
                "change the account to a plugin that PyMySQL has: ALTER USER ... IDENTIFIED WITH "
                "caching_sha2_password BY ... on MySQL, IDENTIFIED BY ... on MariaDB"
            )
        case codes.HOST_IS_BLOCKED:
            code = "PS308"
            hint = (
                "unblock it: TRUNCATE performance_schema.host_cache, on MariaDB FLUSH HOSTS; then "
                "see what hangs up during the login, such as the health check of a proxy"
            )
        case codes.SERVER_OFFLINE_MODE:
            code, hint = "PS308", "SET GLOBAL offline_mode = OFF, when its maintenance is over"
        case codes.CON_COUNT_ERROR:
            code = "PS305"
            hint = (
                "close idle connections (SHOW PROCESSLIST), or raise max_connections (if you get "
                "1040, too: stop a client first, or log in at extra_port of MariaDB or admin_port "
                "of MySQL)"
            )
        case codes.TOO_MANY_USER_CONNECTIONS | codes.USER_LIMIT_REACHED:
            code = "PS305"
            hint = (
                "close idle connections of this user (SHOW PROCESSLIST), or raise its limit; "
                "an hourly limit resets by itself"
            )
        case _ if "cryptography" in text:
            code, hint = "PS306", "pip install 'pooled-serve[rsa]', or use TLS"
            problem = (
                f"{server}: the login needs the cryptography package (caching_sha2_password "
                "without TLS)"
            )
        case _ if failure := failure_of_code(error):
            code, hint = "PS308", CODE_REMEDY
            problem = f"{server}: Python code fails in the connect: {failure}"
        case _ if number in codes.TLS or isinstance(cause, ssl.SSLError) or "SSL" in text:
            code, hint = "PS309", f"correct {origins.tls('ssl', 'ssl_mode')}"
            if getattr(cause, "verify_code", 0) in _OTHER_NAME:
                file = origins.file_of("host")
                name = f"in {file} the host" if file else "the HOST"
                hint = (
                    f"use {name} that the certificate is for, or OPTIONS['ssl_mode'] = "
                    "'VERIFY_CA', which does not compare it (nor does mysqlclient without ssl_mode)"
                )
            elif getattr(cause, "verify_code", 0) in _UNKNOWN_AUTHORITY:
                hint = "give the authority's file: OPTIONS['ssl'] = {'ca': '/path/of/ca.pem'}"
                if has_authority:
                    place = "OPTIONS['ssl']['ca'] in DATABASES"
                    for name in ("ssl-ca", "ssl-capath"):
                        if file := origins.file_of(name):
                            place = f"{name} in {file}"
                    hint = f"correct {place}: the server's certificate is of another authority"
            elif number == codes.CR_SSL_CONNECTION_ERROR and "support" in text:
                hint = f"set up TLS on the server, or remove {origins.tls('ssl', 'ssl_mode')}"
        case codes.CR_CONN_HOST_ERROR | codes.CR_SERVER_LOST if _is_late(text):
            return _no_answer(server, timeout)
        case codes.CR_CONN_HOST_ERROR if isinstance(cause, socket.gaierror):
            code, hint = "PS302", f"check {origins.place('host')}, and DNS on this machine"
            if apart := _apart(server):
                hint = f"write {apart} in DATABASES: HOST is a name or an address alone"
                if file := origins.file_of("host"):
                    hint = (
                        f"write host and port apart in {file}: a host is a name or an address alone"
                    )
            problem = f"cannot resolve the host name of {server} ({cause.strerror})"
        case codes.CR_CONN_HOST_ERROR:
            code = "PS301"
            hint = f"start the database server, or correct {origins.place('host', 'port')}"
            if server.startswith("/"):
                hint = (
                    "start the database server, or correct the path of its socket in DATABASES: "
                    "OPTIONS['unix_socket'], or HOST if that is a path"
                )
                if file := origins.file_of("socket"):
                    hint = f"start the database server, or correct socket in {file}"
            if server.startswith("localhost:"):
                hint += "; there is no Unix socket where mysqlclient would look for one, either"
            why = cause.strerror if isinstance(cause, OSError) and cause.strerror else text
            problem = f"{server} does not accept connections ({why})"
        case codes.CR_SERVER_GONE_ERROR | codes.CR_SERVER_LOST:
            # With TLS 1.3 a client certificate is refused after the handshake; that message is
            # often lost with the connection.
            code = "PS308"
            hint = (
                "see the server's error log; if it refused a client certificate, correct "
                f"{origins.tls('ssl')}"
            )
            problem = f"{server} hung up during the login: {text}"
        case codes.PARSE_ERROR:
            code = "PS308"
            hint = (
                f"correct {origins.option('init_command')}; PyMySQL runs one statement, as in SET "
                "a = 1, b = 2"
            )
            problem = f"{server}: {text} (error {number})"
        case _:
            code, hint = "PS308", "see the server's error log"
            if option:
                hint = f"correct {origins.option(option)}"
            problem = f"{server}: {text} (error {number})"
    return Finding(Level.WARN, code, "", problem, hint)
