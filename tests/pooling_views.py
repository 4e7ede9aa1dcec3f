"""The view of test_pooling.py, which tells of the pool."""

import os

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from pooled_serve.backend import patch


def nap(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(0.1)")
    return HttpResponse(str(os.getpid()))


def one(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        number = cursor.fetchone()[0]
    pool = patch.pools()["default"]
    return JsonResponse({"id": number, "size": pool.size, "cap": pool.cap, "timeout": pool.timeout})
