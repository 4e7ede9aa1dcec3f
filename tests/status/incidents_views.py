"""Views that cause trouble; test_incidents.py stages it."""

from typing import Any

import gevent
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse

forgotten: list[Any] = []


def quick(request: HttpRequest) -> HttpResponse:
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


def _hold() -> None:
    with transaction.atomic():
        _sleep(0)
        gevent.sleep(600)


def _sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])
        cursor.fetchall()
