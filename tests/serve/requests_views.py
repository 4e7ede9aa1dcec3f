"""The views of test_requests.py, beside those of support.site: ways that a request can end."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gevent
from django.core.signals import request_started
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

begun: Counter[str] = Counter()
request_started.connect(lambda environ, **kw: begun.update([environ["PATH_INFO"]]), weak=False)


def requests_begun(request: HttpRequest) -> HttpResponse:
    return JsonResponse(begun)


def sql(text: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall() if cursor.description else ()


def boom(request: HttpRequest) -> None:
    sql("SELECT 1")
    raise ValueError("a bug")


def boom_in_transaction(request: HttpRequest) -> None:
    sql("BEGIN")
    sql("INSERT INTO t VALUES (1)")
    raise ValueError("a bug")


def boom_in_atomic(request: HttpRequest) -> None:
    with transaction.atomic():
        sql("INSERT INTO t VALUES (1)")
        raise ValueError("a bug")


def forgotten_transaction(request: HttpRequest) -> HttpResponse:
    sql("BEGIN")
    sql("INSERT INTO t VALUES (1)")
    return HttpResponse()


def forgotten_autocommit(request: HttpRequest) -> HttpResponse:
    transaction.set_autocommit(False)
    sql("INSERT INTO t VALUES (1)")
    return HttpResponse()


def forgotten_atomic(request: HttpRequest) -> HttpResponse:
    transaction.atomic().__enter__()
    sql("INSERT INTO t VALUES (1)")
    return HttpResponse()


def forgotten_cursor(request: HttpRequest) -> HttpResponse:
    from pymysql.cursors import SSCursor

    connection.ensure_connection()
    cursor = connection.connection.cursor(SSCursor)
    cursor.execute("SELECT 1 UNION SELECT 2")
    request.kept = cursor  # type: ignore[attr-defined]
    return HttpResponse()


def timeout_in_query(request: HttpRequest) -> None:
    with gevent.Timeout(0.05):
        sql("SELECT SLEEP(0.5)")


def timeout_in_transaction(request: HttpRequest) -> None:
    with gevent.Timeout(0.05), transaction.atomic():
        sql("INSERT INTO t VALUES (1)")
        gevent.sleep(1)


def killed(request: HttpRequest) -> None:
    sql("BEGIN")
    sql("INSERT INTO t VALUES (1)")
    raise gevent.GreenletExit


def exits(request: HttpRequest) -> None:
    sql("BEGIN")
    sql("INSERT INTO t VALUES (1)")
    raise SystemExit(1)


def closed_in_atomic(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        sql("INSERT INTO t VALUES (1)")
        connection.close()
    return HttpResponse()


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def rows() -> Iterator[Any]:
        with transaction.atomic():
            sql("INSERT INTO t VALUES (1)")
            for _ in range(int(request.GET["rows"])):
                yield b"x" * 100_000
                sql("SELECT 1")

    return StreamingHttpResponse(rows())


def stream_boom(request: HttpRequest) -> StreamingHttpResponse:
    def rows() -> Iterator[Any]:
        sql("SELECT 1")
        yield b"x"
        raise ValueError("a bug")

    return StreamingHttpResponse(rows())


def sleep(request: HttpRequest) -> HttpResponse:
    sql(f"SELECT SLEEP({float(request.GET['seconds'])})")
    return HttpResponse()


def nested(request: HttpRequest) -> HttpResponse:
    called = []
    with transaction.atomic():
        sql("INSERT INTO t VALUES (1)")
        transaction.on_commit(lambda: called.append("outer"))
        try:
            with transaction.atomic():
                sql("INSERT INTO t VALUES (2)")
                transaction.on_commit(lambda: called.append("inner"))
                raise KeyError
        except KeyError:
            pass
        transaction.on_commit(lambda: sql("INSERT INTO t VALUES (3)"))
        assert called == []
    return JsonResponse(called, safe=False)


def pollute(request: HttpRequest) -> HttpResponse:
    def refuse(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> None:
        raise AssertionError("a wrapper of the last request")

    sql("SELECT 1")
    connection.force_debug_cursor = True
    sql("SELECT 2")
    connection.savepoint_state = 7
    transaction.atomic().__enter__()
    transaction.on_commit(lambda: sql("INSERT INTO t VALUES (1)"))
    connection.needs_rollback = True
    connection.execute_wrappers.append(refuse)
    return HttpResponse()


def flags(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        sql("SELECT 1")
    return JsonResponse(
        [
            connection.force_debug_cursor,
            len(connection.queries_log),
            connection.savepoint_state,
            connection.in_atomic_block,
            connection.needs_rollback,
            len(connection.run_on_commit),
            len(connection.execute_wrappers),
            connection.get_autocommit(),
        ],
        safe=False,
    )
