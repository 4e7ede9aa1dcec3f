"""Views that keep connections, by way of a library and without one."""

from collections.abc import Iterator

import gevent
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.template import engines

from pooled_serve.status import leaks

leaks.REPORT_SECONDS = 2.0


def _ask() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _rows() -> Iterator[int]:
    _ask()
    yield 1


def through_a_library(request: HttpRequest) -> HttpResponse:
    template = engines["django"].from_string("{% for row in rows %}{{ row }}{% endfor %}")
    answer = template.render({"rows": _rows})
    gevent.sleep(0.6)
    return HttpResponse(answer)


def reports(request: HttpRequest) -> HttpResponse:
    """How many places have been reported, and are not forgotten yet."""
    return HttpResponse(len(leaks._reports))


def often(request: HttpRequest) -> HttpResponse:
    _ask()
    gevent.sleep(0.6)
    return HttpResponse()
