"""Gunicorn, embedded: its application, with a preflight before the start.

Imports no Django: gevent must patch first, in the worker.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from gunicorn import SERVER_SOFTWARE, util
from gunicorn.app.wsgiapp import WSGIApplication

from pooled_serve import compat, launcher
from pooled_serve.errors import (
    EXIT_DATABASE,
    EXIT_PLAN,
    EXIT_SERVER,
    StartupError,
    startup_error,
)
from pooled_serve.pool.host import Host
from pooled_serve.preflight.budget import plural
from pooled_serve.preflight.failures import first_unreadable, where, where_without_words
from pooled_serve.preflight.plan import Plan, make_plan
from pooled_serve.preflight.project import named_as_module
from pooled_serve.preflight.reports import ProjectReport
from pooled_serve.preflight.urls import NO_URLS, url_error, url_warning
from pooled_serve.serve import addresses, conf_file, early, names, signals, values
from pooled_serve.serve.balance import Balance
from pooled_serve.serve.config import HOST_VARIABLE, Config
from pooled_serve.serve.loggers import loggers_stay_enabled
from pooled_serve.serve.reloads import Reloads
from pooled_serve.serve.values import PROGRAM, bad_value
from pooled_serve.serve.written import COMMAND_LINE, GUNICORNS_VARIABLES
from pooled_serve.status.scoreboard import Scoreboard
from pooled_serve.tuning import gc as collector

log = logging.getLogger("gunicorn.error")

WORKER = "pooled_serve.serve.worker.PooledWorker"

SPARE_WAKEUPS = 8
"""Eventfds on top of two for each worker (in a HUP there are old and new ones): for TTIN, and for
the project's own children. A process without one is not woken, but looks; see pool/tokens.py."""

DAEMON_UMASK = 0o22  # what gunicorn's --daemon sets


