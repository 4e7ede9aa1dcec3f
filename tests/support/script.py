"""A function in a fresh interpreter: gevent's patches, Django on a project, its MySQL pooled.

    assert run_function(project(), "backend/lease_scripts.py", "a_function", 1, 2) == 3

The process of the tests itself stays un-patched. That of the function begins in this same file, so
nothing may be imported here before gevent has patched.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZE, CAP = 2, 4
RESULT = "result "  # begins the line of standard output that has it
TESTS = Path(__file__).resolve().parents[1]


def run_function(
    folder: Path,
    file: str,
    function: str,
    *args: Any,
    gevent: bool = True,
    size: int = SIZE,
    cap: int | None = CAP,
    timeout: float = 30.0,
    pooled: bool = True,
    within: float = 120.0,
    **env: str,
) -> Any:
    """Call a function of a file under tests/, in the project `folder`, and return its result.

    What it takes and returns becomes JSON on its way. It has `within` seconds. `cap` is None for no
    limit. With `gevent=False` nothing is patched by gevent, with `pooled=False` nothing by us: it
    is plain Django on PyMySQL.
    """
    from support.serve import environment

    order = [gevent, pooled, size, cap, timeout, file, function, args]
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
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    return json.loads(results[-1].removeprefix(RESULT)) if results else None


def main(
    gevent: bool,
    pooled: bool,
    size: int,
    cap: int | None,
    timeout: float,
    file: str,
    function: str,
    args: list[Any],
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
    path = TESTS / file
    sys.path.append(str(path.parent))
    result = getattr(importlib.import_module(path.stem), function)(*args)
    if result is not None:
        print(RESULT + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
