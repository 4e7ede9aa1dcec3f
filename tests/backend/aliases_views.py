"""The views of test_aliases.py: requests that put, add and remove aliases."""

from typing import Any

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from gevent.event import Event

met = Event()
arrived: list[int] = []


def sql(text: Any, alias: Any = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall() if cursor.description else ()


def which(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        [sql("SELECT DATABASE()", alias)[0][0] for alias in ("default", "replica")], safe=False
    )


def put(request: HttpRequest) -> HttpResponse:
    sql("SELECT 1", "replica")
    connections["default"] = connections["replica"]
    connections["unknown"] = connections["replica"]
    sql("SELECT 1")
    return HttpResponse()


def write(request: HttpRequest) -> HttpResponse:
    try:
        with transaction.atomic("replica"):
            arrived.append(1)
            sql(f"INSERT INTO t VALUES ({request.GET['n']})", "replica")
            if len(arrived) == 2:
                met.set()
            met.wait(20)
            if "fail" in request.GET:
                raise KeyError
    except KeyError:
        pass
    return HttpResponse()


def add(request: HttpRequest) -> HttpResponse:
    alias = request.GET["alias"]
    connections.databases[alias] = {**connections.databases["default"]}
    sql("SELECT 1", alias)
    if "remove" in request.GET:
        del connections.databases[alias]
    return HttpResponse()
