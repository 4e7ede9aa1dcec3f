"""A traced project's views, and what was traced."""

from importlib import import_module
from typing import Any

import gevent
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from opentelemetry import trace

spans: Any = import_module("traces_setup").spans


def ask(request: HttpRequest) -> HttpResponse:
    seconds = float(request.GET.get("seconds", 0))
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID(), SLEEP(%s)", [seconds])
        return HttpResponse(str(cursor.fetchone()[0]))


def write(request: HttpRequest) -> HttpResponse:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE t (n INT)")
        cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
        cursor.execute("SELECT COUNT(*) FROM t")
        return HttpResponse(str(cursor.fetchone()[0]))


def killed(request: HttpRequest) -> HttpResponse:
    """Tasks with spans of their own, each killed at another moment: while it waits, connects or
    has its spans sent."""

    def work() -> None:
        with trace.get_tracer("tests").start_as_current_span("work"), connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    for n in range(100):
        tasks = [gevent.spawn(work) for _ in range(4)]
        gevent.sleep(n / 10_000)
        gevent.killall(tasks)
    return HttpResponse()


def told(request: HttpRequest) -> JsonResponse:
    by_id = {span.context.span_id: span for span in spans.get_finished_spans()}

    def parent(span: Any) -> Any:
        return None if span.parent is None else by_id.get(span.parent.span_id)

    return JsonResponse(
        [
            {
                "name": span.name,
                "parent": getattr(parent(span), "name", None),
                "attributes": dict(span.attributes or {}),
                "seconds": (span.end_time - span.start_time) / 1e9,
                "ok": span.status.is_ok,
            }
            for span in by_id.values()
        ],
        safe=False,
    )
