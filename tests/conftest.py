"""Fixtures that start what a test needs, and end it."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Protocol

import hypothesis
import pytest

from support import command, processes, servers
from support.django_project import APP, Views, write_project
from support.script import run_function
from support.serve import Serve
from support.servers import Database, Server
from support.site import VIEWS, Site
from support.torture import TORTURE

# Fixtures of one folder each.
pytest_plugins = ("support.connections", "support.deploy", "support.pools", "support.status")

# How long an example takes says more of what else the machine does than of what is tested.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
hypothesis.settings.register_profile("quick", max_examples=20)

# Servers that go on from test to test. Tests may restart them, so their process ids change.
_lasting: list[Server] = []


# A test with one of these, or with a fixture made of them, starts a process for each case.
STARTED = {"project", "mariadb", "mysql", "engine"}
# So does a test that calls one of these, itself or in a fixture; a quick run knows it by that, too.
STARTING = {command.run, run_function, Serve}
STARTING_NAMES = {"subprocess", "Popen", "fork", "getfixturevalue", "mariadb", "mysql"}
# Of each file, in an everyday run: each such test takes at least a second and a half of CPU.
MOST_SERVING = 8
# Those of the examples are found by where they are.
EXAMPLES = Path(__file__).with_name("examples")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="all that starts no process, and a little"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # The tests run in the background of a shell, and servers would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.quick:
        hypothesis.settings.load_profile("quick")


def pytest_sessionstart() -> None:
    """Without the MariaDB that was asked for, nothing can be said of it."""
    try:
        servers.mariadb_program()
    except servers.ServerMissing as missing:
        pytest.exit(f"skipped, {missing}", returncode=0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without TORTURE, leave out what takes long.

    Of all tests a quarter of the cases that start processes, and of each file a few of those that
    serve: all would take a quarter of an hour. Who names a file or a test gets all of these. With
    --quick it is one of a folder instead.
    """
    if TORTURE:
        return
    skip = pytest.mark.skip(reason="marked slow; runs with TORTURE=1")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)
    quick = config.option.quick
    named = config.args_source is not config.ArgsSource.TESTPATHS or config.option.keyword
    if named and not quick:
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and _starts_processes(item, quick=quick):
            family = str(item.path.parent) if quick else item.nodeid.partition("[")[0]
            cases.setdefault(family, []).append(item)
    left_out: set[pytest.Item] = set()
    for found in cases.values():
        # What runs, by a hash: a regular choice would always take the same server, or mode. Only a
        # quick run has one server, MariaDB, which takes less time to start.
        found.sort(
            key=lambda item: (
                item.get_closest_marker("slow") is not None,
                quick and "mysql" in f"{item.nodeid} {getattr(item, 'fixturenames', '')}",
                _digest(item),
            )
        )
        left_out.update(found[1 if quick else math.ceil(len(found) / 4) :])
    if not quick:
        serving: dict[Path, list[pytest.Item]] = {}
        for item in itertools.chain(*cases.values()):
            if item not in left_out and not item.get_closest_marker("slow") and _serves(item):
                serving.setdefault(item.path, []).append(item)
        for found in serving.values():
            left_out.update(sorted(found, key=_digest)[MOST_SERVING:])
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _digest(item: pytest.Item) -> bytes:
    return hashlib.sha256(item.nodeid.encode()).digest()


