"""A transaction that overwrites what has changed since it has read it."""

from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from gevent.event import Event

read, changed = Event(), Event()


def overwrite(request: HttpRequest) -> HttpResponse:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT n FROM t")
            read.set()
            changed.wait(20)
            cursor.execute("UPDATE t SET n = n + 1")
    except OperationalError as error:
        return JsonResponse(error.args[0], safe=False, status=409)
    return HttpResponse()


def has_read(request: HttpRequest) -> HttpResponse:
    return JsonResponse(read.is_set(), safe=False)


def go(request: HttpRequest) -> HttpResponse:
    changed.set()
    return HttpResponse()


def forget(request: HttpRequest) -> HttpResponse:
    read.clear()
    changed.clear()
    return HttpResponse()
