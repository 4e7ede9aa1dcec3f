"""Load the project and look at it, its settings and its database servers, before anything starts.

All of it happens in a forked child. The master is not patched by gevent: if it imported Django, all
greenlets of a worker would share one connection wrapper. The child is set up like a worker, but
without gevent's patches: it has real threads, and ends without running exit handlers.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pooled_serve import compat, launcher
from pooled_serve.errors import Finding, Level, StartupError, startup_error
from pooled_serve.preflight import child, databases, failures, migrations, project, urls
from pooled_serve.preflight.reports import DatabaseReport, ProjectReport, ServerFacts
from pooled_serve.preflight.servers import ANSWER_TIMEOUT_SECONDS, ask_all, describe, usable

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

    project.refuse_malformed_databases()
    with usable("DATABASES cannot be used", "correct DATABASES in the settings"):
        found = [
            describe(alias, settings)
            for alias, settings in connections.settings.items()
            if settings["ENGINE"] != "django.db.backends.dummy"
        ]
    reports = ask_all(found)
    doubts = [
        finding
        for report in reports
        if report.pooled
        for finding in (
            *databases.warnings(report, connections.settings[report.alias]),
            *databases.other_meanings(report, connections.settings[report.alias]),
            *(databases.of_manage(report, connections.settings[report.alias]) if check else ()),
        )
    ]
    default = next((report for report in reports if report.alias == "default"), None)
    if check and default and default.facts and not databases.lacks_name(default):
        doubts += _in_time(migrations.notes)
    if check:
        doubts += project.secret_notes()
    doubts += databases.without_engine(connections.settings)
    connections.close_all()  # that the project itself has opened
    return ProjectReport(
        app=app if ":" in app else f"{app}:{project.DEFAULT_ATTRIBUTE}",
        settings_module=os.environ.get(failures.SETTINGS_VARIABLE, ""),
        load_seconds=seconds,
        django=django.get_version(),
        databases=reports,
        warnings=(
            *_pooling_warning(),
            *doubts,
            *project.host_warnings(),
            *urls.url_warnings(),
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
