"""A script in a fresh interpreter: gevent's patches, Django on a project, its MySQL pooled.

    assert run_script(project(), "report(one('SELECT 1'))") == 1
    assert run_function(project(), "backend/lease_scripts.py", "a_function", 1, 2) == 3

The process of the tests itself stays un-patched. That of the script is this same file, so nothing
may be imported here before gevent has patched.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

SIZE, CAP = 2, 4
TESTS = Path(__file__).resolve().parents[1]


def run_function(folder: Path, file: str, function: str, *args: Any, **options: Any) -> Any:
    """Call a function of a file under tests/, as run_script() runs a source; return what it did.

    What it takes and returns becomes JSON on its way.
    """
    return _run(folder, ["function", file, function, *args], **options)


def run_script(folder: Path, source: str, **options: Any) -> Any:
    """Run it in a project; return what it gave to report() last. `options` are those of _run().

    It finds the names of INSIDE defined. More than a few lines are for run_function(), so that
    ruff and mypy read them.
    """
    return _run(folder, ["source", dedent(source)], **options)


def _run(
    folder: Path,
    what: list[Any],
    *,
    gevent: bool = True,
    size: int = SIZE,
    cap: int | None = CAP,
    timeout: float = 30.0,
    pooled: bool = True,
    within: float = 120.0,
    **env: str,
) -> Any:
    """Run it in a project, `within` so many seconds.

    `cap` is None for no limit. With `gevent=False` nothing is patched by gevent,
    with `pooled=False` nothing by us: it is plain Django on PyMySQL.
    """
    from support.serve import environment

    order = [gevent, pooled, size, cap, timeout, what]
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
    gevent: bool, pooled: bool, size: int, cap: int | None, timeout: float, what: list[Any]
) -> None:
    if gevent:
        from gevent import monkey

        monkey.patch_all()
    sys.path[0] = os.getcwd()
    sys.path.append(str(TESTS))
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
    match what:
        case ["function", file, function, *args]:
            call(TESTS / file, function, args)
        case ["source", source]:
            exec(compile(source, "<script>", "exec"), names())


def call(file: Path, function: str, args: list[Any]) -> None:
    from support.inside import report

    sys.path.append(str(file.parent))
    result = getattr(importlib.import_module(file.stem), function)(*args)
    if result is not None:
        report(result)


MODULES = ("contextlib", "gc", "gevent", "time")
INSIDE = ("assert_sound", "one", "pool", "report", "run", "settle")
"""What of support.inside scripts find defined."""


def names() -> dict[str, Any]:
    from django.db import connection, connections, transaction

    from pooled_serve.backend import patch
    from support import inside

    return {
        "connection": connection,
        "connections": connections,
        "patch": patch,
        "transaction": transaction,
        **{name: importlib.import_module(name) for name in MODULES},
        **{name: getattr(inside, name) for name in INSIDE},
    }


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
