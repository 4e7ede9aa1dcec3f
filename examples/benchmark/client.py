"""The load of one measurement, from a process of its own; prints one line of JSON.

    python client.py PORT PATH --clients 32 --seconds 3 --server-pid PID
    python client.py PORT PATH --clients 32 --in-turns --server-pid PID

In turns, each line of standard input says for how many seconds to go on and what to look at, for
example `0.1 rate`, `2 latency` or `2 rate latency`, and is answered by one line of JSON, which says
how many requests have been served so far. In between the processes of the server, a group of their
own, stand still, and so do the clocks here: that lets two servers share a machine whose speed
changes from moment to moment. Short turns give a fair rate; latencies take a long one, because
whoever stops a server holds up its requests.

One thread, one epoll, requests made beforehand, of an answer only the status and the length are
read: the client must leave the processors to those who are measured. Each client sends its next
request as soon as it has the answer to the last one. Standard library only, Linux only.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 15.0  # seconds that requests which are under way at the end may still take
WARM_UP_LEAST, WARM_UP_MOST = 0.5, 20.0  # seconds
SETTLE = 0.3  # seconds from a stop of the server until latencies are as if there had been none
PAUSE = 0.05  # a client that could not connect waits so long: nothing is up sooner for being asked

TICKS = os.sysconf("SC_CLK_TCK")


class Visitor:
    """A client: one connection, one request under way."""

    __slots__ = ("answer", "asked", "began", "missing", "served", "sock")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.began = 0.0
        self.asked = b""  # nothing while at rest
        self.served = False  # ever
        self.answer = b""
        self.missing = -1  # bytes of the body that have not come yet; -1 before the header is whole


class Load:
    def __init__(
        self, port: int, path: str, *, clients: int, close: bool = False, warm_up: str = ""
    ) -> None:
        self._close = close
        self._measured = self._asking_for(path)
        self._request = self._asking_for(warm_up or path)
        self._address = ("127.0.0.1", port)
        self._epoll = select.epoll()
        self._visitors = [Visitor() for _ in range(clients)]
        self._by_fd: dict[int, Visitor] = {}
        self._paused: list[tuple[float, Visitor]] = []
        self._sending = True
        self._resting = False
        self._standing_since = 0.0
        self.timing = False
        self.latencies: list[float] = []  # of answers while `timing`
        self.ok = 0
        self.failures: Counter[str] = Counter()
        self.sent = 0

    def _asking_for(self, path: str) -> bytes:
        kind = "close" if self._close else "keep-alive"
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {kind}\r\n\r\n".encode()

    def start(self) -> None:
        for visitor in self._visitors:
            self._connect(visitor)

    def run(self, until: float) -> None:
        """Go on until then; ends sooner only when nothing is under way and none is to be sent."""
        poll, by_fd, receive = self._epoll.poll, self._by_fd, self._receive
        while (now := time.perf_counter()) < until and (self._sending or by_fd):
            while self._paused and self._paused[0][0] <= now:
                _, visitor = self._paused.pop(0)
                if self._sending:
                    self._connect(visitor)
            wake = min(until, self._paused[0][0] if self._paused else until)
            for fd, events in poll(wake - now):
                visitor = by_fd[fd]
                if events & select.EPOLLOUT:
                    self._connected(visitor)
                else:
                    receive(visitor)

    def turn(self, seconds: float) -> float:
        """Go on for so long; the seconds that it took. No time has passed since the last turn."""
        began = time.perf_counter()
        stood = began - self._standing_since
        for visitor in self._visitors:
            visitor.began += stood
        self._paused = [(at + stood, visitor) for at, visitor in self._paused]
        self.run(began + seconds)
        self._standing_since = time.perf_counter()
        return self._standing_since - began

    def stop(self) -> None:
        """Answers to what was sent are waited for; those that do not come are failures."""
        self._sending = False
        self.run(time.perf_counter() + GRACE)
        if self._by_fd:
            self.failures["no answer"] += len(self._by_fd)
        for visitor in list(self._by_fd.values()):
            self._hang_up(visitor)

    def warm_up(self) -> None:
        """Until every client has had an answer: the first ones wait for connections to be opened.

        What is measured meanwhile does not count.
        """
        now = time.perf_counter()
        self.run(now + WARM_UP_LEAST)
        give_up = now + WARM_UP_MOST
        while not all(v.served for v in self._visitors) and time.perf_counter() < give_up:
            self.run(time.perf_counter() + 0.05)
        if self._request != self._measured:
            self._change_page()
        self.ok = 0
        self.failures.clear()
        self._standing_since = time.perf_counter()

    def _change_page(self) -> None:
        """All come to rest first: what is under way would be served before what is measured."""
        self._resting = True
        give_up = time.perf_counter() + GRACE
        while any(v.asked for v in self._visitors) and time.perf_counter() < give_up:
            self.run(time.perf_counter() + 0.02)
        self._resting = False
        self._request = self._measured
        self._paused.clear()
        for visitor in self._visitors:
            if visitor.sock is None:
                self._connect(visitor)
            elif not visitor.asked:
                visitor.began = time.perf_counter()
                self._ask(visitor)

    def _connect(self, visitor: Visitor) -> None:
        sock = visitor.sock = socket.socket()
        sock.setblocking(False)
        self._by_fd[sock.fileno()] = visitor
        visitor.began = time.perf_counter()
        visitor.asked = self._request
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            self._failed(visitor, "cannot connect", pause=True)
            return
        self._epoll.register(sock, select.EPOLLOUT)

    def _connected(self, visitor: Visitor) -> None:
        assert visitor.sock
        if visitor.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._failed(visitor, "cannot connect", pause=True)
            return
        self._epoll.modify(visitor.sock, select.EPOLLIN)
        self._ask(visitor)

    def _ask(self, visitor: Visitor) -> None:
        assert visitor.sock
        visitor.asked = self._request
        visitor.answer, visitor.missing = b"", -1
        self.sent += 1
        try:
            visitor.sock.send(self._request)
        except OSError as error:
            self._failed(visitor, type(error).__name__)

    def _receive(self, visitor: Visitor) -> None:
        assert visitor.sock
        try:
            data = visitor.sock.recv(1 << 16)
        except OSError as error:
            self._failed(visitor, type(error).__name__, pause=True)
            return
        if not data:
            if visitor.asked:
                self._failed(visitor, "hung up")
            else:
                self._hang_up(visitor)
            return
        if visitor.missing < 0:
            data = visitor.answer = visitor.answer + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            at = data.find(b"Content-Length: ", 0, end) + 16
            if at < 16:
                self._failed(visitor, "no Content-Length")
                return
            visitor.missing = int(data[at : data.index(b"\r", at)]) - (len(data) - end - 4)
        else:
            visitor.missing -= len(data)
        if visitor.missing <= 0:
            self._answered(visitor)

    def _answered(self, visitor: Visitor) -> None:
        now = time.perf_counter()
        visitor.served = True
        status = visitor.answer[9:12]
        if status == b"200":
            self.ok += 1
            if self.timing:
                self.latencies.append(now - visitor.began)
        else:
            self.failures[f"HTTP {status.decode()}"] += 1
        if self._close or b"\r\nConnection: close" in visitor.answer or not self._sending:
            self._again(visitor)
            return
        if self._resting:
            visitor.asked = b""
            return
        visitor.began = now
        self._ask(visitor)

    def _failed(self, visitor: Visitor, why: str, *, pause: bool = False) -> None:
        self.failures[why] += 1
        self._again(visitor, pause=pause)

    def _again(self, visitor: Visitor, *, pause: bool = False) -> None:
        """On a new connection."""
        self._hang_up(visitor)
        if self._resting:
            return
        if pause:
            self._paused.append((time.perf_counter() + PAUSE, visitor))
        elif self._sending:
            self._connect(visitor)

    def _hang_up(self, visitor: Visitor) -> None:
        assert visitor.sock
        del self._by_fd[visitor.sock.fileno()]
        visitor.sock.close()  # which takes it out of the epoll as well
        visitor.sock, visitor.asked = None, b""


def tree_cpu(root: int) -> float:
    """Seconds of CPU that a process, its children and those of theirs that have ended have used."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended since
            # The name comes second, in parentheses, and may contain spaces and parentheses.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            pid = int(folder.name)
            parents[pid] = int(fields[1])
            seconds[pid] = sum(map(int, fields[11:15])) / TICKS

    def below(pid: int) -> float:
        children = (child for child, parent in parents.items() if parent == pid)
        return seconds.get(pid, 0.0) + sum(map(below, children))

    return below(root)


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]


