"""The view of test_strangers.py: what it leaves in its session, no other request may find."""

import uuid
from collections.abc import Callable

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse

# True in a fresh session, and in no other one that left() has been in.
FRESH = """
    SELECT @mine IS NULL AND @@time_zone = @@GLOBAL.time_zone
    AND @@group_concat_max_len = @@GLOBAL.group_concat_max_len
    AND COALESCE(IS_USED_LOCK('mine') <> CONNECTION_ID(), TRUE)
"""


def run(sql: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None


def has_table() -> bool:
    try:
        run("SELECT COUNT(*) FROM mine")
    except Exception:
        return False
    return True


def a_variable() -> None:
    mine = uuid.uuid4().hex
    run(f"SET @mine = '{mine}'")
    run("SELECT SLEEP(0.01)")
    if run("SELECT @mine") != (mine,):
        raise ValueError("it has another session")


def a_table() -> None:
    run("CREATE TEMPORARY TABLE mine (n INT)")
    run("INSERT INTO mine VALUES (1)")
    if run("SELECT COUNT(*) FROM mine") != (1,):
        raise ValueError("it has another session")


def settings() -> None:
    run("SET time_zone = '+05:00', group_concat_max_len = 4444")
    run("SELECT SLEEP(0.01)")


def a_lock() -> None:
    run("SELECT GET_LOCK('mine', 0)")
    run("SELECT SLEEP(0.01)")


def a_transaction() -> None:
    run("BEGIN")
    run("INSERT INTO never VALUES (1)")
    run("SELECT SLEEP(0.01)")


def a_block() -> None:
    with transaction.atomic():
        run("SET @mine = 'a block'")
        run("INSERT INTO never VALUES (2)")
        run("SELECT SLEEP(0.01)")
        transaction.set_rollback(True)


LEAVE: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (a_variable, a_table, settings, a_lock, a_transaction, a_block)
}


def left(request: HttpRequest) -> HttpResponse:
    """418 if it finds anything of another request."""
    if run(FRESH) != (1,) or has_table():
        return HttpResponse("not fresh", status=418)
    LEAVE[request.GET["what"]]()
    return HttpResponse("left")


def rows(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(run("SELECT COUNT(*) FROM never")))
