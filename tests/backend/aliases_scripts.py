"""What test_aliases.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import gc
from typing import Any

import gevent
from django.db import OperationalError, transaction
from gevent.event import Event
from pymysql.cursors import Cursor

from support.inside import assert_sound, connections, one, patch, pool, run, settle

a: dict[str, Any] = {}
"""The settings of the tenants, filled in by with_tenants(). The first is the project's own."""
b: dict[str, Any] = {}
c: dict[str, Any] = {}


def with_tenants(settings: list[dict[str, Any]], function: str, *args: Any) -> Any:
    for tenant, its in zip((a, b, c), settings, strict=True):
        tenant.update(its)
    return globals()[function](*args)


def swap(**changes: Any) -> None:
    """What packages for tenants do with one alias."""
    connections.databases["tenant"] = {**connections.databases["default"], **changes}
    if hasattr(connections._connections, "tenant"):
        del connections["tenant"]


def tenant(sql: str = "SELECT DATABASE()") -> Any:
    return one(sql, alias="tenant")


def threads_of(user: str) -> int:
    """How many connections a user has, as somebody else sees it."""
    sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = %s"
    return int(one(sql, user, alias="watch"))


def threads() -> int:
    return threads_of(a["USER"])


def add(n: object) -> str:
    alias = f"tenant{n}"
    connections.databases[alias] = {**connections.databases["default"]}
    assert one("SELECT 1", alias=alias) == 1
    return alias


def objects(name: str) -> int:
    """How many there are of a class of this name."""
    gc.collect()
    return sum(type(it).__name__ == name for it in gc.get_objects())


def wrapper_classes() -> int:
    gc.collect()
    kinds = [it for it in gc.get_objects() if isinstance(it, type)]
    return sum(kind.__name__ == "DatabaseWrapper" for kind in kinds)


def warm_up() -> int:
    """Ask by one alias that was there, and by a new one. Return wrapper_classes()."""
    one("SELECT 1")
    add("")
    patch.end_request()
    return wrapper_classes()


def each_lease_goes_where_the_settings_point(request_ends: Any) -> Any:
    names = []
    for settings in (a, b, c, a, a, c, b):
        swap(**settings)
        names.append(tenant())
        if request_ends:
            patch.end_request()
    patch.end_request()
    swap(**a)
    tenant()
    settle(lambda: threads_of(b["USER"]) == threads_of(c["USER"]) == 0)
    swap(**b)
    tenant()
    assert_sound("tenant")
    return names


def settings_may_change_in_place() -> Any:
    swap(**a)
    names = []
    for settings in (a, b, c, a):
        connections.databases["tenant"].update(settings)
        names.append(tenant())
        patch.end_request()
    return names


def options_count_however_deep_they_lie_and_whatever_they_are() -> Any:
    class Own(Cursor):  # type: ignore[misc]
        pass

    swap(OPTIONS={"init_command": "SET @who = 'first'"})
    options = connections.databases["tenant"]["OPTIONS"]
    seen = [tenant("SELECT @who")]
    patch.end_request()
    options["init_command"] = "SET @who = 'second'"
    seen.append(tenant("SELECT @who"))
    patch.end_request()
    options["isolation_level"] = "serializable"
    seen.append(tenant("SELECT @@tx_isolation"))
    patch.end_request()
    del options["isolation_level"]
    options["conv"] = {**connections["default"].get_connection_params()["conv"]}
    options["conv"][3] = lambda text: "converted"  # neither hashable nor equal to any other
    seen.append(tenant("SELECT 1"))
    before = pool("tenant")
    patch.end_request()
    seen.append(tenant("SELECT 1"))
    assert pool("tenant") is before  # nothing has changed
    assert before.stats()["opened_total"] == 1
    patch.end_request()
    options["conv"][3] = int
    options["cursorclass"] = Own
    seen.append(tenant("SELECT 1"))
    with connections["tenant"].cursor() as cursor:
        seen.append(isinstance(cursor.cursor.cursor, Own))
    return seen


def a_password_that_is_wrong_by_now_is_not_let_in_by_the_pool() -> None:
    swap(**b)
    tenant()
    patch.end_request()
    swap(**{**b, "PASSWORD": "wrong-one"})
    try:
        tenant()
    except OperationalError as error:
        assert error.args[0] == 1045, error
        assert "wrong-one" not in str(error)
    else:
        raise AssertionError("let in")
    patch.end_request()
    swap(**b)
    assert tenant() == b["NAME"]
    patch.end_request()
    assert_sound("tenant")


