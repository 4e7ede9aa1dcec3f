"""Projects that cannot be served, or have something in them that will not work as meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from conftest import MakeProject, StartServe
from support.command import EXIT_PLAN, EXIT_PROJECT, run
from support.django_project import PASSWORD, SQLITE, WSGI, mysql_at
from support.servers import Server
from support.text import find


@dataclass(frozen=True)
class Case:
    """A project with something wrong, and what is said about it."""

    code: str
    says: str = ""
    remedy: str = ""
    exit_code: int = EXIT_PROJECT
    args: tuple[str, ...] = ("mysite.wsgi",)
    sources: dict[str, str] = field(default_factory=dict)  # see write_project()
    databases: dict[str, Any] = field(default_factory=lambda: SQLITE)
    settings: str = ""
    files: dict[str, str] = field(default_factory=dict)
    cwd: str = "."
    env: dict[str, str] = field(default_factory=dict)
    output: str = ""


ANCESTOR = """
    from django.db.utils import ConnectionHandler

    original = ConnectionHandler.__getitem__

    def pooled_getitem(self, alias):
        return original(self, alias)

    def apply_patch():
        ConnectionHandler.__getitem__ = pooled_getitem
"""
ASYNC_VIEW = "from django.http import HttpResponse\nasync def slow(r):\n    return HttpResponse()"
ASYNC_CLASS = """
    from django.urls import path
    from django.views import View

    class Slow(View):
        async def get(self, request): ...

    urlpatterns = [path("", Slow.as_view())]
"""
ASYNC_MIDDLEWARE = """
    from django.utils.decorators import async_only_middleware

    @async_only_middleware
    def slow(get_response):
        async def middleware(request):
            return await get_response(request)
        return middleware
