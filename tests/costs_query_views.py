"""Pages for test_costs.py with so many statements each."""

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse


def run(*statements: str) -> HttpResponse:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    return HttpResponse()


def none(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def one(request: HttpRequest) -> HttpResponse:
    return run("SELECT 1")


def ten(request: HttpRequest) -> HttpResponse:
    return run(*["SELECT 1"] * 10)


def update(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        return run("UPDATE t SET n = n + 1", "UPDATE t SET n = n - 1")
