"""A project whose exit handlers and threads query to the end."""

import atexit
import threading
import time
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse


def note(what: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes VALUES (%s)", [what])


def one(request: HttpRequest) -> HttpResponse:
    note("request")
    return HttpResponse()


def keeps_it() -> None:
    note("atexit")  # and does not close the connection


def in_a_thread() -> None:
    def work() -> None:
        note("thread")
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


atexit.register(keeps_it)
atexit.register(in_a_thread)


def for_ever(daemon: bool) -> HttpResponse:
    def work() -> None:
        while True:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            time.sleep(0.05)

    threading.Thread(target=work, daemon=daemon).start()
    return HttpResponse()


def daemon(request: HttpRequest) -> HttpResponse:
    return for_ever(True)


def no_daemon(request: HttpRequest) -> HttpResponse:
    return for_ever(False)
