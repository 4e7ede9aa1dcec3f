"""Database servers that do not answer, do not let us in, or allow less than was asked for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pymysql
import pytest

from conftest import MakeProject, StartServe
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.preflight.servers import connect_problem
from support.command import EXIT_DATABASE, EXIT_PLAN, run
from support.django_project import PASSWORD, SQLITE, mysql_at
from support.ports import free_port
from support.processes import wait_until
from support.serve import ServerExited
from support.servers import ROOT, Database, Server


def refused_port() -> dict[str, Any]:
    return mysql_at("127.0.0.1", free_port())


HOST, NAME = "correct HOST and PORT in DATABASES", "check HOST in DATABASES"
SERVERS = {
    "refused": (refused_port, "PS301", "does not accept connections (Connection refused)", HOST),
    "no socket": (
        lambda: mysql_at("/nowhere/mysql.sock"),
        "PS301",
        "No such file",
        "or HOST if that is a path",
    ),
    "no socket in OPTIONS": (
        lambda: mysql_at("localhost", OPTIONS={"unix_socket": "/nowhere/mysql.sock"}),
        "PS301",
        "/nowhere/mysql.sock does not accept connections (No such file or directory)",
        "correct the path of its socket in DATABASES: OPTIONS['unix_socket'], or HOST if",
    ),
    "unknown host": (
        lambda: mysql_at("no-such-host.invalid"),
        "PS302",
        "name of no-such-host",
        NAME,
    ),
    **{
        f"host {host}": (
            partial(mysql_at, host),
            "PS302",
            "host name of ",
            f"→ write {meant} in",
        )
        for host, meant in {
            "no-such-host.invalid:21010": 'HOST = "no-such-host.invalid", PORT = "21010"',
            "mysql://no-such-host.invalid": 'HOST = "no-such-host.invalid"',
            f"mysql://app:{PASSWORD}@10.0.0.300:3307/app": 'HOST = "10.0.0.300", PORT = "3307"',
            f"mysql://no-such-host.invalid/app?user=app&password={PASSWORD}": (
                'HOST = "no-such-host.invalid"'
            ),
            "tcp://[::1]:3307": 'HOST = "::1", PORT = "3307"',
        }.items()
    },
    "IPv6 address that is none": (lambda: mysql_at("fe80::xyz"), "PS302", "[fe80::xyz]", NAME),
    "password in the host": (
        lambda: mysql_at(f"app:{PASSWORD}@no-such-host.invalid"),
        "PS302",
        "cannot resolve the host name of no-such-host.invalid:3306",
        NAME,
    ),
}


@pytest.mark.parametrize(
    "case", SERVERS.values(), ids=[f"{case[1]} {name}" for name, case in SERVERS.items()]
)
def test_unreachable_server(
    project: MakeProject, case: tuple[Callable[[], dict[str, Any]], str, str, str]
) -> None:
    databases, code, says, remedy = case
    folder = project(databases=databases())
    # A name server that does not answer must not take longer than the preflight waits.
    done = run("mysite.wsgi", "--check", cwd=folder, env={"RES_OPTIONS": "timeout:1 attempts:1"})
    done.assert_one_problem(f"FAIL  {code}", EXIT_DATABASE, says, remedy)
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
    done.assert_one_problem("FAIL  PS301", EXIT_DATABASE)
    server = serve(folder)
    assert server.get("/hello").text == "hello"
    assert "WARN  PS301" in server.log
    assert "in DATABASES; it starts nevertheless, --strict would refuse\n" in server.log
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


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("PASSWRD", "PASSWORD"),
        ("PASSWD", "PASSWORD"),
        ("password", "PASSWORD"),
        ("HSOT", "HOST"),
        ("CONN-MAX-AGE", "CONN_MAX_AGE"),
        ("TIMEZONE", "TIME_ZONE"),
    ],
)
def test_a_key_that_is_nearly_one(
    project: MakeProject, mariadb: Server, key: str, near: str
) -> None:
    done = check(project, mariadb.create_database(), **{key: PASSWORD})
    says = f"DATABASES has a key {key!r}, which Django does not know"
    done.assert_one_problem("WARN  PS110 default", 0, says, f"did you mean {near!r}?")
    assert PASSWORD not in done.output


@pytest.mark.parametrize(
    ("missing", "keys", "meant"),
    [
        ("USER", {"USERNAME": "user"}, "'USER'"),
        ("USER", {"DB_USER": "user"}, "'USER'"),
        ("PASSWORD", {"PASS": "password"}, "'PASSWORD'"),
        ("USER PASSWORD", {"username": "user", "PWD": "password"}, "'USER' and 'PASSWORD'"),
        ("PORT", {"MYSQL_PORT": "port"}, "'PORT'"),
    ],
)
def test_a_key_in_other_words_explains_why_the_login_fails(
    project: MakeProject, mariadb: Server, missing: str, keys: dict[str, str], meant: str
) -> None:
    database = mariadb.create_database()
    settings = database.django()
    given = {"user": database.user, "password": PASSWORD, "port": settings["PORT"]}
    settings = {key: value for key, value in settings.items() if key not in missing.split()}
    settings |= {key: given[what] for key, what in keys.items()}
    done = run("mysite.wsgi", "--check", cwd=project(databases={"default": settings}))
    says = f"{' and '.join(map(repr, keys))}, which Django does not know, so "
    code = "FAIL  PS301" if missing == "PORT" else "FAIL  PS303"
    done.assert_one_problem(code, EXIT_DATABASE, says, f"did you mean {meant}?")
    assert PASSWORD not in done.output


@pytest.mark.parametrize("key", ["DB", "DATABASE", "DATABASE_NAME", "DBNAME", "db_name"])
def test_a_key_in_other_words_leaves_no_database(
    project: MakeProject, mariadb: Server, key: str
) -> None:
    database = mariadb.create_database()
    done = check(project, database, NAME="", **{key: database.name})
    done.assert_one_problem("WARN  PS110 default", 0, repr(key), "did you mean 'NAME'?")


@pytest.mark.parametrize("key", ["HOSTNAME", "DATABASE_HOST", "SERVER"])
def test_a_key_in_other_words_for_the_host(project: MakeProject, key: str) -> None:
    """Of what is at the socket, if there is one, it is not the account."""
    databases = mysql_at("", free_port(), **{key: "127.0.0.1"})
    done = run("mysite.wsgi", "--check", cwd=project(databases=databases))
    done.assert_one_problem("FAIL  PS30", EXIT_DATABASE, repr(key), "did you mean 'HOST'?")


def test_a_key_in_other_words_beside_the_right_one_is_an_engines(
    project: MakeProject, mariadb: Server
) -> None:
    keys = dict.fromkeys(("USERNAME", "PASS", "DATABASE", "HOSTNAME", "DB_PORT"), PASSWORD)
    done = check(project, mariadb.create_database(), "--strict", **keys)
    assert done.code == 0, done.output


def test_keys_of_an_engine_are_its_own(project: MakeProject, mariadb: Server) -> None:
    keys = dict.fromkeys(("SCHEMA", "REPLICAS", "POOL", "MAX_AGE", "PREFIX", "LABEL"), PASSWORD)
    done = check(project, mariadb.create_database(), "--strict", **keys)
    assert done.code == 0, done.output


def test_account_for_another_host(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    mariadb.admin.query(f"CREATE USER far@'10.0.0.1' IDENTIFIED BY '{PASSWORD}'")
    done = check(project, database, USER="far", PASSWORD=PASSWORD)
    done.assert_one_problem(
        "PS303", EXIT_DATABASE, "'far'", "which depends on the client's host, too"
    )
    mariadb.admin.query("DROP USER far@'10.0.0.1'")


def test_expired_password(project: MakeProject, mysql: Server) -> None:
    database = mysql.create_database()
    mysql.admin.query(f"ALTER USER {database.user}@127.0.0.1 PASSWORD EXPIRE")
    done = check(project, database)
    done.assert_one_problem("PS303", EXIT_DATABASE, "has expired", "ALTER USER")


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_locked_account(request: pytest.FixtureRequest, project: MakeProject, kind: str) -> None:
    server = request.getfixturevalue(kind)
    database = server.create_database()
    found = f"SELECT host AS host FROM mysql.user WHERE user = '{database.user}'"
    for row in server.admin.query(found):
        server.admin.query(f"ALTER USER '{database.user}'@'{row['host']}' ACCOUNT LOCK")
    done = check(project, database)
    done.assert_one_problem("PS303", EXIT_DATABASE, "locked", "ALTER USER ... ACCOUNT UNLOCK")


@pytest.mark.parametrize("apps", ["'django.contrib.contenttypes'", ""])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_an_account_that_may_not_read_the_migrations(
    request: pytest.FixtureRequest, project: MakeProject, kind: str, apps: str
) -> None:
    server = request.getfixturevalue(kind)
    database = server.create_database()
    name = database.name
    server.admin.query(f"CREATE TABLE {name}.django_migrations (id INT, app TEXT, name TEXT)")
    server.admin.query(f"CREATE USER less IDENTIFIED BY '{PASSWORD}'")
    server.admin.query(f"CREATE TABLE {name}.other (id INT)")
    server.admin.query(f"GRANT SELECT ON {name}.other TO less")
    try:
        folder = project(
            databases={"default": database.django(USER="less", PASSWORD=PASSWORD)},
            settings=f"INSTALLED_APPS = [{apps}]",
        )
        done = run("mysite.wsgi", "--check", cwd=folder)
    finally:
        server.admin.query("DROP USER less")
    said = " ".join(done.output.split())
    note = f"nothing is known of migrations: GRANT SELECT ON {name}.django_migrations to it"
    assert (note in said) == bool(apps)
    assert "manage.py migrate" not in done.output


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
    done.assert_one_problem("PS305", EXIT_DATABASE, "max_user_connections", "raise its limit")


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
    problem = connect_problem(raised.value, "db:3306", 5.0)
    assert problem.code == "PS306"
    assert "pooled-serve[rsa]" in problem.hint


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (pymysql.OperationalError(1698, "Access denied"), "PS303", "Access denied"),
        (pymysql.OperationalError(1203, "User x has more"), "PS305", "User x has more"),
        (pymysql.OperationalError(1862, "Your password has expired."), "PS303", "has expired"),
        (pymysql.OperationalError(2026, "SSL connection error"), "PS309", "SSL"),
        (pymysql.OperationalError(2003, "Can't connect"), "PS301", "Can't connect"),
        (pymysql.OperationalError(2003, "Can't connect (timed out)"), "PS307", "within 5s"),
        (pymysql.OperationalError(2013, "Lost connection (timed out)"), "PS307", "within 5s"),
        (pymysql.OperationalError(1130, "Host\nnot allowed"), "PS303", "Host not allowed"),
        (pymysql.OperationalError(1105, "Some\nerror"), "PS308", "Some error (error 1105"),
        (
            pymysql.OperationalError(2006, "gone (reset by peer)"),
            "PS308",
            "hung up during the login",
        ),
        (ValueError("unheard of"), "PS308", "unheard of"),
    ],
)
def test_other_errors_of_servers(error: Exception, code: str, says: str) -> None:
    problem = connect_problem(error, "db:3306", 5.0)
    assert problem.code == code
    assert says in problem.message
    assert "db:3306" in problem.message
    assert "\n" not in problem.message


@pytest.mark.parametrize(
    ("error", "text", "code", "remedy"),
    [
        (3118, "Account is locked.", "PS303", "ALTER USER ... ACCOUNT UNLOCK"),
        (4151, "this account is locked", "PS303", "ALTER USER ... ACCOUNT UNLOCK"),
        (3955, "blocked for 3 days", "PS303", "PASSWORD in DATABASES, then unlock the account"),
        (4150, "too many credential errors", "PS303", "then unblock the account: FLUSH PRIVILEGES"),
        (1130, "not allowed to connect", "PS303", "CREATE USER for that host"),
        (1524, "Plugin 'x' is not loaded", "PS303", "a plugin that the server has (SHOW PLUGINS)"),
        (2059, "Authentication plugin 'x' not", "PS303", "to a plugin that PyMySQL has"),
        (1129, "many connection errors", "PS308", "TRUNCATE performance_schema.host_cache"),
        (3032, "currently in offline mode", "PS308", "SET GLOBAL offline_mode = OFF"),
    ],
)
def test_an_error_of_the_account_has_its_remedy(
    error: int, text: str, code: str, remedy: str
) -> None:
    problem = connect_problem(pymysql.OperationalError(error, text), "db:3306", 5.0)
    assert (problem.code, problem.message) == (code, f"db:3306: {text}")
    assert remedy in problem.hint
    assert "error log" not in problem.hint


@pytest.mark.parametrize(
    ("server", "remedy"),
    [
        ("db:3306", "a firewall drops packets; try: mysqladmin -h HOST -P PORT ping"),
        ("/run/my sql.sock", "it may be frozen; try: mysqladmin -S '/run/my sql.sock' ping"),
    ],
)
def test_how_to_ask_a_server_that_does_not_answer(server: str, remedy: str) -> None:
    late = pymysql.OperationalError(2003, "Can't connect (timed out)")
    problem = connect_problem(late, server, 5.0)
    assert problem.code == "PS307"
    assert problem.hint.endswith(remedy)


def fail(error: Exception) -> Exception:
    """Returns the error as it is after Python code has raised it."""
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_failure_of_code_is_not_called_the_servers_answer() -> None:
    # 1045 is a key here, and not "Access denied".
    problem = connect_problem(fail(KeyError(1045)), "db:3306", 5.0)
    assert problem.code == "PS308"
    said = f"db:3306: Python code fails in the connect: KeyError: 1045 ({__file__}, line "
    assert problem.message.startswith(said)
    assert "(error" not in problem.message
    assert "error log" not in problem.hint
    assert "OPTIONS" in problem.hint


def test_rows_that_turn_out_to_be_no_tuples(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    folder = project(
        databases={"default": database.django()},
        settings="""
            from pymysql.cursors import Cursor

            class Rows(Cursor):
                def fetchone(self):
                    return dict(enumerate(super().fetchone()))

            DATABASES["default"]["OPTIONS"] = {"cursorclass": Rows}
        """,
    )
    done = run("mysite.wsgi", "--check", cwd=folder)
    says = "OPTIONS['cursorclass'] of the database 'default' is <class 'mysite.settings.Rows'>, not"
    done.assert_one_problem("PS110", EXIT_DATABASE, says, "none, or another class")


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


# --- Numbers that the server does not allow ----------------------------------------------------


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
    "age by settings": (
        [],
        {"CONN_MAX_AGE": 600},
        "PS203",
        "live 600s",
        "use CONN_MAX_AGE 24 in DATABASES, or --conn-max-age 24, or on",
    ),
    "cap below size": (
        ["--pool-size", "8", "--max-outstanding", "6"],
        {},
        "PS204",
        "--max-outstanding 6 is smaller than --pool-size 8",
        "use --pool-size 6, or at least --max-outstanding 8",
    ),
    "cap below size of one": (
        ["--pool", "default:8:6"],
        {},
        "PS204",
        "--pool: the cap 6 is smaller than the size 8",
        "use --pool default:6:6, or --pool default:8:8",
    ),
    "too many": (
        ["-w", "2", "--max-outstanding", "11"],
        {},
        "PS201",
        "2 workers × 11 connections = 22, the server allows 20 (",
        "share them), or --max-outstanding ",
    ),
    "pool too large": (
        ["--pool-size", "200"],
        {},
        "PS201",
        "1 worker × 200 connections = 200, the server allows 20 (",
        "use --pool-size ",
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


@pytest.mark.parametrize("plan", PLANS.values(), ids=[f"{p[2]} {n}" for n, p in PLANS.items()])
def test_plan(project: MakeProject, short_tempered: Server, plan: Any) -> None:
    args, settings, code, says, remedy = plan
    database = short_tempered.create_database()
    done = check(project, database, *args, **settings)
    done.assert_one_problem(code, EXIT_PLAN, says, remedy)
    assert "cap lowered" not in done.output  # either it fits, or not


def test_defaults_yield(project: MakeProject, short_tempered: Server) -> None:
    done = check(project, short_tempered.create_database(), "-w", "2")
    assert done.code == 0, done.output
    assert "age limit lowered from 60s to 24s: MariaDB hangs up after" in done.output
    assert "cap lowered from 12 to 8 to fit max_connections=20 and leave 4 to others" in done.output


def test_limit_of_the_user(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database(max_user_connections=6)
    done = check(project, database)
    says = "cap lowered from 12 to 4 to fit max_user_connections=6 and leave 2 to others"
    assert says in done.output
    done = check(project, database, "--max-outstanding", "7")
    done.assert_one_problem("PS201", EXIT_PLAN, "= 7, the server allows 6", "raise max_user_conn")


def test_a_project_without_a_database_to_select(project: MakeProject, mariadb: Server) -> None:
    database = mariadb.create_database()
    done = check(project, database, NAME="")
    done.assert_one_problem("WARN  PS110 default", 0, "NAME is empty", "write the name")


# --- The port ----------------------------------------------------------------------------------


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


def test_a_check_beside_a_running_instance_only_notes_its_port(project: MakeProject) -> None:
    folder = project(databases=SQLITE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        done = run("mysite.wsgi", "--check", "--strict", "-b", taken, cwd=folder)
    said = f"note {taken} is in use: a running instance may hold it"
    assert said in " ".join(done.stdout.split())
    assert done.code == 0, done.output
    assert "is in use" not in run("mysite.wsgi", "--check", "-b", taken, cwd=folder).output
