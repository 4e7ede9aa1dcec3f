"""What fails on one TLS connection is no failure of another."""

from __future__ import annotations

import gc
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymysql.err import OperationalError

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.tls import clear_errors, guard
from support.certificates import Authority
from support.connections import Connect, run
from support.ports import free_port
from support.processes import MAX_WAIT_SECONDS
from support.serve import Serve
from support.servers import Database, Server

VIEWS = Path(__file__).with_name("tls_views.py")


@pytest.fixture
def database(server: Server) -> Database:
    return server.create_database()


CANNOT = "Broken pipe|EOF occurred"  # older Pythons make the latter of it


def cannot_send(connection: MySQLConnection) -> None:
    """The kernel refuses what comes next."""
    with socket.socket(fileno=connection._sock.fileno()) as below:
        below.shutdown(socket.SHUT_WR)
        below.detach()


@pytest.mark.parametrize("cooperates", [True, False], ids=["gevent", "threads"])
@pytest.mark.parametrize("kind", ["mysql"])
def test_what_cannot_be_sent_fails_on_no_other_connection(
    connect: Connect, request: pytest.FixtureRequest, cooperates: bool
) -> None:
    if cooperates:
        request.getfixturevalue("cooperative")
    lost, other = connect(), connect()
    cannot_send(lost)
    with pytest.raises(OperationalError, match=r"Broken pipe|gone away"):
        run(lost, "SELECT 1")
    assert run(other, "SELECT SLEEP(0.1)") == [(0,)]
    assert run(connect(), "SELECT 2") == [(2,)], "nor on a new one"


@pytest.mark.parametrize("kind", ["mysql"])
def test_what_others_could_not_send_does_not_fail_here(connect: Connect, cooperative: None) -> None:
    """A client of the project's for another service, say, which leaves the queue as it is."""
    own, lost = connect(), connect()
    cannot_send(lost)
    with pytest.raises(OSError, match=CANNOT):
        lost._sock._sslobj.write(b"x")
    assert run(own, "SELECT SLEEP(0.1)") == [(0,)]
    with pytest.raises(OSError, match=CANNOT):
        lost._sock._sslobj.write(b"x")
    assert run(connect(), "SELECT 1") == [(1,)]


# --- Clients -----------------------------------------------------------------------------------


def test_clients_that_hang_up_end_no_other_client_s_connection(
    project: Callable[..., Path], serve: Callable[..., Serve], tmp_path: Path
) -> None:
    certificate = Authority(tmp_path / "certificates").issue("site")
    own = ("127.0.0.1", free_port())
    server = serve(
        project(VIEWS, databases={}),
        *("--certfile", str(certificate.cert), "--keyfile", str(certificate.key)),
        *("-b", "{}:{}".format(*own), "--keep-alive", "60"),
        *("--status", f"127.0.0.1:{(status := free_port())}"),
        address=("127.0.0.1", status),
        bind=False,
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def client() -> ssl.SSLSocket:
        return context.wrap_socket(socket.create_connection(own, MAX_WAIT_SECONDS))

    def ask(asking: ssl.SSLSocket, path: str) -> bytes:
        asking.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return asking.recv(65536)

    with client() as stays:
        for _ in range(10):
            with client() as leaves:
                assert ask(leaves, "/endless").startswith(b"HTTP/1.1 200")
            assert ask(stays, "/hello").startswith(b"HTTP/1.1 200"), "while it is noticed"
            time.sleep(0.1)
            assert ask(stays, "/hello").startswith(b"HTTP/1.1 200"), "after that"
    assert server.get("/livez").status == 200
    assert "Traceback" not in server.log


# --- Any operation -----------------------------------------------------------------------------


class Below:
    """A socket that does what it is told."""

    def __init__(self, *done: Any) -> None:
        self.done = list(done)

    def read(self, size: int = 1024) -> Any:
        done = self.done.pop(0)
        if isinstance(done, BaseException):
            raise done
        return done

    send = do_handshake = read


class Context:
    sslsocket_class: Any = Below


def guarded(*done: Any) -> Any:
    context = Context()
    guard(context)
    guard(context)  # a context of the project's is passed for each connection
    assert len(context.sslsocket_class.__mro__) == 4
    return context.sslsocket_class(*done)


BROKEN, RESET = BrokenPipeError("broken"), ConnectionResetError("reset")
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "read": lambda sock: sock.read(1),
    "send": lambda sock: sock.send(1),
    "handshake": lambda sock: sock.do_handshake(),
}
operations = pytest.mark.parametrize("operate", OPERATIONS.values(), ids=OPERATIONS)


@operations
def test_an_error_that_does_not_come_again_was_another_s(operate: Callable[[Any], Any]) -> None:
    assert operate(guarded(BROKEN, b"data")) == b"data"
    assert operate(guarded(BROKEN, None)) is None


@operations
@pytest.mark.parametrize("again", [BROKEN, ssl.SSLError("eof"), b"", 0], ids=repr)
def test_one_s_own_error_is_raised_as_it_was(operate: Callable[[Any], Any], again: Any) -> None:
    with pytest.raises(ConnectionResetError, match="reset"):
        operate(guarded(RESET, again))


@pytest.mark.parametrize(
    "error", [ssl.SSLError("bad"), TimeoutError("slow"), KeyboardInterrupt()], ids=repr
)
def test_other_errors_are_raised_at_once(error: BaseException) -> None:
    sock = guarded(error, b"data")
    with pytest.raises(type(error)):
        sock.read(1)
    assert sock.done == [b"data"]
    with pytest.raises(TimeoutError):
        guarded(BROKEN, TimeoutError("slow")).read(1)


def test_clearing_leaves_nothing() -> None:
    clear_errors()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        clear_errors()
    gc.collect()
    assert len(gc.get_objects()) < before + 25
