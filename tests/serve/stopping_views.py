"""The views of test_stopping.py: requests that are short, or compute for a moment."""

import os
from time import monotonic

from django.http import HttpRequest, HttpResponse


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def pid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(os.getpid()))


def busy(request: HttpRequest) -> HttpResponse:
    end = monotonic() + 0.03
    while monotonic() < end:
        pass
    return HttpResponse("done")
