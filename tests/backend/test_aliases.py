"""Aliases that a project swaps, adds and removes while it runs, as packages for tenants do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from textwrap import dedent
from typing import Any

import pytest

from support.client import Admin
from support.ports import free_port
from support.processes import wait_until
from support.script import run_script
from support.serve import Client, Serve
from support.servers import Database, Server

MODES = ("request", "transaction")

SWAP = """
    def swap(**changes):
        "What packages for tenants do with one alias."
        connections.databases["tenant"] = {**connections.databases["default"], **changes}
        if hasattr(connections._connections, "tenant"):
            del connections["tenant"]

    def tenant(sql="SELECT DATABASE()"):
        return one(sql, alias="tenant")

    def threads_of(user):
        sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = %s"
        return one(sql, user, alias="watch")
"""


def as_settings(database: Database) -> dict[str, Any]:
    return {"NAME": database.name, "USER": database.user, "PASSWORD": database.password}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def tenants(mariadb: Server) -> list[Database]:
    """The first is the project's own. Each has a user of its own, who sees nothing else."""
    return [mariadb.create_database() for _ in range(3)]


@pytest.fixture
def script(project: Any, mariadb: Server, tenants: list[Database], mode: str) -> Callable[..., Any]:
    """Runs a script that finds the databases as a, b and c, and SWAP."""

    def script(*sources: str) -> Any:
        watch = mariadb.create_database()
        for host in ("127.0.0.1", "localhost"):
            mariadb.admin.query(f"GRANT PROCESS ON *.* TO {watch.user}@{host}")
        databases = {"default": tenants[0].django(), "watch": watch.django()}
        found = "a, b, c = " + json.dumps([as_settings(tenant) for tenant in tenants]) + "\n"
        source = found + "".join(map(dedent, (SWAP, *sources)))
        return run_script(project(databases=databases), source, POOLED_SERVE_POOL_MODE=mode)

    return script


# --- Settings that change ----------------------------------------------------------------------


@pytest.mark.parametrize("request_ends", [True, False])
def test_each_lease_goes_where_the_settings_point(
    script: Any, tenants: list[Database], request_ends: bool
) -> None:
    names = script(
        f"""
        names = []
        for settings in (a, b, c, a, a, c, b):
            swap(**settings)
            names.append(tenant())
            if {request_ends}:
                patch.end_request()
        report(names)
        patch.end_request()
        swap(**a)
        tenant()
        settle(lambda: threads_of(b["USER"]) == threads_of(c["USER"]) == 0)
        swap(**b)
        tenant()
        assert_sound("tenant")
        """
    )
    a, b, c = (tenant.name for tenant in tenants)
    assert names == [a, b, c, a, a, c, b]


def test_settings_may_change_in_place(script: Any, tenants: list[Database]) -> None:
    names = script(
        """
        swap(**a)
        names = []
        for settings in (a, b, c, a):
            connections.databases["tenant"].update(settings)
            names.append(tenant())
            patch.end_request()
        report(names)
        """
    )
    a, b, c = (tenant.name for tenant in tenants)
    assert names == [a, b, c, a]


def test_options_count_however_deep_they_lie_and_whatever_they_are(script: Any) -> None:
    seen = script(
        """
        from pymysql.cursors import Cursor
        class Own(Cursor):
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
        report(seen)
        """
    )
    assert seen == ["first", "second", "SERIALIZABLE", "converted", "converted", 1, True]


def test_a_password_that_is_wrong_by_now_is_not_let_in_by_the_pool(script: Any) -> None:
    script(
        """
        from django.db import OperationalError
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
        """
    )


