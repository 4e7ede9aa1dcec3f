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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from gunicorn import SERVER_SOFTWARE, util
from gunicorn.app.wsgiapp import WSGIApplication

from pooled_serve import compat, launcher, options
from pooled_serve.errors import (
    EXIT_DATABASE,
    EXIT_PLAN,
    EXIT_SERVER,
    StartupError,
    startup_error,
)
from pooled_serve.preflight.plan import Plan, ProjectReport, make_plan, plural
from pooled_serve.preflight.project import where
from pooled_serve.serve import addresses, signals
from pooled_serve.serve.balance import Balance
from pooled_serve.serve.config import PROGRAM, Config, bad_value, unknown_option
from pooled_serve.status.scoreboard import Scoreboard
from pooled_serve.tuning import gc as collector

log = logging.getLogger("gunicorn.error")

WORKER = "pooled_serve.serve.worker.PooledWorker"

DAEMON_UMASK = 0o22  # that gunicorn's --daemon sets


class Application(WSGIApplication):  # type: ignore[misc]
    """Load the configuration, run the preflight, run gunicorn's arbiter.

    :param arguments: a command line for gunicorn's parser.
    :raises StartupError: the configuration cannot be used.
    """

    plan: Plan
    cfg: Config
    _patch: Any = None  # pooled_serve.backend.patch, once it may be imported
    balance: Balance  # made before the first fork
    scoreboard: Scoreboard | None = None  # made before the first fork; None without a status page
    app_uri: Any  # a string, once the configuration is loaded

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._report = ProjectReport()
        self._started = False
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
                    f"use {PROGRAM} myproject.wsgi, or set wsgi_app in gunicorn.conf.py",
                ) from None
            raise bad_value(str(error)) from error

    def load_config_from_module_name_or_filename(self, location: str) -> dict[str, Any]:
        """Load the file as gunicorn does, but raise its error, with file and line, as a
        StartupError."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                found: dict[str, Any] = super().load_config_from_module_name_or_filename(location)
        except StartupError as error:
            (problem,) = error.problems
            raise bad_value(f"{location}: {problem.message}") from None
        except (Exception, SystemExit) as error:
            # gunicorn turns the file's error into an exit
            cause = error.__context__ if isinstance(error, SystemExit) else None
            raise startup_error(
                "PS403",
                f"the configuration file {location} cannot be used",
                "correct it, or name another with -c FILE",
                where(cause or error),
            ) from error
        sys.stderr.write(said.getvalue())  # the file's own output
        return found

    def load_default_config(self) -> None:
        """Start from the command's own defaults."""
        self.cfg = Config(self.usage, prog=self.prog)
        self.cfg.set("worker_class", WORKER)
        if "control_socket" in self.cfg.settings:  # gunicorn 25.1
            self.cfg.settings["control_socket"].value = None

    def load_config(self) -> None:
        """Read command line, environment and file, as gunicorn does, and check them."""
        # Restored at once: USR2 starts a new master from sys.argv, which must be as the user typed
        # it.
        typed, sys.argv = sys.argv, [PROGRAM, *self._arguments]
        try:
            super().load_config()
        finally:
            sys.argv = typed
        _ = (
            self.cfg.env,
            self.cfg.address,
        )  # gunicorn would read these later, and crash on bad values
        self._use_pooled_worker()
        self._disable_control_socket()
        self._check_numbers()
        self._check_status_address()
        self._make_plan()

    def _use_pooled_worker(self) -> None:
        name = self.cfg.settings["worker_class"].value
        if name not in (WORKER, "gevent"):
            raise startup_error(
                "PS404",
                f"the worker class is {name!r}; the pool needs gevent's event loop",
                "remove -k/--worker-class (also from gunicorn.conf.py and GUNICORN_CMD_ARGS)",
            )
        self.cfg.set("worker_class", WORKER)

    def _disable_control_socket(self) -> None:
        """Disable it unless the user named one. Its default path is the same for all instances of
        a user, and fails on read-only file systems."""
        setting = self.cfg.settings.get("control_socket")
        if setting is not None and setting.value is None:
            setting.value = setting.default
            self.cfg.set("control_socket_disable", True)

    def _check_numbers(self) -> None:
        """Reject numbers that would end in gunicorn's traceback, or a division by zero here."""
        if self.cfg.workers < 1:
            raise bad_value(f"--workers: must be a whole number above 0, not {self.cfg.workers}")
        for address in self.cfg.address:
            if isinstance(address, tuple) and not 0 <= address[1] < 65536:
                raise bad_value(f"--bind: there is no port {address[1]}")

    def _check_files(self) -> None:
        for name in ("certfile", "keyfile"):
            path = getattr(self.cfg, name)
            if path and not os.path.exists(path):
                raise bad_value(f"--{name}: there is no file {path}")

    def _check_status_address(self) -> None:
        for address in self.cfg.status_address:
            if address in self.cfg.app_address:
                text = addresses.text(address)
                raise bad_value(f"--status: {text} is where the application is served (-b)")

    @property
    def unreachable(self) -> list[str]:
        """The databases that did not answer the preflight."""
        return [d.alias for d in self._report.databases if d.pooled and d.problem]

    def _make_plan(self) -> None:
        unknown = (
            unknown_option(name, options.VARIABLES)
            for name in options.unknown_variables(self.cfg.env_orig)
        )
        self.plan = make_plan(
            self.cfg.pool_options(),
            replace(self._report, warnings=(*self._report.warnings, *unknown)),
            workers=self.cfg.workers,
            worker_connections=self.cfg.worker_connections,
            now="at the start" if self._started else "now",
        )

    def reload(self) -> None:
        """Reload the configuration, on HUP. Keeps the old one if the new one cannot be used."""
        before = self.cfg, self.plan, self.app_uri
        try:
            super().reload()
            self._check_files()
            if self.plan.contradictions:
                raise StartupError(EXIT_PLAN, self.plan.contradictions)
            self._check_listeners(before[0])
        except StartupError as error:
            self.cfg, self.plan, self.app_uri = before
            log.error("Not reloaded, the old configuration stays: %s", error)

    def _check_listeners(self, before: Config) -> None:
        """Keep the old listeners if new ones would fail.

        When an address changes, gunicorn closes all its listeners and binds them again, and exits
        if that fails. It does for TCP addresses that stay, because the old workers still listen
        there. With reuse_port the master would listen, too, and never accept.

        :raises StartupError: a new address cannot be listened on.
        """
        new, old = self.cfg.address, before.address
        reuse_port = self.cfg.reuse_port or before.reuse_port
        if new == old and self.cfg.reuse_port == before.reuse_port:
            return
        stays = any(isinstance(address, tuple) and address in old for address in new)
        status = before.status_address or self.cfg.status_address
        if status:
            self._keep_listeners(before, "with a status page")
        elif reuse_port:
            self._keep_listeners(before, "with --reuse-port")
        elif stays:
            self._keep_listeners(before, "where another address stays")
        else:
            addresses.check(new, [], reuse_port=False)

    def _keep_listeners(self, before: Config, why: str) -> None:
        for name in ("pool_status", "bind", "reuse_port"):
            new, old = (cfg.settings[name] for cfg in (self.cfg, before))
            if new.value != old.value:
                new.value = old.value
                log.warning(
                    "%s stays as it was: %s it takes a restart to change it", new.cli[-1], why
                )

    def judge_workers(self, new: int, old: int) -> None:
        """Warn if this number of workers can need more connections than the server allows, and log
        when it no longer can. A running worker keeps the caps it was started with."""
        found = self.plan.judge(new)
        for finding in found:
            log.warning("%s", finding)
        if not found and self.plan.judge(old):
            log.info("%s fit the connection budget again", plural(new, "worker"))

    # --- Start ---------------------------------------------------------------------------------

    def preflight(self) -> None:
        """Load the project in a child, ask the servers, and plan the pools.

        :raises StartupError: the project cannot be loaded.
        """
        self._check_files()
        # The child and all workers inherit the modules that are imported before the fork.
        with compat.imports():
            from pooled_serve.driver import connection  # noqa: F401
            from pooled_serve.preflight import runner
            from pooled_serve.serve import worker  # noqa: F401

        self._report = runner.run(self.app_uri, self._become_worker)
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

    def describe(self) -> str:
        """Returns the plan in full."""
        from pooled_serve.preflight import render

        scheme = "https" if self.cfg.is_ssl else "http"
        binds = [addresses.url(address, scheme) for address in self.cfg.app_address]
        return render.full_plan(
            self.plan,
            self._report,
            workers=self.cfg.workers,
            worker_connections=self.cfg.worker_connections,
            addresses=binds,
            status=[f"http://{addresses.text(address)}/" for address in self.cfg.status_address],
        )

    def banner(self) -> str:
        """Returns the plan in short."""
        from pooled_serve.preflight import render

        return render.banner(self.plan, self._report)

    def refuse_problems(self, *, need_databases: bool) -> None:
        """Prevent a start if the plan contradicts itself or, under --strict, has warnings.

        :param need_databases: also if a database cannot be reached.
        :raises StartupError: without problems of its own, because the plan was shown.
        """
        if self.plan.contradictions:
            raise StartupError(EXIT_PLAN, ())
        if self.plan.options.strict and self.plan.warnings:
            raise StartupError(EXIT_PLAN, ())
        if need_databases and any(database.problem for database in self._report.databases):
            raise StartupError(EXIT_DATABASE, ())

    def run(self) -> None:
        """Run the arbiter until it is stopped. Always raises SystemExit."""
        if self.cfg.preload_app:
            # The master loads the project, so Django must find gevent's locals here.
            from gevent import monkey

            monkey.patch_all()
        self.balance = Balance()
        if self.cfg.status_address:
            self.scoreboard = Scoreboard()
        self._started = True
        try:
            super().run()
        finally:  # in the master, and in each worker, which is forked in there
            signals.block_interrupts()

    def load(self) -> Any:
        """Returns the WSGI application, with its databases pooled. Runs in a worker, or with
        --preload in the master."""
        from pooled_serve.backend import patch

        launcher.under_command = True
        patch.install(self.plan)
        self._patch = patch
        with loggers_stay_enabled():
            application = super().load()
        patch.refuse_other_pools()
        patch.end_load(fork_follows=self.cfg.preload_app)
        collector.leave_out_what_stays()
        return application

    def _close_pools(self) -> None:
        """An exit handler."""
        if self._patch is not None:
            self._patch.close()


@contextlib.contextmanager
def loggers_stay_enabled() -> Iterator[None]:
    """Keeps the loggers of gunicorn and of the pool enabled while the body loads the project.

    By default, dictConfig() disables all existing loggers that LOGGING does not name.
    """
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and name.partition(".")[0] in ("gunicorn", "pooled_serve")
        and not logger.disabled
    ]
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


def serve(application: Application, *, check: bool) -> NoReturn:
    """Run the preflight, print the banner and serve.

    :param check: run the preflight, print the plan and exit instead.
    :raises StartupError: it does not start.
    :raises SystemExit: with one of errors.EXIT_*, or 0.
    """
    cfg = application.cfg
    if not (cfg.check_config or cfg.print_config):
        application.preflight()
        if check:
            print(application.describe())
            application.refuse_problems(need_databases=True)
            print("\nReady. Nothing was started.")
            sys.exit(0)
        print(application.banner(), file=sys.stderr, flush=True)
        application.refuse_problems(need_databases=application.plan.options.strict)
    application.run()
    sys.exit(EXIT_SERVER)  # not reached: the arbiter exits with a code of its own
