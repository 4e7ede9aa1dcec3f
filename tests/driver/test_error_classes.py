"""The classes of errors: mysqlclient's, on our connections alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pymysql
import pytest
from pymysql.constants.COMMAND import COM_QUERY
from pymysql.err import IntegrityError, MySQLError, OperationalError, error_map

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.error_classes import class_of
from support.connections import Connect, run
from support.servers import Database, Server

# Of mysqlclient 2.3.2 with MariaDB's Connector/C 3.3.20. The others up to 4199 are
# OperationalErrors, but for the client's own, which no server sends.
RECORDED = {
    "ProgrammingError": {1007, 1064, 1102, 1103, 1110, 1111, 1112, 1113, 1146, 1149, 1179},
    "IntegrityError": {1048, 1062, 1169, 1215, 1216, 1217, 1364, 1451, 1452},
    "DataError": {1171, 1230, 1264, 1265, 1406, 1441},
    "NotSupportedError": {1196, 1235, 1286, 1289},
}
CODES = [code for code in range(1000, 4200) if not 2000 <= code <= 2061]
UNUSUAL = [1, 999, 32767, 32768, 65534]  # PyMySQL takes half of all numbers for negative ones

ASK = """
import json, sys
import MySQLdb

codes, arguments = json.load(sys.stdin)
connection = MySQLdb.connect(**arguments)
found = {}
for code in codes:
    cursor = connection.cursor()
    try:
        cursor.execute(f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'x'")
    except MySQLdb.Error as error:
        found[error.args[0]] = type(error).__name__
json.dump(found, sys.stdout)
"""


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


def raised(connection: Any, code: int) -> Any:
    sql = f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'it''s é'"
    with pytest.raises(MySQLError) as caught, connection.cursor() as cursor:
        cursor.execute(sql)
    return caught.value


def recorded(code: int) -> str:
    for name, codes in RECORDED.items():
        if code in codes:
            return name
    return "OperationalError" if code >= 1000 else "InternalError"


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_each_error_has_the_class_of_mysqlclients(connect: Connect) -> None:
    connection = connect()
    for code in [*CODES, *UNUSUAL]:
        error = raised(connection, code)
        assert error.args == (code, "it's é")
        assert error.sqlstate == "45000"
        assert type(error).__name__ == recorded(code), code
        assert not connection.open or connection.condition() in ("dirty", "moved"), code
        if not connection.open:  # by one of the codes after which there is nothing to come
            connection = connect()


def test_mysqlclient_has_not_changed_its_mind(database: Database) -> None:
    """With MYSQLCLIENT_PYTHON, that of another environment."""
    python = os.environ.get("MYSQLCLIENT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import MySQLdb"], capture_output=True).returncode:
        pytest.skip("mysqlclient is not installed")
    question = json.dumps([[*CODES, *UNUSUAL], database.connect_args()])
    done = subprocess.run([python, "-c", ASK], input=question, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = {int(code): name for code, name in json.loads(done.stdout).items()}
    assert theirs == {code: class_of(code).__name__ for code in [*CODES, *UNUSUAL]}


def test_what_others_connect_with_pymysql_is_as_before(database: Database) -> None:
    with pymysql.connect(**database.connect_args()) as connection:
        for code in (1364, 1366, 1263):
            assert type(raised(connection, code)) is error_map.get(code, OperationalError)


def test_a_field_without_a_default_value(connect: Connect) -> None:
    """The one that a project meets."""
    connection = connect(sql_mode="STRICT_ALL_TABLES")
    run(connection, "CREATE TEMPORARY TABLE t (a INT NOT NULL, b INT)")
    with pytest.raises(IntegrityError, match="default value"):
        run(connection, "INSERT INTO t (b) VALUES (1)")
    with pytest.raises(OperationalError, match="ncorrect integer value"):
        run(connection, "INSERT INTO t (a) VALUES ('x')")


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("query", ["SELECT 1"]),
        ("begin", []),
        ("commit", []),
        ("rollback", []),
        ("ping", []),
        ("show_warnings", []),
        ("select_db", ["mysql"]),
        ("kill", [1]),
        ("next_result", []),
        ("pipeline", [[(COM_QUERY, b"SELECT 1")]]),
    ],
)
def test_a_closed_connection_has_gone_away(connect: Connect, command: str, args: list[Any]) -> None:
    connection = connect()
    connection._force_close()
    with pytest.raises(OperationalError) as caught:
        getattr(connection, command)(*args)
    assert caught.value.args[0] == 2006
    assert connection.send_failed, "so it can run on another one"
    assert isinstance(connection, MySQLConnection)
