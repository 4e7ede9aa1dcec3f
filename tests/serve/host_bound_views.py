"""The view of test_host_bound.py: a request that holds a connection."""

import os

from django.db import connection
from django.http import HttpRequest, HttpResponse


def nap(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT SLEEP(%s)", [float(request.GET.get("seconds", 0.05))])
    return HttpResponse(str(os.getpid()))
