"""The views of test_serving.py."""

import os

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse

from pooled_serve.backend import patch


def one(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        return JsonResponse({"id": cursor.fetchone()[0], "pid": os.getpid()})


def run(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(request.GET["sql"])
    return JsonResponse({})


def plain(request: HttpRequest) -> HttpResponse:
    return JsonResponse({})


def stats(request: HttpRequest) -> HttpResponse:
    return JsonResponse(
        {
            "pid": os.getpid(),
            "pools": {alias: pool.stats() for alias, pool in patch.pools().items()},
        }
    )


def fork(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        mine = cursor.fetchone()[0]
        master = os.getppid()
        child = os.fork()
        if child == 0:
            # Gunicorn's heartbeat runs in the child as well, and would end it: its parent is new.
            os.getppid = lambda: master
            try:
                connection.close()
                with connection.cursor() as other:
                    other.execute("SELECT CONNECTION_ID()")
                    os._exit(0 if other.fetchone()[0] != mine else 2)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        cursor.execute("SELECT CONNECTION_ID()")
        return JsonResponse(
            {"same": cursor.fetchone()[0] == mine, "child": os.waitstatus_to_exitcode(status)}
        )


def orphan(request: HttpRequest) -> HttpResponse:
    os.system("sleep 0.1 &")  # its parent, the shell, is gone: PID 1 inherits it
    return JsonResponse({})
