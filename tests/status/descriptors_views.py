"""Views for test_server_log.py and test_descriptors.py that use up the file descriptors of their
process."""

import os
import resource
import sys

import gevent
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from pooled_serve.backend import patch

kept: list[int] = []
imported: list[str] = []


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
    return keep_all(request)


class Finder:
    """Finds nothing, and notes what was looked for."""

    def find_spec(self, name: str, *args: object) -> None:
        imported.append(name)


def note_imports(request: HttpRequest) -> HttpResponse:
    """From now on, those of modules that are not there yet."""
    sys.meta_path.insert(0, Finder())
    return HttpResponse()


def say_imports(request: HttpRequest) -> JsonResponse:
    return JsonResponse(imported, safe=False)


def fail(request: HttpRequest) -> HttpResponse:
    raise {"400": SuspiciousOperation, "403": PermissionDenied}.get(
        str(request.GET["status"]), ZeroDivisionError
    )("of the view")


def keep_all(request: HttpRequest) -> HttpResponse:
    """Like exhaust(), but the pool keeps its connections."""
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
