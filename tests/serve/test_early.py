"""A configuration file that loads Django, which gunicorn runs before gevent has patched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.serve import early
from support.command import EXIT_USAGE, run
from support.django_project import rewrite, source_of
from support.processes import wait_until
from support.serve import Serve, ServerExited
from support.servers import ROOT, Server

EXIT_WORKER = 3

HELLO = Path(__file__).with_name("early_views.py")
SETUP = "import os, django\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n"
REMEDY = "inside of post_worker_init(worker)"


def configured(project: MakeProject, source: str, **options: str) -> Path:
    folder = project(HELLO, databases={}, **options)
    (folder / "gunicorn.conf.py").write_text(dedent(source).lstrip())
    return folder


@pytest.mark.parametrize("args", [["--check"], [], ["--preload"]])
@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("from django.db import connections", 1),
        (f"import pymysql\npymysql.install_as_MySQLdb()\n{SETUP}django.setup()", 5),
        ("import logging\nimport mysite.views", 2),
    ],
)
def test_a_file_that_loads_django_is_refused(
    project: MakeProject, source: str, line: int, args: list[str]
) -> None:
    folder = configured(project, source)
    done = run("mysite.wsgi", *args, cwd=folder)
    says = f"{folder}/gunicorn.conf.py, line {line}, loads Django before gevent has patched"
    done.assert_one_problem("PS408", EXIT_USAGE, says, REMEDY)


def test_a_launcher_that_loads_django_is_refused(project: MakeProject, tmp_path: Path) -> None:
    """Requests would get each other's connections, although the project itself is as it should be:
    opentelemetry-instrument is such a launcher."""
    (tmp_path / "sitecustomize.py").write_text("from django.http import HttpResponse\n")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    folder = project(HELLO, databases={})
    for args in ([], ["--check"], ["--preload"]):
        done = run("mysite.wsgi", *args, cwd=folder, env=env)
        says = "PS408 what has started this command loads Django before gevent has patched"
        remedy = "start it without that launcher, or have that leave Django to the project"
        done.assert_one_problem("PS408", EXIT_USAGE, says, remedy)


MODEL = "from django.db import models\n\nclass Note(models.Model):\n    pass\n"
UNREADY = "django.core.exceptions.AppRegistryNotReady: Apps aren't loaded yet."


@pytest.mark.parametrize("indent", [0, 4], ids=["file", "hook"])
@pytest.mark.parametrize(
    ("named", "error"),
    [
        ("", "django.core.exceptions.ImproperlyConfigured: Requested setting INSTALLED_APPS"),
        ("import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.settings'\n", UNREADY),
    ],
    ids=["settings", "apps"],
)
def test_what_django_does_not_allow_yet_is_for_a_worker(
    project: MakeProject, named: str, error: str, indent: int
) -> None:
    """At once, and not when settings and apps have been brought to it, too."""
    hook = "def on_starting(server):\n    " if indent else ""
    folder = configured(project, f"{named}{hook}from notes.models import Note\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "models.py").write_text(MODEL)
    done = run("mysite.wsgi", cwd=folder)
    assert (done.code, done.output.count("PS403")) == (EXIT_USAGE, 1), done.output
    problem = done.output[done.output.index("PS403") :]
    assert error in problem
    assert f"\n  → import Django, and what imports it, {REMEDY}" in problem


ARGS = {
    "on_starting": "arbiter",
    "when_ready": "arbiter",
    "pre_fork": "arbiter, worker",
    "post_fork": "arbiter, worker",
    "post_worker_init": "worker",
}
HOOKS = {
    "setup": "def {hook}({args}):\n    import django\n    django.setup()\n",
    "import": "def {hook}({args}):\n    pass; from django.db import connections\n",
    "helper": "def {hook}({args}):\n    load()\ndef load():\n    from django.contrib import auth\n",
}


@pytest.mark.parametrize("source", HOOKS.values(), ids=HOOKS.keys())
def test_a_hook_that_would_load_django_is_found_before_it_runs(
    project: MakeProject, source: str
) -> None:
    for hook in ("on_starting", "post_fork"):
        folder = configured(project, source.format(hook=hook, args=ARGS[hook]))
        line = 4 if "load()" in source else source[: source.rindex("django")].count("\n") + 1
        done = run("mysite.wsgi", "--check", cwd=folder)
        says = f"gunicorn.conf.py, line {line} ({hook}), loads Django before gevent has patched"
        done.assert_one_problem("FAIL  PS408", EXIT_USAGE, says, REMEDY)
        assert "Refused. Nothing was started." in done.output
        # With --preload the master has patched by then, and loaded the project.
        assert run("mysite.wsgi", "--check", "--preload", cwd=folder).code == 0


@pytest.mark.parametrize("named", ["import django", "from django import VERSION"])
def test_a_setup_that_is_not_djangos_is_none(project: MakeProject, named: str) -> None:
    source = f"import mylog\ndef on_starting(server):\n    {named}\n    mylog.setup()\n"
    folder = configured(project, source)
    (folder / "mylog.py").write_text("def setup(): pass\n")
    done = run("mysite.wsgi", "--check", cwd=folder)
    assert (done.code, done.output.count("PS408")) == (0, 0), done.output


HIDDEN = """
    import importlib

    def {hook}({args}):
        importlib.import_module("django.db")
