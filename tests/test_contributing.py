"""What tests/README.md tells contributors, against the package as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pooled_serve import preflight
from support.package_map import PACKAGE, README, ROOT, WRITER, folders, package_map, written
from support.text import same_lines
from test_architecture import FOLDERS, LEAVES

TEXT = README.read_text()


def test_the_map_is_what_the_modules_say() -> None:
    same_lines(written(), package_map(folders()), "tests/README.md's map of the package", WRITER)


@pytest.mark.parametrize(
    "folder", [path.parent for path in sorted(PACKAGE.glob("*/__init__.py"))], ids=lambda p: p.name
)
def test_a_package_names_its_modules(folder: Path) -> None:
    named = re.findall(r"\b\w+\.(?:py|html)\b", (folder / "__init__.py").read_text())
    there = {path.name for path in folder.iterdir() if path.is_file()} - {"__init__.py"}
    where = f"the docstring of pooled_serve/{folder.name}/__init__.py"
    for name in sorted(there - set(named)):
        pytest.fail(f"{where} does not name {name}: say in a few words what it is", pytrace=False)
    for name in sorted(set(named) - there):
        pytest.fail(f"{where} names {name}, which is not there", pytrace=False)


def test_the_preflight_says_where_each_code_is_checked() -> None:
    """Its docstring lists its modules, each with the codes that it reports."""
    listed = re.findall(r"^\* ([^:]+): (.+(?:\n  .+)*)", str(preflight.__doc__), re.M)
    for path in sorted((PACKAGE / "preflight").glob("*.py")):
        told: set[str] = set()
        for files, text in listed:
            if path.name in files.split(", "):
                for first, last in re.findall(r"(PS\d[\dx]+)(?: to (PS\d+))?", text):
                    low, high = first.replace("x", "0"), (last or first).replace("x", "9")
                    told |= {f"PS{n}" for n in range(int(low[2:]), int(high[2:]) + 1)}
        for code in sorted(set(re.findall(r'"(PS\d{3})\b', path.read_text()))):
            if code not in told:
                where = f"pooled_serve/preflight/{path.name} reports {code}"
                say = f"{where}: say so in the docstring of preflight/__init__.py"
                pytest.fail(say, pytrace=False)


TABLE = TEXT.partition("## Where to change what")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (.+) \|$", TABLE, re.MULTILINE)[1:]  # but for the head


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.partition(" | ")[0])
def test_the_places_to_change_something_are_there(row: str) -> None:
    what, first, then, tests = row.split(" | ")
    for path in re.findall(r"`([\w/-]+\.\w+)`", f"{first} {then}"):
        assert (PACKAGE / path).is_file() or (ROOT / path).is_file(), lacks(what, path)
    for path in re.findall(r"tests/[\w/]+\.py", tests):
        assert (ROOT / path).is_file(), lacks(what, path)


def lacks(what: str, path: str) -> str:
    where = "'Where to change what' in tests/README.md"
    return f"there is no {path}: say in the row {what!r} of {where} where that is now"


def test_there_is_a_place_for_each_change() -> None:
    assert len(ROWS) >= 10


def test_the_direction_of_imports_is_the_one_that_holds() -> None:
    said = " ".join(TEXT.split())
    order = " → ".join(f"`{folder}`" for folder in FOLDERS)
    assert order in said, f"tests/README.md, under The package, lacks the order of imports: {order}"
    for leaf in sorted(LEAVES - {"__init__"}):
        say = f"tests/README.md, under The package, lacks `{leaf}` among those that all may import"
        assert f"`{leaf}`" in said, say
