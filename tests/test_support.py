"""The other tests rely on these tools, so they are tested too."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pymysql
import pytest

from conftest import calls_what_starts
from support import processes
from support.load import Hammer, hammer
from support.netproxy import CommandCounter, NetProxy
from support.ports import free_port
from support.serve import GUNICORN, Serve, ServerExited
from support.servers import Database, Server

QUERY = 3
PING = 14

APP = """
    import os, time

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            time.sleep(0.3)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'{"pid": %d}' % os.getpid()]
"""


def connect(database: Database, **options: object) -> pymysql.Connection:
    return pymysql.connect(**database.connect_args(), ssl_disabled=True, **options)


def run(connection: pymysql.Connection, sql: str) -> tuple[tuple[Any, ...], ...]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return tuple(cursor.fetchall())


# Databases


def check_database(server: Server) -> None:
    database = server.create_database(max_user_connections=2)
    with closing(connect(database)) as one, closing(connect(database)) as two:
        run(one, "CREATE TABLE t (a INT)")
        assert run(two, "SELECT * FROM t") == ()
        assert run(one, "SELECT @@max_user_connections") == ((2,),)
        with pytest.raises(pymysql.MySQLError):
            connect(database)
        with pytest.raises(pymysql.MySQLError):
            run(one, "CREATE DATABASE elsewhere")

        def seen() -> set[int]:
            return {row["Id"] for row in server.admin.processlist(database.user)}

        # The one that was refused may still be ending.
        processes.wait_until(lambda: seen() == {one.thread_id(), two.thread_id()})
        server.admin.kill(one.thread_id())
        with pytest.raises(pymysql.MySQLError):
            run(one, "SELECT 1")
    processes.wait_until(lambda: not server.admin.processlist(database.user))


def test_mariadb_gives_a_database_of_ones_own(mariadb: Server) -> None:
    check_database(mariadb)


def test_mysql_gives_a_database_of_ones_own(mysql: Server) -> None:
    check_database(mysql)
    (row,) = mysql.admin.query("SELECT VERSION() AS version")
    assert int(row["version"].split(".")[0]) >= 8
    assert "MariaDB" not in row["version"]


def test_the_administrator_survives_a_restart(start_mariadb: Callable[..., Server]) -> None:
    server = start_mariadb("--max-connections=33")
    (row,) = server.admin.query("SELECT @@max_connections AS most")
    assert row["most"] == 33
    database = server.create_database()
    server.restart()
    # Without the connection that has found out that the server answers.
    processes.wait_until(lambda: server.admin.status("Threads_connected") == 1)
    connect(database).close()


# The proxy


@pytest.fixture
def proxy(mariadb: Server) -> Iterator[NetProxy]:
    with NetProxy(mariadb.port) as proxy:
        yield proxy


@pytest.fixture
def database(mariadb: Server, proxy: NetProxy) -> Database:
    return mariadb.create_database().via(proxy.port)


def test_proxy_counts_commands(proxy: NetProxy, database: Database) -> None:
    with closing(connect(database, autocommit=None)) as connection:
        before = proxy.traffic()
        run(connection, "SELECT 1")
        run(connection, f"SELECT '{'x' * 300_000}'")
        connection.ping(reconnect=False)
        after = proxy.traffic()
    assert (after.accepted, after.open) == (1, 1)
    assert after.commands - before.commands == {QUERY: 2, PING: 1}
    assert after.turns - before.turns == 3
    processes.wait_until(lambda: proxy.traffic().open == 0)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
def test_commands_are_found_however_the_bytes_arrive(piece: int) -> None:
    login = b"\x28\0\0\1" + bytes(40)
    sent = login + b"\1\0\0\0\x0e" + b"\7\0\0\0\3SELECT" + b"\0\0\0\0" + b"\1\0\0\0\x1f"
    commands: Counter[int] = Counter()
    counter = CommandCounter(commands)
    for start in range(0, len(sent), piece):
        counter.feed(sent[start : start + piece])
    assert commands == {14: 1, 3: 1, 31: 1}


def test_proxy_does_not_take_encrypted_bytes_for_commands() -> None:
    commands: Counter[int] = Counter()
    start_of_tls = b"\x20\0\0\1" + b"\x05\xae\x00\x00" + bytes(28)
    CommandCounter(commands).feed(start_of_tls + b"\1\0\0\0\x0e")
    assert not commands


def test_proxy_freezes_and_thaws(proxy: NetProxy, database: Database) -> None:
    with (
        closing(connect(database)) as connection,
        closing(connect(database)) as hasty,
    ):
        hasty._read_timeout = 0.3  # not before: a busy machine may take longer for the login
        proxy.freeze()
        with pytest.raises(pymysql.OperationalError):
            run(hasty, "SELECT 1")
        with pytest.raises(pymysql.OperationalError):
            connect(database, read_timeout=0.3)
        proxy.thaw()
        assert run(connection, "SELECT 1") == ((1,),)


def test_proxy_cuts(proxy: NetProxy, database: Database) -> None:
    with closing(connect(database)) as connection:
        proxy.cut()
        assert proxy.traffic().open == 0
        with pytest.raises(pymysql.OperationalError):
            run(connection, "SELECT 1")
    connect(database).close()


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_proxy_cuts_in_the_middle_of_an_answer(
    proxy: NetProxy, database: Database, count: int
) -> None:
    with closing(connect(database)) as connection:
        proxy.cut_after(count)
        with pytest.raises(pymysql.OperationalError):
            run(connection, "SELECT REPEAT('x', 100000)")
    with closing(connect(database)) as connection:
        run(connection, "SELECT REPEAT('x', 100000)")


def test_proxy_refuses_and_accepts_again(proxy: NetProxy, database: Database) -> None:
    with closing(connect(database)) as connection:
        proxy.refuse()
        with pytest.raises(pymysql.OperationalError, match="refused"):
            connect(database)
        assert run(connection, "SELECT 1") == ((1,),)
    proxy.accept()
    connect(database).close()


def test_proxy_swallows_new_connections(proxy: NetProxy, database: Database) -> None:
    with closing(connect(database)) as connection:
        proxy.black_hole()
        with pytest.raises(pymysql.OperationalError, match="timed out"):
            connect(database, read_timeout=0.3)
        assert run(connection, "SELECT 1") == ((1,),)
    proxy.accept()
    connect(database).close()


def test_proxy_delays(proxy: NetProxy, database: Database) -> None:
    proxy.delay(connect_seconds=0.2)
    start = time.monotonic()
    with closing(connect(database)) as connection:
        assert time.monotonic() - start >= 0.2
        proxy.delay(command_seconds=0.3)
        start = time.monotonic()
        run(connection, "SELECT 1")
        assert time.monotonic() - start >= 0.3


def test_proxy_switches_servers(
    proxy: NetProxy, mariadb: Server, start_mariadb: Callable[..., Server]
) -> None:
    elsewhere = start_mariadb()
    proxy.switch(elsewhere.port)
    connect(elsewhere.create_database().via(proxy.port)).close()


def test_proxy_stands_many_connections(
    proxy: NetProxy, database: Database, mariadb: Server
) -> None:
    connections: list[pymysql.Connection] = []
    mariadb.admin.aborted_clients()  # once those of other tests have ended
    try:
        # The server's limit is 151 by default; the proxy's is the number of open files.
        connections += [connect(database) for _ in range(140)]
        assert proxy.traffic().open == 140
        assert {run(connection, "SELECT 1") for connection in connections} == {((1,),)}
    finally:
        for connection in connections:
            connection.close()


def test_proxy_in_front_of_no_server_hangs_up(
    proxy: NetProxy, start_mariadb: Callable[..., Server]
) -> None:
    server = start_mariadb()
    database = server.create_database()
    server.kill()
    proxy.switch(database.port)
    with pytest.raises(pymysql.OperationalError):
        connect(database.via(proxy.port))


# The web server


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(dedent(APP))
    return tmp_path


def gunicorn(app: Path, *args: str, **options: Any) -> Serve:
    return Serve("app:application", *args, cwd=app, command=GUNICORN, **options)


def test_serve_answers_and_stops(app: Path) -> None:
    with gunicorn(app, "-w", "2", "--access-logfile", "-") as server:
        assert "GET" not in server.log  # waiting for it is not a request
        answer = server.get("/slow?x=1")
        assert answer.status == 200
        assert answer.seconds >= 0.3
        assert answer.headers["content-type"] == "application/json"
        workers = processes.wait_until(
            lambda: len(server.worker_pids()) == 2 and server.worker_pids()
        )
        assert answer.json()["pid"] in workers
        server.wait_for_log("GET /slow?x=1")
        server.signal(signal.SIGHUP)
        processes.wait_until(lambda: server.worker_pids().isdisjoint(workers))
        assert server.stop() == 0
        assert not server.worker_pids()


def test_serve_on_a_unix_socket_keeps_a_connection(app: Path, tmp_path: Path) -> None:
    with (
        gunicorn(
            app, "-k", "gevent", "--keep-alive", "60", address=str(tmp_path / "socket")
        ) as server,
        server.keepalive() as client,
    ):
        assert client.get("/").json() == client.get("/").json()


def test_serve_reports_why_there_is_no_server(app: Path) -> None:
    (app / "app.py").write_text("import nonsense")
    with pytest.raises(ServerExited, match="No module named 'nonsense'") as caught, gunicorn(app):
        pass
    assert caught.value.returncode == 3


def test_serve_does_not_wait_for_ever(app: Path) -> None:
    (app / "app.py").write_text("import time; time.sleep(60)")
    with pytest.raises(AssertionError, match="no answer"), gunicorn(app, start_timeout=0.5):
        pass


def test_serve_notices_a_server_that_does_not_stop(app: Path) -> None:
    with gunicorn(app, stop_timeout=0.3) as server:
        server.signal(signal.SIGSTOP)
        with pytest.raises(AssertionError, match="still running"):
            server.stop()


def test_serve_leaves_nothing_behind_when_a_test_fails(app: Path) -> None:
    server = gunicorn(app)
    with suppress(ZeroDivisionError), server:
        group = server.master_pid
        assert group in processes.children(os.getpid())
        raise ZeroDivisionError
    assert not processes.members(group)


def test_a_project_is_served(
    project: Callable[..., Path], serve: Callable[..., Serve], mariadb: Server
) -> None:
    views = """
        from django.db import connection
        from django.http import HttpResponse

        def user(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT CURRENT_USER()")
                return HttpResponse(cursor.fetchone()[0])
    """
    wsgi = """
        import os

        import pymysql
        from django.core.wsgi import get_wsgi_application

        pymysql.install_as_MySQLdb()
        os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
        application = get_wsgi_application()
    """
    database = mariadb.create_database()
    folder = project(views, databases={"default": database.django()}, wsgi=wsgi)
    server = serve(folder, command=GUNICORN)
    assert server.get("/user").text == f"{database.user}@127.0.0.1"
    assert server.get("/nowhere").status == 404


def test_only_one_worker_answers_while_the_others_are_suspended(app: Path) -> None:
    with gunicorn(app, "-w", "3") as server:
        workers = processes.wait_until(
            lambda: len(server.worker_pids()) == 3 and server.worker_pids()
        )
        for worker in workers:
            with server.only(worker):
                assert {server.get("/").json()["pid"] for _ in range(5)} == {worker}
        processes.wait_until(lambda: not processes.suspended() & workers)


def test_a_free_port_is_nobody_elses() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))
    for _ in range(2):
        with (
            socket.create_server(("127.0.0.1", ports[0])) as server,
            socket.create_connection(server.getsockname()),
        ):
            server.accept()[0].close()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", ports[0]))  # as the kernel does when it looks for a port


# The load


def test_hammer_reports_each_request(app: Path) -> None:
    with gunicorn(app, "-k", "gevent") as server:
        outcomes = hammer(server.port, "/", clients=20, requests=5, keepalive=True)
        assert [outcome.result for outcome in outcomes] == [200] * 100
        outcomes = hammer(server.port, "/slow", clients=3, requests=2)
        assert all(outcome.seconds >= 0.3 for outcome in outcomes)
        assert {outcome.result for outcome in outcomes} == {200}


def test_hammer_goes_on_while_the_server_ends(app: Path) -> None:
    with (
        gunicorn(app, "-k", "gevent", "--access-logfile", "-") as server,
        Hammer(server.port, "/", clients=2, seconds=600) as load,
    ):
        server.wait_for_log('"GET / ', times=10)
        server.stop()
        # The load is still there: it comes to whoever listens next, and gets no answer.
        with socket.create_server(server.address) as next_one:
            next_one.settimeout(processes.MAX_WAIT_SECONDS)
            next_one.accept()[0].close()
        load.stop()
        results = {outcome.result for outcome in load.finish()}
    assert 200 in results
    assert results & {"ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected"}


# --- Django's own tests ------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "stalls"), [("call_soon", 1), ("call_soon_threadsafe", 0)])
def test_an_event_loop_that_nobody_wakes_is_found_and_goes_on(call: str, stalls: int) -> None:
    script = f"""
        from gevent import monkey, spawn_later
        monkey.patch_all()
        import asyncio, stalls
        stalls.watch()

        async def main():
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            spawn_later(0.1, loop.{call}, future.set_result, None)
            await future

        asyncio.run(main())
        print(len(stalls.found))
    """
    folder = Path(__file__).with_name("django_suite")
    done = subprocess.run(
        [sys.executable, "-c", dedent(script)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{stalls}\n", "")


# Waiting


def never(*_: object) -> bool:
    return False


def test_a_wait_that_fails_says_for_what_and_where() -> None:
    numbers = {"waiting": "ü"}
    with pytest.raises(AssertionError) as failed:
        processes.wait_until(lambda: numbers["waiting"] == "ü?", timeout=0)
    assert re.fullmatch(
        r"not so within 0 s: `numbers\[\"waiting\"\] == \"ü\?\"` at "
        r"tests/test_support\.py:\d+, the last answer is False",
        str(failed.value),
    )
    with pytest.raises(AssertionError, match=r"s: `not any\( number for number in \[.+\] \)` at "):
        processes.wait_until(
            lambda: (
                not any(
                    number
                    for number in [
                        "a list that is too long for one line",
                        "and another, so it has two",
                    ]
                )
            ),
            timeout=0,
        )
    for named in (never, partial(never, 1)):
        with pytest.raises(AssertionError, match=r"s: never\(\) at tests/test_support\.py:\d+,"):
            processes.wait_until(named, 0)
    with pytest.raises(AssertionError, match=r"(?s)never\(\) at .*, the last answer .*\nits log"):
        processes.wait_until(lambda: 0 or None, 0, asked=never, showing=lambda: "its log")


def test_a_wait_for_the_log_that_fails_shows_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "wait_until", partial(processes.wait_until, timeout=0))
    server = Serve("app:application", cwd=tmp_path)
    with server._log:
        os.write(server._log.fileno(), b"".join(b"line %d\n" % number for number in range(50)))
        assert server.wait_for_log("line 4", times=11)
        assert server.wait_for_log(re.compile(r"line \d{2}$", re.M), times=40)
        with pytest.raises(AssertionError, match=r"the log does not say 'line 51'\nline 0\n"):
            server.wait_for_log("line 51")
        with pytest.raises(AssertionError, match=r"does not say 'line 4\\\\d' 11 times\n"):
            server.wait_for_log(re.compile(r"line 4\d"), times=11)
        with pytest.raises(AssertionError) as failed:
            server.wait_until_log(lambda log: log.count("line") == 51)
        first, head, *lines = str(failed.value).splitlines()
        assert first.startswith(
            'not so within 0 s: `log.count("line") == 51` at tests/test_support.py:'
        )
        assert (head, lines[0], lines[-1]) == ("the log ends with:", "line 10", "line 49")


# --quick


def serves_nothing(app: Path) -> None:
    assert app


def serves(app: Path) -> None:
    def later() -> Serve:
        return Serve("app:application", cwd=app)

    later()


def serves_by_another(app: Path) -> None:
    serves(app)


def test_a_quick_run_sees_who_starts_processes() -> None:
    assert calls_what_starts(serves)
    assert calls_what_starts(serves_by_another)
    assert calls_what_starts(check_output)
    assert not calls_what_starts(serves_nothing)


def check_output() -> None:
    subprocess.check_output("true")
