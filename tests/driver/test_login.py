"""What a server does at a login, and a reset leaves out: found out by trying, and brought back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import CLIENT
from pymysql.err import MySQLError, OperationalError

from conftest import lasting_server
from pooled_serve.driver import login
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.login import ConnectAgain, Login
from pooled_serve.driver.reset import COM_RESET_CONNECTION
from support import servers
from support.django_project import write_project
from support.netproxy import NetProxy
from support.script import run_function
from support.servers import Database, Server
from support.site import Site

INIT_CONNECT = "SET lock_wait_timeout = 77, sql_mode = 'ANSI_QUOTES'; SET time_zone = '+05:30'"
SEEN = (
    "SELECT @@lock_wait_timeout, @@sql_mode, @@time_zone, CAST(FROM_UNIXTIME(0) AS CHAR),"
    " @@max_{}_time, @@autocommit"
)
MODES = ["request", "transaction"]

Connect = Callable[..., MySQLConnection]


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose global settings these tests may change."""
    try:
        server = getattr(servers, engine)(tmp_path_factory.mktemp(engine))
    except servers.ServerMissing as missing:
        pytest.skip(str(missing))
    yield from lasting_server(server)


@pytest.fixture
def set_global(server: Server) -> Iterator[Callable[[str, object], None]]:
    """Changes a global variable, for the length of a test."""
    before: dict[str, Any] = {}

    def set_global(name: str, value: object) -> None:
        row = server.admin.query(f"SELECT @@GLOBAL.{name} AS it")[0]
        before.setdefault(name, row["it"])
        literal = repr(value) if isinstance(value, int) else f'"{value}"'
        server.admin.query(f"SET GLOBAL {name} = {literal}")

    yield set_global
    for name, value in before.items():
        set_global(name, value)


@pytest.fixture
def database(engine: str, server: Server) -> Database:
    """Of an account that has limits."""
    database = server.create_database(max_user_connections=20)
    if engine == "mariadb":
        for host in ("127.0.0.1", "localhost"):
            server.admin.query(f"ALTER USER {database.user}@{host} WITH MAX_STATEMENT_TIME 7.5")
    return database


@pytest.fixture
def seen(engine: str) -> str:
    return SEEN.format("statement" if engine == "mariadb" else "execution")


@pytest.fixture
def connect(database: Database) -> Iterator[Connect]:
    """Connects, and sets up, once more if that is asked for, as the pool does."""
    made: list[MySQLConnection] = []

    def connect(**options: Any) -> MySQLConnection:
        arguments = {**database.connect_args(), "autocommit": True, **options}
        made.append(MySQLConnection(**arguments))
        try:
            made[-1].set_up()
        except ConnectAgain:
            made[-1].close()
            made.append(MySQLConnection(**arguments))
            made[-1].set_up()
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


def run(connection: Any, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def touch(connection: MySQLConnection, sql: str = "SET @x = 1") -> None:
    run(connection, sql)
    connection.dirty_reason = "variable"  # a session tells it


def stock(database: Database, sql: str) -> Any:
    """What a connection of PyMySQL's own sees, made as Django makes it."""
    connection = pymysql.connect(**database.connect_args())
    connection.autocommit(True)
    try:
        return run(connection, sql)
    finally:
        connection.close()


# --- What users see ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_request_sees_what_a_login_sets(
    mode: str,
    server: Server,
    database: Database,
    seen: str,
    set_global: Callable[[str, object], None],
    site: Callable[..., Site],
) -> None:
    set_global("init_connect", INIT_CONNECT)
    expected = [list(map(str, row)) for row in stock(database, seen)]
    assert expected[0][:3] == ["77", "ANSI_QUOTES", "+05:30"]
    it = site("--pool-mode", mode, cap=1, server=server, database=database)
    touching = [
        "SET time_zone = '-08:00', sql_mode = '', lock_wait_timeout = 5",
        "SELECT 1",
        "SET @x = 1",
        "SET autocommit = 0",
        "SELECT GET_LOCK('x', 0)",
        "SET NAMES latin1",
    ]
    for sql in touching * 2:
        assert it.run(sql).status == 200
        assert it.run(seen).json() == expected, sql
    stats = it.pool_at_rest()
    assert stats["reset_total"] == 10
    assert (stats["opened_total"], stats["closed_total"]) == (1, {})
    it.assert_whole()


