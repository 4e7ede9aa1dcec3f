"""Spans for OpenTelemetry, where the project has set it up: waits for a connection, and connects.

Nothing is imported: a project that traces has imported the API, and set a tracer provider. A span
is made when what it tells of is over. It belongs to the span of the greenlet that has waited, which
is that of its request; without one there is nothing to explain, and no span.

The pool announces waits while it is in the middle of something. But a span may be sent when it
ends, so the greenlet may be switched, and killed. So spans are only noted then, and made by
:func:`tell` when the lease is where it belongs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, NamedTuple

import gevent

from pooled_serve import __version__
from pooled_serve.pool import PoolListener

SHORTEST_WAIT_SECONDS = 0.001
"""Shorter waits are turns of the event loop."""

WAIT, CONNECT = "db.client.connection.wait", "db.client.connection.create"
"""Names of spans. OpenTelemetry has no names for them, but for their durations as metrics."""

POOL_NAME = "db.client.connection.pool.name"
QUEUE_LENGTH = "pooled_serve.queue_length"
"""Attributes. The latter is how many others were in the queue: before a wait, or at a connect."""

_API = "opentelemetry.trace"


class _Noted(NamedTuple):
    pool: str
    name: str
    start: int  # nanoseconds since the epoch
    end: int
    queue_length: int
    error: BaseException | None


noted: dict[Any, list[_Noted]] = {}
"""By greenlet: spans that :func:`tell` is to make. Nearly always empty."""


class Traces(PoolListener):
    """The spans of one pool.

    :param alias: names the pool in the spans.
    """

    pool: Any

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def waited(self, seconds: float, ahead: int, error: BaseException | None) -> None:
        """The current greenlet has queued."""
        if seconds >= SHORTEST_WAIT_SECONDS:
            self._note(WAIT, seconds, ahead, error)

    def tried(self, seconds: float, error: BaseException | None) -> None:
        """The current greenlet has tried to open a connection."""
        self._note(CONNECT, seconds, self.pool.waiting, error)

    def _note(self, name: str, seconds: float, ahead: int, error: BaseException | None) -> None:
        with contextlib.suppress(Exception):
            if _provider() is None or not _api().get_current_span().get_span_context().is_valid:
                return
            end = time.time_ns()
            span = _Noted(self._alias, name, end - int(seconds * 1e9), end, ahead, error)
            noted.setdefault(gevent.getcurrent(), []).append(span)


def tell() -> None:
    """Make the spans that were noted for the current greenlet. May switch greenlets."""
    for span in noted.pop(gevent.getcurrent(), ()):
        # What an exporter raises is no reason to fail a request.
        with contextlib.suppress(Exception):
            _make(span)


def _make(of: _Noted) -> None:
    tracer = _provider().get_tracer("pooled_serve", __version__)
    api = _api()
    span = tracer.start_span(
        of.name,
        kind=api.SpanKind.CLIENT if of.name == CONNECT else api.SpanKind.INTERNAL,
        start_time=of.start,
        attributes={POOL_NAME: of.pool, QUEUE_LENGTH: of.queue_length},
    )
    if of.error is not None:
        span.set_attribute("error.type", type(of.error).__qualname__)
        span.set_status(api.Status(api.StatusCode.ERROR, str(of.error)))
    span.end(of.end)


def _api() -> Any:
    return sys.modules[_API]


def _provider() -> Any:
    """Returns the project's tracer provider; None if it has set none."""
    api = sys.modules.get(_API)
    if api is None:
        return None
    provider: Any = api.get_tracer_provider()
    # The API's own ones make no spans.
    return None if type(provider).__module__ == _API else provider
