"""The names of the page's sentences that tests look for, against those that the code gives: a test
that takes minutes would tell of it late, and one that looks for their absence never."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pooled_serve.status
from support.processes import TESTS

CODE = sorted(Path(pooled_serve.status.__file__).parent.glob("*.py"))
AWAIT = {"sentence", "first"}
"""Functions of tests whose second argument is a name."""


def texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def looks_at_names(node: ast.AST) -> bool:
    """As in `x["name"]`, `watch.names()` and `names`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Subscript) and "name" in texts(each.slice):
            return True
        if "names" in (getattr(each, "attr", ""), getattr(each, "id", "")):
            return True
    return False


def looked_for(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the name of each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in AWAIT:
            yield from ((node.lineno, text) for arg in node.args[1:2] for text in texts(arg))
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(looks_at_names, sides)):
                others = (side for side in sides if not looks_at_names(side))
                yield from ((node.lineno, text) for side in others for text in texts(side))


FOUND = {
    f"{path.relative_to(TESTS)}:{line}": name
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    for line, name in looked_for(ast.parse(path.read_text()))
    if " " in name and not name.startswith("GET ")  # else it is the name of something else
}
GIVEN = {text for path in CODE for text in texts(ast.parse(path.read_text()))}


@pytest.mark.parametrize("place", FOUND)
def test_a_sentence_has_the_name_that_a_test_looks_for(place: str) -> None:
    if FOUND[place] not in GIVEN:
        say = f"{place} looks for {FOUND[place]!r}, which is no sentence of the page any more"
        pytest.fail(f"{say}: write the name that status/ gives it", pytrace=False)


def test_what_tests_look_for_is_found() -> None:
    assert {"stuck server", "slow view", "hanging statements"} <= set(FOUND.values())