class Measurement:
    """What a server did in one or more turns of load."""

    def __init__(self, load: Load, server: int) -> None:
        self._load = load
        self._server = server
        self._seconds = self._server_cpu = self._own_cpu = 0.0
        self.served = 0

    def turn(self, seconds: float, *, rate: bool = False, latency: bool = False) -> None:
        """It counts for the rate and for CPU time, or for latencies, for both or for nothing."""
        load = self._load
        load.timing = latency
        ok, server_cpu, own_cpu = load.ok, tree_cpu(self._server), time.process_time()
        took = load.turn(seconds)
        if rate:
            self._own_cpu += time.process_time() - own_cpu
            self._server_cpu += tree_cpu(self._server) - server_cpu
            self.served += load.ok - ok
            self._seconds += took

    def result(self) -> dict[str, object]:
        """Once the load has stopped."""
        load, served = self._load, self.served
        ordered = sorted(load.latencies)
        shares = (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0))
        return {
            "per_second": served / self._seconds,
            "server_cpu_ms": self._server_cpu / served * 1e3 if served else None,
            "client_cpu_ms": self._own_cpu / served * 1e3 if served else None,
            "ok": load.ok,
            "failed": load.failures.total(),
            "failures": dict(load.failures.most_common()),
            "sent": load.sent,
            **{
                name: percentile(ordered, share) * 1e3 if ordered else None
                for name, share in shares
            },
        }


