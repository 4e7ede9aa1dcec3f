"""Looking for things in what programs print and files say."""

from __future__ import annotations

import re


def find(pattern: str, text: str, flags: int = 0) -> re.Match[str]:
    """The first match of a pattern. Fails, and shows the text, if there is none."""
    match = re.search(pattern, text, flags)
    assert match, f"no {pattern!r} in:\n{text}"
    return match
