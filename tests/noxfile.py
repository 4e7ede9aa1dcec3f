"""A representative part of the tests, over the versions that are supported:

    nox -f tests/noxfile.py [--tags ci] [-- pytest arguments]

Not all products of them, 5 × 3 × 2 × 2: each pair of two versions occurs. What is left out:

* Django 6 on Python 3.11, and Django 5.2 on 3.15, which they do not run on;
* Django 6.0 on Python 3.14 and later, and there the lowest PyMySQL: the lowest gevent, which comes
  with it, has no wheels for them;
* what lies between the lowest and the newest gunicorn and PyMySQL;
* MySQL, and tests that take long: they look at servers, not at versions of packages.

The lowest versions are those of pyproject.toml. Packages that have no column here are the lowest
together with PyMySQL, else the newest.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import nox

ROOT = Path(__file__).parents[1]

nox.options.envdir = str(ROOT / ".venv-matrix")
nox.options.error_on_missing_interpreters = False

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TEST_GROUP = nox.project.dependency_groups(PYPROJECT, "test")
LOWEST = dict(re.findall(r"^(\w+).*>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE))

TESTS = [
    *("test_compat.py", "test_cli.py", "test_pooling.py", "test_tls.py"),
    *(f"backend/test_{name}.py" for name in ("aliases", "greenlets", "patch", "registry")),
    *(f"backend/test_{name}.py" for name in ("unavailable", "wrappers")),
    *(f"driver/test_{name}.py" for name in ("connection", "interrupted", "left_behind")),
    "serve/test_serving.py::test_a_hundred_clients_never_exceed_the_cap_and_leave_the_pool",
    "serve/test_serving.py::test_term_lets_requests_in_flight_and_queued_finish",
    "serve/test_serving.py::test_hup_under_load_fails_no_request_and_leaks_nothing",
]


class Row(NamedTuple):
    python: str
    django: str
    gunicorn: str
    pymysql: str
    ci: bool = False


MATRIX = [
    Row("3.11", "lowest", "lowest", "lowest", ci=True),
    Row("3.11", "5.2", "newest", "newest"),
    Row("3.12", "5.2", "newest", "lowest"),
    Row("3.12", "6.0", "lowest", "newest"),
    Row("3.12", "6.1", "newest", "lowest", ci=True),
    Row("3.13", "5.2", "lowest", "newest"),
    Row("3.13", "6.0", "newest", "lowest"),
    Row("3.13", "6.1", "lowest", "newest"),
    Row("3.14", "5.2", "lowest", "newest"),
    Row("3.14", "6.1", "newest", "newest", ci=True),
    Row("3.15", "6.1", "newest", "newest", ci=True),
]


def requirements(row: Row) -> list[str]:
    """What pip is to install, beside the package itself."""
    chosen = {"gunicorn": row.gunicorn, "pymysql": row.pymysql}
    chosen |= dict.fromkeys(("click", "gevent", "greenlet"), row.pymysql)
    pins = [f"{name}=={LOWEST[name]}" for name, which in chosen.items() if which == "lowest"]
    django = LOWEST["django"] if row.django == "lowest" else f"{row.django}.*"
    return [f"django=={django}", *pins]


def add(row: Row) -> None:
    name = f"python{row.python}-django{row.django}-gunicorn_{row.gunicorn}-pymysql_{row.pymysql}"

    @nox.session(name=name, python=row.python, tags=["ci"] if row.ci else [])
    def tests(session: nox.Session) -> None:
        """The tests on one row."""
        session.chdir(ROOT)
        session.install("-e", ".[metrics]", *TEST_GROUP, *requirements(row))
        command = ["python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
        tests = [f"tests/{test}" for test in TESTS]
        session.run(*command, *session.posargs, *tests, env={"WITHOUT_MYSQL": "1"})


for row in MATRIX:
    add(row)