def take_turns(measurement: Measurement, server: int) -> None:
    """As standard input says. The server stands still before, between and after them."""
    try:
        os.killpg(server, signal.SIGSTOP)
        print(json.dumps({"served": 0}), flush=True)
        for line in sys.stdin:
            seconds, *what = line.split()
            os.killpg(server, signal.SIGCONT)
            if "latency" in what:
                measurement.turn(SETTLE)
            measurement.turn(float(seconds), rate="rate" in what, latency="latency" in what)
            os.killpg(server, signal.SIGSTOP)
            print(json.dumps({"served": measurement.served}), flush=True)
    finally:
        os.killpg(server, signal.SIGCONT)


def main() -> None:
    parser = argparse.ArgumentParser(description="Load one page of a server on this machine.")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--in-turns", action="store_true", help="see above")
    parser.add_argument("--close", action="store_true", help="a connection for each request")
    parser.add_argument(
        "--warm-up", default="", metavar="PATH", help="a quicker page to begin with"
    )
    parser.add_argument("--server-pid", type=int, required=True, help="whose CPU time to measure")
    options = parser.parse_args()

    load = Load(
        options.port,
        options.path,
        clients=options.clients,
        close=options.close,
        warm_up=options.warm_up,
    )
    load.start()
    load.warm_up()
    measurement = Measurement(load, options.server_pid)
    if options.in_turns:
        take_turns(measurement, options.server_pid)
    else:
        measurement.turn(options.seconds, rate=True, latency=True)
    # Who was starved is still waiting now: without these the slowest answers would not count.
    load.stop()
    print(json.dumps(measurement.result()))


if __name__ == "__main__":
    main()