@pytest.mark.parametrize("mode", MODES)
def test_a_write_is_kept_where_logins_switch_autocommit_off(
    mode: str,
    server: Server,
    database: Database,
    set_global: Callable[[str, object], None],
    site: Callable[..., Site],
) -> None:
    server.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    set_global("init_connect", "SET autocommit = 0")
    it = site("--pool-mode", mode, cap=1, server=server, database=database)
    assert it.run("INSERT INTO t VALUES (1)").status == 200
    assert it.run("SELECT @@autocommit").json() == [["1"]]
    assert it.run("SET @x = 1").status == 200
    assert it.run("INSERT INTO t VALUES (2)").status == 200
    assert it.run("SELECT n FROM t ORDER BY n").json() == [["1"], ["2"]]
    assert it.pool()["opened_total"] == 1


@pytest.mark.parametrize("how", ["what no comparison shows", "a login that shows less"])
def test_where_a_reset_does_not_do_connections_are_closed_and_the_log_says_so_once(
    how: str,
    server: Server,
    database: Database,
    set_global: Callable[[str, object], None],
    site: Callable[..., Site],
) -> None:
    init_connect, said = {
        "what no comparison shows": ("SET @tenant = 5", "init_connect may do more than"),
        "a login that shows less": ("SET sql_select_limit = 50", "(sql_select_limit?)"),
    }[how]
    set_global("init_connect", init_connect)
    ask = "SELECT @tenant, @@sql_select_limit"
    expected = [list(map(str, row)) for row in stock(database, ask)]
    it = site(cap=1, server=server, database=database)
    assert it.run("SELECT 1").status == 200
    assert it.run("SELECT 1").status == 200
    assert said not in it.server.log  # it has not made a difference yet
    for _ in range(3):
        assert it.run("SET @tenant = 6, sql_select_limit = 60").status == 200
        assert it.run(ask).json() == expected
    # A question with @ touches, too.
    assert it.pool_at_rest()["closed_total"] == {"reset failed": 6}
    assert it.server.log.count(said) == 1
    it.assert_whole()


# --- What is found out -------------------------------------------------------------------------


KINDS = {
    "nothing": "",
    "numbers": "SET sort_buffer_size = 1048576, long_query_time = 2.5",
    "switches": "SET unique_checks = 0, foreign_key_checks = OFF",
    "strings": "SET time_zone = 'Europe/Zagreb', lc_time_names = 'de_DE'",
    "sets": "SET optimizer_switch = 'index_merge=off'",
    "no value": "SET character_set_results = NULL",
    "strange modes": "SET sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES,PIPES_AS_CONCAT'",
    "an expression": "SET sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES')",
    "several": "SET SESSION sql_mode = ''; SET @@session.time_zone = '+01:00' ; ",
    "read only": "SET SESSION TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
    "character sets": "SET NAMES latin1; SET collation_database = latin1_german1_ci",
    "generated keys": "SET last_insert_id = 7, insert_id = 9, auto_increment_increment = 3",
}

# Clocks, seeds and counts of statements; and what may be another for each login.
VOLATILE = {"timestamp", "rand_seed1", "rand_seed2", "statement_id", "pseudo_thread_id"}
DISPLAYED = {"max_user_connections"}  # nothing but the limit that applied at the login


