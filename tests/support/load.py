"""Many clients that send requests at the same time.

They are threads of another process, which runs this same file: the test that looks on needs no
patches and is not slowed down.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

HOST = "127.0.0.1"
Report = Callable[[int | str, float, float], None]


class Outcome(NamedTuple):
    result: int | str  # the status, or else the name of the exception the client got
    seconds: float
    at: float  # when the request was sent, in seconds from the first one
    client: int  # which of them sent it


class Hammer:
    """A load that goes on while the test does other things.

        with Hammer(server.port, "/", clients=50, seconds=5) as hammer:
            database.restart()
            outcomes = hammer.finish()

    Each client sends `requests` requests, or as many as it can in `seconds`, one after the other,
    or no more than one `every` so many seconds; then the first ones are spread over that time, so
    that as long as no answer takes longer, requests arrive at an even rate. In the block they have
    begun; `stop()` ends it sooner. Once it is finished, `start` is the moment of the first request,
    in seconds of time.monotonic().
    """

    start: float

    def __init__(
        self,
        port: int,
        path: str = "/",
        *,
        clients: int,
        seconds: float | None = None,
        requests: int | None = None,
        keepalive: bool = False,
        timeout: float = 30.0,
        every: float = 0.0,
    ) -> None:
        assert (seconds is None) != (requests is None), "seconds or requests"
        order = [port, path, clients, seconds, requests, keepalive, timeout, every]
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, json.dumps(order)],
            bufsize=0,  # readline() must leave communicate() what comes after the line
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout
        self._process.stdout.readline()  # it is ready to be stopped, too

    def __enter__(self) -> Hammer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._process:  # which ends by waiting for it
            self._process.kill()

    def stop(self) -> None:
        """Let each client end after the request that it has sent."""
        self._process.terminate()

    def finish(self) -> list[Outcome]:
        """Wait for the end of it."""
        output, _ = self._process.communicate()
        assert self._process.returncode == 0, "the load failed, its error output says why"
        self.start, outcomes = json.loads(output)
        return [Outcome(*outcome) for outcome in outcomes]


def hammer(
    port: int,
    path: str = "/",
    *,
    clients: int,
    seconds: float | None = None,
    requests: int | None = None,
    keepalive: bool = False,
    timeout: float = 30.0,
) -> list[Outcome]:
    """What became of each request, in the order in which they ended."""
    with Hammer(
        port,
        path,
        clients=clients,
        seconds=seconds,
        requests=requests,
        keepalive=keepalive,
        timeout=timeout,
    ) as running:
        return running.finish()


def _run(
    port: int,
    path: str,
    clients: int,
    seconds: float | None,
    requests: int | None,
    keepalive: bool,
    timeout: float,
    every: float,
) -> tuple[float, list[Outcome]]:
    outcomes: list[Outcome] = []
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    together = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
        together.wait()
        sent = 0
        if every:
            stopped.wait(every * number / clients)
        while not stopped.is_set() and (
            sent < requests if requests else time.monotonic() < start + (seconds or 0)
        ):
            sent += 1
            began = time.monotonic()
            result: int | str
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                result = response.status
            except (OSError, http.client.HTTPException) as error:
                result = type(error).__name__
                connection.close()
            ended = time.monotonic()
            outcomes.append(Outcome(result, ended - began, began - start, number))
            if not keepalive:
                connection.close()
            if every:
                stopped.wait(began + every - time.monotonic())
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start = time.monotonic()
    together.wait()
    print("begun", flush=True)
    for thread in threads:
        thread.join()
    return start, outcomes


if __name__ == "__main__":
    json.dump(_run(*json.loads(sys.argv[1])), sys.stdout)
