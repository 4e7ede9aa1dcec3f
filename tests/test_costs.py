"""What a request costs, in things that can be counted: sends, commands, calls. No clock."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import gevent.socket
import gevent.ssl
import pytest

from pooled_serve.tuning import receive, response, send, switches
from support.command import run
from support.django_project import APP, write_project
from support.netproxy import NetProxy
from support.processes import MAX_WAIT_SECONDS
from support.script import run_function
from support.serve import Serve
from support.servers import Server

QUERY = 3
DATA_SEGMENTS_IN = 152  # offset in Linux's struct tcp_info

SETTINGS = """
    MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # it sets Content-Length
"""
VIEWS = Path(__file__).with_name("costs_views.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without a database."""
    folder = tmp_path_factory.mktemp("costs") / "project"
    return write_project(folder, databases={}, views=VIEWS, settings=SETTINGS)


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[Serve]:
    with Serve(APP, cwd=folder) as server:
        yield server


class Wire:
    """A connection of which every byte and every TCP segment is seen."""

    def __init__(self, server: Serve) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), MAX_WAIT_SECONDS)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def send(self, path: str, method: str = "GET", more: str = "", body: str = "") -> None:
        self._socket.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n{body}".encode()
        )

    def read_to(self, end: bytes) -> bytes:
        """What comes, up to this end, behind which nothing may follow."""
        data = b""
        while not data.endswith(end):
            piece = self._socket.recv(65536)
            assert piece, data
            data += piece
        return data

    def segments(self) -> int:
        """How many segments with data have arrived: on this machine, one for each small send."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        count: int = struct.unpack_from("I", info, DATA_SEGMENTS_IN)[0]
        return count


# --- Sends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "end"),
    [
        ("GET", "/hello", b"\r\n\r\nhello"),
        ("HEAD", "/hello", b"\r\n\r\n"),
        ("HEAD", "/large", b"\r\n\r\n"),
        ("GET", "/empty", b"\r\n\r\n"),
        ("GET", "/nothing", b"\r\n\r\n"),
        ("GET", "/unchanged", b"\r\n\r\n"),
    ],
)
def test_a_small_response_is_one_send(web: Serve, method: str, path: str, end: bytes) -> None:
    with Wire(web) as wire:
        for count in range(1, 4):
            wire.send(path, method)
            assert wire.read_to(end).startswith(b"HTTP/1.1 ")
            assert wire.segments() == count


@pytest.mark.parametrize(
    ("first", "end", "segments"),
    [("first", b"\r\n\r\n5\r\nfirst\r\n", 1), ("", b"\r\n\r\n", 1)],
    ids=["text", "nothing"],
)
def test_a_stream_holds_nothing_back(web: Serve, first: str, end: bytes, segments: int) -> None:
    with Wire(web) as wire:
        wire.send(f"/stream?first={first}")
        wire.read_to(end)  # while the view waits
        assert wire.segments() == segments
        web.get("/proceed")
        assert wire.read_to(b"\r\n0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


def test_what_is_large_or_a_file_arrives_whole(web: Serve, folder: Path) -> None:
    with web.keepalive() as client:
        assert client.get("/large").body == b"0123456789" * 100_000
        assert client.get("/file").body == (folder / "mysite/views.py").read_bytes()
        assert client.get("/no_file").body == b"0123456789" * 10_000
        assert client.get("/hello").text == "hello"


def test_what_goes_before_the_headers_stays_before_them(web: Serve) -> None:
    with Wire(web) as wire:
        wire.send("/hints")
        said = wire.read_to(b"\r\n\r\nhello")
        assert said.startswith(
            b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
        )
        assert said.count(b"HTTP/1.1 200") == 1
        wire.send("/body", "POST", "Expect: 100-continue\r\nContent-Length: 5\r\n")
        assert wire.read_to(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire._socket.sendall(b"bytes")
        assert wire.read_to(b"\r\n\r\nbytes").startswith(b"HTTP/1.1 200")


def test_the_date_is_right_and_written_once_a_second(
    web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    date = web.get("/hello").headers["Date"]
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < MAX_WAIT_SECONDS
    assert response.http_date(1_000_000_000.9) == "Sun, 09 Sep 2001 01:46:40 GMT"

    written: list[int] = []
    clock = iter([2_000_000_000.0, 2_000_000_000.999, 2_000_000_001.0, 2_000_000_001.5])
    monkeypatch.setattr(time, "time", lambda: next(clock))

    def formatdate(timestamp: int, **_: bool) -> str:
        written.append(timestamp)
        return str(timestamp)

    monkeypatch.setattr("email.utils.formatdate", formatdate)
    dates = [response.http_date() for _ in range(4)]
    assert dates == ["2000000000"] * 2 + ["2000000001"] * 2
    assert written == [2_000_000_000, 2_000_000_001]


# --- Sends -------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[gevent.socket.socket, gevent.socket.socket]]:
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_is_small_is_sent_without_sendall(pair: Any) -> None:
    ours, theirs = pair
    assert send.unsent(ours, b"SELECT 1") == b""
    assert theirs.recv(100) == b"SELECT 1"


def test_what_does_not_fit_is_left_for_sendall(pair: Any) -> None:
    ours, theirs = pair
    data = bytes(range(256)) * 255
    given = b""
    while not (rest := send.unsent(ours, data)):
        given += data
    sender = gevent.spawn(ours.sendall, rest)
    given += data
    received = b""
    while len(received) < len(given):
        received += theirs.recv(1 << 20)
    sender.get(timeout=MAX_WAIT_SECONDS)
    assert received == given


def test_what_is_large_encrypted_or_lost_is_left_for_sendall(pair: Any) -> None:
    ours, theirs = pair
    large = bytes(send.COPY_LIMIT_BYTES + 1)
    assert send.unsent(ours, large) is large
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with gevent.ssl.SSLSocket(sock=ours, _context=context, do_handshake_on_connect=False) as tls:
        assert send.unsent(tls, b"secret") == b"secret"
    theirs.close()
    ours, theirs = gevent.socket.socketpair()
    with ours:
        theirs.close()
        assert send.unsent(ours, b"in vain") == b"in vain"
        with pytest.raises(BrokenPipeError):
            ours.sendall(b"in vain")
    assert send.unsent(ours, b"in vain") == b"in vain"
    assert send.unsent(None, b"in vain") == b"in vain"


# --- Receives ----------------------------------------------------------------------------------


def test_an_answer_is_waited_for_before_it_is_received(pair: Any) -> None:
    ours, theirs = pair
    later = gevent.spawn_later(0.01, theirs.sendall, b"answer")
    receive.wait_for_answer(ours)
    assert ours._sock.recv(100) == b"answer"  # the kernel's, which waits for nothing
    later.get()
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive.wait_for_answer(ours)


def test_nobody_waits_for_what_tls_has_received_already(pair: Any) -> None:
    ours, _ = pair
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with gevent.ssl.SSLSocket(sock=ours, _context=context, do_handshake_on_connect=False) as tls:
        tls.settimeout(0.01)
        receive.wait_for_answer(tls)
    receive.wait_for_answer(None)


# --- Off switches ------------------------------------------------------------------------------


def test_every_switch_can_be_switched_off(web: Serve, folder: Path) -> None:
    ours: list[Any] = ["pooled_serve.tuning.response", "pooled_serve.tuning.response"]
    stock: list[Any] = ["gunicorn.http.wsgi", "gunicorn.util"]
    ours += [True, True, True, True, 5000]
    stock += [False, False, False, False, gc.get_threshold()[0]]
    assert web.get("/switches").json() == ours
    off = {"POOLED_SERVE_WITHOUT": "one-send, results " + ",".join(switches.NAMES)}
    with Serve(APP, cwd=folder, env=off) as server:
        assert server.get("/switches").json() == stock
        assert server.get("/hello").text == "hello"


def test_an_unknown_switch_is_a_usage_error(folder: Path) -> None:
    done = run(APP, "--check", cwd=folder, env={"POOLED_SERVE_WITHOUT": "result"})
    done.assert_one_problem("PS401", 2, says="POOLED_SERVE_WITHOUT: there is no 'result'")


# --- Commands ----------------------------------------------------------------------------------


def test_a_page_sends_its_queries_and_nothing_else(
    project: Any, serve: Any, mariadb: Server
) -> None:
    views = Path(__file__).with_name("costs_query_views.py")
    database = mariadb.create_database()
    mariadb.admin.query(f"CREATE TABLE {database.name}.t (n INT) ENGINE=InnoDB")
    with NetProxy(database.port) as proxy:
        databases = {"default": database.via(proxy.port).django()}
        server = serve(project(views, databases=databases))
        server.get("/one")
        accepted = proxy.traffic().accepted
        for path, commands in {"none": 0, "one": 1, "ten": 10, "update": 4}.items():
            before = proxy.traffic().commands
            with server.keepalive() as client:
                for _ in range(3):
                    assert client.get(f"/{path}").status == 200
            sent = proxy.traffic().commands - before
            assert sent == (Counter({QUERY: 3 * commands}) if commands else Counter()), path
        assert proxy.traffic().accepted == accepted


# --- Calls -------------------------------------------------------------------------------------

SCRIPTS = "costs_scripts.py"


def test_a_request_with_a_query_makes_few_calls_of_ours_and_the_driver(project: Any) -> None:
    # 111, and a little room. Three are for a wrapper of its own, and a look at the settings.
    assert (
        run_function(
            project(), SCRIPTS, "a_request_with_a_query_makes_few_calls_of_ours_and_the_driver"
        )
        <= 113
    )


def test_a_route_is_counted_in_few_calls_and_in_none_without_a_status_page(project: Any) -> None:
    without, more = run_function(
        project(Path(__file__).with_name("costs_query_views.py")),
        SCRIPTS,
        "a_route_is_counted_in_few_calls_and_in_none_without_a_status_page",
    )
    assert without == 0
    # Two for the lease. The others are for the route, once in a request.
    assert more <= 8


def test_rows_and_columns_cost_no_calls(project: Any) -> None:
    """PyMySQL makes 32 for a column's description, 9 for a row, and 3 or 4 for a value."""
    counts = run_function(project(), SCRIPTS, "rows_and_columns_cost_no_calls")
    assert counts[0] <= 50
    # Not one for each of 99 rows more, nor for each of 88 columns; some, if the response comes in
    # two pieces.
    assert max(counts) <= counts[0] + 20


def test_a_date_costs_one_call(project: Any) -> None:
    """Of PyMySQL's five, and no regular expression."""
    assert run_function(project(), SCRIPTS, "a_date_costs_one_call") == 2
