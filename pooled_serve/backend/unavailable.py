"""The 503 for a request that got no connection in time, and the 500 of a process that has no file
descriptors left.

No middleware can send the first: Django makes a 500 of the exception before any middleware sees it.
So ``response_for_exception``, which makes that response, is replaced.
"""

from __future__ import annotations

import logging

from django.core.handlers import exception as handlers
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from pooled_serve.backend.registry import databases
from pooled_serve.backend.scope import scope_here
from pooled_serve.errors import PoolClientGone, PoolOverloaded, PoolTimeout
from pooled_serve.status.reachability import shortage_behind

log = logging.getLogger("gunicorn.error")

RETRY_AFTER = "1"
"""Seconds after which a client that received a 503 may try again."""

_response_for_exception = handlers.response_for_exception


def install() -> None:
    """Replace Django's function."""
    handlers.response_for_exception = response_for_exception  # type: ignore[assignment]


def response_for_exception(request: HttpRequest, exc: Exception) -> HttpResponseBase:
    """Replaces Django's function, which still handles all other exceptions."""
    if not isinstance(exc, PoolTimeout):
        try:
            return _response_for_exception(request, exc)
        except OSError as error:
            # The template of the error page cannot be read. Gunicorn would take the error for one
            # of the client's socket, and hang up.
            if error is exc or shortage_behind(error) is None:
                raise
            log.error("%s: its error page fails, too: %s", scope_here(), error, exc_info=exc)
            return HttpResponse(
                b"Server error\n", status=500, content_type="text/plain; charset=utf-8"
            )
    if exc.pool in databases and not isinstance(exc, PoolClientGone):  # nobody will see it
        # The exception itself refers to the request.
        databases[exc.pool].log.refused(str(exc), early=isinstance(exc, PoolOverloaded))
    response = HttpResponse(
        b"The server is busy. Please try again.\n",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": RETRY_AFTER},
    )
    # Django would log each response, and mail it to ADMINS, which makes an overload worse. The
    # pool writes a line at most once a second.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response
