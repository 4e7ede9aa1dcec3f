"""Views of test_client_check.py, and what became of requests."""

import time
from typing import Any

import gevent
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

ends: list[str] = []


def fate(request: HttpRequest) -> JsonResponse:
    return JsonResponse(ends, safe=False)


def sleep(seconds: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [float(seconds)])


def long(request: HttpRequest) -> HttpResponse:
    """A long statement inside a transaction; notes which handlers run."""
    end = "answered"
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO visits VALUES (%s)", [request.method])
            sleep(request.GET["seconds"])
    except Exception:
        end = "except Exception"
        raise
    except BaseException as error:
        end = type(error).__name__
        raise
    finally:
        ends.append(end)
    return HttpResponse("done")


def careless(request: HttpRequest) -> HttpResponse:
    """Catches everything, and goes on."""
    for _ in range(int(str(request.GET["times"]))):
        try:
            sleep(request.GET["seconds"])
        except BaseException as error:
            ends.append(type(error).__name__)
            connection.close()  # that of the statement is lost
    return HttpResponse("done")


def streamed(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Any:
        yield "begin\n"
        try:
            sleep(request.GET["seconds"])
        except BaseException as error:
            ends.append(type(error).__name__)
            raise
        yield "end\n"

    return StreamingHttpResponse(parts())


def brief(request: HttpRequest) -> HttpResponse:
    """Many statements, each of them short."""
    until = time.monotonic() + float(request.GET["seconds"])
    while time.monotonic() < until:
        sleep(0.01)
    ends.append("answered")
    return HttpResponse("done")


def outside(request: HttpRequest) -> HttpResponse:
    """Something long that is no statement."""
    sleep(0)
    gevent.sleep(float(request.GET["seconds"]))
    ends.append("answered")
    return HttpResponse("done")
