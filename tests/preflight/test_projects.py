"""Projects of all kinds that are served, and what the preflight notes about them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import MakeProject, StartServe
from support.command import EXIT_PROJECT, run
from support.django_project import SQLITE, WSGI
from support.servers import Server
from support.text import find


def test_a_project_that_imports_mysqldb_gets_pymysql(project: MakeProject) -> None:
    folder = project(
        databases=SQLITE, settings="import MySQLdb\nassert MySQLdb.__name__ == 'pymysql'"
    )
    (folder / "MySQLdb.py").write_text("raise ImportError('this is mysqlclient')")
    assert run("mysite.wsgi", "--check", cwd=folder).code == 0


def test_values_that_count_for_something_else(project: MakeProject, mariadb: Server) -> None:
    settings = mariadb.create_database().django(CONN_MAX_AGE=True, ATOMIC_REQUESTS="False")
    folder = project(databases={"default": settings})
    done = run("mysite.wsgi", "--check", cwd=folder)
    assert "CONN_MAX_AGE is True, which counts as 1s" in done.output
    assert "ATOMIC_REQUESTS is 'False', a string, which counts as True" in done.output
    assert done.output.count("PS110 default") == 2


@pytest.mark.parametrize("name", ["mysite/wsgi.py", "mysite", "mysite/wsgi.py:application"])
@pytest.mark.parametrize("here", [True, False])
def test_absolute_path(project: MakeProject, tmp_path: Path, name: str, here: bool) -> None:
    folder = project(databases=SQLITE)
    (folder / "manage.py").touch()
    done = run(f"{folder}/{name}", "--check", cwd=folder if here else tmp_path)
    remedy = "use mysite.wsgi" + ("" if here else f" --chdir {folder}")
    done.assert_one_problem("PS107", EXIT_PROJECT, "is a file path", remedy)
    assert done.output.rstrip().endswith(remedy)
    assert run(*remedy.split()[1:], "--check", cwd=tmp_path if not here else folder).code == 0


def test_without_hosts_a_debugging_site_answers(project: MakeProject) -> None:
    folder = project(databases=SQLITE, settings="DEBUG = True\nALLOWED_HOSTS = []")
    assert "PS113" not in run("mysite.wsgi", "--check", cwd=folder).output


def test_migrations_that_are_not_applied(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    apps = "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']"
    folder = project(databases={"default": database.django()}, settings=apps)
    done = run("mysite.wsgi", "--check", "--strict", cwd=folder)
    assert done.code == 0, done.output
    found = find(
        r"note  default +(\d+) migrations are not applied, the first is (\S+): run", done.output
    )
    assert int(found.group(1)) > 10
    assert found.group(2) in ("auth.0001_initial", "contenttypes.0001_initial")
    tables = f"SELECT 1 FROM information_schema.tables WHERE table_schema = '{database.name}'"
    assert mariadb.admin.query(tables) == []  # it only looks


@pytest.mark.parametrize("age", [0, -1, 1.5, float("inf"), None, 60])
def test_ages_that_django_takes(project: MakeProject, mariadb: Server, age: float | None) -> None:
    settings = mariadb.create_database().django()
    written = "float('inf')" if age == float("inf") else repr(age)
    folder = project(
        databases={"default": settings},
        settings=f"DATABASES['default']['CONN_MAX_AGE'] = {written}",
    )
    done = run("mysite.wsgi", "--check", cwd=folder)
    assert "Traceback" not in done.output
    assert "PS110" not in done.output


def test_the_calls_of_pooling_do_not_count_under_the_command(project: MakeProject) -> None:
    calls = """
        from pooled_serve import pooling
        pooling.set_pool_size(50, max_outstanding=100)
        pooling.apply_patch()
    """
    folder = project(wsgi=dedent(WSGI) + dedent(calls))
    done = run("mysite.wsgi", "--check", "--pool-size", "3", cwd=folder)
    done.assert_one_problem("PS207", 0, "pooled_serve.pooling", "delete the calls")
    assert re.search(r"/\w+ +3 +9 ", done.stdout), done.stdout


# --- Without MySQL -----------------------------------------------------------------------------


def test_sqlite_is_left_alone(project: MakeProject, serve: StartServe) -> None:
    folder = project(
        """
        from django.db import connection
        from django.http import HttpResponse

        def ask(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT sqlite_version()")
                return HttpResponse(cursor.fetchone()[0])
        """,
        databases=SQLITE,
    )
    server = serve(folder, "--strict")
    assert server.get("/ask").text.startswith("3.")
    assert "SQLite is not pooled" in server.log


def test_no_databases(project: MakeProject, serve: StartServe) -> None:
    folder = project(
        "from django.http import HttpResponse\ndef hello(r):\n    return HttpResponse('hello')",
        databases={},
    )
    server = serve(folder, "--strict")
    assert server.get("/hello").text == "hello"
    assert "no database: nothing to pool" in server.log
