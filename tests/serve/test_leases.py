"""How long requests, and what serves none, keep a connection: the command in request mode."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.processes import wait_until
from support.site import Site

CAP = 2

VIEWS = Path(__file__).with_name("leases_views.py")


@pytest.fixture
def requests(site: Callable[..., Site], mariadb: Any) -> Site:
    """A site with a cap of 2."""
    it = site("--pool-timeout", "10", cap=CAP, views=VIEWS)
    it.run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    it.run("CREATE TABLE numbered (id INT AUTO_INCREMENT PRIMARY KEY, n INT) ENGINE=InnoDB")
    return it


@pytest.mark.parametrize("path", ["large", "pieces"])
def test_clients_that_do_not_read_hold_no_connection(requests: Site, path: str) -> None:
    with ExitStack() as stack:
        for _ in range(3 * CAP):
            client = socket.create_connection(("127.0.0.1", requests.server.port))
            stack.enter_context(client)
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert client.recv(1)
        wait_until(lambda: requests.pool()["in_use"] == 0)
        assert requests.run("SELECT 1").status == 200
        requests.assert_whole()
    requests.assert_whole()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("session", "7 1"),
        ("transaction", "1 1"),
        ("unbuffered", "1 3 1"),
        ("a block of its own", "1 0"),
    ],
)
def test_what_a_stream_needs_stays_to_its_end(requests: Site, kind: str, said: str) -> None:
    for _ in range(CAP + 1):
        wait_until(lambda: requests.pool()["in_use"] == 0)  # the last one has ended by then
        assert requests.server.get(f"/streams?kind={kind.replace(' ', '+')}").text == said
    assert requests.run("SELECT COUNT(*) FROM t").json() == [["0"]]
    requests.assert_whole()


def test_a_question_after_the_view_is_refused(requests: Site) -> None:
    requests.run("INSERT INTO t VALUES (0), (0)")
    answer = requests.server.get("/asks")
    assert answer.headers["X-Rows"] == "2"
    assert "the view is over" in answer.text
    assert "transaction.atomic()" in answer.text


def test_receivers_of_request_finished_can_query(requests: Site) -> None:
    requests.server.get("/signal")
    wait_until(lambda: requests.server.get("/signalled").json()[0][:2] == ["view", "finished"])
    # The receiver of the request before may still be at it.
    wait_until(lambda: requests.server.get("/signalled").json()[1] == 0)
    requests.assert_whole()


def test_threads_that_never_end_hold_no_connection_between_their_tasks(requests: Site) -> None:
    # All eight are at work at the same time.
    assert requests.server.get("/tasks").json() == 8
    requests.pool_at_rest()
    requests.assert_whole()
    assert requests.server.get("/tasks").json() == 8
    requests.assert_whole()


def test_work_in_the_background_keeps_a_connection_while_it_needs_it(requests: Site) -> None:
    said = requests.server.get("/jobs").json()
    assert said["lastrowid"] == 1
    assert said["in a block"] == 2
    assert "LAST_INSERT_ID() asks about the statement before it" in said["asked"]
    assert (said["free"], said["pinned"], said["closed"]) == (0, [1, 5], 0)
    requests.assert_whole()


def test_a_hook_that_queries_takes_no_slot(project: Any, serve: Any, mariadb: Any) -> None:
    views = """
        from django.db import connection
        from django.http import HttpResponse
        def view(request):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                return HttpResponse(cursor.fetchone()[0])
    """
    folder = project(views)
    (folder / "gunicorn.conf.py").write_text(
        "def post_worker_init(worker):\n"
        "    from django.db import connection\n"
        "    with connection.cursor() as cursor:\n"
        "        cursor.execute('SELECT 1')\n"
    )
    web = serve(folder, "--pool-size", "1", "--max-outstanding", "1", "--pool-timeout", "5")
    assert web.get("/view").status == 200
