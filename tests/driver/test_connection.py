"""The connection that the pool holds, on MariaDB and on MySQL, with TLS and without."""

from __future__ import annotations

import os
import ssl
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pymysql
import pytest
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import SSCursor
from pymysql.err import (
    InterfaceError,
    MySQLError,
    OperationalError,
    ProgrammingError,
)

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.driver.error_codes import GONE
from pooled_serve.pool import DIRTY, FAILED_OVER
from support import torture
from support.memory import most_held
from support.netproxy import NetProxy
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.servers import Database, Server

COM_QUIT, COM_QUERY, COM_PING = 1, 3, 14
KINDS = ["mariadb", "mysql", "mysql without TLS"]

Connect = Callable[..., MySQLConnection]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(kind.partition(" ")[0])
    return found


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


@pytest.fixture
def proxy(server: Server) -> Iterator[NetProxy]:
    with NetProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(kind: str, database: Database) -> Iterator[Connect]:
    """Connects as Django would: with autocommit on."""
    made: list[MySQLConnection] = []

    def connect(*, set_up: bool = True, **options: Any) -> MySQLConnection:
        if "without TLS" in kind:
            options.setdefault("ssl_disabled", True)
        made.append(MySQLConnection(**{**database.connect_args(), "autocommit": True, **options}))
        if set_up:
            made[-1].set_up()
        return made[-1]

    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent's sockets for PyMySQL alone: the rest of this process stays un-patched."""
    monkeypatch.setattr(pymysql.connections, "socket", gevent.socket)
    monkeypatch.setattr(pymysql.connections, "ssl", gevent.ssl)
    monkeypatch.setattr(ssl, "SSLContext", gevent.ssl.SSLContext)


