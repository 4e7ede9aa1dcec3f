"""Load the project and ask its database servers for their limits, before anything starts.

All of it happens in a forked child. The master is not patched by gevent: if it imported Django, all
greenlets of a worker would share one connection wrapper. The child is set up like a worker, but
without gevent's patches: it has real threads, and ends without running exit handlers.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from pooled_serve import compat, launcher
from pooled_serve.driver import error_codes as codes
from pooled_serve.errors import Finding, Level, StartupError, startup_error
from pooled_serve.preflight import child, databases, project
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts

ANSWER_TIMEOUT_SECONDS = 5.0
"""Seconds for all database servers together."""

SLOW_AFTER_SECONDS = 15.0
"""Seconds until a warning that the project is still being loaded."""


def run(app: str, setup: Callable[[], None], *, check: bool = False) -> ProjectReport:
    """Load the project in a child process and report on it.

    :param setup: called in the child first, to set it up like a worker: directory, user,
        environment.
    :param check: also report what a start does not wait for, such as migrations.
    :raises StartupError: the project cannot be served.
    """

    def work() -> bytes:
        try:
            setup()
            return pickle.dumps(_report(app, check=check))
        except StartupError as error:
            return pickle.dumps(error)

    def slow() -> None:
        text = f"{app} is still being loaded after {SLOW_AFTER_SECONDS:g}s"
        hint = "look for a loop, or for a server that does not answer; Ctrl-C ends it"
        print(Finding(Level.WARN, "PS111", "", text, hint), file=sys.stderr, flush=True)

    try:
        answer = child.call(work, slow_after=SLOW_AFTER_SECONDS, slow=slow)
    except child.ChildDied as died:
        code = died.code
        if code == child.EXIT_RAISED:  # with a traceback, which was printed
            raise startup_error(
                "PS102",
                f"the preflight of {app} failed, see above",
                "if no line of the traceback is the project's, report it to pooled-serve",
            ) from None
        how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
        raise startup_error(
            "PS102",
            f"loading {app} ended the process {how}",
            "look for os._exit(), a crash in a C extension, or a memory limit",
        ) from None
    result = _Answer(io.BytesIO(answer)).load()
    if isinstance(result, StartupError):
        raise result
    assert isinstance(result, ProjectReport)
    return result


class _Answer(pickle.Unpickler):
    """Reads reports only: the child may run as another user, whose bytes must not run code in this
    process."""

    _known: ClassVar = {
        known.__name__: known
        for known in (ProjectReport, DatabaseReport, ServerFacts, StartupError, Finding, Level)
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        if name not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a report")
        return self._known[name]


def _report(app: str, *, check: bool) -> ProjectReport:
    began = time.monotonic()
    with compat.imports():
        from pooled_serve.backend import patch  # and Django, part of the project's time

    launcher.under_command = True
    patch.use_pymysql()
    patch.translate_parameters()
    # Before the project is loaded, or it would look like the project's fault.
    compat.check("django", "pymysql", "gunicorn", "gevent")
    project.load(app)
    seconds = time.monotonic() - began
    patch.refuse_other_pools()

    import django
    from django.db import connections

    with _databases("DATABASES cannot be used"):
        found = [
            _describe(alias, settings)
            for alias, settings in connections.settings.items()
            if settings["ENGINE"] != "django.db.backends.dummy"
        ]
    reports = _ask_all(found)
    doubts = [
        finding
        for report in reports
        if report.pooled
        for finding in (
            *databases.warnings(report.alias, connections.settings[report.alias]),
            *databases.other_meanings(report, connections.settings[report.alias]),
            *(databases.of_manage(report, connections.settings[report.alias]) if check else ()),
        )
    ]
    if check and any(report.alias == "default" and report.facts for report in reports):
        doubts += _in_time(project.migration_notes)
    connections.close_all()  # that the project itself has opened
    return ProjectReport(
        app=app if ":" in app else f"{app}:{project.DEFAULT_ATTRIBUTE}",
        settings_module=os.environ.get(project.SETTINGS_VARIABLE, ""),
        load_seconds=seconds,
        django=django.get_version(),
        databases=reports,
        warnings=(
            *_pooling_warning(),
            *doubts,
            *project.host_warnings(),
            *project.async_warnings(),
        ),
    )


def _in_time(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Returns what a function finds in the databases; nothing if it fails, or takes too long."""
    found: list[Finding] = []

    def work() -> None:
        from django.db import connections

        # What is wrong with models or migrations, manage.py says better.
        with contextlib.suppress(Exception):
            found.extend(look())
        connections.close_all()  # this thread's

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT_SECONDS)
    return list(found)


