"""examples/deploy/nginx.conf, with an nginx that runs it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gunicorn.config import Keepalive

from conftest import StartServe
from pooled_serve.serve.config import Config
from support.deploy import POOL_TIMEOUT, installed, seconds, text, unit
from support.ports import free_port
from support.processes import wait_until
from support.serve import Client, Serve
from support.servers import ROOT, tied_to_us


def nginx_seconds(name: str) -> list[float]:
    return [seconds(value) for value in re.findall(rf"^\s*{name} (\w+);", text("nginx.conf"), re.M)]


def test_nginx_waits_for_longer_than_pooled_serve() -> None:
    assert min(nginx_seconds("proxy_read_timeout")) > POOL_TIMEOUT
    (idle,) = nginx_seconds("keepalive_timeout")
    started = shlex.split(unit("Service")["ExecStart"][0])
    keep = int(started[started.index("--keep-alive") + 1])
    assert idle < keep
    assert idle > Keepalive.default  # or the option would not be needed
    # What the other places recommend is the same.
    written = f"`--keep-alive {keep}`, and `keepalive_timeout {idle:.0f}s` in nginx"
    assert written in (ROOT / "README.md").read_text()
    config = Config()
    config.set("keepalive", 75)
    notes = [note.message for note in config.notes([])]
    assert any(f"({keep} s, keepalive_timeout {idle:.0f}s in nginx)" in note for note in notes)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """nginx.conf at work, with a socket of ours behind it. Returns its port."""
    program = installed("nginx", "nginx")
    with ExitStack() as stack:

        def start(sock: Path) -> int:
            port = free_port()
            (tmp_path / "static").mkdir()
            (tmp_path / "static" / "a.txt").write_text("static")
            site = text("nginx.conf")
            for theirs, ours in {
                "unix:/run/pooled-serve.sock": f"unix:{sock}",
                "listen 80;": f"listen 127.0.0.1:{port};",
                "/srv/myproject/static/": f"{tmp_path}/static/",
            }.items():
                assert theirs in site
                site = site.replace(theirs, ours)
            temporary = "".join(
                f"{name}_temp_path {tmp_path}/{name};\n"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            (tmp_path / "nginx.conf").write_text(
                f"daemon off; worker_processes 1; pid {tmp_path}/nginx.pid;\n"
                f"{'user root;' if os.geteuid() == 0 else ''}\n"
                f"error_log {tmp_path}/error.log info; events {{}}\n"
                f"http {{ access_log off;\n{temporary}{site}}}\n"
            )
            options = ["-p", str(tmp_path), "-c", "nginx.conf", "-e", str(tmp_path / "error.log")]
            process = stack.enter_context(subprocess.Popen(tied_to_us([program, *options])))
            stack.callback(process.terminate)

            def answers() -> bool:
                assert process.poll() is None, (tmp_path / "error.log").read_text()
                try:
                    with Client(("127.0.0.1", port)) as client:
                        return client.get("/static/a.txt").text == "static"
                except OSError:
                    return False

            wait_until(answers)
            return port

        yield start


Behind = Callable[..., tuple[Serve, int]]


@pytest.fixture
def behind_nginx(
    myproject: Path,
    env: dict[str, str],
    serve: StartServe,
    nginx: Callable[[Path], int],
    tmp_path: Path,
) -> Behind:
    def start(*args: str) -> tuple[Serve, int]:
        sock = tmp_path / "http.sock"
        server = serve(myproject, *args, env=env, address=str(sock))
        return server, nginx(sock)

    return start


def test_nginx_says_who_asks_and_keeps_connections_open(behind_nginx: Behind) -> None:
    _, port = behind_nginx("--keep-alive", "6")
    told = []
    for _ in range(5):
        with Client(("127.0.0.1", port)) as client:
            lie = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
            told.append(client.get("/about", {**lie, "Host": "www.example.com"}).json())
    assert len({answer.pop("client") for answer in told}) == 1
    assert told[0] == {
        "HTTP_HOST": "www.example.com",
        "HTTP_X_FORWARDED_FOR": "127.0.0.1",
        "HTTP_X_FORWARDED_PROTO": "http",
        "wsgi.url_scheme": "http",
    }


def test_nginx_passes_the_503_of_a_full_pool_on_and_asks_once(
    behind_nginx: Behind, myproject: Path
) -> None:
    options = ("--pool-size", "1", "--max-outstanding", "1", "--pool-timeout", "0.3")
    server, port = behind_nginx(*options, "--access-logfile", "-")
    # The limit is for waiting, not for a connect on a busy machine.
    wait_until(lambda: server.get("/query").status == 200)
    held, release = myproject / "held", myproject / "release"
    holder = threading.Thread(target=server.get, args=["/hold_until_released"])
    holder.start()
    try:
        wait_until(held.exists)
        with Client(("127.0.0.1", port)) as client:
            answer = client.get("/query?through=nginx")
            assert client.get("/about").status == 200
    finally:
        release.touch()
        holder.join()
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert server.wait_for_log("GET /about ").count("GET /query?through=nginx ") == 1


def test_nginx_repeats_no_post(behind_nginx: Behind, myproject: Path) -> None:
    _, port = behind_nginx("--keep-alive", "6")
    with Client(("127.0.0.1", port)) as client:
        for method in ("POST", "GET"):
            assert client.get("/query").status == 200  # on a connection that is kept for the next
            assert client.request(method, "/die").status == 502
    assert (myproject / "deaths").read_text().split() == ["POST", "GET", "GET"]


def test_nginx_does_not_notice_a_reload(behind_nginx: Behind) -> None:
    server, port = behind_nginx("--keep-alive", "6")
    before, statuses, over = server.worker_pids(), [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            with Client(("127.0.0.1", port)) as client:
                statuses.append(client.get("/query").status)

    visitors = [threading.Thread(target=ask) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    try:
        wait_until(lambda: len(statuses) > 20)
        server.signal(signal.SIGHUP)
        wait_until(lambda: not server.worker_pids() & before)
        so_far = len(statuses)
        wait_until(lambda: len(statuses) > so_far + 20)
    finally:
        over.set()
        for visitor in visitors:
            visitor.join()
    assert set(statuses) == {200}
