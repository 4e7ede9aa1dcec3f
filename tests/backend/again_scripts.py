"""What test_again.py runs in a process of its own, under the names of the tests."""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pymysql
from django.db import DatabaseError, transaction
from pymysql.cursors import Cursor, SSCursor

from pooled_serve.driver.connection import MySQLConnection
from pooled_serve.pool import PoolListener
from support.inside import assert_sound, connection, connections, one, patch, pool, run, settle

INSERT = "INSERT INTO t (s) VALUES ('x')"
CREATE = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, s VARCHAR(9)) ENGINE=InnoDB"


def leased() -> Any:
    """The connection below Django's."""
    return connection.connection._conn


def admin() -> Any:
    settings = connections.settings["default"]
    return pymysql.connect(
        host=settings["HOST"],
        port=int(settings["PORT"]),
        user=settings["USER"],
        password=settings["PASSWORD"],
        database=settings["NAME"],
    )


def kill() -> None:
    """End the leased connection, as an operator, a timeout or a restart does."""
    conn = leased()
    with admin() as other, other.cursor() as cursor:
        cursor.execute(f"KILL {conn.thread_id()}")
    settle(lambda: not conn.alive())
    gevent.sleep(0.02)


def end_when_it_runs(text: str) -> None:
    """Let an operator end the user's statement once the server is at work for it."""
    with admin() as other, other.cursor() as cursor:

        def running() -> list[int]:
            used = {entry.conn.thread_id() for entry in pool()._leased.values()}
            cursor.execute("SHOW FULL PROCESSLIST")
            return [row[0] for row in cursor.fetchall() if row[0] in used and text in str(row[7])]

        settle(running)
        (number,) = running()
        cursor.execute(f"KILL {number}")


def cannot_send() -> None:
    """The kernel refuses what comes next, and nothing of it arrives."""
    leased()._sock.shutdown(socket.SHUT_WR)


def retried() -> int:
    return int(pool().stats()["retried_total"])


def rows() -> int:
    return int(one("SELECT COUNT(*) FROM t"))


@contextlib.contextmanager
def request() -> Iterator[None]:
    """A request is served, in either mode."""
    patch.begin_request(object())
    try:
        yield
    finally:
        patch.end_request()
        connection.close()


def what_loses_nothing_runs_on_a_fresh_connection() -> None:
    with request():
        run(CREATE)
    whole = (lambda: one("SELECT 1"), lambda: run(INSERT), atomic_insert, atomic_read)
    cases = [(end, do) for end in (kill, cannot_send) for do in whole]
    for done, (end, do) in enumerate([*cases, (kill, insert_many)], 1):
        with request():
            run("SELECT 2")
            end()
            do()
        assert retried() == done, (end, do)
    with request():
        assert rows() == 8
    assert_sound()


def insert_many() -> None:
    """Several statements in one: nothing of it may have run."""
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (s) VALUES (%s)", [("x",), ("y",)])


def atomic_insert() -> None:
    with transaction.atomic():
        run(INSERT)


def atomic_read() -> None:
    """Its BEGIN is sent together with what it reads."""
    with transaction.atomic():
        one("SELECT 1")
        run(INSERT)


def half_an_atomic_block(end: Callable[[], None]) -> None:
    with transaction.atomic():
        run(INSERT)
        end()
        run(INSERT)


def fails(do: Callable[[], object]) -> None:
    try:
        do()
    except DatabaseError:
        return
    raise AssertionError("it ran")


def what_would_lose_something_fails() -> None:
    with request():
        run(CREATE)
    for end in (kill, cannot_send):
        with request():
            run("SET @x = 1")
            end()
            fails(lambda: one("SELECT @x"))
        with request():
            run(INSERT)
            end()
            fails(lambda: one("SELECT LAST_INSERT_ID()"))
        with request():
            fails(partial(half_an_atomic_block, end))
        with request():
            connection.ensure_connection()
            connection.set_autocommit(False)
            run(INSERT)
            end()
            fails(lambda: run("SELECT 1"))
    assert retried() == 0
    with request():
        assert rows() == 2, "of those committed"
    assert_sound()


