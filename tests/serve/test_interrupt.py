"""Ctrl-C: the terminal sends INT to all processes of the command, and again to those in a hurry.

None of them prints a traceback, and the command ends in good order.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import MakeProject, StartServe
from support.processes import wait_until
from support.serve import POOLED_SERVE, STOP_TIMEOUT, Serve, ServerExited, environment

HELLO = """
    from django.http import HttpResponse

    def hello(request):
        return HttpResponse("hello")
"""
CTRL_C = b"\x03"


@pytest.fixture
def site(project: MakeProject) -> Path:
    return project(HELLO, databases={})


def assert_quiet(log: str) -> None:
    for word in ("Traceback", "ignored", "Error", "SIGKILL"):
        assert word not in log, log


def interrupt(server: Serve, between: float) -> int:
    """Until it has ended."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(server.master_pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            assert server._process is not None
            return server._process.wait(between)
    raise AssertionError(server.log)


@pytest.mark.parametrize("between", [0.001, 0.03, 0.1, 60])
def test_all_processes_are_interrupted(site: Path, between: float) -> None:
    with Serve("mysite.wsgi", "-w", "3", cwd=site) as server:
        assert server.get("/hello").status == 200
        assert interrupt(server, between) == 0
        assert_quiet(server.log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_a_worker_that_leaves_is_told_again(site: Path, serve: StartServe, number: int) -> None:
    """INT and QUIT at once: what it is told by the terminal, and by the master."""
    server = serve(site)
    (worker,) = server.worker_pids()
    for also in (number, signal.SIGINT, signal.SIGQUIT):
        os.kill(worker, also)
    wait_until(lambda: worker not in server.worker_pids())
    wait_until(lambda: len(server.worker_pids()) == 1)
    assert server.get("/hello").status == 200
    assert_quiet(server.log)


@pytest.mark.parametrize("within", ["the project", "a finalizer"])
def test_while_a_worker_loads_the_project(site: Path, within: str) -> None:
    """It need not come to the end of that. What is raised in a finalizer, Python ignores."""
    (site / "mysite" / "wsgi.py").write_text(
        "import os, time, weakref\n"
        "from django.core.wsgi import get_wsgi_application\n"
        "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n"
        "application = get_wsgi_application()\n"
        "with open('loads', 'a') as file: file.write('x')\n"
        "class Loads:\n"
        "    def __del__(self):\n"
        "        if os.path.getsize('loads') > 1: time.sleep(5)\n"
        + ("Loads()\n" if within == "a finalizer" else "")
        + "while os.path.getsize('loads') > 1: time.sleep(0.01)\n"
    )
    log = site / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*POOLED_SERVE, "mysite.wsgi", "-b", "127.0.0.1:0"],
            cwd=site,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
    try:
        loads = site / "loads"
        wait_until(lambda: loads.exists() and loads.stat().st_size > 1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(STOP_TIMEOUT) == 0  # less than graceful_timeout
        assert_quiet(log.read_text())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_handler_raises_in_a_callback_is_raised_behind_it(number: int) -> None:
    """The command imports a lot, with a callback of a weak reference for each module."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interrupt_script.py"), str(int(number))],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=STOP_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    raised = "KeyboardInterrupt" if number == signal.SIGINT else "Exit"
    assert done.stdout == f"{raised} None\n"
    assert "ZeroDivisionError" in done.stderr  # still said, as ever
    assert "Interrupt" not in done.stderr


def test_a_worker_that_has_not_come_to_itself(site: Path, serve: StartServe) -> None:
    """It would take the signal with the handler that the fork has copied, and never hear of it."""
    (site / "gunicorn.conf.py").write_text(
        "import logging, os, signal, time\n"
        "class Slow(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        if 'Booting worker' in record.getMessage():\n"
        "            os.kill(os.getpid(), signal.SIGQUIT)\n"
        "            os.kill(os.getppid(), signal.SIGINT)\n"
        "def on_starting(server):\n"
        "    logging.getLogger('gunicorn.error').addHandler(Slow())\n"
    )
    with pytest.raises(ServerExited) as ended:
        serve(site)
    assert ended.value.returncode == 0
    assert_quiet(ended.value.log)


@pytest.mark.parametrize("preload", [False, True])
def test_while_gevent_patches(site: Path, serve: StartServe, preload: bool) -> None:
    """Half-way, `threading` would not know its main thread."""
    (site / "gunicorn.conf.py").write_text(
        "import atexit, os, signal, sys, threading\n"
        "from gevent import events\n"
        "def interrupt(event):\n"
        "    if getattr(event, 'module_name', '') == 'threading':\n"
        "        for process in {os.getpid(), master}:\n"
        "            os.kill(process, signal.SIGINT)\n"
        "def say():\n"
        "    sys.stderr.write(f'Ends in {threading.current_thread().name}.\\n')\n"
        "events.subscribers.append(interrupt)\n"
        "master = os.getpid()\n"
        "atexit.register(say)\n"
    )
    with pytest.raises(ServerExited) as ended:
        serve(site, *["--preload"] * preload)
    assert_quiet(ended.value.log)
    assert set(re.findall(r"Ends in (.+)\.", ended.value.log)) == {"MainThread"}


@pytest.mark.parametrize("stage", ["preflight", "serving"])
def test_in_a_terminal(site: Path, stage: str) -> None:
    if stage == "preflight":
        (site / "mysite" / "wsgi.py").write_text(
            "import time\nopen('loading', 'w').close()\ntime.sleep(600)\n"
        )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(site)
        os.execve(
            POOLED_SERVE[0], [*POOLED_SERVE, "mysite.wsgi", "-b", "127.0.0.1:0"], environment()
        )
    os.set_blocking(terminal, False)
    said = b""

    def read() -> bytes:
        nonlocal said
        with suppress(BlockingIOError, OSError):  # OSError: the last of them has ended
            while data := os.read(terminal, 4096):
                said += data
        return said

    try:
        if stage == "serving":
            wait_until(lambda: b"Booting worker" in read())
        else:
            wait_until((site / "loading").exists)
        os.write(terminal, CTRL_C)

        def ended() -> tuple[int, int] | None:
            read()
            found = os.waitpid(pid, os.WNOHANG)
            return found if found[0] else None

        _, status = wait_until(ended)
        assert os.waitstatus_to_exitcode(status) == (0 if stage == "serving" else 130)
        assert_quiet(read().decode())
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.close(terminal)