"""
DJANGO_WSGI = dedent(WSGI)
MANAGE = {"manage.py": "def main(): ..."}
PROJECTS = {
    "unknown module": Case("PS101", "'mysit'", "use mysite.wsgi", args=("mysit.wsgi",)),
    "unknown submodule": Case("PS101", "'mysite.wsgj'", "use mysite", args=("mysite.wsgj",)),
    "submodule of a module": Case("PS101", "'mysite.wsgi.x'", args=("mysite.wsgi.x",)),
    "two dots": Case("PS101", "'mysite.'", args=("mysite..wsgi",)),
    "one folder too deep": Case(
        "PS101",
        "no module 'mysite'",
        "run it in the folder above, where manage.py is, or add --chdir ..",
        cwd="mysite",
        files=MANAGE,
    ),
    "one folder too deep, with the module alone": Case(
        "PS105",
        "no settings module 'mysite.settings'",
        "run it in the folder above, where manage.py is, or add --chdir ..; the application is "
        "mysite.wsgi",
        args=("wsgi",),
        cwd="mysite",
        files=MANAGE,
    ),
    "one folder too high": Case(
        "PS101",
        "no module 'mysite'",
        "use mysite.wsgi --chdir project1",
        cwd="..",
        files=MANAGE,
    ),
    "manage.py": Case("PS107", "'manage.py'", "use mysite.wsgi", args=("manage.py",)),
    "manage": Case("PS103", "manage", "use mysite.wsgi", args=("manage",), files=MANAGE),
    "path of settings": Case(
        "PS107",
        "'mysite/settings.py' is a file path; settings are named as a module",
        "use --settings mysite.settings",
        args=("mysite.wsgi", "--settings", "mysite/settings.py"),
    ),
    "path of settings in the environment": Case(
        "PS107",
        "'./mysite/settings.py' is a file path",
        "use --settings mysite.settings",
        env={"DJANGO_SETTINGS_MODULE": "./mysite/settings.py"},
    ),
    "no hosts": Case(
        "PS113",
        "DEBUG is off and ALLOWED_HOSTS is empty",
        "list the host names",
        exit_code=0,
        settings="ALLOWED_HOSTS = []",
    ),
    "no hosts, strictly": Case(
        "FAIL  PS113",
        exit_code=EXIT_PLAN,
        args=("mysite.wsgi", "--strict"),
        settings="ALLOWED_HOSTS = []",
    ),
    "not here": Case("PS101", "/mysite)", "--chdir", args=("my.wsgi", "--chdir", "mysite")),
    "import inside fails": Case(
        "PS102",
        "mysite.wsgi exists",
        "import mysite.wsgi",
        sources={"wsgi": "x = 1\nimport no_such_thing"},
        output="wsgi.py\", line 2: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "import inside a package fails": Case(
        "PS102",
        "mysite exists",
        files={"mysite/__init__.py": "\n1/0"},
        output='__init__.py", line 2: ZeroDivisionError',
    ),
    "syntax error in the settings": Case(
        "PS102",
        settings="\nif True print()",
        output="SyntaxError",
    ),
    "error in the settings": Case(
        "PS102",
        settings='import os\nos.environ["NO_SUCH"]',
        output="KeyError: 'NO_SUCH'",
    ),
    "application that ends the process": Case(
        "PS102",
        sources={"wsgi": "raise SystemExit('no licence')"},
        output='wsgi.py", line 1: SystemExit: no licence',
    ),
    "application that leaves at once": Case(
        "PS102",
        "exit code 3",
        "os._exit()",
        sources={"wsgi": "import os\nos._exit(3)"},
    ),
    "application that crashes": Case(
        "PS102",
        "by signal 9",
        "memory",
        sources={"wsgi": "import os\nos.kill(os.getpid(), 9)"},
    ),
    "no such attribute": Case(
        "PS103",
        "no attribute 'app'",
        "use mysite.wsgi:application",
        args=("mysite.wsgi:app",),
    ),
    "no default attribute": Case(
        "PS103",
        "no attribute 'application'",
        "use mysite.wsgi:app",
        sources={"wsgi": WSGI.replace("application =", "app =")},
    ),
    "not callable": Case("PS103", "not callable", args=("mysite.settings:DATABASES",)),
    "not a Django project": Case(
        "PS104",
        "not a Django project",
        "gunicorn itself",
        sources={"wsgi": "def application(environ, start_response): ..."},
    ),
    "no settings named": Case(
        "PS104",
        "names no settings module",
        "--settings MODULE",
        sources={
            "wsgi": """
                from django.core.wsgi import get_wsgi_application
                application = get_wsgi_application()
            """
        },
    ),
    "settings missing": Case(
        "PS105",
        "'mysite.no_settings'",
        "--settings MODULE",
        args=("mysite.wsgi", "--settings", "mysite.no_settings"),
    ),
    "settings missing by environment": Case(
        "PS105",
        "'nosite.settings'",
        "DJANGO_SETTINGS_MODULE",
        env={"DJANGO_SETTINGS_MODULE": "nosite.settings"},
    ),
    "ASGI application": Case(
        "PS106",
        "is an ASGI application",
        "use mysite.wsgi",
        args=("mysite.asgi",),
        files={
            "mysite/asgi.py": "import os\n"
            "from django.core.asgi import get_asgi_application\n"
            "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n"
            "application = get_asgi_application()\n"
        },
    ),
    "ASGI function": Case(
        "PS106",
        "is an ASGI application",
        "wsgi module",
        sources={"wsgi": "async def application(scope, receive, send): ..."},
    ),
    "path": Case("PS107", "file path", "use mysite.wsgi", args=("mysite/wsgi.py",)),
    "path with dots": Case("PS107", "file path", "use mysite.wsgi", args=("./mysite/wsgi.py",)),
    "path and attribute": Case("PS107", "", "mysite.wsgi", args=("mysite/wsgi.py:application",)),
    "async view": Case(
        "PS108",
        "mysite.views.slow is async",
        "plain function",
        exit_code=0,
        sources={"views": ASYNC_VIEW},
    ),
    "async view, strictly": Case(
        "PS108",
        exit_code=EXIT_PLAN,
        args=("mysite.wsgi", "--strict"),
        sources={"views": ASYNC_VIEW},
    ),
    "async class": Case("PS108", "Slow is async", exit_code=0, sources={"urls": ASYNC_CLASS}),
    "async middleware": Case(
        "PS108",
        "mysite.middleware.slow is async",
        exit_code=0,
        settings="MIDDLEWARE = ['mysite.middleware.slow']",
        files={"mysite/middleware.py": ASYNC_MIDDLEWARE},
    ),
    "broken URLs": Case(
        "PS109",
        "mysite.urls fails while it is imported",
        "manage.py check",
        sources={"urls": "import no_such_thing"},
        output="urls.py\", line 1: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "broken URLs, strictly": Case(
        "PS109",
        args=("mysite.wsgi", "--strict"),
        sources={"urls": "import no_such_thing"},
    ),
    "no URLs": Case("PS109", "ROOT_URLCONF", settings="del ROOT_URLCONF"),
    "engine that does not exist": Case(
        "PS102",
        "'no.engine' of the database 'default'",
        "correct DATABASES",
        databases={"default": {"ENGINE": "no.engine", "PASSWORD": PASSWORD}},
    ),
    "no default database": Case(
        "PS102",
        "DATABASES cannot be used",
        databases={"other": SQLITE["default"]},
    ),
    "option of mysqlclient": Case(
        "PS112",
        "OPTIONS of the database 'default': PyMySQL has nothing like mysqlclient's 'named_pipe'",
        "leave HOST empty",
        databases=mysql_at("127.0.0.1", OPTIONS={"named_pipe": True}),
    ),
    "option that nobody knows": Case(
        "PS112",
        "neither PyMySQL nor mysqlclient knows 'sql_mod'",
        "did you mean 'sql_mode'?",
        databases=mysql_at("127.0.0.1", OPTIONS={"sql_mod": PASSWORD}),
    ),
    **{
        f"option spelled {name}": Case(
            "PS112",
            f"neither PyMySQL nor mysqlclient knows {name!r}",
            remedy,
            databases=mysql_at("127.0.0.1", OPTIONS={name: PASSWORD}),
        )
        for name, remedy in {
            "sslmode": "did you mean 'ssl_mode'?",
            "ssl-mode": "did you mean 'ssl_mode'?",
            "sslMode": "did you mean 'ssl_mode'?",
            "reconnect": "→ leave it out",
        }.items()
    },
    **{
        f"key of ssl spelled {name}": Case(
            "PS112",
            f"OPTIONS of the database 'default': 'ssl' has no key {name!r}, which PyMySQL would",
            remedy,
            databases=mysql_at("127.0.0.1", OPTIONS={"ssl": {name: "/x"}}),
        )
        for name, remedy in {
            "sslca": "did you mean 'ca'?",
            "CA": "did you mean 'ca'?",
            "ssl-cert": "did you mean 'cert'?",
            "checkHostname": "did you mean 'check_hostname'?",
            "fake_flag": "→ for TLS without verification use 'ssl': True",
        }.items()
    },
    "mode of TLS that does not exist": Case(
        "PS112",
        "there is no ssl_mode 'required'",
        "use one of DISABLED, PREFERRED, REQUIRED, VERIFY_CA, VERIFY_IDENTITY",
        databases=mysql_at("127.0.0.1", OPTIONS={"ssl_mode": "required"}),
    ),
    "several commands for connections": Case(
        "PS112",
        "'default': init_command has 2 statements, and PyMySQL runs one",
        "join them: SET a = 1, b = 2",
        databases=mysql_at("127.0.0.1", OPTIONS={"init_command": "SET @a = ';'; SET @b = 2;"}),
    ),
    "commands that cannot be joined": Case(
        "PS112",
        "init_command has 3 statements",
        "use one, or multi_statements",
        databases=mysql_at("127.0.0.1", OPTIONS={"init_command": "SET @a = 1; DO 1; DO 2"}),
    ),
    "authority that is not there": Case(
        "PS112",
        "'default': the file /nowhere.pem cannot be read (No such file or directory)",
        "correct OPTIONS['ssl']['ca'] in DATABASES",
        databases=mysql_at("127.0.0.1", OPTIONS={"ssl": {"ca": "/nowhere.pem"}}),
    ),
    "key in PyMySQL's words": Case(
        "PS112",
        "the file /nowhere.key cannot be read",
        "correct OPTIONS['ssl_key']",
        databases=mysql_at("127.0.0.1", OPTIONS={"ssl_cert": "x.pem", "ssl_key": "/nowhere.key"}),
        files={"x.pem": ""},
    ),
    "authority that is none": Case(
        "PS112",
        "no TLS with these files (",
        "correct OPTIONS['ssl']: PEM files",
        databases=mysql_at("127.0.0.1", OPTIONS={"ssl": {"ca": "ca.pem"}}),
        files={"ca.pem": "no certificate"},
    ),
    "port that is no number": Case(
        "PS110",
        "PORT of the database 'default' is 'mysql', not a number",
        "usually 3306",
        databases=mysql_at("127.0.0.1", "mysql"),  # type: ignore[arg-type]
    ),
    "age that is a text": Case(
        "PS110",
        "CONN_MAX_AGE of the database 'default' is '60', not a number",
        "use int(...)",
        databases=mysql_at("127.0.0.1", CONN_MAX_AGE="60"),
    ),
    "age that is a timedelta": Case(
        "PS110",
        "CONN_MAX_AGE of the database 'default' is datetime.timedelta(",
        settings="import datetime\n"
        "DATABASES['default']['CONN_MAX_AGE'] = datetime.timedelta(minutes=1)",
        databases=mysql_at("127.0.0.1"),
    ),
    "options that are no dict": Case(
        "PS110",
        "OPTIONS of the database 'default' is of type str, not a dict",
        databases=mysql_at("127.0.0.1", OPTIONS=PASSWORD),
    ),
    "host that is None": Case(
        "PS110",
        "HOST of the database 'default' is of type NoneType, not text",
        databases=mysql_at(None),  # type: ignore[arg-type]
    ),
    "password that is a number": Case(
        "PS110",
        "PASSWORD of the database 'default' is of type int, not text",
        "quotes around PASSWORD",
        databases=mysql_at("127.0.0.1", PASSWORD=1234),
    ),
    "password that cannot be sent": Case(
        "PS102",
        "not latin-1",
        databases=mysql_at("127.0.0.1", PASSWORD="€" + PASSWORD),
    ),
    "unknown alias": Case(
        "PS205",
        "'nosuch'",
        "use one of: default",
        exit_code=EXIT_PLAN,
        args=("mysite.wsgi", "--pool", "nosuch:4"),
    ),
    "mysqlclient": Case(
        "PS502",
        "mysqlclient",
        "remove the import of MySQLdb from the configuration file, or from what runs before",
        files={"MySQLdb/__init__.py": "", "gunicorn.conf.py": "import MySQLdb"},
    ),
    "the ancestor's patch": Case(
        "PS503",
        "db_pooling has replaced Django's ConnectionHandler.__getitem__",
        "remove the call",
        sources={"wsgi": "import db_pooling\ndb_pooling.apply_patch()\n" + DJANGO_WSGI},
        files={"db_pooling.py": ANCESTOR},
    ),
}


@pytest.mark.parametrize("case", PROJECTS.values(), ids=PROJECTS.keys())
def test_project(project: MakeProject, case: Case) -> None:
    folder = project(databases=case.databases, settings=case.settings, **case.sources)
    for name, source in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dedent(source))
    done = run(*case.args, "--check", cwd=folder / case.cwd, env=case.env)
    done.assert_one_problem(case.code, case.exit_code, case.says, case.remedy)
    assert case.output in done.output
    assert PASSWORD not in done.output
    assert ("Ready. Nothing was started." in done.output) == (done.code == 0)


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


@pytest.mark.parametrize("when", ["before", "after"])
def test_ancestor_applied_in_settings(project: MakeProject, when: str) -> None:
    folder = project(databases=SQLITE, settings="import db_pooling\ndb_pooling.apply_patch()")
    (folder / "db_pooling.py").write_text(dedent(ANCESTOR))
    done = run("mysite.wsgi", *(["--check"] if when == "before" else ["--preload"]), cwd=folder)
    done.assert_one_problem("PS503", EXIT_PROJECT, "db_pooling", "remove the call")


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
