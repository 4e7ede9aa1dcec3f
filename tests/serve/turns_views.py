"""The views of test_turns.py: who was served, and in which order."""

import os

from django.http import HttpRequest, HttpResponse, JsonResponse

served: list[str] = []


def turn(request: HttpRequest) -> HttpResponse:
    served.append(request.GET["client"])
    return HttpResponse("ok")


def order(request: HttpRequest) -> HttpResponse:
    return JsonResponse(served, safe=False)


def pid(request: HttpRequest) -> HttpResponse:
    return JsonResponse(os.getpid(), safe=False)
