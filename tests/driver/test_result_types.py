"""Results of real servers, as PyMySQL reads them by itself and as we do: schemas, values, modes."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import gevent
import hypothesis.strategies as st
import pymysql
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from pymysql.connections import Connection
from pymysql.constants import CLIENT
from pymysql.cursors import Cursor, DictCursor, SSCursor, SSDictCursor
from pymysql.err import MySQLError

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.results import BulkConnection
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.responses import CONVERSIONS
from support.servers import Server

INTEGERS = [
    ("TINYINT", -(2**7), 2**7 - 1),
    ("SMALLINT UNSIGNED", 0, 2**16 - 1),
    ("MEDIUMINT", -(2**23), 2**23 - 1),
    ("INT(9) ZEROFILL", 0, 2**32 - 1),
    ("BIGINT", -(2**63), 2**63 - 1),
    ("BIGINT UNSIGNED", 0, 2**64 - 1),
    ("YEAR", 1901, 2155),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 10, 70, 500]))
ZERO = st.just("0000-00-00 00:00:00")
MOMENT = st.one_of(ZERO, st.datetimes(datetime.datetime(1000, 1, 1)))
KINDS: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.integers(low, high) for name, low, high in INTEGERS},
    "DECIMAL(40,15)": st.decimals(-(10**20), 10**20, places=15),
    "DECIMAL(5,0)": st.integers(-99999, 99999).map(Decimal),
    "FLOAT": st.floats(-(2.0**100), 2.0**100, width=32),
    "DOUBLE": st.floats(allow_nan=False, allow_infinity=False),
    "BIT(1)": st.integers(0, 1),
    "BIT(64)": st.integers(0, 2**64 - 1),
    "DATE": st.one_of(st.just("0000-00-00"), st.just("2024-00-10"), st.dates()),
    "DATETIME": MOMENT,
    "DATETIME(2)": MOMENT,
    "DATETIME(6)": MOMENT,
    "TIMESTAMP(6) NULL": st.datetimes(datetime.datetime(1980, 1, 1), datetime.datetime(2037, 1, 1)),
    "TIME": st.timedeltas(datetime.timedelta(hours=-838), datetime.timedelta(hours=838)),
    "TIME(6)": st.timedeltas(datetime.timedelta(hours=-838), datetime.timedelta(hours=838)),
    "CHAR(20)": TEXT,
    "VARCHAR(500)": LONG,
    "BINARY(9)": st.binary(max_size=9),
    "VARBINARY(500)": st.binary(max_size=500),
    "TINYTEXT": TEXT,
    "LONGTEXT": LONG,
    "BLOB": st.binary(max_size=400),
    "ENUM('a','é')": st.sampled_from(["a", "é", ""]),
    "SET('x','y')": st.sampled_from(["x", "x,y", ""]),
    "JSON": st.sampled_from(["{}", '{"a": ["é", null]}', "1"]),
    "POINT": st.none(),
}
NAMES = ["id", "名前", "with space", "x", "%s", "a" * 64, "B"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[tuple[Any, ...]]]:
    """Columns, by name and type, and rows."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=len(NAMES)))
    names = draw(st.permutations(NAMES))
    values = st.tuples(*(st.one_of(st.none(), KINDS[kind]) for kind in kinds))
    rows = draw(st.lists(values, max_size=6))
    return list(zip(names, kinds, strict=False)), rows * draw(st.sampled_from([1, 1, 30]))


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    server: Server = request.getfixturevalue(request.param)
    database = server.create_database()
    return {
        **database.connect_args(),
        "autocommit": True,
        "ssl_disabled": True,
        "client_flag": CLIENT.MULTI_STATEMENTS,
    }


@pytest.fixture(scope="module")
def writer(arguments: dict[str, Any]) -> Iterator[Any]:
    with Connection(**arguments, sql_mode="") as connection:
        yield connection


def told(make: Any, arguments: dict[str, Any], statements: list[str], cursor: Any) -> list[str]:
    """All that a program can learn."""
    found: list[str] = []
    with make(**arguments) as connection:
        for statement in statements * 2:  # the second time, what the columns are is known
            reader = connection.cursor(cursor)
            try:
                found.append(repr(reader.execute(statement)))
                while True:
                    found.append(repr((reader.fetchone(), reader.fetchmany(3), reader.rownumber)))
                    found.append(repr((list(reader.fetchall()), reader.description)))
                    found.append(repr((reader.rowcount, reader.lastrowid, reader.warning_count)))
                    if not reader.nextset():
                        break
            except MySQLError as error:
                found.append(repr((type(error), error.args)))
            except (TypeError, ValueError) as error:  # a converter that takes no bytes
                # Half read, of no use to anybody; PyMySQL's finalizers would try, though.
                if reader._result is not None:
                    reader._result.unbuffered_active = False
                reader.connection = None
                return [*found, repr(type(error))]
            found.append(repr((connection.server_status, connection.insert_id())))
            reader.close()
    return found


