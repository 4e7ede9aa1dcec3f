"""Typical mistakes of a first hour: each gets one problem, and a remedy that leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import MakeProject
from pooled_serve.errors import Level
from pooled_serve.serve import app as server
from pooled_serve.serve import names, values
from support.command import EXIT_PROJECT, EXIT_USAGE, Here, run
from support.django_project import SQLITE


@pytest.fixture
def here(here: Here, tmp_path: Path) -> Here:
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "wsgi.py").touch()
    return here


COMMANDS: dict[str, tuple[list[str], str, str, str]] = {
    "gunicorn in front": (
        ["gunicorn", "a.wsgi"],
        "PS401",
        "no command 'gunicorn'",
        "pooled-serve a",
    ),
    "runserver with a port": (
        ["runserver", "8000"],
        "PS401",
        "no command 'runserver'",
        "→ use pooled-serve mysite.wsgi -b 127.0.0.1:8000",
    ),
    "manage.py runserver": (
        ["manage.py", "runserver", "0.0.0.0:8000"],
        "PS401",
        "no command 'runserver'",
        "→ use pooled-serve mysite.wsgi -b 0.0.0.0:8000",
    ),
    "a port": (
        ["a.wsgi", "8000"],
        "PS401",
        "8000 is no option",
        "→ use pooled-serve a.wsgi -b 127",
    ),
    "a number that is no port": (
        ["a.wsgi", "4"],
        "PS401",
        "after the application a.wsgi: 4",
        "→ leave out 4, or put the option that it is for before it",
    ),
    "a number before the application": (["4", "a.wsgi"], "PS401", "application a.wsgi: 4", "out 4"),
    "a number that no port can have": (["a.wsgi", "99999"], "PS401", "a.wsgi: 99999", "out 99999"),
    "runserver with a number": (["runserver", "4"], "PS401", "'runserver'", "use pooled-serve mys"),
    **{
        f"option {' '.join(args)}": (["a", *args], "PS402", "no option --", f"mean {meant}?")
        for args, meant in (
            (["--port", "8080"], "--bind 127.0.0.1:8080"),
            (["--port=80"], "--bind 127.0.0.1:80"),
            (["--host", "0.0.0.0", "--port", "81"], "--bind 0.0.0.0:81"),
            (["--host", "::1"], "--bind [::1]:8000"),
            (["--address", "0.0.0.0:81"], "--bind 0.0.0.0:81"),
            (["--port", "many"], "--bind 127.0.0.1:8000"),
            (["--port"], "--bind 127.0.0.1:8000"),
        )
    },
    **{
        f"bind {text}": (["a", "-b", text], "PS401", says, f"→ {remedy}")
        for text, says, remedy in (
            ("999999", "--bind: there is no port 999999", "use a port from 1 to 65535"),
            ("4", "4 is a port without a host", "use HOST:PORT, as in 127.0.0.1:8000"),
            ("80", "80 is a port without a host", "use 127.0.0.1:80, or :80 for all"),
            ("::1:99999", "not '::1:99999'", "for example 127.0.0.1:8000"),
        )
    },
    **{
        f"status {number}": (
            ["a", "--status", number],
            "PS401",
            f"not '{number}'",
            "→ for example --status 127.0.0.1:8001",
        )
        for number in ("1", "4", "999999", "9" * 5000)
    },
    **{
        f"{flag} {value}": (
            ["a", f"{flag}={value}"],
            "PS401",
            f"'{value}'",
            f"example {flag} {use}",
        )
        for flag, value, use in (
            ("--replicas", "0", "2"),
            ("--pool-size", "0", "4"),
            ("--max-outstanding", "0", "12"),
            ("--max-per-host", "0", "60"),
            ("--conn-max-age", "-1", "60"),
            ("--pool-timeout", "-1", "10"),
            ("--client-check", "0", "2"),
            ("--leak-threshold", "0", "5"),
        )
    },
    "long dash": (["a.wsgi", "—check"], "PS401", "—check begins with a long dash", "→ use --check"),
    "short dash": (["–pool-size", "a"], "PS401", "–pool-size begins with", "→ use --pool-size"),
    "one dash": (["a.wsgi", "-check"], "PS402", "no option -check", "→ use --check, with two"),
    "one dash of gunicorn's": (["a", "-chdir=."], "PS402", "no option -chdir", "→ use --chdir,"),
    "one dash, and a value": (
        ["a.wsgi", "-workers", "4"],
        "PS402",
        "no option -workers",
        "→ use --workers, with two dashes",
    ),
    "one dash, and an underscore": (
        ["a", "-pool_size=4"],
        "PS402",
        "no option -pool_size",
        "→ use --pool-size, with two dashes",
    ),
    "a level of the log": (
        ["a", "--log-level", "debgu"],
        "PS401",
        "--log-level: there is no level 'debgu'",
        "→ use debug",
    ),
    "a level like no other": (["a", "--log-level", "9"], "PS401", "no level '9'", "→ use one of "),
    "an age with a unit": (["a", "--conn-max-age", "1h"], "PS401", "'1h'", "--conn-max-age 3600"),
    "seconds with a unit": (["a", "--pool-timeout", "5 s"], "PS401", "'5 s'", "--pool-timeout 5"),
    "log in no folder": (
        ["a", "--error-logfile", "/nowhere/x.log"],
        "PS401",
        "--error-logfile: /nowhere/x.log is in /nowhere, which is no directory",
        "→ create it, or name another",
    ),
    "log is a folder": (
        ["a", "--access-logfile", "/tmp/"],
        "PS401",
        "--access-logfile: /tmp/ is a directory",
        "→ name a file in it, as in /tmp/log",
    ),
    "pid in no folder": (["a", "--pid", "/nowhere/pid"], "PS401", "--pid: /nowhere/pid", "create"),
    "no log configuration": (
        ["a", "--log-config", "no.ini"],
        "PS401",
        "--log-config: there is no file no.ini",
        "→ correct the path",
    ),
}


@pytest.mark.parametrize(("args", "code", "says", "remedy"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command(here: Here, args: list[str], code: str, says: str, remedy: str) -> None:
    here.run(*args).assert_one_problem(code, EXIT_USAGE, says, remedy)


def test_a_file_that_may_not_be_written(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    done = here.run("a", "--error-logfile", "x.log")
    says = "--error-logfile: x.log cannot be written"
    remedy = f"let user {os.geteuid()} write to {tmp_path}, or name another"
    done.assert_one_problem("PS401", EXIT_USAGE, says, remedy)


@pytest.mark.usefixtures("here")
def test_a_logger_of_ones_own_may_have_other_levels() -> None:
    made = server.Application(["a", "--logger-class", "project.Logger", "--log-level", "trace"])
    assert made.cfg.loglevel == "trace"


def test_no_code_to_explain(here: Here) -> None:
    done = here.run("--explain")
    assert done.code == EXIT_USAGE
    assert done.output == (
        "PS401 --explain: has no value\n  → for example --explain PS201; the code stands in front "
        "of a message; the README lists all\n"
    )


@pytest.mark.parametrize("quoted", ["'4'", '"4"', " '4' "])
def test_quotes_around_a_variable(here: Here, monkeypatch: pytest.MonkeyPatch, quoted: str) -> None:
    monkeypatch.setenv("POOLED_SERVE_POOL_SIZE", quoted)
    remedy = "→ use POOLED_SERVE_POOL_SIZE=4, without the quotes"
    here.run("a").assert_one_problem("PS401", EXIT_USAGE, "POOLED_SERVE_POOL_SIZE: must", remedy)


VARIABLES: dict[tuple[str, str], str] = {
    ("WORKERS", "3"): "→ use WEB_CONCURRENCY=3, or --workers",
    ("WORKERS", "auto"): "→ use WEB_CONCURRENCY=N, or --workers",
    ("BIND", "0.0.0.0:81"): "→ use --bind 0.0.0.0:81, or GUNICORN_CMD_ARGS='--bind 0.0.0.0:81'",
    ("PORT", "8080"): "→ use --bind 127.0.0.1:8080, or GUNICORN_CMD_ARGS='--bind 127.0.0.1:8080'",
    ("HOST", "db"): "→ use --bind HOST:PORT, or GUNICORN_CMD_ARGS='--bind HOST:PORT'",
    ("TIMEOUT", "60"): "--timeout 60'; or POOLED_SERVE_POOL_TIMEOUT for the pool's",
    ("RELOAD", "1"): "→ use --reload, or GUNICORN_CMD_ARGS='--reload'",
    (
        "ACCESS_LOG",
        "-",
    ): "→ use --access-logfile FILE, or GUNICORN_CMD_ARGS='--access-logfile FILE'",
    ("RAW_ENV", "PASSWORD=secret"): "→ use --env ENV, or GUNICORN_CMD_ARGS='--env ENV'",
    ("POOLSIZE", "4"): "→ did you mean POOLED_SERVE_POOL_SIZE?",
    ("POOL_STATUS", "secret"): "→ did you mean POOLED_SERVE_STATUS?",
    ("XYZZY", "4"): "→ see pooled-serve --help",
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("bare", "value"), VARIABLES)
def test_a_variable_of_gunicorns(bare: str, value: str) -> None:
    variable = f"POOLED_SERVE_{bare}"
    known = server.Application(["a"]).cfg.settings
    (finding,) = names.unknown_variables({variable: value}, known)
    assert finding.message == f"there is no variable {variable}"
    assert VARIABLES[bare, value] in str(finding)
    assert "secret" not in str(finding)


@pytest.mark.usefixtures("here")
def test_what_kubernetes_sets_is_no_variable_of_the_users() -> None:
    environ = {"POOLED_SERVE_PORT": "tcp://10.0.0.1:80", "POOLED_SERVE_SERVICE_PORT": "8080"}
    assert not names.unknown_variables(environ, server.Application(["a"]).cfg.settings)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("8080", "-b 127.0.0.1:8080"),
        (":8080", "-b :8080"),
        ("0.0.0.0:80", "-b 0.0.0.0:80"),
        ("4", ""),
        ("8080.pid", ""),
        ("run/8080", ""),
    ],
)
def test_a_pid_file_that_is_called_like_a_port(here: Here, path: str, remedy: str) -> None:
    found = [*values.doubts(server.Application(["a", "-p", path]).cfg)]
    assert [(f.level, f.hint) for f in found] == (
        [(Level.WARN, f"for a port use {remedy}")] if remedy else []
    )
    assert not found or f"-p: the pid file is called {path}: " in found[0].message


def test_a_pid_file_that_is_called_like_a_port_is_told_of(project: MakeProject) -> None:
    done = run("mysite.wsgi", "-p", "8080", "--check", cwd=project(databases=SQLITE))
    done.assert_one_problem("PS401", 0, "pid file is called 8080", "→ for a port use -b 127.0.0.1")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("pool-size = 4", "pool_size"),
        ("x = 1\npool-size=4  # of 20", "pool_size"),
        ("max-per-host = 60", "pool_max_per_host"),
        ("graceful-timeout = 30", "graceful_timeout"),
        ("access-logfile = '-'", "accesslog"),
        ("--pool-size = 4", "pool_size"),
        ("my-size = 4", ""),
        ("pool-size == (", ""),
    ],
)
def test_a_setting_with_dashes(here: Here, line: str, meant: str) -> None:
    here.conf(line)
    remedy = f"→ did you mean {meant}?" if meant else "→ correct it, or name another with -c FILE"
    done = here.run("a")
    done.assert_one_problem("PS403", EXIT_USAGE, "gunicorn.conf.py", remedy)
    assert ("Maybe you meant" in done.output) <= (not meant)
    assert f"line {line.count(chr(10)) + 1}: " in done.output


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("workers: 3", "use workers = 3"),
        ("pool_timeout: 2.5", "use pool_timeout = 2.5"),
        ("workers: int", ""),
        ("workers: 3\nworkers = 2", ""),
        ("mine: 3", ""),
    ],
)
def test_a_setting_with_a_colon(here: Here, line: str, remedy: str) -> None:
    here.conf(line)
    cfg = server.Application(["a"]).cfg
    found = [*names.annotated(cfg.file, cfg.file_values, cfg.settings)]
    assert [f.hint for f in found] == ([remedy] if remedy else [])
    assert not found or f"gunicorn.conf.py, line 1: {line} sets nothing" in found[0].message


# --- What is named -----------------------------------------------------------------------------

NAMES: dict[str, tuple[list[str], str, str, str]] = {
    "wsgi.py": (["wsgi.py"], "PS107", "'wsgi.py' is a file path", "→ use mysite.wsgi"),
    "the folder": (["."], "PS107", "'.' is a file path", "→ use mysite.wsgi"),
    "the application, called": (
        ["mysite.wsgi:application()"],
        "PS103",
        "mysite.wsgi:application is the application itself",
        "→ use mysite.wsgi:application, without parentheses",
    ),
    "settings that are not there": (
        ["mysite.wsgi", "--settings", "mysite.prod"],
        "PS105",
        "no settings module 'mysite.prod'",
        "did you mean mysite.settings?",
    ),
}


def test_settings_of_a_variable_that_are_not_there(project: MakeProject) -> None:
    env = {"POOLED_SERVE_SETTINGS": "mysite.prod", "DJANGO_SETTINGS_MODULE": None}
    done = run("mysite.wsgi", "--check", cwd=project(databases=SQLITE), env=env)
    remedy = "did you mean mysite.settings? correct POOLED_SERVE_SETTINGS"
    done.assert_one_problem("PS105", EXIT_PROJECT, "module 'mysite.prod'", remedy)


@pytest.mark.parametrize(("args", "code", "says", "remedy"), NAMES.values(), ids=NAMES.keys())
def test_a_name(project: MakeProject, args: list[str], code: str, says: str, remedy: str) -> None:
    folder = project(databases=SQLITE)
    (folder / "manage.py").write_text("raise SystemExit")
    done = run(*args, "--check", cwd=folder)
    done.assert_one_problem(code, EXIT_PROJECT, says, remedy)
    assert done.output.count("use mysite.wsgi") <= 1


# --- What has no effect ------------------------------------------------------------------------


def test_threads_are_noted(project: MakeProject) -> None:
    folder = project(databases=SQLITE)
    assert (
        "--threads has no effect" in run("mysite.wsgi", "--check", "--threads=4", cwd=folder).output
    )
    (folder / "gunicorn.conf.py").write_text("threads = 4")
    output = " ".join(run("mysite.wsgi", "--check", cwd=folder).output.split())
    assert "gunicorn.conf.py: threads has no effect" in output


@pytest.mark.parametrize(
    ("arguments", "word", "remedy"),
    [
        ("pool-size 4", "pool-size", "did you mean --pool-size?"),
        ("pool-size=4", "pool-size=4", "did you mean --pool-size?"),
        ("mysite.wsgi --pool-size 4", "mysite.wsgi", "leave it out"),
    ],
)
def test_words_of_gunicorns_variable_that_are_no_options(
    project: MakeProject, arguments: str, word: str, remedy: str
) -> None:
    env = {"GUNICORN_CMD_ARGS": arguments}
    done = run("mysite.wsgi", "--check", cwd=project(databases=SQLITE), env=env)
    done.assert_one_problem("PS402", 0, f"no effect, since {word} is no option", remedy)


# --- Users -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_may_not_read_the_project(project: MakeProject) -> None:
    folder = project(databases=SQLITE)
    folder.chmod(0o700)
    done = run("mysite.wsgi", "--check", "--user", "nobody", cwd=folder)
    done.assert_one_problem("PS401", EXIT_USAGE, " may not read /", "where that user may read them")
