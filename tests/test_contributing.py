"""What tests/README.md tells contributors, against the package as it is."""

from __future__ import annotations

import re

import pytest

from support.package_map import PACKAGE, README, folders, package_map, written
from test_architecture import FOLDERS, LEAVES

TEXT = README.read_text()


def test_the_map_is_what_the_modules_say() -> None:
    assert written() == package_map(folders()), "python tests/support/package_map.py writes it"


@pytest.mark.parametrize("row", re.findall(r"^\| (.+?) \| `", TEXT, re.MULTILINE))
def test_the_places_to_change_something_are_there(row: str) -> None:
    (line,) = re.findall(rf"^\| {re.escape(row)} \| .*$", TEXT, re.MULTILINE)
    for path in re.findall(r"`([\w/]+\.\w+)`", line):
        assert (PACKAGE / path).is_file(), path


def test_there_is_a_place_for_each_of_ten_changes() -> None:
    table = TEXT.partition("## Where to change what")[2].partition("##")[0]
    assert len(re.findall(r"^\| .* \| `", table, re.MULTILINE)) == 10


def test_the_direction_of_imports_is_the_one_that_holds() -> None:
    said = " ".join(TEXT.split())
    assert " → ".join(f"`{folder}`" for folder in FOLDERS) in said
    for leaf in LEAVES - {"__init__"}:
        assert f"`{leaf}`" in said
