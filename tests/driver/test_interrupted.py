"""A command that is interrupted, wherever it is: its connection is closed without a noise."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import gevent.socket
import gevent.ssl
import pytest
from pymysql.cursors import Cursor, SSCursor
from pymysql.err import OperationalError, ProgrammingError

from support.connections import KINDS, Connect, run, stuff
from support.netproxy import NetProxy
from support.servers import Database, Server


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_query_that_is_interrupted_while_it_is_read_closes_it(connect: Connect, how: str) -> None:
    connection = connect()
    interrupt(lambda: run(connection, "SELECT SLEEP(30)"), how)
    assert connection.condition() == "killed"
    with pytest.raises(OperationalError):
        run(connection, "SELECT 1")


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_query_that_is_interrupted_while_it_is_sent_closes_it(
    connect: Connect, proxy: NetProxy, how: str
) -> None:
    connection = connect(port=proxy.port)
    proxy.freeze()
    interrupt(lambda: run(connection, "SELECT %s", "x" * 12_000_000), how)
    assert connection.condition() == "killed"
    with pytest.raises(OperationalError):
        run(connection, "SELECT 1")


# --- Two statements in one write ---------------------------------------------------------------

FIRST = ["forget_key_first", "begin_first"]


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("answers", [0, 1])
@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_query_behind_another_that_is_interrupted_closes_it(
    connect: Connect, proxy: NetProxy, how: str, answers: int, first: str
) -> None:
    connection = connect(port=proxy.port)
    setattr(connection, first, True)
    if not answers:
        proxy.freeze()
    interrupt(lambda: run(connection, "SELECT SLEEP(30)"), how)
    assert connection.condition() == "killed"


@pytest.mark.parametrize("first", FIRST)
def test_a_query_behind_another_gets_its_own_answer_or_none(
    connect: Connect, proxy: NetProxy, first: str
) -> None:
    cut = 0
    while True:
        cut += 1
        connection = connect(port=proxy.port)
        setattr(connection, first, True)
        proxy.cut_after(cut)
        try:
            rows = run(connection, "SELECT 'own'")
        except OperationalError:
            assert connection.condition() == "lost"
            continue
        finally:
            proxy.cut_after(1 << 30)
        assert rows == [("own",)]
        break
    assert cut > 11, "the first answer alone has as many bytes"


@pytest.mark.parametrize("first", FIRST)
def test_an_error_of_a_query_behind_another_is_the_only_one_to_come(
    connect: Connect, first: str
) -> None:
    connection = connect()
    setattr(connection, first, True)
    with pytest.raises(ProgrammingError, match="no_such_table"):
        run(connection, "SELECT * FROM no_such_table")
    assert run(connection, "SELECT 1") == [(1,)]
    assert connection.condition() != "lost"


def test_both_can_go_before_a_query(connect: Connect) -> None:
    connection = connect()
    connection.begin_first = connection.forget_key_first = True
    assert run(connection, "SELECT LAST_INSERT_ID()") == [(0,)]
    assert connection.in_transaction()
    assert run(connection, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(("cursor", "after"), [(Cursor, None), (SSCursor, "unread")])
def test_a_begin_that_fails_is_the_error_of_the_query_behind_it(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, cursor: type[Cursor], after: str | None
) -> None:
    """As when somebody's KILL QUERY hits it."""
    connection = connect()
    monkeypatch.setattr("pooled_serve.driver.connection.BEGIN", "BEGIN nonsense")
    connection.begin_first = True
    with pytest.raises(ProgrammingError, match="nonsense"), connection.cursor(cursor) as reader:
        reader.execute("SELECT 1 UNION SELECT 2")
    if after is None:
        assert not connection.in_transaction()
        assert run(connection, "SELECT 3") == [(3,)]
        connection.rollback()
    assert connection.condition() == after
    assert connection.unfinished() == (after is not None), "the server runs what is behind it"


# --- Transactions and rows ----------------------------------------------------------------------


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize(("kind", "sent"), [(kind, True) for kind in KINDS] + [(KINDS[0], False)])
def test_a_commit_that_is_interrupted_closes_it(
    connect: Connect, proxy: NetProxy, sent: bool
) -> None:
    connection = connect(port=proxy.port)
    run(connection, "BEGIN")
    proxy.freeze()
    if not sent:
        stuff(connection)
    interrupt(connection.commit, "killed")
    assert connection.condition() == "killed"


@pytest.mark.usefixtures("cooperative")
def test_unbuffered_rows_that_are_interrupted_leave_no_noise(
    connect: Connect, proxy: NetProxy
) -> None:
    connection = connect(port=proxy.port)
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT REPEAT('x', 100000) FROM information_schema.collations")
    proxy.freeze()
    interrupt(cursor.fetchall, "killed")
    assert connection.condition() == "killed"
    with pytest.raises(OperationalError):
        cursor.fetchone()
    del cursor  # an error in a finalizer would fail this test


def interrupt(what: Callable[[], object], how: str) -> None:
    """Let it begin, and end it in the middle."""
    if how == "killed":
        greenlet = gevent.spawn(what)
        gevent.sleep(0.1)
        assert not greenlet.ready(), greenlet.value
        greenlet.kill()
        assert isinstance(greenlet.value, gevent.GreenletExit)
    else:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
            what()
