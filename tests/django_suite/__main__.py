"""Django's own tests as the judge: does one that passes with plain PyMySQL fail with the pool?

    PYTHON tests/django_suite [--django 5.2] [--mode request] [--quick] [labels ...]

runs them with the Django that PYTHON has, or with another one in an environment made for it,
.venv-django-suite-* in the project. Django's source package brings its tests; it is downloaded
with pip and kept below ~/.cache. The server is a private MariaDB, or MySQL with --mysql.

Exits with 0 if no test got worse, with 1 if one did, with 2 if the tests cannot be run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import CalledProcessError
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / "examples")]

from private_database import DatabaseError  # noqa: E402

from support import servers  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pooled-serve-tests"

MODES = {
    "request": (["--gevent", "--pool"], {"POOLED_SERVE_POOL_MODE": "request"}),
    "transaction": (["--gevent", "--pool"], {"POOLED_SERVE_POOL_MODE": "transaction"}),
    "request-threads": (["--pool"], {"POOLED_SERVE_POOL_MODE": "request"}),
}
"""How the pool is run: options of launch.py, and what is added to the environment.

In a worker everything is on gevent. Some of Django's asynchronous tests cannot pass there, with or
without a pool, and from Python 3.13.12 and 3.14.3 on many would never end (see stalls.py); without
gevent they can, and their other threads bypass the pool.
"""

# What uses connections and transactions in ways of its own. Less than three minutes.
QUICK = [
    *("backends", "transactions", "transaction_hooks", "select_for_update", "db_utils"),
    *("basic", "bulk_create", "get_or_create", "raw_query", "multiple_database"),
    *("test_client", "sessions_tests"),
]
DEFAULT = [
    *QUICK,
    *("queries", "update", "delete", "serializers", "aggregation", "prefetch_related"),
    *("async", "cache", "expressions", "introspection", "lookup", "migrations", "schema"),
    *("servers", "test_utils"),
]

EXCUSED = {
    "backends.base.test_base.ConnectionHealthChecksTests": (
        "with CONN_MAX_AGE=None the connection must outlive the request; a pool takes it back"
    ),
    "backends.tests.BackendTestCase.test_unicode_password": (
        "transaction mode connects at the first statement, when the password is right again"
    ),
    "serializers.test_deserialization.TestDeserializer.test_crafted_xml_performance": (
        "it takes times, and fails on a busy machine"
    ),
}
"""Tests, by the beginning of their names, that may fail with the pool, and why."""

OK, FAILED, HANGS, MISSING = "ok", "failed", "hangs", "missing"
BADNESS = {OK: 0, "expected failure": 1, "skipped": 2, FAILED: 3, HANGS: 3, MISSING: 3}
"""A test that is worse with the pool than without is a regression."""

THE_RUN = "the run to its end"
"""Recorded like a test, by suite_runner.py."""


MAX_LISTED = 100  # tests in a list


class Outcome(NamedTuple):
    what: str
    why: str = ""


Outcomes = dict[str, Outcome]


class CannotRun(Exception):
    """str() is one line that says why."""


class Suite:
    """Django's tests, for one Python and one server."""

    def __init__(self, python: Path, tests: Path, server: servers.Server, folder: Path) -> None:
        self.python = python
        self.tests = tests
        self.server = server
        self.folder = folder

    def run(
        self, name: str, labels: list[str], how: Sequence[str] = (), **environment: str
    ) -> Outcomes:
        """Run the tests once; `how` are options of launch.py."""
        record, log = self.folder / f"{name}.jsonl", self.folder / f"{name}.log"
        record.touch()
        command = [self.python, HERE / "launch.py", *how, self.tests / "runtests.py"]
        command += ["--settings=suite_settings", "--parallel=1", "--noinput", "-v0", *labels]
        print(f"{name}: ", end="", flush=True)
        began = time.monotonic()
        with log.open("wb") as output:
            subprocess.run(
                servers.tied_to_us([str(part) for part in command]),
                cwd=self.folder,
                env={
                    **os.environ,
                    "DJANGO_SUITE_SERVER": self.server.url(),
                    "DJANGO_SUITE_RECORD": str(record),
                    "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        outcomes = read(record)
        counts = Counter(end.what for test, end in outcomes.items() if test != THE_RUN)
        numbers = ", ".join(f"{counts[what]} {what}" for what in BADNESS if counts[what])
        print(f"{numbers or 'nothing'} in {time.monotonic() - began:.0f} s")
        if THE_RUN not in outcomes:
            print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n    | ")
        return outcomes


def read(record: Path) -> Outcomes:
    """Of several outcomes of a test, the worst."""
    outcomes: Outcomes = {}
    for line in record.read_text().splitlines():
        test, what, why = json.loads(line)
        if BADNESS[what] >= BADNESS[outcomes.get(test, Outcome(OK)).what]:
            outcomes[test] = Outcome(what, why)
    return outcomes


def failed(outcomes: Outcomes) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome.what == FAILED}


def hanging(outcomes: Outcomes) -> set[str]:
    return {test for test, outcome in outcomes.items() if outcome.what == HANGS}


def worse(before: Outcomes, after: Outcomes) -> set[str]:
    """The tests that ended worse than before, or did not run any more."""
    return {
        test
        for test in before.keys() | after.keys()
        if BADNESS[after.get(test, Outcome(MISSING)).what]
        > BADNESS[before.get(test, Outcome(OK)).what]
    }


def compare(suite: Suite, mode: str, labels: list[str], plain: Outcomes) -> set[str]:
    """Run the tests with the pool, print the difference, and return the regressions."""
    how, environment = MODES[mode]
    pooled = suite.run(mode, labels, how, **environment)
    regressions = worse(plain, pooled)
    by_gevent, left_out = set(), set()
    suspects = regressions & (failed(pooled) | hanging(pooled))
    if suspects and "--gevent" in how:
        # A set-up of a class that fails is recorded as "setUpClass (module.Class)".
        again = sorted({test.split("(")[-1].rstrip(")") for test in suspects})
        alone = suite.run(f"gevent-alone-for-{mode}", again, ["--gevent"])
        left_out = suspects & hanging(pooled) & hanging(alone)
        by_gevent = suspects & failed(pooled) & (failed(alone) | hanging(alone))
    show("failed without the pool too", failed(plain) & failed(pooled), pooled)
    show("failed without the pool only", failed(plain) - failed(pooled), plain)
    show("failed on gevent without the pool too", by_gevent)
    if left_out:
        show("left out, hang on gevent without the pool, too (gevent issue 2213)", left_out)
    regressions -= by_gevent | left_out
    for prefix, reason in EXCUSED.items():
        if excused := {test for test in regressions if test.startswith(prefix)}:
            show(f"excused, {reason}", excused)
            regressions -= excused
    show("regressions", regressions, pooled)
    return regressions


def show(title: str, tests: set[str], outcomes: Outcomes | None = None) -> None:
    """Print each test with its outcome, or without outcomes how many of each class."""
    print(f"  {title}: {len(tests)}")
    if outcomes is None:
        for name, count in sorted(Counter(test.rpartition(".")[0] for test in tests).items()):
            print(f"    {count} of {name}")
        return
    for test in sorted(tests)[:MAX_LISTED]:
        outcome = outcomes.get(test, Outcome(MISSING))
        why = " ".join(outcome.why.split())[:200]
        print(f"    {test}: {outcome.what}{why and f' ({why})'}")
    if len(tests) > MAX_LISTED:
        print(f"    ... and {len(tests) - MAX_LISTED} more")


def environment_for(django: str) -> Path:
    """The Python of an environment that has this Django, made at the first call."""
    folder = ROOT / f".venv-django-suite-{sys.version_info[0]}.{sys.version_info[1]}-{django}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making {folder.name}")
        requirement = f"django=={django}" if django.count(".") > 1 else f"django=={django}.*"
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-e", f"{ROOT}[rsa]", requirement], check=True)
        (folder / "complete").touch()
    return python


