"""The views of test_transaction_mode.py."""

from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from gevent.event import Event


def run(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else ()


# --- What it costs -----------------------------------------------------------------------------


def bare(request: HttpRequest) -> HttpResponse:
    run("SELECT 1")
    return HttpResponse()


def block(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        run("SELECT 1")
    return HttpResponse()


def writing_block(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        run("UPDATE t SET n = n + 1")
    return HttpResponse()


def empty(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        pass
    return HttpResponse()


def twice(request: HttpRequest) -> HttpResponse:
    block(request)
    return block(request)


# --- Keys --------------------------------------------------------------------------------------


def answers(*statements: str) -> HttpResponse:
    with transaction.atomic():
        return HttpResponse(str([run(sql)[0][0] for sql in statements]))


def tables(request: HttpRequest) -> HttpResponse:
    run("CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, n INT)")
    run("CREATE TABLE plain (n INT PRIMARY KEY)")
    return HttpResponse()


INTO_T = "INSERT INTO t (n) VALUES (1) RETURNING id"
INTO_PLAIN = "INSERT INTO plain (n) VALUES (FLOOR(RAND() * 1e9)) RETURNING 'none'"
ASKED = "SELECT LAST_INSERT_ID()"


def key(request: HttpRequest) -> HttpResponse:
    return answers(INTO_T, ASKED)


def no_key(request: HttpRequest) -> HttpResponse:
    return answers(INTO_PLAIN, ASKED)


def key_before(request: HttpRequest) -> HttpResponse:
    return answers(INTO_T, INTO_PLAIN, ASKED)


def two(request: HttpRequest) -> HttpResponse:
    return answers(INTO_PLAIN, INTO_PLAIN)


def fails(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        try:
            with transaction.atomic():
                run("INSERT INTO t (n) VALUES (nonsense) RETURNING id")
        except Exception as error:
            return HttpResponse(f"{error.args[0]} {run(ASKED)}")
        raise AssertionError("it did not")


# --- Between two queries -----------------------------------------------------------------------

callers: list[HttpRequest] = []
all_are_here = Event()


def outside(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        callers.append(request)
        if len(callers) == 30:
            all_are_here.set()
        assert all_are_here.wait(20)
        cursor.execute("SELECT 2")
        return HttpResponse(str(cursor.fetchone()[0]))


# --- With ATOMIC_REQUESTS ----------------------------------------------------------------------


@transaction.non_atomic_requests
def make(request: HttpRequest) -> HttpResponse:
    run("CREATE TABLE t (n INT) ENGINE=InnoDB")
    return HttpResponse()


def good(request: HttpRequest) -> HttpResponse:
    run("INSERT INTO t VALUES (1)")
    return HttpResponse()


def bad(request: HttpRequest) -> None:
    run("INSERT INTO t VALUES (2)")
    raise KeyError


def rows(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(run("SELECT n FROM t")))
