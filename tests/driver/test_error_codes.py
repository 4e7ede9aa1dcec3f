"""The table of error codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pymysql.constants import CR, ER
from pymysql.err import OperationalError

from pooled_serve.driver import error_codes
from support.servers import ROOT

UNKNOWN_TO_PYMYSQL = {
    "ACCESS_DENIED_NO_PASSWORD_ERROR",
    "ACCOUNT_HAS_BEEN_LOCKED",
    "ACCOUNT_HAS_BEEN_LOCKED_MARIADB",
    "BLOCKED_BY_PASSWORD_LOCK",
    "CLIENT_INTERACTION_TIMEOUT",
    "CONNECTION_KILLED",
    "PLUGIN_IS_NOT_LOADED",
    "READ_ONLY_MODE",
    "SECURE_TRANSPORT_REQUIRED",
    "SERVER_OFFLINE_MODE",
    "USER_IS_BLOCKED",
}


def codes() -> dict[str, int]:
    return {name: code for name, code in vars(error_codes).items() if isinstance(code, int)}


def test_names_and_numbers_are_pymysqls() -> None:
    theirs = vars(ER) | vars(CR)
    for name, code in codes().items():
        if name in UNKNOWN_TO_PYMYSQL:
            assert name not in theirs, f"PyMySQL has {name}: remove it from UNKNOWN_TO_PYMYSQL here"
            continue
        known = next((each for each, number in theirs.items() if number == code), None)
        advice = f"call it {known}" if known else "add its name to UNKNOWN_TO_PYMYSQL in this file"
        assert theirs.get(name) == code, f"PyMySQL has no {name} = {code}: {advice}"


def test_each_is_used() -> None:
    code = "".join(path.read_text() for path in (ROOT / "pooled_serve").rglob("*.py"))
    for name in codes():
        if len(re.findall(rf"\b{name}\b", code)) < 2:
            pytest.fail(f"nothing uses {name} of driver/error_codes.py", pytrace=False)


def test_names_that_pymysql_lacks_stand_apart() -> None:
    source = Path(error_codes.__file__).read_text()
    apart = source.partition("PyMySQL has no name for.")[2].partition("\n\n")[0]
    assert {line.split(" = ")[0] for line in apart.split("\n") if line} == UNKNOWN_TO_PYMYSQL


def test_no_other_module_writes_such_a_number_or_has_another_name_for_it() -> None:
    for path in (ROOT / "pooled_serve").rglob("*.py"):
        if path.name != "error_codes.py":
            source = path.read_text()
            assert "constants.CR" not in source, path
            assert "constants.ER" not in source, path
            for code in codes().values():
                assert f"case {code}" not in source, path
                assert f"== {code}" not in source, path


def test_a_galera_node_that_is_not_ready_is_known_by_its_words() -> None:
    """Their codes have other meanings, too."""
    unknown, during_commit = error_codes.UNKNOWN_COM_ERROR, error_codes.ERROR_DURING_COMMIT
    for code, text, expected in (
        (unknown, "WSREP has not yet prepared node for application use", True),
        (unknown, "Unknown command", False),
        (during_commit, "... (provider status: Not connected to Primary Component)", True),
        (during_commit, 'Got error 28 "No space left on device" during COMMIT', False),
        (error_codes.SERVER_SHUTDOWN, "WSREP", False),
    ):
        assert error_codes.is_not_ready(OperationalError(code, text)) is expected
