"""Looking for things in what programs print and files say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from difflib import ndiff

import pytest


def find(pattern: str, text: str, flags: int = 0) -> re.Match[str]:
    """The first match of a pattern. Fails, and shows the text, if there is none."""
    match = re.search(pattern, text, flags)
    assert match, f"no {pattern!r} in:\n{text}"
    return match


def same_names(told: Iterable[str], real: Iterable[str], *, lacks: str, surplus: str) -> None:
    """Fails unless both have the same names, each as often. The two messages have a {} for one."""
    once, all_real = Counter(told), Counter(real)
    said = [lacks.format(name) for name in sorted((all_real - once).elements())]
    said += [surplus.format(name) for name in sorted((once - all_real).elements())]
    if said:
        pytest.fail("\n".join(said), pytrace=False)


def same_lines(told: str, real: str, what: str, writer: str) -> None:
    """Fails unless the texts are the same, and shows the lines that differ.

    :param writer: the command that writes the real one.
    """
    lines = ndiff(told.splitlines(), real.splitlines())
    changed = [line for line in lines if line.startswith(("- ", "+ "))]
    if changed:
        shown = "\n".join(changed)
        pytest.fail(f"{what} is not what the code says: {writer}\n{shown}", pytrace=False)
