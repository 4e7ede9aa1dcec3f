"""The project is loaded once more at each start, in a process that a worker's is like: nothing of
it remains, and nothing of it keeps the start waiting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.preflight import child
from support.command import EXIT_PROJECT, EXIT_USAGE, Done, run
from support.django_project import APP, SQLITE, mysql_at, rewrite
from support.ports import free_port
from support.processes import is_running, wait_until
from support.serve import POOLED_SERVE, STOP_TIMEOUT, Serve, ServerExited, end_of, environment
from support.servers import ROOT
from support.text import find

HELLO = """
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")
"""

CONFIG = """
import multiprocessing, os, pathlib, signal, socket, subprocess, sys, time
from django.apps import AppConfig

def note(name, text=""):
    part = pathlib.Path(f"{name}.part")
    part.write_text(str(text))
    part.rename(name)

def last():
    time.sleep(30)
    os._exit(0)

class Config(AppConfig):
    name = "mysite"

    def ready(self):
"""


def project_with(project: MakeProject, ready: str, **options: str) -> Path:
    """A project whose AppConfig.ready() is this."""
    folder = project(HELLO, databases={}, settings="INSTALLED_APPS = ['mysite.apps.Config']")
    body = "\n".join(f"        {line}" for line in dedent(ready).strip().splitlines())
    (folder / "mysite" / "apps.py").write_text(f"{CONFIG.lstrip()}{body}\n")
    return folder


def check(folder: Path, *args: str) -> Done:
    return run("mysite.wsgi", "--check", *args, cwd=folder)


def pid(file: Path) -> int:
    return int(file.read_text())


# --- Nothing remains ---------------------------------------------------------------------------


def test_a_forked_daemon_ends_with_the_preflight(project: MakeProject) -> None:
    """It holds all that the fork has copied, the preflight's pipe included."""
    daemon = """
        if os.fork() == 0:
            def end(*_):
                note("told to end")
                os._exit(0)
            signal.signal(signal.SIGTERM, end)
            note("pid", os.getpid())
            last()
        while not os.path.exists("pid"):
            time.sleep(0.01)
    """
    folder = project_with(project, daemon)
    (folder / "gunicorn.conf.py").write_text(
        "from pooled_serve.preflight import child\nchild.GRACE_SECONDS = 30.0\n"
    )
    done = check(folder)
    assert done.code == 0, done.output
    assert not is_running(pid(folder / "pid"))
    assert (folder / "told to end").exists()


@pytest.mark.parametrize(
    "start",
    [
        "note('pid', subprocess.Popen(['sleep', '30']).pid)",
        "p = multiprocessing.Process(target=last)\np.start()\nnote('pid', p.pid)",
        "note('pid', subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 30 & wait; wait']).pid)",
    ],
    ids=["subprocess", "multiprocessing", "deaf"],
)
def test_processes_end_with_the_preflight(project: MakeProject, start: str) -> None:
    folder = project_with(project, start)
    assert check(folder).code == 0
    assert not is_running(pid(folder / "pid"))


def test_a_port_of_the_projects_own_is_free_for_the_worker(
    project: MakeProject, serve: StartServe
) -> None:
    listen = """
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", int(os.environ["OWN_PORT"])))
        s.listen()
        s.set_inheritable(True)
        subprocess.Popen(["sleep", "30"], close_fds=False)
    """
    env = {"OWN_PORT": str(free_port())}
    folder = project_with(project, listen)
    stops = str(_stops_when_ready(folder))  # the worker's own child would outlive it
    code, log = end_of(lambda: serve(folder, "-c", stops, env=env))
    assert code == 0, log


def _stops_when_ready(folder: Path) -> Path:
    conf = folder / "stops.py"
    conf.write_text(
        "import os, signal\n"
        "def post_worker_init(worker):\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n"
        "    os.killpg(0, signal.SIGTERM)\n"
    )
    return conf


# --- Nobody keeps it waiting -------------------------------------------------------------------

