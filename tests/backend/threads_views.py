"""The views of test_threads.py: some of them asynchronous."""

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from django.http import HttpRequest, HttpResponse


def ask(number: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [int(number)])
        return HttpResponse(str(cursor.fetchone()[0]))


def plain(request: HttpRequest) -> HttpResponse:
    return ask(request.GET["n"])


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return await sync_to_async(ask)(request.GET["n"])


def through_sync(request: HttpRequest) -> HttpResponse:
    @async_to_sync
    async def go() -> HttpResponse:
        return await sync_to_async(ask, thread_sensitive=False)(request.GET["n"])

    return go()


async def unsafe(request: HttpRequest) -> HttpResponse:
    return ask("1")