def _pooling_warning() -> Iterator[Finding]:
    if launcher.pooling_ignored:
        yield Finding(
            Level.WARN,
            "PS207",
            "",
            "the project calls pooled_serve.pooling, whose numbers this command ignores",
            "delete the calls, and use --pool-size and --max-outstanding",
        )


@contextlib.contextmanager
def _databases(problem: str) -> Iterator[None]:
    """Turns errors in the body, which wrong DATABASES cause, into a StartupError.

    :raises StartupError: PS102, with the problem and the original error.
    """
    hint = "correct DATABASES in the settings, or install what it needs"
    try:
        yield
    except StartupError:
        raise
    except UnicodeError as error:  # its text shows what could not be encoded
        raise startup_error("PS102", f"{problem}: a password that is not latin-1", hint) from error
    except Exception as error:
        raise startup_error("PS102", problem, hint, project.where(error)) from error


class _Question(NamedTuple):
    """A database, and how to ask its server."""

    report: DatabaseReport
    connection: Any = None  # not connected yet; None for engines that cannot be pooled
    has_authority: bool = True  # for the server's certificate
    option_file: str | None = None  # that names the socket


def _describe(alias: str, settings: Mapping[str, Any]) -> _Question:
    from django.db import connections

    from pooled_serve.backend import patch

    engine = settings["ENGINE"]
    with _databases(f"the engine {engine!r} of the database {alias!r} cannot be loaded"):
        wrapper = connections[alias]
    if not patch.is_poolable(type(wrapper)):
        label = wrapper.display_name if wrapper.vendor != "mysql" else engine
        return _Question(DatabaseReport(alias, pooled=False, label=label))
    from pooled_serve.driver import parameters
    from pooled_serve.driver.connection import MySQLConnection

    databases.check(alias, settings)
    with _databases(f"PyMySQL cannot use the settings of the database {alias!r}"):
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
    return _Question(report, connection, authority, parameters.file_with_socket(given))


def _ask_all(found: Sequence[_Question]) -> tuple[DatabaseReport, ...]:
    """Returns the reports with all answers that arrive within ANSWER_TIMEOUT_SECONDS."""
    reports = {question.report.alias: question.report for question in found}

    def ask(question: _Question) -> None:
        report, connection, has_authority, option_file = question
        try:
            answer = replace(report, facts=_ask(connection), problem=None)
        except Exception as error:
            problem = connect_problem(
                error,
                report.server,
                connection.connect_timeout,
                has_authority=has_authority,
                option_file=option_file,
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
        wait_timeout, most, most_of_user, user, identity, port = cursor.fetchone()
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
    return Finding(
        Level.WARN,
        "PS307",
        "",
        f"{server} did not answer within {seconds:g}s",
        "it may be frozen, or a firewall drops packets; try: mysqladmin -h HOST -P PORT ping",
    )


# OpenSSL's codes for a certificate that is good, but for another host name or address.
_OTHER_NAME = (62, 64)

# Those for one that no known authority has signed.
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)


def _is_late(text: str) -> bool:
    return "timed out" in text or "handshake" in text