OWN_SESSION = """
    if os.fork() == 0:
        os.setsid()
        note("pid", os.getpid())
        last()
    while not os.path.exists("pid"):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("then", ["", "os._exit(3)"])
def test_a_daemon_in_a_session_of_its_own_goes_on_and_keeps_nobody_waiting(
    project: MakeProject, then: str
) -> None:
    folder = project_with(project, f"{dedent(OWN_SESSION)}\n{then}")
    done = check(folder)  # reads its output to the end, which the daemon may hold, too
    daemon = pid(folder / "pid")
    try:
        assert is_running(daemon)
    finally:
        if is_running(daemon):
            os.kill(daemon, signal.SIGKILL)
    if then:
        done.assert_one_problem("PS102", 4, "with exit code 3", "os._exit()")
    else:
        assert done.code == 0, done.output


def forget_ignored_signals() -> None:
    """In a child: as from a terminal. What runs in the background, or under nohup, ignores some."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGQUIT, -signal.SIGQUIT),
    ],
)
def test_a_signal_ends_a_preflight_that_hangs(project: MakeProject, number: int, code: int) -> None:
    hang = """
        note("helper", subprocess.Popen(["sleep", "300"]).pid)
        note("pid", os.getpid())
        time.sleep(300)
    """
    folder = project_with(project, hang)
    (folder / "gunicorn.conf.py").write_text(
        "from pooled_serve.preflight import runner\nrunner.SLOW_AFTER_SECONDS = 3600.0\n"
    )
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*POOLED_SERVE, "mysite.wsgi", "-b", "127.0.0.1:0"],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=output,
            preexec_fn=forget_ignored_signals,
        )
    try:
        wait_until((folder / "pid").exists)
        process.send_signal(number)
        assert process.wait(STOP_TIMEOUT) == code
        assert log.read_text().strip() == ""
        wait_until(lambda: not is_running(pid(folder / "pid")))
        wait_until(lambda: not is_running(pid(folder / "helper")))
    finally:
        process.kill()
        process.wait()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_takes_long_is_told_once(tmp_path: Path) -> None:
    told = []

    def slow() -> None:
        told.append(1)
        (tmp_path / "go on").touch()

    def work() -> bytes:
        wait_until((tmp_path / "go on").exists)
        return b"x" * 1_000_000

    assert child.call(work, slow_after=0.1, slow=slow) == b"x" * 1_000_000
    assert told == [1]


UNTIL_IT_IS_TOLD = """
from pooled_serve.preflight import child, runner

runner.SLOW_AFTER_SECONDS = 0.1
call = child.call

def call_and_note(work, slow_after, slow):
    def slow_and_note():
        slow()
        open("told", "w").close()

    return call(work, slow_after=slow_after, slow=slow_and_note)

child.call = call_and_note
"""


def test_a_project_that_takes_long_is_told_of(project: MakeProject) -> None:
    folder = project_with(project, "while not os.path.exists('told'):\n    time.sleep(0.01)")
    (folder / "gunicorn.conf.py").write_text(UNTIL_IT_IS_TOLD)
    done = check(folder)
    assert done.code == 0, done.output
    assert "PS111 mysite.wsgi is still being loaded after 0.1s\n  → " in done.stderr


# --- As a worker -------------------------------------------------------------------------------

ABOUT = """
    with open("loads", "a") as file:
        import grp, json
        mask = os.umask(0)
        os.umask(mask)
        about = {
            "user": os.getresuid(), "group": os.getresgid(), "groups": os.getgroups(),
            "umask": mask, "cwd": os.getcwd(), "path": sys.path, "environment": dict(os.environ),
            "argv": sys.argv,
        }
        file.write(json.dumps(about) + "\\n")
    with open("log", "a") as file:
        file.write("as by LOGGING")
"""