def variables(connection: Any) -> dict[str, str]:
    found = dict(run(connection, "SHOW SESSION VARIABLES"))
    return {name: value for name, value in found.items() if name not in VOLATILE | DISPLAYED}


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_that_was_reset_is_like_a_fresh_one(
    kind: str,
    engine: str,
    connect: Connect,
    set_global: Callable[[str, object], None],
) -> None:
    init_connect = KINDS[kind]
    if "Zagreb" in init_connect:
        init_connect = init_connect.replace("Europe/Zagreb", "SYSTEM")
        set_global("time_zone", "+03:00")
    if engine == "mysql" and "collation_database" in init_connect:
        init_connect = "SET NAMES latin1"  # there that variable is on its way out
    set_global("init_connect", init_connect)
    connect()  # finds out
    connection = connect()
    expected = variables(connection)
    again = MySQLConnection(**connection_arguments(connection))
    assert variables(again) == expected
    again.close()
    assert connection._login is not None
    assert connection._login.obstacle is None
    touch(connection, "SET sql_mode = '', time_zone = '-11:00', sort_buffer_size = 65536")
    connection.set_character_set("utf8mb3")
    connection.reset()
    assert connection.condition() is None
    assert variables(connection) == expected


def connection_arguments(connection: MySQLConnection) -> dict[str, Any]:
    return {
        "host": connection.host,
        "port": connection.port,
        "user": connection.user.decode(),
        "password": connection.password.decode(),
        "database": connection.db.decode(),
        "autocommit": True,
    }


def test_an_interactive_clients_wait_timeout_comes_back(
    connect: Connect, set_global: Callable[[str, object], None]
) -> None:
    set_global("interactive_timeout", 4321)
    connection = connect(client_flag=CLIENT.INTERACTIVE)
    assert run(connection, "SELECT @@wait_timeout") == ((4321,),)
    touch(connection)
    connection.reset()
    assert run(connection, "SELECT @@wait_timeout") == ((4321,),)
    ordinary = connect()
    touch(ordinary)
    ordinary.reset()
    assert run(ordinary, "SELECT @@wait_timeout") == ((28800,),)


def test_an_accounts_limits_apply_after_a_reset(
    engine: str, server: Server, connect: Connect
) -> None:
    if engine == "mariadb":
        limited = connect()
        touch(limited, "SET max_statement_time = 0")
        limited.reset()
        assert [float(n) for n in run(limited, "SELECT @@max_statement_time")[0]] == [7.5]
        return  # it does not count a connection any more that was reset
    database = server.create_database(max_user_connections=2)
    first, second = connect(**database.connect_args()), connect(**database.connect_args())
    for connection in (first, second):
        touch(connection)
        connection.reset()
    with pytest.raises(OperationalError) as error:
        connect(**database.connect_args())
    assert error.value.args[0] == 1226


@pytest.mark.parametrize("by", ["init_connect", "OPTIONS"])
@pytest.mark.parametrize("sql_mode", ["ANSI_QUOTES", ""])
def test_default_roles_and_their_privileges_come_back(
    by: str,
    sql_mode: str,
    engine: str,
    server: Server,
    database: Database,
    connect: Connect,
    set_global: Callable[[str, object], None],
) -> None:
    query = server.admin.query
    query(f"CREATE DATABASE {database.name}_theirs")
    query(f"CREATE TABLE {database.name}_theirs.t (n INT)")
    roles = [f"{database.name} one", f"{database.name}`two"][: 1 if engine == "mariadb" else 2]
    quoted = ", ".join("`" + role.replace("`", "``") + "`" for role in roles)
    account = f"{database.user}@127.0.0.1"
    query(f"CREATE ROLE {quoted}")
    query(f"GRANT SELECT ON {database.name}_theirs.* TO {quoted.split(', ')[0]}")
    query(f"GRANT {quoted} TO {account}")
    query(f"SET DEFAULT ROLE {quoted} {'FOR' if engine == 'mariadb' else 'TO'} {account}")
    options = {}
    if by == "init_connect":
        set_global("init_connect", f"SET sql_mode = '{sql_mode}'")
    else:
        options["sql_mode"] = sql_mode
    connection = connect(**options)
    before = run(connection, "SELECT CURRENT_ROLE()")
    assert before != (("NONE",),)
    assert run(connection, f"SELECT * FROM {database.name}_theirs.t") == ()
    touch(connection, "SET ROLE NONE")
    with pytest.raises(MySQLError):
        run(connection, f"SELECT * FROM {database.name}_theirs.t")
    connection.reset()
    assert run(connection, "SELECT CURRENT_ROLE()") == before
    assert run(connection, f"SELECT * FROM {database.name}_theirs.t") == ()


