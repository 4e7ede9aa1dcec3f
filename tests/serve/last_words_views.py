"""The view of test_stopping.py that goes on until a file is there; the worker says its last words
early."""

import os

import gevent
from django.http import HttpRequest, HttpResponse

from pooled_serve.serve import worker

worker.LAST_WORDS_SECONDS = 7.0


def hold(request: HttpRequest) -> HttpResponse:
    print("begun")
    while not os.path.exists("let_go"):
        gevent.sleep(0.02)
    return HttpResponse("done")