def as_root() -> list[str]:
    """The command for who may become another user, who then may read all, as Python's own files,
    and write only what is theirs."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root, to become another user, and setpriv")
    keep = ["--securebits", "+no_setuid_fixup", "--bounding-set", "-dac_override"]
    return [shutil.which("setpriv") or "", *keep, *POOLED_SERVE]


def test_a_plain_start_goes_on_without_urls_a_strict_one_does_not(
    project: MakeProject, serve: StartServe
) -> None:
    folder = project(databases={}, urls="import no_such_thing")
    refused = run("mysite.wsgi", "--strict", cwd=folder)
    assert "FAIL  PS109" in refused.stderr
    assert refused.stderr.endswith("\n\nRefused. Nothing was started.\n")
    assert (refused.code, refused.stdout) == (EXIT_PROJECT, "")
    server = serve(folder)
    assert "WARN  PS109" in server.log
    assert server.get("/").status == 500
    assert server.log.count("PS109") == 1


def said(server: Serve, text: str) -> bool:
    return text in server.log


def test_a_reload_with_broken_urls_says_so(project: MakeProject, serve: StartServe) -> None:
    folder = project(databases={})
    server = serve(folder)
    urls = folder / "mysite" / "urls.py"
    for number in (1, 2):  # also if it was so before
        rewrite(urls, f"import no_such_thing_{number}")
        server.signal(signal.SIGHUP)
        wait_until(partial(said, server, f"no_such_thing_{number}"))
        assert "[ERROR] PS109 mysite.urls fails while it is imported, so every" in server.log
        wait_until(lambda: server.get("/").status == 500)
    rewrite(urls, "urlpatterns = []")
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.get("/").status == 404)
    assert server.log.count("PS109") == 2


@pytest.mark.parametrize("module", ["settings", "models", "wsgi"])
def test_a_reload_of_a_project_that_fails_says_what_ends_and_what_to_do(
    project: MakeProject, serve: StartServe, module: str
) -> None:
    folder = project(databases={}, settings="INSTALLED_APPS = ['mysite']")
    file = folder / "mysite" / f"{module}.py"
    file.touch()
    server = serve(folder)
    rewrite(file, file.read_text() + "\nno_such_thing\n")
    server.signal(signal.SIGHUP)
    assert server.wait() == 3
    told = server.log.partition("[ERROR] PS102 ")[2].splitlines()
    assert told[0] == (
        "mysite.wsgi exists, but fails while it is imported: this worker cannot start, and "
        "Gunicorn stops the whole server"
    )
    line = len(file.read_text().splitlines())
    where = f'  File "{file}", line {line}: '
    assert told[1] == f"{where}NameError: name 'no_such_thing' is not defined"
    assert told[2] == (
        "  → correct the error above; the same command with --check says whether it loads; then "
        "start it"
    )
    assert "Traceback (most recent call last)" in server.log
    last = server.log.splitlines()[-2:]
    assert last[0].endswith("[ERROR] the server has ended, as a worker could not load the project")
    assert last[1] == "  → see the line with PS above, or run the same command with --check"
    refused = run("mysite.wsgi", "--check", cwd=folder)
    assert refused.code == EXIT_PROJECT
    assert told[1].strip() in refused.output


def test_a_reload_of_a_project_that_exits_says_that_each_worker_ends(
    project: MakeProject, serve: StartServe
) -> None:
    folder = project(databases={})
    server = serve(folder)
    settings = folder / "mysite" / "settings.py"
    before = settings.read_text()
    rewrite(settings, before + "\nraise SystemExit('no licence')\n")
    server.signal(signal.SIGHUP)
    wait_until(partial(said, server, "this worker ends, and so does each that takes its place"))
    assert f"line {len(before.splitlines()) + 2}: SystemExit: no licence" in server.log
    rewrite(settings, before)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.get("/").status == 404)


@pytest.mark.parametrize(
    "options",
    [
        ["--user", "nobody", "--group", "nogroup"],
        ["--user", "nobody", "--group", "nogroup", "--initgroups"],
        ["--group", "nogroup", "--umask", "0o77"],
        ["--user", "nobody", "--preload"],
        ["--env", "SPOKEN=yes", "--pythonpath", "lib,more"],
    ],
    ids=" ".join,
)
def test_the_project_is_loaded_as_by_a_worker(
    project: MakeProject, serve: StartServe, options: list[str]
) -> None:
    folder = project_with(project, ABOUT)
    folder.chmod(0o777)
    server = serve(folder, *options, command=as_root())
    assert server.get("/hello").text == "hello"
    preflight, worker = map(json.loads, (folder / "loads").read_text().splitlines())
    assert preflight == worker
    assert worker["environment"]["SERVER_SOFTWARE"].startswith("gunicorn/")
    owner = (folder / "log").stat()
    assert (owner.st_uid, owner.st_gid) == (worker["user"][1], worker["group"][1])


def test_a_daemon_has_another_umask(project: MakeProject) -> None:
    folder = project_with(project, ABOUT)
    args = ["--daemon", "--pid", str(folder / "master"), "-b", "127.0.0.1:0"]
    try:
        strict = ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh", *POOLED_SERVE]
        run("mysite.wsgi", *args, cwd=folder, command=strict)

        def loads() -> list[str]:
            text = (folder / "loads").read_text()
            return text.splitlines() if text.count("\n") == 2 else []

        lines = wait_until(loads)
    finally:
        master = pid(folder / "master")
        os.kill(master, signal.SIGTERM)
        wait_until(lambda: not is_running(master))
    preflight, worker = map(json.loads, lines)
    assert preflight["umask"] == worker["umask"] == 0o22


def test_a_user_that_it_may_not_become(project: MakeProject) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give up the right")
    command = ["/usr/bin/setpriv", "--bounding-set", "-setuid,-setgid", *POOLED_SERVE]
    folder = project(databases={})
    done = run("mysite.wsgi", "--check", "--user", "nobody", cwd=folder, command=command)
    done.assert_one_problem("PS401", 2, "cannot run as user 65534", "start it as root")


# --- What it says after the project's LOGGING --------------------------------------------------

LOGGING = """
    LOGGING = {{
        "version": 1,  # and disable_existing_loggers, which is True unless you say otherwise
        "handlers": {{"console": {{"class": "logging.StreamHandler"}}}},
        "root": {{"handlers": ["console"], "level": "WARNING"}},
        "loggers": {loggers},
    }}
