"""What test_clean_sessions.py runs in a process of its own."""

from __future__ import annotations

import contextlib
from typing import Any

import gevent
import pymysql
from django.core.signals import request_finished
from django.db import DatabaseError, models, transaction

from support.inside import assert_sound, connection, one, patch, pool, run, settle


def what_django_and_the_engine_set_comes_back() -> None:
    ask = (
        "SELECT CONNECTION_ID(), @own, @@tx_isolation, @@sql_mode, @@time_zone,"
        " @@collation_connection"
    )
    first = run(ask)
    assert first[0][1:4] == ("set", "SERIALIZABLE", "ANSI_QUOTES,STRICT_TRANS_TABLES"), first
    patch.end_request()
    run("SET @own = 'mine', time_zone = '+01:00', sql_mode = ''")
    run("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
    run("SET NAMES latin1")
    patch.end_request()
    assert run(ask) == first
    assert_sound()


def what_outlives_a_reset_ends_with_the_connection(statements: list[str]) -> None:
    for sql in statements:
        run(sql)
    before = one("SELECT CONNECTION_ID()")
    patch.end_request()
    settle(lambda: pool().stats()["in_use"] == 0)
    assert pool().stats()["closed_total"] == {"lasting state": 1}, pool().stats()
    conn = pool().acquire()
    seen = []
    for sql in ("SHOW PROFILES", "SELECT query FROM information_schema.optimizer_trace"):
        conn.query(sql)
        seen.append(conn._result.rows)
    assert "secret" not in str(seen) and conn.thread_id() != before, seen
    pool().release(conn)
    if "XA" in statements[0]:
        run("XA ROLLBACK 'x'")
    run("SET lock_wait_timeout = 30")
    run("ALTER TABLE t COMMENT 'nobody holds it'")
    patch.end_request()
    assert_sound()


def plain_orm_work_costs_nothing_on_return() -> Any:
    class Item(models.Model):
        name: models.CharField[str, str] = models.CharField(max_length=50)

        class Meta:
            app_label = "shop"

    with connection.schema_editor() as editor:
        editor.create_model(Item)
    patch.end_request()
    resets = pool().stats()["reset_total"]

    def work() -> None:
        with transaction.atomic():
            Item.objects.create(name="a")
            with transaction.atomic():
                Item.objects.bulk_create([Item(name=str(n)) for n in range(3)])
        Item.objects.update(name="'; SET @x = 1 -- \\")
        assert len(Item.objects.filter(name__contains="@x").order_by("pk")[:3]) == 3
        assert Item.objects.filter(name__contains="SET").exists()
        Item.objects.all().delete()

    work()
    work()

    def questions() -> Any:
        conn = pool().acquire()
        try:
            conn.query("SHOW STATUS LIKE 'Questions'")
            return int(conn._result.rows[0][1])
        finally:
            pool().release(conn)

    patch.end_request()
    before = questions()
    patch.end_request()
    assert questions() == before + 1  # itself
    patch.end_request()
    stats = pool().stats()
    assert stats["reset_total"] == resets and not stats["closed_total"], (resets, stats)
    assert stats["opened_total"] == 1
    return resets


def pool_reset_always_resets_what_nobody_touched() -> Any:
    for _ in range(3):
        run("SELECT 1")
        patch.end_request()
    found = pool().stats()["reset_total"]
    assert_sound()
    return found


def pool_reset_rollback_only_rolls_back() -> None:
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    run("SET @x = 1")
    connection.connection.select_db("information_schema")
    connection.connection.select_db(connection.settings_dict["NAME"])
    run("BEGIN")
    run("INSERT INTO t VALUES (1)")
    patch.end_request()
    assert one("SELECT @x") == 1
    assert run("SELECT * FROM t") == []
    patch.end_request()
    assert pool().stats()["opened_total"] == 1


GIVEN: dict[str, Any] = {}
"""What try_all() was given."""
witness: Any = None
"""A connection past the pool."""
numbers = [0]
"""The connections of the users before."""
resting: list[int] = []
"""Those of them that wait to be killed."""


def try_all(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Let one user leave each kind of state, and the next one look whether there is anything.

    ``given``: ``cases``, pairs of a kind and an ending; the code of the ``kinds``, and the names
    that this wants to know; the ``settings`` of the database; the ``volatile`` variables.
    """
    GIVEN.update(given)
    settings = given["settings"]
    global witness
    witness = pymysql.connect(
        host=settings["HOST"],
        port=settings["PORT"],
        user=settings["USER"],
        password=settings["PASSWORD"],
        database=given["home"],
        autocommit=True,
    )
    see("SET lock_wait_timeout = 30, innodb_lock_wait_timeout = 30")
    baselines: dict[str, dict[str, Any]] = {}
    results = []
    for kind, ending in given["cases"]:
        special = kind if "next" in kind else ""
        if special not in baselines:
            baselines[special] = fresh(special)
        result = {"kind": kind, "ending": ending}
        try:
            result |= try_one(kind, ending, special, baselines[special])
        except Exception as error:
            result["error"] = repr(error)
        if result.get("error") or result.get("differs"):
            pool().clear()
            see("UNLOCK TABLES")
        results.append(result)
    witness.close()
    return results


def try_one(kind: str, ending: str, special: str, expected: dict[str, Any]) -> dict[str, Any]:
    greenlet = gevent.spawn(user_before, GIVEN["kinds"][kind], ending)
    if ending == "killed":
        settle(lambda: greenlet.ready() or resting[-1:] == numbers[-1:])
    elif ending == "killed in a query":
        settle(lambda: greenlet.ready() or is_asleep(numbers[-1]))
    if ending.startswith("killed"):
        assert not greenlet.ready(), greenlet.exception
        greenlet.kill()
    if ending == "killed in a query":
        end_query(numbers[-1])  # by itself the server notices at its end
    gevent.joinall([greenlet])
    if greenlet.exception:
        raise greenlet.exception
    number, found = in_greenlet(next_user, special)
    return {
        "same": number == numbers[-1],
        "differs": {
            name: [repr(expected.get(name)), repr(found.get(name))]
            for name in {*expected, *found}
            if expected.get(name) != found.get(name)
        },
        "outside": outside(),
    }


def see(sql: Any, *args: Any) -> Any:
    with witness.cursor() as cursor:
        cursor.execute(sql, args or None)
        return list(cursor.fetchall())


def end_query(number: Any) -> None:
    try:
        see("KILL QUERY %s", number)
    except pymysql.MySQLError as error:
        if error.args[0] != 1094:  # there is no such connection: the pool was quicker
            raise


def error_of(sql: Any) -> Any:
    try:
        return run(sql)
    except DatabaseError as error:
        return error.args[0]


def below(look: Any) -> Any:
    # Past the session, which would keep a connection that is asked about itself.
    conn = connection.connection and connection.connection._conn
    if conn:
        return look(conn)
    conn = pool().acquire()
    try:
        return look(conn)
    finally:
        pool().release(conn)


def rows(conn: Any, sql: Any) -> Any:
    conn.query(sql)
    return conn._result.rows


def thread_id() -> Any:
    return below(lambda conn: conn.thread_id())


def snapshot(kind: Any) -> Any:
    state = {
        name: value
        for name, value in below(lambda conn: rows(conn, "SHOW SESSION VARIABLES"))
        if name not in GIVEN["volatile"]
    }
    state["columns of t"] = [row[0] for row in run("SHOW COLUMNS FROM t")]
    state["database"] = one("SELECT DATABASE()")
    state["role"] = one("SELECT CURRENT_ROLE()")
    state["rows"] = run("SELECT * FROM t")
    state["text"] = one("SELECT %s", "\u017c\u65e5")
    state["bytes"] = one("SELECT HEX(%s)", "\u017c\u65e5")
    run("INSERT INTO texts VALUES (%s)", "\u017c\u65e5")
    state["stored"] = run("SELECT HEX(s) FROM texts")
    run("DELETE FROM texts")
    state["encoding"] = connection.connection.encoding
    state["django's autocommit"] = connection.get_autocommit()
    with transaction.atomic():
        run("SELECT * FROM t")
        if kind == "isolation level of the next transaction":
            gevent.sleep(0.12)  # that table is a cached one
            state["isolation"] = see(
                "SELECT trx_isolation_level FROM information_schema.innodb_trx"
                " WHERE trx_mysql_thread_id = %s",
                thread_id(),
            )[0][0]
    state["variable"] = one("SELECT @x")
    state["prepared"] = error_of("EXECUTE s")
    state["handler"] = error_of("HANDLER h READ FIRST")
    state["temporary"] = error_of("SELECT * FROM tmp")
    return state


def in_greenlet(function: Any, *args: Any) -> Any:
    greenlet = gevent.spawn(function, *args)
    gevent.joinall([greenlet])
    return greenlet.get()


def next_user(kind: Any) -> Any:
    try:
        connection.ensure_connection()
        return thread_id(), snapshot(kind)
    finally:
        patch.end_request()


def user_before(code: Any, ending: Any) -> None:
    connection.ensure_connection()
    numbers.append(thread_id())
    exec(code, {**globals(), **GIVEN})
    if ending == "exception":
        with contextlib.suppress(DatabaseError):
            run("SELECT nonsense")
        request_finished.send(None)
        patch.end_request()
        raise gevent.GreenletExit  # which nobody prints
    if ending == "ok":
        request_finished.send(None)
        patch.end_request()
    elif ending == "killed":
        resting.append(numbers[-1])
        gevent.sleep(3600)
    elif ending == "killed in a query":
        run("SELECT SLEEP(3600)")


def is_asleep(number: Any) -> Any:
    return any(row[0] == number and "SLEEP" in str(row[7]) for row in see("SHOW FULL PROCESSLIST"))


def outside() -> Any:
    see("LOCK TABLES t WRITE")
    see("INSERT INTO t VALUES (7)")
    see("DELETE FROM t WHERE n = 7")
    see("UNLOCK TABLES")
    settle(lambda: see("SELECT IS_FREE_LOCK(CONCAT(DATABASE(), 'x'))")[0][0] == 1)
    return see("SELECT * FROM t")


def fresh(kind: Any) -> Any:
    patch.end_request()
    if patch.pools():
        pool().clear()
    return in_greenlet(next_user, kind)[1]
