"""What the current greenlet is about: the sessions it has, and how long their leases last."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from gevent.local import local

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session


class GreenletScope(set["Session"]):
    """The sessions of one greenlet that hold a connection, and what it does meanwhile."""

    request: Any = None
    """Gunicorn's, while one is served."""

    keep_leases = False
    """Whether a lease that nothing needs outlives its statement. In request mode it does until
    the view returns: what follows, sending the response above all, is up to the client, who may
    take for ever. So may a greenlet that serves no request; :func:`configure` says what its
    leases do."""

    rule = ""
    """What stands between two statements outside of a transaction, for messages."""

    def __str__(self) -> str:
        if self.request is None:
            return "a greenlet, not a request"
        return f"{self.request.method} {shorten(self.request.path)}"

    def enter_view(self) -> bool:
        """Begin with a view. Returns whether it runs inside another, for :meth:`leave_view`."""
        nested: bool = self.__dict__.get("keep_leases", False)
        self.keep_leases = _views_keep
        return nested

    def leave_view(self, nested: bool) -> None:
        """Give back what the view alone has kept.

        :raises BaseException: what has interrupted a hand-back, but only once all are done.
        """
        self.keep_leases = nested
        if self:
            for_each(self, lambda session: session.release_if_unneeded())


def for_each(sessions: set[Session], do: Any) -> None:
    """Do it to all of them.

    :raises BaseException: the first that one has raised, but only once all are done.
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
    """Say how long the leases of this process last.

    :param per_transaction: never longer than they are needed: ``--pool-mode transaction``.
    :param own_launcher: commands and scripts may use the pool too. What they run outside of
        views can be one task from start to end, and keeps its connection as long.
    """
    global _views_keep
    _views_keep = not per_transaction
    GreenletScope.keep_leases = own_launcher and not per_transaction
    mode = "--pool-mode transaction"
    GreenletScope.rule = mode if per_transaction else "the view is over, or there is none"


def shorten(path: str) -> str:
    """A path for logs: two segments of it. What follows can be a token, and a query anything."""
    segments = path.partition("?")[0].split("/")
    short = "/".join(segments[:3]) + ("/…" if any(segments[3:]) else "")
    return "".join(c if c.isprintable() else "�" for c in short[:100])


class _Sentinel:
    """Dies with its greenlet, and gives back what that forgot to.

    Lives in a greenlet-local, which is cleared promptly however the greenlet ends: finished,
    killed, timed out, plain ``greenlet.greenlet`` included. The scope cannot do this itself,
    because its sessions refer to it.
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
    """The current greenlet's."""
    try:
        sentinel = _local.sentinel
    except AttributeError:
        sentinel = _local.sentinel = _Sentinel()
    scope: GreenletScope = sentinel.scope
    return scope
