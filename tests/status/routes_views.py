"""Views and middleware that use the database, under routes that are not their paths."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import greenlet
from django.db import connection, connections
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client

GetResponse = Callable[[HttpRequest], Any]


def query(seconds: float = 0.0) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])


def asks_first(get_response: GetResponse) -> GetResponse:
    """Middleware that queries before Django knows the view."""

    def middleware(request: HttpRequest) -> Any:
        for seconds in request.GET.getlist("first"):
            query(float(seconds))
        if "only" in request.GET:
            return HttpResponse()
        return get_response(request)

    return middleware


asks_first.__module__ = "mysite.middleware"  # not a view


def _home(request: HttpRequest) -> HttpResponse:
    query()
    return HttpResponse()


def _product(request: HttpRequest, slug: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(request.GET.get("sql", "SELECT 1"))
    return HttpResponse(slug)


def _no_such(request: HttpRequest, number: int) -> HttpResponse:
    query()
    raise Http404(str(number))


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            query(0.05)
            yield b"piece"

    return StreamingHttpResponse(pieces())


def spawn(request: HttpRequest) -> HttpResponse:
    gevent.spawn(query, 0.1)
    return HttpResponse()


def lose(request: HttpRequest) -> HttpResponse:
    """A greenlet that is dropped while it holds a connection, in a transaction."""

    def hold() -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1")
            main.switch()

    main = greenlet.getcurrent()
    lost = greenlet.greenlet(hold)
    lost.switch()
    gevent.sleep(0.1)
    return HttpResponse()


def kill(request: HttpRequest) -> HttpResponse:
    """Tasks that are killed while they wait, connect, ask or give back."""
    for n in range(100):
        tasks = [gevent.spawn(query) for _ in range(4)]
        gevent.sleep(n / 20_000)
        gevent.killall(tasks)
    query()
    return HttpResponse()


def fork(request: HttpRequest) -> HttpResponse:
    """A child that asks, too, on a connection of its own."""
    query()
    child = os.fork()
    if child == 0:
        try:
            query()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return HttpResponse(status=200 if status == 0 else 500)


def inner(request: HttpRequest) -> HttpResponse:
    """Calls another view, with Django's client for tests."""
    answer = Client().get("/shop/tea/")
    query()
    return HttpResponse(status=answer.status_code)


def two(request: HttpRequest) -> HttpResponse:
    for alias in ("default", "other"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
    return HttpResponse()


def die(request: HttpRequest) -> HttpResponse:
    query()
    with gevent.Timeout(0.3):
        query(20)
    return HttpResponse()


# The routes of the project are the names here.
globals()[""] = _home
globals()['odd"\\\n{}<b>/'] = lambda request, b: _home(request)
globals()["shop/<slug:slug>/"] = _product
globals()["shop/<int:number>"] = _no_such
for _n in range(100):
    globals()[f"many/{_n}/<int:seconds>"] = lambda request, seconds: _home(request)
