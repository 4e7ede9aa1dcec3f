"""What a user or an error has left behind on a connection, and whether it can be used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pymysql
import pytest
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import SSCursor
from pymysql.err import MySQLError, OperationalError, ProgrammingError

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.error_codes import GONE
from pooled_serve.pool import DIRTY, FAILED_OVER
from support.connections import Connect, one, run
from support.servers import Database, Server


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


# --- By a user ---------------------------------------------------------------------------------


@pytest.fixture
def table(server: Server, database: Database) -> Callable[[], list[int]]:
    """Makes the table t; then tells what others see in it."""
    server.admin.query(f"CREATE TABLE {database.name}.t (id INT PRIMARY KEY) ENGINE=InnoDB")

    def rows() -> list[int]:
        found = server.admin.query(f"SELECT id FROM {database.name}.t ORDER BY id")
        return [row["id"] for row in found]

    return rows


def test_reads_and_autocommitted_writes_leave_it_clean(connect: Connect, table: Any) -> None:
    connection = connect()
    for sql in ("SELECT 1", "INSERT INTO t VALUES (1)", "UPDATE t SET id = 2", "SELECT * FROM t"):
        run(connection, sql)
        assert connection.condition() is None
    assert table() == [2]


def test_a_finished_transaction_leaves_it_clean(connect: Connect, table: Any) -> None:
    connection = connect()
    connection.autocommit(False)  # what Django's atomic() does
    run(connection, "INSERT INTO t VALUES (1)")
    assert connection.condition() == DIRTY
    connection.commit()
    connection.autocommit(True)
    assert connection.condition() is None
    connection.begin()
    run(connection, "INSERT INTO t VALUES (2)")
    connection.rollback()
    assert connection.condition() is None
    run(connection, "BEGIN")
    run(connection, "INSERT INTO t VALUES (3)")
    run(connection, "COMMIT")
    assert connection.condition() is None
    assert table() == [1, 3]


@pytest.mark.parametrize(
    "statements",
    [
        ["BEGIN"],
        ["START TRANSACTION", "SELECT * FROM t"],
        # The server's status, as PyMySQL knows it, says "no transaction" after these two.
        ["SET autocommit = 0", "SELECT * FROM t FOR UPDATE"],
        ["SET autocommit = 0"],
    ],
)
def test_an_open_transaction_is_rolled_back_and_not_committed(
    connect: Connect, table: Any, statements: list[str]
) -> None:
    connection = connect()
    for sql in statements:
        run(connection, sql)
    run(connection, "INSERT INTO t VALUES (1)")
    assert connection.condition() == DIRTY
    connection.reset()
    assert connection.condition() is None
    run(connection, "INSERT INTO t VALUES (2)")
    assert table() == [2]  # and autocommit is on again


def test_a_transaction_that_rollback_does_not_end_is_not_passed_on(
    connect: Connect, table: Any
) -> None:
    connection = connect()
    run(connection, "SET completion_type = CHAIN")  # a new one begins where one ends
    run(connection, "BEGIN")
    run(connection, "INSERT INTO t VALUES (1)")
    connection.reset()
    assert connection.condition() == DIRTY  # the pool closes it, then
    assert table() == []


def test_an_error_may_hide_a_transaction(connect: Connect, table: Any) -> None:
    connection = connect()
    run(
        connection,
        "CREATE PROCEDURE fails() BEGIN START TRANSACTION; INSERT INTO t VALUES (1); "
        "SIGNAL SQLSTATE '45000'; END",
    )
    with pytest.raises(MySQLError):
        run(connection, "CALL fails()")
    assert connection.condition() == DIRTY
    connection.reset()
    assert connection.condition() is None
    assert table() == []


@pytest.mark.parametrize("kind", ["mariadb"])
def test_an_error_among_unbuffered_rows_may_hide_a_transaction(
    connect: Connect, table: Any
) -> None:
    connection = connect()
    run(connection, "CREATE TABLE two (id INT)")
    run(connection, "INSERT INTO two VALUES (1), (2)")
    run(
        connection,
        "CREATE FUNCTION stop_at_two(n INT) RETURNS INT NO SQL "
        "BEGIN IF n = 2 THEN SIGNAL SQLSTATE '45000'; END IF; RETURN n; END",
    )
    run(
        connection,
        "CREATE PROCEDURE fails() BEGIN START TRANSACTION; INSERT INTO t VALUES (1); "
        "SELECT stop_at_two(id) FROM two; END",
    )
    cursor = connection.cursor(SSCursor)
    with pytest.raises(MySQLError):
        [cursor.execute("CALL fails()"), cursor.fetchall()]
    assert connection.condition() == DIRTY
    connection.reset()
    assert table() == []


def test_a_connection_whose_home_is_without_autocommit_is_rolled_back_too(
    connect: Connect, table: Any
) -> None:
    connection = connect(autocommit=False)
    assert connection.condition() is None
    run(connection, "SELECT * FROM t")
    assert connection.condition() == DIRTY
    run(connection, "INSERT INTO t VALUES (1)")
    connection.reset()
    assert connection.condition() is None
    run(connection, "INSERT INTO t VALUES (2)")
    connection.commit()
    assert connection.condition() is None
    assert not connection.get_autocommit()
    assert table() == [2]


def test_unread_results_are_noticed(connect: Connect) -> None:
    several = connect(client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS)
    cursor = several.cursor()
    cursor.execute("SELECT 1; SELECT 2; SELECT 3")
    assert several.condition() == "unread"
    cursor.nextset()
    assert several.condition() == "unread"
    cursor.nextset()
    assert several.condition() is None

    half_read = connect()
    cursor = half_read.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION SELECT 2")
    assert cursor.fetchone() == (1,)
    assert half_read.condition() == "unread"
    half_read.close()
    with pytest.raises(OperationalError, match="before all rows were read"):
        cursor.fetchone()  # not None, which would mean the end


def test_what_no_reset_undoes_is_closed_when_it_comes_back(connect: Connect) -> None:
    connection = connect()
    connection.condemn("direct use")
    assert connection.usable()  # until then
    assert one(connection, "SELECT 1") == 1
    assert connection.condition() == "direct use"
    connection.dirty_reason = "variable"  # what comes after it does not hide it
    connection.reset()
    assert connection.condition() == "direct use"


def test_what_a_user_does_to_a_connection_reaches_no_other(connect: Connect) -> None:
    given = dict(conversions)
    first, second = connect(conv=given), connect(conv=given)
    for number in (FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG):
        first.decoders[number] = lambda value: "changed"
    first.encoders[int] = lambda value, mapping: "42"
    assert one(first, "SELECT 1") == "changed"
    assert first.escape(1, first.encoders) == "42"  # PyMySQL 1.1 takes its own, if none are named
    for other in (second, connect(conv=given), connect()):
        assert one(other, f"SELECT {other.escape(1, other.encoders)}") == 1
    assert given == conversions
    shared = {
        name
        for name, value in vars(first).items()
        if isinstance(value, (dict, list, set, bytearray)) and value is getattr(second, name)
    }
    assert shared == set()


# --- By an error -------------------------------------------------------------------------------


def test_after_some_errors_it_is_gone(connect: Connect) -> None:
    for code in GONE:
        connection = connect()
        with pytest.raises(MySQLError) as error:
            run(connection, signal(code))
        assert error.value.args[0] == code
        assert connection.condition() == "lost", code
        with pytest.raises(OperationalError):
            run(connection, "SELECT 1")


@pytest.mark.parametrize(
    ("code", "option"),
    [(1290, "--read-only"), (1290, "--super-read-only"), (1290, "--innodb-read-only"), (1836, "")],
)
def test_after_some_errors_it_is_on_the_wrong_server(
    connect: Connect, code: int, option: str
) -> None:
    connection = connect()
    with pytest.raises(MySQLError):
        run(connection, signal(code, f"running with the {option} option"))
    assert connection.condition() == FAILED_OVER
    assert not connection.usable()


@pytest.mark.parametrize(
    "option",
    ["--secure-file-priv", "--skip-grant-tables", "--transaction-read-only", "--read-only-mode"],
)
def test_an_option_that_forbids_one_statement_is_no_reason_to_leave(
    connect: Connect, option: str
) -> None:
    connection = connect()
    with pytest.raises(MySQLError):
        run(connection, signal(1290, f"running with the {option} option"))
    assert connection.usable()


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_an_option_that_the_server_names_itself(connect: Connect, server: Server) -> None:
    if server.admin.query("SELECT @@secure_file_priv AS folder")[0]["folder"] is None:
        pytest.skip("this server lets files go anywhere")
    server.admin.query(f"GRANT FILE ON *.* TO {connect().user.decode()}@127.0.0.1")
    connection = connect()
    with pytest.raises(MySQLError) as error:
        run(connection, "SELECT 1 INTO OUTFILE '/nowhere/at/all'")
    assert error.value.args[0] == 1290
    assert connection.usable()


READ_ONLY_SESSIONS = {
    "of the session": ["SET SESSION TRANSACTION READ ONLY"],
    "of the next transaction": ["SET TRANSACTION READ ONLY"],
    "of one transaction": ["START TRANSACTION READ ONLY"],
    "a variable": ["SET SESSION {variable} = 1"],
    "a variable, and a transaction": ["SET SESSION {variable} = 1", "BEGIN"],
}


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
@pytest.mark.parametrize("asked", READ_ONLY_SESSIONS)
@pytest.mark.parametrize("by", ["the user", "OPTIONS"])
def test_a_session_that_was_asked_to_be_read_only_is_on_the_right_server(
    connect: Connect, table: Any, kind: str, asked: str, by: str
) -> None:
    variable = "tx_read_only" if kind == "mariadb" else "transaction_read_only"
    statements = [sql.format(variable=variable) for sql in READ_ONLY_SESSIONS[asked]]
    if by == "the user":
        connection = connect()
        for sql in statements:
            run(connection, sql)
        connection.dirty_reason = "variable"  # a session tells it
    elif "TRANSACTION READ ONLY" in statements[0] and "SESSION" not in statements[0]:
        pytest.skip("what connecting sets is for one transaction there")
    else:
        connection = connect(init_command=statements[0])
    with pytest.raises(MySQLError) as error:
        run(connection, "INSERT INTO t VALUES (1)")
    assert error.value.args[0] == 1792
    assert connection.usable()
    assert connection.condition() == DIRTY
    if by == "the user":
        connection.reset()
        assert connection.condition() is None


def signal(code: int, message: str = "") -> str:
    return f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = '{message}'"


def test_a_server_that_became_read_only_is_noticed(start_mariadb: Callable[..., Server]) -> None:
    server = start_mariadb()
    database = server.create_database()
    server.admin.query(f"CREATE TABLE {database.name}.t (id INT)")
    connection = MySQLConnection(**database.connect_args(), autocommit=True)
    connection.set_up()
    server.admin.query("SET GLOBAL read_only = 1")
    assert run(connection, "SELECT * FROM t") == []
    assert connection.condition() is None
    with pytest.raises(MySQLError):
        run(connection, "INSERT INTO t VALUES (1)")
    assert connection.condition() == FAILED_OVER
    connection.close()


def test_ordinary_errors_leave_it_usable(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(ProgrammingError):
        run(connection, "SELECT nonsense FROM nowhere")
    assert connection.usable()
    connection.reset()
    assert connection.condition() is None


def test_what_cannot_be_encoded_does_no_harm(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(UnicodeEncodeError):
        run(connection, "SELECT '\ud800'")
    assert connection.condition() is None
    assert one(connection, "SELECT 1") == 1
