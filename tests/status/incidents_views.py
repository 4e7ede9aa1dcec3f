"""Views that cause trouble; test_incidents.py stages it."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from gevent.monkey import get_original

forgotten: list[Any] = []


def quick(request: HttpRequest) -> HttpResponse:
    _sleep(0.05)
    return HttpResponse()


def quick_often(request: HttpRequest) -> HttpResponse:
    for _ in range(20):
        _sleep(0.05)
    return HttpResponse()


def report(request: HttpRequest) -> HttpResponse:
    _sleep(0.8)
    return HttpResponse()


def rows(request: HttpRequest) -> HttpResponse:
    for number in range(200):  # as {% for order in orders %}{{ order.customer.name }}
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [number])
            cursor.fetchall()
    return HttpResponse()


def remember(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SET @user = 7")
    gevent.sleep(0.1)  # asks another service
    return HttpResponse()


def forget(request: HttpRequest) -> HttpResponse:
    forgotten.append(gevent.spawn(_hold))
    return HttpResponse()


def outside(request: HttpRequest) -> HttpResponse:
    """Query, ask another service, query."""
    _sleep(0)
    gevent.sleep(0.3)
    _sleep(0)
    return HttpResponse()


@transaction.atomic
def outside_atomic(request: HttpRequest) -> HttpResponse:
    """The same as with ATOMIC_REQUESTS."""
    return outside(request)


def compute(request: HttpRequest) -> HttpResponse:
    """Query, and use the processor."""
    _sleep(0)
    _compute(float(request.GET.get("seconds", "0.02")))
    return HttpResponse()


def block(request: HttpRequest) -> HttpResponse:
    """Wait without gevent, as a library in C does."""
    get_original("time", "sleep")(float(request.GET["seconds"]))
    return HttpResponse()


def block_and_go_on(request: HttpRequest) -> HttpResponse:
    """Block in the middle, and be still there afterwards."""
    _sleep(0)
    block(request)
    with connection.cursor() as cursor:
        cursor.execute(request.GET["sql"])
    return HttpResponse()


def block_in_the_response(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"first"
        block(request)
        yield b"second"

    return StreamingHttpResponse(parts())


def block_in_a_greenlet(request: HttpRequest) -> HttpResponse:
    gevent.spawn(block_alone, float(request.GET["seconds"]))
    return HttpResponse()


def block_alone(seconds: float) -> None:
    get_original("time", "sleep")(seconds)


def block_in_middleware(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path == "/nowhere":
            block(request)
        return get_response(request)

    return middleware


def _compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def _hold() -> None:
    with transaction.atomic():
        _sleep(0)
        gevent.sleep(600)


def _sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])
        cursor.fetchall()
