"""The URL configuration, which Django imports at the first request."""

from __future__ import annotations

import os
from collections.abc import Iterator

from pooled_serve.errors import EXIT_PROJECT, Finding, Level
from pooled_serve.preflight.failures import (
    SETTINGS_VARIABLE,
    beside,
    blame,
    nearest_module,
    traceback_command,
    where,
)

NO_URLS = "PS109"
"""The code of a URL configuration that fails."""


def url_error() -> BaseException | None:
    """Import the URL configuration, as the first request does. Returns the error if that fails."""
    from django.urls import get_resolver

    try:
        get_resolver().url_patterns  # noqa: B018 - imported at first use
    except (Exception, SystemExit) as error:
        return error
    return None


def url_warnings() -> Iterator[Finding]:
    """Warn if the URL configuration fails."""
    if (error := url_error()) is not None:
        yield url_warning(error)


def url_warning(error: BaseException) -> Finding:
    """Returns the warning for what :func:`url_error` has found."""
    from django.conf import settings

    where_set = os.environ.get(SETTINGS_VARIABLE, "the settings")
    name = getattr(settings, "ROOT_URLCONF", None)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None:
        text = f"{where_set} has no ROOT_URLCONF, so every request will fail"
        there = beside(where_set, "urls")
        hint = f"write ROOT_URLCONF = {there!r}" if there else "set it to the module with the URLs"
    elif missing and f"{name}.".startswith(f"{missing}."):
        text = f"there is no module {missing!r}, so every request will fail"
        if missing != name:
            text = f"there is no module {name!r} (and no {missing!r}), so every request will fail"
        hint = f"correct ROOT_URLCONF of {where_set}"
        if near := nearest_module(name):
            hint = f"did you mean {near!r}? {hint}"
        elif there := beside(where_set, "urls"):
            hint += f"; there is {there!r}"
    else:
        look = "import django; django.setup(); django.urls.get_resolver().url_patterns"
        blamed = blame(error, where_set)
        hint, detail = blamed or ("correct the error", where(error))
        text = f"{name} fails while it is imported, so every request will: {detail.strip()}"
        hint += f"; {traceback_command(look, os.environ.get(SETTINGS_VARIABLE, ''))}"
    return Finding(Level.WARN, NO_URLS, "", text, hint, exit_code=EXIT_PROJECT)
