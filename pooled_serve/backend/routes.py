"""Whose connections are counted for which route, where there is a status page.

Django finds the view in ``BaseHandler.resolve_request()``, which is replaced. A request's leases
and waits before that, of middleware, are kept until then; they belong to the route, too. A lease is
counted when it ends, and no lease outlives its request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.handlers.base import BaseHandler

from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.backend.urls import BrokenUrls
from pooled_serve.pool import metrics
from pooled_serve.pool.metric import Row
from pooled_serve.status.routes import METHODS, OTHER_METHOD, UNRESOLVED, RouteTable, Usage

_resolve_request = BaseHandler.resolve_request
table: RouteTable | None = None  # of this worker; None without a status page
broken_urls: BrokenUrls | None = None  # None while they work, or nobody is told


class RouteAccount:
    """Told by the pools who has used them; see :class:`pooled_serve.pool.listener.Account`."""

    def __init__(self, table: RouteTable) -> None:
        self._outside = table.outside

    def joins(self, row: Row) -> None:
        """A pool has counted so much before, in a row of its own: while the project was loaded."""
        leases = sum(row[metrics.HELD_BUCKETS :][: len(metrics.BUCKET_BOUNDS_SECONDS) + 1])
        seconds = row[metrics.HELD_SECONDS]
        waited, wait_seconds = row[metrics.WAITED], row[metrics.WAIT_SECONDS]
        self._outside.add([leases, seconds, waited, wait_seconds, 0.0])

    def returned(self, conn: Any, seconds: float) -> None:
        """A connection comes back."""
        usage, conn.usage = conn.usage, None
        (self._outside if usage is None else usage).returned(seconds)

    def idled(self, conn: Any, seconds: float) -> None:
        """A connection in use runs no statement."""
        if conn.scope is not None:  # else it is not in a session's hands yet
            (conn.scope.usage or self._outside).idled(seconds)

    def waited(self, seconds: float, *, served: bool) -> None:
        """The current greenlet has queued."""
        (scope_here().usage or self._outside).waited(seconds, served=served)


class Unresolved:
    """Counts the use of a request whose route is not known yet. Cheap, as nearly none use any."""

    _usage: Usage | None = None

    def returned(self, seconds: float) -> None:
        """Count a lease."""
        self._used().returned(seconds)

    def waited(self, seconds: float, *, served: bool) -> None:
        """Count a wait."""
        self._used().waited(seconds, served=served)

    def idled(self, seconds: float) -> None:
        """Count the time for which a connection ran no statement."""
        self._used().idled(seconds)

    def _used(self) -> Usage:
        if self._usage is None:
            self._usage = Usage()
        return self._usage

    def move_to(self, usage: Usage) -> None:
        """Count there what was counted here."""
        if self._usage is not None:
            usage.add(self._usage.row)


def count_in(new: RouteTable) -> RouteAccount:
    """Count the routes of this worker's requests in its table, and return the account for its
    pools."""
    global table
    table = new
    BaseHandler.resolve_request = resolve_request  # type: ignore[assignment, method-assign]
    return RouteAccount(new)


def resolve_request(handler: BaseHandler, request: Any) -> Any:
    """Replaces ``BaseHandler.resolve_request``. The first route of a request is the one that
    counts: a view may call another one, with a request of its own."""
    try:
        match = _resolve_request(handler, request)
    finally:  # no view for its path is an exception, too
        if broken_urls is not None:
            _look_at_urls(broken_urls)
    scope = scope_here()
    so_far = scope.usage
    if type(so_far) is Unresolved and table is not None:
        usage = scope.usage = table.usage(match.route or "", request.method or "")
        so_far.move_to(usage)
    return match


def _look_at_urls(urls: BrokenUrls) -> None:
    global broken_urls
    if urls.look():
        broken_urls = None


def watch_urls(works: Callable[[], None]) -> None:
    """Note that the URL configuration has failed.

    :param works: called once it works.
    """
    global broken_urls
    broken_urls = BrokenUrls(works)


def try_urls() -> None:
    """Find out in the background whether the URL configuration works by now, if it has failed."""
    if broken_urls is not None:
        broken_urls.try_again()


def route_of(scope: GreenletScope) -> str:
    """Returns the route that a scope serves; empty if it serves none."""
    if type(scope.usage) is Unresolved:  # in a middleware, or no view is found
        method = scope.request.method
        return f"{method if method in METHODS else OTHER_METHOD} ({UNRESOLVED} yet)"
    return scope.usage.name if isinstance(scope.usage, Usage) else ""


def end_request(scope: GreenletScope) -> None:
    """A request has ended, and given back what it has leased."""
    usage, scope.usage = scope.usage, None
    statements = scope.statements - scope.statements_before
    if type(usage) is Unresolved and table is not None:
        usage.move_to(table.unresolved)
        usage = table.unresolved
    if statements and isinstance(usage, Usage):
        usage.requested(statements)


def stop() -> None:
    """Count no longer: the table is that of another process."""
    global table, broken_urls
    table = broken_urls = None
