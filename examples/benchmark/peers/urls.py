"""The shop's pages, and those that only a benchmark asks for."""

import os
import platform
import time
from importlib import metadata

from django.core.handlers.wsgi import WSGIRequest
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from MySQLdb import __name__ as driver

PACKAGES = ("django", "gunicorn", "gevent", "pymysql", "mysqlclient", "pooled-serve")


def about(request: HttpRequest) -> JsonResponse:
    """Versions, and how the database connection is encrypted: asked, not assumed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_version'")
        [(_, tls)] = cursor.fetchall()
        cursor.execute("SELECT VERSION()")
        [(server,)] = cursor.fetchall()
    return JsonResponse(
        {
            "python": platform.python_version(),
            "server": server,
            "driver": driver,
            "tls": tls or "none",
            "versions": versions,
        }
    )


def probe(request: WSGIRequest) -> HttpResponse:
    """Whatever behaviour.py wants to happen in a request."""
    return HttpResponse(repr(request.environ["probe"]()))


def work(request: HttpRequest) -> HttpResponse:
    """?queries= queries, ?hold= milliseconds in which the connection is held, ?ms= milliseconds of
    CPU between that and the answer, and who did it."""
    for _ in range(int(request.GET["queries"])):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
    if hold := int(request.GET.get("hold", 0)):
        time.sleep(hold / 1000)
    # The thread's own clock: a page costs the same however busy the machine is.
    until = time.thread_time() + int(request.GET["ms"]) / 1000
    while time.thread_time() < until:
        pass
    return HttpResponse("done", headers={"X-Worker": os.getpid()})


urlpatterns = [
    path("about", about),
    path("probe", probe),
    path("work", work),
    path("", include("shop.urls")),
]
