"""Settings that are written for mysqlclient, which manage.py may use, mean the same here."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from conftest import MakeProject, StartServe
from support.command import EXIT_DATABASE, EXIT_PROJECT, Done, run
from support.django_project import APP, WSGI
from support.servers import Database, Server
from support.site import Site

OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name

StartSite = Callable[..., Site]
Check = Callable[..., Done]


@pytest.fixture
def check(project: MakeProject) -> Check:
    def check(database: Database, *args: str, **settings: object) -> Done:
        folder = project(databases={"default": database.django(**settings)})
        done = run(APP, "--check", *args, cwd=folder)
        assert database.password not in done.output
        return done

    return check


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


# --- The socket --------------------------------------------------------------------------------


@pytest.fixture
def local(server: Server, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A database whose user may come over the socket only. That is in the usual place."""
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(server.socket))
    database = server.create_database()
    server.admin.query(f"DROP USER {database.user}@127.0.0.1")
    server.admin.query(f"CREATE USER {database.user}@'%' IDENTIFIED BY 'of somebody else'")
    return database


@pytest.mark.parametrize("host", ["", "localhost"])
def test_localhost_is_the_socket(
    site: StartSite, server: Server, local: Database, host: str
) -> None:
    shop = site(server=server, database=local, HOST=host, PORT="")
    assert shop.value("SELECT USER()").endswith("@localhost")
    assert f" {server.socket}/{local.name} " in shop.server.log
    shop.assert_whole()


def test_an_address_is_not_the_socket(check: Check, server: Server, local: Database) -> None:
    check(local).assert_one_problem("PS303", EXIT_DATABASE, "127.0.0.1", "PASSWORD")


