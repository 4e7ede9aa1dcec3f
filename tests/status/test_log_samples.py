"""The documents' samples of the log, and the tests' patterns for it, against the code's formats."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from pooled_serve.status import pool_log
from support import log_lines
from support.log_formats import FOREIGN, can_be_printed, formats, nearest, what_cannot
from support.package_map import ROOT

SAMPLE = re.compile(r"^\[(?:INFO|WARNING|ERROR|CRITICAL)\] .+(?:\n  .+)*$", re.MULTILINE)


def samples() -> Iterator[tuple[str, str]]:
    """Each line of the log in a document, with where it is."""
    for path in (*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob(".github/*.md")):
        text = path.read_text()
        for match in SAMPLE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}", match[0]


SAMPLES = dict(samples())


@pytest.mark.parametrize("place", SAMPLES)
def test_the_code_can_print_each_line_that_the_documents_show(place: str) -> None:
    if not can_be_printed(without_level(SAMPLES[place])):
        pytest.fail(complaint(place, SAMPLES[place]), pytrace=False)


def without_level(line: str) -> str:
    return line.partition("] ")[2]


def complaint(place: str, sample: str) -> str:
    part = what_cannot(without_level(sample))
    like = nearest(part)
    return (
        f"{place} shows what the log cannot say any more: {part!r}\n  in {sample!r}\n"
        f"  the nearest that it can, {like.place}: {like.text!r}\n"
        f"  → write the sample as it is printed now"
    )


def test_the_documents_show_lines_of_the_log() -> None:
    assert len(SAMPLES) >= 20
    for pressure in pool_log.PRESSURES:
        assert any(pressure in sample for sample in SAMPLES.values()), pressure


@pytest.mark.parametrize(
    "name", [name for name in vars(log_lines) if name.isupper() and name[0] != "_"]
)
def test_the_patterns_of_the_tests_are_what_the_log_says(name: str) -> None:
    """Else a test that awaits one would wait in vain, and one that forbids it would see nothing."""
    said = getattr(log_lines, name)
    text = said if isinstance(said, str) else said.pattern
    shown = [line for line in SAMPLES.values() if can_be_printed(without_level(line))]
    if isinstance(said, str):
        found = any(said in line for line in (*shown, *(form.text for form in formats())))
    else:
        found = any(map(said.search, shown))
    if not found and len(shown) < len(SAMPLES):
        pytest.skip("samples that cannot be printed any more come first: see the failure of each")
    if not found:
        like = nearest(text)
        pytest.fail(
            f"{name} in tests/support/log_lines.py is what the log does not say: {text!r}\n"
            f"  the nearest that it says, {like.place}: {like.text!r}\n"
            f"  → write the pattern as the line is printed now",
            pytrace=False,
        )


@pytest.mark.parametrize("place", SAMPLES)
def test_a_sample_with_another_word_is_named(place: str) -> None:
    sample = SAMPLES[place]
    own = FOREIGN.sub("", without_level(sample))  # the log's own words
    words = [word.strip(",;:()") for word in own.split()]
    words = [word for word in words if re.fullmatch("[a-z]{4,}", word)]
    word = words[len(words) // 2]
    changed = re.sub(rf"(?<=[ (]){word}(?=[ ,;:)\n]|$)", "xyzzy", sample)
    assert not can_be_printed(without_level(changed)), changed
    what, whole, like, remedy = complaint(place, changed).split("\n  ")
    assert what.startswith(f"{place} shows what the log cannot say any more: "), what
    assert "xyzzy" in whole
    assert re.match(r"the nearest that it can, pooled_serve/[\w/]+\.py:(\d+| [A-Z_]+): ", like)
    assert remedy == "→ write the sample as it is printed now"


RUN = re.compile(r"(?<![A-Za-z.-])[a-z]{2,}(?: [a-z]{2,}){2,}")
"""Three words and more, which are no accident."""

OTHERS = {"most recent call last", "in worker process", "denied for user"}
OTHERS |= {"only in the worker", "hook has run"}
"""What Python, Gunicorn, a server or a test's own project says."""


def awaited() -> Iterator[tuple[str, str]]:
    """What tests wait for in a log, or look for in it, with where: in words."""
    for path in sorted(ROOT.glob("tests/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            what: ast.expr | None = None
            match node:
                case ast.Call(args=[first, *_]) if _name(node) == "wait_for_log":
                    what = first
                case ast.Compare(left=left, comparators=[log]):
                    what = left if _name(log) in ("log", "wait_for_log") else None
            for each in ast.walk(what) if what else ():
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    for run in RUN.findall(each.value):
                        yield f"{path.relative_to(ROOT)}:{each.lineno}", run


def _name(node: ast.expr) -> str:
    match node:
        case ast.Call(func=function):
            return _name(function)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def test_what_tests_look_for_in_a_log_is_in_the_code() -> None:
    """A test that takes minutes would be the first to find out that a word has changed."""
    found = [(place, run) for place, run in awaited() if run not in OTHERS]
    assert len(found) > 20
    said = [form.text for form in formats()]
    for place, run in found:
        words = run.split()
        # The first and the last may be in a hole.
        parts = {run, " ".join(words[1:]), " ".join(words[:-1])} if len(words) > 3 else {run}
        if not any(part in text for text in said for part in parts):
            like = nearest(run)
            pytest.fail(
                f"{place} looks in a log for what the log does not say: {run!r}\n"
                f"  the nearest that it says, {like.place}: {like.text!r}\n"
                f"  → write it as it is printed now, or into tests/support/log_lines.py if several "
                f"tests look for it; what others say is in OTHERS here",
                pytrace=False,
            )