def test_another_server_another_engine(
    script: Any, mysql: Server, tenants: list[Database], tmp_path: Any
) -> None:
    other = mysql.create_database()
    elsewhere = {**as_settings(other), "HOST": other.host, "PORT": other.port}
    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db"), "OPTIONS": {}}
    facts = script(
        f"""
        facts = []
        for settings in (b, {elsewhere!r}, {sqlite!r}, b):
            swap(**settings)
            facts.append([connections["tenant"].display_name, tenant("SELECT 1")])
            assert ("tenant" in patch.pools()) == (connections["tenant"].vendor == "mysql")
            patch.end_request()
        report(facts)
        assert_sound("tenant")
        """
    )
    assert facts == [["MariaDB", 1], ["MySQL", 1], ["SQLite", 1], ["MariaDB", 1]]


def test_what_is_in_use_goes_on_and_is_closed_when_it_comes_back(script: Any) -> None:
    script(
        """
        from gevent.event import Event
        go = Event()
        names = []
        def work(settings):
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
        """
    )


def test_the_age_limit_follows_conn_max_age(script: Any) -> None:
    script(
        """
        for age in (7, 3000, 7):
            swap(CONN_MAX_AGE=age)
            tenant("SELECT 1")
            (entry,) = pool("tenant")._entries.open()
            left = entry.expires - time.monotonic()
            assert age * 0.8 < left <= age, (age, left)
            patch.end_request()
        """
    )


# --- Aliases that come and go ------------------------------------------------------------------

ADD = """
    def add(n):
        alias = f"tenant{n}"
        connections.databases[alias] = {**connections.databases["default"]}
        assert one("SELECT 1", alias=alias) == 1
        return alias

    def threads():
        return threads_of(a["USER"])

    def objects(name):
        gc.collect()
        return sum(type(o).__name__ == name for o in gc.get_objects())

    one("SELECT 1")
    add("")
    patch.end_request()
    wrappers = sum(isinstance(o, type) and o.__name__ == "DatabaseWrapper"
                   for o in gc.get_objects())
"""


def test_removed_aliases_leave_nothing_behind(script: Any) -> None:
    most, left, pools = script(
        ADD,
        """
        del connections.databases["tenant"]
        most = 0
        for n in range(200):
            alias = add(n)
            del connections.databases[alias]
            patch.end_request()
            most = max(most, threads())
        patch.end_request()
        settle(lambda: threads() == 1)
        kinds = [o for o in gc.get_objects() if isinstance(o, type)]
        assert sum(kind.__name__ == "DatabaseWrapper" for kind in kinds) == wrappers
        report([most, sorted(patch.pools()), objects("ConnectionPool")])
        assert_sound()
        """,
    )
    assert most <= 6
    assert left == ["default", "watch"]
    assert pools == 2


def test_aliases_that_stay_share_a_bound_on_what_is_idle(script: Any) -> None:
    most, left, pools, again = script(
        ADD,
        """
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
        report([most, left, pools, again])
        """,
    )
    assert most <= 10
    assert left == ["default", "tenant196", "tenant197", "tenant198", "tenant199", "watch"]
    assert pools == 6
    assert again == [1, 1, 1, 1]


def test_a_request_that_loops_over_tenants_needs_one_connection_at_a_time(script: Any) -> None:
    # Stock Django drops the connection with the wrapper; the cap here is 4.
    most = script(
        ADD,
        """
        most = 0
        for n in range(30):
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
        report(most)
        patch.end_request()
        swap(**b)
        tenant()
        assert_sound("tenant")
        """,
    )
    assert most <= 2


def test_written_sizes_are_for_their_aliases(project: Any, mariadb: Server, mode: str) -> None:
    database = mariadb.create_database()
    sizes = run_script(
        project(databases={"default": database.django()}),
        """
        run("SELECT 1")
        for alias in ("big", "other"):
            connections.databases[alias] = {**connections.databases["default"]}
            one("SELECT 1", alias=alias)
        report([[pool(alias).size, pool(alias).cap] for alias in ("default", "big", "other")])
        """,
        POOLED_SERVE_POOL_MODE=mode,
        POOLED_SERVE_POOL="big:3:7",
    )
    assert sizes == [[2, 4], [3, 7], [2, 4]]


# --- Under Gunicorn ----------------------------------------------------------------------------

