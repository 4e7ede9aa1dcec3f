"""Gunicorn's configuration with the pool's options in it, and the hooks of Gunicorn that the
command uses itself, before or after the user's."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from gunicorn import systemd, util
from gunicorn.config import Config as GunicornConfig

from pooled_serve import options, tls
from pooled_serve.errors import EXIT_USAGE, Finding, Level, StartupError, startup_error
from pooled_serve.options import OPTIONS, PoolOptions
from pooled_serve.preflight.failures import where
from pooled_serve.preflight.plan import atomic_requests_notes
from pooled_serve.preflight.project import CONFIG_FILE
from pooled_serve.preflight.reports import DatabaseReport
from pooled_serve.serve import addresses, early, names, signals, values
from pooled_serve.serve.loggers import loggers_stay_enabled
from pooled_serve.serve.values import bad_value
from pooled_serve.serve.written import ARGUMENTS, Written, named

log = logging.getLogger("gunicorn.error")

HOST_VARIABLE = "_POOLED_SERVE_HOST"
"""Tells the new master, after USR2, of the descriptors that its workers share with the old ones."""

LONG_KEEP_ALIVE_SECONDS = 30

options.register_settings()


class Config(GunicornConfig):  # type: ignore[misc]  # gunicorn has no types
    """Gunicorn's configuration. ``POOLED_SERVE_*`` ranks above ``GUNICORN_CMD_ARGS``."""

    _source = ""  # of the arguments being parsed; empty for the command line
    reads_file = False  # while values come from the configuration file

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        super().__init__(usage, prog)
        # The configuration file, once it is read.
        self.file, self.file_values = "", dict[str, Any]()
        self.written = Written(self.settings)
        self.stray_words: list[str] = []  # in GUNICORN_CMD_ARGS

    @property
    def address(self) -> list[Any]:
        """All that gunicorn listens on: the application's addresses, then the status page's."""
        return self.app_address + self.status_address

    @property
    def app_address(self) -> list[Any]:
        """Where the application is served."""
        found: list[Any] = super().address
        return found

    @property
    def status_address(self) -> list[Any]:
        """Where the status page is served; empty without one."""
        text = self.settings["pool_status"].value
        if text is None:
            return []
        return [util.parse_address(f"127.0.0.1{text}" if text.startswith(":") else text)]

    def public_status_warnings(self) -> Iterator[Finding]:
        """Warn of an address of the status page that other machines may reach."""
        for address in self.status_address:
            if isinstance(address, tuple) and not addresses.is_loopback(address[0]):
                text = (
                    f"Anyone who can reach {addresses.text(address)} can read the status page: "
                    "database names and load"
                )
                hint = "give --status the loopback address, or one in a private network"
                yield Finding(Level.WARN, "PS407", "", text, hint)

    def listening_doubts(self) -> Iterator[Finding]:
        """What would keep it from listening; see :func:`addresses.doubts`."""
        return addresses.doubts(self.address, self.status_address, reuse_port=self.reuse_port)

    def check_bind(self) -> None:
        """Reject addresses that gunicorn takes for others: 8000 for a host, ::1:8000 for none."""
        for text in self.settings["bind"].value:
            plain = text.removeprefix("tcp://")
            if plain.isdecimal():
                raise values.port_alone(self.named("bind"), text, plain)
            if plain.startswith(("unix:", "fd://")):
                continue
            if not (found := options.HOST_AND_PORT.fullmatch(plain)):
                raise bad_value(
                    f"{self.named('bind')}: must be HOST:PORT, unix:PATH or fd://N, not {text!r}",
                    options.with_brackets(plain) or "for example 127.0.0.1:8000 or [::1]:8000",
                )
            if (port := found[2]) and not (port[1:].isdecimal() and int(port[1:]) < 65536):
                said = f"{self.named('bind')}: there is no port {port[1:]!r}"
                raise bad_value(said, values.PORTS)

    def check_numbers(self) -> None:
        """Reject numbers that would end in gunicorn's traceback, or a division by zero here."""
        workers = self.workers
        if workers < 1:
            raise bad_value(
                f"{self.named('workers')}: must be a whole number above 0, not {workers}",
                "use a whole number, as in 1: one for each CPU",
            )

    def check_status_address(self) -> None:
        """Reject a status page where the application is served."""
        for address in self.status_address:
            if address in self.app_address:
                text = addresses.text(address)
                name = self.named("pool_status")
                raise bad_value(
                    f"{name}: {text} is where the application is served (-b)",
                    self.written.as_written(
                        f"choose another port, for example --status {addresses.next_to(address)}"
                    ),
                )

    def keep(self, settings: Sequence[str], before: Config, why: str = "") -> None:
        """Take over settings from before a reload, which cannot change them, and log those that it
        would have changed."""
        for name in settings:
            new, old = (cfg.settings[name] for cfg in (self, before))
            if new.value != old.value:
                new.value = old.value
                log.warning(
                    "%s stays as it was: %sit takes a restart to change it", new.cli[-1], why
                )

    def check_listeners(self, before: Config) -> None:
        """Keep the listeners from before a reload if new ones would fail.

        When an address changes, gunicorn closes all its listeners and binds them again, and exits
        if that fails. For TCP addresses that stay it always fails, because the old workers still
        listen there. With reuse_port the master would listen, too, and never accept.

        :raises StartupError: a new address cannot be listened on.
        """
        new, old = self.address, before.address
        if new == old and self.reuse_port == before.reuse_port:
            return
        stays = any(isinstance(address, tuple) and address in old for address in new)
        if before.status_address or self.status_address:
            why = "with a status page"
        elif self.reuse_port or before.reuse_port:
            why = "with --reuse-port"
        elif stays:
            why = "where another address stays"
        else:
            addresses.check(new, [], reuse_port=False)
            return
        self.keep(["pool_status", "bind", "reuse_port"], before, f"{why} ")

    def notes(self, databases: Sequence[DatabaseReport]) -> Iterator[Finding]:
        """Tell of settings that are good for some projects, and not for most."""
        if self.pool_mode == "transaction":
            yield from atomic_requests_notes(databases)
        if self.keepalive > LONG_KEEP_ALIVE_SECONDS:
            text = (
                f"a stop waits for idle clients, up to {self.keepalive} s; a bit longer than the "
                "proxy keeps idle connections is enough (6 s, keepalive_timeout 4s in nginx)"
            )
            yield Finding(Level.NOTE, "", "keepalive", text)
        if self.threads > 1:
            text = "has no effect: gevent's worker serves each client in a greenlet of its own"
            yield Finding(Level.NOTE, "", "threads", f"{self.named('threads')} {text}")
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files != resource.RLIM_INFINITY and self.worker_connections >= files:
            text = (
                f"a worker may have {self.worker_connections} clients, and only {files} open "
                "files, of which each client and each connection takes one: raise that limit "
                "(ulimit -n, LimitNOFILE=)"
            )
            yield Finding(Level.NOTE, "", "worker_connections", text)

    def unread_file(self) -> Iterator[Finding]:
        """Tell of a configuration file that --chdir leads to: gunicorn looks for one before."""
        path = os.path.join(self.chdir, CONFIG_FILE)
        if not self.file and os.path.exists(path):
            text = (
                f"{path} is not read, because the command was run in another folder: "
                f"add -c {path}, or cd there first"
            )
            yield Finding(Level.NOTE, "", "--chdir", text)

    def named(self, name: str) -> str:
        """Returns a setting as it was written: by its name if that was in the configuration file,
        by its variable if it was that, else by its option."""
        return self.written.name(name)

    def as_written(self, finding: Finding) -> Finding:
        """Returns a finding that names options as they were written."""
        message, hint = map(self.written.as_written, (finding.message, finding.hint))
        return replace(finding, message=message, hint=hint)

    def is_status_listener(self, sock: Any) -> bool:
        """Whether a listening socket, inherited or not, is the status page's."""
        return any(addresses.is_at(sock.getsockname(), address) for address in self.status_address)

    def _users(self, hook: str, *args: Any) -> None:
        """Run a hook of the user's, which may configure logging, or load the project."""
        with loggers_stay_enabled():
            self.settings[hook].get()(*args)

    def _users_at_start(self, hook: str, arbiter: Any) -> None:
        """Run one that still can prevent the start.

        :raises StartupError: PS403, it fails; PS408, no worker could start after it.
        """
        try:
            try:
                self._users(hook, arbiter)
            except StartupError:
                raise
            except Exception as error:
                raise startup_error(
                    "PS403",
                    f"{self.file}: {hook} fails",
                    early.remedy(error) or "correct it, or name another file with -c FILE",
                    where(error),
                ) from error
            early.refuse()
        except StartupError:
            _remove_pidfile(arbiter)
            raise

    def on_starting(self, arbiter: Any) -> None:
        """Gunicorn's hook: it is about to listen. Runs the user's, then listens in its place.

        :raises StartupError: an address cannot be listened on, or the user's hook fails.
        """
        self._users_at_start("on_starting", arbiter)
        if arbiter.app.bound_twice:  # another version's memory has another form
            log.warning(
                "the old instance is of another version, and its connections are not counted: "
                "until it ends, this host may have those on top of --max-per-host %s\n"
                "  → end the old one soon: kill -TERM %s",
                self.pool_max_per_host,
                arbiter.master_pid,
            )
        if arbiter.app.scoreboard is not None:
            signals.tell_at_once(arbiter, arbiter.app.scoreboard.mark_ending)
        if arbiter.master_pid or systemd.listen_fds(unset_environment=False):
            addresses.inherit(arbiter, self)  # of the old master, after USR2, or of systemd
            return
        descriptors = [address for address in self.address if isinstance(address, int)]
        try:
            if descriptors:  # then gunicorn ignores all others
                addresses.inherit(arbiter, self)
            elif self.reuse_port:  # each worker makes its own
                addresses.check(self.address, self.status_address, reuse_port=True)
            else:
                arbiter.LISTENERS = addresses.listen(
                    self.address, self.status_address, self, arbiter.log
                )
        except StartupError as failed:
            error = StartupError(failed.exit_code, map(self.as_written, failed.problems))
            if self.errorlog != "-":
                log.error("%s", error)
            _remove_pidfile(arbiter)
            raise error from None

    def when_ready(self, arbiter: Any) -> None:
        """Gunicorn's hook: it listens, but has no workers yet. The user's runs last.

        :raises StartupError: the listeners were inherited, and none is for the status page, or the
            user's hook fails.
        """
        # With reuse_port the master has none: each worker makes its own.
        found = any(self.is_status_listener(sock) for sock in arbiter.LISTENERS)
        if self.status_address and arbiter.LISTENERS and not found:
            _remove_pidfile(arbiter)
            raise startup_error(
                "PS406",
                self.written.as_written(
                    f"the sockets were inherited, and none listens on --status "
                    f"{addresses.text(self.status_address[0])}"
                ),
                self.written.as_written(
                    "add it where the others come from (systemd, fd://), or leave out --status"
                ),
            )
        for finding in self.public_status_warnings():
            log.warning("%s", finding)
        self._users_at_start("when_ready", arbiter)

    def ssl_context(self, config: Any, default_factory: Any) -> Any:
        """Gunicorn's hook: a worker needs a context for the TLS of its clients. Runs the user's."""
        context = self.settings["ssl_context"].get()(config, default_factory)
        tls.guard(context)
        return context

    def pre_exec(self, arbiter: Any) -> None:
        """Gunicorn's hook, after USR2, in the process that becomes the new master. The user's runs
        first."""
        self._users("pre_exec", arbiter)
        if arbiter.app.host is not None:
            self.env_orig[HOST_VARIABLE] = arbiter.app.host.pass_on()

    def on_reload(self, arbiter: Any) -> None:
        """Gunicorn's hook: HUP, before new workers start. Runs the user's."""
        former = arbiter.app.former
        arbiter.app.reloads.begin(arbiter.worker_age)
        if self.pool_max_per_host is not None and former.pool_max_per_host is None:
            log.warning(
                "the old workers know no limit of the host: until they have ended, it may have "
                "their connections on top of --max-per-host %s",
                self.pool_max_per_host,
            )
        if arbiter.app.scoreboard is not None and self.pool_options() != former.pool_options():
            arbiter.app.scoreboard.history.begin_peaks_anew(time.monotonic())
        self._users("on_reload", arbiter)

    def nworkers_changed(self, arbiter: Any, new: int, old: int | None) -> None:
        """Gunicorn's hook: TTIN, TTOU or HUP. The user's runs first."""
        self._users("nworkers_changed", arbiter, new, old)
        if old is not None:  # None at the start, when the plan was shown
            arbiter.app.judge_workers(new, old)
            if arbiter.app.scoreboard is not None and new != old:
                arbiter.app.scoreboard.history.begin_peaks_anew(time.monotonic())

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        """Gunicorn's hook: a worker is about to be forked. The user's runs first.

        Blocks the signals that end a worker until post_fork(). Until then the child has a copy of
        the arbiter's handlers: they would swallow the signal, and the worker would be killed after
        the graceful timeout.
        """
        self._users("pre_fork", arbiter, worker)
        early.before_fork()
        signals.block()

    def post_fork(self, arbiter: Any, worker: Any) -> None:
        """Gunicorn's hook, in the new worker. The user's runs last."""
        signals.handle_with(worker)
        signals.unblock()
        self._users("post_fork", arbiter, worker)

    def post_worker_init(self, worker: Any) -> None:
        """Gunicorn's hook, in a worker that has loaded the project. Runs the user's."""
        self._users("post_worker_init", worker)

    def worker_exit(self, arbiter: Any, worker: Any) -> None:
        """Gunicorn's hook, in a worker that has served its last request. The user's runs first."""
        if worker.pid == os.getpid():  # else this is the master, cleaning up after a worker
            signals.ignore_interrupts()
        try:
            self._users("worker_exit", arbiter, worker)
        finally:
            worker.last_call()

    def child_exit(self, arbiter: Any, worker: Any) -> None:
        """Gunicorn's hook: a worker has ended in any way. The user's runs last."""
        if worker.scoreboard is not None:
            worker.scoreboard.retire(worker.slot)
        arbiter.app.balance.retire(worker.share)
        if arbiter.app.host is not None:
            arbiter.app.host.retire(worker.pid)
        self._users("child_exit", arbiter, worker)

    def get_cmd_args_from_env(self) -> list[str]:
        """GUNICORN_CMD_ARGS, then POOLED_SERVE_*: of two values for an option, the last counts."""
        try:
            arguments: list[str] = super().get_cmd_args_from_env()
        except ValueError as error:
            remedy = "put quotes around values with spaces, and close them"
            raise bad_value(f"{ARGUMENTS}: {error}", remedy) from None
        self._source = f"{ARGUMENTS}: "
        given = vars(self.parser().parse_args(arguments)) if arguments else {}
        try:
            for option, text in options.from_environment(self.env_orig):
                self.written.add(option.variable, {option.setting: text})
                if not option.is_flag:
                    arguments.append(f"{option.flag}={text}")
                else:
                    on = option.parse(text)
                    arguments.append(option.flag if on else option.flag.replace("--", "--no-"))
        except ValueError as error:
            raise bad_value(str(error)) from None
        self.stray_words = given.pop("args", [])
        self.written.add(ARGUMENTS, given)
        return arguments

    def set(self, name: str, value: object) -> None:
        """As gunicorn does, with errors that always name the option, or the file's setting."""
        if name == "bind":  # check_bind() has words for a port alone
            value = _with_ports_as_text(value)
        try:
            super().set(name, value)
        except Exception as error:
            setting = self.settings.get(name)
            if setting is None:
                raise bad_value(str(error)) from None
            where = name if self.reads_file or not setting.cli else self.written.name(name, value)
            written = f"{name} = " if where == name else f"{named(setting)} "
            problem = values.problem(setting, value, options.complaint(error, written))
            if values.has_comma(setting, value):
                problem = f"must not be a tuple, as {value!r} is{options.REMEDY}"
                problem += f"a comma too many? use {written}{value[0]!r}"  # type: ignore[index]
            raise bad_value(f"{where}: {problem}", values.remedy(setting)) from None

    def parser(self) -> argparse.ArgumentParser:
        """Gunicorn's parser, with errors raised as StartupError."""
        parser: argparse.ArgumentParser = super().parser()

        def complain(message: str) -> NoReturn:
            if message.startswith("unrecognized arguments: --"):
                name = message.split()[2].partition("=")[0]
                known = parser._option_string_actions
                words = GunicornConfig.get_cmd_args_from_env(self)
                raise StartupError(EXIT_USAGE, [names.unknown(name, known, self._source, words)])
            name, _, problem = message.removeprefix("argument ").partition(": ")
            name = name.partition("/--no-")[0].split("/")[-1]
            said = f"{name}: {problem}" if problem else message
            action = parser._option_string_actions.get(name)
            setting = self.settings.get(action.dest) if action else None
            hint = values.remedy(setting) if setting else ""
            if setting and problem.startswith("expected "):
                problem, hint = values.without(name, setting.meta)
                said = f"{name}: {problem}"
            if "ignored explicit argument" in message:
                hint = f"use {name} without a value"
            raise bad_value(f"{self._source}{said}", hint)

        parser.error = complain  # type: ignore[method-assign]
        return parser

    def pool_options(self) -> PoolOptions:
        """The pool options given, from all sources."""
        return PoolOptions.from_values({o.setting: self.settings[o.setting].value for o in OPTIONS})


def _with_ports_as_text(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_with_ports_as_text(item) for item in value]
    return str(value) if type(value) is int else value


def _remove_pidfile(arbiter: Any) -> None:
    if arbiter.pidfile is not None:
        arbiter.pidfile.unlink()
