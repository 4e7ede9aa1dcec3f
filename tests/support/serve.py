"""A web server as a process of its own, and an HTTP client for it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from support import processes
from support.ports import free_port
from support.servers import ROOT, tied_to_us

T = TypeVar("T")

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket

POOLED_SERVE = (sys.executable, "-m", "pooled_serve")
GUNICORN = (sys.executable, "-m", "gunicorn")

# Settings of whoever runs the tests must not reach the servers under test. The last one would have
# each of them compile the package anew.
FOREIGN_SETTINGS = (
    *("POOLED_SERVE_", "GUNICORN_CMD_ARGS", "DJANGO_SETTINGS_MODULE", "PORT"),
    "PYTHONDONTWRITEBYTECODE",
)

START_TIMEOUT = 60.0  # seconds; three processes have to import things, one after the other
STOP_TIMEOUT = 25.0  # less than graceful_timeout, after which the master kills what hangs


class ServerExited(Exception):
    """The server ended before it answered."""

    def __init__(self, returncode: int, log: str) -> None:
        super().__init__(f"exit code {returncode}\n{log}")
        self.returncode = returncode
        self.log = log


def end_of(start: Callable[[], Serve]) -> tuple[int, str]:
    """Returns exit code and log of a server that ends by itself; its last act may be to answer who
    had come already."""
    try:
        server = start()
    except ServerExited as ended:
        return ended.returncode, ended.log
    return server.wait(STOP_TIMEOUT), server.log


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, kept open from request to request as far as the server allows."""

    def __init__(self, address: Address, timeout: float = 30.0) -> None:
        if isinstance(address, str):
            self._connection: http.client.HTTPConnection = _UnixConnection(address, timeout)
        else:
            self._connection = http.client.HTTPConnection(*address, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str = "/", headers: Mapping[str, str] | None = None) -> Response:
        return self.request("GET", path, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        start = time.monotonic()
        self._connection.request(method, path, body, headers or {})
        with self._connection.getresponse() as answer:
            content = answer.read()
            seconds = time.monotonic() - start
            return Response(answer.status, answer.headers, content, seconds)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, self.timeout)