@pytest.mark.parametrize("sql_mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES"])
@pytest.mark.parametrize("value", ["plain", "it's", 'say "x"', "a\\b", "\\'", "ž日", "", "a\nb"])
def test_a_string_means_the_same_in_any_sql_mode(
    value: str, sql_mode: str, connect: Connect
) -> None:
    connection = connect(sql_mode=sql_mode)
    assert run(connection, f"SELECT {login._literal(value, 'text')}") == ((value,),)


@pytest.mark.parametrize(
    "init_connect",
    [
        "SET @tenant = 1",
        "SET time_zone = '+01:00', @tenant = 1",
        "SET time_zone = '+01:00'; USE information_schema",
        "USE information_schema",
        "SET TRANSACTION READ ONLY",
        "SELECT GET_LOCK('x', 0)",
        "SET sort_buffer_size = GET_LOCK('x', 0) + 1048575",
        "CREATE TEMPORARY TABLE IF NOT EXISTS {home}.tmp (n INT)",
        "SET time_zone = '+01:00' /* " + "x" * 1024 + " */",
    ],
)
def test_what_may_leave_more_than_variables_is_not_passed_on(
    init_connect: str,
    connect: Connect,
    database: Database,
    set_global: Callable[[str, object], None],
) -> None:
    set_global("init_connect", init_connect.format(home=database.name))
    connection = connect()
    assert connection.condition() is None
    touch(connection)
    with pytest.raises(OperationalError, match="init_connect may do more"):
        connection.reset()
    assert connection.condition() is not None


# --- When, and at what cost --------------------------------------------------------------------


@pytest.fixture
def proxy(server: Server) -> Iterator[NetProxy]:
    with NetProxy(server.port) as proxy:
        yield proxy


@pytest.mark.parametrize(("init_connect", "more"), [("", 1), (INIT_CONNECT, 3)])
def test_it_is_found_out_once_and_returns_take_one_round_trip(
    init_connect: str,
    more: int,
    server: Server,
    connect: Connect,
    proxy: NetProxy,
    set_global: Callable[[str, object], None],
) -> None:
    set_global("init_connect", init_connect)
    plain = server.create_database()  # without limits
    stock(plain, "SELECT 1")  # MySQL asks for more at an account's first login
    options = {**plain.connect_args(), "port": proxy.port, "ssl_disabled": True}
    turns = [proxy.traffic().turns]
    connections = []
    for _ in range(4):
        connections.append(connect(**options))
        turns.append(proxy.traffic().turns)
    first, *others = (b - a for a, b in itertools.pairwise(turns))
    assert len(set(others)) == 1
    assert first - others[0] == more
    for connection in connections:
        touch(connection)
        before = proxy.traffic()
        connection.reset()
        after = proxy.traffic()
        assert after.turns - before.turns == 1
        assert (after.commands - before.commands)[COM_RESET_CONNECTION] == 1


def test_a_change_is_taken_up_by_the_next_login(
    connect: Connect, set_global: Callable[[str, object], None]
) -> None:
    for zone in ("+01:00", "+02:00", "+01:00"):
        set_global("init_connect", f"SET time_zone = '{zone}'")
        connection = connect()
        touch(connection)
        connection.reset()
        assert run(connection, "SELECT @@time_zone") == ((zone,),)


