"""What Site asks for; patch.pools() and its pool may be looked into."""

from typing import Any

from django.db import connection, connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from gevent.event import Event

from pooled_serve.backend import patch

guests: list[int] = []
everyone = Event()


def the_pool() -> Any:
    connections["default"]  # makes it
    return patch.pools()["default"]


def run(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(request.GET["sql"])
        rows = cursor.fetchall() if cursor.description else []
    return JsonResponse([list(map(str, row)) for row in rows], safe=False)


def meet(request: HttpRequest) -> HttpResponse:
    # Each guest keeps a connection until all are there, which takes as many connections.
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        guests.append(1)
        if len(guests) == int(request.GET["guests"]):
            everyone.set()
        met = everyone.wait(30)
        guests.clear()
        cursor.execute("SELECT 1")
    return HttpResponse(status=200 if met else 504)


def part(request: HttpRequest) -> HttpResponse:
    guests.clear()
    everyone.clear()
    return HttpResponse()


def pool(request: HttpRequest) -> HttpResponse:
    return JsonResponse(the_pool().stats())


def tune(request: HttpRequest) -> HttpResponse:
    for name, value in request.GET.items():
        setattr(the_pool(), name, float(str(value)))
    return HttpResponse()
