"""Pages for test_costs.py that need no database."""

import gc
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from gevent.event import Event
from gunicorn import util
from gunicorn.http import wsgi

from pooled_serve.driver import results
from pooled_serve.tuning import receive, send

go = Event()


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def empty(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


def unchanged(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=304)


def large(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"0123456789" * 100_000)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[Any]:
        yield request.GET["first"].encode()
        assert go.wait(30)
        go.clear()
        yield b"second"

    return StreamingHttpResponse(pieces())


def proceed(request: HttpRequest) -> HttpResponse:
    go.set()
    return HttpResponse()


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


def no_file(request: HttpRequest) -> FileResponse:
    return FileResponse(BytesIO(b"0123456789" * 10_000))


def hints(request: HttpRequest) -> HttpResponse:
    request.META["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    return HttpResponse("hello")


def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


def switches(request: HttpRequest) -> HttpResponse:
    kinds = wsgi.Response, util.http_date
    garbage = gc.get_freeze_count() > 0, gc.get_threshold()[0]
    found = [
        *(kind.__module__ for kind in kinds),
        send._direct,
        receive._direct,
        results._enabled,
        *garbage,
    ]
    return JsonResponse(found, safe=False)
