"""Load the project and ask its database servers what they allow, before anything starts.

All of it happens in a forked child: importing Django in the master, which gevent has not
patched, would let all greenlets of a worker share one connection wrapper. The child is plain:
no gevent, real threads, and it ends without running anybody's exit handlers.
"""

from __future__ import annotations

import os
import pickle
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gevent.monkey import get_original
from gevent.os import fork_gevent

from pooled_serve import pooling, seam
from pooled_serve.errors import Level, Refusal, Verdict, refuse
from pooled_serve.plan import DatabaseReport, ProjectReport, ServerFacts

ANSWER_WITHIN = 5.0
"""Seconds for all database servers together."""


def run(app: str, setup: Callable[[], None]) -> ProjectReport:
    """Load the project in a child process and report on it.

    :param setup: called in the child first, to apply --chdir, --env and the like.
    :raises Refusal: the project cannot be served.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    # Also where the configuration file has let gevent patch this process: its os.fork() and
    # os.waitpid() want a running event loop, and this would wait for ever.
    child = fork_gevent()
    if child == 0:
        _child(reader, writer, app, setup)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = get_original("os", "waitpid")(child, 0)
    if not answer:
        code = os.waitstatus_to_exitcode(status)
        how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
        raise refuse(
            "PS102",
            f"loading {app} ended the process {how}",
            "look for os._exit(), a crash in a C extension, or a memory limit",
        )
    result = pickle.loads(answer)
    if isinstance(result, Refusal):
        raise result
    assert isinstance(result, ProjectReport)
    return result


def _child(reader: int, writer: int, app: str, setup: Callable[[], None]) -> None:
    """Never returns."""
    try:
        os.close(reader)
        # What the project prints while it loads, the workers will print again.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        errors = os.dup(2)
        os.dup2(silence, 2)
        result: ProjectReport | Refusal
        try:
            setup()
            result = _report(app)
        except Refusal as refusal:
            result = refusal
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(result))
        os._exit(0)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the parent was interrupted too, or has been ended
    except BaseException:
        os.write(errors, traceback.format_exc().encode())
    finally:
        os._exit(70)


def _report(app: str) -> ProjectReport:
    began = time.monotonic()
    with seam.imports():
        from pooled_serve import patch, project  # and Django, part of the project's time

    pooling.under_command = True
    patch.use_pymysql()
    seam.check("django", "pymysql", "gunicorn")  # first, or it would look like the project's fault
    project.load(app)
    seconds = time.monotonic() - began
    patch.refuse_other_pools()

    import django
    from django.db import connections

    try:
        databases = [_describe(alias, connections) for alias in connections.settings]
    except Refusal:
        raise
    except Exception as error:
        raise _bad_databases("DATABASES cannot be used", error) from error
    _ask_all(databases)
    connections.close_all()  # what the project opened on its own account
    settings = os.environ.get(project.SETTINGS_VARIABLE, "")
    return ProjectReport(
        app=app if ":" in app else f"{app}:{project.DEFAULT_ATTRIBUTE}",
        settings_module=settings,
        load_seconds=seconds,
        django=django.get_version(),
        databases=tuple(asked.report for asked in databases if asked.report.label),
        warnings=(*_pooling_warning(), *project.async_warnings()),
    )


def _pooling_warning() -> Iterator[Verdict]:
    if pooling.ignored:
        yield Verdict(
            Level.WARN,
            "PS207",
            "the project calls pooled_serve.pooling; under this command its numbers do not count",
            "delete the calls, and use --pool-size and --max-outstanding",
        )


class _Asked:
    """A database, and what it answered so far."""

    def __init__(self, report: DatabaseReport, connection: Any) -> None:
        self.report = report
        self.connection = connection  # not connected yet; None if it is not for us to ask


def _describe(alias: str, connections: Any) -> _Asked:
    from pooled_serve import patch

    settings = connections.settings[alias]
    engine = settings["ENGINE"]
    if engine == "django.db.backends.dummy":
        return _Asked(DatabaseReport(alias, False, ""), None)
    try:
        wrapper = connections[alias]
    except Exception as error:
        problem = f"the engine {engine!r} of the database {alias!r} cannot be loaded"
        raise _bad_databases(problem, error) from error
    if not patch.is_poolable(type(wrapper)):
        label = wrapper.display_name if wrapper.vendor != "mysql" else engine
        return _Asked(DatabaseReport(alias, False, label), None)
    from pooled_serve.mysql import MySQLConnection

    try:
        params = {"connect_timeout": 10, **wrapper.get_connection_params(), "defer_connect": True}
        params["connect_timeout"] = min(params["connect_timeout"], ANSWER_WITHIN)
        connection = MySQLConnection(**params)
    except Exception as error:
        problem = f"PyMySQL cannot use the settings of the database {alias!r}"
        raise _bad_databases(problem, error) from error
    report = DatabaseReport(
        alias,
        pooled=True,
        label="MySQL",
        # As the connection has it: OPTIONS and option files may name it, too.
        address=connection.address,
        server=connection.server,
        conn_max_age=settings["CONN_MAX_AGE"],
    )
    return _Asked(report, connection)


def _bad_databases(problem: str, error: Exception) -> Refusal:
    from pooled_serve.project import where

    remedy = "correct DATABASES in the settings, or install what it needs"
    if isinstance(error, UnicodeError):
        return refuse("PS102", f"{problem}: a password that is not latin-1", remedy)
    return refuse("PS102", problem, remedy, where(error))


def _ask_all(databases: list[_Asked]) -> None:
    threads = [
        threading.Thread(target=_ask, args=(asked,), daemon=True)
        for asked in databases
        if asked.connection is not None
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + ANSWER_WITHIN
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for asked in databases:
        report = asked.report
        if asked.connection is not None and report.facts is None and report.problem is None:
            asked.report = replace(report, problem=_no_answer(report.server))


def _ask(asked: _Asked) -> None:
    report, connection = asked.report, asked.connection
    try:
        connection.connect()
        began = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT VERSION(), @@wait_timeout, @@max_connections, @@max_user_connections, "
                "SUBSTRING_INDEX(USER(), '@', 1), "
                "CONCAT_WS(':', @@hostname, @@port, @@socket, @@server_id)"
            )
            version, wait_timeout, most, most_of_user, user, identity = cursor.fetchone()
            seconds = time.monotonic() - began
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            connected = int(cursor.fetchone()[1])
            cursor.execute("SHOW PROCESSLIST")  # without rights: of this user only
            own = sum(row[1] == user for row in cursor.fetchall())
        connection.close()
    except Exception as error:
        asked.report = replace(report, problem=classify(error, report.server))
        return
    facts = ServerFacts(
        kind="MariaDB" if "mariadb" in version.lower() else "MySQL",
        version=version.partition("-")[0],
        wait_timeout=int(wait_timeout),
        max_connections=int(most),
        max_user_connections=int(most_of_user),
        in_use=connected - 1,
        in_use_by_user=own - 1,
        identity=identity,
        answer_seconds=seconds,
    )
    asked.report = replace(report, facts=facts)


def _no_answer(server: str) -> Verdict:
    return Verdict(
        Level.WARN,
        "PS307",
        f"{server} gave no answer within {ANSWER_WITHIN:g}s",
        "is the server frozen, or a firewall in between? try: mysqladmin -h HOST ping",
    )


def classify(error: Exception, server: str) -> Verdict:
    """The problem and remedy for an error of a connect. Holds no password."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
    cause = getattr(error, "original_exception", None)
    if code in (1045, 1698):
        return Verdict(
            Level.WARN,
            "PS303",
            f"{server}: {text}",
            "correct USER and PASSWORD in DATABASES; an account that requires TLS or a client "
            "certificate wants the ssl options of OPTIONS, too",
        )
    if code in (1044, 1049):
        return Verdict(
            Level.WARN,
            "PS304",
            f"{server}: {text}",
            "create the database, or GRANT the user rights on it",
        )
    if code in (1040, 1203, 1226):
        return Verdict(
            Level.WARN,
            "PS305",
            f"{server}: {text}",
            "end idle connections of others (SHOW PROCESSLIST), or raise the limit",
        )
    if "cryptography" in text:
        return Verdict(
            Level.WARN,
            "PS306",
            f"{server}: the login needs the cryptography package (caching_sha2_password "
            "without TLS)",
            "pip install 'pooled-serve[rsa]', or use TLS",
        )
    if code in (2026, 3159) or isinstance(cause, ssl.SSLError) or "SSL" in text:
        return Verdict(
            Level.WARN,
            "PS309",
            f"{server}: {text}",
            "correct the ssl options of OPTIONS in DATABASES",
        )
    if code in (2003, 2013) and ("timed out" in text or "handshake" in text):
        return _no_answer(server)
    if code == 2003:
        return _unreachable(server, text, cause)
    if code in (2006, 2013):
        # With TLS 1.3 a client certificate is refused after the handshake; that message is often
        # lost with the connection.
        return Verdict(
            Level.WARN,
            "PS308",
            f"{server} hung up during the login: {text}",
            "see the server's error log; if it refused a client certificate, correct the ssl "
            "options of OPTIONS in DATABASES",
        )
    return Verdict(
        Level.WARN, "PS308", f"{server}: {text} (error {code})", "see the server's error log"
    )


def _unreachable(server: str, text: str, cause: BaseException | None) -> Verdict:
    import socket

    if isinstance(cause, socket.gaierror):
        return Verdict(
            Level.WARN,
            "PS302",
            f"the host of {server} is unknown ({cause.strerror})",
            "correct HOST in DATABASES, or the name service",
        )
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else text
    return Verdict(
        Level.WARN,
        "PS301",
        f"{server} does not accept connections ({why})",
        "start the database server, or correct HOST and PORT in DATABASES",
    )
