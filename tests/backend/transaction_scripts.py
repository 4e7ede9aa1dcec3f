"""What test_transaction_mode.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pymysql
from django.core.management import call_command
from django.db import (
    Error,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    transaction,
)
from gevent.event import Event
from pymysql.cursors import SSCursor

from pooled_serve.errors import PoolTimeout
from support.inside import assert_sound, in_use, one, pool, refused, run, settle


def with_table(function: str, *args: Any) -> Any:
    """Call the function, with an empty table t, and nothing sent or pinned yet."""
    run("DROP TABLE IF EXISTS t")
    run(
        "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n INT UNIQUE, s VARCHAR(99)) "
        "ENGINE=InnoDB"
    )
    connection.close()
    forget_pins()
    result = globals()[function](*args)
    assert_sound()
    return result


known_pins: dict[str, int] = {}


def pinned() -> dict[str, int]:
    """How often a lease was pinned since forget_pins(), by the reason."""
    total = pool().stats()["pinned_total"]
    since = {reason: count - known_pins.get(reason, 0) for reason, count in total.items()}
    return {reason: count for reason, count in since.items() if count}


def forget_pins() -> None:
    known_pins.update(pool().stats()["pinned_total"])


def number(table: str = "t") -> int:
    return int(one(f"SELECT COUNT(*) FROM {table}"))


def a_lease_lasts_a_statement_or_a_transaction() -> None:
    for n in (1, 2):
        run("INSERT INTO t (n) VALUES (%s)", n)
        assert in_use() == 0
    assert run("SELECT n FROM t ORDER BY n") == [(1,), (2,)]
    assert in_use() == 0
    with transaction.atomic():
        assert in_use() == 0
        run("INSERT INTO t (n) VALUES (3)")
        assert in_use() == 1
        with transaction.atomic():
            run("SELECT n FROM t WHERE n = 1 FOR UPDATE")
        assert in_use() == 1
    assert in_use() == 0
    with contextlib.suppress(KeyError), transaction.atomic():
        run("INSERT INTO t (n) VALUES (4)")
        raise KeyError
    assert in_use() == 0
    assert number() == 3
    assert pool().stats()["opened_total"] == 1
    assert pinned() == {}


def a_statement_that_fails_ends_the_lease_too() -> None:
    run("INSERT INTO t (n) VALUES (1)")
    refused(IntegrityError, run, "INSERT INTO t (n) VALUES (1)")
    assert in_use() == 0
    refused(ProgrammingError, run, "SELECT nonsense FROM nowhere")
    assert in_use() == 0
    with connection.cursor() as cursor:
        refused(ProgrammingError, cursor.execute, "SELECT %s %s", [1])
    assert in_use() == 0
    assert pinned() == {}
    refused(OperationalError, run, "KILL CONNECTION_ID()")


def a_pool_without_connections_is_an_operational_error_of_django() -> None:
    def hold() -> None:
        with transaction.atomic():
            run("SELECT 1")
            gevent.sleep(3600)

    holders = [gevent.spawn(hold) for _ in range(4)]
    settle(lambda: in_use() == 4)
    pool().timeout = 0.05
    assert "no connection within" in refused(OperationalError, run, "SELECT 1")
    refused(PoolTimeout, run, "SELECT 1")
    gevent.killall(holders)
    pool().timeout = 30
    assert one("SELECT 1") == 1


def greenlets_that_are_killed_lose_no_slot() -> None:
    works: list[Callable[[], object]] = [
        lambda: run("SELECT SLEEP(0.01)"),
        lambda: run("INSERT INTO t (s) VALUES (SLEEP(0.01))"),
        lambda: run("SET @a = SLEEP(0.01)"),
    ]

    def block() -> None:
        with transaction.atomic():
            run("INSERT INTO t (s) VALUES ('half')")
            gevent.sleep(0.01)
            run("SELECT SLEEP(0.01)")

    works.append(block)

    def work(n: Any) -> None:
        # Killed at its COMMIT, a block of Django's ends in an error instead.
        with suppress(OperationalError):
            while True:
                works[n % 4]()

    greenlets = [gevent.spawn(work, n) for n in range(40)]
    gevent.sleep(0.2)
    for greenlet in greenlets:
        gevent.sleep(random.random() / 200)
        greenlet.kill()
    settle(lambda: in_use() == 0)


def a_killed_block_leaves_nothing() -> None:
    run("CREATE TABLE u (n INT)")
    connection.close()
    other = connection.copy()
    cursor = other.cursor()
    cursor.execute("LOCK TABLES u WRITE")

    def work() -> None:
        with transaction.atomic():
            run("INSERT INTO t (n) VALUES (1)")
            run("SELECT n FROM u")

    greenlet = gevent.spawn(work)
    settle(lambda: in_use() == 1)
    gevent.sleep(0.05)
    greenlet.kill()
    other.close()
    settle(lambda: in_use() == 0)
    gevent.sleep(0.05)
    assert number() == 0


def nothing_of_a_block_survives_its_connection() -> None:
    def die() -> None:
        number = one("SELECT CONNECTION_ID()")
        gevent.spawn(run, "KILL %s", number).join()
        gevent.sleep(0.05)

    try:
        with transaction.atomic():
            run("INSERT INTO t (n) VALUES (1)")
            die()
            for n in (2, 3):
                refused(Error, run, "INSERT INTO t (n) VALUES (%s)", n)
            assert in_use() == 1
    except Error:
        pass
    else:
        raise AssertionError("it was committed")
    connection.close()
    assert number() == 0


def a_project_without_autocommit() -> None:
    assert not connection.get_autocommit()
    connection.ensure_connection()
    assert in_use() == 0
    run("INSERT INTO t (n) VALUES (1)")
    assert in_use() == 1
    connection.commit()
    assert in_use() == 0
    run("INSERT INTO t (n) VALUES (2)")
    connection.close()
    assert run("SELECT n FROM t") == [(1,)]
    connection.rollback()
    assert in_use() == 0
    with transaction.atomic():
        run("INSERT INTO t (n) VALUES (3)")
    assert in_use() == 1  # as Django does: an atomic block is a savepoint here
    connection.commit()
    assert number() == 2
    connection.close()


def what_is_kept_is_there_until_the_end_and_no_longer() -> None:
    run("SET @a = 7")
    run("CREATE TEMPORARY TABLE u (n INT)")
    run("INSERT INTO u VALUES (1)")
    with transaction.atomic():
        run("INSERT INTO u VALUES (2)")
    assert one("SELECT @a") == 7
    assert number("u") == 2
    assert pinned() == {"variable": 1}, pinned()
    connection.close()
    assert one("SELECT @a") is None
    refused(ProgrammingError, number, "u")
    connection.close()


def state_that_is_set_in_a_block_lasts_to_the_end_of_the_request() -> None:
    with transaction.atomic():
        run("SET @a = 1")
        run("INSERT INTO t (n) VALUES (@a)")
    assert in_use() == 1
    assert number() == 1
    assert one("SELECT @a") == 1
    with transaction.atomic():
        connection.connection.select_db("information_schema")
    assert in_use() == 1
    assert one("SELECT DATABASE()") == "information_schema"
    connection.close()
    assert number() == 1
    with transaction.atomic():
        run("SELECT 1")
        connection.connection.select_db("information_schema")
    assert one("SELECT DATABASE()") == "information_schema"
    connection.close()
    assert number() == 1


def unread_results_stay_readable() -> None:
    run("CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END")
    for n in range(5):
        run("INSERT INTO t (n) VALUES (%s)", n)
    connection.close()
    with connection.cursor() as cursor:
        cursor.callproc("two")
        assert cursor.fetchall() == ((1,),)
        assert cursor.nextset()
        assert cursor.fetchall() == ((2,),)
    connection.close()
    connection.ensure_connection()
    cursor = connection.connection.cursor(SSCursor)
    cursor.execute("SELECT n FROM t ORDER BY n")
    assert cursor.fetchone() == (0,)
    gevent.spawn(run, "SELECT 1").join()
    assert cursor.fetchall() == [(1,), (2,), (3,), (4,)]
    cursor.close()
    connection.close()
    connection.ensure_connection()
    cursor = connection.connection.cursor(SSCursor)
    cursor.execute("SELECT n FROM t ORDER BY n")
    cursor.fetchone()
    connection.close()  # in the middle of the rows
    settle(lambda: in_use() == 0)


def a_question_inside_a_block_gets_the_right_answer() -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO t (n) VALUES (5)")
            key = cursor.lastrowid
        assert one("SELECT LAST_INSERT_ID()") == key > 0
        run("UPDATE t SET n = 6")
        assert one("SELECT ROW_COUNT()") == 1
    refused(ProgrammingError, run, "SELECT LAST_INSERT_ID()")
    refused(pymysql.ProgrammingError, connection.connection.show_warnings)
    run("INSERT INTO t (n) VALUES (7), (8)")
    # The client itself knows these.
    assert connection.connection.affected_rows() == 2
    assert connection.connection.insert_id() > key
    assert in_use() == 0
    run("DELETE FROM t WHERE n > 6")
    run("UPDATE t SET n = LAST_INSERT_ID(n + 1)")  # kept from here
    assert one("SELECT LAST_INSERT_ID()") == 7
    connection.close()


def a_block_cannot_read_what_another_request_inserted() -> None:
    gevent.spawn(run, "INSERT INTO t (n) VALUES (1)").join()
    run("INSERT INTO t (n) VALUES (2)")
    gevent.spawn(run, "INSERT INTO t (n) VALUES (3)").join()
    with transaction.atomic():
        run("SELECT n FROM t")
        said = refused(ProgrammingError, run, "SELECT LAST_INSERT_ID()")
        assert "which ran outside of this atomic() block, on a connection that is back" in said
        assert said.endswith("put both inside the same transaction.atomic()"), said
        run("INSERT INTO t (n) VALUES (4)")
        run("SELECT n FROM t")
        key = one("SELECT LAST_INSERT_ID()")
        assert one("SELECT n FROM t WHERE id = %s", key) == 4


def what_no_statement_has_done_was_on_no_other_connection() -> None:
    asked = "LAST_INSERT_ID() asks about an earlier statement, and none has generated a key"
    run("SELECT 1")  # on a lease of its own, as that of a middleware
    run("SET @a = 1")  # kept from here
    said = refused(ProgrammingError, run, "SELECT @a, LAST_INSERT_ID()")
    remedy = "run the INSERT first, and both inside one transaction.atomic()"
    assert said.endswith(f"{asked} on this connection: {remedy}"), said
    with transaction.atomic():
        said = refused(ProgrammingError, run, "SELECT @a, LAST_INSERT_ID()")
        assert said.endswith(f"{asked} in this atomic() block: run the INSERT in the same block")
        said = refused(ProgrammingError, run, "SELECT LASTVAL(q)")
        assert said.endswith(
            "none has drawn a number from a sequence in this atomic() block: draw it in the same "
            "block"
        ), said
        run("INSERT INTO t (n) VALUES (1)")
        run("SELECT n FROM t")
        assert one("SELECT LAST_INSERT_ID()") > 0
    connection.close()


def whose_number_is_known_is_not_another_s() -> None:
    numbers, go = [], Event()

    def asleep() -> Any:
        return [row[0] for row in run("SHOW FULL PROCESSLIST") if "SLEEP" in str(row[7])]

    def sleeps() -> Any:
        try:
            return one("SELECT SLEEP(60)")  # 1 on MySQL, if it is interrupted
        except OperationalError as error:
            return error.args[0]

    def watched() -> Any:
        numbers.append(one("SELECT CONNECTION_ID()"))
        go.wait()
        return sleeps()

    first = gevent.spawn(watched)
    settle(lambda: numbers)
    others = [gevent.spawn(sleeps) for _ in range(2)]
    settle(lambda: len(asleep()) == 2)
    theirs = asleep()
    run(f"KILL QUERY {numbers[0]}")
    go.set()
    settle(lambda: numbers[0] in asleep())
    run(f"KILL QUERY {numbers[0]}")
    assert first.get() in (1, 1317)
    assert sorted({*asleep()} - {numbers[0]}) == sorted(theirs), "they go on"
    for number in theirs:
        run(f"KILL QUERY {number}")
    assert {greenlet.get() for greenlet in others} <= {1, 1317}


def parameters_are_escaped_as_the_connection_that_runs_them_needs() -> None:
    nasty = ["back\\slash", "quote ' and \\' more", 'double "', "\\", "'; DROP TABLE t; --"]

    def stored() -> None:
        for text in nasty:
            run("INSERT INTO t (s) VALUES (%s)", text)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (s) VALUES (%s)", [(text,) for text in nasty])
            cursor.execute("SELECT s FROM t ORDER BY id")
            found = [s for (s,) in cursor.fetchall()]
        run("DELETE FROM t")
        assert found == nasty * 2, found

    def strict() -> None:
        run("SET sql_mode = 'NO_BACKSLASH_ESCAPES'")
        stored()
        gevent.sleep(0.01)
        stored()
        connection.close()

    stored()
    held = connection.cursor()
    gevent.spawn(strict).get()
    held.execute("SELECT %s", nasty[:1])
    assert held.fetchone() == (nasty[0],)
    stored()
    for _ in range(3):
        gevent.spawn(strict).get()
        stored()
    assert pinned() == {"variable": 4}


def requests_with_different_escaping_at_the_same_time() -> None:
    text = "it's \\ a 'test' \\' -- \" "

    def ask(strict: Any) -> None:
        for _ in range(20):
            if strict:
                run("SET sql_mode = 'NO_BACKSLASH_ESCAPES'")
            for _ in range(5):
                assert one("SELECT %s", text) == text
                gevent.sleep(0)
            connection.close()

    gevent.joinall([gevent.spawn(ask, n % 2) for n in range(8)], raise_error=True)


def insert_returning() -> None:
    assert run("INSERT INTO t (n) VALUES (1), (2) RETURNING n") == [(1,), (2,)]
    assert in_use() == 0
    with transaction.atomic():
        assert run("INSERT INTO t (n) VALUES (3) RETURNING n") == [(3,)]
    assert in_use() == 0
    assert number() == 3
    assert pinned() == {}


def a_cursor_is_used_again_and_again() -> None:
    with connection.cursor() as cursor:
        for n in range(3):
            cursor.execute("SELECT %s UNION SELECT 9", [n])
            gevent.spawn(run, "SELECT 100").join()
            assert cursor.fetchone() == (n,)
            assert cursor.fetchall() == ((9,),)
            assert in_use() == 0
            assert not cursor.nextset()
    other = connection.cursor()
    other.execute("SELECT 1")
    connection.close()
    assert other.fetchone() == (1,)
    other.close()


def some_blocks(count: int) -> None:
    for _ in range(count):
        with transaction.atomic():
            run("SELECT 1")
    connection.close()


def management_commands() -> list[str]:
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    User.objects.create_user("ada", password="x")
    dump = io.StringIO()
    call_command("dumpdata", "auth.user", stdout=dump)
    call_command("flush", interactive=False, verbosity=0)
    assert not User.objects.exists()
    Path("users.json").write_text(dump.getvalue())
    call_command("loaddata", "users.json", verbosity=0)
    call_command("clearsessions")
    names = [user.username for user in User.objects.all()]
    assert_sound()
    return names


PINS: dict[str, list[Callable[[], object]]] = {
    "variable": [
        lambda: connection.cursor().execute(bytearray(b"SET @a = 1")),  # type: ignore[arg-type]
        lambda: run("SET @a = 1"),
        lambda: run("SET sql_mode = ''"),
        lambda: run("SELECT @a := 1"),
    ],
    "role": [lambda: run("SET ROLE NONE")],
    "database": [lambda: run("USE information_schema")],
    "table lock": [lambda: run("LOCK TABLES t WRITE")],
    "lock": [lambda: run("SELECT GET_LOCK('a lock', 0)")],
    "prepared statement": [lambda: run("PREPARE p FROM 'SELECT 1'")],
    "temporary table": [lambda: run("CREATE TEMPORARY TABLE u (n INT)")],
    "procedure": [lambda: connection.cursor().callproc("two"), lambda: run("CALL two()")],
    "LAST_INSERT_ID(expr)": [lambda: run("UPDATE t SET n = LAST_INSERT_ID(n + 1)")],
    "SQL_CALC_FOUND_ROWS": [lambda: run("SELECT SQL_CALC_FOUND_ROWS n FROM t LIMIT 1")],
    "sequence": [lambda: run("SELECT NEXTVAL(q)"), lambda: run("SELECT NEXT VALUE FOR `q`")],
    "connection id": [
        lambda: run("SELECT CONNECTION_ID()"),
        lambda: run("SELECT `connection_id`()"),
        lambda: run("SELECT @@pseudo_thread_id"),
        lambda: run("SELECT id FROM information_schema.processlist"),
    ],
    "profiling": [lambda: run("SET profiling = 0")],
    "XA transaction": [
        lambda: [run(sql) for sql in ("XA START 'x'", "XA END 'x'", "XA ROLLBACK 'x'")]
    ],
    "unbuffered cursor": [
        lambda: connection.connection.cursor(SSCursor).execute("SELECT n FROM t")
    ],
    "direct use": [
        lambda: connection.connection.thread_id(),
        lambda: connection.connection.kill,
    ],
    "unknown": [
        lambda: run("FLUSH STATUS"),
        lambda: run("ANALYZE TABLE t"),
        lambda: run("SELECT 'a\\\\b'"),
    ],
}


def what_touches_the_session_keeps_the_lease_to_the_end() -> None:
    run("CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END")
    run("CREATE SEQUENCE q")
    run("INSERT INTO t (n) VALUES (1)")
    for reason, touches in PINS.items():
        for index, touch in enumerate(touches):
            connection.close()
            settle(lambda: in_use() == 0)
            forget_pins()
            connection.ensure_connection()
            which = (reason, index, touch())
            assert in_use() == 1, which
            assert pinned() == {reason: 1}, (*which, pinned())
            key = one("SELECT CONNECTION_ID()")
            assert one("SELECT CONNECTION_ID()") == key, which
            assert in_use() == 1, which
            assert pinned() == {reason: 1}, (*which, pinned())
    connection.close()


def a_question_about_the_statement_before_is_refused_outside_a_block(asks: list[str]) -> None:
    run("CREATE SEQUENCE q")
    for sql in asks:
        connection.close()
        run("INSERT INTO t (s) VALUES ('before')")
        said = refused(ProgrammingError, run, sql)
        assert "transaction.atomic()" in said
        assert "--pool-mode transaction" in said
        assert in_use() == 0, sql
        with transaction.atomic():
            run("SELECT NEXTVAL(q)")
            run("INSERT INTO t (s) VALUES ('in the block')")
            if not any(sign in sql for sign in (";", "\\", "!", "PREP")):
                run(sql)
    connection.close()
