"""What --check finds out, and how it says so."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from pooled_serve.errors import StartupError
from pooled_serve.preflight import runner as preflight
from support.command import Done, run
from support.netproxy import NetProxy
from support.ports import free_port
from support.serve import POOLED_SERVE
from support.servers import Database, Server

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
HELLO = """
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")
"""


def check(folder: Path, *args: str, **env: str) -> Done:
    return run("mysite.wsgi", "--check", *args, cwd=folder, env=env)


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


# --- The picture -------------------------------------------------------------------------------

READY = """\
pooled-serve \\S+ · Django \\S+ · gunicorn \\S+ · gevent \\S+ · PyMySQL \\S+ · Python \\S+

Project   mysite.wsgi:application   settings mysite.settings   loaded in \\d+\\.\\d\\ds
Server    3 workers × 1000 greenlets on http://{bind}
Pools     pool-timeout 10s · request mode

Databases
  alias    server +pool  cap  age limit  wait_timeout      answer  encryption
  default  MariaDB \\S+ 127.0.0.1:{one}/{name} +4   12        60s        28800s +{ms}      no TLS
  replica  MariaDB \\S+ 127.0.0.1:{two}/app\\d+ +8   16        60s        28800s +{ms}      no TLS
  legacy   SQLite +–    –          –             –  not pooled

Connection budget
  server +at most +limit  in use now  left
  127.0.0.1:{one} +3 × 12 = 36 +151 +\\d+ +\\d+
  127.0.0.1:{two} +3 × 16 = 48 +151 +\\d+ +\\d+

Checks
  note  legacy           SQLite is not pooled; Django connects as usual
  ok    wait_timeout     connections retire at 60s, MariaDB hangs up at 28800s
  ok    max_connections  36 of 151 on 127.0.0.1:{one}, 48 of 151 on 127.0.0.1:{two}

Ready\\. Nothing was started\\.
"""


def test_all_is_well(
    project: MakeProject, database: Database, start_mariadb: Callable[..., Server]
) -> None:
    replica = start_mariadb().create_database()
    databases = {
        "default": database.django(),
        "replica": replica.django(),
        "legacy": SQLITE,
    }
    # Not the default: there would be a note if somebody listened there.
    bind = f"127.0.0.1:{free_port()}"
    args = "-w", "3", "--pool-size", "4", "--pool", "replica:8:16", "-b", bind
    done = check(project(databases=databases), *args)
    expected = READY.format(
        bind=bind, one=database.port, two=replica.port, name=database.name, ms=r"\d+\.\dms"
    )
    assert re.fullmatch(expected, done.stdout), done.stdout
    assert done.stderr == ""
    assert done.code == 0


WRONG = """\
.*
Checks
  FAIL  PS203 default +connections live 30000s but MariaDB hangs up after wait_timeout=28800s
 +→ use CONN_MAX_AGE 23040 in DATABASES, or --conn-max-age 23040, or on the server: .* = 37500
  FAIL  PS201 127.0.0.1:{port} +8 workers × 48 connections = 384, the server allows 151 .* in use.
 +→ use --max-per-host 1.* share them\\), or --max-outstanding 1\\d, which leaves .*, or raise .*