def connect_problem(
    error: Exception,
    server: str,
    timeout: float,
    *,
    has_authority: bool = True,
    option_file: str | None = None,
) -> Finding:
    """Returns the finding for a failed connect. Contains no password.

    :param timeout: the seconds that the server had.
    :param has_authority: whether the settings name one for the server's certificate.
    :param option_file: that in which the socket is named.
    """
    number = codes.code_of(error)
    text = " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
    cause = getattr(error, "original_exception", None)
    problem = f"{server}: {text}"
    match number:
        case codes.ACCESS_DENIED_ERROR | codes.ACCESS_DENIED_NO_PASSWORD_ERROR:
            code = "PS303"
            hint = (
                "correct USER and PASSWORD in DATABASES; if the account requires TLS or a client "
                "certificate, also set OPTIONS['ssl']"
            )
        case codes.DBACCESS_DENIED_ERROR | codes.BAD_DB_ERROR:
            code, hint = "PS304", "create the database, or GRANT the user rights on it"
        case codes.MUST_CHANGE_PASSWORD | codes.MUST_CHANGE_PASSWORD_LOGIN:
            code = "PS303"
            hint = "set a new password with ALTER USER, and correct PASSWORD in DATABASES"
        case codes.CON_COUNT_ERROR:
            code = "PS305"
            hint = "close idle connections (SHOW PROCESSLIST), or raise max_connections"
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
        case _ if number in codes.TLS or isinstance(cause, ssl.SSLError) or "SSL" in text:
            code, hint = "PS309", "correct OPTIONS['ssl'] and OPTIONS['ssl_mode'] in DATABASES"
            if getattr(cause, "verify_code", 0) in _OTHER_NAME:
                hint = (
                    "use the HOST that the certificate is for, or OPTIONS['ssl_mode'] = "
                    "'VERIFY_CA', which does not compare it (nor does mysqlclient without ssl_mode)"
                )
            elif getattr(cause, "verify_code", 0) in _UNKNOWN_AUTHORITY:
                hint = "give the authority's file: OPTIONS['ssl'] = {'ca': '/path/of/ca.pem'}"
                if has_authority:
                    hint = (
                        "correct OPTIONS['ssl']['ca'] in DATABASES (or ssl-ca in the option file): "
                        "the server's certificate is of another authority"
                    )
            elif number == codes.CR_SSL_CONNECTION_ERROR and "support" in text:
                hint = "set up TLS on the server, or remove OPTIONS['ssl'] and OPTIONS['ssl_mode']"
        case codes.CR_CONN_HOST_ERROR | codes.CR_SERVER_LOST if _is_late(text):
            return _no_answer(server, timeout)
        case codes.CR_CONN_HOST_ERROR if isinstance(cause, socket.gaierror):
            code, hint = "PS302", "check HOST in DATABASES, and DNS on this machine"
            problem = f"cannot resolve the host name of {server} ({cause.strerror})"
        case codes.CR_CONN_HOST_ERROR:
            code = "PS301"
            hint = "start the database server, or correct HOST and PORT in DATABASES"
            if server.startswith("/"):
                hint = (
                    "start the database server, or correct the path of its socket in DATABASES: "
                    "OPTIONS['unix_socket'], or HOST if that is a path"
                )
            if option_file:
                hint = f"start the database server, or correct socket in {option_file}"
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
                "OPTIONS['ssl'] in DATABASES"
            )
            problem = f"{server} hung up during the login: {text}"
        case codes.PARSE_ERROR:
            code = "PS308"
            hint = (
                "correct OPTIONS['init_command'] in DATABASES; PyMySQL runs one statement, as in "
                "SET a = 1, b = 2"
            )
            problem = f"{server}: {text} (error {number})"
        case _:
            code, hint = "PS308", "see the server's error log"
            problem = f"{server}: {text} (error {number})"
    return Finding(Level.WARN, code, "", problem, hint)
