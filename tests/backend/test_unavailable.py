"""A request that got no connection: the error in the view, and the 503 or 500."""

from __future__ import annotations

from pathlib import Path
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


def test_a_refused_login_is_a_500_that_is_logged_like_an_outage(script: Any) -> None:
    script(
        "a_refused_login_is_a_500_that_is_logged_like_an_outage",
        views=Path(__file__).with_name("unavailable_views.py"),
    )


def test_a_view_or_a_middleware_can_answer_in_its_own_words(script: Any) -> None:
    script(
        "a_view_or_a_middleware_can_answer_in_its_own_words",
        views=Path(__file__).with_name("unavailable_views.py"),
    )
