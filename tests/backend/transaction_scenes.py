"""Scenes that play the same in both modes and on plain Django, for test_transaction_mode.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from django.db import connection, models, transaction
from django.db.models import F
from gevent.event import Event

from pooled_serve.backend import patch
from support.inside import assert_sound, one, run

said: list[Any] = []
"""What the scene that plays has seen."""


class Thing(models.Model):
    name: models.CharField[str, str] = models.CharField(max_length=50, unique=True)
    number: models.IntegerField[int, int] = models.IntegerField(default=0)

    class Meta:
        app_label = "things"
        managed = False
        db_table = "thing"

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def may_fail() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said.append([type(error).__name__, error.args[0] if error.args else None])


def names() -> None:
    said.append(sorted(Thing.objects.values_list("name", flat=True)))


def add(name: str, **more: Any) -> Thing:
    return Thing.objects.create(name=name, **more)


def second(sql: str, *args: Any) -> list[Any]:
    """On a connection of its own, whatever the mode."""
    copy = connection.copy()
    try:
        with copy.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        copy.close()


def nested_blocks() -> None:
    with transaction.atomic():
        add("a")
        with may_fail(), transaction.atomic():
            add("b")
            raise KeyError("inner")
        with transaction.atomic():
            add("c")
    names()
    with may_fail(), transaction.atomic():
        add("d")
        with transaction.atomic(savepoint=False):
            add("e")
        raise KeyError("outer")
    names()


def savepoints_by_hand() -> None:
    make = getattr(transaction, "savepoint_create", None) or transaction.savepoint
    with transaction.atomic():
        first = make()
        add("a")
        transaction.savepoint_rollback(first)
        second_one = make()
        add("b")
        transaction.savepoint_commit(second_one)
    names()


def an_error_inside_a_block() -> None:
    add("a")
    with may_fail(), transaction.atomic():
        add("b")
        with may_fail():
            add("a")
        names()
    names()
    with transaction.atomic():
        add("c")
        with may_fail(), transaction.atomic():
            add("a")
        add("d")
    names()
    with may_fail(), transaction.atomic():
        add("e")
        transaction.set_rollback(True)
    names()


def on_commit() -> None:
    with transaction.atomic():
        transaction.on_commit(lambda: said.append(["first", connection.in_atomic_block]))
        add("a")
        with may_fail(), transaction.atomic():
            transaction.on_commit(lambda: said.append("never"))
            raise KeyError("inner")
        transaction.on_commit(lambda: (add("b"), names()))
    transaction.on_commit(lambda: said.append("at once"))
    names()


def durable() -> None:
    with transaction.atomic(durable=True):
        add("a")
    with may_fail(), transaction.atomic(), transaction.atomic(durable=True):
        add("b")
    names()


def implicit_commits() -> None:
    with may_fail(), transaction.atomic():
        add("a")
        run("CREATE TABLE IF NOT EXISTS other (n INT)")
        said.append(len(second("SELECT * FROM thing")))
        add("b")
        said.append(len(second("SELECT * FROM thing")))
        raise KeyError
    names()
    with may_fail(), transaction.atomic():
        run("DROP TABLE other")
        add("c")
        raise KeyError
    names()
    with may_fail(), transaction.atomic():
        add("d")
        run("COMMIT")
        add("e")
        raise KeyError
    names()


def a_procedure_that_commits() -> None:
    run("DROP PROCEDURE IF EXISTS p")
    run(
        "CREATE PROCEDURE p() BEGIN INSERT INTO thing (name, number) VALUES ('p1', 1); COMMIT; "
        "INSERT INTO thing (name, number) VALUES ('p2', 1); END"
    )
    connection.close()
    with may_fail(), transaction.atomic():
        add("a")
        with connection.cursor() as cursor:
            cursor.callproc("p")
        add("b")
        raise KeyError
    names()


def raw_transactions() -> None:
    run("BEGIN")
    add("a")
    said.append(len(second("SELECT * FROM thing")))
    run("ROLLBACK")
    run("START TRANSACTION")
    add("b")
    run("COMMIT")
    names()
    run("BEGIN")
    add("c")
    transaction.commit()
    run("BEGIN")
    add("d")
    transaction.rollback()
    names()
    run("BEGIN")
    add("e")
    connection.close()
    names()


def set_autocommit() -> None:
    transaction.set_autocommit(False)
    add("a")
    said.append(len(second("SELECT * FROM thing")))
    transaction.commit()
    said.append(len(second("SELECT * FROM thing")))
    add("b")
    transaction.rollback()
    add("c")
    transaction.set_autocommit(True)
    said.append(transaction.get_autocommit())
    said.append(len(second("SELECT * FROM thing")))
    names()
    transaction.set_autocommit(False)
    transaction.commit()
    transaction.rollback()
    transaction.set_autocommit(True)
    add("d")
    names()


def set_autocommit_by_variable() -> None:
    run("SET autocommit = 0")
    add("a")
    said.append(len(second("SELECT * FROM thing")))
    with transaction.atomic():
        add("b")
    said.append(len(second("SELECT * FROM thing")))
    add("c")
    said.append(len(second("SELECT * FROM thing")))
    run("SET autocommit = 0")
    add("d")
    transaction.set_autocommit(True)
    said.append(len(second("SELECT * FROM thing")))
    run("SET autocommit = 0")
    add("e")
    connection.close()
    names()


def lock_tables() -> None:
    transaction.set_autocommit(False)
    run("LOCK TABLES thing WRITE")
    add("a")
    with may_fail():
        second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
    transaction.commit()
    with may_fail():
        second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
    run("UNLOCK TABLES")
    said.append(len(second("SELECT * FROM thing")))
    transaction.set_autocommit(True)
    run("LOCK TABLES thing WRITE")
    with transaction.atomic():
        add("b")
        with may_fail():
            second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
    with may_fail():
        second("SET STATEMENT lock_wait_timeout=0 FOR SELECT * FROM thing")
    run("UNLOCK TABLES")
    said.append(len(second("SELECT * FROM thing")))


def an_isolation_level_for_a_block() -> None:
    add("a")

    def twice() -> None:
        found = [Thing.objects.count()]
        second("INSERT INTO thing (name, number) VALUES (UUID(), 1)")
        said.append([*found, Thing.objects.count()])

    with transaction.atomic():
        twice()
    with transaction.atomic():
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        twice()
    with transaction.atomic():
        twice()
    run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with transaction.atomic():
        twice()
    with may_fail(), transaction.atomic():
        add("b")
        run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    said.append(Thing.objects.filter(name="b").count())


def a_deadlock() -> None:
    add("a")
    add("b")

    def other() -> None:
        with may_fail(), transaction.atomic():
            for n in range(50):
                # The one that wrote less is the victim. No name twice: InnoDB would find the
                # deleted one, not purged yet, and wait for the lock of its neighbour.
                add(f"ballast {caught} {n}")
            Thing.objects.filter(name="b").update(number=1)
            ready.set()
            Thing.objects.filter(name="a").update(number=1)
        connection.close()

    for caught in ("nothing", "block", "statement"):
        ready = Event()
        with may_fail(), transaction.atomic():
            add("lost " + caught)
            Thing.objects.filter(name="a").update(number=2)
            greenlet = gevent.spawn(other)
            assert ready.wait(30), str(said)
            gevent.sleep(0.05)
            with contextlib.ExitStack() as stack:
                if caught != "nothing":
                    stack.enter_context(may_fail())
                if caught == "block":
                    stack.enter_context(transaction.atomic())
                Thing.objects.filter(name="b").update(number=2)
            add("after " + caught)
        greenlet.join()
        Thing.objects.filter(name__startswith="ballast").delete()
        names()
        said.append(transaction.get_autocommit())


def a_connection_that_dies_in_a_block() -> None:
    def die() -> None:
        second("KILL %s", one("SELECT CONNECTION_ID()"))
        gevent.sleep(0.05)

    def block(inner: Any) -> None:
        with may_fail(), transaction.atomic():
            add("a")
            die()
            for name in "bcd":
                with may_fail(), inner():
                    add(name)
        connection.close()
        names()

    block(contextlib.nullcontext)
    block(transaction.atomic)
    with may_fail(), transaction.atomic():
        one("SELECT 1")
        die()
        add("e")
    connection.close()
    with may_fail():
        run("BEGIN")
        add("f")
        die()
        with may_fail():
            add("g")
        add("h")
    connection.close()
    names()


def rows_and_counts() -> None:
    things = Thing.objects.bulk_create(
        [Thing(name=f"n{n}", number=n) for n in range(300)], batch_size=70
    )
    said.append([len(things), Thing.objects.count()])
    said.append(add("é € 😀").name)
    said.append([Thing.objects.get_or_create(name=name)[1] for name in ("n1", "x")])
    said.append(Thing.objects.filter(number__lt=10).update(number=F("number") + 1))
    said.append(sum(thing.number for thing in Thing.objects.iterator(chunk_size=50)))
    said.append(
        sorted(
            thing.name for thing in Thing.objects.raw("SELECT * FROM thing WHERE number < %s", [3])
        )
    )
    Thing.objects.update_or_create(name="n2", defaults={"number": 1000})
    said.append(Thing.objects.get(name="n2").number)
    with connection.cursor() as cursor:
        sql = "INSERT INTO thing (name, number) VALUES (%s, %s)"
        cursor.executemany(sql, [(f"m{n}", n) for n in range(5)])
        said.append(cursor.rowcount)
        update = "UPDATE thing SET number = %s WHERE name = %s"
        cursor.executemany(update, [(7, "m1"), (8, "m2")])
        said.append(cursor.rowcount)
        cursor.execute(sql, ["last", 1])
        said.append([cursor.rowcount, cursor.lastrowid == Thing.objects.get(name="last").pk])
        cursor.execute("SELECT name, number FROM thing WHERE name LIKE 'm%%' ORDER BY name")
        said.append([cursor.rowcount, [column[0] for column in cursor.description]])
        said.append([cursor.fetchone(), cursor.fetchmany(2), list(cursor)])
        said.append(cursor.fetchall())
    with transaction.atomic():
        locked = Thing.objects.select_for_update().get(name="m3")
        locked.number += 1
        locked.save()
        with may_fail():
            second("SELECT * FROM thing WHERE name = 'm3' FOR UPDATE NOWAIT")
    said.append(Thing.objects.get(name="m3").number)
    with may_fail():
        list(Thing.objects.select_for_update())
    said.append(Thing.objects.filter(name__startswith="n").delete())


SCENES: tuple[Callable[[], None], ...] = (
    nested_blocks,
    savepoints_by_hand,
    an_error_inside_a_block,
    on_commit,
    durable,
    implicit_commits,
    a_procedure_that_commits,
    raw_transactions,
    set_autocommit,
    set_autocommit_by_variable,
    lock_tables,
    an_isolation_level_for_a_block,
    a_deadlock,
    a_connection_that_dies_in_a_block,
    rows_and_counts,
)


def play_all() -> dict[str, list[Any]]:
    """What each scene has seen."""
    found = {}
    for scene in SCENES:
        said.clear()
        gevent.spawn(play, scene).get()
        found[scene.__name__] = said.copy()
        if patch.pools():  # none on plain Django
            assert_sound()
    return found


def play(scene: Callable[[], None]) -> None:
    run("DROP TABLE IF EXISTS thing")
    run(
        "CREATE TABLE thing (id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50) UNIQUE, "
        "number INT NOT NULL) ENGINE=InnoDB CHARACTER SET utf8mb4"
    )
    scene()
    connection.close()
