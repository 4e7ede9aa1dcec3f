"""Projects that cannot be served, or have something in them that will not work as meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent
from typing import Any

import pytest

from conftest import MakeProject
from support.command import EXIT_PLAN, EXIT_PROJECT, EXIT_USAGE, run
from support.django_project import PASSWORD, SQLITE, WSGI, mysql_at


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
    **{
        f"command of {words[0]}": Case(
            "PS401",
            "there is no command 'runserver'",
            f"→ use pooled-serve {meant}",
            exit_code=EXIT_USAGE,
            args=words,
            files=MANAGE,
        )
        for words, meant in (
            (("manage.py", "runserver"), "mysite.wsgi"),
            (("runserver", "manage.py"), "mysite.wsgi"),
            (("mysite/wsgi.py:application", "runserver"), "mysite.wsgi:application"),
        )
    },
    "no application": Case(
        "PS405",
        "no application was given",
        "use pooled-serve mysite.wsgi, or set wsgi_app",
        exit_code=EXIT_USAGE,
        args=(),
        files=MANAGE,
    ),
    "slash after a module": Case(
        "PS107", "'mysite.wsgi/'", "use mysite.wsgi", args=("mysite.wsgi/",)
    ),
    "dot and slash before a module": Case(
        "PS107", "'./mysite.wsgi'", "use mysite.wsgi", args=("./mysite.wsgi",)
    ),
    "settings misspelt": Case(
        "PS105",
        "no settings module 'mysite.settinx'",
        "did you mean mysite.settings?",
        args=("mysite.wsgi", "--settings", "mysite.settinx"),
    ),
    "settings in a package misspelt": Case(
        "PS105",
        "no settings module 'mysite.config.prd'",
        "did you mean mysite.config.prod?",
        args=("mysite.wsgi", "--settings", "mysite.config.prd"),
        files={"mysite/config/__init__.py": "", "mysite/config/prod.py": ""},
    ),
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
    **{
        f"{setting} with {value}": Case(
            "PS102",
            "mysite.wsgi exists",
            f"→ correct {setting} of mysite.settings, or install what it names; for all",
            settings=f"INSTALLED_APPS = ['notes']\n{settings}",
            files={
                "notes/__init__.py": "",
                "notes/models.py": "from django.db import models\n\n"
                "class Note(models.Model):\n    text = models.TextField()\n",
            },
            output=f"\n  {setting} of mysite.settings, '{value}': {error}",
        )
        for setting, value, settings, error in (
            (
                "ENGINE in DATABASES",
                "django.db.backends.oracel",
                "DATABASES['default']['ENGINE'] = 'django.db.backends.oracel'",
                "django.core.exceptions.ImproperlyConfigured: 'django.db.backends.oracel' isn't an "
                "available database backend or couldn't be imported. To use one",
            ),
            (
                "INSTALLED_APPS",
                "no_framework",
                "INSTALLED_APPS += ['no_framework']",
                "ModuleNotFoundError: No module named 'no_framework'\n",
            ),
            (
                "MIDDLEWARE",
                "no_headers.Middleware",
                "MIDDLEWARE = ['no_headers.Middleware']",
                "ModuleNotFoundError: No module named 'no_headers'\n",
            ),
        )
    },
    "app of the project's that fails": Case(
        "PS102",
        "mysite.wsgi exists",
        "→ install the package that has no_such_thing where pooled-serve is (",
        settings="INSTALLED_APPS = ['notes.apps.NotesConfig']",
        files={"notes/__init__.py": "", "notes/apps.py": "\nimport no_such_thing"},
        output="notes/apps.py\", line 2: ModuleNotFoundError: No module named 'no_such_thing'\n",
    ),
    "error of several lines": Case(
        "PS102",
        "mysite.wsgi exists",
        settings="\nraise ValueError('one of:\\n  a,\\n  b')",
        output="ValueError: one of: a, b\n",
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
        "correct the error; for all of its traceback",
        sources={"urls": "import no_such_thing"},
        output="urls.py\", line 1: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    "broken URLs, strictly": Case(
        "PS109",
        args=("mysite.wsgi", "--strict"),
        sources={"urls": "import no_such_thing"},
    ),
    "no URLs": Case("PS109", "has no ROOT_URLCONF", "'mysite.urls'", settings="del ROOT_URLCONF"),
    "engine that does not exist": Case(
        "PS102",
        "'no.engine' of the database 'default'",
        "correct DATABASES",
        databases={"default": {"ENGINE": "no.engine", "PASSWORD": PASSWORD}},
    ),
    "no default database": Case(
        "PS110",
        "DATABASES of mysite.settings has no 'default', which Django requires, only 'other'",
        "→ rename 'other' to 'default'",
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
    "port that would be another": Case(
        "PS110",
        "PORT of the database 'default' is '73926', not a number from 1 to 65535",
        "usually 3306",
        databases=mysql_at("127.0.0.1", "73926"),  # type: ignore[arg-type]
    ),
    "port below all": Case(
        "PS110",
        "PORT of the database 'default' is -1, not a number from 1 to 65535",
        databases=mysql_at("127.0.0.1", -1),
    ),
    **{
        f"{name} that is {value!r}": Case(
            "PS110",
            f"OPTIONS['{name}'] of the database 'default' is {says}",
            remedy,
            databases=mysql_at("127.0.0.1", OPTIONS={name: value}),
        )
        for name, value, says, remedy in (
            ("connect_timeout", "5", "'5', not a number", "int(...) around"),
            ("read_timeout", PASSWORD, "of type str, not a number", "int(...) around"),
            ("write_timeout", -1, "-1, not from 0 to 31536000", "in between"),
            ("port", "3306", "'3306', not a number", "without quotes"),
            ("port", 73926, "73926, not from 0 to 65535", "in between"),
            ("max_allowed_packet", "64", "'64', not a number", "without quotes"),
            ("local_infile", "False", "'False', not True or False", "without quotes"),
            ("cursorclass", "DictCursor", "of type str, not a class", "without quotes"),
        )
    },
    **{
        f"rows that are dicts, {name}": Case(
            "PS110",
            f"OPTIONS['cursorclass'] of the database 'default' is <class '{name}'>, not one with "
            "rows that are tuples",
            "use none, or another class",
            settings=f"{before}from {module} import {name.rpartition('.')[2]} as Rows\n"
            "DATABASES['default']['OPTIONS'] = {'cursorclass': Rows}",
            databases=mysql_at("127.0.0.1"),
        )
        for module, name, before in (
            ("MySQLdb.cursors", "MySQLdb.cursors.DictCursor", ""),
            (
                "MySQLdb.cursors",
                "MySQLdb.cursors.SSDictCursor",
                "import pymysql\npymysql.install_as_MySQLdb()\n",
            ),
        )
    },
    "cursors of mysqlclient's": Case(
        "PS110",
        "is <class 'MySQLdb.cursors.Cursor'>, not one of PyMySQL's cursor classes",
        "use none, or another class",
        settings="class BaseCursor: ...\nBaseCursor.__module__ = 'MySQLdb.cursors'\n"
        "class Cursor(BaseCursor): ...\nCursor.__module__ = 'MySQLdb.cursors'\n"
        "DATABASES['default']['OPTIONS'] = {'cursorclass': Cursor}",
        databases=mysql_at("127.0.0.1"),
    ),
    "class that is no cursor": Case(
        "PS110",
        "is <class 'list'>, not one of PyMySQL's cursor classes",
        settings="DATABASES['default']['OPTIONS'] = {'cursorclass': list}",
        databases=mysql_at("127.0.0.1"),
    ),
    "rows that are dicts": Case(
        "PS110",
        "OPTIONS['cursorclass'] of the database 'default' is <class 'pymysql.cursors.DictCursor'>,"
        " not one with rows that are tuples, as Django needs",
        "use none, or another class",
        settings="from pymysql.cursors import DictCursor\n"
        "DATABASES['default']['OPTIONS'] = {'cursorclass': DictCursor}",
        databases=mysql_at("127.0.0.1"),
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
        "remove the import of MySQLdb from the configuration file and what that imports; later",
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


# The codes are for those who choose by them, with -k PS113.
@pytest.mark.parametrize(
    "case", PROJECTS.values(), ids=[f"{case.code} {name}" for name, case in PROJECTS.items()]
)
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_ancestor_applied_in_settings(project: MakeProject, when: str) -> None:
    folder = project(databases=SQLITE, settings="import db_pooling\ndb_pooling.apply_patch()")
    (folder / "db_pooling.py").write_text(dedent(ANCESTOR))
    done = run("mysite.wsgi", *(["--check"] if when == "before" else ["--preload"]), cwd=folder)
    done.assert_one_problem("PS503", EXIT_PROJECT, "db_pooling", "remove the call")
