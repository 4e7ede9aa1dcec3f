"""A Django, PyMySQL or gunicorn that has moved what pooled-serve plugs into."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, TypeGuard

import pymysql
import pytest

from conftest import MakeProject
from pooled_serve import compat
from pooled_serve.errors import EXIT_PROJECT, StartupError
from support.command import run
from support.django_project import APP
from support.servers import ROOT

SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SIGNATURES = [(key, *row) for key, rows in compat.SIGNATURES.items() for row in rows]
ATTRIBUTES = [(key, *row) for key, rows in compat.ATTRIBUTES.items() for row in rows]
PLACES = list(dict.fromkeys((key, place) for key, place, _ in (*SIGNATURES, *ATTRIBUTES)))

# Loaded before gevent has patched, Django is a problem by itself.
PATCHED = "from gevent import monkey; monkey.patch_all(); "

# Run at the start of the interpreter, it makes of what is installed a version yet to come.
FUTURES = {
    "another parameter of Django's": (
        f"""
        {PATCHED}
        from django.db.utils import ConnectionHandler
        ConnectionHandler.create_connection = lambda self, alias, using: None
        """,
        "django",
        "ConnectionHandler.create_connection takes (self, alias, using), not (self, alias)",
    ),
    "another parameter of PyMySQL's": (
        """
        from pymysql.connections import Connection
        Connection.query = lambda self, sql, unbuffered=False, timeout=None: None
        """,
        "pymysql",
        "Connection.query takes (self, sql, unbuffered, timeout), not (self, sql, unbuffered)",
    ),
    "a method of PyMySQL's is gone": (
        "from pymysql.connections import Connection; del Connection._write_bytes",
        "pymysql",
        "there is no Connection._write_bytes(self, data)",
    ),
    "a name of PyMySQL's is gone": (
        "from pymysql.constants import COMMAND; del COMMAND.COM_QUERY",
        "pymysql",
        "cannot import name 'COM_QUERY'",
    ),
    "a name of Django's is gone": (
        f"{PATCHED}import django.db.utils; del django.db.utils.load_backend",
        "django",
        "cannot import name 'load_backend'",
    ),
    "a method of gunicorn's is gone": (
        "from gunicorn.workers.base_async import AsyncWorker; del AsyncWorker.handle_http2_request",
        "gunicorn",
        "there is no GeventWorker.handle_http2_request",
    ),
    "a setting of gunicorn's is read in another way": (
        """
        from gunicorn.config import Config
        Config.set = lambda self, name, value, source: None
        """,
        "gunicorn",
        "Config.set takes (self, name, value, source), not (self, name, value)",
    ),
    "a name in gunicorn's worker is gone": (
        """
        from gunicorn.workers.ggevent import GeventWorker
        GeventWorker.run = lambda self: print(self.alive, self.sockets)
        """,
        "gunicorn",
        "GeventWorker.run knows no StreamServer",
    ),
    "gunicorn's application is gone": (
        "import sys; sys.modules['gunicorn.app.wsgiapp'] = None",
        "gunicorn",
        "import of gunicorn.app.wsgiapp halted",
    ),
    "an attribute of PyMySQL's is gone": (
        """
        from pymysql.connections import Connection
        Connection._write_bytes = lambda self, data: self._socket.sendall(data)
        """,
        "pymysql",
        "Connection._write_bytes knows no _sock",
    ),
    "gunicorn's gevent worker is gone": (
        "import sys; sys.modules['gunicorn.workers.ggevent'] = None",
        "gunicorn",
        "import of gunicorn.workers.ggevent halted",
    ),
}


@pytest.mark.parametrize("future", FUTURES.values(), ids=FUTURES.keys())
def test_it_is_told_of_in_one_line_before_anything_starts(
    project: MakeProject, tmp_path: Path, future: tuple[str, str, str]
) -> None:
    source, package, says = future
    (tmp_path / "sitecustomize.py").write_text(dedent(source))
    # Without its settings, a Django that is there before gevent has patched is a problem by itself.
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    done = run(APP, cwd=project(databases=SQLITE), env=env)
    series, installed = compat.NEWEST[package], version(package)
    wanted = f"<{installed}" if installed.startswith(f"{series}.") else f"=={series}.*"
    remedy = f"pip install '{package}{wanted}', or a newer pooled-serve"
    done.assert_one_problem("PS504", EXIT_PROJECT, says, remedy)
    assert f"{package} {version(package)} does not fit" in done.output
    assert "Starting gunicorn" not in done.output


def test_apply_patch_tells_of_it_too(tmp_path: Path) -> None:
    source = dedent("""
        from pymysql.connections import Connection
        Connection._force_close = lambda self, why: None
        from pooled_serve import pooling
        pooling.apply_patch()
    """)
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert "StartupError: PS504 pymysql" in done.output
    assert "Connection._force_close takes (self, why), not (self)" in done.output


def test_wrappers_that_are_kept_elsewhere_are_told_of(tmp_path: Path) -> None:
    source = dedent("""
        from types import SimpleNamespace
        from django.db import connections
        connections._connections = SimpleNamespace(_data={})
        from pooled_serve import pooling
        pooling.apply_patch()
    """)
    done = run("-c", source, cwd=tmp_path, command=(sys.executable,))
    assert "StartupError: PS504 asgiref" in done.output
    assert "there is no threading.local in Local._storage" in done.output


def test_a_gevent_that_is_too_old_for_gunicorn_is_told_of() -> None:
    with (
        pytest.raises(StartupError, match=r"PS504 gevent .* 24\.10\.1 or higher"),
        compat.imports(),
    ):
        raise RuntimeError("gevent worker requires gevent 24.10.1 or higher")


@pytest.mark.parametrize(("key", "place"), PLACES)
def test_each_place_is_there(key: str, place: str) -> None:
    """In the versions that are installed."""
    try:
        pkgutil.resolve_name(place)
    except (ImportError, AttributeError):
        lists = "SIGNATURES or ATTRIBUTES of pooled_serve/compat.py"
        pytest.fail(f"{lists} name {place}, which {key} does not have", pytrace=False)


@pytest.mark.parametrize(("key", "place"), PLACES)
def test_each_place_is_looked_at(key: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.replace(":", "."), lambda here, it_is, different: None)
    with pytest.raises(StartupError, match=r"different|knows no|there is no"):
        compat.check(key)


@pytest.mark.parametrize(("key", "place"), PLACES)
def test_no_place_looks_like_a_wrapper(key: str, place: str) -> None:
    """Or it would not be looked at."""
    found = pkgutil.resolve_name(place)
    parameters = inspect.signature(found).parameters.values()
    assert isinstance(found, type) or all(p.kind is not p.VAR_POSITIONAL for p in parameters)


@pytest.mark.parametrize(("key", "place"), PLACES)
def test_wrappers_of_others_are_none_of_our_business(
    key: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tracing puts them around methods of Django and PyMySQL: functions, or instances."""
    if isinstance(pkgutil.resolve_name(place), type):
        return

    class Wrapper:
        def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    for wrapper in (lambda *args, **kwargs: None, Wrapper()):
        monkeypatch.setattr(place.replace(":", "."), wrapper)
        compat.check(key)


