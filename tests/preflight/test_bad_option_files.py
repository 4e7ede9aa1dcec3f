"""Option files: one that has no effect is the cause that is told, with one remedy; and a remedy
names the file where its values are from."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pymysql
import pytest

from conftest import MakeProject
from pooled_serve.preflight.origins import Origins
from pooled_serve.preflight.servers import connect_problem
from support.command import EXIT_DATABASE, Done, run
from support.django_project import PASSWORD, mysql_at
from support.ports import free_port
from support.servers import Database, Server

NOTHING: dict[str, Any] = dict.fromkeys(("PORT", "USER", "PASSWORD", "NAME"), "")


@pytest.fixture(autouse=True)
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYSQL_UNIX_PORT", "/nowhere")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.cnf"


def check(project: MakeProject, *args: str, **settings: Any) -> Done:
    folder = project(databases=mysql_at(settings.pop("HOST", ""), **{**NOTHING, **settings}))
    done = run("mysite.wsgi", "--check", *args, cwd=folder)
    assert PASSWORD not in done.output
    return done


# --- Files that have no effect -----------------------------------------------------------------

WITHOUT_EFFECT: dict[str, tuple[str, dict[str, str], str, str]] = {
    "another group": (
        "[mysql]\nhost=127.0.0.1\nport=PORT",
        {},
        "FILE has no group [client] (it has [mysql]), so it has no effect",
        "→ name the group [client], or set OPTIONS['read_default_group'] = 'mysql'",
    ),
    "no group": (
        "host=127.0.0.1\nport=PORT",
        {},
        "FILE has no group [client] (it has none), so it has no effect",
        "→ begin it with the line [client]",
    ),
    "capitals": ("[CLIENT]\nhost=127.0.0.1", {}, "(it has [CLIENT])", "→ name the group [client],"),
    "several groups": (
        "[mysql]\nhost=127.0.0.1\n[shop]\nport=1",
        {},
        "(it has [mysql], [shop])",
        "→ give it a group [client]",
    ),
    "a server's group": (
        "[mysqld]\nsocket=/nowhere/mysqld.sock",
        {},
        "(it has [mysqld])",
        "→ give it a group [client]",
    ),
    "not the group of OPTIONS": (
        "[mysql]\nhost=127.0.0.1",
        {"read_default_group": "shop"},
        "FILE has no group [client] or [shop] (it has [mysql])",
        "→ give it a group [client] or [shop]",
    ),
    "misspelt host": (
        "[client]\nhots=127.0.0.1\nport=PORT\nuser=app\npassword=PASSWORD",
        {},
        "FILE has an option 'hots', which no client knows, so it has no effect",
        "→ did you mean 'host'?",
    ),
}


@pytest.mark.parametrize(
    ("text", "options", "says", "remedy"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT.keys()
)
def test_a_file_without_effect_is_the_one_cause(
    project: MakeProject, file: Path, text: str, options: dict[str, str], says: str, remedy: str
) -> None:
    port = free_port()
    text = text.replace("PORT", str(port)).replace("PASSWORD", PASSWORD)
    file.write_text(f"{text}\ndatabase=app\n")  # or NAME is missing, too
    options = {"read_default_file": str(file), **options}
    done = check(project, PORT=port, OPTIONS=options)
    says = says.replace("FILE", str(file))
    done.assert_one_problem("FAIL  PS301", EXIT_DATABASE, says, remedy)
    assert f"localhost:{port} does not accept connections (Connection refused); " in done.output
    assert "means a Unix socket" not in done.output, "its remedy is another"


def test_a_file_that_is_not_there_is_the_one_cause(project: MakeProject) -> None:
    done = check(project, PORT=free_port(), OPTIONS={"read_default_file": "/no/my.cnf"})
    says = "OPTIONS name the option file /no/my.cnf, which cannot be read, so it is left out"
    done.assert_one_problem("PS301", EXIT_DATABASE, says, "→ correct read_default_file, or let")
    assert "means a Unix socket" not in done.output


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("OPTION", {"read_default_file": "/no/my.cnf"}, "OPTIONS"),
        ("OPTOINS", {"unix_socket": "/no/mysql.sock"}, "OPTIONS"),
        ("HSOT", "db", "HOST"),
    ],
)
def test_a_misspelt_key_is_the_one_cause(
    project: MakeProject, key: str, value: object, near: str
) -> None:
    done = check(project, PORT=free_port(), NAME="app", **{key: value})
    says = f"DATABASES has a key {key!r}, which Django does not know, so it has no effect"
    done.assert_one_problem("PS301", EXIT_DATABASE, says, f"→ did you mean {near!r}?")
    assert "means a Unix socket" not in done.output


@pytest.mark.parametrize(
    "settings",
    [
        {"OPTIONS": {"read_default_file": "/no/my.cnf"}},
        {"OPTION": {"charset": "utf8mb4"}},
        {"PASSWD": PASSWORD},
    ],
)
def test_what_cannot_be_behind_it_is_another_problem(
    project: MakeProject, settings: dict[str, Any]
) -> None:
    where = {"HOST": "127.0.0.1", "PORT": free_port(), "USER": "app", "NAME": "app"}
    done = check(project, **where, **settings)
    assert "so it " in done.output
    assert "WARN  PS11" in done.output, "with a remedy of its own"
    assert "→ start the database server, or correct HOST and PORT in DATABASES" in done.output


@pytest.mark.parametrize(
    "text", ["", "# later", "[mysqldump]\nquick", "[client]", "[client-server]\n[mysqld]\nport=1"]
)
def test_a_file_that_loses_nothing(
    project: MakeProject, mariadb: Server, file: Path, text: str
) -> None:
    file.write_text(text)
    database = mariadb.create_database()
    settings = database.django(OPTIONS={"read_default_file": str(file)})
    done = check(project, "--strict", **settings)
    assert done.code == 0, done.output


def test_a_file_without_group_where_all_else_is_well(
    project: MakeProject, mariadb: Server, file: Path
) -> None:
    file.write_text("[mysql]\ninit-command=SET @a = 1\n")
    database = mariadb.create_database()
    settings = database.django(OPTIONS={"read_default_file": str(file)})
    done = check(project, **settings)
    done.assert_one_problem("WARN  PS112 default", 0, "has no group [client]", "→ name the group")


# --- Values from a file ------------------------------------------------------------------------


def login(at: Database, /, **other: object) -> str:
    words = {"host": at.host, "port": at.port, "user": at.user, **other}
    return "[client]\n" + "".join(f"{name}={value}\n" for name, value in words.items())


@pytest.mark.parametrize(
    ("lines", "settings", "says", "remedy"),
    [
        ({"password": PASSWORD}, {}, "Access denied", "→ correct user and password in FILE, or"),
        ({}, {}, "Access denied", "→ correct user and password in FILE, or the account"),
        (
            {},
            {"PASSWORD": PASSWORD},
            "Access denied",
            "→ correct user in FILE and PASSWORD in DATABASES, or the account",
        ),
        (
            {"password": PASSWORD},
            {"USER": "nobody"},
            "Access denied",
            "→ correct USER in DATABASES and password in FILE, or the account",
        ),
        (
            {"password": PASSWORD},
            {"USER": "nobody", "PASSWORD": PASSWORD},
            "Access denied",
            "→ correct USER and PASSWORD in DATABASES, or the account",
        ),
        (
            {"pasword": PASSWORD},
            {},
            "FILE has an option 'pasword', which no client knows, so it has no effect",
            "→ did you mean 'password'?",
        ),
        # The name would be the password's, too.
        ({f"password:{PASSWORD}": ""}, {}, "Access denied", "→ correct user and password in FILE,"),
        (
            {"password": f"se #{PASSWORD}"},
            {},
            "Access denied",
            "in FILE (the password ends before the #, unless it has quotes), or the account",
        ),
        (
            {"password": f"se#{PASSWORD}"},
            {},
            "Access denied",
            "→ correct user and password in FILE,",
        ),
    ],
)
def test_a_login_from_a_file(
    project: MakeProject,
    mariadb: Server,
    file: Path,
    lines: dict[str, str],
    settings: dict[str, str],
    says: str,
    remedy: str,
) -> None:
    file.write_text(login(mariadb.create_database(), **lines))
    done = check(project, OPTIONS={"read_default_file": str(file)}, NAME="app", **settings)
    says, remedy = (text.replace("FILE", str(file)) for text in (says, remedy))
    done.assert_one_problem("FAIL  PS303", EXIT_DATABASE, says, remedy)


def test_a_password_that_goes_on_behind_a_sign(
    project: MakeProject, mariadb: Server, file: Path
) -> None:
    database = mariadb.create_database()
    mariadb.admin.query(f"ALTER USER {database.user}@127.0.0.1 IDENTIFIED BY 'se#cret'")
    file.write_text(login(database, passwd="se#cret", db=database.name))
    done = check(project, "--strict", OPTIONS={"read_default_file": str(file)})
    assert done.code == 0, done.output


def test_a_database_from_a_file(project: MakeProject, mariadb: Server, file: Path) -> None:
    database = mariadb.create_database()
    file.write_text(login(database, password=database.password, database="nosuch"))
    done = check(project, OPTIONS={"read_default_file": str(file)})
    done.assert_one_problem("PS304", EXIT_DATABASE, "nosuch", f"or correct database in {file}")


@pytest.mark.parametrize(
    ("text", "code", "remedy"),
    [
        ("host=127.0.0.1\nport=PORT", "PS301", "server, or correct host and port in FILE"),
        ("socket=/nowhere/a.sock", "PS301", "server, or correct socket in FILE"),
        ("host=no-such-host.invalid", "PS302", "→ check host in FILE, and DNS"),
        ("host=no-such-host.invalid:1", "PS302", "→ write host and port apart in FILE"),
    ],
)
def test_a_server_from_a_file(
    project: MakeProject, file: Path, text: str, code: str, remedy: str
) -> None:
    file.write_text(f"[client]\n{text}\n".replace("PORT", str(free_port())))
    done = check(project, NAME="app", OPTIONS={"read_default_file": str(file)})
    done.assert_one_problem(code, EXIT_DATABASE, "", remedy.replace("FILE", str(file)))


def test_a_host_of_a_file_that_means_a_socket(project: MakeProject, file: Path) -> None:
    file.write_text(f"[client]\nhost=localhost\nport={free_port()}\n")
    done = check(project, NAME="app", OPTIONS={"read_default_file": str(file)})
    assert f"host in {file} means a Unix socket" in done.output
    assert "use 127.0.0.1, or set socket there" in done.output


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("init-command=SELEC 1", "PS308", "→ correct init-command in FILE; PyMySQL"),
        ("ssl-mode=required", "PS309", "→ set up TLS on the server, or remove ssl-mode in FILE"),
    ],
)
def test_other_words_from_a_file(
    project: MakeProject, mariadb: Server, file: Path, line: str, code: str, says: str
) -> None:
    file.write_text(f"[client]\n{line}\n")
    settings = mariadb.create_database().django(OPTIONS={"read_default_file": str(file)})
    done = check(project, **settings)
    done.assert_one_problem(code, EXIT_DATABASE, "", says.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("line", "verify_code", "remedy"),
    [
        ("host=db", 62, "→ use in FILE the host that the certificate is for"),
        ("ssl-ca=/ca.pem", 19, "→ correct ssl-ca in FILE: the server's certificate is of another"),
        ("ssl-capath=/ca", 19, "→ correct ssl-capath in FILE: the server's certificate is of"),
        ("ssl-ca=/ca.pem", 0, "→ correct ssl-ca in FILE"),
        ("user=app", 19, "→ correct OPTIONS['ssl']['ca'] in DATABASES: the server's"),
    ],
)
def test_certificates_from_a_file(file: Path, line: str, verify_code: int, remedy: str) -> None:
    file.write_text(f"[client]\n{line}\n")
    cause = ssl.SSLCertVerificationError()
    cause.verify_code = verify_code
    error = pymysql.OperationalError(2003, "certificate verify failed")
    error.original_exception = cause
    origins = Origins({"OPTIONS": {"read_default_file": str(file)}})
    assert remedy.replace("FILE", str(file)) in str(
        connect_problem(error, "db:3306", 5.0, origins=origins)
    )


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_login_that_is_in_the_settings_is_not_wrong_for_a_lost_socket(host: str) -> None:
    options = {"read_default_file": "/no/my.cnf"}
    origins = Origins({"HOST": host, "USER": "app", "PASSWORD": PASSWORD, "OPTIONS": options})
    error = pymysql.OperationalError(1045, "Access denied")
    problem = connect_problem(error, "localhost:3306", 5.0, origins=origins)
    # Without HOST the file may have named another server.
    assert ("/no/my.cnf" in problem.message) is (host == "")


def test_a_file_that_manage_py_does_not_find(
    project: MakeProject, mariadb: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB's client library takes "~" for a folder of that name, and says nothing."""
    monkeypatch.setenv("HOME", str(file.parent))
    database = mariadb.create_database()
    file.write_text(login(database, password=database.password, database=database.name))
    for path, installed in (("~/client.cnf", True), ("~/client.cnf", False), (str(file), True)):
        options = {"read_default_file": path}
        folder = project(databases=mysql_at("", **NOTHING, OPTIONS=options))
        if installed:
            (folder / "MySQLdb.py").touch()
        done = run("mysite.wsgi", "--check", "--strict", cwd=folder)
        assert done.code == 0, done.output
        noted = f"which does not expand ~: write {file} as OPTIONS['read_default_file']"
        assert (noted in done.output) is (installed and path != str(file)), done.output