@settings(
    max_examples=30,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    table=tables(),
    cursor=st.sampled_from([Cursor, Cursor, DictCursor, SSCursor, SSDictCursor]),
    charset=st.sampled_from(["utf8mb4", "utf8mb4", "utf8mb3", "latin1", "gbk", "ascii"]),
    conversions=st.sampled_from(sorted(CONVERSIONS)),
    use_unicode=st.booleans(),
    mode=st.sampled_from(["", "ANSI", "NO_BACKSLASH_ESCAPES,STRICT_ALL_TABLES", "TRADITIONAL"]),
)
def test_all_types(
    arguments: dict[str, Any],
    writer: Any,
    table: Any,
    cursor: Any,
    charset: str,
    conversions: str,
    use_unicode: bool,
    mode: str,
) -> None:
    columns, rows = table
    with writer.cursor() as write:
        write.execute("DROP TABLE IF EXISTS t")
        defined = ", ".join(f"`{name}` {kind}" for name, kind in columns)
        write.execute(f"CREATE TABLE t ({defined}) CHARACTER SET utf8mb4".replace("%", "%%"), ())
        if rows:
            values = ", ".join("(" + ", ".join(map(writer.escape, row)) + ")" for row in rows)
            write.execute(f"INSERT IGNORE INTO t VALUES {values}")
    name = columns[0][0]
    statements = [
        "SELECT * FROM t",
        "SELECT * FROM t LIMIT 1",
        f"SELECT `{name}`, 1 AS `{name}`, COUNT(*), MAX(`{name}`) FROM t GROUP BY 1",
        f"SELECT `{name}` + 0, `{name}` = '2024-13-99' FROM t",
        "SELECT 1; SELECT * FROM t LIMIT 2; DO 1; SELECT '' WHERE 1 = 0; SELECT nonsense",
        "CREATE TEMPORARY TABLE IF NOT EXISTS k (id INT AUTO_INCREMENT PRIMARY KEY)",
        "INSERT INTO k VALUES (), ()",
        "SHOW FULL COLUMNS FROM t",
        "SELECT * FROM t AS one JOIN t AS two LIMIT 3",
        "nonsense",
    ]
    options = {
        **arguments,
        "charset": charset,
        "use_unicode": use_unicode,
        "conv": CONVERSIONS[conversions],
        "sql_mode": mode,
    }
    expected = told(Connection, options, statements, cursor)
    found = told(BulkConnection, options, statements, cursor)
    if found != expected:
        one, other = next(pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1])
        raise AssertionError(f"{one[:2000]}\nis not PyMySQL's\n{other[:2000]}")


def test_a_result_beyond_16_megabytes(arguments: dict[str, Any]) -> None:
    sizes = [10, 0xFFFFFF - 4, 0xFFFFFF - 5, 20_000_000, 0]
    sql = " UNION ALL ".join(
        f"SELECT {n} AS n, REPEAT('x', {size})" for n, size in enumerate(sizes)
    )
    with Connection(**arguments) as admin, admin.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        if cursor.fetchone()[0] < 21_000_000:
            pytest.skip("this server sends no values of that size")
    with MySQLConnection(**arguments) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        assert [(n, len(text)) for n, text in cursor.fetchall()] == list(enumerate(sizes))


def test_an_answer_that_was_received_ahead_of_its_time_makes_a_connection_unclean(
    arguments: dict[str, Any],
) -> None:
    with MySQLConnection(**arguments) as connection:
        connection.set_up()
        assert connection.alive()
        assert connection.condition() is None
        question = b"\x09\0\0\0\x03SELECT 1"
        connection._write_bytes(question * 2)
        wait_until(lambda: connection._sock.recv(1000, socket.MSG_PEEK).count(b"\xfe") >= 4)
        connection._next_seq_id = 1
        connection._read_query_result()
        assert not connection._readable(0)
        assert not connection.alive()
        assert connection.condition() == "unread"
        connection._next_seq_id = 1
        connection._read_query_result()
        assert connection._result.rows == ((1,),)
        assert connection.alive()
        assert connection.condition() is None


@pytest.mark.parametrize("cursor", [Cursor, SSCursor])
def test_a_greenlet_killed_among_the_rows_leaves_a_closed_connection(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cursor: Any
) -> None:
    monkeypatch.setattr(pymysql.connections, "socket", gevent.socket)
    connection = MySQLConnection(**arguments)
    connection.set_up()
    rows = "SELECT 1, REPEAT('x', 20000) UNION ALL SELECT SLEEP(60), 'y'"

    def run() -> None:
        with connection.cursor(cursor) as reader:
            reader.execute(rows)
            reader.fetchall()

    connection._next_seq_id = 0
    greenlet = gevent.spawn(run)
    with gevent.Timeout(MAX_WAIT_SECONDS):
        while connection._next_seq_id < 5:  # behind the descriptions
            gevent.sleep(0.01)
    greenlet.kill()
    assert not connection.open
    assert connection.condition() == "killed"
    assert not connection.alive()