def _serves(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and "project" in item.fixturenames


def _starts_processes(item: pytest.Function, *, quick: bool) -> bool:
    if not STARTED.isdisjoint(item.fixturenames):
        return True
    if not quick:
        return False
    definitions = item._fixtureinfo.name2fixturedefs
    fixtures = [each.func for name in item.fixturenames for each in definitions.get(name, ())]
    called = [inspect.unwrap(item.function), *fixtures]
    return EXAMPLES in item.path.parents or any(map(calls_what_starts, called))


@cache
def calls_what_starts(function: object) -> bool:
    """Looks at the names in its code, and in that of the functions beside it that it calls."""
    left, seen = [function], set[object]()
    while left:
        looked_at = left.pop()
        if not isinstance(looked_at, FunctionType) or looked_at in seen:
            continue
        seen.add(looked_at)
        names = set(_names(looked_at.__code__))
        if not names.isdisjoint(STARTING_NAMES):
            return True
        for found in map(looked_at.__globals__.get, names):
            if isinstance(found, FunctionType | type) and found in STARTING:
                return True
            if getattr(found, "__module__", "") == looked_at.__module__:
                left.append(found)
    return False


def _names(code: CodeType) -> Iterator[str]:
    """Those of functions in it, too."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for everyone. Who changes its global settings takes one of `start_mariadb`."""
    yield from lasting_server(servers.mariadb(tmp_path_factory.mktemp("mariadb")))


@pytest.fixture(scope="session")
def mysql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, with TLS and caching_sha2_password, as users of MySQL have it."""
    if os.environ.get("WITHOUT_MYSQL"):
        pytest.skip("WITHOUT_MYSQL is set")
    try:
        # On all addresses, for those who come over IPv6.
        server = servers.mysql(tmp_path_factory.mktemp("mysql"), "--bind-address=*")
    except servers.ServerMissing as missing:
        pytest.skip(str(missing))
    yield from lasting_server(server)


def lasting_server(server: Server) -> Iterator[Server]:
    """For fixtures: a server that no test need stop."""
    with server:
        _lasting.append(server)
        yield server
        _lasting.remove(server)


@pytest.fixture
def start_mariadb(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own: start_mariadb("--max-connections=20")."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(*options: str) -> Server:
            server = servers.mariadb(tmp_path / f"mariadb{next(numbers)}", *options)
            stack.enter_context(server)
            return server

        yield start


class MakeProject(Protocol):
    def __call__(
        self, views: Views = "", *, databases: Mapping[str, Any] | None = None, **sources: str
    ) -> Path: ...


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> MakeProject:
    """Writes a Django project, with a fresh database on `mariadb` unless told otherwise.

    The other arguments are those of write_project().
    """
    numbers = itertools.count(1)

    def make(
        views: Views = "", *, databases: Mapping[str, Any] | None = None, **sources: str
    ) -> Path:
        if databases is None:
            server: Server = request.getfixturevalue("mariadb")
            databases = {"default": server.create_database().django()}
        folder = tmp_path / f"project{next(numbers)}"
        return write_project(folder, databases=databases, views=views, **sources)

    return make


class StartServe(Protocol):
    def __call__(self, project: Path, *args: str, app: str = APP, **options: Any) -> Serve: ...


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> command.Here:
    """The command in this process, in an empty folder."""
    return command.Here(tmp_path, monkeypatch, capsys)


@pytest.fixture
def serve() -> Iterator[StartServe]:
    """Starts pooled-serve in a project: serve(project(VIEWS), "--pool-size", "2").

    The other arguments are those of Serve. At the end, a server that still runs must stop cleanly.
    """
    with ExitStack() as stack:

        def start(project: Path, *args: str, app: str = APP, **options: Any) -> Serve:
            return stack.enter_context(Serve(app, *args, cwd=project, **options))

        yield start


@pytest.fixture
def site(
    project: MakeProject, serve: StartServe, request: pytest.FixtureRequest
) -> Callable[..., Site]:
    """Starts support.site.VIEWS with a cap of 4: site("--pool-timeout", "2").

    `database` is a fresh one on `mariadb` by default, `server` is where it is, `views`, `more`
    databases and the source `django` of settings are added, and what else is given are settings
    of Django's for `database`.
    """

    def start(
        *args: str,
        database: Database | None = None,
        server: Server | None = None,
        cap: int = 4,
        views: str | Path = "",
        django: str = "",
        more: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Site:
        server = server or request.getfixturevalue("mariadb")
        database = database or server.create_database()
        folder = project(
            (VIEWS, views),
            databases={"default": database.django(**settings), **(more or {})},
            settings=django,
        )
        numbers = ("--pool-size", str(cap), "--max-outstanding", str(cap))
        return Site(serve(folder, *numbers, *args), server.admin, database, cap)

    return start


@pytest.fixture
def database(mariadb: Server) -> Database:
    return mariadb.create_database()


@pytest.fixture
def no_aborts(mariadb: Server) -> Iterator[None]:
    """Every connection was closed with a goodbye, and none is left."""
    before = mariadb.admin.aborted_clients()
    yield
    assert mariadb.admin.aborted_clients() == before


@pytest.fixture
def script(project: MakeProject, database: Database, request: pytest.FixtureRequest) -> Any:
    """Calls a function of the test module's SCRIPTS in the process of a project on `database`.

    The keywords are Django's settings for it; see run_function().
    """

    def script(
        function: str, *args: Any, views: Views = "", cap: int | None = 4, **settings: Any
    ) -> Any:
        folder = project(views, databases={"default": database.django(**settings)})
        return run_function(folder, request.module.SCRIPTS, function, *args, cap=cap)

    return script


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """A process that outlives its test is a bug of the server or of the test."""
    before = _children()
    yield
    old = before | {server.pid for server in _lasting}
    if _children() <= old:
        return

    def left() -> set[int]:
        return processes.children(os.getpid()) - old

    with suppress(AssertionError):
        processes.wait_until(lambda: not left(), timeout=10)
    assert not left(), "processes left behind"


def _children() -> set[int]:
    """Ours, also those that have ended and only wait for us to notice.

    A look at all processes takes a hundred times as long: over all tests, half a minute.
    """
    try:
        lists = [(thread / "children").read_text() for thread in Path("/proc/self/task").iterdir()]
    except OSError:  # a thread has just ended, or this kernel does not tell
        return processes.children(os.getpid())
    return {int(pid) for pid in " ".join(lists).split()}