class Serve:
    """The server runs from `with` to the end of the block; its output is in `log`.

        with Serve("mysite.wsgi", "--pool-size", "2", cwd=project) as server:
            assert server.get("/").status == 200

    `command`, a full path first, is given the application and the options. `-b ADDRESS` is added,
    unless `bind` is false because `address` is already in a configuration file. `env` is added to
    the environment; None as a value takes a variable out.
    """

    def __init__(
        self,
        app: str,
        *args: str,
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str] = POOLED_SERVE,
        address: Address | None = None,
        bind: bool = True,
        start_timeout: float = START_TIMEOUT,
        stop_timeout: float = STOP_TIMEOUT,
    ) -> None:
        self.address = address or ("127.0.0.1", free_port())
        self._argv = [*command, app, *args]
        if bind:
            self._argv += ["-b", _as_option(self.address)]
        self.cwd = cwd
        self._env = environment(env)
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the server runs
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Serve:
        self.start()
        return self

    def __exit__(self, exc_type: object, *exc_info: object) -> None:
        try:
            if exc_type is None:
                self.stop()
        finally:
            self.kill()
            self._log.close()

    def start(self) -> None:
        """Return when a worker answers. Raise ServerExited if the server ends instead.

        It stops when the thread that started it ends: start it from one that lasts.
        """
        self._process = subprocess.Popen(
            tied_to_us(self._argv),
            cwd=self.cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # which makes it a group that can be killed as a whole
        )
        try:
            self._wait_for_worker()
        except BaseException:
            self.kill()
            self._log.close()
            raise

    def stop(self) -> int:
        """Shut down in good order and return the exit code. Fail if that takes too long or if a
        process stays behind."""
        if self._running():
            self.signal(signal.SIGTERM)
        code = self.wait(self._stop_timeout)
        try:
            processes.wait_until(lambda: not processes.members(self.master_pid), timeout=10)
        except AssertionError:
            left = processes.members(self.master_pid)
            self.kill()
            raise AssertionError(f"processes {left} outlive the server\n{self.log}") from None
        return code

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """The exit code, once the server has ended by itself."""
        assert self._process, "not started"
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            log = self.log
            self.kill()
            raise AssertionError(f"still running after {timeout:g} s\n{log}") from None

    def kill(self) -> None:
        """End it and its workers at once, whatever state they are in."""
        if self._process:
            processes.kill_group(self.master_pid)
            self._process.wait()
            processes.wait_until(lambda: not processes.members(self.master_pid))

    def signal(self, number: int) -> None:
        os.kill(self.master_pid, number)

    @property
    def master_pid(self) -> int:
        assert self._process, "not started"
        return self._process.pid

    def worker_pids(self) -> set[int]:
        """The children of the master: after SIGUSR2, a second master is among them."""
        return processes.children(self.master_pid)

    @contextmanager
    def only(self, worker: int) -> Iterator[None]:
        """This worker answers, because the others are suspended for the length of the block.

        Otherwise the kernel may give one of them all connections there are.
        """
        others = self.worker_pids() - {worker}
        try:
            processes.suspend(others)
            yield
        finally:
            processes.resume(others)

    @property
    def port(self) -> int:
        assert not isinstance(self.address, str), "on a Unix socket"
        return self.address[1]

    @property
    def log(self) -> str:
        """All that the server has written so far, to both of its outputs."""
        end = os.fstat(self._log.fileno()).st_size
        # The server writes through the same file position, which seek() would move.
        return os.pread(self._log.fileno(), end, 0).decode(errors="replace")

    def wait_for_log(self, said: str | re.Pattern[str], times: int = 1) -> str:
        """The log, once this stands in it so often: much of it is written after the answer."""
        pattern = re.compile(re.escape(said)) if isinstance(said, str) else said
        try:
            self.wait_until_log(lambda log: len(pattern.findall(log)) >= times)
        except AssertionError:
            often = f" {times} times" if times > 1 else ""
            what = said if isinstance(said, str) else said.pattern
            raise AssertionError(f"the log does not say {what!r}{often}\n{self.log}") from None
        return self.log

    def wait_until_log(self, condition: Callable[[str], T | Literal[False] | None]) -> T:
        """What the condition answers, once that is true of the log; a failure shows its end."""
        return processes.wait_until(
            lambda: condition(self.log), asked=condition, showing=self._last_lines
        )

    def _last_lines(self) -> str:
        return "\n".join(["the log ends with:", *self.log.splitlines()[-40:]])

    def get(
        self, path: str = "/", *, timeout: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Over a connection that is new and closed at the end."""
        with self.keepalive(timeout) as client:
            return client.get(path, headers)

    def keepalive(self, timeout: float = 30.0) -> Client:
        return Client(self.address, timeout)

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _wait_for_worker(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while not _is_served(self.address):
            if not self._running():
                raise ServerExited(self.wait(0), self.log)
            if time.monotonic() > deadline:
                raise AssertionError(f"no answer in {self._start_timeout:g} s\n{self.log}")
            time.sleep(0.02)


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """For a server under test: this process's, without its settings for other servers."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)
    }
    # Found also where it is not installed; what is printed is in the log at once.
    kept |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    changed = kept | dict(changes or {})
    return {name: value for name, value in changed.items() if value is not None}


def _as_option(address: Address) -> str:
    return f"unix:{address}" if isinstance(address, str) else f"{address[0]}:{address[1]}"


def connect(address: Address, timeout: float | None = 30.0) -> socket.socket:
    if not isinstance(address, str):
        return socket.create_connection(address, timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_served(address: Address) -> bool:
    """Whether a worker takes connections: the master listens before it has any.

    A worker hangs up on a client that hangs up without a request, and says nothing of it in its
    log. A request would be one more in the application's counters and in the access log.
    """
    with suppress(OSError), connect(address, timeout=0.5) as connection:
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1) == b""
    return False
