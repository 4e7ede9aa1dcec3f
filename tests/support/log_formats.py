"""What the package can print: the formats in its code, and whether a text is made of them."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from support.package_map import PACKAGE, ROOT

ANYTHING, NUMBER, QUOTED = r"(.*?)", r"(?:-?\d+(?:\.\d+)?)", r"""(?:'[^']*'|"[^"]*")"""

HOLE = re.compile(r"%(?:[-#0 +]*\d*(?:\.\d+)?([srdgf]))|\{[^{}]*?(?::([^{}]*))?\}")
"""In a text for %, or for format()."""

SEPARATORS = re.compile(r", |: |; |\n| \(")
"""Where the code joins texts."""

COUNTED = re.compile(r"\d+ (\w+?)s?")
IN_PARENTHESES = re.compile(r"\((.+)\)")
"""Texts in which the code has the words, and what is around them is in no text."""

VALUE = re.compile(r"(?:[A-Z]+ )?[^\s,;]*[\d/<][^\s,;]*")
"""What is no word of the code's: a number with its unit, a path, a request."""

SUBJECT = re.compile(r"(?:pool|database) '\w+'")
WORD = re.compile(r"[A-Za-z]{2,}")

FOREIGN = re.compile(
    r"Can't connect to MySQL server on '[\w.]+' \(\[Errno \d+\] [\w ]+\)(?: \(2003\))?"
    r"|\(2003, \".+\"\)"
    r"|Lost connection to MySQL server during query \(2013\)"
    r"|Too many connections \(1040\)"
    r"|Access denied for user '\w+'@'[\w-]+' \(using password: YES\) \(1045\)"
    r"|totals"
)
"""What the log quotes: the words of servers and PyMySQL, and a function of a project's."""


@dataclass(frozen=True)
class Format:
    """A text of the code that has holes, or none."""

    text: str
    pattern: re.Pattern[str]
    literal: str
    """The longest piece without a hole."""
    place: str


def _format(parts: list[str | None], place: str) -> Format | None:
    """Of literal text that may have holes, and None for a hole that may be anything."""
    pattern, text, literals = "", "", [""]
    for part in parts:
        if part is None:
            pattern, text = pattern + ANYTHING, text + "…"
            literals.append("")
            continue
        end = 0
        for hole in HOLE.finditer(part):
            before = part[end : hole.start()]
            kind = hole[1] or (hole[2] or "s")[-1:]
            pattern += re.escape(before)
            pattern += {"r": QUOTED, "d": NUMBER, "g": NUMBER, "f": NUMBER}.get(kind, ANYTHING)
            literals[-1] += before
            literals.append("")
            end = hole.end()
        pattern += re.escape(part[end:])
        literals[-1] += part[end:]
        text += part
    longest = max(literals, key=len)
    if not re.search("[A-Za-z]", longest):
        return None  # it would be good for anything
    return Format(text, re.compile(pattern, re.DOTALL), longest, place)


def _formats_of(tree: ast.AST, path: str) -> Iterator[Format | None]:
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # and no text that anybody prints
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield _format([node.value], f"{path}:{node.lineno}")
        elif isinstance(node, ast.JoinedStr):
            parts: list[str | None] = []
            for value in node.values:
                if isinstance(value, ast.Constant):
                    parts.append(str(value.value))
                elif isinstance(value, ast.FormattedValue):
                    parts.append("%r" if value.conversion == ord("r") else None)
            yield _format(parts, f"{path}:{node.lineno}")


@cache
def formats() -> tuple[Format, ...]:
    """All of the package's, and the texts that its status modules make of others when imported."""
    found = list[Format | None]()
    for path in sorted(PACKAGE.rglob("*.py")):
        found += _formats_of(ast.parse(path.read_text()), f"{path.relative_to(ROOT)}")
    for path in sorted((PACKAGE / "status").glob("[a-z]*.py")):
        for name, value in vars(import_module(f"pooled_serve.status.{path.stem}")).items():
            if name.isupper() and isinstance(value, str):
                found.append(_format([value], f"{path.relative_to(ROOT)}: {name}"))
    return tuple(one for one in found if one)


@cache
def can_be_printed(text: str) -> bool:
    """Whether a text is made of formats, of values, and of what the log quotes."""
    bare = text.strip()
    if not bare or VALUE.fullmatch(bare) or FOREIGN.fullmatch(bare):
        return True
    for inner in (COUNTED, IN_PARENTHESES):
        if (found := inner.fullmatch(bare)) and can_be_printed(found[1]):
            return True
    for _, match in _matches(text):
        if all(can_be_printed(hole) for hole in match.groups()):
            return True
    return any(
        can_be_printed(text[: at.start()])
        and (can_be_printed(text[at.end() :]) or can_be_printed(text[at.start() :]))
        for at in SEPARATORS.finditer(text, 1)
    )


def _matches(text: str) -> Iterator[tuple[Format, re.Match[str]]]:
    for form in formats():
        if form.literal in text and (match := form.pattern.fullmatch(text)):
            yield form, match


def what_cannot(text: str) -> str:
    """The part of a text that cannot be printed any more."""
    matches = [found for found in _matches(text) if len(found[0].literal) > min(20, len(text) / 2)]
    if matches:
        _, match = max(matches, key=lambda found: len(found[0].literal))
        return next(what_cannot(hole) for hole in match.groups() if not can_be_printed(hole))
    begin, at = 0, SEPARATORS.search(text)
    while at:
        cuts = [*SEPARATORS.finditer(text, begin), None]
        pieces = [(text[begin : cut.start() if cut else len(text)], cut) for cut in cuts]
        good = [(piece, cut) for piece, cut in pieces if _is_known(piece)]
        if not good:
            known_before = not SUBJECT.fullmatch(text[:begin].rstrip(" :")) and begin
            return pieces[0][0] if known_before else text
        at = good[-1][1]
        begin = at.end() if at else begin
    return text


def _is_known(piece: str) -> bool:
    return bool(SUBJECT.fullmatch(piece)) or can_be_printed(piece.rstrip(")"))


def nearest(text: str) -> Format:
    """The format that shares most of its words with a text."""
    words = set(WORD.findall(text))

    def likeness(form: Format) -> tuple[float, float]:
        others = set(WORD.findall(form.text))
        alike = difflib.SequenceMatcher(None, form.text, text, autojunk=False)
        return len(words & others) / max(1, len(words | others)), alike.quick_ratio()

    return max(formats(), key=likeness)