def django_tests(python: Path) -> Path:
    """The folder of the tests that belong to the Django of this Python."""
    ask = [str(python), "-c", "import django; print(django.__version__)"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    tests = CACHE / f"django-{version}" / "tests"
    if tests.exists():
        return tests
    print(f"downloading the tests of Django {version}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pip = [str(python), "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary=django", f"--dest={folder}", f"django=={version}"]
        subprocess.run(pip, check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            wanted = [m for m in tar.getmembers() if m.name.split("/")[1:2] == ["tests"]]
            tar.extractall(folder, wanted, filter="data")
        (unpacked,) = Path(folder).glob("*/tests")
        tests.parent.mkdir(exist_ok=True)
        unpacked.rename(tests)
    return tests


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("labels", nargs="*", metavar="label", help="as for Django's runtests.py")
    add("--django", metavar="VERSION", help="5.2, 6.1.3, ...; default: the one PYTHON has")
    add("--mode", help=f"of {', '.join(MODES)}, with commas between; default: all")
    add("--mysql", action="store_true", help="on MySQL, not MariaDB")
    add("--quick", action="store_true", help="only what takes less than three minutes")
    add("--all", action="store_true", help="all of Django's tests, which takes half an hour")
    add("--keep", action="store_true", help="keep the logs, and say where")
    args = parser.parse_args()
    modes = args.mode.split(",") if args.mode else list(MODES)
    if unknown := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--mode: there is no {', '.join(unknown)}, only {', '.join(MODES)}")
    labels = args.labels or (QUICK if args.quick else [] if args.all else DEFAULT)

    python = environment_for(args.django) if args.django else Path(sys.executable)
    tests = django_tests(python)
    start = servers.mysql if args.mysql else servers.mariadb
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="django-suite-"))
        if args.keep:
            stack.callback(print, f"the logs are in {folder}")
        else:
            stack.callback(shutil.rmtree, folder)
        server = stack.enter_context(start(folder / "server"))
        # Some tests write into their own folder; two runs at once must not share it.
        own = shutil.copytree(tests, folder / "tests")
        suite = Suite(python, own, server, folder)
        version = server.admin.query("SELECT VERSION() AS version")[0]["version"]
        print(f"{tests.parent.name}, Python {python}, server {version}")
        plain = suite.run("plain", labels)
        if THE_RUN not in plain:
            raise CannotRun("without the pool the tests did not run to their end")
        if any(test.startswith("unittest.loader._FailedTest") for test in plain):
            raise CannotRun("some labels name no tests")
        regressions = [compare(suite, mode, labels, plain) for mode in modes]
    return int(any(regressions))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CannotRun, DatabaseError, servers.ServerMissing, CalledProcessError) as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
