"""What test_last_queries.py runs in a process of its own."""

from __future__ import annotations

import atexit

from support.inside import run


def query_at_exit() -> None:
    atexit.register(run, "INSERT INTO notes VALUES ('atexit')")
    run("INSERT INTO notes VALUES ('script')")
