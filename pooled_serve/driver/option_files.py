"""Option files (my.cnf), as MySQL's and MariaDB's own clients read them.

PyMySQL reads one group of one file, with Python's parser for INI files: it fails at an !include
before the first group and at an option that is set twice, and knows no escapes. The rules here are
those of "Using Option Files" in MySQL's manual, with one exception: a "#" inside a value begins a
comment only after a space, because MariaDB's clients accept a "#" in a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DEFAULT_FILES = ("/etc/my.cnf", "/etc/mysql/my.cnf", "~/.my.cnf")
"""What is read for a group when no file is named."""

GROUPS = ("client", "client-server", "client-mariadb")
"""The groups that are always read; the last two are MariaDB's."""

_SYNONYMS = {"db": "database", "passwd": "password", "unix-socket": "socket"}
"""Names that MariaDB's client library takes for another."""

_DEEPEST = 10  # files that include each other must come to an end
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "r": "\r", "s": " ", "\\": "\\"}
_QUOTED = re.compile(r"""(["'])(.*?)\1\s*(?:#.*)?$""")


class Option(NamedTuple):
    """A line of an option file."""

    file: str  # the line is in; not the one that includes it
    group: str  # empty before the first
    name: str  # in lower case with dashes; empty for the line that begins a group
    value: str | None = None  # without "=" there is none
    cut: bool = False  # whether a comment was taken from the value, which had no quotes


def options(file: str) -> Iterator[Option]:
    """Yields all lines of a file and of those that it includes, whatever their group is."""
    yield from _lines(os.path.expanduser(file), 1)


def groups_read(group: str | None = None) -> set[str]:
    """Returns the groups that count, with the one that OPTIONS may name."""
    return {*GROUPS, group} if group else set(GROUPS)


def read(files: Iterable[str], group: str | None = None) -> dict[str, str | None]:
    """Returns the options of the client's groups, and of one more. Of two values the last counts.

    Names are in lower case with dashes. An option without "=" has None. Files that cannot be read
    are left out, as both drivers do.
    """
    groups = groups_read(group)
    found = (option for file in files for option in options(file))
    return {option.name: option.value for option in found if option.name and option.group in groups}


def unreadable(file: str) -> bool:
    """Whether a file is left out, because it does not exist or this user may not read it."""
    return not os.access(os.path.expanduser(file), os.R_OK)


def _lines(file: str, depth: int) -> Iterator[Option]:
    try:
        text = Path(file).read_text(errors="surrogateescape")
    except OSError:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line.startswith("!"):
            if depth < _DEEPEST:
                for included in _included(line):
                    yield from _lines(included, depth + 1)
        elif line.startswith("["):
            section = line[1:].partition("]")[0].strip()
            yield Option(file, section, "")
        else:
            name, equals, text = line.partition("=")
            name = name.strip().lower().replace("_", "-")
            value, cut = _value(text.strip()) if equals else (None, False)
            yield Option(file, section, _SYNONYMS.get(name, name), value, cut)


def _included(line: str) -> list[str]:
    word, _, path = line.partition(" ")
    if word == "!includedir":
        return sorted(map(str, Path(path.strip()).glob("*.cnf")))
    return [path.strip()] if word == "!include" else []


def _value(text: str) -> tuple[str, bool]:
    """Returns what counts of a value, and whether it ends before a comment without quotes."""
    quoted = _QUOTED.match(text)
    bare, *comment = re.split(r"\s#", text, maxsplit=1)
    text = quoted.group(2) if quoted else bare.rstrip()
    value = re.sub(r"\\([btnrs\\])", lambda found: _ESCAPES[found.group(1)], text)
    return value, bool(comment) and not quoted