def test_without_a_socket_localhost_is_an_address(
    check: Check, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MYSQL_UNIX_PORT", "/nowhere")
    database = server.create_database()
    done = check(database, HOST="localhost")
    assert done.code == 0
    assert f" localhost:{server.port}/{database.name} " in done.output
    note = f"there is none in the usual places, so TCP is used (localhost:{server.port})"
    assert note in done.output
    assert note not in check(database).output
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nprotocol = tcp\n")  # which mysqlclient obeys, too
    options = {"read_default_file": str(file)}
    assert note not in check(database, HOST="localhost", OPTIONS=options).output
    done = check(database, HOST="localhost", PORT=1)
    done.assert_one_problem("PS301", EXIT_DATABASE, "localhost:1 does not acc", "no Unix socket")


def test_two_names_of_a_server_are_one_server(
    project: MakeProject, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(server.socket))
    database = server.create_database()
    by_name = database.django(HOST="localhost", PORT="")
    folder = project(databases={"default": database.django(), "local": by_name})
    done = run(APP, "--check", "--max-outstanding", "7", cwd=folder)
    assert done.code == 0
    assert " 1 × 14 = 14 " in done.output


def test_a_port_that_is_not_used(check: Check, server: Server, local: Database) -> None:
    done = check(local, HOST="localhost", PORT=3999)
    says = f"whose server has port {server.port}; PORT 3999 is not used"
    done.assert_one_problem("PS310", 0, says, "use 127.0.0.1 as HOST")
    assert check(local, "--strict", HOST="localhost", PORT=3999).code == 5
    assert "PS310" not in check(local, HOST="localhost").output


def test_the_socket_of_an_option_file(site: StartSite, server: Server, tmp_path: Path) -> None:
    database = server.create_database()
    included = tmp_path / "conf.d" / "client.cnf"
    included.parent.mkdir()
    included.write_text(
        f"[client]\nuser = nobody\n[shop]\nuser = {database.user}\nsocket = {server.socket}\n"
        f"password = '{database.password}' # of the shop\n"
    )
    file = tmp_path / "my.cnf"
    file.write_text(f"!includedir {included.parent}\n")
    options = {"read_default_file": str(file), "read_default_group": "shop"}
    nothing = dict.fromkeys(("HOST", "PORT", "USER", "PASSWORD"), "")
    shop = site(server=server, database=database, OPTIONS=options, **nothing)
    assert shop.value("SELECT USER()") == f"{database.user}@localhost"
    shop.assert_whole()


def test_an_option_file_that_is_not_there(check: Check, mariadb: Server) -> None:
    options = {"read_default_file": "/no/my.cnf"}
    done = check(mariadb.create_database(), OPTIONS=options)
    done.assert_one_problem("PS112", 0, "/no/my.cnf", "correct read_default_file")


def test_an_account_of_the_operating_system(
    check: Check, mysql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no password: the server asks the kernel who is at the other end of the socket."""
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(mysql.socket))
    database = mysql.create_database()
    account = f"{database.user}@localhost"
    mysql.admin.query("INSTALL PLUGIN auth_socket SONAME 'auth_socket.so'")
    try:
        mysql.admin.query(f"ALTER USER {account} IDENTIFIED WITH auth_socket AS '{OWN_NAME}'")
        done = check(database, HOST="", PORT="", PASSWORD="")
    finally:
        mysql.admin.query(f"DROP USER {account}")
        mysql.admin.query("UNINSTALL PLUGIN auth_socket")
    assert done.code == 0, done.output
    assert f" {mysql.socket}/{database.name} " in done.output


def test_the_account_of_the_user_who_runs_it(
    check: Check, start_mariadb: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_mariadb()
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(server.socket))
    monkeypatch.setenv("LOGNAME", "somebody")
    database = server.create_database()
    # The administrator may be the same user, and stays connected.
    server.admin.query(f"CREATE OR REPLACE USER {OWN_NAME}@localhost IDENTIFIED VIA unix_socket")
    server.admin.query(f"GRANT ALL ON {database.name}.* TO {OWN_NAME}@localhost")
    done = check(database, HOST="", PORT="", USER="", PASSWORD="")
    assert done.code == 0, done.output
    assert f" {server.socket}/{database.name} " in done.output


# --- TLS ---------------------------------------------------------------------------------------


def of_its_own(server: Server) -> dict[str, str]:
    """The authority that MySQL makes when it is installed."""
    return {"ca": str(server.directory / "data" / "ca.pem")}


@pytest.mark.parametrize(
    ("mode", "with_ca", "encrypted"),
    [
        ("DISABLED", False, False),
        ("PREFERRED", False, True),
        ("REQUIRED", False, True),
        ("REQUIRED", True, True),
        ("VERIFY_CA", True, True),
    ],
)
def test_modes(site: StartSite, mysql: Server, mode: str, with_ca: bool, encrypted: bool) -> None:
    options: dict[str, Any] = {"ssl_mode": mode}
    if with_ca:
        options["ssl"] = of_its_own(mysql)
    shop = site(server=mysql, cap=1, OPTIONS=options)
    assert shop.is_encrypted() is encrypted
    shop.assert_whole()


REFUSED = {
    "identity": (
        {"ssl_mode": "VERIFY_IDENTITY"},
        "mismatch",
        "use the HOST that the certificate is for, or OPTIONS['ssl_mode'] = 'VERIFY_CA'",
    ),
    "files alone": ({}, "mismatch", "'VERIFY_CA'"),
    "unknown authority": ({"ssl_mode": "VERIFY_CA", "ssl": {}}, "CERTIFICATE_VERIFY_FAILED", "ssl"),
}


@pytest.mark.parametrize(("options", "says", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_certificates_that_are_not_believed(
    check: Check, mysql: Server, options: dict[str, Any], says: str, remedy: str
) -> None:
    done = check(mysql.create_database(), OPTIONS={"ssl": of_its_own(mysql), **options})
    done.assert_one_problem("PS309", EXIT_DATABASE, says, remedy)


@pytest.mark.parametrize("options", [{"ssl_mode": "REQUIRED"}, {"ssl": True}])
def test_tls_that_is_required_of_a_server_without(
    check: Check, mariadb: Server, options: dict[str, Any]
) -> None:
    database = mariadb.create_database()
    done = check(database, OPTIONS=options)
    done.assert_one_problem("PS309", EXIT_DATABASE, "SSL", "set up TLS on the server")
    assert check(database, OPTIONS={"ssl_mode": "PREFERRED"}).code == 0


# --- Other words -------------------------------------------------------------------------------


def test_all_at_once(site: StartSite, server: Server) -> None:
    options = {
        "charset": "utf8mb4",
        "collation": "utf8mb4_bin",
        "sql_mode": "ANSI",
        "init_command": "SET lc_time_names = 'de_DE'",
        "compress": True,
        "connect_timeout": 0,
        "local_infile": False,
        "use_unicode": True,
        "auth_plugin": "mysql_native_password",
        "ssl_mode": "PREFERRED",
    }
    shop = site(server=server, cap=1, OPTIONS=options)
    for _ in range(2):
        assert shop.value("SELECT @@collation_connection") == "utf8mb4_bin"
        assert "ANSI_QUOTES" in shop.value("SELECT @@sql_mode")
        assert shop.value("SELECT @@lc_time_names") == "de_DE"
        shop.run("SET sql_mode = '', lc_time_names = 'fr_FR'")
    assert "note  default  connections are not compressed" in shop.server.log
    shop.assert_whole()


def test_queries_of_the_project_while_it_is_loaded(
    project: MakeProject, serve: StartServe, mysql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preflight has no pool, and yet connects as the worker does."""
    monkeypatch.setenv("MYSQL_UNIX_PORT", str(mysql.socket))
    database = mysql.create_database()
    mysql.admin.query(f"DROP USER {database.user}@127.0.0.1")
    settings = database.django(HOST="localhost", PORT="", OPTIONS={"ssl_mode": "REQUIRED"})
    ask = "from django.db import connection\nconnection.cursor().execute('SELECT 1')"
    folder = project(databases={"default": settings}, wsgi=f"{dedent(WSGI)}\n{ask}")
    done = run(APP, "--check", cwd=folder)
    assert done.code == 0, done.output
    assert serve(folder).get("/none").status == 404


def test_several_statements_if_they_were_asked_for(site: StartSite, server: Server) -> None:
    shop = site(server=server, cap=1, OPTIONS={"multi_statements": True})
    assert shop.run("SET @a = 1; SET @b = 2").status == 200
    assert shop.value("SELECT @b") == "None"
    shop.assert_whole()


def test_a_command_for_connections_that_is_several(check: Check, server: Server) -> None:
    done = check(server.create_database(), OPTIONS={"init_command": "SET @a = 1; SET @b = 2"})
    done.assert_one_problem("PS112", EXIT_PROJECT, "has 2 statements", "SET a = 1, b = 2")
    both = {"init_command": "SET @a = 1; SET @b = 2", "multi_statements": True}
    assert check(server.create_database(), OPTIONS=both).code == 0
    done = check(server.create_database(), OPTIONS={"init_command": "SET @a = 1 SET @b"})
    done.assert_one_problem("PS308", EXIT_DATABASE, "1064", "correct OPTIONS['init_command']")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("init_command", "SET no_such_variable = 1", "no_such_variable"),
        ("init_command", "SET sql_mode = 'NONSENSE'", "NONSENSE"),
        ("sql_mode", "NONSENSE", "NONSENSE"),
        ("collation", "nonsense_ci", "nonsense_ci"),
    ],
)
def test_what_the_server_refuses_of_the_options(
    check: Check, server: Server, name: str, value: str, says: str
) -> None:
    done = check(server.create_database(), OPTIONS={name: value})
    done.assert_one_problem("PS308", EXIT_DATABASE, says, f"correct OPTIONS['{name}']")


