"""Served on MySQL and on MariaDB, in all the ways in which one logs in to them."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pymysql
import pytest

from conftest import MakeProject, StartServe, lasting_server
from support import servers
from support.certificates import Authority, Certificate
from support.client import gate
from support.command import EXIT_DATABASE, EXIT_PLAN, EXIT_PROJECT, Done, run
from support.django_project import APP
from support.haproxy import haproxy, needs_haproxy
from support.processes import wait_until
from support.servers import ROOT, Database, Server
from support.site import VIEWS, Site
from support.torture import torture

StartSite = Callable[..., Site]
Check = Callable[..., Done]

SNAPSHOT_VIEWS = Path(__file__).with_name("snapshot_views.py")
PLAIN = {"ssl_disabled": True}
ENCRYPTED = {"ssl": {"check_hostname": False}}  # PyMySQL 1.2 does so unasked


@pytest.fixture(scope="session")
def mariadb_with_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Certificates where MySQL makes its own, and on all addresses, for IPv6."""
    folder = tmp_path_factory.mktemp("mariadb_with_tls")
    authority = Authority(folder / "certificates")
    own = authority.issue("server")
    options = [f"--ssl-ca={authority.own.cert}", f"--ssl-cert={own.cert}", f"--ssl-key={own.key}"]
    yield from lasting_server(servers.mariadb(folder, *options, "--bind-address=*"))