def after_a_read_timeout_nothing_runs_again() -> None:
    with request():
        run("SELECT 1")
        leased()._read_timeout = 0.2
        fails(lambda: run("SELECT SLEEP(30)"))
    assert retried() == 0
    assert_sound()


SEVEN_DAYS = "SELECT TIMEDIFF('2026-01-09 00:00:00', '2026-01-02 00:00:00')"


def unconverted() -> None:
    """Django takes a TIME for one of a day."""
    try:
        run(SEVEN_DAYS)
    except ValueError:
        return
    raise AssertionError("it could be converted")


def after_a_value_that_cannot_be_converted_all_goes_on() -> None:
    with request():
        run(CREATE)
    with request():
        unconverted()
        used = leased()
        assert rows() == 0
        with transaction.atomic():
            run(INSERT)
            unconverted()
            run(INSERT)
            with transaction.atomic():
                unconverted()
                run(INSERT)
        assert rows() == 3
        assert leased() is used or leased() is None  # in the other mode
    assert retried() == 0
    assert pool().stats()["closed_total"] == {}
    assert_sound()


def a_connection_closed_by_its_own_side_is_replaced_and_says_why(how: str) -> None:
    with request():
        run(CREATE)

    def interrupt(statement: Callable[[], object]) -> None:
        if how == "kill":
            me = gevent.getcurrent()
            gevent.spawn_later(0.2, me.kill, gevent.GreenletExit, block=False)
        if how.endswith("timeout"):
            leased()._read_timeout = 0.2
            fails(statement)
            return
        try:
            with gevent.Timeout(0.2 if how == "Timeout" else None):
                statement()
        except (gevent.Timeout, gevent.GreenletExit):
            return
        raise AssertionError("it was not interrupted")

    def user() -> None:
        with request():
            run("SELECT 1")
            interrupt(lambda: run("SELECT SLEEP(30)"))
            run(INSERT)

    gevent.spawn(user).get(timeout=60)
    stats = pool().stats()
    assert stats["closed_total"].pop("killed") == 1
    assert set(stats["closed_total"]) <= {"surplus"}
    assert stats["retried_total"] == 0, "it was not found dead"
    with request():
        assert rows() == 1
    assert_sound()


def what_the_program_handles_meanwhile_is_no_tcp_reset() -> None:
    """Somebody's KILL of a statement holds, also while another service's error is handled."""
    with request():
        run("SELECT 1")

    def user() -> None:
        with request():
            run("SELECT 1")
            try:
                raise ConnectionResetError
            except ConnectionResetError:
                fails(lambda: run("SELECT SLEEP(30)"))

    victim = gevent.spawn(user)
    end_when_it_runs("SLEEP")
    victim.get(timeout=20)
    assert retried() == 0
    assert_sound()


def who_is_killed_while_a_fresh_one_is_leased_leaves_nothing() -> None:
    # PyMySQL leaves the socket of an interrupted connect to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    with request():
        run("SELECT 1")
    there: list[gevent.Greenlet] = []

    def user() -> None:
        with request():
            run("SELECT 1")
            cannot_send()
            there.append(gevent.getcurrent())
            run("SELECT 1")

    for seconds in (0, 0.001, 0.003, 0.01, 0.03):
        victim = gevent.spawn(user)
        settle(lambda: there)
        there.clear()
        gevent.sleep(seconds)
        victim.kill()
        settle(lambda: pool().stats()["in_use"] == 0)
    assert_sound()


def listeners_are_told() -> list[str]:
    told: list[str] = []

    class Listener(PoolListener):
        def retried(self, error: Exception) -> None:
            told.append(str(error))

    with request():
        run("SELECT 1")
        pool()._listeners += (Listener(),)
        kill()
        run("SELECT 1")
    return told


