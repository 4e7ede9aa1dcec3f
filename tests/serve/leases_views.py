"""The views of test_leases.py, beside those of support.site: who keeps a connection, how long."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
from django.core.signals import request_finished
from django.db import close_old_connections, connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from gevent.event import Event

from pooled_serve.backend import patch

LARGE = b"0123456789abcdef" * 200_000
never = Event()


def one(sql: Any, *args: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return cursor.fetchone()[0] if cursor.description else None


def in_use() -> Any:
    return patch.pools()["default"].stats()["in_use"]


# --- Requests


def large(request: HttpRequest) -> HttpResponse:
    one("SELECT 1")
    return HttpResponse(LARGE)


def pieces(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[Any]:
        for n in range(200):
            one("SELECT %s", n)
            yield LARGE

    one("SELECT 1")
    return StreamingHttpResponse(pieces())


def streams(request: HttpRequest) -> StreamingHttpResponse:
    kind = request.GET["kind"]

    def pieces() -> Iterator[Any]:
        if kind == "session":
            yield f"{one('SELECT @x')} "
        elif kind == "transaction":
            yield f"{one('SELECT COUNT(*) FROM t')} "
        elif kind == "unbuffered":
            yield f"{rows.fetchone()[0]} "
            yield f"{rows.fetchall()[-1][0]} "
        else:
            with transaction.atomic():
                one("INSERT INTO t VALUES (1)")
                yield f"{one('SELECT COUNT(*) FROM t')} "
                transaction.set_rollback(True)
        yield str(in_use())

    if kind == "session":
        one("SET @x = 7")
    elif kind == "transaction":
        one("BEGIN")
        one("INSERT INTO t VALUES (1)")
    elif kind == "unbuffered":
        from pymysql.cursors import SSCursor

        connection.ensure_connection()
        rows = connection.connection.cursor(SSCursor)
        rows.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
    else:
        one("SELECT 1")
    return StreamingHttpResponse(pieces())


def asks(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[Any]:
        try:
            one("SELECT ROW_COUNT()")
        except Exception as error:
            yield str(error)

    one("UPDATE t SET n = 1")
    return StreamingHttpResponse(pieces(), headers={"X-Rows": one("SELECT ROW_COUNT()")})


finished: list[object] = []


def receiver(sender: Any, **more: Any) -> None:
    if finished:
        finished.append(one("SELECT 'finished'"))


request_finished.connect(receiver)


def signal(request: HttpRequest) -> HttpResponse:
    finished.append("view")
    return HttpResponse(one("SELECT 1"))


def signalled(request: HttpRequest) -> HttpResponse:
    return JsonResponse([finished, in_use()], safe=False)


# --- What serves no request

executor = ThreadPoolExecutor(8)
done: list[Any] = []


def task(number: Any) -> None:
    done.append(one("SELECT %s", number))
    with transaction.atomic():
        one("SELECT 1")
    all_started.append(number)
    while len(all_started) < 8:
        gevent.sleep(0.01)


all_started: list[Any] = []


def tasks(request: HttpRequest) -> HttpResponse:
    all_started.clear()
    return JsonResponse(sum(1 for _ in executor.map(task, range(8))), safe=False)


said: dict[str, Any] = {}


def background() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO numbered (n) VALUES (1)")
        said["lastrowid"] = cursor.lastrowid
    try:
        one("SELECT LAST_INSERT_ID()")
    except Exception as error:
        said["asked"] = str(error)
    with transaction.atomic():
        one("INSERT INTO numbered (n) VALUES (1)")
        said["in a block"] = one("SELECT LAST_INSERT_ID()")
    said["free"] = in_use()
    one("SET @x = 5")
    said["pinned"] = [in_use(), one("SELECT @x")]
    close_old_connections()
    said["closed"] = in_use()
    never.wait()


def jobs(request: HttpRequest) -> HttpResponse:
    gevent.spawn(background)
    while "closed" not in said:
        gevent.sleep(0.01)
    return JsonResponse(said)
