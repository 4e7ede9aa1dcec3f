"""Typical mistakes of a first hour: each gets one problem, and a remedy that leads out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeProject
from support.command import EXIT_PROJECT, EXIT_USAGE, Here, run
from support.django_project import SQLITE, mysql_at


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


@pytest.mark.parametrize("quoted", ["'4'", '"4"', " '4' "])
def test_quotes_around_a_variable(here: Here, monkeypatch: pytest.MonkeyPatch, quoted: str) -> None:
    monkeypatch.setenv("POOLED_SERVE_POOL_SIZE", quoted)
    remedy = "→ use POOLED_SERVE_POOL_SIZE=4, without the quotes"
    here.run("a").assert_one_problem("PS401", EXIT_USAGE, "POOLED_SERVE_POOL_SIZE: must", remedy)


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


@pytest.mark.parametrize(("args", "code", "says", "remedy"), NAMES.values(), ids=NAMES.keys())
def test_a_name(project: MakeProject, args: list[str], code: str, says: str, remedy: str) -> None:
    folder = project(databases=SQLITE)
    (folder / "manage.py").write_text("raise SystemExit")
    done = run(*args, "--check", cwd=folder)
    done.assert_one_problem(code, EXIT_PROJECT, says, remedy)
    assert done.output.count("use mysite.wsgi") <= 1


# --- Settings ----------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, Any, str, str]] = {
    "a variable": (
        "import os\nSECRET_KEY = os.environ['SHOP_KEY']",
        SQLITE,
        "KeyError: 'SHOP_KEY'",
        "→ set the variable SHOP_KEY in the environment of this command; for all of its",
    ),
    "another key": ("{}['SHOP_KEY']", SQLITE, "KeyError: 'SHOP_KEY'", "→ correct the error above"),
    "a package": (
        "import environ_that_is_not_there.sub",
        SQLITE,
        "No module named 'environ_that_is_not_there'",
        "→ install the package that has environ_that_is_not_there where pooled-serve is (",
    ),
    "a module of its own": (
        "import mysite.secrets_that_are_not_there",
        SQLITE,
        "No module named 'mysite.secrets_that_are_not_there'",
        "→ correct the error above",
    ),
    "an engine that models import": (
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']",
        mysql_at("127.0.0.1", ENGINE="mysql"),
        "ENGINE in DATABASES of mysite.settings, 'mysql'",
        "→ write 'django.db.backends.mysql' as ENGINE in DATABASES; for all of its traceback",
    ),
    **{
        f"engine {engine}": (
            "",
            mysql_at("127.0.0.1", ENGINE=engine),
            f"'{engine}'",
            f"→ write 'django.db.backends.{meant}' as ENGINE in DATABASES",
        )
        for engine, meant in (
            ("mysql", "mysql"),
            ("django.db.backends.mysqldb", "mysql"),
            ("django.db.backends.mariadb", "mysql"),
            ("django.db.backends.postgres", "postgresql"),
            ("sqlite", "sqlite3"),
        )
    },
    "an engine of another package": (
        "",
        mysql_at("127.0.0.1", ENGINE="no_such.mysql"),
        "the engine 'no_such.mysql' of the database 'default' cannot be loaded",
        "→ correct DATABASES in the settings, or install what it needs",
    ),
}


@pytest.mark.parametrize(
    ("settings", "databases", "says", "remedy"), SETTINGS.values(), ids=SETTINGS.keys()
)
def test_settings(
    project: MakeProject, settings: str, databases: Any, says: str, remedy: str
) -> None:
    folder = project(databases=databases, settings=settings)
    done = run("mysite.wsgi", "--check", cwd=folder)
    done.assert_one_problem("PS102", EXIT_PROJECT, remedy=remedy)
    assert says in done.output


def test_a_database_without_an_engine(project: MakeProject) -> None:
    settings = mysql_at("127.0.0.1")
    del settings["default"]["ENGINE"]
    done = run("mysite.wsgi", "--check", cwd=project(databases=settings))
    remedy = "write \"ENGINE\": 'django.db.backends.mysql' in DATABASES"
    done.assert_one_problem("PS110 default", 0, "there is NAME, and no ENGINE", remedy)


@pytest.mark.parametrize(("key", "empty"), [("''", True), ("None", True), ("'x'", False)])
def test_an_empty_secret_key_is_noted(project: MakeProject, key: str, empty: bool) -> None:
    folder = project(databases=SQLITE, settings=f"SECRET_KEY = {key}")
    output = run("mysite.wsgi", "--check", cwd=folder).output
    assert ("note  SECRET_KEY  it is empty: whatever signs" in output) == empty, output


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