def test_a_name_that_is_empty_is_said_to_be(check: Check, mariadb: Server) -> None:
    done = check(mariadb.create_database(), NAME="")
    done.assert_one_problem("PS110", 0, "NAME is empty", "write the name of the database as NAME")
    assert "migrations are not applied" not in done.output
    named = mariadb.create_database()
    assert "NAME is empty" not in check(named, NAME="", OPTIONS={"db": named.name}).output


@pytest.mark.parametrize(
    ("options", "says", "remedy"),
    [
        ({"local_infile_dir": "/tmp"}, "'local_infile_dir'", "use local_infile"),
        ({"ssl_mode": "ALWAYS"}, "'ALWAYS'", "use one of DISABLED, PREFERRED, REQUIRED"),
        ({"read_timout": 4}, "'read_timout'", "did you mean 'read_timeout'?"),
        ({"wait_timeout": 60}, "'wait_timeout'", "with init_command, SET wait_timeout = 60"),
    ],
)
def test_what_has_no_translation(
    check: Check, mariadb: Server, options: dict[str, Any], says: str, remedy: str
) -> None:
    done = check(mariadb.create_database(), OPTIONS=options)
    done.assert_one_problem("PS112", EXIT_PROJECT, says, remedy)


# --- manage.py ---------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", [False, True])
def test_what_manage_py_cannot_do_without_mysqlclient(
    project: MakeProject, check: Check, server: Server, local: Database, installed: bool
) -> None:
    options: dict[str, object] = {"ssl_mode": "PREFERRED"}
    folder = project(databases={"default": local.django(HOST="localhost", OPTIONS=options)})
    if installed:
        (folder / "MySQLdb.py").touch()
    done = run(APP, "--check", cwd=folder)
    word = "manage.py fails with PyMySQL: OPTIONS has 'ssl_mode'"
    host = f"HOST 'localhost' means the socket {server.socket}, and to manage.py with PyMySQL TCP"
    assert done.code == 0, "they are notes"
    for note in (word, host):
        assert (note in done.output) is not installed
        assert note not in check(server.create_database()).output, "neither of the two"
    options = {"unix_socket": str(server.socket)}
    assert host not in check(local, HOST="localhost", OPTIONS=options).output


def test_an_option_file_whose_socket_is_not_there(
    check: Check, mariadb: Server, tmp_path: Path
) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nsocket = /nowhere/mysql.sock\n")
    options = {"read_default_file": str(file)}
    done = check(mariadb.create_database(), HOST="localhost", OPTIONS=options)
    says = "/nowhere/mysql.sock does not accept connections"
    remedy = f"→ start the database server, or correct socket in {file}"
    done.assert_one_problem("PS301", EXIT_DATABASE, says, remedy)
