"""Pages for test_tls.py."""

import time
from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello", headers={"Content-Length": "5"})


def endless(request: HttpRequest) -> StreamingHttpResponse:
    """Until the client has hung up, which the third piece or so finds out."""

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10000
            time.sleep(0.02)

    return StreamingHttpResponse(pieces())
