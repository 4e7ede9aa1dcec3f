"""What test_lease.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pymysql
from django.db import DatabaseError, OperationalError, transaction
from pymysql.connections import Connection
from pymysql.cursors import DictCursor

from support.inside import (
    assert_sound,
    connection,
    connections,
    one,
    patch,
    pool,
    refused,
    run,
    settle,
)


def where_sessions_are_not_reset_a_question_takes_a_fresh_connection() -> None:
    run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY)")
    run("INSERT INTO t VALUES ()")
    used = one("SELECT CONNECTION_ID()")
    connection.close()
    assert one("SELECT LAST_INSERT_ID()") == 0
    assert one("SELECT CONNECTION_ID()") != used
    assert pool().stats()["closed_total"] == {"reset failed": 1}
    assert_sound()


def attributes_of_the_connection_can_be_read_and_written() -> None:
    connection.ensure_connection()
    c = connection.connection
    assert isinstance(c, pymysql.connections.Connection)
    c.cursorclass = DictCursor
    assert c.cursorclass is DictCursor
    with c.cursor() as cursor:
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchall() == [{"one": 1}]
    c._read_timeout = 0.2
    assert c._read_timeout == 0.2
    try:
        run("SELECT SLEEP(30)")
    except Exception as error:
        assert error.args[0] == 2013, error
    else:
        raise AssertionError("it took its time")
    connection.close()
    connection.ensure_connection()
    with connection.connection as c:
        assert c.open
        c.decoders = {}
        with c.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == (("1",),)
    assert not c.open
    connection.close()
    settle(lambda: pool().stats()["in_use"] == 0)
    assert pool().stats()["closed_total"] == {"killed": 1, "direct use": 1}
    assert_sound()


def what_django_and_its_cursors_use_is_no_direct_use() -> None:
    run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, s VARCHAR(9)) ENGINE=InnoDB")
    connection.close()
    opened = pool().stats()["opened_total"]
    connection.ensure_connection()
    c = connection.connection
    assert c.escape("it's") == "'it\\'s'"
    assert (c.host, c.encoding, c.charset) == ("127.0.0.1", "utf8", "utf8mb4")
    assert c.get_server_info() == c.server_version and c.get_host_info()
    assert c.character_set_name() and c.get_proto_info() and c.server_status
    assert not hasattr(c, "no_such_name") and not hasattr(c, "__len__")
    run("INSERT INTO t (s) VALUES ('a'), ('b')")
    assert (c.insert_id(), c.affected_rows()) == (1, 2)
    with connection.cursor() as cursor:
        assert cursor.mogrify("SELECT %s", [1]) == "SELECT 1"
        cursor.executemany("INSERT INTO t (s) VALUES (%s)", [("c",), ("d",)])
        assert not cursor.nextset()
    c.ping()
    c.begin()
    run("DELETE FROM t")
    c.rollback()
    assert one("SELECT COUNT(*) FROM t") == 4
    assert connection.is_usable() and c.open
    assert not pool().stats()["pinned_total"].get("direct use")
    c.thread_id()
    connection.close()
    stats = pool().stats()
    assert (stats["opened_total"], stats["closed_total"]) == (opened, {}), stats
    assert_sound()


def a_block_without_a_query_needs_no_connection() -> None:
    """As with ATOMIC_REQUESTS, while others have them all, or the database is down."""
    run("SELECT 1")
    connection.close()
    taken = [pool().acquire() for _ in range(pool().cap)]
    pool().timeout = 0.05
    acquired, hooks = pool().stats()["acquired_total"], []
    with transaction.atomic():
        transaction.on_commit(lambda: hooks.append(refused(OperationalError, run, "SELECT 1")))
        assert connection.in_atomic_block and not connection.get_autocommit()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        raise ZeroDivisionError
    assert len(hooks) == 1 and "4 in use" in hooks[0], hooks
    for conn in taken:
        pool().release(conn)
    assert pool().stats()["acquired_total"] == acquired
    assert_sound()


def ensure_connection_takes_one() -> None:
    """Health checks call it."""
    run("SELECT 1")
    connection.close()
    taken = [pool().acquire() for _ in range(pool().cap)]
    pool().timeout = 0.05
    for block in (transaction.atomic, contextlib.nullcontext):
        with block():
            refused(OperationalError, connection.ensure_connection)
        connection.close()
    refused(OperationalError, connection.connect)
    connection.close()
    pool().timeout = 30
    pool().release(taken.pop())
    connection.ensure_connection()
    assert pool().stats()["in_use"] == pool().cap
    for conn in taken:
        pool().release(conn)
    assert_sound()


def drop_all(sequence: bool) -> None:
    """What an earlier ask_all() has made."""
    run("DROP TABLE IF EXISTS t")
    run("DROP PROCEDURE IF EXISTS inserts")
    if sequence:
        run("DROP SEQUENCE IF EXISTS q")


def ask_all(
    befores: list[list[str]], questions: list[str], update: str, pooled: bool, sequence: bool
) -> dict[str, Any]:
    """Ask each question after each list of statements, where a stranger ran others before."""
    if not pooled:  # to make one takes longer than all the rest
        context = Connection(defer_connect=True)._create_ssl_ctx({})
        Connection._create_ssl_ctx = lambda self, sslp: context
    run("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, s VARCHAR(9))")
    run("CREATE PROCEDURE inserts() INSERT INTO t (s) VALUES ('called')")
    run("INSERT INTO t (s) VALUES ('a'), ('b'), ('c'), ('d')")
    if sequence:
        run("CREATE SEQUENCE q START WITH 1000")
    connection.close()
    said = {}
    for before in befores:
        for question in questions:
            for block in (False, True) if not before else (False,):
                # MySQL's answer to that depends on each command, and nobody asks.
                if "FOUND_ROWS" in question and (block or before[:1] == [update]):
                    continue
                if pooled:
                    be_a_stranger(sequence)
                with transaction.atomic() if block else contextlib.nullcontext():
                    said[f"{before} {question} {block}"] = ask(before, question)
                    if block:
                        transaction.set_rollback(False)
                connection.close()
                del connections["default"]  # or plain Django would set up the next one less
    return said


def be_a_stranger(sequence: bool) -> None:
    if sequence:
        run("SELECT NEXTVAL(q)")
    run("INSERT INTO t (s) VALUES ('stranger')")
    run("SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5")
    run("SELECT CAST(s AS SIGNED) FROM t")  # a warning each
    connection.close()


def ask(before: list[str], question: str) -> Any:
    key = None
    for sql in before:
        with connection.cursor() as cursor, contextlib.suppress(DatabaseError):
            cursor.execute(sql)
            key = cursor.lastrowid or key
    connection.ensure_connection()
    c = connection.connection
    try:
        answer = getattr(c, question[2:-2])() if question.startswith("c.") else run(question)
    except DatabaseError as error:  # a sequence that it has not used has no value
        return [[None]] if "asks about" in str(error) and "q" in question[-2:] else str(error)
    # The keys are others each time.
    top = run("SELECT MAX(id) FROM t")[0][0]
    key = key or top
    if isinstance(answer, list | tuple):
        return [["newest" if value in (key, top) else value for value in row] for row in answer]
    return "newest" if answer == key else answer


said: list[Any] = []
"""What the nested statements that run have seen."""


def add(n: int) -> None:
    run("INSERT INTO t (n) VALUES (%s)", n)


def numbers() -> list[int]:
    return [n for (n,) in run("SELECT n FROM t ORDER BY n")]


def parameters_of_a_bulk_insert_that_come_from_queries() -> None:
    def rows() -> Iterator[Any]:
        for n in range(3):
            with transaction.atomic():
                add(n)
            yield (10 + n,)
        said.append(numbers())

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())
        said.append(cursor.rowcount)


def parameters_of_several_updates() -> None:
    add(1)

    def rows() -> Iterator[Any]:
        for n in range(1, 4):
            said.append(numbers())
            with transaction.atomic():
                add(100 + n)
            yield (n + 1, n)

    with connection.cursor() as cursor:
        cursor.executemany("UPDATE t SET n = %s WHERE n = %s", rows())


def a_block_that_the_rows_are_written_in() -> None:
    def rows() -> Iterator[Any]:
        with transaction.atomic():
            yield (1,)
            yield (2,)
            transaction.set_rollback(True)

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (n) VALUES (%s) -- one by one", rows())
    said.append(numbers())


def the_same_cursor() -> None:
    with connection.cursor() as cursor:

        def rows() -> Iterator[Any]:
            for n in range(2):
                cursor.execute("SELECT @x := %s", [n])
                yield (n, n)

        cursor.executemany("UPDATE t SET n = %s WHERE n = %s", rows())
    said.append(one("SELECT @x"))


def a_block_inside_a_block() -> None:
    def rows() -> Iterator[Any]:
        yield (1,)
        try:
            with transaction.atomic():
                add(2)
                raise KeyError
        except KeyError:
            pass
        yield (3,)

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())


def what_is_asked_while_it_becomes_text() -> None:
    class Asking(str):
        def translate(self, table: Any) -> Any:
            with transaction.atomic():
                add(7)
            return one("SELECT 'seven'")

    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [Asking()])
        said.append(list(cursor.fetchone()))
        cursor.callproc("p", [Asking()])
        said.append(list(cursor.fetchone()))


def a_read_that_begins_a_block_and_writes_while_it_becomes_text() -> None:
    class Writing(str):
        def translate(self, table: Any) -> Any:
            add(7)
            run("SET @x = 7")
            return "text"

    with transaction.atomic():
        said.append(one("SELECT %s", Writing()))
        said.append(numbers())
        transaction.set_rollback(True)
    said.append(numbers())


def a_read_that_begins_a_block_and_never_becomes_text() -> None:
    class Failing(str):
        def translate(self, table: Any) -> Any:
            raise KeyError(7)

    with transaction.atomic():
        try:
            one("SELECT %s", Failing())
        except KeyError:
            said.append("failed")
        add(8)
        said.append(numbers())
        transaction.set_rollback(True)
    said.append(numbers())


def a_wrapper_of_django_s() -> None:
    def wrapper(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        if "seven" in sql:
            with transaction.atomic():
                add(1)
        result = execute(sql, params, many, context)
        if "seven" in sql:
            run("SET @x = 8")
        return result

    with connection.execute_wrapper(wrapper):
        said.append(one("SELECT 'seven'"))
    said.append(one("SELECT @x"))


def an_error_in_the_middle() -> None:
    def rows() -> Iterator[Any]:
        yield (1,)
        with transaction.atomic():
            add(2)
        run("SELECT nonsense")

    try:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t (n) VALUES (%s)", rows())
    except Exception as error:
        said.append(type(error).__name__)


NESTED: tuple[Callable[[], None], ...] = (
    parameters_of_a_bulk_insert_that_come_from_queries,
    parameters_of_several_updates,
    a_block_that_the_rows_are_written_in,
    the_same_cursor,
    a_block_inside_a_block,
    what_is_asked_while_it_becomes_text,
    a_read_that_begins_a_block_and_writes_while_it_becomes_text,
    a_read_that_begins_a_block_and_never_becomes_text,
    a_wrapper_of_django_s,
    an_error_in_the_middle,
)


def nest_all() -> dict[str, list[Any]]:
    """What each of them has seen, the rows that are left, and a variable that none may leave."""
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    run("CREATE PROCEDURE p(s TEXT) SELECT s")
    found = {}
    for scene in NESTED:
        said.clear()
        run("DELETE FROM t")
        connection.close()
        scene()
        said.append(numbers())
        connection.close()
        said.append(one("SELECT @x"))
        connection.close()
        found[scene.__name__] = said.copy()
    if patch.pools():  # none on plain Django
        stats = pool().stats()
        assert not stats["closed_total"], stats
        assert_sound()
    return found


def send_a_command(c: Any) -> None:
    c._execute_command(3, "SET @x = 7")
    c._read_ok_packet()


kept: list[object] = []
USES: dict[str, Callable[[Any], object]] = {
    "a command": send_a_command,
    "a converter": lambda c: c.decoders.update({3: lambda text: "mine", 8: lambda text: "mine"}),
    "all converters": lambda c: setattr(c, "decoders", {}),
    "an encoder": lambda c: c.encoders.update({int: lambda value, mapping=None: "'mine'"}),
    "a timeout": lambda c: setattr(c, "_read_timeout", 123),
    "a method that is kept": lambda c: kept.append(c.query.__self__._execute_command),
}


def what_was_used_directly_is_closed() -> None:
    for name, use in USES.items():
        before = pool().stats()["closed_total"] if patch.pools() else {}
        run("SELECT 1")
        c = connection.connection
        use(c)
        used = one("SELECT CONNECTION_ID()")
        assert one("SELECT CONNECTION_ID()") == used
        connection.close()
        closed = pool().stats()["closed_total"]
        assert closed["direct use"] == before.get("direct use", 0) + 1, name
        assert one("SELECT CONNECTION_ID()") != used
        c = connection.connection
        assert run("SELECT @x, %s", 1) == [(None, 1)], name
        assert c._read_timeout is None
        connection.close()
    assert_sound()
