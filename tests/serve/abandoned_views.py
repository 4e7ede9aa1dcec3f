"""The view of test_abandoned.py: a statement that is left in the middle."""

import random

import gevent
from django.db import connection
from django.http import HttpRequest, HttpResponse


def sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [seconds])


def abandon(request: HttpRequest) -> HttpResponse:
    seconds = random.choice((0.03, 0.1))
    if random.random() < 0.5:
        with gevent.Timeout(seconds, False):
            sleep(60)
    else:
        greenlet = gevent.spawn(sleep, 60)
        gevent.sleep(seconds)
        greenlet.kill()
    return HttpResponse()
