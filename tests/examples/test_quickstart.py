"""examples/quickstart.py does what it promises to a newcomer, and leaves nothing behind.

It installs nothing here: it takes the environment that runs the tests. `.ci/run` runs it from a
fresh clone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support import processes
from support.ports import free_port
from support.serve import Client, environment
from support.servers import ROOT, Server
from support.text import find
from support.torture import torture

PRODUCTS = 60

# As on a machine without any database server: also the folders off the PATH where it looks.
WITHOUT_SERVERS = """
import sys
sys.path.insert(0, "examples")
import private_database
private_database.SERVER_FOLDERS = ()
import quickstart
sys.exit(quickstart.main())
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples: a quick start that somebody has running in ours is not disturbed."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.sqlite3")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


class QuickStart:
    """The program at work; `output` is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> tuple[int, str]:
        with Client(("127.0.0.1", self.port)) as client:
            response = client.get(path)
            return response.status, response.text

    def wait_until_open(self) -> None:
        def is_open() -> bool:
            ended = self.process.poll() is not None
            if "Ctrl-C stops everything" in self.output:
                return True
            assert not ended, self.output
            return False

        processes.wait_until(is_open, timeout=120)

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    def family(self) -> set[int]:
        """The program and all that it started, in whatever session."""
        family, found = set(), {self.process.pid}
        while found:
            family |= found
            found = {p.pid for p in processes.running() if p.parent in found}
        return family


def alive(family: set[int]) -> set[int]:
    return family & {process.pid for process in processes.running()}


def typed(checkout: Path, line: str) -> str:
    """What a command says in the reader's other terminal."""
    done = subprocess.run(
        ["bash", "-ec", f". .quickstart/env; {line}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def alone() -> Iterator[None]:
    """One at a time, also of the other test process: each chooses the first port from 8000 on that
    is free, and takes it seconds later."""
    with Path(tempfile.gettempdir(), f"pooled-serve-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def quickstart(
    checkout: Path,
    *args: str,
    command: Sequence[str] = ("examples/quickstart.py",),
    **env: str,
) -> Iterator[QuickStart]:
    port = free_port()
    log = checkout / f"output-{port}"
    options = ["--no-install", "--venv", sys.prefix, "--port", str(port)]
    with ExitStack() as stack:
        stack.enter_context(alone())
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [sys.executable, *command, *options, "--products", str(PRODUCTS), *args],
            cwd=checkout,
            env=environment({"DATABASE_URL": None, **env}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        stack.enter_context(process)
        running = QuickStart(process, log, port)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            process.kill()


def test_it_serves_the_shop_through_the_pool_until_it_is_told_to_stop(checkout: Path) -> None:
    with quickstart(checkout) as running:
        running.wait_until_open()
        status, page = running.get("/")
        assert (status, page.count('class="card"')) == (200, 24)
        assert running.get("/bench/one")[0] == 200

        # What it says to try works as it stands there.
        shown = running.output
        assert f"The shop is open: http://127.0.0.1:{running.port}/" in shown
        (status_port,) = re.findall(r"Its connections:  http://127\.0\.0\.1:(\d+)/\n", shown)
        assert running.port < int(status_port) < running.port + 100, "the next free one"
        assert re.search(r"^Its database:     127\.0\.0\.1:\d+$", shown, re.MULTILINE)
        with Client(("127.0.0.1", int(status_port))) as client:
            stats = client.get("/stats.json").json()
        assert stats["pools"]["default"]["max_outstanding"] == 10
        (load,) = re.findall(r"^ +(\S+ examples/shop/load\.py .*)$", shown, re.MULTILINE)
        (connections,) = re.findall(r"^ +(\S+ .*manage\.py connections)$", shown, re.MULTILINE)
        # A hundred visitors would still be waiting on a busy machine when load.py has enough.
        tried = typed(checkout, f"{load} --seconds 1 --clients 30")
        assert re.search(r"^failed +none$", tried, re.MULTILINE), tried
        most, last = map(int, find(r"at most (\d+), at the end (\d+)", tried).groups())
        assert 4 <= last <= most <= 10
        only_idle = "4 connections, without the one that asks"
        processes.wait_until(lambda: only_idle in typed(checkout, connections))

        password = find(
            r"mysql://shop:([^@]+)@", (checkout / ".quickstart" / "env").read_text()
        ).group(1)
        assert password not in running.output
        family = running.family()
        assert len(family) >= 4  # itself, the database, the master, the worker

        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.output.endswith("Stopped.\n")
    assert not (checkout / ".quickstart" / "env").exists()
    assert not alive(family)


@torture
def test_workers_share_the_connections(checkout: Path) -> None:
    status_port = free_port()
    with quickstart(checkout, "-w", "2", "--status-port", str(status_port)) as running:
        running.wait_until_open()
        assert f"Its connections:  http://127.0.0.1:{status_port}/\n" in running.output
        assert running.get("/bench/one")[0] == 200
        with Client(("127.0.0.1", status_port)) as client:
            processes.wait_until(lambda: len(client.get("/stats.json").json()["workers"]) == 2)
            stats = client.get("/stats.json").json()
            metrics = client.get("/metrics")
        assert stats["hosts"]["default"]["limit"] == 10
        assert metrics.status == 200


def test_other_options_go_to_pooled_serve(checkout: Path) -> None:
    status_port = free_port()
    advised = "--max-outstanding", "20"
    with quickstart(checkout, *advised, "--status-port", str(status_port)) as running:
        running.wait_until_open()
        assert "They share 10 connections" not in running.output
        with Client(("127.0.0.1", status_port)) as client:
            assert running.get("/bench/one")[0] == 200
            assert client.get("/stats.json").json()["pools"]["default"]["max_outstanding"] == 20


def test_a_misspelt_option_of_its_own_does_not(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--no-instal", "--venv", "nowhere"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "there is no option --no-instal: did you mean --no-install?" in done.stderr
    assert done.returncode == 2
    assert not (checkout / "nowhere").exists()


def test_what_it_installs_serves_metrics(checkout: Path, tmp_path: Path) -> None:
    pip = tmp_path / "venv" / "bin" / "python"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho "told: $*"\nexit 1\n')
    pip.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--venv", str(tmp_path / "venv")],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert re.search(r"^told: -m pip .*install .*\[metrics\]$", done.stderr, re.MULTILINE), (
        done.stderr
    )
    assert done.stderr.endswith("→ its output above says why\n")


def test_every_option_has_a_help(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--help"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    _, _, told = done.stdout.partition("options:\n")
    helps = re.split(r"^  (?=-)", told, flags=re.MULTILINE)[1:]
    assert len(helps) > 7
    assert "All other options go to pooled-serve, as in --max-outstanding 20." in told
    assert [text for text in helps if not re.search(r"(\n|\S)  +\S", text)] == []


@torture
def test_it_ends_by_itself_after_a_while_and_keeps_the_data(checkout: Path) -> None:
    with quickstart(checkout, "--seconds", "2") as running:
        running.wait_until_open()
        # Halted, or on a busy machine it would have ended before it is looked at.
        processes.suspend({running.process.pid})
        try:
            family = running.family()
            assert "it is still running" in cleaned(checkout, code=1)
        finally:
            processes.resume({running.process.pid})
        assert running.wait() == 0
        first = running.output
    assert first.endswith("Stopped.\n")
    assert not alive(family)
    assert re.search(r"\d+ MB stay in \.quickstart for the next time", first)
    assert "    python3 examples/quickstart.py --clean\n" in first

    with quickstart(checkout, "--seconds", "0.1") as running:
        assert running.wait() == 0
    assert f"{PRODUCTS} products are there already." in running.output

    assert re.fullmatch(r"Removed \.quickstart, \d+ MB\.\n", cleaned(checkout))
    assert not (checkout / ".quickstart").exists()
    assert Path(sys.prefix).exists()  # which it has not made
    assert cleaned(checkout) == "There is nothing to remove.\n"


def test_it_removes_a_virtual_environment_that_it_has_made(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    cleaned(checkout, "--venv", str(tmp_path / "venv"))
    assert (tmp_path / "venv").exists()  # the reader's own
    (tmp_path / "venv" / "pooled-serve-installed.toml").touch()
    assert "Removed " in cleaned(checkout, "--venv", str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def cleaned(checkout: Path, *args: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--clean", *(args or ("--venv", sys.prefix))],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@torture
def test_killed_outright_it_still_takes_everything_with_it(checkout: Path) -> None:
    with quickstart(checkout) as running:
        running.wait_until_open()
        family = running.family()
        running.process.kill()
        running.wait()
        processes.wait_until(lambda: not alive(family))


@torture
def test_without_a_database_server_it_says_that_nothing_is_pooled(checkout: Path) -> None:
    with quickstart(checkout, command=("-c", WITHOUT_SERVERS), PATH="/nowhere") as running:
        running.wait_until_open()
        assert "NOTHING IS POOLED" in running.output
        assert "→ install mariadb-server-core" in running.output
        assert "They share 10 connections" not in running.output
        assert running.get("/bench/one")[0] == 200
        running.process.send_signal(signal.SIGINT)
        assert running.wait() == 0


@torture
def test_the_database_of_the_environment_is_used(checkout: Path, mariadb: Server) -> None:
    database = mariadb.create_database()
    url = f"mysql://{database.user}:{database.password}@127.0.0.1:{database.port}/{database.name}"
    with quickstart(checkout, DATABASE_URL=url) as running:
        running.wait_until_open()
        assert "Using the database of $DATABASE_URL" in running.output
        assert running.get("/bench/one")[0] == 200
        assert mariadb.admin.processlist(database.user)
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
    processes.wait_until(lambda: not mariadb.admin.processlist(database.user))


@pytest.mark.parametrize(
    ("args", "env", "says"),
    [
        (["--venv", "nowhere"], {}, "there is no pooled-serve in nowhere"),
        (["--port", "{taken}"], {}, "port {taken} is taken"),
        (["--status-port", "{taken}"], {}, "port {taken} is taken"),
        ([], {"DATABASE_URL": "mysql://shop:hidden@127.0.0.1:{taken}/shop"}, "Can't connect"),
    ],
)
def test_what_cannot_work_is_one_line_and_a_remedy(
    checkout: Path, args: list[str], env: dict[str, str], says: str
) -> None:
    taken = free_port()
    with ExitStack() as stack:
        if not env:
            stack.enter_context(socket.create_server(("127.0.0.1", taken)))
        env = {name: value.format(taken=taken) for name, value in env.items()}
        with quickstart(checkout, *(arg.format(taken=taken) for arg in args), **env) as running:
            assert running.wait() == 1
    problem, remedy = running.output.splitlines()[-2:]
    assert problem.startswith("quickstart: ")
    assert says.format(taken=taken) in problem
    assert remedy.startswith("→ ")
    assert "hidden" not in running.output