@pytest.fixture(params=["mariadb_with_tls", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def authority(server: Server, tmp_path: Path) -> Authority:
    """Signed what the server shows, and is believed by it."""
    made, data = server.directory / "certificates", server.directory / "data"
    if made.exists():
        own = Certificate(made / "authority.pem", made / "authority.key")
    else:
        own = Certificate(data / "ca.pem", data / "ca-key.pem")
    return Authority(tmp_path / "certificates", own)


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


@pytest.fixture
def check(project: MakeProject) -> Check:
    """`pooled-serve --check` in a project on that database."""

    def check(database: Database, *args: str, **settings: object) -> Done:
        folder = project(databases={"default": database.django(**settings)})
        done = run(APP, "--check", *args, cwd=folder)
        assert database.password not in done.output
        return done

    return check


@contextmanager
def setting(server: Server, name: str, new: object, old: object) -> Iterator[None]:
    """A global variable of a server that others use later."""
    server.admin.query(f"SET GLOBAL {name} = {new}")
    try:
        yield
    finally:
        server.admin.query(f"SET GLOBAL {name} = {old}")


# --- Served ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["request", "transaction"])
def test_over_tls_sessions_are_clean_and_the_pool_is_whole(
    site: StartSite, server: Server, authority: Authority, mode: str
) -> None:
    tls = {"ca": str(authority.own.cert), "check_hostname": False}
    shop = site("--pool-mode", mode, server=server, cap=2, OPTIONS={"ssl": tls})
    shop.run("CREATE TABLE t (id INT PRIMARY KEY)")
    assert shop.is_encrypted()
    for trace in ("SET @mine = 1", "BEGIN", "INSERT INTO t VALUES (1)", "SET sql_mode = ''"):
        assert shop.run(trace).status == 200
        assert shop.value("SELECT @mine") == "None"
    assert shop.value("SELECT @@sql_mode") != ""
    assert shop.value("SELECT COUNT(*) FROM t") == "1"
    shop.assert_whole()


def test_isolation_level_and_character_set_are_those_of_the_settings_in_each_request(
    site: StartSite, server: Server, database: Database
) -> None:
    server.admin.query(f"ALTER DATABASE {database.name} CHARACTER SET latin1")
    german = {"charset": "latin1", "collation": "latin1_german1_ci"}
    options = {"isolation_level": "serializable", **german}
    shop = site(server=server, database=database, cap=1, OPTIONS=options)
    shop.run("CREATE TABLE word (text VARCHAR(20))")
    # Django and we use a statement, whose spelling is the same; only the variable has two names.
    variable = "tx_isolation" if "mariadb" in server.directory.name else "transaction_isolation"
    for _ in range(2):
        assert shop.value(f"SELECT @@{variable}") == "SERIALIZABLE"
        assert shop.value("SELECT @@collation_connection") == german["collation"]
        assert shop.run("INSERT INTO word VALUES ('Grüße, Zoë')").status == 200
        shop.run("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        shop.run("SET NAMES ascii")
    words = server.admin.query(f"SELECT HEX(text) AS hex FROM {database.name}.word")
    assert [row["hex"] for row in words] == ["Grüße, Zoë".encode("latin1").hex().upper()] * 2
    assert shop.pool()["opened_total"] == 1


def test_a_connection_that_expires_in_the_hands_of_a_request_costs_that_one(
    site: StartSite, mysql: Server
) -> None:
    """MySQL says 4031 then, out of turn, and PyMySQL makes 2013 of it."""
    views = """
        def nap(request):
            import gevent
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION wait_timeout = 1")
                with gevent.Timeout(30):
                    while connection.connection._conn.alive():
                        gevent.sleep(0.05)
                try:
                    cursor.execute("SELECT 1")
                except Exception as error:
                    return HttpResponse(str(error.args[0]))
    """
    shop = site(server=mysql, views=views)
    assert shop.server.get("/nap").text in ("2013", "4031")
    assert [shop.run("SELECT 1").status for _ in range(4)] == [200] * 4
    assert shop.pool()["closed_total"] == {"lost": 1}
    shop.assert_whole()


def test_idle_connections_that_expire_cost_no_request(site: StartSite, mysql: Server) -> None:
    with setting(mysql, "wait_timeout", 1, 28800):
        shop = site(server=mysql)
        # They have something to do all the time: one that waits for others may expire meanwhile.
        answers = shop.at_once("/run?sql=SELECT+SLEEP(0.3)", 4)
        assert [answer.status for answer in answers] == [200] * 4
        wait_until(lambda: not shop.connection_ids())
        assert [shop.run("SELECT 1").status for _ in range(8)] == [200] * 8
    wait_until(lambda: not shop.connection_ids())
    shop.assert_whole()


def test_a_transaction_whose_snapshot_is_out_of_date_is_djangos_error_and_costs_no_connection(
    site: StartSite, mariadb: Server
) -> None:
    """As MariaDB 11.8 has it by default: error 1020, where others overwrite what has changed."""
    options = {
        "isolation_level": "repeatable read",
        "init_command": "SET innodb_snapshot_isolation = 1",
    }
    shop = site(server=mariadb, cap=2, views=SNAPSHOT_VIEWS, OPTIONS=options)
    table = f"{shop.database.name}.t"
    mariadb.admin.query(f"CREATE TABLE {table} (n INT) ENGINE=InnoDB")
    mariadb.admin.query(f"INSERT INTO {table} VALUES (0)")
    for _ in range(5):
        with ThreadPoolExecutor(1) as threads:
            late = threads.submit(shop.server.get, "/overwrite")
            wait_until(lambda: shop.server.get("/has_read").json())
            mariadb.admin.query(f"UPDATE {table} SET n = n + 10")
            shop.server.get("/go")
            answer = late.result()
        assert (answer.status, answer.json()) == (409, 1020)
        shop.server.get("/forget")
    assert mariadb.admin.query(f"SELECT n FROM {table}") == [{"n": 50}]
    assert shop.pool_at_rest()["closed_total"] == {}
    shop.assert_whole()


@pytest.mark.skipif(not servers.NEWER_MARIADB, reason="this MariaDB makes itself no certificate")
def test_a_certificate_that_the_server_has_made_for_itself(
    site: StartSite, start_mariadb: Callable[..., Server]
) -> None:
    shop = site(server=start_mariadb("--ssl"), OPTIONS=ENCRYPTED)
    assert shop.is_encrypted()
    assert shop.run("SET @mine = 1").status == 200
    assert shop.value("SELECT @mine") == "None"
    shop.assert_whole()


# --- Limits ------------------------------------------------------------------------------------


def test_the_limit_of_an_account_bounds_the_budget(check: Check, mysql: Server) -> None:
    database = mysql.create_database(max_user_connections=6)
    done = check(database, "-w", "2", "--max-outstanding", "4")
    says = "2 workers × 4 connections = 8, the server allows 6"
    done.assert_one_problem("PS201", EXIT_PLAN, says, "raise max_user_connections")


@torture
def test_at_the_limit_of_an_account_requests_wait_for_what_comes_back(
    site: StartSite, mysql: Server
) -> None:
    database = mysql.create_database(max_user_connections=6)
    shop = site("--pool-timeout", "60", server=mysql, database=database, cap=6)
    assert "cap 6" in shop.server.log
    wait_until(lambda: not shop.connection_ids())  # the preflight's has gone
    with ExitStack() as stack, ThreadPoolExecutor(12) as threads:
        for _ in range(2):
            stack.enter_context(
                closing(pymysql.connect(**database.connect_args(), ssl_disabled=True))
            )
        with gate(database) as statement:
            # One is there first: with none to wait for, the server's error is the request's.
            assert shop.run("SELECT 1").status == 200
            answers = [threads.submit(shop.run, statement) for _ in range(12)]
            wait_until(lambda: shop.pool()["connect_errors_total"] >= 1)
            assert shop.pool()["opened_total"] <= 3
        assert [answer.result().status for answer in answers] == [200] * 12, shop.server.log
    wait_until(lambda: len(shop.connection_ids()) == shop.pool()["opened_total"])
    shop.wait_until_served()
    shop.assert_whole()


# --- Where the server is -----------------------------------------------------------------------


def test_over_its_unix_socket(site: StartSite, mysql: Server) -> None:
    shop = site(server=mysql, HOST=str(mysql.socket), PORT="")
    assert shop.value("SELECT USER()").endswith("@localhost")
    assert f" {mysql.socket}/{shop.database.name} " in shop.server.log
    shop.assert_whole()


def test_over_ipv6(site: StartSite, server: Server, database: Database) -> None:
    account = f"{database.user}@'::1'"
    server.admin.query(f"CREATE USER {account} IDENTIFIED BY '{database.password}'")
    server.admin.query(f"GRANT ALL ON {database.name}.* TO {account}")
    shop = site(server=server, database=database, HOST="::1")
    assert shop.value("SELECT USER()").endswith("@::1")
    assert f" [::1]:{server.port}/{database.name} " in shop.server.log
    shop.assert_whole()


def test_all_of_it_in_an_option_file(
    site: StartSite, server: Server, database: Database, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(
        "[client]\n"
        f"host={database.host}\nport={database.port}\n"
        f"user={database.user}\npassword={database.password}\ndatabase={database.name}\n"
        f"default-character-set=latin1\nssl-ca={authority.own.cert}\n"
    )
    nothing = dict.fromkeys(("HOST", "PORT", "USER", "PASSWORD", "NAME"), "")
    # What PyMySQL has no name for in the file stands beside it.
    options = {"read_default_file": str(file), "ssl": {"check_hostname": False}}
    shop = site(server=server, database=database, OPTIONS=options, **nothing)
    assert shop.value("SELECT DATABASE()") == database.name
    assert shop.is_encrypted()
    assert f" {database.host}:{database.port}/{database.name} " in shop.server.log
    assert database.password not in shop.server.log
    shop.assert_whole()


# --- TLS ---------------------------------------------------------------------------------------


def require(server: Server, database: Database, what: str) -> None:
    for host in ("127.0.0.1", "localhost"):
        server.admin.query(f"ALTER USER {database.user}@{host} REQUIRE {what}")


def test_an_account_that_requires_tls(
    site: StartSite, check: Check, server: Server, database: Database
) -> None:
    require(server, database, "SSL")
    done = check(database, OPTIONS=PLAIN)
    done.assert_one_problem("PS303", EXIT_DATABASE, "Access denied", "requires TLS")
    shop = site(server=server, database=database, OPTIONS=ENCRYPTED)
    assert shop.is_encrypted()
    shop.assert_whole()


def test_a_server_that_requires_tls(check: Check, server: Server, database: Database) -> None:
    with setting(server, "require_secure_transport", "ON", "OFF"):
        done = check(database, OPTIONS=PLAIN)
        assert check(database, OPTIONS=ENCRYPTED).code == 0
    # MariaDB 10.11 says no more than of a wrong password.
    (row,) = server.admin.query("SELECT VERSION() AS version")
    code = "PS303" if row["version"].startswith("10.") else "PS309"
    done.assert_one_problem(code, EXIT_DATABASE, remedy="OPTIONS['ssl']")


@torture
def test_an_account_that_requires_a_client_certificate(
    site: StartSite,
    check: Check,
    server: Server,
    database: Database,
    authority: Authority,
    tmp_path: Path,
) -> None:
    require(server, database, "X509")
    done = check(database, OPTIONS=ENCRYPTED)
    done.assert_one_problem("PS303", EXIT_DATABASE, "Access denied", "client certificate")

    trusted = {"ca": str(authority.own.cert), "check_hostname": False}
    stranger = Authority(tmp_path / "stranger").issue("client")
    tls = {**trusted, "cert": str(stranger.cert), "key": str(stranger.key)}
    # Where that does not get through, it is PS308: see connect_problem().
    done = check(database, OPTIONS={"ssl": tls})
    done.assert_one_problem("PS30", EXIT_DATABASE, remedy="OPTIONS['ssl']")

    own = authority.issue("client")
    tls = {**trusted, "cert": str(own.cert), "key": str(own.key)}
    shop = site(server=server, database=database, OPTIONS={"ssl": tls})
    assert shop.is_encrypted()
    shop.assert_whole()


def test_a_server_whose_certificate_is_not_to_be_trusted(
    check: Check, mariadb_with_tls: Server, tmp_path: Path
) -> None:
    database = mariadb_with_tls.create_database()
    stranger = Authority(tmp_path / "stranger").own.cert
    done = check(database, OPTIONS={"ssl": {"ca": str(stranger)}})
    failed = "CERTIFICATE_VERIFY_FAILED"
    done.assert_one_problem("PS309", EXIT_DATABASE, failed, "→ correct OPTIONS['ssl']['ca']")
    done = check(database, OPTIONS={"ssl_mode": "VERIFY_CA"})
    remedy = "→ give the authority's file: OPTIONS['ssl'] = {'ca': '/path/of/ca.pem'}"
    done.assert_one_problem("PS309", EXIT_DATABASE, failed, remedy)


def test_the_plan_says_how_connections_are_encrypted(
    check: Check, server: Server, authority: Authority
) -> None:
    database = server.create_database()
    tls = {"ca": str(authority.own.cert)}
    for options, says in (
        ({"ssl_mode": "VERIFY_CA", "ssl": tls}, "  TLS, verified"),
        ({"ssl_mode": "REQUIRED"}, "  TLS, not verified"),
        (PLAIN, "  no TLS"),
        ({"unix_socket": str(server.socket)}, "ms"),
    ):
        done = check(database, OPTIONS=options)
        assert done.code == 0, done.output
        (row,) = (line for line in done.stdout.splitlines() if line.startswith("  default  "))
        assert row.endswith(says)


def test_a_certificate_that_is_not_there(check: Check, mariadb: Server) -> None:
    done = check(mariadb.create_database(), OPTIONS={"ssl": {"ca": "nosuch.pem"}})
    says = "the file nosuch.pem cannot be read (No such file or directory)"
    done.assert_one_problem("PS112", EXIT_PROJECT, says, "OPTIONS['ssl']['ca']")


def test_a_server_without_tls(check: Check, mariadb: Server) -> None:
    done = check(mariadb.create_database(), OPTIONS=ENCRYPTED)
    done.assert_one_problem("PS309", EXIT_DATABASE, "SSL", "OPTIONS['ssl']")


# --- Passwords ---------------------------------------------------------------------------------


def test_a_password_of_all_printable_characters(
    site: StartSite, check: Check, server: Server, database: Database
) -> None:
    odd = replace(database, password="".join(filter(str.isprintable, string.printable)))
    for host in ("127.0.0.1", "localhost"):
        server.admin.query(f"ALTER USER {odd.user}@{host} IDENTIFIED BY %s", odd.password)
    shop = site("--log-level", "debug", server=server, database=odd)
    shop.assert_whole()
    done = check(replace(odd, password=odd.password + "!"))
    done.assert_one_problem("PS303", EXIT_DATABASE, "Access denied")
    # Nor any piece of it, which an escaped form would have.
    for piece in (string.ascii_letters, string.digits, "()*+,-./:;<=>?@["):
        assert piece in odd.password
        assert piece not in done.output
        assert piece not in shop.server.log


def flush(server: Server) -> None:
    server.admin.query("FLUSH PRIVILEGES")


def restart(server: Server) -> None:
    server.restart()


@pytest.mark.parametrize("forget", [flush, restart])
def test_a_login_that_mysql_has_forgotten(
    site: StartSite, mysql: Server, forget: Callable[[Server], None]
) -> None:
    """caching_sha2_password wants more of a client whose password is not in the server's cache."""
    shop = site(server=mysql, OPTIONS=PLAIN)
    shop.fill()
    forget(mysql)
    for number in shop.connection_ids():
        mysql.admin.kill(number)
    shop.wait_until_served()
    shop.assert_whole()


CONSOLE = """
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    }
"""


@torture
def test_a_forgotten_login_without_cryptography(
    project: MakeProject, serve: StartServe, mysql: Server, tmp_path: Path
) -> None:
    """Over TLS that package is not needed. Without, the log names it; and it heals."""
    hidden = tmp_path / "hidden" / "cryptography" / "__init__.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text("raise ImportError('hidden by a test')")
    without = {"PYTHONPATH": os.pathsep.join([str(hidden.parents[1]), str(ROOT)])}
    database = mysql.create_database()
    shops = []
    # The first puts the password into the server's cache.
    for options in (ENCRYPTED, PLAIN):
        databases = {"default": database.django(OPTIONS=options)}
        server = serve(project(VIEWS, databases=databases, settings=CONSOLE), env=without)
        shops.append(Site(server, mysql.admin, database, 4))
        assert shops[-1].run("SELECT 1").status == 200
    encrypted, plain = shops
    mysql.restart()
    assert plain.run("SELECT 1").status == 500
    says = "this login needs the cryptography package: pip install 'pooled-serve[rsa]', or use TLS"
    plain.server.wait_for_log(says)
    encrypted.wait_until_served()
    plain.wait_until_served()


# --- Behind a proxy ----------------------------------------------------------------------------


@needs_haproxy
def test_behind_haproxy_the_budget_is_the_servers(
    site: StartSite, check: Check, mysql: Server, tmp_path: Path
) -> None:
    database = mysql.create_database(max_user_connections=9)
    views = """
        def hung_up(request):
            return JsonResponse([not slot.conn.alive() for slot in the_pool()._idle], safe=False)
    """
    with haproxy(tmp_path, only=mysql) as (port, order):
        done = check(database.via(port), "--replicas", "3")
        assert done.code == 0, done.output
        assert "to fit max_user_connections=9" in done.output
        assert f"6 of 9 on 127.0.0.1:{port}" in done.output

        shop = site(server=mysql, database=database.via(port), views=views)
        shop.fill()
        wait_until(lambda: len(shop.connection_ids()) == shop.cap)  # the preflight's has gone
        order("shutdown sessions server db/only")  # as when they have been idle for too long
        wait_until(lambda: shop.server.get("/hung_up").json() == [True] * shop.cap)
        assert [shop.run("SELECT 1").status for _ in range(8)] == [200] * 8
        shop.assert_whole()
