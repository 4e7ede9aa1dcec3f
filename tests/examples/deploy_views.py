"""The project that examples/deploy serves here."""

import os
import pathlib
import signal

import gevent
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse


def query(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok")


def about(request: HttpRequest) -> HttpResponse:
    ident = gevent.getcurrent().minimal_ident  # a new one for each connection
    names = ("HTTP_HOST", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "wsgi.url_scheme")
    return JsonResponse({"client": ident} | {n: request.META.get(n) for n in names})


def hold(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        gevent.sleep(float(request.GET["seconds"]))
    return HttpResponse()


def hold_until_released(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        pathlib.Path("held").touch()
        while not pathlib.Path("release").exists():
            gevent.sleep(0.02)
    return HttpResponse()


def die(request: HttpRequest) -> None:
    with pathlib.Path("deaths").open("a") as deaths:
        deaths.write(f"{request.method}\n")
    os.kill(os.getpid(), signal.SIGKILL)
