"""The connection that the pool holds, on MariaDB and on MySQL, with TLS and without."""

from __future__ import annotations

import gc
import os
import ssl
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from pymysql.cursors import SSCursor
from pymysql.err import MySQLError, OperationalError

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.pool import LOST
from pooled_serve.pool.connecting import got_no_answer
from support.connections import Connect, one, run, stuff
from support.memory import most_held
from support.netproxy import NetProxy
from support.processes import MAX_WAIT_SECONDS, wait_until
from support.servers import Database, Server
from support.torture import torture

COM_QUIT, COM_QUERY, COM_PING = 1, 3, 14


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


def connect_in_time(connect: Connect, **options: Any) -> MySQLConnection:
    """With a short timeout, as often as a busy machine is too slow for it."""

    def connected() -> MySQLConnection | None:
        with suppress(OperationalError):
            return connect(**options)
        return None

    return wait_until(connected)


# --- Connecting --------------------------------------------------------------------------------


def test_a_fresh_connection_is_clean_and_knows_the_wait_timeout(
    kind: str, connect: Connect
) -> None:
    connection = connect()
    assert connection.wait_timeout == 28800
    assert connection.alive()
    assert connection.usable()
    assert connection.condition() is None
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


@torture
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


@pytest.mark.parametrize("seconds", [(0.2, 5), (5, 0.2)])
def test_a_login_that_is_not_answered_in_time_is_told_from_one_that_is_refused(
    connect: Connect, proxy: NetProxy, seconds: tuple[float, float]
) -> None:
    """Whichever limit is the shorter one."""
    proxy.black_hole()
    with pytest.raises(OperationalError) as error:
        connect(port=proxy.port, connect_timeout=seconds[0], read_timeout=seconds[1])
    assert got_no_answer(error.value)


def test_the_handshake_is_bounded_without_gevent_too(connect: Connect, proxy: NetProxy) -> None:
    proxy.black_hole()
    with pytest.raises(OperationalError):
        connect(port=proxy.port, connect_timeout=0.2)


@pytest.mark.parametrize("kind", ["mysql"])
def test_the_limit_on_connecting_is_none_on_queries(connect: Connect) -> None:
    connection = connect_in_time(connect, connect_timeout=0.5)
    assert one(connection, "SELECT SLEEP(0.7)") == 0


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


def test_the_error_of_a_socket_names_the_socket(connect: Connect, tmp_path: Path) -> None:
    path = str(tmp_path / "no.sock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # PyMySQL leaves its socket to gc
        with pytest.raises(OperationalError, match="No such file") as error:
            connect(unix_socket=path)
        assert error.value.args[0] == 2003
        assert str(error.value.args[1]).startswith(f"Can't connect to MySQL server on '{path}' (")
        del error
        gc.collect()


@pytest.mark.parametrize("host", ["app:{}@{}", "mysql://{1}/app?password={0}"])
def test_the_error_of_a_host_has_no_password_in_it(connect: Connect, host: str) -> None:
    """It is in the log, for as long as the server cannot be reached."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(OperationalError) as error:
            connect(host=host.format("hunter2-and-more", "no-such-host.invalid"))
        assert error.value.args[0] == 2003
        assert "no-such-host.invalid" in str(error.value)
        assert "hunter2" not in str(error.value)
        del error
        gc.collect()


def test_the_servers_socket_can_be_used(connect: Connect, server: Server) -> None:
    connection = connect(unix_socket=str(server.socket))
    assert one(connection, "SELECT 1") == 1
    assert connection.alive()
    server.admin.kill(connection.thread_id())
    wait_until(lambda: not connection.alive())


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_read_timeout_ends_a_query_and_the_connection(connect: Connect, server: Server) -> None:
    connection = connect_in_time(connect, read_timeout=0.5)
    with pytest.raises(OperationalError, match="timed out"):
        run(connection, "SELECT SLEEP(300)")
    server.admin.kill(connection.thread_id())
    assert connection.condition() == "killed"
    assert not connection.usable()
    assert connection.awaits() is LOST, "and nothing else: it has had no answer"


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
            with suppress(OperationalError):
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
