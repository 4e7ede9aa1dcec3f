"""Whatever is wrong: a code, one line that says what, one line that says what to do."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pymysql
import pytest

from conftest import MakeProject, StartServe
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.options import OPTIONS
from pooled_serve.preflight.runner import connect_problem
from support.command import Here, run
from support.django_project import WSGI
from support.ports import free_port
from support.processes import wait_until
from support.serve import ServerExited
from support.servers import ROOT, Database, Server

PASSWORD = "hunter2-and-more"
SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}

EXIT_USAGE, EXIT_PROJECT, EXIT_PLAN, EXIT_DATABASE = 2, 4, 5, 6


def mysql_at(host: str, port: int = 3306, **settings: object) -> dict[str, Any]:
    return {
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "HOST": host,
            "PORT": port,
            "NAME": "app",
            "USER": "app",
            "PASSWORD": PASSWORD,
            **settings,
        }
    }


# --- The command line, the environment, the configuration file ---------------------------------


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
    "unknown short option": (["a", "-X"], "PS402", "-X", "--help"),
    "option without its value": (["a", "--pool-size"], "PS401", "--pool-size", "--help"),
    "two applications": (["a", "b"], "PS401", "b", "--help"),
    "gunicorn's number": (["a", "-w", "many"], "PS401", "--workers: invalid int value", "--help"),
    "gunicorn's check": (["a", "-w", "-1"], "PS401", "--workers: ", "--help"),
    "address": (["a", "-b", "127.0.0.1:http"], "PS401", "'http'", "--help"),
    "environment setting": (["a", "-e", "DEBUG"], "PS401", "'DEBUG'", "--help"),
    "folder": (["a", "--chdir", "/nowhere"], "PS401", "--chdir: ", "--help"),
    "user": (["a", "--user", "no-such-user"], "PS401", "--user: ", "--help"),
    "no such file": (["a", "-c", "no.py"], "PS403", "no.py", "-c FILE"),
    "no such module": (["a", "-c", "python:no.conf"], "PS403", "python:no.conf", "-c FILE"),
    **{
        f"worker class {name}": (["a", "-k", name], "PS404", repr(name), "remove -k")
        for name in ("sync", "gthread", "tornado", "asgi", "myproject.workers.MyWorker")
    },
}


@pytest.mark.parametrize(("args", "code", "says", "remedy"), USAGE.values(), ids=USAGE.keys())
def test_usage(here: Here, args: list[str], code: str, says: str, remedy: str) -> None:
    here.run(*args).assert_one_problem(code, EXIT_USAGE, says, remedy)


BAD_VALUES = {
    "pool_size": ("0", "-1", "4.5", "many", ""),
    "max_outstanding": ("0", "-1", "none", "1e3"),
    "pool_timeout": ("0", "-1", "soon", "inf", "nan"),
    "conn_max_age": ("0", "-0.5", "never", "inf", "nan"),
    "pool_mode": ("session", "statement"),
    "pool_overload": ("never", "0"),
    "pool_reset": ("never",),
    "pool_aliases": ("replica", "replica:0", "replica:x", ":4", "replica:4:0", "a:1:2:3"),
    "pool_replicas": ("0", "two"),
    "pool_leak_threshold": ("0", "-1", "long"),
    "pool_status": ("9100", "here", "localhost:", "localhost:x", "localhost:0", "unix:", ":99999"),
    "pool_strict": ("maybe",),
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_bad_values(
    here: Here, option: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in BAD_VALUES[option.setting]:
        said = here.run("a", f"{option.flag}={value}")
        said.assert_one_problem("PS401", EXIT_USAGE, option.flag)

        monkeypatch.setenv("GUNICORN_CMD_ARGS", f"{option.flag}='{value}'")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, f"{option.flag}: ")
        if not option.repeats:  # which gunicorn's parser lets pass
            said.assert_one_problem("PS401", EXIT_USAGE, "GUNICORN_CMD_ARGS: ")
        monkeypatch.delenv("GUNICORN_CMD_ARGS")

        if value:  # an empty variable is as good as none
            monkeypatch.setenv(option.variable, value)
            here.run("a").assert_one_problem("PS401", EXIT_USAGE, f"{option.variable}: ")
            monkeypatch.delenv(option.variable)

        here.conf(f"{option.setting} = {value!r}")
        said = here.run("a")
        said.assert_one_problem("PS401", EXIT_USAGE, "gunicorn.conf.py: ")
        said.assert_one_problem("PS401", EXIT_USAGE, option.flag)
        here.conf("")


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("pool_size = 0", "PS401", "--pool-size: must be a whole number above 0, not 0"),
        ("pool_size = True", "PS401", "not True"),
        ("pool_timeout = -1.5", "PS401", "--pool-timeout: must be a number of seconds above 0"),
        ("pool_aliases = 4", "PS401", "--pool: must be ALIAS:SIZE"),
        ("workers = 'x'", "PS401", "--workers: "),
        ("wsgi_app = 4", "PS401", "wsgi_app: "),
        ("worker_class = 'sync'", "PS404", "'sync'"),
    ],
)
def test_bad_values_of_other_types_in_the_file(
    here: Here, source: str, code: str, says: str
) -> None:
    here.conf(source)
    here.run("a").assert_one_problem(code, EXIT_USAGE, says)


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


@pytest.mark.parametrize(
    ("arguments", "code", "says", "remedy"),
    [
        ("--pool-sise 4", "PS402", "GUNICORN_CMD_ARGS: there is no option --pool-sise", "-size?"),
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


# --- The project -------------------------------------------------------------------------------


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

PROJECTS = {
    "unknown module": Case("PS101", "'mysit'", "use mysite.wsgi", args=("mysit.wsgi",)),
    "unknown submodule": Case("PS101", "'mysite.wsgj'", "use mysite", args=("mysite.wsgj",)),
    "submodule of a module": Case("PS101", "'mysite.wsgi.x'", args=("mysite.wsgi.x",)),
    "two dots": Case("PS101", "'mysite.'", args=("mysite..wsgi",)),
    "not here": Case("PS101", "/mysite)", "--chdir", args=("my.wsgi", "--chdir", "mysite")),
    "import inside fails": Case(
        "PS102",
        "mysite.wsgi exists",
        "manage.py check",
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
        exit_code=0,
        sources={"urls": "import no_such_thing"},
        output="urls.py\", line 1: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "no URLs": Case("PS109", "ROOT_URLCONF", exit_code=0, settings="del ROOT_URLCONF"),
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
        "PS102",
        "PyMySQL cannot use the settings of the database 'default'",
        databases=mysql_at("127.0.0.1", OPTIONS={"ssl_mode": "REQUIRED"}),
        output="unexpected keyword argument 'ssl_mode'",
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
        "remove the import",
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
    done = run(*case.args, "--check", cwd=folder, env=case.env)
    done.assert_one_problem(case.code, case.exit_code, case.says, case.remedy)
    assert case.output in done.output
    assert PASSWORD not in done.output
    assert ("Ready. Nothing was started." in done.output) == (done.code == 0)


def test_values_that_count_for_something_else(project: MakeProject, mariadb: Server) -> None:
    settings = mariadb.create_database().django(CONN_MAX_AGE=True, ATOMIC_REQUESTS="False")
    folder = project(databases={"default": settings})
    done = run("mysite.wsgi", "--check", cwd=folder)
    assert "CONN_MAX_AGE is True, which counts as 1s" in done.output
    assert "ATOMIC_REQUESTS is 'False', a text, which counts as True" in done.output
    assert done.output.count("PS110 default") == 2


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


# --- The database server -----------------------------------------------------------------------


def refused_port() -> dict[str, Any]:
    return mysql_at("127.0.0.1", free_port())


SERVERS = {
    "refused": (refused_port, "PS301", "does not accept connections (Connection refused)"),
    "no socket": (lambda: mysql_at("/nowhere/mysql.sock"), "PS301", "No such file"),
    "unknown host": (lambda: mysql_at("no-such-host.invalid"), "PS302", "the host of no-such-host"),
    "password in the host": (
        lambda: mysql_at(f"app:{PASSWORD}@no-such-host.invalid"),
        "PS302",
        "the host of no-such-host.invalid:3306 is unknown",
    ),
}


@pytest.mark.parametrize(("databases", "code", "says"), SERVERS.values(), ids=SERVERS.keys())
def test_unreachable_server(
    project: MakeProject, databases: Callable[[], dict[str, Any]], code: str, says: str
) -> None:
    folder = project(databases=databases())
    # A name server that does not answer must not take longer than the preflight waits.
    done = run("mysite.wsgi", "--check", cwd=folder, env={"RES_OPTIONS": "timeout:1 attempts:1"})
    done.assert_one_problem(code, EXIT_DATABASE, says, "DATABASES")
    assert PASSWORD not in done.output
    assert "Ready" not in done.output


def test_unreachable_server_is_no_reason_not_to_start(
    project: MakeProject, serve: StartServe
) -> None:
    folder = project(
        "from django.http import HttpResponse\ndef hello(r):\n    return HttpResponse('hello')",
        databases=refused_port(),
    )
    done = run("mysite.wsgi", "--strict", "-b", "127.0.0.1:0", cwd=folder)
    done.assert_one_problem("PS301", EXIT_DATABASE)
    server = serve(folder)
    assert server.get("/hello").text == "hello"
    assert "WARN  PS301" in server.log
    assert server.stop() == 0


def check(project: MakeProject, database: Database, *args: str, **settings: object) -> Any:
    done = run(
        "mysite.wsgi",
        "--check",
        *args,
        cwd=project(databases={"default": database.django(**settings)}),
    )
    assert database.password not in done.output
    return done


def test_wrong_password(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    done = check(project, database, PASSWORD=PASSWORD)
    done.assert_one_problem("PS303", EXIT_DATABASE, "Access denied", "USER and PASSWORD")
    assert PASSWORD not in done.output


@pytest.mark.parametrize("name", ["nosuch", "mysql"])
def test_wrong_database(project: MakeProject, mariadb: Server, name: str) -> None:
    # 1044 for both: who may see nothing is not told what is missing
    done = check(project, mariadb.create_database(), NAME=name)
    done.assert_one_problem("PS304", EXIT_DATABASE, name, "GRANT")


def test_missing_database(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    mariadb.admin.query(f"DROP DATABASE {database.name}")
    done = check(project, database)
    done.assert_one_problem("PS304", EXIT_DATABASE, "Unknown database", "create the database")


def test_full_server(project: MakeProject, start_mariadb: Callable[..., Server]) -> None:
    server = start_mariadb("--max-connections=10")
    database = server.create_database()
    server.admin.close()

    def another() -> pymysql.Connection | None:
        with suppress(pymysql.OperationalError):  # the administrator's is still ending
            return pymysql.connect(**database.connect_args(), ssl_disabled=True)
        return None

    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(closing(wait_until(another)))
        done = check(project, database)
    done.assert_one_problem("PS305", EXIT_DATABASE, "Too many connections", "SHOW PROCESSLIST")


def test_full_user(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database(max_user_connections=1)
    with pymysql.connect(**database.connect_args(), ssl_disabled=True):
        done = check(project, database)
    done.assert_one_problem("PS305", EXIT_DATABASE, "max_user_connections", "raise the limit")


def hide_cryptography(folder: Path) -> str:
    (folder / "hidden" / "cryptography").mkdir(parents=True)
    shim = folder / "hidden" / "cryptography" / "__init__.py"
    shim.write_text("raise ImportError('hidden by a test')")
    return str(folder / "hidden")


def test_login_that_needs_cryptography(project: MakeProject, mysql: Server, tmp_path: Path) -> None:
    database = mysql.create_database()  # a login that the server has not cached
    folder = project(databases={"default": database.django(OPTIONS={"ssl_disabled": True})})
    path = os.pathsep.join([hide_cryptography(tmp_path), str(ROOT)])
    done = run("mysite.wsgi", "--check", cwd=folder, env={"PYTHONPATH": path})
    done.assert_one_problem(
        "PS306", EXIT_DATABASE, "cryptography", "'pooled-serve[rsa]', or use TLS"
    )
    assert database.password not in done.output


def test_login_that_needs_cryptography_in_pymysqls_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: object, sock: object = None) -> None:
        raise RuntimeError(
            "'cryptography' package is required for sha256_password or caching_sha2_password "
            "auth methods"
        )

    monkeypatch.setattr(pymysql.connections.Connection, "connect", connect)
    with pytest.raises(pymysql.OperationalError) as raised:
        MySQLConnection(host="db", password=PASSWORD)
    problem = connect_problem(raised.value, "db:3306")
    assert problem.code == "PS306"
    assert "pooled-serve[rsa]" in problem.hint


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (pymysql.OperationalError(1698, "Access denied"), "PS303", "Access denied"),
        (pymysql.OperationalError(1203, "User x has more"), "PS305", "User x has more"),
        (pymysql.OperationalError(2026, "SSL connection error"), "PS309", "SSL"),
        (pymysql.OperationalError(2003, "Can't connect"), "PS301", "Can't connect"),
        (pymysql.OperationalError(2003, "Can't connect (timed out)"), "PS307", "no answer within"),
        (pymysql.OperationalError(2013, "Lost connection (timed out)"), "PS307", "no answer"),
        (
            pymysql.OperationalError(1130, "Host\nnot allowed"),
            "PS308",
            "Host not allowed (error 1130",
        ),
        (
            pymysql.OperationalError(2006, "gone (reset by peer)"),
            "PS308",
            "hung up during the login",
        ),
        (ValueError("unheard of"), "PS308", "unheard of"),
    ],
)
def test_other_errors_of_servers(error: Exception, code: str, says: str) -> None:
    problem = connect_problem(error, "db:3306")
    assert problem.code == code
    assert says in problem.message
    assert "db:3306" in problem.message
    assert "\n" not in problem.message


# --- The plan ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_tempered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that hangs up soon and allows few."""
    from support import servers

    options = ("--wait-timeout=30", "--max-connections=20")
    with servers.mariadb(tmp_path_factory.mktemp("short"), *options) as server:
        yield server


