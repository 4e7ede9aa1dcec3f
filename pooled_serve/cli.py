"""The command line. Click knows every option, gunicorn's and the pool's, for help, completion and
misspelt names; gunicorn's own parser reads the values."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pooled_serve import compat, options
from pooled_serve.errors import EXIT_USAGE, Finding, Level, StartupError, startup_error
from pooled_serve.problems import BY_CODE
from pooled_serve.serve import signals

EXAMPLES = (
    "pooled-serve myproject.wsgi --check",
    "pooled-serve myproject.wsgi --pool-size 4",
    "pooled-serve myproject.wsgi -w 3 --max-per-host 60 --status 127.0.0.1:8001",
    "pooled-serve --explain PS201",
)

CODES = "the code stands in front of a message; the README lists all"

# Sections of the help; gunicorn's own follow.
ESSENTIAL, START, MORE = "Connection Pool", "Start", "More about the Pool"


SUBCOMMANDS = {
    "check": " --check",
    "gunicorn": "",
    "run": "",
    "runserver": "",
    "serve": "",
    "start": "",
}
"""First words of other commands, and the option that does the same here."""


class ServeCommand(click.Command):
    """Help in gunicorn's own groups, examples and the pool first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse them, but for ``-workers 4``, which would be ``-w orkers`` and an argument."""
        known = {name for param in self.params for name in param.opts if name.startswith("--")}
        for word in args:
            name = word.partition("=")[0]
            meant = f"-{name}".replace("_", "-")
            if meant in known and not name.startswith("--"):
                hint = f"use {meant}, with two dashes"
                raise startup_error("PS402", f"there is no option {name}", hint)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and what the command does."""
        formatter.write("\nExamples:\n")
        for line in EXAMPLES:
            formatter.write(f"    {line}\n")
        super().format_help_text(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each section."""
        groups: dict[str, list[tuple[str, str]]] = {ESSENTIAL: [], START: [], MORE: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                section = param.section if isinstance(param, SettingOption) else START
                groups.setdefault(section, []).append(record)
        for section, records in groups.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Returns the parts of the usage line."""
        return ["APP", "[OPTIONS]"]


class SettingOption(click.Option):
    """A gunicorn setting as an option of click's; the pool's options are such settings, too."""

    def __init__(self, setting: Any) -> None:
        own = options.BY_SETTING.get(setting.name)
        self.section: str = MORE if own and not own.essential else setting.section
        flag = setting.action not in (None, "append")
        # not flag_value=None: since click 8.3 that is the value which a typed flag gets
        optional = {"flag_value": setting.const} if setting.nargs == "?" else {}
        super().__init__(
            # click derives a parameter's name from its last declaration without dashes
            [*setting.cli, setting.name],
            is_flag=flag,
            multiple=setting.action == "append",
            metavar=None if flag else setting.meta or "VALUE",
            help=_help(setting),
            type=None if flag else str,
            default=None,
            show_default=False,
            **optional,
        )


# Defaults not shown in the help: long, dependent on the machine, or overridden by the command.
_UNSHOWN = frozenset(
    (
        "access_log_format",
        "chdir",
        "control_socket",
        "control_socket_mode",
        "group",
        "umask",
        "user",
    )
)


def _help(setting: Any) -> str:
    """Returns the first sentence of a setting's description as plain text, and its default."""
    paragraph = " ".join(setting.desc.partition("\n\n")[0].split())
    if setting.name in options.BY_SETTING:
        default = options.BY_SETTING[setting.name].default
    else:
        paragraph = re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].rstrip(".") + "."
        default = "gevent" if setting.name == "worker_class" else setting.default
    text = re.sub(r":\w+:`([^`<]*)[^`]*`|``?([^`]*)``?|\*(\w+)\*", r"\1\2\3", paragraph)
    shown = ", ".join(default) if isinstance(default, list) else str(default).removesuffix(".0")
    simple = type(default) in (int, float, str, list) and setting.name not in _UNSHOWN
    return f"{text} Default: {shown}." if simple and shown else text


