"""As PID 1, which a container's command is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.processes import children, wait_until
from support.serve import POOLED_SERVE, STOP_TIMEOUT, Serve, environment
from support.servers import Database

VIEWS = Path(__file__).with_name("serving_views.py")
SMALL = ("--pool-size", "2", "--max-outstanding", "5")


PID_1 = ("/usr/bin/unshare", "--pid", "--fork", "--mount-proc", "--", *POOLED_SERVE)
may_be_pid_1 = pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="needs root, to be PID 1 somewhere"
)


@may_be_pid_1
def test_as_pid_1_it_stops_on_term_while_the_project_is_loaded(project: Any) -> None:
    folder = project("", databases={})
    (folder / "mysite" / "wsgi.py").write_text("import time\ntime.sleep(600)\n")
    command = [*PID_1, "mysite.wsgi", "-b", "127.0.0.1:0"]
    unshare = subprocess.Popen(command, cwd=folder, env=environment())
    try:
        (init,) = wait_until(lambda: children(unshare.pid))
        (_,) = wait_until(lambda: children(init))  # the preflight's
        os.kill(init, signal.SIGTERM)
        assert unshare.wait(STOP_TIMEOUT) == 0
    finally:
        unshare.kill()
        unshare.wait()


@may_be_pid_1
def test_as_pid_1_it_stops_on_term_and_reaps_orphans(
    project: Any, database: Database, no_aborts: None
) -> None:
    """Docker's CMD makes it PID 1, whose default action for TERM is to ignore it."""
    site = project(VIEWS, databases={"default": database.django()})
    with Serve("mysite.wsgi", *SMALL, command=PID_1, cwd=site) as web:
        assert web.get("/one").status == 200
        (init,) = children(web.master_pid)
        for _ in range(5):
            web.get("/orphan")
        wait_until(lambda: _all_children(init) == children(init) and len(children(init)) == 1)
        os.kill(init, signal.SIGTERM)
        assert web.wait() == 0


def _all_children(pid: int) -> set[int]:
    """Those included that have ended, and that nobody has asked for."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(child) for child in listed.split()}
