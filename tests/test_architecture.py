"""How the package is put together: which folder may import which, and how long a file may be.

Of the tests, too: how long they may be, and that their code is not in strings.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from textwrap import dedent

import pytest

from support.servers import ROOT
from support.text import same_names

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
    if own not in {*FOLDERS, *LEAVES, "__main__"}:
        return  # test_every_folder_has_its_place() says so
    allowed = {"cli"} if own == "__main__" else LEAVES
    if own in FOLDERS:
        allowed = LEAVES | set(FOLDERS[FOLDERS.index(own) + 1 :])
    for other in sorted({folder(name) for name in imports(module)} - {own} - allowed):
        way = "move what it needs to where both may import it, see FOLDERS in this file"
        pytest.fail(f"{shown(module)} imports {other}, which it may not: {way}", pytrace=False)


def test_no_modules_import_each_other() -> None:
    # "from folder import name" runs the folder's __init__, but what that exports is not meant.
    graph = {
        module: {name for name in imports(module) if not name.endswith("__init__")}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " → ".join(map(shown, error.args[1]))
        say = (
            f"these import each other: {circle}: move what two of them need to a module of its own"
        )
        pytest.fail(say, pytrace=False)


def test_every_folder_has_its_place() -> None:
    same_names(
        {folder(module) for module in MODULES},
        {*FOLDERS, *LEAVES, "__main__"},
        lacks="pooled_serve/ has no {}: take it out of FOLDERS or LEAVES in this file",
        surplus="pooled_serve/ has {}: say in FOLDERS or LEAVES in this file who may import it, "
        "and in tests/README.md under The package",
    )


def test_the_pool_knows_nothing_of_databases_and_the_driver_nothing_of_django() -> None:
    foreign = {"pool": {"django", "gunicorn", "pymysql"}, "driver": {"django", "gunicorn"}}
    for module, path in MODULES.items():
        for name in foreign.get(folder(module), ()):
            if f"import {name}" in path.read_text() or f"from {name}" in path.read_text():
                way = "have who calls it pass what it needs, or do it in backend/ or status/"
                pytest.fail(f"{shown(module)} imports {name}: {way}", pytrace=False)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_has_one_job(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    if lines > LONGEST:
        say = f"{shown(module)} has {lines} lines, at most {LONGEST}: split it by job"
        pytest.fail(say, pytrace=False)


def shown(module: str) -> str:
    return str(MODULES[module].relative_to(ROOT))


def test_files_of_tests_are_short_enough_to_be_read() -> None:
    for path in TEST_FILES:
        lines = len(path.read_text().splitlines())
        if lines > LONGEST_TEST:
            name = path.relative_to(ROOT)
            say = f"{name} has {lines} lines, at most {LONGEST_TEST}: split it by what is tested"
            pytest.fail(say, pytrace=False)


def test_code_of_tests_is_in_files_that_ruff_and_mypy_read() -> None:
    """What a test runs in a process, or serves, is a file beside it: *_scripts.py, *_views.py."""
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in TEST_FILES
        for line, text in strings(ast.parse(path.read_text()))
        if len(text.splitlines()) > LONGEST_STRING and is_python(text)
    ]
    if found:
        say = f"tests/{found[0]} has Python in a string, which ruff and mypy do not read: move it "
        pytest.fail(f"{say}to a *_scripts.py or *_views.py beside the test", pytrace=False)


def test_mypy_reads_all_files() -> None:
    """What is only imported it leaves out where the environment has it from another folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    paths = [
        ROOT / path.lstrip("/") for path in project["hatch"]["build"]["targets"]["sdist"]["include"]
    ]
    for path in paths:
        if path.is_dir() and path.name not in project["mypy"]["files"]:
            say = f"add {path.name!r} to files of [tool.mypy] in pyproject.toml"
            pytest.fail(say, pytrace=False)


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
