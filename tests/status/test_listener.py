"""The listener against real workers: where it listens, whom it serves, and what it refuses."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pooled_serve.status.clients import CLIENT_TIMEOUT_SECONDS
from support.django_project import rewrite
from support.metrics import samples_in
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Serve, ServerExited
from support.servers import Server
from support.site import VIEWS
from support.status import StartSite, StartStatus, Status, patience
from support.torture import torture

pytestmark = pytest.mark.usefixtures("no_thread_left")


# --- Requests ----------------------------------------------------------------------------------


def test_a_unix_socket_serves_it_too(site: StartSite, tmp_path: Path) -> None:
    path = str(tmp_path / "status.sock")
    it = Status(site("--status", f"unix:{path}"), path)
    assert it.get("/livez").status == 200
    assert it.site.run("SELECT 1").status == 200
    assert it.pool()["acquired_total"] == 1


def test_it_is_plain_http_even_under_tls(
    project: Callable[..., Path], serve: Callable[..., Serve], tmp_path: Path
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem"
    subprocess.run(
        [*command.split(), "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    address, main = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    args = ["--certfile", str(tmp_path / "cert.pem"), "--keyfile", str(tmp_path / "key.pem")]
    args += ["--status", "{}:{}".format(*address), "-b", "{}:{}".format(*main)]
    server = serve(project(VIEWS), *args, address=address, bind=False)
    assert server.get("/livez").text == "ok\n"
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    context.check_hostname = False
    with (
        socket.create_connection(main) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(b"GET /run?sql=SELECT+1 HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in secure.recv(100)


def test_requests_to_it_are_nobodys_business(status: StartStatus, tmp_path: Path) -> None:
    """No access log, no hooks, no max_requests: those are about the application."""
    (tmp_path / "conf.py").write_text(
        "def pre_request(worker, req): worker.log.info('HOOK %s', req.path)\n"
    )
    it = status("--max-requests", "20", "--access-logfile", "-", "-c", str(tmp_path / "conf.py"))
    (pid,) = it.site.server.worker_pids()
    for _ in range(30):
        assert it.get("/livez").status == 200
    assert it.site.run("SELECT 1").status == 200
    assert {pid} == it.site.server.worker_pids()
    log = it.site.server.wait_for_log("GET /run")
    assert "HOOK /run" in log
    assert "livez" not in log
    assert "Autorestarting" not in log


def test_only_reading_is_allowed(status: StartStatus) -> None:
    it = status()
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = it.get("/stats.json", method)
        assert answer.status == 405, method
        assert answer.headers["Allow"] == "GET, HEAD"


def test_what_it_answers_and_what_not(status: StartStatus) -> None:
    it = status("--limit-request-line", "500")
    head = it.get("/stats.json", "HEAD")
    assert head.status == 200
    assert head.body == b""
    assert int(head.headers["Content-Length"]) > 0
    page = it.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy
    for path in ("/stats.json", "/history.json", "/", "/livez", "/readyz", "/nothing"):
        headers = it.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert it.get("/nothing").status == 404
    assert it.get("/../../etc/passwd").status == 404
    assert it.get("/stats.json?x=1").status == 200
    assert it.get("/" + "x" * 600).status == 400

    def raw(text: bytes) -> bytes:
        with socket.create_connection(it.address, timeout=30) as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            return client.recv(1000)

    assert raw(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(b"\x16\x03\x01\x02\x00\x01").startswith((b"HTTP/1.1 400 ", b""))
    assert raw(b"") == b""
    assert it.get("/livez").status == 200
    assert "Traceback" not in it.site.server.log


def test_the_main_port_never_serves_it(status: StartStatus) -> None:
    it = status()
    for path in ("/stats.json", "/history.json", "/livez", "/readyz", "/metrics"):
        forged = {"Host": "{}:{}".format(*it.address), "X-Forwarded-Host": "127.0.0.1"}
        answer = it.site.server.get(path, headers=forged)
        assert answer.status in (400, 404)
        assert "db_client" not in answer.text


def test_slow_clients_do_not_take_it_away(status: StartStatus, tmp_path: Path) -> None:
    it = status(*patience(tmp_path, 600))
    with ExitStack() as stack:
        idlers = [stack.enter_context(socket.create_connection(it.address)) for _ in range(60)]
        assert it.get("/livez").status == 200
        for idler in idlers:
            idler.setblocking(False)
            with pytest.raises(BlockingIOError):  # it is still there
                idler.recv(1)


def test_slow_clients_are_sent_away_in_the_end(status: StartStatus, tmp_path: Path) -> None:
    it = status(*patience(tmp_path, 0.5))
    with (
        socket.create_connection(it.address, timeout=30) as idler,
        socket.create_connection(it.address, timeout=30) as dawdler,
    ):
        dawdler.sendall(b"GET /livez HTTP/1.1\r\n")
        began = time.monotonic()
        assert idler.recv(1) == dawdler.recv(1) == b""
        assert time.monotonic() - began < CLIENT_TIMEOUT_SECONDS, "the option above counts"


def test_it_tells_no_secrets(status: StartStatus, mariadb: Server) -> None:
    database = replace(mariadb.create_database(), user="the_user")
    account = f"the_user@'%' IDENTIFIED BY '{database.password}'"
    mariadb.admin.query(f"GRANT ALL ON {database.name}.* TO {account}")
    it = status("--leak-threshold", "0.2", database=database)
    path = "/run?sql=SELECT+SLEEP(0.6)+/*hush*/"
    assert it.site.server.get(path).status == 200
    everything = "".join(
        it.get(path).text + str(it.get(path).headers)
        for path in ("/", "/stats.json", "/history.json", "/metrics", "/livez", "/readyz", "/x")
    )
    assert it.site.database.user not in everything
    assert it.site.database.password not in everything + it.site.server.log
    assert "hush" not in everything + it.site.server.log


def test_hostile_aliases_are_only_text(status: StartStatus, mariadb: Server) -> None:
    alias = '<img src=x onerror="alert(1)">\n"} 1'
    views = f"""
        def other(request):
            connections[{alias!r}].cursor().execute("SELECT 1")
            return HttpResponse()
    """
    more = {alias: mariadb.create_database().django()}
    it = status(views=views, more=more)
    assert it.site.server.get("/other").status == 200
    assert it.pool(alias)["acquired_total"] == 1
    samples = samples_in(it.get("/metrics"))
    assert alias in {dict(labels).get("db_client_connection_pool_name") for _, labels in samples}


# --- Starting ----------------------------------------------------------------------------------


def test_an_address_that_others_can_reach_is_worth_a_warning(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    port = free_port()
    server = serve(project(VIEWS), "--status", f"0.0.0.0:{port}")
    says = f"[WARNING] PS407 Anyone who can reach 0.0.0.0:{port} can read the status page"
    assert re.search(rf"{re.escape(says)}.*\n  → give --status the loopback address", server.log)
    with closing(Client(("127.0.0.1", port))) as client:
        assert client.get("/livez").status == 200


@pytest.mark.parametrize("kind", ["TCP", "IPv6", "Unix"])
def test_the_log_tells_it_from_the_site(
    kind: str, project: Callable[..., Path], serve: Callable[..., Serve], tmp_path: Path
) -> None:
    """Two addresses that look alike look like two copies of the site."""
    port = free_port()
    where = {
        "TCP": (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"),
        "IPv6": (f"[::1]:{port}", f"http://[::1]:{port}"),
        "Unix": (f"unix:{tmp_path}/status", f"unix:{tmp_path}/status"),
    }
    address, shown = where[kind]
    server = serve(project(VIEWS, databases={}), "--status", address)
    site = f"http://127.0.0.1:{server.port}"
    assert f"Listening at: {site}, status page at {shown} ({server.master_pid})" in server.log


def test_the_applications_own_address_is_a_usage_error(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    address = ("127.0.0.1", free_port())
    with pytest.raises(ServerExited) as ended:
        serve(project(VIEWS), "--status", "{}:{}".format(*address), address=address)
    assert ended.value.returncode == 2
    assert "PS401 --status: 127.0.0.1:" in ended.value.log


@pytest.mark.parametrize("inherited", [1, 2])
def test_inherited_sockets_must_have_one_for_it(
    project: Callable[..., Path], serve: Callable[..., Serve], inherited: int
) -> None:
    """As from systemd, which passes sockets from descriptor 3 on."""
    addresses = [("127.0.0.1", free_port()) for _ in range(2)]
    program = (
        "import os, socket, sys\n"
        f"for fd, address in enumerate({addresses[:inherited]!r}, 3):\n"
        "    s = socket.create_server(address)\n"
        "    s.set_inheritable(True); assert s.detach() == fd\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{inherited}')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, sys.executable, "-m", "pooled_serve"]
    status = "{}:{}".format(*addresses[1])
    options: dict[str, Any] = {"command": command, "address": addresses[0], "bind": False}
    if inherited == 2:
        server = serve(project(VIEWS), "--status", status, **options)
        with closing(Client(addresses[1])) as client:
            assert client.get("/livez").status == 200
        assert server.get("/run?sql=SELECT+1").status == 200
        return
    with pytest.raises(ServerExited) as ended:
        serve(project(VIEWS), "--status", status, **options)
    assert ended.value.returncode == 2
    assert f"PS406 the sockets were inherited, and none listens on --status {status}" in (
        ended.value.log
    )


@torture
def test_preload_and_reuse_port_work_with_it(status: StartStatus) -> None:
    for option in ("--preload", "--reuse-port"):
        it = status("-w", "2", option)
        for _ in range(10):
            assert it.site.run("SELECT 1").status == 200
        stats = it.wait_for(lambda stats: len(stats["workers"]) == 2)
        assert stats["pools"]["default"]["acquired_total"] == 10


@pytest.mark.parametrize("setting", ["pool_status", "bind"])
def test_hang_up_does_not_move_it(
    project: Callable[..., Path], serve: Callable[..., Serve], setting: str
) -> None:
    """Gunicorn cannot bind anew what its old workers still listen on, and would end itself."""
    folder = project(VIEWS)
    conf = folder / "gunicorn.conf.py"
    addresses = {name: ("127.0.0.1", free_port()) for name in ("bind", "pool_status")}

    def source() -> str:
        return "".join(f"{name} = '{host}:{port}'\n" for name, (host, port) in addresses.items())

    conf.write_text(source())
    before = dict(addresses)
    server = serve(folder, address=addresses["bind"], bind=False)
    addresses[setting] = ("127.0.0.1", free_port())
    rewrite(conf, source())
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    flag = {"pool_status": "--status", "bind": "--bind"}[setting]
    server.wait_for_log(f"{flag} stays as it was: with a status page")
    wait_until(lambda: (new := server.worker_pids()) and not new & old)
    assert server.get("/run?sql=SELECT+1").status == 200
    with closing(Client(before["pool_status"])) as client:
        assert client.get("/livez").status == 200


def test_hang_up_does_not_turn_it_on(
    project: Callable[..., Path], serve: Callable[..., Serve]
) -> None:
    folder = project(VIEWS)
    conf = folder / "gunicorn.conf.py"
    conf.write_text("")
    server = serve(folder)
    rewrite(conf, f"pool_status = '127.0.0.1:{free_port()}'")
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_for_log("--status stays as it was")
    wait_until(lambda: (new := server.worker_pids()) and not new & old)
    assert server.get("/run?sql=SELECT+1").status == 200
