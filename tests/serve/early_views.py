"""The views of test_early.py."""

from django.db import connection, connections
from django.http import HttpRequest, HttpResponse


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def slow(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(0.2)")
    return HttpResponse("slow")


def wrapper(request: HttpRequest) -> HttpResponse:
    names = [base.__name__ for base in type(connections["default"]).__mro__]
    return HttpResponse("pooled" if "PooledWrapper" in names else "not pooled")


def fails(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a fault of the view's")
