"""A request that got no connection in time: the error in the view, and the 503."""

from __future__ import annotations

from typing import Any

from support.django_project import ONE

SCRIPTS = "backend/unavailable_scripts.py"


def test_django_sees_a_pool_timeout_as_an_operational_error(script: Any) -> None:
    script("django_sees_a_pool_timeout_as_an_operational_error")


def test_only_a_pool_timeout_becomes_a_503(script: Any) -> None:
    script(
        "only_a_pool_timeout_becomes_a_503",
        views=ONE
        + """
    def bad(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT nonsense")
""",
    )