Refused\\. Nothing was started\\.
"""


def test_all_is_wrong(project: MakeProject, database: Database) -> None:
    folder = project(databases={"default": database.django(CONN_MAX_AGE=30000)})
    done = check(folder, "-w", "8", "--max-outstanding", "48")
    assert re.fullmatch(WRONG.format(port=database.port), done.stdout, re.DOTALL), done.stdout
    assert done.stderr == "", "a plan that is kept in a file has its verdict"
    assert done.code == 5
    columns = {line.index("→") for line in done.stdout.splitlines() if "→" in line}
    texts = {line.index("connections") for line in done.stdout.splitlines() if "live" in line}
    assert columns == texts, "the remedy stands under its problem"


def test_views_that_are_one_transaction_are_worth_a_note_in_transaction_mode(
    project: MakeProject, database: Database
) -> None:
    folder = project(databases={"default": database.django(ATOMIC_REQUESTS=True)})
    note = "note  default          with ATOMIC_REQUESTS a view is one transaction, and holds its"
    assert note in check(folder, "--pool-mode", "transaction").stdout
    assert "ATOMIC_REQUESTS" not in check(folder).stdout


def test_a_keep_alive_for_which_a_stop_waits_is_worth_a_note(project: MakeProject) -> None:
    folder = project(databases={})
    note = "keepalive  a stop waits for idle clients, up to 75 s"
    assert note in check(folder, "--keep-alive", "75").stdout
    assert "idle clients" not in check(folder, "--keep-alive", "30").stdout


def test_more_clients_than_open_files_are_worth_a_note(project: MakeProject) -> None:
    folder = project(databases={})
    (files, _) = resource.getrlimit(resource.RLIMIT_NOFILE)
    note = f"a worker may have {files} clients, and only {files} open files"
    assert note in check(folder, "--worker-connections", str(files)).stdout
    assert "open files" not in check(folder, "--worker-connections", str(files - 1)).stdout


def test_two_aliases_on_one_server_share_a_row(project: MakeProject, database: Database) -> None:
    databases = {name: database.django() for name in ("default", "reports")}
    done = check(project(databases=databases), "--pool", "reports:1:3")
    (row,) = re.findall(rf"^  127.0.0.1:{database.port} .*", done.stdout, re.MULTILINE)
    assert "1 × 15 = 15" in row


def test_all_names_of_a_server_share_its_row(
    project: MakeProject, database: Database, mariadb: Server, proxy: NetProxy
) -> None:
    databases = {
        "default": database.django(),
        "proxied": database.via(proxy.port).django(),
        "local": database.django(HOST=str(mariadb.socket), PORT=""),
    }
    done = check(project(databases=databases), "--max-outstanding", "51")
    assert "1 worker × 153 connections = 153, the server allows 151" in done.stdout
    assert done.code == 5


def test_hosts_multiply(project: MakeProject, database: Database) -> None:
    folder = project(databases={"default": database.django()})
    done = check(folder, "--replicas", "2", "-w", "3", "-b", "127.0.0.1:7000", "-b", "[::1]:7000")
    assert "2 × 3 × 12 = 72" in done.stdout
    assert "on http://127.0.0.1:7000, http://[::1]:7000" in done.stdout


def test_the_worst_problem_gives_the_exit_code(project: MakeProject, database: Database) -> None:
    databases = {"default": database.via(free_port()).django(), "other": database.django()}
    folder = project(databases=databases)
    done = check(folder)
    assert done.code == 6
    assert "MariaDB" in done.stdout  # the other one is shown all the same
    assert check(folder, "--max-outstanding", "200").code == 5


def test_the_question_leaves_no_connection_behind(
    project: MakeProject, database: Database, mariadb: Server
) -> None:
    before = mariadb.admin.aborted_clients()
    assert check(project(databases={"default": database.django()})).code == 0
    assert mariadb.admin.aborted_clients() == before


# --- Where the database is ---------------------------------------------------------------------


def test_unix_socket(project: MakeProject, database: Database, mariadb: Server) -> None:
    folder = project(databases={"default": database.django(HOST=str(mariadb.socket), PORT="")})
    done = check(folder)
    assert done.code == 0, done.output
    assert f" {mariadb.socket}/{database.name} " in done.stdout


def test_option_file(project: MakeProject, database: Database, tmp_path: Path) -> None:
    """The connection knows where it goes, the settings need not."""
    file = tmp_path / "my.cnf"
    file.write_text(f"[client]\nhost={database.host}\nport={database.port}\n")
    settings = database.django(HOST="", PORT="", OPTIONS={"read_default_file": str(file)})
    done = check(project(databases={"default": settings}))
    assert done.code == 0, done.output
    assert f" {database.host}:{database.port}/{database.name} " in done.stdout


def test_a_server_that_says_nothing(
    project: MakeProject, database: Database, proxy: NetProxy
) -> None:
    proxy.black_hole()
    silent = database.via(proxy.port).django()
    silence = {f"silent{number}": silent for number in range(8)}
    folder = project(databases={"default": database.django(), **silence})
    began = time.monotonic()
    done = check(folder)
    assert time.monotonic() - began < 30  # all together within 5, one after the other in 40
    assert done.code == 6
    problems = re.findall(r"PS307 .*", done.stdout)
    assert len(problems) == 8
    assert f"127.0.0.1:{proxy.port} did not answer within 5s" in problems[0]
    assert "MariaDB" in done.stdout


# --- The project in the child ------------------------------------------------------------------


def test_what_the_project_prints_is_printed_once(project: MakeProject, serve: StartServe) -> None:
    folder = project(HELLO, databases={}, settings="import os; print('settings are read')")
    assert "settings are read" not in check(folder).output
    server = serve(folder)
    assert server.get("/hello").text == "hello"
    assert server.log.count("settings are read") == 1


def test_settings_option(project: MakeProject) -> None:
    folder = project(databases={}, settings="OTHER = 1")
    (folder / "mysite" / "other.py").write_text("from mysite.settings import *\n")
    assert "settings mysite.settings " in check(folder).stdout
    assert "settings mysite.other " in check(folder, "--settings", "mysite.other").stdout
    done = check(folder, POOLED_SERVE_SETTINGS="mysite.other")
    assert "settings mysite.other " in done.stdout


@pytest.mark.parametrize("form", ["mysite.wsgi", "mysite.wsgi:application"])
def test_chdir_and_pythonpath(project: MakeProject, tmp_path: Path, form: str) -> None:
    folder = project(databases={}, settings="import helper_of_ours")
    library = tmp_path / "library"
    library.mkdir()
    (library / "helper_of_ours.py").touch()
    options = ("--chdir", str(folder), "--pythonpath", str(library))
    done = run(form, "--check", *options, cwd=tmp_path)
    assert done.code == 0, done.output
    assert "Project   mysite.wsgi:application " in done.stdout


def test_environment_option(project: MakeProject) -> None:
    folder = project(databases={}, settings="import os; os.environ['NEEDED']")
    assert check(folder).code == 4
    assert check(folder, "--env", "NEEDED=yes").code == 0


def test_check_by_environment(project: MakeProject) -> None:
    done = run("mysite.wsgi", cwd=project(databases={}), env={"POOLED_SERVE_CHECK": "1"})
    assert "Ready. Nothing was started." in done.stdout


def test_configuration_is_printed_without_a_start(project: MakeProject) -> None:
    folder = project(databases={})
    done = run("mysite.wsgi", "--print-config", "--pool-size", "7", cwd=folder)
    assert done.code == 0
    assert re.search(r"^pool_size +(=|:) 7$", done.stdout, re.MULTILINE), done.output
    assert run("mysite.wsgi", "--check-config", cwd=folder).code == 0


def test_the_console_script_finds_the_project(project: MakeProject) -> None:
    """It starts without the current directory on the path, which python -m puts there."""
    code = "import sys; del sys.path[0]; from pooled_serve.cli import main; main()"
    command = (POOLED_SERVE[0], "-c", code)
    done = run("mysite.wsgi", "--check", cwd=project(databases={}), command=command)
    assert done.code == 0, done.output


def test_a_configuration_file_that_patches_with_gevent(
    project: MakeProject, database: Database, serve: StartServe
) -> None:
    folder = project(databases={"default": database.django()}, views=HELLO)
    config = "from gevent import monkey\nmonkey.patch_all()\n"
    (folder / "gunicorn.conf.py").write_text(config)
    assert check(folder).code == 0
    assert serve(folder).get("/hello").status == 200


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_fails_by_our_own_fault(capfd: pytest.CaptureFixture[str]) -> None:
    def setup() -> None:
        raise AssertionError("ours")

    with pytest.raises(StartupError) as refused:
        preflight.run("mysite.wsgi", setup)
    assert refused.value.problems[0].code == "PS102"
    assert "the preflight of mysite.wsgi failed" in refused.value.problems[0].message
    assert "AssertionError: ours" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_interrupted(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C goes to both processes; one of them speaking is enough."""

    def setup() -> None:
        raise KeyboardInterrupt

    with pytest.raises(StartupError):
        preflight.run("mysite.wsgi", setup)
    assert capfd.readouterr().err == ""