# --- Whether the tables are complete -----------------------------------------------------------

MODULES = {
    ".".join(path.relative_to(ROOT / "pooled_serve").with_suffix("").parts): path
    for path in (ROOT / "pooled_serve").rglob("*.py")
    if not path.stem.startswith("__")
}
OTHERS = ("asgiref", "django", "gevent", "gunicorn", "pymysql")
LISTED = {place.rpartition(":")[2].rpartition(".")[2] for _, place, _ in SIGNATURES}
LISTED |= {name for *_, names in ATTRIBUTES for name in names.split()}
LISTED |= {"_connections", "_storage"}  # see _check_storage()

# In no table, and why.
UNLISTED = {
    "_current_frames": "sys._current_frames() is documented",
    "_exit": "os._exit() is documented",
    "_getframe": "sys._getframe() is documented",
    "_meta": "of Django's models, documented",
    "_has_been_logged": "only written: if Django no longer reads it, its log has more lines",
    "_option_string_actions": "argparse's, not a package's",
    "_replace": "of named tuples, documented",
    "KNOWN_SETTINGS": "imported by name, too",
    "Setting": "its attributes are listed",
    "get_version": "documented",
    "install_as_MySQLdb": "documented",
    "version_info": "what Django asks PyMySQL for, as it would mysqlclient",
    "mysql_server_data": "overridden to save a query; without it nothing calls the override",
}


