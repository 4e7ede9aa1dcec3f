"""Ending the requests whose clients have hung up: ``--client-check``.

It is what ``client_connection_check_interval`` is in PostgreSQL, whose documentation has the idea
of asking poll() for POLLRDHUP: nothing is read, and what the client has sent does not matter.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from time import monotonic
from typing import Any

import gevent
from gevent.monkey import get_original

from pooled_serve.backend.lease import Session
from pooled_serve.backend.scope import GreenletScope, scope_here
from pooled_serve.pool import all_pools

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
"""Requests that may be ended in a statement. What others have begun is for them to finish."""

LOOKS, LONGEST_PAUSE_SECONDS = 4, 1.0
"""Looks in the time after which a statement counts as long, and the most that lies between two. By
so much more than that time a statement may have run."""

_HUNG_UP = select.POLLRDHUP  # POLLHUP and POLLERR are reported anyway

# gevent's poll switches greenlets, and the hub cannot.
_new_poll = get_original("select", "poll")


class ClientGone(gevent.GreenletExit):  # type: ignore[misc]  # gevent has no types
    """The client of this request has hung up. Raised from the statement that runs, which ends.

    No ``except Exception`` catches it, but ``finally`` and ``with`` run, and transactions are
    rolled back.
    """


class _Request:
    """A request that is being served.

    :param scope: of its greenlet.
    :param client: the socket.
    """

    __slots__ = ("_number", "_session", "_since", "client", "gone", "scope")

    def __init__(self, scope: GreenletScope, client: Any) -> None:
        self.scope = scope
        self.client = client
        self.gone = False
        self._session: Session | None = None
        self._number = 0
        self._since = 0.0  # when its present statement was seen first

    @property
    def safe(self) -> bool:
        """Whether it may be ended in a statement."""
        return self.scope.request.method in SAFE_METHODS

    def statement(self) -> tuple[Session | None, int]:
        """Returns the session that runs a statement, and which one; None if there is none."""
        for session in self.scope:
            if session._depth:
                return session, session._number
        return None, 0

    def seconds_in_statement(self, now: float) -> float:
        """Returns for how long the statement that runs was seen to run; 0 if none runs."""
        session, number = self.statement()
        if session is not self._session or number != self._number:
            self._session, self._number, self._since = session, number, now
        return now - self._since if session is not None else 0.0


class ClientCheck:
    """Looks at the clients of requests that wait for a connection, or are in a long statement.

    It runs in the hub and never switches, so a greenlet stays where it is while it is looked at.

    :param seconds: a statement is long after so many.
    """

    def __init__(self, seconds: float) -> None:
        self._pause = min(seconds / LOOKS, LONGEST_PAUSE_SECONDS)
        self._long = seconds - self._pause / 2  # timers are not exact
        self._requests: dict[Any, _Request] = {}  # by greenlet
        self._timer: Any = None
        # The child has copies of these greenlets, and must not go on with one of them.
        os.register_at_fork(after_in_child=self._requests.clear)

    def start(self) -> None:
        """Look from now on, at the clients of this process."""
        self._timer = gevent.get_hub().loop.timer(self._pause, self._pause, ref=False)
        self._timer.start(self._look)

    def begin(self, client: Any) -> None:
        """This greenlet serves a request that came from this socket."""
        self._requests[gevent.getcurrent()] = _Request(scope_here(), client)

    def end(self) -> bool:
        """The request is over. Returns whether its client has gone: then no answer may follow that
        one, of which a part may have been sent."""
        request = self._requests.pop(gevent.getcurrent(), None)
        return request is not None and request.gone

    def _look(self) -> None:
        if not self._requests:
            return
        now = monotonic()
        pools: list[Any] = all_pools()
        waiting = {greenlet for pool in pools for greenlet in pool.waiting_greenlets()}
        gone = self._have_hung_up(
            greenlet
            for greenlet, request in self._requests.items()
            if request.seconds_in_statement(now) >= self._long or greenlet in waiting
        )
        if not gone:
            return
        for pool in pools:
            pool.refuse_gone(gone)
        for greenlet in gone - waiting:
            self._end(greenlet, now)

    def _have_hung_up(self, greenlets: Iterable[Any]) -> set[Any]:
        poll = _new_poll()
        by_descriptor = {}
        for greenlet in greenlets:
            descriptor = self._requests[greenlet].client.fileno()
            if descriptor >= 0:  # the project may have closed it
                poll.register(descriptor, _HUNG_UP)
                by_descriptor[descriptor] = greenlet
        return {by_descriptor[descriptor] for descriptor, _ in poll.poll(0)}

    def _end(self, greenlet: Any, now: float) -> None:
        request = self._requests.get(greenlet)
        if request is None or not request.safe:
            return
        # Ending one may have let another go on.
        seconds = request.seconds_in_statement(now)
        session, _ = request.statement()
        if session is None or seconds < self._long:
            return
        if not request.gone:  # else it has caught the first one
            request.gone = True
            session._pool.client_gone(f"{request.scope}, {seconds:.1f}s in a statement")
        greenlet.throw(ClientGone())
