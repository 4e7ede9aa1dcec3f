"""How the package is put together: which folder may import which, and how long a file may be.

Of the tests, too: how long they may be, and that their code is not in strings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from textwrap import dedent

import pytest

from support.servers import ROOT

PACKAGE = ROOT / "pooled_serve"
TESTS = ROOT / "tests"
TEST_FILES = sorted(TESTS.rglob("*.py"))
LONGEST, LONGEST_TEST, LONGEST_STRING = 450, 600, 15

# Each may import those after it, and all of them the leaves.
FOLDERS = ("cli", "serve", "pooling", "preflight", "backend", "status", "driver", "pool")
LEAVES = {
    "__init__",
    "compat",
    "errors",
    "launcher",
    "options",
    "pool_plan",
    "problems",
    "tls",
    "tuning",
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.stat().st_size
}


def folder(module: str) -> str:
    """The part of the package that a module belongs to: a folder, or a file beside them."""
    return module.partition(".")[0]


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere but for types alone."""
    found = set()
    for node in _run_time_nodes(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("pooled_serve") for alias in node.names), module
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("pooled_serve."):
            where = str(node.module).removeprefix("pooled_serve").removeprefix(".")
            for alias in node.names:
                inside = f"{where}.{alias.name}".removeprefix(".")
                package = f"{where}.__init__".removeprefix(".")
                found.add(next(name for name in (inside, where, package) if name in MODULES))
    return found


def _run_time_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        nodes += [node, *_run_time_nodes(node)]
    return nodes


@pytest.mark.parametrize("module", MODULES)
def test_folders_import_what_comes_after_them(module: str) -> None:
    own = folder(module)
    others = {folder(name) for name in imports(module)} - {own}
    if own == "__main__":
        assert others == {"cli"}
    elif own in LEAVES:
        assert others <= LEAVES
    else:
        assert others <= LEAVES | set(FOLDERS[FOLDERS.index(own) + 1 :])


def test_no_modules_import_each_other() -> None:
    # "from folder import name" runs the folder's __init__, but what that exports is not meant.
    graph = {
        module: {name for name in imports(module) if not name.endswith("__init__")}
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_every_folder_has_its_place() -> None:
    assert {folder(module) for module in MODULES} == {*FOLDERS, *LEAVES, "__main__"}


def test_the_pool_knows_nothing_of_databases_and_the_driver_nothing_of_django() -> None:
    foreign = {"pool": {"django", "gunicorn", "pymysql"}, "driver": {"django", "gunicorn"}}
    for module, path in MODULES.items():
        for name in foreign.get(folder(module), ()):
            assert f"import {name}" not in path.read_text(), module
            assert f"from {name}" not in path.read_text(), module


@pytest.mark.parametrize("module", MODULES)
def test_a_file_has_one_job(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST, Path(MODULES[module]).name


def test_files_of_tests_are_short_enough_to_be_read() -> None:
    long = {path.name for path in TEST_FILES if len(path.read_text().splitlines()) > LONGEST_TEST}
    assert long == set()


def test_code_of_tests_is_in_files_that_ruff_and_mypy_read() -> None:
    """What a test runs in a process, or serves, is a file beside it: *_scripts.py, *_views.py."""
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in TEST_FILES
        for line, text in strings(ast.parse(path.read_text()))
        if len(text.splitlines()) > LONGEST_STRING and is_python(text)
    ]
    assert found == []


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Those that are no docstrings, and the lines that they begin in."""
    nodes = list(ast.walk(tree))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
            yield node.lineno, dedent("".join(map(str, parts))).strip()
        elif isinstance(node, ast.Constant) and node not in docstrings:
            yield node.lineno, dedent(str(node.value)).strip()


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_code_in_a_string_is_told_from_other_text() -> None:
    source = """
def test(): "Docstrings do not count."
views = "    def one(request):\\n        return 1"
said = "one request"
"""
    assert [is_python(text) for _, text in strings(ast.parse(source))] == [True, False]