def _setting_options() -> Iterator[SettingOption]:
    with compat.imports():
        from gunicorn.config import KNOWN_SETTINGS

    options.register_settings()
    order = {option.setting: i for i, option in enumerate(options.OPTIONS)}
    for setting in sorted(KNOWN_SETTINGS, key=lambda s: order.get(s.name, len(order))):
        if setting.cli:
            yield SettingOption(setting)


def _for_gunicorn(ctx: click.Context, params: Sequence[click.Parameter]) -> list[str]:
    """Returns the options given on the command line as arguments for gunicorn's parser."""
    arguments = []
    for param in params:
        if not isinstance(param, SettingOption):
            continue
        value = ctx.params.get(param.name or "")
        if value is None or value is False or value == ():
            continue
        long = max(param.opts, key=len)
        if param.is_flag:
            arguments.append(long)
        else:
            arguments += [f"{long}={item}" for item in (value if param.multiple else [value])]
    return arguments


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pooled_serve.preflight import render

        click.echo(render.versions())
        ctx.exit()


def _explain(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if not value or ctx.resilient_parsing:
        return
    problem = BY_CODE.get(f"PS{value.upper().removeprefix('PS')}")
    if problem is None:
        raise startup_error(
            "PS401",
            f"--explain: there is no problem code {value!r}",
            CODES,
        )
    click.echo(problem.explain())
    ctx.exit()


@click.pass_context
def serve(
    ctx: click.Context,
    /,
    app: str | None,
    check: bool,
    advise: str | None,
    settings: str | None,
    **_: Any,
) -> None:
    """Serve a Django project on Gunicorn's gevent worker with its MySQL connections pooled.

    APP is the project's WSGI application: MODULE or MODULE:CALLABLE. The project is not edited.

    Every pool option is also an environment variable (POOLED_SERVE_POOL_SIZE=4) and a setting in
    gunicorn.conf.py (pool_size = 4).
    """
    if ctx.args:
        raise _too_many([app or "", *ctx.args])
    if advise is not None:
        from pooled_serve.status import advise as advisor

        click.echo(advisor.advise(advise), nl=False)
        return
    with compat.imports():
        from pooled_serve.serve import app as server

    compat.check("gunicorn.app")
    if settings:
        os.environ["DJANGO_SETTINGS_MODULE"] = settings
    arguments = _for_gunicorn(ctx, ctx.command.params) + ([app] if app else [])
    server.serve(server.Application(arguments), check=check)


def _too_many(arguments: list[str]) -> StartupError:
    from pooled_serve.preflight import project

    words = [word for word in arguments if word in SUBCOMMANDS]
    # As runserver takes it.
    numbers = [word for word in arguments if re.fullmatch(r"([\w.]*:)?\d+", word)]
    ports = [word for word in numbers if options.is_port(word.rpartition(":")[2])]
    app, *more = [word for word in arguments if word not in (*SUBCOMMANDS, *numbers)] or [""]
    if words or (ports and not more):
        app = project.named_as_module(app)
        problem = f"there is no command {(words or ports)[0]!r}"
        if not words:
            problem = f"{ports[0]} is no option"
        bind = f" -b {ports[0]}" if ports and ":" in ports[0] else ""
        bind = bind or (f" -b 127.0.0.1:{ports[0]}" if ports else "")
        said = f"{problem}; the application is the only argument"
        does = SUBCOMMANDS[words[0]] if words else ""
        return startup_error("PS401", said, f"use pooled-serve {app}{does}{bind}")
    if dashes := [word for word in arguments if word[:1] in ("–", "—")]:
        meant = "--" + dashes[0].lstrip("–—-")
        problem = f"{dashes[0]} begins with a long dash, as word processors make of two"
        return startup_error("PS401", problem, f"use {meant}")
    app = app or arguments[0]
    more = [*arguments]
    more.remove(app)
    rest = " ".join(more)
    problem = f"an argument too many after the application {app}: {rest}"
    hint = f"leave out {rest}, or put the option that it is for before it; see pooled-serve --help"
    return startup_error("PS401", problem, hint)


def make_command() -> click.Command:
    """Returns the click command with all options."""
    params: list[click.Parameter] = [click.Argument(["app"], required=False)]
    params += _setting_options()
    params += [
        click.Option(
            ["--check"],
            is_flag=True,
            envvar="POOLED_SERVE_CHECK",
            help="Load the project, ask the database servers, print the plan, and exit.",
        ),
        click.Option(
            ["--advise"],
            metavar="ADDR",
            help="Ask the instance with this --status what its peaks say about its numbers, print "
            "that, and exit.",
        ),
        click.Option(
            ["--settings"],
            metavar="MODULE",
            envvar="POOLED_SERVE_SETTINGS",
            help="Django settings module, as in manage.py.",
        ),
        click.Option(
            ["--explain"],
            metavar="CODE",
            is_eager=True,
            expose_value=False,
            callback=_explain,
            help="Show cause, remedy and an example for the code of a problem, and exit.",
        ),
        click.Option(
            ["-v", "--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the versions of all that this command drives, and exit.",
        ),
    ]
    return ServeCommand(
        "pooled-serve",
        callback=serve,
        params=params,
        help=serve.__doc__,
        context_settings={
            "allow_extra_args": True,  # serve() has better words for them
            "help_option_names": ["-h", "--help"],
            "max_content_width": 80,
        },
    )


def main() -> None:
    """Entry point: every failure is a line of problem, a line of remedy and an exit code."""
    if os.getpid() == 1:
        # Docker's CMD. The kernel drops a TERM that PID 1 does not handle, and gunicorn handles it
        # only after the preflight: without this, a stop in between would end in a KILL.
        signal.signal(signal.SIGTERM, signals.leave)
    signals.keep_what_handlers_raise()
    for stream in (sys.stdout, sys.stderr):
        # Or a terminal or log that cannot encode "→" would lose the whole message.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        _check_folder()
        _check_variables()
        make_command().main(prog_name="pooled-serve", standalone_mode=False)
    except StartupError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        print(_usage_problem(error), file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        signals.ignore_interrupts()
        sys.exit(130)


def _check_folder() -> None:
    """Check that there is a current directory: gunicorn asks for it at import, and fails with a
    traceback."""
    try:
        os.getcwd()
    except OSError as error:
        raise startup_error(
            "PS401",
            f"the current directory cannot be used ({error.strerror}); a deploy may have "
            "removed it",
            "cd to the folder where manage.py is now",
        ) from None


def _check_variables() -> None:
    """Check the variable that gunicorn reads at import, where it fails with a traceback."""
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if not workers.strip().isdecimal():
        raise startup_error(
            "PS401",
            f"WEB_CONCURRENCY: must be a whole number, not {workers!r}",
            "set it to the number of workers, or leave it out",
        )


def _usage_problem(error: click.UsageError) -> Finding:
    if isinstance(error, click.NoSuchOption):
        from pooled_serve.serve import names

        known = [name for param in make_command().params for name in param.opts]
        return names.unknown(error.option_name, known, words=sys.argv[1:])
    text, hint = error.format_message(), "see pooled-serve --help"
    if isinstance(error, click.BadOptionUsage) and "requires an argument" in text:
        param = next(p for p in make_command().params if error.option_name in p.opts)
        text = f"{error.option_name}: has no value"
        hint = f"write {error.option_name} {param.make_metavar(click.Context(make_command()))}"
        if error.option_name == "--explain":
            hint = f"for example --explain PS201; {CODES}"
    return Finding(Level.FAIL, "PS401", "", text, hint)
