"""What is said of a project's code that fails: the cause, the setting that is behind it, and how to
see all of its traceback."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MakeProject
from pooled_serve.preflight import failures
from support.command import EXIT_PROJECT, run
from support.django_project import SQLITE
from support.serve import environment
from support.text import find

SESSIONS = "MIDDLEWARE = ['django.contrib.sessions.middleware.SessionMiddleware']\n"
CACHE = "django.contrib.sessions.backends.memcache"


@pytest.mark.parametrize(
    ("settings", "module", "remedy", "behind"),
    [
        (
            f"{SESSIONS}SESSION_ENGINE = '{CACHE}'",
            CACHE,
            "correct SESSION_ENGINE of mysite.settings",  # Django is installed
            f"SESSION_ENGINE of mysite.settings, '{CACHE}'",
        ),
        (
            f"{SESSIONS}SESSION_ENGINE = 'no_engines.sessions'",
            "no_engines",
            "correct SESSION_ENGINE of mysite.settings, or install what it names",
            "SESSION_ENGINE of mysite.settings, 'no_engines.sessions'",
        ),
        # In a list of dicts, whoever imports it.
        (
            "INSTALLED_APPS = ['a_library']\nTEMPLATES = [{'BACKEND': 'no_such_thing.Engine'}]",
            "no_such_thing",
            "correct TEMPLATES of mysite.settings, or install what it names",
            "TEMPLATES of mysite.settings, 'no_such_thing.Engine'",
        ),
        # It needs what nobody has installed.
        (
            "INSTALLED_APPS = ['a_library']",
            "no_such_thing",
            "install no_such_thing, which 'a_library' imports",
            "INSTALLED_APPS of mysite.settings, 'a_library'",
        ),
    ],
)
def test_the_setting_to_correct_is_that_which_names_what_is_missing(
    project: MakeProject, settings: str, module: str, remedy: str, behind: str
) -> None:
    folder = project(databases=SQLITE, settings=settings)
    library = folder / "site-packages" / "a_library"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("import no_such_thing\n")
    done = run("mysite.wsgi", "--pythonpath", str(library.parent), "--check", cwd=folder)
    done.assert_one_problem("PS102", EXIT_PROJECT, "mysite.wsgi exists", f"→ {remedy}; for all")
    assert f"\n  {behind}: ModuleNotFoundError: No module named '{module}'\n" in done.output


def test_a_cause_is_told_with_its_error(project: MakeProject) -> None:
    handler = {"class": "logging.FileHandler", "filename": "/no/such/folder/log"}
    logging = {"version": 1, "handlers": {"f": handler}, "root": {"handlers": ["f"]}}
    folder = project(databases=SQLITE, settings=f"LOGGING = {logging}")
    done = run("mysite.wsgi", "--check", cwd=folder)
    assert (
        "ValueError: Unable to configure handler 'f': FileNotFoundError: [Errno 2] No such file or "
        "directory: '/no/such/folder/log'\n" in done.output
    )


def raised(*chain: BaseException) -> BaseException:
    """The last of them, each raised from the one before."""
    for cause, error in itertools.pairwise(chain):
        error.__cause__ = cause
    return chain[-1]


def noted(error: BaseException) -> BaseException:
    """With a note, which a traceback has as its last line."""
    error.add_note("ask the administrator")
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            raised(KeyError("a"), ValueError("b."), RuntimeError("c")),
            "RuntimeError: c: ValueError: b: KeyError: 'a'",
        ),
        (raised(OSError("full"), ValueError("disk: full")), "ValueError: disk: full"),
        (raised(ValueError("two\nlines"), ValueError("c")), "ValueError: c: ValueError: two lines"),
        (raised(TypeError(), ValueError("c")), "ValueError: c: TypeError"),
        (raised(noted(OSError("full")), noted(ValueError("c"))), "ValueError: c: OSError: full"),
    ],
)
def test_causes_in_a_line(error: BaseException, told: str) -> None:
    assert failures.where(error).strip() == told


def test_causes_that_go_in_a_circle() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert failures.where(first).strip() == "ValueError: a: ValueError: b"


@pytest.mark.parametrize("activated", [True, False])
def test_the_command_for_the_traceback_runs_where_the_environment_is_not_activated(
    project: MakeProject, tmp_path: Path, activated: bool
) -> None:
    """Also if another environment's has the same name, and is a link to the same file."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "python").symlink_to(os.path.realpath(sys.executable))
    folder = project(databases=SQLITE, settings="{}['no such key']")
    first = Path(sys.executable).parent if activated else other
    env = {"PATH": f"{first}:/usr/bin:/bin"}
    done = run("mysite.wsgi", cwd=folder, env=env)
    command = find(r"for all of its traceback: (.+)", done.output).group(1)
    called = "python" if activated else shlex.quote(sys.executable)
    assert f" {called} -c " in f" {command}"
    shown = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.stderr.splitlines()[-1] == "KeyError: 'no such key'", shown.stderr
