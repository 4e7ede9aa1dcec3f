"""The views of test_serving.py."""

import os
from typing import Any

import gevent
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from gevent.monkey import get_original

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


def fork_and_sleep(request: HttpRequest) -> HttpResponse:
    """Fork, where the processor goes to the child first."""
    sleep = get_original("time", "sleep")
    os.register_at_fork(after_in_parent=lambda: sleep(0.2))
    child = os.fork()
    if child == 0:
        os._exit(3)
    ended: Any = None
    with gevent.Timeout(10, False):
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return JsonResponse({"child": ended})


def orphan(request: HttpRequest) -> HttpResponse:
    os.system("sleep 0.1 &")  # its parent, the shell, is gone: PID 1 inherits it
    return JsonResponse({})