@pytest.mark.parametrize("module", MODULES)
def test_every_private_attribute_that_is_used_is_listed(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    own = set(own_nodes(module, tree))
    used = {node.attr for node in ast.walk(tree) if is_private(node) and node not in own}
    foreign = used - defined_names()
    for source in sources(module, tree):  # of that name, too, so perhaps the same
        foreign |= used & set(re.findall(r"\b_[a-z]\w*", source))
    assert_listed(foreign, "ATTRIBUTES")


@pytest.mark.parametrize("module", MODULES)
def test_every_name_that_is_replaced_or_looked_up_in_a_module_is_listed(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    found = imported(tree)
    modules = {
        name
        for name, module in found.items()
        # gevent documents what its modules have.
        if type(module) is ModuleType and not module.__name__.startswith("gevent")
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in (found if isinstance(node.ctx, ast.Store) else modules)
    }
    assert_listed(used, "ATTRIBUTES")


def test_every_method_that_overrides_is_listed() -> None:
    found = set()
    for module in MODULES:
        for cls in vars(load(module)).values():
            if isinstance(cls, type) and cls.__module__ == f"pooled_serve.{module}":
                found |= overridden(cls, cls.__mro__)
    wrappers: Any = load("backend.wrappers")
    pooled = wrappers.wrapper_class(wrappers.MySQLWrapper).__mro__
    for cls in pooled:
        if cls.__module__.startswith("pooled_serve."):
            found |= overridden(cls, pooled)
    assert "get_new_connection" in found
    assert_listed(found, "SIGNATURES")


def assert_listed(names: set[str], table: str) -> None:
    for name in sorted(names - LISTED - UNLISTED.keys()):
        pytest.fail(
            f"{table} in pooled_serve/compat.py lacks {name}, which is another package's: add it, "
            "or add it to UNLISTED in this file with the reason",
            pytrace=False,
        )


def test_what_is_unlisted_is_used() -> None:
    text = "".join(path.read_text() for path in MODULES.values())
    assert [name for name in UNLISTED if name not in text] == []


def load(module: str) -> ModuleType:
    pymysql.install_as_MySQLdb()
    return importlib.import_module(f"pooled_serve.{module}")


def is_private(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) is not None


def own_nodes(module: str, tree: ast.AST) -> Iterator[ast.AST]:
    """What classes say of ``self`` that extend nothing, and are no mixins either."""
    for definition in ast.walk(tree):
        if isinstance(definition, ast.ClassDef):
            bases = getattr(load(module), definition.name).__mro__
            nodes = list(ast.walk(definition))
            mixin = any(isinstance(node, ast.Name) and node.id == "super" for node in nodes)
            if not mixin and not any(is_foreign(base.__module__) for base in bases):
                for node in nodes:
                    match node:
                        case ast.Attribute(value=ast.Name(id="self")):
                            yield node


@functools.cache
def defined_names() -> set[str]:
    """What the package calls its own. An annotation without a value defines nothing: so base
    classes of other packages are described."""
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self" | "cls")):
                    found.add(name)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    found.add(name)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                    found.add(name)
    return found


def sources(module: str, tree: ast.AST) -> Iterator[str]:
    """The source of what a module imports and extends, as far as it is Python."""
    classes = [cls for cls in vars(load(module)).values() if isinstance(cls, type)]
    homes = {base.__module__ for cls in classes for base in cls.__mro__}
    homes |= {found.__name__ for found in imported(tree).values() if type(found) is ModuleType}
    for home in filter(is_foreign, homes):
        with contextlib.suppress(OSError, TypeError):  # compiled
            yield inspect.getsource(sys.modules[home])


def imported(tree: ast.AST) -> dict[str, object]:
    """What a module imports from other packages, by the name that it has there."""
    pymysql.install_as_MySQLdb()  # Django's wrapper for MySQL imports it
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and is_foreign(node.module):
            for alias in node.names:
                found[alias.asname or alias.name] = pkgutil.resolve_name(
                    f"{node.module}.{alias.name}"  # which may be a module
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_foreign(alias.name):
                    found[alias.asname or alias.name] = importlib.import_module(alias.name)
    return found


def is_foreign(module: str) -> bool:
    return module.partition(".")[0] in OTHERS


def overridden(cls: type, mro: Sequence[type]) -> set[str]:
    bases = [base for base in mro if is_foreign(base.__module__)]
    names = {name for name in vars(cls) if not (name.startswith("__") and name != "__call__")}
    return {name for name in names for base in bases if name in vars(base)}
