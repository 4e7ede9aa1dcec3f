"""The map of the package in tests/README.md: for each module, the beginning of its docstring.

    python tests/support/package_map.py

writes it anew, in its own checkout; tests/test_contributing.py fails while it is not what the
modules say.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pooled_serve"
README = ROOT / "tests" / "README.md"

# With the Python that runs the tests: another one may not have what the project needs.
PYTHON = sys.executable.removeprefix(f"{ROOT}/")
WRITER = f"{PYTHON} tests/support/package_map.py"
BEGIN, END = "<!-- tests/support/package_map.py writes this -->\n", "<!-- end of the map -->\n"


def package_map(folders: tuple[str, ...]) -> str:
    """The text between the marks; folders come in this order, and what has none before them."""
    files = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
    lines = [_line(path, path.name) for path in files]
    for folder in folders:
        lines.append(f"{folder + '/':21} {_first_sentence(PACKAGE / folder / '__init__.py')}")
        files = sorted(path for path in (PACKAGE / folder).iterdir() if path.suffix == ".py")
        lines += [_line(path, f"  {path.name}") for path in files if path.name != "__init__.py"]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def folders() -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))


def written() -> str:
    """What tests/README.md has."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def write() -> None:
    readme = README.read_text()
    rewrite(README, readme.replace(BEGIN + written(), BEGIN + package_map(folders())))


def rewrite(path: Path, text: str) -> None:
    """Says what it has done, so that nobody takes one checkout for another."""
    before = path.read_text()
    path.write_text(text)
    print(f"{path}: {'nothing to do' if text == before else 'written'}")


def _line(path: Path, name: str) -> str:
    return f"{name:21} {_first_sentence(path)}"


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=\w)[.:;](?: |$)", paragraph)[0].replace("``", "")


if __name__ == "__main__":
    write()
