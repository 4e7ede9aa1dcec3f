"""What test_registry.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from support.inside import assert_sound, connection, connections, one, patch, pool, run, settle


def each_mysql_database_has_a_pool_and_others_have_none() -> Any:
    names = [one("SELECT DATABASE()"), one("SELECT DATABASE()", alias="other")]
    names.append(one("SELECT 1", alias="small"))
    found = [names, sorted(patch.pools()), pool().stats()["in_use"]]
    assert type(connections["small"]).__module__ == "django.db.backends.sqlite3.base"
    assert pool() is not pool("other")
    patch.end_request()
    assert_sound()
    assert_sound("other")
    return found


def an_engine_built_on_djangos_is_pooled_and_keeps_its_ways() -> None:
    from mysite.engine.base import DatabaseWrapper  # type: ignore[import-not-found]

    for _ in range(3):
        assert one("SELECT @own") == "set"
        assert isinstance(connections["default"], DatabaseWrapper)
        patch.end_request()
    assert pool().stats()["opened_total"] == DatabaseWrapper.opened == 1, DatabaseWrapper.opened
    assert_sound()


def an_engine_that_connects_by_itself_is_told_so_and_costs_no_slot() -> None:
    for _ in range(3):
        try:
            run("SELECT 1")
        except ImproperlyConfigured as error:
            assert "mysite.engine" in str(error)
        else:
            raise AssertionError("pooled")
        settle(lambda: not pool()._backoff.seconds_left)  # or the next would not try
    assert pool().stats()["in_use"] == 0


def a_database_that_is_renamed_gets_a_new_pool() -> Any:
    names = [one("SELECT DATABASE()")]
    connection.close()
    connection.settings_dict["NAME"] = "test_" + names[0]  # as the test runner does
    names.append(one("SELECT DATABASE()"))
    connection.close()
    connection.settings_dict["NAME"] = names[0]
    names.append(one("SELECT DATABASE()"))
    assert_sound()
    return names


def is_loaded(module: str) -> bool:
    return module in sys.modules
