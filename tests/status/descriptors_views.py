"""Views for test_server_log.py that use up the file descriptors of their process."""

import os
import resource

import gevent
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse

from pooled_serve.backend import patch

kept: list[int] = []


def ask(request: HttpRequest) -> HttpResponse:
    try:
        connection.cursor().execute("SELECT 1")
    except OperationalError:  # Django's own answer would open files
        return HttpResponse("no")
    return HttpResponse("yes")


def flap(request: HttpRequest) -> HttpResponse:
    for _ in range(10):  # there is a descriptor, and then there is none
        os.close(kept.pop())
        while ask(request).content == b"no":
            gevent.sleep(0.01)
        connection.close()
        patch.pools()["default"].clear()
        kept.append(os.open(os.devnull, os.O_RDONLY))
        ask(request)
    return HttpResponse()


def exhaust(request: HttpRequest) -> HttpResponse:
    patch.pools()["default"].clear()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return HttpResponse()


def recover(request: HttpRequest) -> HttpResponse:
    while kept:
        os.close(kept.pop())
    return HttpResponse()
