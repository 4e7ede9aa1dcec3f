"""A script in a fresh interpreter: gevent's patches, Django on a project, its MySQL pooled.

    assert run_script(project(), "report(one('SELECT 1'))") == 1

The process of the tests itself stays un-patched. That of the script is this same file, so nothing
may be imported here before gevent has patched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

SIZE, CAP = 2, 4


def run_script(
    folder: Path,
    source: str,
    *,
    gevent: bool = True,
    size: int = SIZE,
    cap: int | None = CAP,
    timeout: float = 30.0,
    pooled: bool = True,
    within: float = 120.0,
    **env: str,
) -> Any:
    """Run it in a project, `within` so many seconds; return what it gave to report() last.

    `cap` is None for no limit. With `gevent=False` nothing is patched by gevent,
    with `pooled=False` nothing by us: it is plain Django on PyMySQL.
    """
    from support.serve import environment

    order = [gevent, pooled, size, cap, timeout, dedent(source)]
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, json.dumps(order)],
        cwd=folder,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # What a finalizer or the event loop has to complain about does not end a process.
    assert "Traceback" not in said, said
    assert "ignored" not in said, said
    reports = [line for line in done.stdout.splitlines() if line.startswith("report ")]
    return json.loads(reports[-1].removeprefix("report ")) if reports else None


def main(
    gevent: bool, pooled: bool, size: int, cap: int | None, timeout: float, source: str
) -> None:
    if gevent:
        from gevent import monkey

        monkey.patch_all()
    sys.path[0] = os.getcwd()
    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"

    if pooled:
        from pooled_serve import pooling

        pooling.set_pool_size(size, max_outstanding=cap, timeout=timeout)
        pooling.apply_patch()
    else:
        import pymysql

        pymysql.install_as_MySQLdb()

    import django

    django.setup()
    exec(compile(source, "<script>", "exec"), names(cap))


def names(cap: int | None) -> dict[str, Any]:
    """What scripts find defined."""
    import contextlib
    import gc
    import time

    import gevent
    from django.db import connection, connections, transaction

    from pooled_serve.backend import patch

    def report(value: object) -> None:
        print("report", json.dumps(value), flush=True)

    def run(sql: str, *args: Any, alias: str = "default") -> list[Any]:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql, args or None)
            return list(cursor.fetchall()) if cursor.description else []

    def one(sql: str, *args: Any, alias: str = "default") -> Any:
        return run(sql, *args, alias=alias)[0][0]

    def pool(alias: str = "default") -> Any:
        return patch.pools()[alias]

    def settle(condition: Any, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, {alias: pool(alias).stats() for alias in patch.pools()}
            gevent.sleep(0.005)

    def assert_sound(alias: str = "default") -> None:
        """No slot is lost, the server knows the pool's connections and no more."""
        patch.end_request()
        it = pool(alias)
        settle(lambda: it.stats()["in_use"] == it.stats()["waiting"] == 0)
        assert it.stats()["idle"] <= it.size
        if cap is None:
            return
        taken = [it.acquire(timeout=30) for _ in range(cap)]

        def known() -> set[int]:
            with taken[0].cursor() as cursor:
                cursor.execute("SHOW PROCESSLIST")
                return {row[0] for row in cursor.fetchall()}

        ours = {conn.thread_id() for conn in taken}
        assert len(ours) == cap
        settle(lambda: known() == ours)  # the server takes a moment to forget what was closed
        for conn in taken:
            assert not (conn._status_at_rest and conn.transaction_unknown)
            it.release(conn)

    return {
        "assert_sound": assert_sound,
        "connection": connection,
        "connections": connections,
        "contextlib": contextlib,
        "gc": gc,
        "gevent": gevent,
        "one": one,
        "patch": patch,
        "pool": pool,
        "report": report,
        "run": run,
        "settle": settle,
        "time": time,
        "transaction": transaction,
    }


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