def test_a_change_that_no_login_shows_is_taken_up_after_a_while(
    engine: str,
    server: Server,
    database: Database,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if engine != "mariadb":
        pytest.skip("accounts have no such limit there")
    monkeypatch.setattr(login, "COMPARE_AGAIN_SECONDS", 0.0)
    for seconds in (2.5, 3.5):
        account = f"{database.user}@127.0.0.1"
        server.admin.query(f"ALTER USER {account} WITH MAX_STATEMENT_TIME {seconds}")
        connection = connect()
        touch(connection)
        connection.reset()
        assert [float(n) for n in run(connection, "SELECT @@max_statement_time")[0]] == [seconds]


def test_after_a_failover_each_session_is_like_a_login_to_its_own_server(
    server: Server,
    database: Database,
    connect: Connect,
    proxy: NetProxy,
    set_global: Callable[[str, object], None],
    start_mariadb: Callable[..., Server],
) -> None:
    set_global("init_connect", "SET time_zone = '+01:00'")
    other = start_mariadb("--init-connect=SET time_zone = '+02:00'")
    account = f"{database.user}@127.0.0.1"
    other.admin.query(f"CREATE DATABASE {database.name}")
    other.admin.query(f"CREATE USER {account} IDENTIFIED BY '{database.password}'")
    other.admin.query(f"GRANT ALL ON {database.name}.* TO {account}")
    here = connect(port=proxy.port)
    proxy.switch(other.port)
    there = connect(port=proxy.port)
    for connection, zone in ((here, "+01:00"), (there, "+02:00"), (here, "+01:00")):
        touch(connection, "SET time_zone = '+09:00'")
        connection.reset()
        assert run(connection, "SELECT @@time_zone") == ((zone,),)


def test_until_it_is_known_nothing_is_reset(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compare = login._compare
    meanwhile: list[MySQLConnection] = []

    def slowly(client: Any) -> Any:
        meanwhile.append(connect())
        touch(meanwhile[0])
        with pytest.raises(OperationalError, match="not known yet"):
            meanwhile[0].reset()
        return compare(client)

    monkeypatch.setattr(login, "_compare", slowly)
    connect()
    assert len(meanwhile) == 1
    meanwhile[0].reset()  # it is known by now
    assert meanwhile[0].condition() is None
    assert not caplog.records


@pytest.mark.parametrize("bytes_left", [4000, 40000])
def test_a_comparison_that_breaks_off_costs_no_request(
    bytes_left: int, server: Server, database: Database, proxy: NetProxy, tmp_path: Path
) -> None:
    project = write_project(
        tmp_path / "project",
        databases={"default": database.via(proxy.port).django(OPTIONS={"ssl_disabled": True})},
    )
    proxy.cut_after(bytes_left)
    assert run_function(project, "driver/login_scripts.py", "use_a_connection") == 0
    assert proxy.traffic().accepted > 2  # it was cut indeed


def test_few_logins_are_remembered(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: Any = type(login._logins)()
    monkeypatch.setattr(login, "_logins", kept)
    monkeypatch.setattr(login, "MAX_LOGINS", 2)
    connections = [connect(**server.create_database().connect_args()) for _ in range(4)]
    assert len(kept) == 2
    for connection in connections:
        touch(connection)
        connection.reset()
        assert connection.condition() is None
        assert isinstance(connection._login, Login)


def test_what_was_said_of_the_statement_before_is_forgotten(connect: Connect) -> None:
    connection = connect()
    assert (connection.insert_id(), connection.affected_rows()) == (0, 0)
    run(connection, "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)")
    run(connection, "INSERT INTO t VALUES (42)")
    run(connection, "INSERT INTO t VALUES (NULL)")
    assert (connection.insert_id(), connection.affected_rows()) == (43, 1)
    connection.dirty_reason = "always"
    connection.reset()
    assert (connection.insert_id(), connection.affected_rows()) == (0, 0)
    assert connection.show_warnings() == ()
    assert run(connection, "SELECT LAST_INSERT_ID(), @@warning_count") == ((0, 0),)


def test_the_first_user_of_a_connection_finds_nothing_of_the_comparison(connect: Connect) -> None:
    first, second = connect(), connect()
    run(second, "DO 0")  # as what Django runs last when it sets a connection up
    for ask, answer in (
        ("@@warning_count", 0),
        ("ROW_COUNT()", -1),  # the question before was one
        ("LAST_INSERT_ID()", 0),
        ("FOUND_ROWS()", 1),
    ):
        assert run(first, f"SELECT {ask}") == run(second, f"SELECT {ask}") == ((answer,),)
    third, fourth = connect(init_command="DO 1"), connect(init_command="DO 1")
    run(fourth, "DO 0")
    for connection in (third, fourth):
        assert run(connection, "SELECT ROW_COUNT(), FOUND_ROWS()") == ((0, 1),)
