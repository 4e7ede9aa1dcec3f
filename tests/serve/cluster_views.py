"""The views of the tests of clusters: a book with entries, and with totals of them."""

import gevent
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from gevent.event import Event

DEADLOCK = 1213

holding, released = Event(), Event()


def enter(request: HttpRequest) -> HttpResponse:
    """One entry, and its total; 409 if that met another transaction."""
    number = int(request.GET["number"])
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM total")
            (totals,) = cursor.fetchone()
            cursor.execute("INSERT INTO entry (number) VALUES (%s)", [number])
            cursor.execute("UPDATE total SET sum = sum + 1 WHERE id = %s", [number % totals])
    except OperationalError as error:
        return failure(error)
    return HttpResponse()


def read(request: HttpRequest) -> HttpResponse:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT number FROM entry ORDER BY id DESC LIMIT 1")
            cursor.fetchall()
    except OperationalError as error:
        return failure(error)
    return HttpResponse()


def hold(request: HttpRequest) -> HttpResponse:
    """A transaction that is open until let_go(); only its COMMIT comes after that."""
    released.clear()
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("UPDATE total SET sum = -1 WHERE id = 0")
            holding.set()
            released.wait(30)
    except OperationalError as error:
        return failure(error)
    finally:
        holding.clear()
    return HttpResponse()


def held(request: HttpRequest) -> HttpResponse:
    return JsonResponse(holding.is_set(), safe=False)


def let_go(request: HttpRequest) -> HttpResponse:
    released.set()
    return HttpResponse()


def give_up(request: HttpRequest) -> HttpResponse:
    """Leave a statement in the middle."""
    with gevent.Timeout(0.2, False), connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(2)")
    return HttpResponse()


def failure(error: OperationalError) -> HttpResponse:
    if not isinstance(error.args[0], int):  # the pool's
        raise error
    return JsonResponse(
        {"code": error.args[0], "text": str(error)},
        status=409 if error.args[0] == DEADLOCK else 500,
    )
