"""The scope of a greenlet: its request, its sessions, and how long their leases last."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from gevent.local import local

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session
    from pooled_serve.backend.routes import Unresolved
    from pooled_serve.status.routes import Usage


class GreenletScope(set["Session"]):
    """The sessions of one greenlet that have a connection, and what the greenlet serves."""

    request: Any = None
    """Gunicorn's request, while one is served; else None."""

    usage: Usage | Unresolved | None = None
    """What counts the leases of the request, with a status page; else, and outside requests,
    None."""

    statements = statements_before = 0
    """How many have begun here, and how many of them before the present request."""

    keep_leases = False
    """Whether a lease that nothing needs outlives its statement. In request mode it does until the
    view returns, but no longer: sending the response depends on the client, which may take for
    ever. A greenlet that serves no request may run for ever, too; for that, see
    :func:`configure`."""

    rule = ""
    """Why two statements outside of a transaction may run on two connections, for messages."""

    def __str__(self) -> str:
        if self.request is None:
            return "a greenlet, not a request"
        return f"{self.request.method} {shorten(self.request.path)}"

    def enter_view(self) -> bool:
        """Note that a view begins. Returns whether it runs inside another one, for
        :meth:`leave_view`."""
        nested: bool = self.__dict__.get("keep_leases", False)
        self.keep_leases = _views_keep
        return nested

    def leave_view(self, nested: bool) -> None:
        """Note that a view has ended, and give back the connections that nothing else needs.

        :raises BaseException: the first exception that interrupted a hand-back, after all of them.
        """
        self.keep_leases = nested
        if self:
            for_each(self, lambda session: session.release_if_unneeded())


def for_each(sessions: set[Session], do: Any) -> None:
    """Call ``do`` with each session.

    :raises BaseException: the first exception of a call, after all of them.
    """
    interrupted: BaseException | None = None
    for session in tuple(sessions):
        try:
            do(session)
        except BaseException as error:
            interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted


_views_keep = True


def configure(*, per_transaction: bool, own_launcher: bool) -> None:
    """Set how long the leases of this process last.

    :param per_transaction: no longer than they are needed: ``--pool-mode transaction``.
    :param own_launcher: the process may also be a command or a script. A task outside of views
        keeps its connection then, because it may be one unit from start to end.
    """
    global _views_keep
    _views_keep = not per_transaction
    GreenletScope.keep_leases = own_launcher and not per_transaction
    mode = "--pool-mode transaction"
    GreenletScope.rule = mode if per_transaction else "the view is over, or there is none"


def shorten(path: str) -> str:
    """Returns two segments of a path, for logs. Others may be tokens, and a query anything."""
    segments = path.partition("?")[0].split("/")
    short = "/".join(segments[:3]) + ("/…" if any(segments[3:]) else "")
    return "".join(c if c.isprintable() else "�" for c in short[:100])


class _Sentinel:
    """Gives back, at the end of its greenlet, the connections that the greenlet did not.

    It lives in a greenlet-local, which is cleared promptly however the greenlet ends: finished,
    killed, timed out, plain ``greenlet.greenlet`` included. ``__del__`` is here, and not in the
    scope, because the sessions refer to their scope: it would only die in a garbage collection.
    Nothing but the local refers to the sentinel.
    """

    __slots__ = ("scope",)

    def __init__(self) -> None:
        self.scope = GreenletScope()

    def __del__(self) -> None:
        # Runs in the hub or in a garbage collection: reclaim() only enqueues.
        with contextlib.suppress(Exception):
            for session in tuple(self.scope):
                session.reclaim()


_local = local()


def scope_here() -> GreenletScope:
    """Returns the scope of the current greenlet."""
    try:
        sentinel = _local.sentinel
    except AttributeError:
        sentinel = _local.sentinel = _Sentinel()
    scope: GreenletScope = sentinel.scope
    return scope