def run(connection: MySQLConnection, sql: str, *args: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return list(cursor.fetchall())


def one(connection: MySQLConnection, sql: str) -> Any:
    return run(connection, sql)[0][0]


# --- Connecting --------------------------------------------------------------------------------


def test_a_fresh_connection_is_clean_and_knows_the_wait_timeout(
    kind: str, connect: Connect
) -> None:
    connection = connect()
    assert connection.wait_timeout == 28800
    assert connection.alive()
    assert connection.usable()
    assert connection.condition() is None
    if pymysql.VERSION >= (1, 2):  # the first that uses TLS unasked
        assert isinstance(connection._sock, ssl.SSLSocket) == (kind == "mysql")


def test_a_server_that_does_not_tell_its_wait_timeout_is_no_obstacle(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = MySQLConnection.query
    monkeypatch.setattr(
        MySQLConnection,
        "query",
        lambda self, sql, unbuffered=False: query(
            self, sql.replace("@@wait_timeout", "@@nonsense"), unbuffered
        ),
    )
    connection = connect()
    assert connection.wait_timeout is None
    assert connection.condition() is None


def test_twenty_connections_build_one_tls_context(
    connect: Connect, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MySQLConnection, "_contexts", {})
    built: list[Any] = []
    create = ssl.create_default_context

    def count(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        built.append(kwargs)
        return create(*args, **kwargs)

    monkeypatch.setattr(ssl, "create_default_context", count)
    for _ in range(20):
        connect().close()
    assert len(built) <= (0 if "without" in kind else 1)  # PyMySQL 1.1 builds none unasked


def test_a_renewed_certificate_is_taken_up(mysql: Server, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes((mysql.directory / "data" / "ca.pem").read_bytes())
    arguments = {
        **mysql.create_database().connect_args(),
        "ssl_ca": str(ca),
        "ssl_verify_cert": True,
    }

    def context() -> ssl.SSLContext:
        connection = MySQLConnection(**arguments)
        assert connection.ctx.verify_mode == ssl.CERT_REQUIRED
        connection.close()
        return connection.ctx  # type: ignore[no-any-return]

    first = context()
    assert context() is first
    os.utime(ca, ns=(0, 1))
    renewed = context()
    assert renewed is not first
    assert context() is renewed


def test_a_context_of_the_users_own_is_used_as_it_is(mysql: Server) -> None:
    own = ssl.create_default_context()
    own.check_hostname = False
    own.verify_mode = ssl.CERT_NONE
    connection = MySQLConnection(**mysql.create_database().connect_args(), ssl=own)
    assert connection.ctx is own
    connection.close()


@pytest.mark.usefixtures("cooperative")
def test_the_handshake_is_bounded_as_a_whole(connect: Connect, proxy: NetProxy) -> None:
    proxy.black_hole()
    with pytest.raises(OperationalError, match=r"no complete handshake within 0\.2s") as error:
        connect(port=proxy.port, connect_timeout=0.2)
    assert error.value.args[0] == 2003


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("kind", ["mariadb"])
def test_many_answers_that_are_each_in_time_may_still_be_late(
    connect: Connect, proxy: NetProxy, database: Database, server: Server
) -> None:
    # SET NAMES gets its answer in time, the question after it does not.
    proxy.delay(command_seconds=0.3)
    with pytest.raises(OperationalError, match="no complete handshake") as error:
        connect(port=proxy.port, connect_timeout=0.45)
    assert error.value.args[0] == 2003
    wait_until(lambda: not server.admin.processlist(database.user))


def test_the_handshake_is_bounded_without_gevent_too(connect: Connect, proxy: NetProxy) -> None:
    proxy.black_hole()
    with pytest.raises(OperationalError):
        connect(port=proxy.port, connect_timeout=0.2)


@pytest.mark.parametrize("kind", ["mysql"])
def test_the_limit_on_connecting_is_none_on_queries(connect: Connect) -> None:
    connection = connect(connect_timeout=2)
    assert one(connection, "SELECT SLEEP(2.2)") == 0


@torture
def test_a_connection_that_is_never_set_up_remembers_little(connect: Connect) -> None:
    # Those of threads outside of the pool. Each statement could be one of the set-up.
    connection = connect(set_up=False)
    tracemalloc.start()
    try:
        for number in range(200):
            connection.query(f"SET @x = '{number}{'x' * 20_000}'")
            connection.query(f"SET @y = {number}")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


def test_init_command_sql_mode_and_collation_arrive(connect: Connect) -> None:
    connection = connect(
        init_command="SET @greeting = 'hello'",
        sql_mode="ANSI_QUOTES",
        charset="latin1",
        collation="latin1_german1_ci",
    )
    assert one(connection, "SELECT @greeting") == "hello"
    assert one(connection, "SELECT @@sql_mode") == "ANSI_QUOTES"
    assert one(connection, "SELECT @@collation_connection") == "latin1_german1_ci"
    assert connection.condition() is None


def test_the_servers_socket_can_be_used(connect: Connect, server: Server) -> None:
    connection = connect(unix_socket=str(server.socket))
    assert one(connection, "SELECT 1") == 1
    assert connection.alive()
    server.admin.kill(connection.thread_id())
    wait_until(lambda: not connection.alive())


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_read_timeout_ends_a_query_and_the_connection(connect: Connect, server: Server) -> None:
    connection = connect(read_timeout=2)
    with pytest.raises(OperationalError, match="timed out"):
        run(connection, "SELECT SLEEP(300)")
    server.admin.kill(connection.thread_id())
    assert connection.condition() == "lost"
    assert not connection.usable()


@pytest.mark.parametrize("kind", ["mysql without TLS"])
def test_a_login_that_lacks_cryptography_names_the_extra(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    with pytest.raises(OperationalError, match=r"pip install 'pooled-serve\[rsa\]', or use TLS"):
        connect()


# --- Liveness ----------------------------------------------------------------------------------


def test_alive_sees_a_kill_and_an_expiry(connect: Connect, server: Server) -> None:
    healthy, killed, expired = connect(), connect(), connect()
    run(expired, "SET SESSION wait_timeout = 1")
    server.admin.kill(killed.thread_id())
    wait_until(lambda: not killed.alive())
    wait_until(lambda: not expired.alive())
    assert healthy.alive()
    assert one(healthy, "SELECT 1") == 1
    for dead in (killed, expired):
        with pytest.raises(MySQLError):
            dead.ping()
        assert dead.condition() == "lost"


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_alive_sees_a_restart(connect: Connect, server: Server) -> None:
    connection = connect()
    server.restart()
    assert not connection.alive()
    assert not connection.usable()


def test_alive_asks_nobody(connect: Connect, proxy: NetProxy) -> None:
    connection = connect(port=proxy.port)
    before = proxy.traffic().commands
    proxy.freeze()
    assert all(connection.alive() for _ in range(100))
    proxy.thaw()
    assert proxy.traffic().commands == before


def test_a_ping_asks_the_server_and_never_connects_anew(connect: Connect, server: Server) -> None:
    connection = connect()
    connection.ping()
    connection.ping(reconnect=True)
    number = connection.thread_id()
    server.admin.kill(number)
    wait_until(lambda: not connection.alive())
    with pytest.raises(MySQLError):
        connection.ping(reconnect=True)
    with pytest.raises(MySQLError):
        connection.ping(reconnect=True)
    assert connection.thread_id() == number
    assert not connection.open


# --- What a user left behind -------------------------------------------------------------------


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
    with pytest.raises(InterfaceError, match="before all rows were read"):
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


def test_after_some_errors_it_is_gone(connect: Connect) -> None:
    for code in GONE:
        connection = connect()
        with pytest.raises(MySQLError) as error:
            run(connection, signal(code))
        assert error.value.args[0] == code
        assert connection.condition() == "lost", code
        with pytest.raises(InterfaceError):
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


# --- Interrupted -------------------------------------------------------------------------------


def test_an_error_while_a_result_is_parsed_closes_it(connect: Connect) -> None:
    def fail(value: str) -> int:
        if value == "2":
            raise ValueError("not this one")
        return int(value)

    decoders = {**conversions, FIELD_TYPE.LONG: fail, FIELD_TYPE.LONGLONG: fail}
    connection = connect(conv=decoders)
    with pytest.raises(ValueError, match="not this one"):
        run(connection, "SELECT 1 UNION SELECT 2 UNION SELECT 3")
    assert connection.condition() == "lost"


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_query_that_is_interrupted_while_it_is_read_closes_it(connect: Connect, how: str) -> None:
    connection = connect()
    interrupt(lambda: run(connection, "SELECT SLEEP(2)"), how)
    assert connection.condition() == "lost"
    with pytest.raises(InterfaceError):
        run(connection, "SELECT 1")


@pytest.mark.usefixtures("cooperative")
@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_query_that_is_interrupted_while_it_is_sent_closes_it(
    connect: Connect, proxy: NetProxy, how: str
) -> None:
    connection = connect(port=proxy.port)
    proxy.freeze()
    interrupt(lambda: run(connection, "SELECT %s", "x" * 12_000_000), how)
    assert connection.condition() == "lost"
    with pytest.raises(InterfaceError):
        run(connection, "SELECT 1")


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
    assert connection.condition() == "lost"


@pytest.mark.usefixtures("cooperative")
def test_unbuffered_rows_that_are_interrupted_leave_no_noise(
    connect: Connect, proxy: NetProxy
) -> None:
    connection = connect(port=proxy.port)
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT REPEAT('x', 100000) FROM information_schema.collations")
    proxy.freeze()
    interrupt(cursor.fetchall, "killed")
    assert connection.condition() == "lost"
    with pytest.raises(InterfaceError):
        cursor.fetchone()
    del cursor  # an error in a finalizer would fail this test


def stuff(connection: MySQLConnection) -> None:
    """Send until nothing more goes in."""
    connection._sock.settimeout(0)
    with suppress(OSError):
        while connection._sock.send(b"x" * 1_000_000):
            pass
    connection._sock.settimeout(None)


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


# --- Closing -----------------------------------------------------------------------------------


def test_the_server_hears_a_goodbye(connect: Connect, server: Server, database: Database) -> None:
    before = server.admin.aborted_clients()
    connections = [connect() for _ in range(5)]
    run(connections[0], "BEGIN")
    connections[1].cursor(SSCursor).close()
    for connection in connections:
        connection.close()
        connection.close()  # a second time does nothing
        assert connection.condition() == "lost"
    assert server.admin.aborted_clients() == before


@pytest.mark.usefixtures("cooperative")
def test_closing_waits_for_nobody(connect: Connect, proxy: NetProxy) -> None:
    connection = connect(port=proxy.port)
    proxy.freeze()
    stuff(connection)
    with gevent.Timeout(MAX_WAIT_SECONDS):  # no Exception, which close() would swallow
        connection.close()
    assert not connection.open


def test_closing_does_not_wait_without_gevent_either(connect: Connect, proxy: NetProxy) -> None:
    connection = connect(port=proxy.port)
    proxy.freeze()
    connection.close()
    assert not connection.open


def test_a_forked_child_leaves_the_parents_connection_alone(
    connect: Connect, server: Server, database: Database, proxy: NetProxy
) -> None:
    connection = connect(port=proxy.port)
    cursor = connection.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION SELECT 2")
    before = proxy.traffic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are threads: the child uses none
        child = os.fork()
    if child == 0:
        code = 1
        try:
            connection.abandon()
            with suppress(InterfaceError):
                cursor.fetchone()
            del cursor
            connection.close()
            code = 0 if connection.condition() == "lost" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert cursor.fetchall() == [(1,), (2,)]
    assert one(connection, "SELECT 3") == 3
    after = proxy.traffic()
    assert after.open == before.open == 1
    assert after.commands[COM_QUIT] == 0
    assert len(server.admin.processlist(database.user)) == 1


# --- A round trip each -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mariadb", "mysql without TLS"])
def test_connecting_and_cleaning_cost_what_they_must(connect: Connect, proxy: NetProxy) -> None:
    connect(port=proxy.port)  # the first one finds out what a login does; see test_login.py
    before = proxy.traffic().commands
    connection = connect(port=proxy.port)
    sent = proxy.traffic().commands - before
    assert sent[COM_QUERY] <= 3  # SET NAMES, autocommit if the server's is off, wait_timeout
    connection.autocommit(False)
    run(connection, "SELECT 1")
    before = proxy.traffic().commands
    connection.reset()
    assert proxy.traffic().commands - before == {COM_QUERY: 2}  # ROLLBACK, SET autocommit
    before = proxy.traffic().commands
    connection.condition()
    connection.usable()
    assert proxy.traffic().commands == before
    assert before[COM_PING] == 0


def test_time_is_only_asked_of_the_clock_that_cannot_jump(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jump() -> float:
        raise AssertionError("the wall clock")

    monkeypatch.setattr(time, "time", jump)
    connection = connect()
    run(connection, "BEGIN")
    connection.reset()
    connection.close()


# --- What is remembered ------------------------------------------------------------------------


@torture
def test_names_of_columns_take_a_few_megabytes_at_most(connect: Connect) -> None:
    """A program may name them as it likes, and anew for each query."""
    connection = connect()

    def steps() -> Iterator[object]:
        for n in range(30):
            names = [f"{n} {m} {chr(0x8868) * 50}" for m in range(200)]
            run(connection, "SELECT " + ", ".join(f"1 AS `{name}`" for name in names))
            connection._result = None
            yield n

    assert most_held(steps()) < 6_000_000


def test_tls_contexts_do_not_pile_up(mysql: Server, tmp_path: Path) -> None:
    """Certificates are renewed, and tenants may have one each."""
    certificate = tmp_path / "ca.pem"
    certificate.write_bytes((mysql.directory / "data" / "ca.pem").read_bytes())
    connection = MySQLConnection(**mysql.create_database().connect_args(), defer_connect=True)
    for n in range(100):
        os.utime(certificate, (n, n))
        connection._create_ssl_ctx({"ca": str(certificate)})
    assert len(connection._contexts) <= 16


@pytest.mark.parametrize("kind_of_bytes", [bytearray, memoryview])
def test_a_statement_may_be_any_bytes(connect: Connect, kind_of_bytes: type) -> None:
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute(kind_of_bytes("SELECT 'ż'".encode()))
        assert cursor.fetchall() == (("ż",),)