def cursors_of_one_s_own_class_run_again() -> None:
    class Own(Cursor):  # type: ignore[misc]  # PyMySQL has no types
        """Some project's."""

    with request():
        connection.ensure_connection()
        session = connection.connection
        session.cursor(Own).execute("SELECT 1")
        cannot_send()
        with session.cursor(Own) as cursor:
            cursor.execute("SELECT 2")
            assert cursor.fetchall() == ((2,),)
    assert retried() == 1
    assert_sound()


class Lazy:
    """A parameter that asks the database for its value."""

    def __str__(self) -> str:
        return str(one("SELECT 1"))


def after_a_statement_in_a_parameter_it_is_not_taken_for_that() -> int:
    """The server runs the UPDATE, and its answer is lost."""
    with request():
        run("CREATE TABLE n (id INT PRIMARY KEY, n INT)")
        run("INSERT INTO n VALUES (1, 0)")
    driver: Any = MySQLConnection
    read = driver._read_query_result

    def lose(self: MySQLConnection, unbuffered: bool = False) -> Any:
        answer = read(self, unbuffered)
        if answer == 1 and not self._result.field_count:
            self._force_close()
            raise pymysql.OperationalError(2013, "Lost connection to MySQL server during query")
        return answer

    driver._read_query_result = lose
    with request():
        fails(lambda: run("UPDATE n SET n = n + 1 WHERE id = %s", Lazy()))
    driver._read_query_result = read
    assert retried() == 0
    with request():
        return int(one("SELECT n FROM n"))


def rows_that_wait_to_be_read_are_no_sign_of_death() -> None:
    with request():
        run("CREATE TABLE s (s VARCHAR(8000))")
        run("INSERT INTO s SELECT REPEAT('x', 8000) FROM information_schema.COLUMNS LIMIT 300")
    with request():
        connection.ensure_connection()
        with connection.connection.cursor(SSCursor) as unread:
            unread.execute("SELECT s FROM s")
            unread.fetchone()
            gevent.sleep(0.05)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyMySQL reads the rest first, and says so
                assert one("SELECT 5") == 5
    assert retried() == 0
    assert "lost" not in pool().stats()["closed_total"]
    assert_sound()


def what_somebody_ends_does_not_run_again(times: int, known: bool) -> None:
    if not known:  # as through a proxy that lacks one of the variables
        driver: Any = MySQLConnection
        read = driver._read_session_defaults

        def read_nothing(self: MySQLConnection) -> None:
            read(self)
            self.identity, self.instance, self.has_own_id = (), -1, False

        driver._read_session_defaults = read_nothing
    with request():
        run("CREATE TABLE k (id INT PRIMARY KEY)")
        run("INSERT INTO k VALUES " + ", ".join(f"({number})" for number in range(600)))
    join = "SELECT SUM(LENGTH(SHA2(CONCAT(a.id, b.id, c.id), 256))) FROM k a, k b, k c"

    def user() -> None:
        with request():
            fails(lambda: run(join))

    for _ in range(times):
        victim = gevent.spawn(user)
        end_when_it_runs("SHA2")
        victim.get(timeout=60)
    assert retried() == 0
    assert_sound()


def functions_that_write(names: list[str]) -> list[str]:
    """Of these names, those with which a stored function is called, as they stand in a SELECT."""
    run("CREATE TABLE written (name VARCHAR(99))")
    found = []
    for name in names:
        bare = name.strip("`( ").upper()
        with contextlib.suppress(DatabaseError, Warning):
            run(f"DROP FUNCTION IF EXISTS `{bare}`")
            run(
                f"CREATE FUNCTION `{bare}`(x INT) RETURNS INT DETERMINISTIC MODIFIES SQL DATA "
                f"BEGIN INSERT INTO written VALUES ('{bare}'); RETURN x; END"
            )
        run("DELETE FROM written")
        with contextlib.suppress(DatabaseError, Warning):
            run(f"SELECT {name}1)")
        if one("SELECT COUNT(*) FROM written"):
            found.append(name)
        with contextlib.suppress(DatabaseError, Warning):
            run(f"DROP FUNCTION IF EXISTS `{bare}`")
    return found