def another_server_another_engine(elsewhere: Any, sqlite: Any) -> Any:
    facts = []
    for settings in (b, elsewhere, sqlite, b):
        swap(**settings)
        facts.append([connections["tenant"].display_name, tenant("SELECT 1")])
        assert ("tenant" in patch.pools()) == (connections["tenant"].vendor == "mysql")
        patch.end_request()
    assert_sound("tenant")
    return facts


def what_is_in_use_goes_on_and_is_closed_when_it_comes_back() -> None:
    go = Event()
    names = []

    def work(settings: Any) -> None:
        swap(**settings)
        with transaction.atomic("tenant"):
            names.append(tenant())
            go.wait()
            assert tenant() == settings["NAME"]
        patch.end_request()

    workers = [gevent.spawn(work, settings) for settings in (b, c, b, c)]
    settle(lambda: len(names) == 4)
    assert threads_of(b["USER"]) == threads_of(c["USER"]) == 2
    # All that b has now is one pool: to come back to it twice does not double the cap.
    pools = [o for o in gc.get_objects() if type(o).__name__ == "ConnectionPool"]
    assert sorted(p.stats()["in_use"] for p in pools if p.name == "tenant") == [2, 2]
    go.set()
    gevent.joinall(workers, raise_error=True)
    assert sorted(names) == sorted([b["NAME"], c["NAME"]] * 2)
    swap(**a)
    assert tenant() == a["NAME"]
    settle(lambda: threads_of(b["USER"]) == threads_of(c["USER"]) == 0)
    swap(**b)
    tenant()
    assert_sound("tenant")


def the_age_limit_follows_conn_max_age() -> None:
    for age in (7, 3000, 7):
        swap(CONN_MAX_AGE=age)
        tenant("SELECT 1")
        (entry,) = pool("tenant")._entries.open()
        left = entry.expires - entry.idle_since  # when it was opened
        assert age * 0.8 < left <= age, (age, left)
        patch.end_request()


def removed_aliases_leave_nothing_behind() -> Any:
    wrappers = warm_up()
    del connections.databases["tenant"]
    most = 0
    for n in range(200):
        alias = add(n)
        del connections.databases[alias]
        patch.end_request()
        most = max(most, threads())
    patch.end_request()
    settle(lambda: threads() == 1)
    assert wrapper_classes() == wrappers
    found = [most, sorted(patch.pools()), objects("ConnectionPool")]
    assert_sound()
    return found


def aliases_that_stay_share_a_bound_on_what_is_idle() -> Any:
    warm_up()
    most = 0
    for n in range(200):
        add(n)
        patch.end_request()
        most = max(most, threads())
    settle(lambda: threads() <= 5)
    left = sorted(patch.pools())
    pools = objects("ConnectionPool")
    # The ones that are in use stay warm.
    for _ in range(3):
        for n in (196, 197, 198, 199):
            one("SELECT 1", alias=f"tenant{n}")
            patch.end_request()
    again = [pool(f"tenant{n}").stats()["opened_total"] for n in (196, 197, 198, 199)]
    return [most, left, pools, again]


def a_request_that_loops_over_tenants_needs_one_connection_at_a_time() -> Any:
    warm_up()
    most = 0
    for _ in range(30):
        swap()
        assert tenant("SELECT 1") == 1
        most = max(most, pool("tenant").stats()["in_use"])
    swap()
    kept = connections["tenant"]
    with transaction.atomic("tenant"):
        number = tenant("SELECT CONNECTION_ID()")
        del connections["tenant"]
        one("SELECT 1", alias="tenant")
        # A transaction is not taken away, and a wrapper that is kept can be used.
        with kept.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            assert cursor.fetchone()[0] == number
        connections["tenant"] = kept
    patch.end_request()
    swap(**b)
    tenant()
    assert_sound("tenant")
    return most


def written_sizes_are_for_their_aliases() -> Any:
    run("SELECT 1")
    for alias in ("big", "other"):
        connections.databases[alias] = {**connections.databases["default"]}
        one("SELECT 1", alias=alias)
    return [[pool(alias).size, pool(alias).cap] for alias in ("default", "big", "other")]
