"""Nothing leaks from one user of a connection to the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pymysql.err import MySQLError, OperationalError

from conftest import lasting_server
from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.login import ConnectAgain
from pooled_serve.driver.reset import COM_RESET_CONNECTION
from pooled_serve.pool import DIRTY
from support import servers
from support.django_project import write_project
from support.netproxy import NetProxy
from support.script import run_function
from support.servers import Database, Server
from support.session_state import ENDINGS, KINDS, SCRIPTS, run_cases
from support.torture import TORTURE

COM_INIT_DB, COM_QUERY = 2, 3

SERVERS = ["mariadb", "mysql"]
MODES = ["request", "transaction"]


def cases(server: str, mode: str) -> list[tuple[str, str]]:
    """The pairs of a kind of state and an ending that are tried on this server in this mode.

    With TORTURE=1 these are all. Else each pair is tried in one of the four places, the next one
    in the next place, so that each place meets each kind and each ending.
    """
    places = [(s, m) for s in SERVERS for m in MODES]
    return [
        (kind, ending)
        for n, kind in enumerate(KINDS)
        for m, ending in enumerate(ENDINGS)
        if TORTURE or places[(n + m) % len(places)] == (server, mode)
    ]


@pytest.fixture(scope="module", params=SERVERS)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def latin1(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose own character set is not the one that Django asks for."""
    folder = tmp_path_factory.mktemp("latin1")
    start = getattr(servers, engine)
    try:
        server = start(folder, "--character-set-server=latin1")
    except servers.ServerMissing as missing:
        pytest.skip(str(missing))
    yield from lasting_server(server)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_leaks(
    engine: str, latin1: Server, mode: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    pairs = cases(engine, mode)
    results = run_cases(latin1, tmp_path / "project", mode, pairs)
    assert len(results) == len(pairs)
    for result in results:
        with subtests.test(result["kind"], ending=result["ending"]):
            assert "error" not in result, result
            assert result["differs"] == {}
            assert result["outside"] == []
            if result["ending"] in ("ok", "exception") and "XA" not in result["kind"]:
                assert result["same"], "it was closed, where a reset would do"


# --- What it costs, and what comes back --------------------------------------------------------


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
def connect(database: Database) -> Iterator[Callable[..., MySQLConnection]]:
    """Connects, and sets up, as the pool does."""
    made: list[MySQLConnection] = []

    def connect(**options: Any) -> MySQLConnection:
        connection = MySQLConnection(**{**database.connect_args(), "autocommit": True, **options})
        made.append(connection)
        connection.set_up()
        return connection

    yield connect
    for connection in made:
        connection.close()


Connect = Callable[..., MySQLConnection]


def run(connection: MySQLConnection, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def touch(connection: MySQLConnection, sql: str = "SET @x = 1") -> None:
    run(connection, sql)
    connection.dirty_reason = "variable"  # a session tells it


def test_what_connecting_set_comes_back_after_a_reset(connect: Connect) -> None:
    connection = connect(
        init_command="SET @greeting = 'hello', time_zone = '+02:00'",
        sql_mode="ANSI_QUOTES",
        charset="latin1",
        collation="latin1_german1_ci",
    )
    ask = (
        "SELECT CONNECTION_ID(), @greeting, @@time_zone, @@sql_mode, @@collation_connection,"
        " @@character_set_client, @@autocommit, DATABASE(), @x"
    )
    before = run(connection, ask)
    touch(connection, "SET @greeting = 'bye', time_zone = '+05:00', sql_mode = '', autocommit = 0")
    connection.set_character_set("utf8mb4")
    connection.select_db("information_schema")
    connection.reset()
    assert connection.condition() is None
    assert run(connection, ask) == before
    assert (connection.charset, connection.encoding) == ("latin1", "cp1252")


def test_a_set_up_that_goes_to_another_database_does_so_again(
    connect: Connect, mariadb: Server, database: Database
) -> None:
    connection = connect(init_command="USE information_schema")
    touch(connection, f"USE {database.name}")
    connection.reset()
    assert run(connection, "SELECT DATABASE()") == (("information_schema",),)


def test_several_statements_in_one_are_run_again(connect: Connect) -> None:
    from pymysql.constants.CLIENT import MULTI_STATEMENTS

    connection = connect(init_command="SET @a = 1; SET @b = 2", client_flag=MULTI_STATEMENTS)
    touch(connection, "SET @a = 7, @b = 8")
    connection.reset()
    assert run(connection, "SELECT @a, @b") == ((1, 2),)


@pytest.mark.parametrize("init_command", ["SELECT @a := 1", "SELECT GET_LOCK('set up', 0)"])
def test_a_set_up_with_rows_is_not_run_again(connect: Connect, init_command: str) -> None:
    connection = connect(init_command=init_command)
    touch(connection)
    with pytest.raises(OperationalError, match="cannot be run again"):
        connection.reset()
    assert connection.condition() == DIRTY


def test_without_a_first_database_there_is_none_to_return_to(connect: Connect) -> None:
    connection = connect(database=None)
    touch(connection)
    with pytest.raises(OperationalError, match="no database to return to"):
        connection.reset()


def test_the_default_role_comes_back(connect: Connect, mariadb: Server, database: Database) -> None:
    for role in ("one", "two"):
        mariadb.admin.query(f"CREATE ROLE `{database.name} {role}`")
        mariadb.admin.query(f"GRANT `{database.name} {role}` TO {database.user}@127.0.0.1")
    role = f"{database.name} one"
    mariadb.admin.query(f"SET DEFAULT ROLE `{role}` FOR {database.user}@127.0.0.1")
    connection = connect()
    touch(connection, f"SET ROLE `{database.name} two`")
    connection.reset()
    assert run(connection, "SELECT CURRENT_ROLE()") == ((role,),)


def test_what_giving_back_costs(connect: Connect, proxy: NetProxy) -> None:
    connection = connect(port=proxy.port)

    def commands(function: Callable[[], object]) -> dict[int, int]:
        before = proxy.traffic().commands
        function()
        return dict(proxy.traffic().commands - before)

    assert connection.condition() is None
    run(connection, "BEGIN")
    assert commands(connection.reset) == {COM_QUERY: 1}
    touch(connection)
    # The role, the character set, autocommit.
    assert commands(connection.reset) == {COM_RESET_CONNECTION: 1, COM_INIT_DB: 1, COM_QUERY: 3}
    assert connection.condition() is None


def test_a_reset_takes_one_round_trip(connect: Connect, proxy: NetProxy) -> None:
    connection = connect(port=proxy.port, sql_mode="ANSI_QUOTES", init_command="SET @a = 1")
    touch(connection)
    before = proxy.traffic().turns
    connection.reset()
    assert proxy.traffic().turns - before == 1


@pytest.mark.parametrize("how", ["the server goes", "a statement fails"])
def test_a_reset_that_fails_half_way_leaves_nothing_to_use(
    connect: Connect, proxy: NetProxy, how: str
) -> None:
    connection = connect(port=proxy.port)
    touch(connection)
    if how == "the server goes":
        proxy.cut_after(15)
    else:
        connection._replay = (b"SET nonsense = 1", *(connection._replay or ()))
    with pytest.raises(MySQLError):
        connection.reset()
    assert connection.condition() is not None


def test_a_server_that_cannot_reset_is_told_of_once(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pooled_serve.driver.reset.COM_RESET_CONNECTION", 0x7E)  # unknown
    with pytest.raises(ConnectAgain, match="cannot reset a session"):
        connect()
    connections = [connect() for _ in range(3)]
    assert not caplog.records  # nobody was affected so far
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        for connection in connections:
            assert connection.condition() is None
            touch(connection)
            with pytest.raises(OperationalError, match="cannot reset a session"):
                connection.reset()
            assert connection.condition() == DIRTY
    (record,) = caplog.records
    assert "closed, not reset: the server cannot reset a session" in record.getMessage()


# --- In a project ------------------------------------------------------------------------------


def script_on(
    folder: Path,
    database: Database,
    function: str,
    *,
    mode: str = "request",
    reset: str = "auto",
    **settings: Any,
) -> Any:
    project = write_project(folder, databases={"default": database.django(**settings)})
    return run_function(
        project,
        SCRIPTS,
        function,
        size=1,
        cap=1,
        POOLED_SERVE_POOL_MODE=mode,
        POOLED_SERVE_POOL_RESET=reset,
    )


@pytest.mark.parametrize("mode", MODES)
def test_plain_orm_work_costs_nothing_on_return(
    mode: str, tmp_path: Path, database: Database, proxy: NetProxy
) -> None:
    before = proxy.traffic().commands
    resets = script_on(
        tmp_path / "project",
        database.via(proxy.port),
        "plain_orm_work_costs_nothing_on_return",
        mode=mode,
    )
    used = proxy.traffic().commands - before
    assert set(used) <= {1, COM_QUERY, COM_INIT_DB, COM_RESET_CONNECTION}
    # For what made the table; and two to find out what a login does.
    assert used[COM_RESET_CONNECTION] == resets + 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("reset", "count"), [("always", 3), ("auto", 0), ("rollback", 0)])
def test_pool_reset_always_resets_what_nobody_touched(
    mode: str, reset: str, count: int, tmp_path: Path, database: Database
) -> None:
    found = script_on(
        tmp_path / "project",
        database,
        "pool_reset_always_resets_what_nobody_touched",
        mode=mode,
        reset=reset,
    )
    assert found == count


def test_pool_reset_rollback_only_rolls_back(tmp_path: Path, database: Database) -> None:
    script_on(
        tmp_path / "project", database, "pool_reset_rollback_only_rolls_back", reset="rollback"
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_django_and_the_engine_set_comes_back(
    mode: str, tmp_path: Path, database: Database
) -> None:
    folder = tmp_path / "project"
    engine = folder / "mysite" / "engine"
    write_project(
        folder,
        databases={
            "default": database.django(
                ENGINE="mysite.engine",
                OPTIONS={
                    "sql_mode": "ANSI_QUOTES,STRICT_TRANS_TABLES",
                    "isolation_level": "serializable",
                    "init_command": "SET time_zone = '+07:00'",
                    "charset": "utf8mb4",
                    "collation": "utf8mb4_polish_ci",
                },
            )
        },
    )
    engine.mkdir()
    (engine / "__init__.py").touch()
    (engine / "base.py").write_text(
        dedent("""
            from django.db.backends.mysql import base

            class DatabaseWrapper(base.DatabaseWrapper):
                def init_connection_state(self):
                    super().init_connection_state()
                    with self.cursor() as cursor:
                        cursor.execute("SET @own = 'set'")
        """)
    )
    run_function(
        folder,
        SCRIPTS,
        "what_django_and_the_engine_set_comes_back",
        size=1,
        cap=1,
        POOLED_SERVE_POOL_MODE=mode,
    )


# --- What a reset does not undo ----------------------------------------------------------------

LASTING = {
    "profiling": ["SET profiling = 1", "SELECT 'a secret'"],
    "profiling, and then a variable": ["SET `profiling` = 1", "SELECT 'a secret'", "SET @x = 1"],
    "profiling, prepared": ["PREPARE s FROM 'SET profiling = 1'", "EXECUTE s", "SELECT 'a secret'"],
    "optimizer trace": ["SET optimizer_trace = 'enabled=on'", "SELECT 'a secret' FROM t"],
    "XA": ["XA START 'x'", "INSERT INTO t VALUES (1)", "XA END 'x'", "XA PREPARE 'x'"],
    "resource group": ["SET RESOURCE GROUP slow"],
    "resource group, with noise": ["SET /* x */ resource -- x\n group slow"],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", LASTING)
def test_what_outlives_a_reset_ends_with_the_connection(
    engine: str, kind: str, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if engine == "mariadb" and "group" in kind:
        pytest.skip("MariaDB has no resource groups")
    server: Server = request.getfixturevalue(engine)
    database = server.create_database()
    if "group" in kind:
        if not server.admin.query(
            "SELECT 1 FROM information_schema.resource_groups WHERE resource_group_name = 'slow'"
        ):
            server.admin.query("CREATE RESOURCE GROUP slow TYPE = USER")
        server.admin.query(f"GRANT RESOURCE_GROUP_USER ON *.* TO {database.user}@127.0.0.1")
    server.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    folder = write_project(tmp_path / "project", databases={"default": database.django()})
    run_function(
        folder,
        SCRIPTS,
        "what_outlives_a_reset_ends_with_the_connection",
        LASTING[kind],
        POOLED_SERVE_POOL_MODE=mode,
    )
