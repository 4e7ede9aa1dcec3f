"""Options that cannot work: a code, one line that says what, one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import MakeProject
from pooled_serve.options import OPTIONS
from support.command import EXIT_PLAN, EXIT_USAGE, Here, run
from support.option_values import bad_values


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


USAGE: dict[str, tuple[list[str], str, str, str]] = {
    "no application": ([], "PS405", "no application", "pooled-serve myproject.wsgi"),
    "unknown option": (["a", "--pool-sise", "4"], "PS402", "--pool-sise", "--pool-size?"),
    "unknown option of gunicorn": (["a", "--worker", "4"], "PS402", "--worker", "--workers?"),
    "unknown option like no other": (["a", "--xyzzy"], "PS402", "--xyzzy", "--help"),
    "unknown option near no other": (["a", "--foo"], "PS402", "--foo", "→ see pooled-serve --help"),
    **{
        f"other word {name}": (["a", name, "9"], "PS402", f"no option {name}", f"mean {meant}?")
        for name, meant in {
            "--max-connections": "--max-outstanding",
            "--max-conns": "--max-outstanding",
            "--pool-max": "--max-outstanding",
            "--max-overflow": "--max-outstanding",
            "--pool-recycle": "--conn-max-age",
            "--port": "--bind",
        }.items()
    },
    "size as an alias": (["a", "--pool", "4"], "PS401", "--pool: ", "→ use --pool-size 4"),
    "port alone": (["a", "--status", "24211"], "PS401", "--status: ", "→ use 127.0.0.1:24211"),
    "unknown short option": (["a", "-X"], "PS402", "-X", "--help"),
    "option without its value": (["a", "--pool-size"], "PS401", "--pool-size", "--help"),
    "two applications": (["a", "b"], "PS401", "b", "--help"),
    "gunicorn's number": (
        ["a", "-w", "many"],
        "PS401",
        "--workers: invalid int value",
        "a whole number, as in 1",
    ),
    "gunicorn's check": (["a", "-w", "-1"], "PS401", "--workers: ", "use a whole number"),
    "gunicorn's timeout": (["a", "--timeout=abc"], "PS401", "'abc'", "a whole number, as in 30"),
    "a size in words": (
        ["a", "--pool-size", "ten"],
        "PS401",
        "'ten'",
        "→ for example --pool-size 12",
    ),
    "no such mode": (
        ["a", "--pool-mode", "session"],
        "PS401",
        "'session'",
        "use request or transaction",
    ),
    "no seconds": (
        ["a", "--pool-timeout", "1s"],
        "PS401",
        "'1s'",
        "→ for example --pool-timeout 10",
    ),
    "no age": (["a", "--conn-max-age", "1h"], "PS401", "'1h'", "→ for example --conn-max-age 10"),
    "address": (["a", "-b", "127.0.0.1:http"], "PS401", "'http'", "--help"),
    "environment setting": (["a", "-e", "DEBUG"], "PS401", "'DEBUG'", "--help"),
    "folder": (["a", "--chdir", "/nowhere"], "PS401", "--chdir: ", "--help"),
    "user": (["a", "--user", "no-such-user"], "PS401", "--user: ", "--help"),
    "no such file": (["a", "-c", "no.py"], "PS403", "no.py", "-c FILE"),
    "no such module": (["a", "-c", "python:no.conf"], "PS403", "python:no.conf", "-c FILE"),
    **{
        f"other spelling {name}": (["a", name, "9"], "PS402", name, f"did you mean {meant}?")
        for name, meant in {
            "--poolSize": "--pool-size",
            "--max_outstanding": "--max-outstanding",
        }.items()
    },
    "port of the site": (
        ["a", "-b", "127.0.0.1:24211", "--status", "127.0.0.1:24211"],
        "PS401",
        "--status: 127.0.0.1:24211 is where the application is served (-b)",
        "→ choose another port, for example --status 127.0.0.1:24212",
    ),
    **{
        f"worker class {name}": (["a", "-k", name], "PS404", repr(name), "remove -k")
        for name in ("sync", "gthread", "tornado", "asgi", "myproject.workers.MyWorker")
    },
}


@pytest.mark.parametrize(("args", "code", "says", "remedy"), USAGE.values(), ids=USAGE.keys())
def test_usage(here: Here, args: list[str], code: str, says: str, remedy: str) -> None:
    here.run(*args).assert_one_problem(code, EXIT_USAGE, says, remedy)


# --- Values ------------------------------------------------------------------------------------


def assert_example(said: Any, written: str) -> None:
    """The remedy says what to use, or has an example that can be copied to where the value was."""
    _, _, remedy = said.output.partition("→ ")
    assert remedy.startswith(("use ", "see ", f"for example {written}")), remedy


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_bad_values(
    here: Here, option: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in bad_values(option):
        said = here.run("a", f"{option.flag}={value}")
        # That a flag takes no value is the remedy.
        remedy = "→ see " if option.is_flag else "→ "
        said.assert_one_problem("PS401", EXIT_USAGE, option.flag, remedy)
        assert_example(said, f"{option.flag} ")

        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"{option.flag}='{value}'")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, f"{option.flag}: ", "→ ")
        assert_example(said, f"{option.flag} ")
        if not option.repeats:  # which gunicorn's parser lets pass
            said.assert_one_problem("PS401", EXIT_USAGE, "GUNICORN_CMD_ARGS: ")
        monkeypatch.delenv("GUNICORN_CMD_ARGS")

        if value:  # an empty variable is as good as none
            monkeypatch.setenv(option.variable, value)
            said = here.run("a")
            said.assert_one_problem("PS401", EXIT_USAGE, f"{option.variable}: ", "→ ")
            assert_example(said, f"{option.variable}=")
            monkeypatch.delenv(option.variable)

        here.conf(f"{option.setting} = {value!r}")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, "gunicorn.conf.py: ", "→ ")
        assert_example(said, f"{option.setting} = ")
        said.assert_one_problem("PS401", EXIT_USAGE, f"{option.setting}: ")
        assert option.flag not in said.output.replace(f"use {option.flag}", "")
        here.conf("")


def test_numbers_that_gunicorn_answers_with_a_traceback(project: MakeProject) -> None:
    folder = project()
    for args, env, says in (
        (["-w", "0"], {}, "--workers: must be a whole number above 0"),
        (["-b", "127.0.0.1:70000"], {}, "--bind: there is no port 70000"),
        ([], {"WEB_CONCURRENCY": "auto"}, "WEB_CONCURRENCY: must be a whole number, not 'auto'"),
    ):
        done = run("mysite.wsgi", "--check", *args, cwd=folder, env=env)
        done.assert_one_problem("PS401", EXIT_USAGE, says)


# --- The configuration file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("pool_size = 0", "PS401", "py: pool_size: must be a whole number above 0, not 0"),
        ("pool_size = True", "PS401", "not True"),
        ("pool_timeout = -1.5", "PS401", "py: pool_timeout: must be a number of seconds"),
        ("pool_aliases = 4", "PS401", "py: pool_aliases: must be ALIAS:SIZE"),
        ("workers = 'x'", "PS401", "py: workers: "),
        ("workers = 0", "PS401", "py: workers: must be a whole number above 0"),
        ("bind = '127.0.0.1:70000'", "PS401", "py: bind: there is no port 70000"),
        ("pool_status = '127.0.0.1:8000'", "PS401", "py: pool_status: 127.0.0.1:8000 is where"),
        ("wsgi_app = 4", "PS401", "wsgi_app: "),
        ("worker_class = 'sync'", "PS404", "'sync'"),
    ],
)
def test_bad_values_of_other_types_in_the_file(
    here: Here, source: str, code: str, says: str
) -> None:
    here.conf(source)
    here.run("a").assert_one_problem(code, EXIT_USAGE, says)


def test_a_stronger_source_than_the_file_is_named_as_it_was_written(here: Here) -> None:
    here.conf("workers = 2")
    here.run("a", "-w", "0").assert_one_problem("PS401", EXIT_USAGE, "PS401 --workers: must be")


NEARLY = {
    "status = '127.0.0.1:8001'": "pool_status",
    "replicas = 2": "pool_replicas",
    "strict = True": "pool_strict",
    "leak_threshold = 5": "pool_leak_threshold",
    "max_per_host = 60": "pool_max_per_host",
    "max_connections = 10": "max_outstanding",
    "pool_max = 10": "max_outstanding",
    "pool_sise = 4": "pool_size",
    "pool_max_outstanding = 4": "max_outstanding",
    "pool = ['default:4']": "pool_aliases",
}


@pytest.mark.parametrize(("source", "meant"), NEARLY.items())
def test_a_setting_of_the_file_that_is_nearly_one(
    project: MakeProject, source: str, meant: str
) -> None:
    folder = project(databases={})
    (folder / "gunicorn.conf.py").write_text(source)
    done = run("mysite.wsgi", "--check", cwd=folder)
    name = source.partition(" ")[0]
    says = f"gunicorn.conf.py: there is no setting {name}"
    done.assert_one_problem("PS402", 0, says, f"did you mean {meant}?")


def test_other_names_in_the_file_are_the_users_own(project: MakeProject) -> None:
    folder = project(databases={})
    (folder / "gunicorn.conf.py").write_text(
        "import os as replicas\nstatus = 'starting'\nsettings = 1\n_pool_sise = 4\nport = 8000\n"
        "def pool_hook(): ...\ndef strict(): ...\ncheck = True\nsize = 'big'\nhosts = ['a']\n"
    )
    done = run("mysite.wsgi", "--check", "--strict", cwd=folder)
    assert done.code == 0, done.output
    assert "PS402" not in done.output


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("x = 1\n1/0", 2, "ZeroDivisionError"),
        ("import no_such_thing", 1, "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("x = (", 1, "SyntaxError"),
        ("\nimport sys\nsys.exit('not today')", 3, "SystemExit: not today"),
    ],
)
def test_configuration_file_that_fails(here: Here, source: str, line: int, error: str) -> None:
    here.conf(source)
    done = here.run("a")
    done.assert_one_problem("PS403", EXIT_USAGE, "gunicorn.conf.py", "correct it")
    assert f'gunicorn.conf.py", line {line}: {error}' in done.output


def test_what_the_configuration_file_prints_is_seen(here: Here) -> None:
    here.conf("import sys\nprint('hello from the file', file=sys.stderr)")
    assert "hello from the file" in here.run().output


# --- The status page ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:24211", "[::]:24211"])
def test_a_status_page_for_everybody_is_worth_a_warning(project: MakeProject, address: str) -> None:
    folder = project(databases={})
    done = run("mysite.wsgi", "--check", "--status", address, cwd=folder)
    says = f"Anyone who can reach {address} can read the status page"
    done.assert_one_problem("PS407", 0, says, "the loopback address")
    done = run("mysite.wsgi", "--check", "--strict", "--status", address, cwd=folder)
    done.assert_one_problem("FAIL  PS407", EXIT_PLAN)


@pytest.mark.parametrize("address", [":24211", "127.0.0.1:24211", "unix:status.sock"])
def test_a_status_page_for_this_machine(project: MakeProject, address: str) -> None:
    folder = project(databases={})
    done = run("mysite.wsgi", "--check", "--strict", "--status", address, cwd=folder)
    assert done.code == 0, done.output
    if address == ":24211":
        assert "Status    http://127.0.0.1:24211/" in done.output


# --- The environment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says", "remedy"),
    [
        ("--pool-sise 4", "PS402", "GUNICORN_CMD_ARGS: there is no option --pool-sise", "-size?"),
        ("--max-conns 4", "PS402", "GUNICORN_CMD_ARGS: there is no option", "--max-outstanding?"),
        ("--pool 4", "PS401", "--pool: must be ALIAS:SIZE", "use --pool-size 4"),
        ("--status 8001", "PS401", "GUNICORN_CMD_ARGS: --status: must", "use 127.0.0.1:8001"),
        ("--pool-size", "PS401", "GUNICORN_CMD_ARGS: --pool-size", "--help"),
        ("--name 'unclosed", "PS401", "GUNICORN_CMD_ARGS: ", "--help"),
        ("-k sync", "PS404", "'sync'", "GUNICORN_CMD_ARGS"),
    ],
)
def test_bad_arguments_from_the_environment(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    code: str,
    says: str,
    remedy: str,
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", arguments)
    here.run("a").assert_one_problem(code, EXIT_USAGE, says, remedy)


def test_a_variable_that_is_nearly_an_option_is_worth_a_warning(project: MakeProject) -> None:
    folder = project()
    env = {"POOLED_SERVE_POOLSIZE": "3", "POOLED_SERVE_SERVICE_HOST": "10.0.0.1"}
    done = run("mysite.wsgi", "--check", cwd=folder, env=env)
    done.assert_one_problem(
        "PS402", 0, "no variable POOLED_SERVE_POOLSIZE", "did you mean POOLED_SERVE_POOL_SIZE?"
    )
    assert run("mysite.wsgi", "--check", "--strict", cwd=folder, env=env).code == EXIT_PLAN
    done = run("mysite.wsgi", "--check", cwd=folder, env={"POOLED_SERVE_MAX_CONNECTIONS": "3"})
    done.assert_one_problem("PS402", 0, remedy="did you mean POOLED_SERVE_MAX_OUTSTANDING?")