VIEWS = """
    from django.db import connections, transaction
    from django.http import HttpResponse, JsonResponse
    from gevent.event import Event

    met = Event()
    arrived = []

    def sql(text, alias="default"):
        with connections[alias].cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall() if cursor.description else ()

    def which(request):
        return JsonResponse([sql("SELECT DATABASE()", alias)[0][0]
                             for alias in ("default", "replica")], safe=False)

    def put(request):
        sql("SELECT 1", "replica")
        connections["default"] = connections["replica"]
        connections["unknown"] = connections["replica"]
        sql("SELECT 1")
        return HttpResponse()

    def write(request):
        try:
            with transaction.atomic("replica"):
                arrived.append(1)
                sql(f"INSERT INTO t VALUES ({request.GET['n']})", "replica")
                if len(arrived) == 2:
                    met.set()
                met.wait(20)
                if "fail" in request.GET:
                    raise KeyError
        except KeyError:
            pass
        return HttpResponse()

    def add(request):
        alias = request.GET["alias"]
        connections.databases[alias] = {**connections.databases["default"]}
        sql("SELECT 1", alias)
        if "remove" in request.GET:
            del connections.databases[alias]
        return HttpResponse()
"""


@pytest.fixture
def databases(mariadb: Server, tenants: list[Database]) -> dict[str, Any]:
    mariadb.admin.query(f"CREATE TABLE {tenants[1].name}.t (n INT) ENGINE=InnoDB")
    return {"default": tenants[0].django(), "replica": tenants[1].django()}


def test_a_wrapper_under_another_alias_ends_with_its_request(
    project: Any, serve: Any, databases: Any, tenants: list[Database], mariadb: Server, mode: str
) -> None:
    web: Serve = serve(project(VIEWS, databases=databases), "--pool-mode", mode)
    names = [tenants[0].name, tenants[1].name]
    with web.keepalive() as client:
        assert client.get("/which").json() == names
        assert client.get("/put").status == 200
        assert client.get("/which").json() == names
    with ThreadPoolExecutor(2) as clients:
        answers = clients.map(web.get, ["/write?n=1", "/write?n=2&fail=1"])
        assert [answer.status for answer in answers] == [200, 200]
    rows = mariadb.admin.query(f"SELECT n FROM {tenants[1].name}.t")
    assert rows == [{"n": 1}]  # committed, whatever the other did


@pytest.fixture
def stats(project: Any, serve: Any, databases: Any) -> tuple[Serve, Any]:
    port = free_port()
    web = serve(project(VIEWS, databases=databases), "--status", f"127.0.0.1:{port}")

    def pools() -> dict[str, Any]:
        with closing(Client(("127.0.0.1", port))) as client:
            found: dict[str, Any] = client.get("/stats.json").json()["pools"]
            return found

    return web, pools


def test_the_board_has_room_for_aliases_to_come(
    stats: Any, mariadb: Server, tenants: list[Database]
) -> None:
    web, pools = stats
    web.get("/which")
    for n in range(20):
        assert web.get(f"/add?alias=gone{n}&remove=1").status == 200
    for n in range(20):
        assert web.get(f"/add?alias=tenant{n}").status == 200
    newest = [f"tenant{n}" for n in range(16, 20)]
    assert sorted(pools()) == ["default", "replica", *newest]
    assert all(pools()[alias]["acquired_total"] == 1 for alias in newest)
    assert pools()["default"]["acquired_total"] == 1
    assert "does not show everything" not in web.log
    admin: Admin = mariadb.admin
    wait_until(lambda: len(admin.processlist(tenants[0].user)) == 5)


def test_a_worker_that_dies_leaves_the_places_of_added_aliases(stats: Any) -> None:
    web, pools = stats
    web.get("/which")
    for n in range(4):
        web.get(f"/add?alias=tenant{n}")
    (worker,) = web.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: web.worker_pids() - {worker})
    web.get("/which")
    assert sorted(pools()) == ["default", "replica"]
    assert pools()["default"]["acquired_total"] == 2  # those of the first are kept
