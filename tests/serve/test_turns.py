"""Who is served when more clients wait than a worker can serve at once. In turns, not in seconds:
all requests are there before the worker looks, and it writes down in which order it serves them."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest

from conftest import MakeProject, StartServe
from pooled_serve.serve.turns import Turns
from support.greenlets import join_all
from support.processes import MAX_WAIT_SECONDS, resume, suspend, wait_until
from support.serve import Address, Serve, connect

VIEWS = Path(__file__).with_name("turns_views.py")

OPTIONS = ("-w", "2", "--keep-alive", "60")
"""With a single worker, gunicorn lets it accept all connections in one go."""


class Guest(NamedTuple):
    """A client that sends all its requests at once."""

    name: str
    requests: int
    close: bool = False  # after the last one
    address: Address | None = None  # the server's first one

    def text(self) -> bytes:
        request = f"GET /turn?client={self.name} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        if not self.close:
            return request.encode() * self.requests
        last = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        return (request * (self.requests - 1) + last).encode()


@pytest.fixture
def folder(project: MakeProject) -> Path:
    return project(VIEWS, databases={})


def in_turn(web: Serve, guests: Iterable[Guest]) -> list[str]:
    """Their names in the order in which a single worker has answered them.

    It finds all of them in its backlog, first come first.
    """
    wait_until(lambda: len(web.worker_pids()) == 2)
    worker = web.get("/pid").json()
    with web.only(worker), ExitStack() as stack:
        with web.keepalive() as one, web.keepalive() as more:
            # From then on it knows that the other worker does not take what is left to it.
            assert one.get("/pid").json() == more.get("/pid").json() == worker
        clients: list[tuple[Guest, socket.socket]] = []
        suspend({worker})
        try:
            for guest in guests:
                client = stack.enter_context(connect(guest.address or web.address))
                client.sendall(guest.text())
                clients.append((guest, client))
        finally:
            resume({worker})
        for guest, client in clients:
            answers = b""
            while answers.count(b"HTTP/1.1 200") < guest.requests:
                piece = client.recv(1 << 16)
                assert piece, f"{guest.name} was not served\n{web.log}"
                answers += piece
        order: list[str] = web.get("/order").json()
    return order


def most_before(order: list[str], name: str) -> int:
    """How many answers somebody else had before this one had its first."""
    return max(Counter(order[: order.index(name)]).values(), default=0)


def test_each_of_equal_clients_is_accepted_and_served_in_turn(
    folder: Path, serve: StartServe
) -> None:
    guests = [Guest(f"{number}", 20) for number in range(16)]
    order = in_turn(serve(folder, *OPTIONS), guests)
    # All of them were there before anyone came back. Half are taken to be the other worker's.
    assert max(most_before(order, guest.name) for guest in guests) <= 4
    complete = max(order.index(guest.name) for guest in guests) + 1
    for start in range(complete, complete + 3 * len(guests)):
        assert len({*order[start : start + len(guests)]}) == len(guests)


@pytest.mark.parametrize(
    ("where", "close"),
    [
        ("the same port", False),
        ("the same port", True),
        ("another port", False),
        ("a Unix socket", False),
    ],
)
def test_clients_that_go_on_and_on_let_newcomers_in(
    where: str, close: bool, folder: Path, serve: StartServe, tmp_path: Path
) -> None:
    sockets: dict[str, str] = {"a Unix socket": str(tmp_path / "web.sock")}
    if where == "another port":
        web = serve(folder, *OPTIONS, "-b", "127.0.0.1:0")
        *_, listening = [line for line in web.log.splitlines() if "Listening at" in line]
        address: Address | None = ("127.0.0.1", int(listening.split("(")[0].rpartition(":")[2]))
    elif path := sockets.get(where):
        web, address = serve(folder, *OPTIONS, "-b", f"unix:{path}"), path
    else:
        web, address = serve(folder, *OPTIONS), None
    busy = [Guest(f"busy{number}", 100) for number in range(4)]
    newcomers = [Guest(f"new{number}", 1, close, address) for number in range(12)]
    order = in_turn(web, [*busy, *newcomers])
    assert max(most_before(order, guest.name) for guest in newcomers) <= 10


def test_clients_that_connect_and_say_nothing_hold_nobody_up(
    folder: Path, serve: StartServe
) -> None:
    busy = [Guest(f"busy{number}", 100) for number in range(4)]
    silent = [Guest(f"silent{number}", 0) for number in range(40)]
    order = in_turn(serve(folder, *OPTIONS), [*busy, *silent, Guest("late", 1)])
    assert most_before(order, "late") <= 26  # 45 connections, two of them in each turn, and a few


def test_no_more_are_accepted_than_worker_connections(folder: Path, serve: StartServe) -> None:
    most = 3
    guests = [Guest(f"{number}", 10, close=True) for number in range(12)]
    order = in_turn(serve(folder, *OPTIONS, "--worker-connections", f"{most}"), guests)
    first = {guest.name: order.index(guest.name) for guest in guests}
    last = {guest.name: len(order) - 1 - order[::-1].index(guest.name) for guest in guests}
    for position in range(len(order)):
        there = [name for name in first if first[name] <= position <= last[name]]
        assert len(there) <= most


def test_a_greenlet_that_is_killed_while_it_lets_others_go_first_takes_no_turn_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, done = Turns(), []
    begin = turns._start_timer  # which on a busy machine would fire at once
    monkeypatch.setattr(turns, "_start_timer", lambda loop: None)

    def client(name: str) -> None:
        turns.give_up()
        done.append(name)

    clients = [gevent.spawn(client, name) for name in "abc"]
    gevent.sleep(0)
    assert turns.yielded == 3
    clients[1].kill(block=False)
    monkeypatch.undo()
    begin(gevent.get_hub().loop)
    join_all(clients, raise_error=False)
    assert done == ["a", "c"]
    assert turns.yielded == 0
    client("d")
    assert done == ["a", "c", "d"]


def test_a_backlog_that_others_have_emptied_holds_nobody_up() -> None:
    turns = Turns()
    waiting = [30, 0]
    turns.backlogs.append(lambda: waiting.pop(0) if waiting else 0)
    done = []

    def client(name: str) -> None:
        turns.give_up()
        done.append(name)

    clients = [gevent.spawn(client, "first")]
    gevent.sleep(0)
    turns.accepted()  # of the thirty; others take the rest
    gevent.sleep(0.001)
    clients.append(gevent.spawn(client, "second"))
    join_all(clients, raise_error=False)
    assert done == ["first", "second"]


def test_those_in_the_backlog_come_first_and_a_flood_behind_them_does_not() -> None:
    turns = Turns()
    turns.backlogs.append(lambda: 3)  # always
    arrivals = 0
    timer = gevent.get_hub().loop.timer(0)

    def arrive() -> None:  # in each poll
        nonlocal arrivals
        turns.accepted()
        arrivals += 1
        timer.stop()
        timer.start(arrive)

    client = gevent.spawn(turns.give_up)
    gevent.sleep(0)
    timer.start(arrive)
    try:
        client.join(MAX_WAIT_SECONDS)
    finally:
        timer.close()
    assert client.dead
    assert 3 <= arrivals <= 5
