"""The response to a request that got no connection: a 503 if that will pass, else Django's 500; and
the 500 of a process that has no file descriptors left.

No middleware can send the first two: Django makes a 500 of the exception before any middleware sees
it. So ``response_for_exception``, which makes that response, is replaced. A view or middleware that
catches the exception still does.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from django.core.handlers import exception as handlers
from django.core.signals import got_request_exception
from django.db import Error
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import get_resolver, get_urlconf
from django.views.defaults import server_error

from pooled_serve.backend.database import POOL_ATTRIBUTE
from pooled_serve.backend.registry import databases
from pooled_serve.backend.scope import scope_here
from pooled_serve.errors import PoolClientGone, PoolOverloaded, PoolTimeout
from pooled_serve.status.shortage import shortage_behind

log = logging.getLogger("gunicorn.error")

RETRY_AFTER = "1"
"""Seconds after which a client that received a 503 may try again."""

_response_for_exception = handlers.response_for_exception


def install() -> None:
    """Replace Django's function."""
    handlers.response_for_exception = response_for_exception  # type: ignore[assignment]


def response_for_exception(request: HttpRequest, exc: Exception) -> HttpResponseBase:
    """Replaces Django's function, which still handles all other exceptions."""
    if isinstance(exc, PoolTimeout):
        response = _busy(exc)
    elif (refusal := _refused_connect(exc)) is not None:
        databases[getattr(refusal, POOL_ATTRIBUTE)].log.failed(refusal)
        response = _failed(request)
    else:
        return _as_django_does(request, exc)
    # Django would log each response, and mail it to ADMINS, which makes an overload worse. The
    # pool writes a line at most once a second.
    response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def _as_django_does(request: HttpRequest, exc: Exception) -> HttpResponseBase:
    try:
        return _response_for_exception(request, exc)
    except OSError as error:
        # The template of the error page cannot be read. Gunicorn would take the error for one of
        # the client's socket, and hang up.
        if error is exc or shortage_behind(error) is None:
            raise
        log.error("%s: its error page fails, too: %s", scope_here(), error, exc_info=exc)
        return HttpResponse(b"Server error\n", status=500, content_type="text/plain; charset=utf-8")


def _busy(exc: PoolTimeout) -> HttpResponseBase:
    if exc.pool in databases and not isinstance(exc, PoolClientGone):  # nobody will see it
        # The exception itself refers to the request.
        databases[exc.pool].log.refused(str(exc), early=isinstance(exc, PoolOverloaded))
    return HttpResponse(
        b"The server is busy. Please try again.\n",
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": RETRY_AFTER},
    )


def _refused_connect(exc: Exception) -> Exception | None:
    """Returns the driver's error behind one of Django's, if it is one of a connect that will not
    pass by itself, such as a refused password: it would be the same for every request."""
    cause = exc.__cause__ if isinstance(exc, Error) else None
    if isinstance(cause, Exception) and getattr(cause, POOL_ATTRIBUTE, None) in databases:
        return cause
    return None


def _failed(request: HttpRequest) -> HttpResponseBase:
    """Returns the 500 that Django would send, without its log line and traceback."""
    got_request_exception.send(sender=None, request=request)
    raised: Any = sys.exc_info()
    try:
        response: HttpResponseBase = handlers.handle_uncaught_exception(
            request, get_resolver(get_urlconf()), raised
        )
        if not getattr(response, "is_rendered", True):
            response = response.render()  # type: ignore[attr-defined]
    except Error as error:
        if _refused_connect(error) is None:
            raise
        return server_error(request)  # the project's own page wants the database, too
    return response