"""


@pytest.mark.parametrize("hook", ["on_starting", "when_ready"])
def test_a_hook_of_the_start_that_loads_django(project: MakeProject, hook: str) -> None:
    folder = configured(project, HIDDEN.format(hook=hook, args=ARGS[hook]))
    done = run("mysite.wsgi", "-p", "pid", "-b", "unix:socket", cwd=folder)
    says = f"{folder}/gunicorn.conf.py, line 4 ({hook}), loads Django"
    done.assert_one_problem("PS408", EXIT_USAGE, says, REMEDY)
    assert not (folder / "pid").exists()


@pytest.mark.parametrize("hook", ["pre_fork", "post_fork"])
def test_a_hook_of_a_fork_that_loads_django(
    project: MakeProject, serve: StartServe, hook: str
) -> None:
    folder = configured(project, HIDDEN.format(hook=hook, args=ARGS[hook]))
    with pytest.raises(ServerExited) as ended:
        serve(folder)
    assert ended.value.returncode == EXIT_WORKER
    assert f"PS408 {folder}/gunicorn.conf.py, line 4 ({hook}), loads Django" in ended.value.log
    assert REMEDY in ended.value.log
    assert "Traceback" not in ended.value.log


@pytest.mark.parametrize(
    ("name", "source", "args"),
    [
        ("shop/gunicorn_conf.py", "timeout = 60\n", ["-c", "python:shop.gunicorn_conf"]),
        (
            "shop/log.py",
            "import gunicorn.glogging\nclass Logger(gunicorn.glogging.Logger): pass\n",
            ["--logger-class", "shop.log.Logger"],
        ),
    ],
)
def test_code_of_an_installed_package_that_loads_django(
    project: MakeProject, tmp_path: Path, name: str, source: str, args: list[str]
) -> None:
    packages = tmp_path / "lib" / "site-packages"
    (packages / "shop").mkdir(parents=True)
    (packages / name).write_text(f"{source}import django.db\n")
    folder = project(HELLO, databases={})
    environ = {"PYTHONPATH": str(packages)}
    done = run("mysite.wsgi", *args, "-b", "unix:socket", cwd=folder, env=environ)
    line = source.count("\n") + 1
    says = f"{packages}/{name}, line {line}, loads Django"
    done.assert_one_problem("PS408", EXIT_USAGE, says, REMEDY)


def test_logging_with_a_class_of_djangos(project: MakeProject) -> None:
    folder = configured(
        project,
        """
        logconfig_dict = {
            "version": 1,
            "filters": {"debug": {"()": "django.utils.log.RequireDebugFalse"}},
        }
        """,
    )
    done = run("mysite.wsgi", "-b", "unix:socket", cwd=folder)
    done.assert_one_problem("PS408", EXIT_USAGE, "logconfig_dict, loads Django", REMEDY)


@pytest.mark.parametrize("args", [["--check"], []])
def test_settings_that_nothing_names_yet(project: MakeProject, args: list[str]) -> None:
    """Gevent would load them while it patches."""
    folder = configured(project, "from django.conf import settings")
    done = run("mysite.wsgi", *args, cwd=folder)
    says = "DJANGO_SETTINGS_MODULE is not set"
    done.assert_one_problem("PS408", EXIT_USAGE, says, "--settings MODULE")


def test_settings_that_are_named_may_be_used(project: MakeProject, serve: StartServe) -> None:
    folder = configured(
        project, "from django.conf import settings\nworkers = settings.N", settings="N = 2"
    )
    server = serve(folder, "--settings", "mysite.settings")
    wait_until(lambda: len(server.worker_pids()) == 2)
    assert server.get("/hello").text == "hello"


AFTER = "def post_worker_init(worker):\n    import django.db\n    print('a hook has run')\n"
PATCHED = (
    "from gevent import monkey\nmonkey.patch_all()\nimport django.db\nprint('a hook has run')\n"
)
PRELOADED = (
    "preload_app = True\ndef when_ready(arbiter):\n    import django.db; print('a hook has run')\n"
)


@pytest.mark.parametrize("source", [AFTER, PATCHED, PRELOADED], ids=["after", "patched", "preload"])
def test_django_that_is_loaded_after_the_patch(
    project: MakeProject, serve: StartServe, mariadb: Server, source: str
) -> None:
    folder = project(HELLO, databases={"default": mariadb.create_database().django()})
    (folder / "gunicorn.conf.py").write_text(source)
    server = serve(folder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: server.get("/slow").status, range(8)))
    assert found == [200] * 8, server.log
    assert "a hook has run" in server.log
    assert "PS408" not in server.log


def test_a_file_that_loads_django_since_does_not_end_a_server(
    project: MakeProject, serve: StartServe
) -> None:
    """A reload refuses it, and the workers that it starts have a Django of their own."""
    folder = configured(project, "timeout = 60")
    server = serve(folder)
    before = server.worker_pids()
    (folder / "gunicorn.conf.py").write_text("import django.db\nimport django.conf\n# longer")
    rewrite(folder / "mysite" / "views.py", source_of(HELLO).replace('"hello"', '"hello again"'))
    server.signal(signal.SIGHUP)
    server.wait_for_log(
        "Not reloaded, the old options stay (the workers are replaced, and load the project anew): "
        f"PS408 {folder}/gunicorn.conf.py, line 1, loads Django"
    )
    wait_until(lambda: server.worker_pids() and not server.worker_pids() & before)
    wait_until(lambda: server.get("/hello").text == "hello again")


def hang_up(server: Serve, folder: Path, conf: str) -> None:
    """Have a new file read, and wait for workers that have loaded the project anew."""
    before = server.worker_pids()
    rewrite(folder / "gunicorn.conf.py", dedent(conf).lstrip())
    rewrite(folder / "mysite" / "views.py", source_of(HELLO).replace('"hello"', '"hello again"'))
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.worker_pids() and not server.worker_pids() & before)
    wait_until(lambda: server.get("/hello").text == "hello again")


def assert_requests_have_connections_of_their_own(server: Serve) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: server.get("/slow").status, range(8)))
    assert found == [200] * 8, server.log


REFUSED = {
    "a setting": ("import django.db\nworkers = 'x'\n", "PS401"),
    "an import": ("import django.db\nimport broken\n", "PS403"),
    "the environment": ("import django.db\nraw_env = ['x']\n", "PS401"),
    # With this variable it would be fine, and the old options lack it.
    "later": (
        "raw_env = ['DJANGO_SETTINGS_MODULE=mysite.settings']\n"
        "import django.conf\nworker_class = 'sync'\n",
        "PS404",
    ),
}


@pytest.mark.parametrize(("source", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_loads_django_and_is_refused_for_something_else(
    project: MakeProject, serve: StartServe, source: str, code: str
) -> None:
    folder = configured(project, "timeout = 60")
    (folder / "broken.py").write_text("1 +\n")
    server = serve(folder)
    hang_up(server, folder, source)
    assert "Not reloaded, the old options stay" in server.log
    assert code in server.log
    assert "PS408" not in server.log


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (
            """
            logconfig_dict = {
                "version": 1,
                "filters": {"debug": {"()": "django.utils.log.RequireDebugFalse"}},
            }
            """,
            "logger_class, logconfig, or logconfig_dict,",
        ),
        *(
            (HIDDEN.format(hook=hook, args=args), f"gunicorn.conf.py, line 4 ({hook}),")
            for hook, args in {
                "on_reload": "arbiter",
                "nworkers_changed": "arbiter, new, old",
                "pre_fork": "arbiter, worker",
                "post_fork": "arbiter, worker",
            }.items()
        ),
    ],
    ids=["logging", "on_reload", "nworkers_changed", "pre_fork", "post_fork"],
)
def test_django_that_comes_in_with_a_reload_does_not_end_a_server(
    project: MakeProject, serve: StartServe, mariadb: Server, source: str, place: str
) -> None:
    folder = project(HELLO, databases={"default": mariadb.create_database().django()})
    (folder / "gunicorn.conf.py").write_text("timeout = 60")
    server = serve(folder)
    hang_up(server, folder, source)
    server.wait_for_log("Django was loaded too early, and is loaded anew: PS408 ")
    assert f"{place} loads Django before gevent has patched" in server.log
    assert_requests_have_connections_of_their_own(server)


def test_a_hook_that_loads_django_when_a_worker_has_died_does_not_end_a_server(
    project: MakeProject, serve: StartServe
) -> None:
    folder = configured(project, HIDDEN.format(hook="child_exit", args="arbiter, worker"))
    server = serve(folder)
    (pid,) = server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log("gunicorn.conf.py, line 4 (child_exit), loads Django")
    wait_until(lambda: server.worker_pids() not in (set(), {pid}))
    assert server.get("/hello").text == "hello"


def test_a_file_that_applies_the_patch_since(
    project: MakeProject, serve: StartServe, mariadb: Server
) -> None:
    """Its Django is unloaded, and what is bound to it with it: the workers have pools."""
    folder = project(HELLO, databases={"default": mariadb.create_database().django()})
    (folder / "gunicorn.conf.py").write_text("timeout = 60")
    server = serve(folder)
    assert server.get("/wrapper").text == "pooled"
    hang_up(server, folder, "from pooled_serve import pooling\npooling.apply_patch()\n")
    assert f"PS408 {folder}/gunicorn.conf.py, line 2, loads Django" in server.log
    assert server.get("/wrapper").text == "pooled"
    assert_requests_have_connections_of_their_own(server)


def test_a_reload_does_not_turn_preloading_on_or_off(
    project: MakeProject, serve: StartServe, mariadb: Server
) -> None:
    """The master would load the project without gevent's locals."""
    folder = project(HELLO, databases={"default": mariadb.create_database().django()})
    (folder / "gunicorn.conf.py").write_text("timeout = 60")
    server = serve(folder)
    hang_up(server, folder, "preload_app = True\n")
    assert "--preload stays as it was: it takes a restart to change it" in server.log
    assert_requests_have_connections_of_their_own(server)
    server = serve(folder)
    before = server.worker_pids()
    rewrite(folder / "gunicorn.conf.py", "preload_app = False\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log("--preload stays as it was: it takes a restart to change it")
    wait_until(lambda: server.worker_pids() and not server.worker_pids() & before)
    assert_requests_have_connections_of_their_own(server)


def test_what_is_unloaded() -> None:
    script = Path(__file__).with_name("early_scripts.py")
    subprocess.run([sys.executable, script], check=True)


LOADING = (
    *("db", "db.models", "forms", "http", "shortcuts", "template", "test", "urls", "views.generic"),
    *("core.checks", "core.handlers.wsgi", "core.management", "core.wsgi", "utils.log"),
    "contrib.auth.decorators",
)
SPARING = ("conf", "apps", "core.cache", "core.exceptions", "dispatch", "utils.timezone", "utils")


@pytest.mark.parametrize("name", [*LOADING, *SPARING])
def test_which_modules_load_the_connections(name: str) -> None:
    code = f"import sys, django.{name}; print('django.db' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(name in LOADING)
    assert bool(early.LOADS_CONNECTIONS.match(f"django.{name}")) == (name in LOADING)


# --- Logging -----------------------------------------------------------------------------------


SILENCE = "import logging.config\nlogging.config.dictConfig({'version': 1})\n"


@pytest.mark.parametrize("hook", ["", "on_starting", "pre_fork", "post_worker_init"])
def test_the_error_log_survives_a_configuration_of_logging(
    project: MakeProject, serve: StartServe, hook: str
) -> None:
    """dictConfig() disables all loggers that it does not name, unless it is told otherwise."""
    indented = SILENCE.replace("\n", "\n    ")
    folder = configured(project, f"def {hook}({ARGS[hook]}):\n    {indented}" if hook else SILENCE)
    server = serve(folder, "--preload")
    assert "Booting worker" in server.log
    server.signal(signal.SIGHUP)
    server.wait_for_log("Booting worker", times=2)
