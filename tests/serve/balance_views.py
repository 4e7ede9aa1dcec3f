"""The views of test_balance.py, which count how often a worker lets others go first."""

import os
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

from pooled_serve.serve import balance
from pooled_serve.serve.accept import Server

balance.MAX_LOOKS = int(os.environ["LOOKS"])
looks = 0
original = Server._look


def look(self: Any) -> None:
    global looks
    looks += 1
    original(self)


Server._look = look  # type: ignore[method-assign]


def pid(request: HttpRequest) -> HttpResponse:
    return JsonResponse(os.getpid(), safe=False)


def waits(request: HttpRequest) -> HttpResponse:
    return JsonResponse(looks, safe=False)