"""


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_logging_of_the_project_leaves_the_servers_loggers_on(
    project: MakeProject, serve: StartServe, options: list[str]
) -> None:
    folder = project(HELLO, databases={}, settings=LOGGING.format(loggers={}))
    server = serve(folder, "--access-logfile", "-", *options)
    server.get("/hello")
    if not options:  # with --preload a HUP replaces no code
        before = server.worker_pids()
        server.signal(signal.SIGHUP)
        wait_until(lambda: (new := server.worker_pids()) and not before & new)
        server.get("/hello")
    server.stop()
    assert server.log.count("GET /hello HTTP/1.1") == (1 if options else 2)
    for line in ("Handling signal: term", "Worker exiting", "Shutting down: Master"):
        assert line in server.log


def test_a_worker_that_cannot_load_the_project_says_so(
    project: MakeProject, serve: StartServe
) -> None:
    fails = (
        LOGGING.format(loggers={})
        + """
    import logging.config
    import os
    logging.config.dictConfig(LOGGING)
    with open("loads", "a") as file:
        file.write("x")
    if os.path.getsize("loads") > 1:
        raise ValueError("only in the worker")
    """
    )
    with pytest.raises(ServerExited) as ended:
        serve(project(HELLO, databases={}, settings=fails))
    assert ended.value.returncode == 3
    assert "Exception in worker process" in ended.value.log
    assert "ValueError: only in the worker" in ended.value.log


def test_what_the_project_says_about_the_servers_loggers_counts(
    project: MakeProject, serve: StartServe
) -> None:
    loggers = {"gunicorn.error": {"level": "ERROR"}, "gunicorn.access": {"level": "CRITICAL"}}
    folder = project(HELLO, databases={}, settings=LOGGING.format(loggers=loggers))
    server = serve(folder, "--access-logfile", "-")
    server.get("/hello")
    server.stop()
    assert "GET /hello" not in server.log
    assert "Worker exiting" not in server.log


@pytest.mark.parametrize("named", ["launcher", "option", "variable"])
def test_settings_that_a_launcher_has_configured_are_not_the_projects(
    project: MakeProject, tmp_path: Path, named: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "from django.conf import settings\n"
        "if 'DJANGO_SETTINGS_MODULE' not in os.environ:\n"
        "    settings.configure()\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    env |= {"DJANGO_SETTINGS_MODULE": "mysite.settings"} if named == "variable" else {}
    options = ["--settings", "mysite.settings"] if named == "option" else []
    done = run(APP, *options, "--check", cwd=project(databases=SQLITE), env=env)
    if named == "variable":
        assert done.code == 0, done.output
    else:
        says = "something has called settings.configure() before mysite.wsgi was loaded"
        done.assert_one_problem(
            "PS104", EXIT_PROJECT, says, "set DJANGO_SETTINGS_MODULE in the environment"
        )


def test_a_folder_that_a_deploy_has_removed(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    shell = 'rmdir "$PWD" && exec "$@"'
    command = ("sh", "-c", shell, "sh", *POOLED_SERVE)
    done = run(APP, "--check", cwd=tmp_path / "release", command=command)
    says = "the current directory cannot be used (No such file or directory)"
    done.assert_one_problem("PS401", EXIT_USAGE, says, "cd to the folder where manage.py is now")


# --- What is said of it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "settings", "code"),
    [
        ("models", "mysite.settings", "PS102"),
        ("other", "mysite.other", "PS102"),
        ("urls", "mysite.settings", "PS109"),
    ],
)
def test_the_command_for_the_traceback_shows_the_same_error(
    project: MakeProject, module: str, settings: str, code: str
) -> None:
    """Also where `import MySQLdb` fails, and with settings that wsgi.py does not name."""
    apps = "INSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth', 'mysite']"
    folder = project(databases=mysql_at("127.0.0.1"), settings=apps)
    package = folder / "mysite"
    (folder / "MySQLdb.py").write_text("raise ImportError('there is no mysqlclient')")
    (package / "models.py").touch()
    (package / "other.py").write_text("from mysite.settings import *\n")
    with (package / f"{module}.py").open("a") as file:
        file.write("\nx = {}['no such key']\n")
    done = check(folder, "--settings", settings)
    assert code in done.output
    error = "KeyError: 'no such key'"
    assert error in done.output
    command = find(r"for all of its traceback: (.+)", done.output).group(1)
    environ = environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    shown = subprocess.run(
        command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    assert shown.stderr.splitlines()[-1] == error, shown.stderr
    assert f'{module}.py", line' in shown.stderr


def test_the_command_for_the_traceback_finds_the_project_from_where_it_was_asked_for(
    project: MakeProject, tmp_path: Path
) -> None:
    folder, elsewhere, more = project(databases=SQLITE), tmp_path / "else", tmp_path / "a lib"
    elsewhere.mkdir()
    more.mkdir()
    (more / "helper.py").write_text("{}['no such key']\n")
    with (folder / "mysite" / "settings.py").open("a") as file:
        file.write("\nimport helper\n")
    command = r"for all of its traceback: (.+)"
    there = find(command, run("mysite.wsgi", "--pythonpath", str(more), cwd=folder).output).group(1)
    assert not there.startswith("cd ")
    done = run(*("mysite.wsgi", "--chdir", str(folder), "--pythonpath", str(more)), cwd=elsewhere)
    for line, cwd in ((there, folder), (find(command, done.output).group(1), elsewhere)):
        environ = environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
        shown = subprocess.run(
            line, shell=True, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60
        )
        assert shown.stderr.splitlines()[-1] == "KeyError: 'no such key'", shown.stderr
        assert 'helper.py", line 1' in shown.stderr
