"""A value that cannot be converted: the error is the program's, and the connection goes on."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.constants.COMMAND import COM_QUERY
from pymysql.converters import conversions
from pymysql.cursors import Cursor, DictCursor, SSCursor
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver import results
from pooled_serve.driver.connection import MySQLConnection
from support.connections import Connect, one, run
from support.netproxy import NetProxy
from support.servers import Database, Server

BAD = "SELECT n FROM (SELECT 7 AS n UNION ALL SELECT 131313 UNION ALL SELECT 9) AS t"
MANY = BAD + ", information_schema.COLLATIONS AS a, information_schema.COLLATIONS AS b LIMIT 20000"


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


@pytest.fixture(params=["results", "without results"], autouse=True)
def bulk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in bulk, and as PyMySQL reads."""
    monkeypatch.setattr(results, "_enabled", request.param == "results")


def raising(error: BaseException) -> dict[Any, Any]:
    """Converters of which one fails for 131313."""

    def fail(value: str) -> int:
        if value == "131313":
            raise error
        return int(value)

    return {**conversions, FIELD_TYPE.LONG: fail, FIELD_TYPE.LONGLONG: fail}


def read(connection: MySQLConnection, cursor: type[Cursor], sql: str) -> None:
    with connection.cursor(cursor) as reader:
        reader.execute(sql)
        list(reader.fetchall())


def assert_in_step(connection: MySQLConnection) -> None:
    assert connection.open
    assert not connection.unread()
    assert not connection.unread_bytes()
    assert one(connection, "SELECT 'the next'") == "the next"
    assert connection.alive()


@pytest.mark.parametrize("cursor", [Cursor, DictCursor, SSCursor])
@pytest.mark.parametrize("sql", [BAD, MANY])
def test_the_connection_goes_on(connect: Connect, cursor: type[Cursor], sql: str) -> None:
    conv = raising(ValueError("not this one"))
    connection = connect(conv=conv, client_flag=CLIENT.MULTI_STATEMENTS)
    run(connection, "BEGIN")
    run(connection, "CREATE TEMPORARY TABLE kept (s VARCHAR(9))")
    for _ in range(2):  # the second time, the columns are known
        with pytest.raises(ValueError, match="not this one"):
            read(connection, cursor, sql)
        assert_in_step(connection)
    assert connection.in_transaction()
    run(connection, "SELECT * FROM kept")


@pytest.mark.parametrize("rest", ["SELECT 1; DO 0", "nonsense", BAD])
def test_what_follows_it_is_read_as_well(connect: Connect, rest: str) -> None:
    own = OperationalError(2013, "a converter may raise anything")
    connection = connect(conv=raising(own), client_flag=CLIENT.MULTI_STATEMENTS)
    with pytest.raises(OperationalError) as raised:
        run(connection, f"{BAD}; SELECT 2; {rest}")
    assert raised.value is own
    assert_in_step(connection)
    with connection.cursor() as reader:
        reader.execute(f"SELECT 1; {BAD}; {rest}")
        assert reader.fetchall() == ((1,),)
        with pytest.raises(OperationalError) as raised:
            reader.nextset()
    assert raised.value is own
    assert_in_step(connection)
    assert connection.condition() == "dirty", "one of several statements may have begun a block"
    connection.reset()
    assert connection.condition() is None


def test_an_unbuffered_reader_gets_the_rows_behind_it(connect: Connect) -> None:
    connection = connect(conv=raising(ValueError("not this one")))
    with connection.cursor(SSCursor) as reader:
        reader.execute("SELECT 7 UNION ALL SELECT 131313 UNION ALL SELECT 9")
        assert reader.fetchone() == (7,)
        with pytest.raises(ValueError, match="not this one"):
            reader.fetchone()
        assert reader.fetchone() == (9,)
        assert reader.fetchone() is None
    assert_in_step(connection)


def test_behind_a_begin(connect: Connect) -> None:
    connection = connect(conv=raising(ValueError("not this one")))
    connection.begin_first = True
    with pytest.raises(ValueError, match="not this one"):
        run(connection, BAD)
    assert connection.in_transaction()
    assert_in_step(connection)


def test_behind_a_begin_of_its_own(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several commands cannot be sent at once."""
    connection = connect(conv=raising(ValueError("not this one")))
    monkeypatch.setattr(type(connection), "can_pipeline", lambda _: False)
    connection.begin_first = True
    with pytest.raises(ValueError, match="not this one"):
        run(connection, BAD)
    assert connection.in_transaction()
    assert_in_step(connection)


def test_in_a_result_that_is_left_to_the_next_statement(connect: Connect) -> None:
    connection = connect(
        conv=raising(ValueError("not this one")), client_flag=CLIENT.MULTI_STATEMENTS
    )
    for later in (lambda: run(connection, "SELECT 5"), connection.commit):
        connection.query(f"SELECT 1; {BAD}")
        with pytest.raises(ValueError, match="not this one"):
            later()
        assert_in_step(connection)


def test_a_converter_may_raise_what_ends_an_iteration(connect: Connect) -> None:
    connection = connect(conv=raising(StopIteration("not this one")))
    with pytest.raises(StopIteration, match="not this one"):
        run(connection, BAD)
    assert_in_step(connection)


def test_several_at_once_of_which_one_fails_are_not_all_read(connect: Connect) -> None:
    """What closes it is this side, and the server may still be at work."""
    connection = connect(conv=raising(ValueError("not this one")))
    with pytest.raises(ValueError, match="not this one"):
        connection.pipeline([(COM_QUERY, BAD.encode()), (COM_QUERY, b"DO SLEEP(1)")])
    assert connection.condition() == "unread"
    assert connection.unfinished()


def test_what_is_no_text_is_not_sent(connect: Connect) -> None:
    connection = connect()
    for wrong in (5, None, ["SELECT 1"]):
        with pytest.raises(TypeError, match="a statement is a str or bytes, not "):
            connection.query(wrong)
    assert connection.condition() is None
    assert_in_step(connection)


def test_what_ends_a_greenlet_closes_it(connect: Connect) -> None:
    """As a converter that waits would let it come."""
    for error in (gevent.Timeout(1), gevent.GreenletExit()):
        connection = connect(conv=raising(error))
        with pytest.raises(type(error)):
            run(connection, BAD)
        assert connection.condition() == "killed"


def test_where_the_rest_does_not_come_it_is_lost(connect: Connect, proxy: NetProxy) -> None:
    conv = raising(ValueError("not this one"))
    connection = connect(port=proxy.port, conv=conv)
    size = len(repr(run(connection, MANY.replace("131313", "121212"))))
    proxy.cut_after(size // 2)
    with pytest.raises(MySQLError):
        run(connection, MANY)
    assert connection.condition() == "lost"


def test_it_is_held_by_nobody(connect: Connect) -> None:
    """A traceback keeps all that its frames have seen."""
    connection = connect(conv=raising(ValueError("not this one")))
    with pytest.raises(ValueError, match="not this one"):
        run(connection, BAD)
    assert connection.unconverted is None
    assert getattr(connection._result, "error", None) is None
