"""Views and a middleware that see that a login was refused."""

from __future__ import annotations

from typing import Any

from django.db import OperationalError, connection
from django.http import HttpRequest, HttpResponse


def one(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return HttpResponse(str(cursor.fetchone()[0]))


def catching(request: HttpRequest) -> HttpResponse:
    try:
        return one(request)
    except OperationalError as error:
        return HttpResponse(str(error.args[0]))


class Middleware:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if "middleware" in request.GET and isinstance(error, OperationalError):
            return HttpResponse("by the middleware")
        return None