PLANS: dict[str, tuple[list[str], dict[str, object], str, str, str]] = {
    "age by option": (
        ["--conn-max-age", "30"],
        {},
        "PS203",
        "connections live 30s but MariaDB hangs up after wait_timeout=30s",
        "use --conn-max-age 24, or on the server: SET GLOBAL wait_timeout = 38",
    ),
    "age by settings": ([], {"CONN_MAX_AGE": 600}, "PS203", "live 600s", "--conn-max-age 24"),
    "cap below size": (
        ["--pool-size", "8", "--max-outstanding", "6"],
        {},
        "PS204",
        "max-outstanding 6 is smaller than pool-size 8",
        "use --pool-size 6, or --max-outstanding 8",
    ),
    "cap below size of one": (
        ["--pool", "default:8:6"],
        {},
        "PS204",
        "max-outstanding 6 is smaller than pool-size 8",
        "",
    ),
    "too many": (
        ["-w", "2", "--max-outstanding", "11"],
        {},
        "PS201",
        "2 workers × 11 connections = 22, the server allows 20 (",
        "use --max-outstanding ",
    ),
    "too many hosts": (
        ["--max-outstanding", "4", "--replicas", "6"],
        {},
        "PS201",
        "6 repl",
        "use ",
    ),
    "too many workers": (["-w", "21"], {}, "PS201", "21 workers × 1", "raise max_connections"),
    "no cap": (
        ["--max-outstanding", "unlimited"],
        {},
        "PS201",
        "1 worker × 1000 connections (no cap: one per greenlet, --worker-connections)",
        "--worker-connections ",
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_plan(project: MakeProject, short_tempered: Server, plan: Any) -> None:
    args, settings, code, says, remedy = plan
    database = short_tempered.create_database()
    done = check(project, database, *args, **settings)
    done.assert_one_problem(code, EXIT_PLAN, says, remedy)


def test_defaults_yield(project: MakeProject, short_tempered: Server) -> None:
    done = check(project, short_tempered.create_database(), "-w", "2")
    assert done.code == 0, done.output
    assert "age limit lowered from 60s to 24s: MariaDB hangs up after" in done.output
    assert "cap lowered from 12 to 10 to fit max_connections=20" in done.output


def test_limit_of_the_user(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database(max_user_connections=6)
    done = check(project, database)
    assert "cap lowered from 12 to 6 to fit max_user_connections=6" in done.output
    done = check(project, database, "--max-outstanding", "7")
    done.assert_one_problem("PS201", EXIT_PLAN, "= 7, the server allows 6", "raise max_user_conn")


# --- At run time -------------------------------------------------------------------------------


def test_port_in_use(project: MakeProject, serve: StartServe) -> None:
    folder = project(databases=SQLITE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"127.0.0.1:{free_port()}"
        with pytest.raises(ServerExited) as ended:
            serve(folder, "-b", free, address=listener.getsockname())
        port = listener.getsockname()[1]
    assert ended.value.returncode == 1
    name = Path("/proc/self/comm").read_text().strip()
    said = f"PS501 127.0.0.1:{port} is in use by process {os.getpid()} ({name})"
    assert said in ended.value.log
    assert ended.value.log.count("PS501") == 1  # the other one was to be had
    assert "→ stop that process, or listen elsewhere with -b HOST:PORT" in ended.value.log


def test_no_password_is_seen(project: MakeProject, serve: StartServe, mariadb: Server) -> None:
    database = mariadb.create_database()
    folder = project(
        """
        from django.db import connection
        from django.http import HttpResponse

        def ask(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            return HttpResponse("done")
        """,
        databases={"default": database.django()},
        settings="""
            LOGGING = {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"console": {"class": "logging.StreamHandler"}},
                "root": {"handlers": ["console"], "level": "DEBUG"},
            }
        """,
    )
    server = serve(folder, "--log-level", "debug", "-k", "gevent")
    assert server.get("/ask").text == "done"
    mariadb.admin.query(f"DROP USER {database.user}@127.0.0.1, {database.user}@localhost")
    for row in mariadb.admin.processlist(database.user):
        mariadb.admin.kill(row["Id"])
    wait_until(lambda: not mariadb.admin.processlist(database.user))
    assert server.get("/ask").status == 500
    for pid in {server.master_pid, *server.worker_pids()}:
        assert database.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    server.stop()
    assert "Access denied" in server.log
    assert database.password not in server.log


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


def test_a_variable_that_is_nearly_an_option_is_worth_a_warning(project: MakeProject) -> None:
    folder = project()
    env = {"POOLED_SERVE_POOLSIZE": "3", "POOLED_SERVE_SERVICE_HOST": "10.0.0.1"}
    done = run("mysite.wsgi", "--check", cwd=folder, env=env)
    done.assert_one_problem(
        "PS402", 0, "no variable POOLED_SERVE_POOLSIZE", "did you mean POOLED_SERVE_POOL_SIZE?"
    )
    assert run("mysite.wsgi", "--check", "--strict", cwd=folder, env=env).code == EXIT_PLAN


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


def test_numbers_that_gunicorn_answers_with_a_traceback(project: MakeProject) -> None:
    folder = project()
    for args, env, says in (
        (["-w", "0"], {}, "--workers: must be a whole number above 0"),
        (["-b", "127.0.0.1:70000"], {}, "--bind: there is no port 70000"),
        ([], {"WEB_CONCURRENCY": "auto"}, "WEB_CONCURRENCY: must be a whole number, not 'auto'"),
    ):
        done = run("mysite.wsgi", "--check", *args, cwd=folder, env=env)
        done.assert_one_problem("PS401", EXIT_USAGE, says)