class Application(WSGIApplication):  # type: ignore[misc]
    """Load the configuration, run the preflight, run gunicorn's arbiter.

    :param arguments: a command line for gunicorn's parser.
    :raises StartupError: the configuration cannot be used.
    """

    plan: Plan
    cfg: Config
    _patch: Any = None  # pooled_serve.backend.patch, once it may be imported
    balance: Balance  # made before the first fork
    reloads: Reloads  # made before the first fork
    scoreboard: Scoreboard | None = None  # made before the first fork; None without a status page
    host: Host | None = None  # made before the first fork; None without --max-per-host
    bound_twice = False  # after USR2 the old master's workers have a bound of their own
    urls_error = ""  # with what they failed when this process, or its master, loaded the project
    former: Config | None = None  # from before the last HUP
    app_uri: Any  # a string, once the configuration is loaded

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._report = ProjectReport()
        self._started = self._is_check = False
        # Registered before the configuration file and the project register theirs: handlers run
        # in reverse order, and theirs may query. Workers inherit it.
        atexit.register(self._close_pools)
        super().__init__("%(prog)s APP [OPTIONS]", prog=PROGRAM)

    # --- Configuration -------------------------------------------------------------------------

    def do_load_config(self) -> None:
        """Load the configuration. Errors that make gunicorn exit with 1 are usage errors here."""
        try:
            self.load_default_config()
            self.load_config()
            if hasattr(self.cfg, "validate"):  # gunicorn 27
                self.cfg.validate()
        except StartupError:
            raise
        except Exception as error:
            if "application module" in str(error):
                raise startup_error(
                    "PS405",
                    "no application was given",
                    f"use {PROGRAM} {named_as_module('')}, or set wsgi_app in gunicorn.conf.py",
                ) from None
            raise bad_value(str(error)) from error

    def load_config_from_module_name_or_filename(self, location: str) -> dict[str, Any]:
        """Load the file as gunicorn does, but raise its error, with file and line, as a
        StartupError."""
        said = io.StringIO()
        try:
            self.cfg.reads_file = True
            with contextlib.redirect_stderr(said), loggers_stay_enabled():
                found: dict[str, Any] = super().load_config_from_module_name_or_filename(location)
        except StartupError as error:
            (problem,) = error.problems
            located = replace(problem, message=f"{location}: {problem.message}")
            raise StartupError(error.exit_code, [located]) from None
        except (Exception, SystemExit) as error:
            # gunicorn turns the file's error into an exit
            failed = (isinstance(error, SystemExit) and error.__context__) or error
            if known := conf_file.problem(failed, location, self.cfg):
                raise known from error
            raise startup_error(
                "PS403",
                f"the configuration file {location} cannot be used",
                early.remedy(failed) or "correct it, or name another with -c FILE",
                where(failed),
            ) from error
        finally:
            self.cfg.reads_file = False
        sys.stderr.write(said.getvalue())  # the file's own output
        self.cfg.file, self.cfg.file_values = location, found
        self.cfg.written.add(location, found, in_file=True)
        return found

    def load_default_config(self) -> None:
        """Start from the command's own defaults."""
        self.cfg = Config(self.usage, prog=self.prog)
        self.cfg.set("worker_class", WORKER)
        self.cfg.settings["control_socket"].value = None

    def init(self, parser: Any, opts: Any, args: Any) -> Any:
        """Gunicorn's hook, with what the command line says, the strongest source."""
        self.cfg.written.add(COMMAND_LINE, vars(opts))
        return super().init(parser, opts, args)

    def load_config(self) -> None:
        """Read command line, environment and file, as gunicorn does, and check them."""
        # Restored at once: USR2 starts a new master from sys.argv, which must be as the user typed
        # it.
        typed, sys.argv = sys.argv, [PROGRAM, *self._arguments]
        early.watch()
        try:
            super().load_config()
        finally:
            sys.argv = typed
        for name, variable in GUNICORNS_VARIABLES.items():
            self.cfg.written.add(variable, {name: self.cfg.env_orig.get(variable)})
        self.cfg.check_bind()
        values.check_env(self.cfg)
        values.check_loglevel(self.cfg)
        # gunicorn would read these later, and crash on bad values
        env, _ = self.cfg.env, self.cfg.address
        early.refuse(env)
        if self.former is not None:
            # Only a start can have gevent patch before the master loads the project, and a master
            # that has loaded it does not load it anew.
            self.cfg.keep(["preload_app"], self.former)
        self._use_pooled_worker()
        self._disable_control_socket()
        self.cfg.check_numbers()
        self.cfg.check_status_address()
        self._make_plan()

    def _use_pooled_worker(self) -> None:
        name = self.cfg.settings["worker_class"].value
        if name not in (WORKER, "gevent"):
            others = (
                place.removal("-k")
                for place in self.cfg.written.places("worker_class")
                if place.value not in (WORKER, "gevent")
            )
            raise startup_error(
                "PS404",
                f"the worker class is {name!r}; the pool needs gevent's event loop",
                f"remove {', and '.join(others)}",
            )
        self.cfg.set("worker_class", WORKER)

    def _disable_control_socket(self) -> None:
        """Disable it unless the user named one. Its default path is the same for all instances of
        a user, and fails on read-only file systems."""
        setting = self.cfg.settings.get("control_socket")
        if setting is not None and setting.value is None:
            setting.value = setting.default
            self.cfg.set("control_socket_disable", True)

    @property
    def unreachable(self) -> list[str]:
        """The databases that did not answer the preflight."""
        return [d.alias for d in self._report.databases if d.pooled and d.problem]

    def _make_plan(self) -> None:
        doubts = [
            *self._report.warnings,
            *names.unknown_variables(self.cfg.env_orig, self.cfg.settings),
            *names.near_settings(self.cfg.file, self.cfg.file_values, self.cfg.settings),
            *names.annotated(self.cfg.file, self.cfg.file_values, self.cfg.settings),
            *names.stray_words(self.cfg.stray_words, self.cfg.settings),
            *self.cfg.unread_file(),
            *values.doubts(self.cfg),
        ]
        if not self.cfg.preload_app:  # else the master has patched before its hooks run
            doubts += early.warnings(self.cfg.file, self.cfg.file_values)
        if self._is_check or self.cfg.pool_strict:  # else the log says so, once it listens
            doubts += self.cfg.public_status_warnings()
        if self._is_check:
            doubts += self.cfg.notes(self._report.databases)
            doubts += self.cfg.listening_doubts()
        plan = make_plan(
            self.cfg.pool_options(),
            replace(self._report, warnings=tuple(doubts)),
            workers=self.cfg.workers,
            worker_connections=self.cfg.worker_connections,
            now="at the start" if self._started else "now",
        )
        self.plan = replace(plan, findings=tuple(map(self.cfg.as_written, plan.findings)))

    def reload(self) -> None:
        """Reload the configuration, on HUP. Keeps the old one if the new one cannot be used."""
        before = self.cfg, self.plan, self.app_uri
        modules = dict(sys.modules)
        self.former = self.cfg
        try:
            super().reload()
            values.check_files(self.cfg)
            if self.plan.contradictions:
                raise StartupError(EXIT_PLAN, self.plan.contradictions)
            self.cfg.check_listeners(before[0])
            self._bound_host()
        except StartupError as error:
            self.cfg, self.plan, self.app_uri = before
            # It may have loaded Django, and the new workers start all the same.
            early.forget(modules)
            self.reloads.refused(error, anew=not self.cfg.preload_app)
        else:
            self.reloads.done(self.plan)

    @property
    def has_reloaded(self) -> bool:
        """Whether there was a HUP."""
        return self.former is not None

    def judge_workers(self, new: int, old: int) -> None:
        """Warn if this number of workers can need more connections than the server allows, and log
        when it no longer can. A running worker keeps the caps it was started with."""
        found = self.plan.judge(new)
        for finding in found:
            log.warning("%s", self.cfg.as_written(finding))
        if not found and self.plan.judge(old):
            log.info("%s fit the connection budget again", plural(new, "worker"))

    # --- Start ---------------------------------------------------------------------------------

    def preflight(self, *, check: bool = False) -> None:
        """Load the project in a child, ask the servers, and plan the pools.

        :param check: also look at what matters to the project only, such as its migrations.
        :raises StartupError: the project cannot be loaded.
        """
        self._is_check = check
        values.check_files(self.cfg)
        # The child and all workers inherit the modules that are imported before the fork.
        with compat.imports():
            from pooled_serve.driver import connection  # noqa: F401
            from pooled_serve.preflight import runner
            from pooled_serve.serve import worker  # noqa: F401

        self._report = runner.run(self.app_uri, self._become_worker, check=check)
        self._make_plan()

    def _become_worker(self) -> None:
        """Change this process as gunicorn changes a worker before it loads an application.

        :raises StartupError: PS401, the process may not change to that user.
        """
        cfg = self.cfg
        os.environ.update(cfg.env, SERVER_SOFTWARE=SERVER_SOFTWARE)
        self.chdir()
        for path in (cfg.pythonpath or "").split(","):
            if path and os.path.abspath(path) not in sys.path:
                sys.path.insert(0, os.path.abspath(path))
        if cfg.daemon:
            os.umask(DAEMON_UMASK)
        if cfg.preload_app:
            return  # the master loads it, and keeps its user
        try:
            util.set_owner_process(cfg.uid, cfg.gid, initgroups=cfg.initgroups)
        except OSError as error:
            raise startup_error(
                "PS401",
                f"--user, --group: the workers cannot run as user {cfg.uid}, group {cfg.gid} "
                f"({error.strerror})",
                "start it as root, or leave them out",
            ) from None
        if (unreadable := first_unreadable()) is not None:
            raise startup_error(
                "PS401",
                f"--user, --group: user {os.geteuid()} may not read {unreadable}",
                "put Python and the project where that user may read them, or name another user",
            )

    def describe(self) -> str:
        """Returns the plan in full."""
        from pooled_serve.preflight import render

        plan, report = self._refusals(thorough=True)
        scheme = "https" if self.cfg.is_ssl else "http"
        binds = [addresses.url(address, scheme) for address in self.cfg.app_address]
        return render.full_plan(
            plan,
            report,
            workers=self.cfg.workers,
            worker_connections=self.cfg.worker_connections,
            addresses=binds,
            status=[addresses.page(address) for address in self.cfg.status_address],
        )

    def banner(self) -> str:
        """Returns the plan in short."""
        from pooled_serve.preflight import render

        return render.banner(*self._refusals(thorough=self.plan.options.strict))

    def _refusals(self, *, thorough: bool) -> tuple[Plan, ProjectReport]:
        """Returns plan and report with every finding that prevents this start as a FAIL."""
        plan, report = self.plan, self._report
        if thorough:
            strict = plan.options.strict
            findings = (f.refusing() if strict or f.exit_code else f for f in plan.findings)
            plan = replace(plan, findings=tuple(findings))
            found = (
                replace(d, problem=d.problem and d.problem.refusing()) for d in report.databases
            )
            report = replace(report, databases=tuple(found))
        return plan, report

    def refusal(self, *, thorough: bool) -> int:
        """Returns the exit code for what prevents a start: a plan that contradicts itself or, under
        --strict, has warnings. 0 if nothing does.

        :param thorough: also if the URL configuration fails, or a database cannot be reached: a
            plain start goes on, because both may be over when the first request comes. And if
            settings let every request fail, or a hook looks as if it would end the start.
        """
        if thorough:
            for finding in self.plan.findings:
                if finding.exit_code:
                    return finding.exit_code
        if self.plan.contradictions or (self.plan.options.strict and self.plan.warnings):
            return EXIT_PLAN
        if thorough and any(database.problem for database in self._report.databases):
            return EXIT_DATABASE
        return 0

    def run(self) -> None:
        """Run the arbiter until it is stopped. Always raises SystemExit."""
        if self.cfg.preload_app:
            # The master loads the project, so Django must find gevent's locals here.
            from gevent import monkey

            with signals.blocked():  # as in the worker's patch()
                monkey.patch_all()
        self.balance = Balance()
        if self.cfg.status_address:
            self.scoreboard = Scoreboard()
        self.reloads = Reloads(self.scoreboard, self._report.databases)
        self._bound_host()
        self._started = True
        try:
            with self.reloads.last_line():
                super().run()
        finally:  # in the master, and in each worker, which is forked in there
            signals.block_interrupts()

    def _bound_host(self) -> None:
        """Let the workers share the bound of --max-per-host, if there is one; after USR2 also with
        those of the old master."""
        inherited = os.environ.pop(HOST_VARIABLE, None)
        if self.cfg.pool_max_per_host is None or self.host is not None:
            return
        if inherited is not None:
            self.host = Host.inherit(inherited)
            self.bound_twice = self.host is None
        if self.host is None:
            self.host = Host.make(2 * self.cfg.workers + SPARE_WAKEUPS)

    def load(self) -> Any:
        """Returns the WSGI application, with its databases pooled. Runs in a worker, or with
        --preload in the master."""
        from pooled_serve.backend import patch

        launcher.under_command = True
        patch.install(self.plan, self.host)
        self._patch = patch
        with loggers_stay_enabled():
            application = super().load()
            self._warn_of_urls()
        patch.refuse_other_pools()
        patch.end_load(fork_follows=self.cfg.preload_app)
        collector.leave_out_what_stays()
        return application

    def _warn_of_urls(self) -> None:
        """Log a URL configuration that fails, which no preflight has told of: HUP runs none."""
        if (error := url_error()) is None:
            return
        self.urls_error = where_without_words(error)
        if self.has_reloaded or not any(f.code == NO_URLS for f in self._report.warnings):
            log.error("%s", url_warning(error))

    def _close_pools(self) -> None:
        """An exit handler."""
        if self._patch is not None:
            self._patch.close()


def serve(application: Application, *, check: bool) -> NoReturn:
    """Run the preflight, print the banner and serve.

    :param check: run the preflight, print the plan and exit instead.
    :raises StartupError: it does not start.
    :raises SystemExit: with one of errors.EXIT_*, or 0.
    """
    cfg = application.cfg
    if not (cfg.check_config or cfg.print_config):
        application.preflight(check=check)
        # The verdict goes where the plan goes, so that a plan that is kept in a file has it.
        refused = "\nRefused. Nothing was started."
        if check:
            print(application.describe())
            code = application.refusal(thorough=True)
            print(refused if code else "\nReady. Nothing was started.")
            sys.exit(code)
        print(application.banner(), file=sys.stderr, flush=True)
        if code := application.refusal(thorough=application.plan.options.strict):
            print(refused, file=sys.stderr)
            sys.exit(code)
    application.run()
    sys.exit(EXIT_SERVER)  # not reached: the arbiter exits with a code of its own
