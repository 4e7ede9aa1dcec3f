"""--client-check: clients that hang up leave no work behind."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import GreenletExit
from gunicorn.workers.ggevent import GeventWorker

from pooled_serve.backend import client_check
from pooled_serve.serve.worker import PooledWorker
from support.certificates import Authority
from support.load import hammer
from support.log_lines import CLIENT_GONE, GOT_503
from support.ports import free_port
from support.processes import wait_until
from support.serve import Serve, connect
from support.servers import Database, Server
from support.site import SLACK, Site
from support.site import VIEWS as SITE_VIEWS

StartSite = Callable[..., Site]

VIEWS = Path(__file__).with_name("client_check_views.py")
CHECK = 1.0
WITHIN = 1.25 * CHECK  # see LOOKS in client_check.py


def send(shop: Site, path: str, method: str = "GET") -> socket.socket:
    """A request whose answer is not read."""
    client = connect(shop.server.address, 60)
    client.sendall(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
    )
    return client


def fate(shop: Site) -> Any:
    return shop.server.get("/fate").json()


@pytest.fixture
def start(site: StartSite) -> StartSite:
    def start(*args: str, check: float | None = CHECK, **more: Any) -> Site:
        option = [] if check is None else ["--client-check", str(check)]
        shop = site(*option, *args, views=VIEWS, **more)
        shop.run("CREATE TABLE visits (method VARCHAR(10))")
        return shop

    return start


# --- In a statement ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["request", "transaction"])
@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_a_hundred_clients_leave_no_statement_behind(
    kind: str, mode: str, start: StartSite, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    # A busy machine takes long for a hundred logins.
    shop = start("--pool-mode", mode, "--pool-timeout", "30", server=server, cap=100)
    shop.fill()
    clients = [send(shop, "/run?sql=SELECT+SLEEP(60)") for _ in range(100)]
    wait_until(lambda: len(shop.sleepers()) == 100)
    for client in clients:
        client.close()
    wait_until(lambda: not shop.sleepers(), timeout=2 * CHECK + SLACK)
    assert shop.pool()["client_gone_total"] == 100
    shop.assert_whole()


def test_what_a_request_that_is_ended_notices(start: StartSite) -> None:
    """Its transaction is rolled back, and handlers that catch errors do not run."""
    shop = start()
    for method in ("GET", "HEAD", "OPTIONS"):
        send(shop, "/long?seconds=60", method).close()
    wait_until(lambda: fate(shop) == ["ClientGone"] * 3, timeout=WITHIN + SLACK)
    assert shop.run("SELECT * FROM visits").json() == []
    assert f"[INFO] pool 'default': {CLIENT_GONE}: " in shop.server.log
    assert "Traceback" not in shop.server.log
    shop.assert_whole()


def test_requests_that_may_change_something_run_on(start: StartSite) -> None:
    shop = start(check=0.4)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        send(shop, "/long?seconds=1.5", method).close()
    with suppress(AssertionError):
        wait_until(lambda: len(fate(shop)) == 4, timeout=1.5 + SLACK)
    assert fate(shop) == ["answered"] * 4, shop.server.log
    assert len(shop.run("SELECT * FROM visits").json()) == 4
    assert shop.pool()["client_gone_total"] == 0
    shop.assert_whole()


def test_clients_that_stay_are_answered(start: StartSite) -> None:
    """However long it takes, and whatever else they have sent."""
    shop = start(check=0.1)
    with send(shop, "/long?seconds=2") as client:
        client.sendall(b"GET /fate HTTP/1.1\r\nHost: localhost\r\n\r\n")  # pipelined
        answers = b""
        while b"[" not in answers:
            answers += client.recv(4096)
    assert answers.count(b"HTTP/1.1 200 OK") == 2, answers
    outcomes = hammer(shop.server.port, "/run?sql=SELECT+SLEEP(0.15)", clients=8, requests=10)
    assert {outcome.result for outcome in outcomes} == {200}
    assert shop.pool()["client_gone_total"] == 0
    shop.assert_whole()


def test_only_a_long_statement_is_ended(start: StartSite) -> None:
    """Not many short ones, nor what else a view may wait for."""
    # A short one is long on a machine that halts the server for the option's time.
    shop = start(check=3.0)
    for path in ("/brief?seconds=5", "/outside?seconds=5"):
        send(shop, path).close()
    wait_until(lambda: fate(shop) == ["answered"] * 2, timeout=5 + SLACK)
    assert shop.pool()["client_gone_total"] == 0
    shop.assert_whole()


def test_an_answer_that_was_cut_is_not_followed_by_another(start: StartSite) -> None:
    """A client that has sent all its requests, and has closed its half of the connection, looks
    like one that has gone. What was streamed to it must not run into the next answer."""
    shop = start()
    with send(shop, "/streamed?seconds=60") as client:
        client.sendall(b"GET /fate HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        # The second request was not read, and so the kernel may end the connection with a reset.
        with suppress(ConnectionResetError):
            while piece := client.recv(4096):
                answer += piece
    assert answer.endswith(b"6\r\nbegin\n\r\n"), answer
    assert fate(shop) == ["ClientGone"]
    shop.assert_whole()


def test_a_view_that_catches_everything_is_not_harmed_and_counts_once(start: StartSite) -> None:
    shop = start()
    send(shop, "/careless?seconds=60&times=2").close()
    wait_until(lambda: fate(shop) == ["ClientGone"] * 2, timeout=2 * WITHIN + SLACK)
    assert shop.pool()["client_gone_total"] == 1
    assert "Traceback" not in shop.server.log
    shop.assert_whole()


def test_without_the_option_requests_run_on(start: StartSite) -> None:
    shop = start(check=None)
    send(shop, "/long?seconds=3").close()
    wait_until(lambda: fate(shop) == ["answered"], timeout=3 + SLACK)


def test_over_tls(
    project: Callable[..., Path],
    serve: Callable[..., Serve],
    database: Database,
    mariadb: Server,
    tmp_path: Path,
) -> None:
    certificate = Authority(tmp_path / "certificates").issue("site")
    status, main = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    folder = project((SITE_VIEWS, VIEWS), databases={"default": database.django()})
    server = serve(
        folder,
        *("--client-check", str(CHECK), "-b", "{}:{}".format(*main)),
        *("--certfile", str(certificate.cert), "--keyfile", str(certificate.key)),
        *("--status", "{}:{}".format(*status)),
        address=status,
        bind=False,
    )
    shop = Site(server, mariadb.admin, database, 12)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(main) as plain,
        context.wrap_socket(plain, suppress_ragged_eofs=False) as client,
    ):
        client.sendall(b"GET /careless?seconds=60&times=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(shop.sleepers()) == 1)
    wait_until(lambda: not shop.sleepers(), timeout=WITHIN + SLACK)
    stats = server.get("/stats.json").json()["pools"]["default"]
    assert stats["client_gone_total"] == 1


# --- In the queue ------------------------------------------------------------------------------


def test_who_has_gone_leaves_the_queue(start: StartSite) -> None:
    """Whatever the method: a request must expect to get no connection."""
    shop = start("--pool-timeout", "30", cap=1)
    holder = send(shop, "/run?sql=SELECT+SLEEP(60)")
    wait_until(lambda: len(shop.sleepers()) == 1)
    clients = [
        send(shop, "/run?sql=SELECT+2", method) for method in ("GET", "POST") for _ in range(10)
    ]
    wait_until(lambda: shop.pool()["waiting"] == 20)
    stays, *leave = clients
    for client in leave:
        client.close()
    wait_until(lambda: shop.pool()["waiting"] == 1, timeout=WITHIN + SLACK)
    stats = shop.pool()
    assert (stats["client_gone_total"], stats["timeouts_total"]) == (19, 0), "nobody was refused"
    holder.close()
    assert stays.recv(4096).startswith(b"HTTP/1.1 200")
    stays.close()
    assert GOT_503 not in shop.server.log, "nobody has seen one"
    shop.assert_whole()


# --- HTTP/2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ends"),
    [(client_check.ClientGone(), True), (StopIteration(), False), (GreenletExit(), False)],
    ids=["client gone", "StopIteration", "GreenletExit"],
)
def test_a_stream_of_http_2_keeps_the_errors_that_gunicorn_answers(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, ends: bool
) -> None:
    """gunicorn sends a 500, or resets the stream, for whatever reaches it."""

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(GeventWorker, "handle_http2_request", fail)
    worker: Any = object.__new__(PooledWorker)
    worker._in_flight = {}
    worker._patch = SimpleNamespace(
        begin_request=lambda req: None,
        end_request=lambda scope: None,
        ClientGone=client_check.ClientGone,
    )
    if ends:
        assert worker.handle_http2_request(None, None, None) is None
    else:
        with pytest.raises(type(error)):
            worker.handle_http2_request(None, None, None)
