"""Gunicorn's gevent worker, with fair turns, an orderly end for the pools, and the status page."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import FrameType
from typing import Any, NamedTuple

import gevent
from gunicorn.arbiter import Arbiter
from gunicorn.workers import ggevent
from gunicorn.workers.ggevent import GeventWorker

from pooled_serve.errors import Finding, StartupError
from pooled_serve.preflight.project import failed_in_worker
from pooled_serve.serve import accept, early, signals, turns
from pooled_serve.serve.balance import Balance
from pooled_serve.status.scoreboard import Scoreboard
from pooled_serve.tuning import response

LAST_WORDS_SECONDS = 1.5
"""Before the end of --graceful-timeout: a worker looks once a second."""

MOST_NAMED = 5
"""Requests in a line about those that may be cut."""


class _Listener(NamedTuple):
    """What gunicorn asks a listener for when it begins to serve a client."""

    name: Any

    def getsockname(self) -> Any:
        """Returns the address, also after the socket was closed, as a socket does not."""
        return self.name


class _Ended(StopIteration):
    """Closes the connection of a client, as gunicorn does."""


class PooledWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """What a worker does itself. What runs in gunicorn's hooks, around the user's, is in
    config.py."""

    _quitting: gevent.Greenlet | None = None
    _died = False  # it ends, and nobody had told it to
    _patch: Any = None  # pooled_serve.backend.patch, once it may be imported
    _client_check: Any = None  # pooled_serve.backend.client_check.ClientCheck, if it is on

    def __init__(self, *args: Any) -> None:
        # Runs in the master, before the fork: there the slot is allocated.
        super().__init__(*args)
        self.scoreboard: Scoreboard | None = self.app.scoreboard
        self.slot = None if self.scoreboard is None else self.scoreboard.allocate()
        # With reuse_port, no other worker can accept from this worker's listener.
        self._in_flight: dict[Any, float] = {}  # requests, and when each began
        self._told_at: float | None = None  # when it was told to end
        self.share = (Balance() if self.cfg.reuse_port else self.app.balance).join()

    def init_process(self) -> None:
        """Start the worker, in its process."""
        response.install()
        self._turns = turns.Turns()
        # run() uses the server class of this name.
        ggevent.StreamServer = partial(accept.Server, self._turns, self.share)
        try:
            super().init_process()
        except StartupError as error:  # gunicorn would log a traceback, which says no more
            self.log.error("%s", error)
            if self.cfg.errorlog != "-":
                print(error, file=sys.stderr)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def patch(self) -> None:
        """Have gevent patch, with signals blocked.

        A worker that is ended half-way has a main thread that :mod:`threading` does not know, and
        finalizers of it that print tracebacks (Python 3.13.0).

        :raises StartupError: Django is loaded already.
        """
        try:
            early.refuse()
        except StartupError as error:
            if not self.app.has_reloaded:
                raise
            early.do_without(error)  # it is by post_fork(), and the site is to go on
        with signals.blocked():
            super().patch()

    def init_signals(self) -> None:
        """Set the handlers, with signals blocked: gunicorn first sets the default action."""
        with signals.blocked():
            super().init_signals()
        # SIGCHLD's, too, by which gevent's waitpid() learns of the end of a child. gevent sets its
        # own only after the first fork, and would wait for ever if the child has ended by then.
        os.register_at_fork(before=gevent.get_hub().loop.install_sigchld)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Exit at once, on INT or QUIT. Later ones are ignored.

        Gunicorn spawns a greenlet for each signal, which raises SystemExit a tenth of a second
        later. If Python is exiting by then, it prints a traceback.
        """
        signals.ignore_interrupts()
        self._mark_stopping()
        if self.booted:
            self._quitting = gevent.spawn(self._quit, 0.1)
        else:
            # No greenlet runs while the project is loaded, which may take long.
            self._quit()

    def handle_abort(self, sig: int, frame: Any) -> None:
        """End, on ABRT, which the master sends after --timeout.

        Gunicorn raises SystemExit, which may be swallowed where it hits a request. Then the worker
        ends as one that was told to.
        """
        if self.alive:
            self._died = True
        super().handle_abort(sig, frame)

    def _quit(self, delay: float | None = None) -> None:
        self.alive = False
        self.cfg.worker_int(self)
        if delay is not None:
            gevent.sleep(delay)
        signals.leave()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the requests of a client.

        A worker that stops closes its listeners first. The greenlet of a client that was accepted
        before may begin only then, and Gunicorn, which asks the listener for its address, would
        fail and reset the connection.
        """
        super().handle(self._listeners[listener], client, addr)

    def handle_request(self, listener: Any, req: Any, *args: Any) -> Any:
        """Serve one request of HTTP/1."""
        return self._one_request(super().handle_request, listener, req, *args)

    def handle_http2_request(self, listener: Any, req: Any, *args: Any) -> Any:
        """Serve one request of HTTP/2, where a connection may have several at a time."""
        try:
            return self._one_request(super().handle_http2_request, listener, req, *args)
        except (self._patch.ClientGone, _Ended):
            return None  # gunicorn finds the end of the connection

    def _one_request(self, handle: Any, listener: Any, req: Any, client: Any, *args: Any) -> Any:
        check = self._client_check
        gone = False
        scope = self._patch.begin_request(req)  # by which _route_of() knows the request
        self._in_flight[req] = time.monotonic()
        if check is not None:
            check.begin(client)
        try:
            result = handle(listener, req, client, *args)
        finally:
            del self._in_flight[req]
            if check is not None:
                gone = check.end()
            self._patch.end_request(scope)
        if gone:
            raise _Ended
        self._turns.give_up()
        return result

    def _route_of(self, frame: FrameType) -> str:
        """Returns the route of the request that began in this frame; empty if none did. In any
        thread."""
        if frame.f_code is not PooledWorker._one_request.__code__:
            return ""
        scope = frame.f_locals.get("scope")
        return "" if scope is None else str(self._patch.route_of(scope))

    def load_wsgi(self) -> None:
        """Load the project, with its databases pooled. gevent has patched by now; Django is not
        imported yet."""
        try:
            super().load_wsgi()
        except StartupError:
            raise  # init_process() tells of it
        except (Exception, SystemExit) as error:
            if self.alive:  # else it was told to end meanwhile
                self.log.error("%s", failed_in_worker(self.app.app_uri, error))
            raise
        from pooled_serve.backend import patch

        self._patch = patch
        patch.begin_serving()
        self.app.reloads.tell(self.age, patch.addresses, _problems_of_settings)
        if self.cfg.pool_client_check is not None:
            self._client_check = patch.check_clients(self.cfg.pool_client_check)
        if self.scoreboard is not None and self.slot is not None:
            row = self.scoreboard.load_row(self.slot)
            row.note_urls(self.app.urls_error)
            if self.app.urls_error:
                patch.watch_urls(partial(row.note_urls, ""))
            self.scoreboard.register(self.slot)
            if not self.alive:  # told to end while it loaded the project
                self._mark_stopping()
            row_for = partial(self.scoreboard.pool_row, self.slot)
            patch.join_scoreboard(
                row_for,
                self.scoreboard.route_table(self.slot),
                self.scoreboard.unreachable(self.app.unreachable),
                self.scoreboard.usual_hold,
                self.scoreboard.hangs,
                self.scoreboard.is_used,
            )

    def notify(self) -> None:
        """Send gunicorn's heartbeat, once a second; also while a stop waits for requests."""
        super().notify()
        if not self.alive:
            self._tell_of_cut_requests()
            self._patch.drain()
            self._mark_stopping()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End in time, on TERM."""
        self._told_at = self._told_at or time.monotonic()
        super().handle_exit(sig, frame)
        self._mark_stopping()

    def _mark_stopping(self) -> None:
        """Let /readyz know at once, also while this worker still loads the project."""
        of_worker = self.pid == os.getpid()  # a child of the project's inherits the handlers
        if of_worker and self.scoreboard is not None and self.slot is not None:
            self.scoreboard.mark_stopping(self.slot, died=self._died)

    def _tell_of_cut_requests(self) -> None:
        """Name the requests that may soon be cut: the master's KILL leaves no time for it. In a
        reload it sends none, and a worker that looks once a second ends them a little later."""
        now = time.monotonic()
        if self._told_at is None or not self._in_flight:
            return
        left = self._told_at + self.cfg.graceful_timeout - now
        if left > LAST_WORDS_SECONDS:
            return
        self._told_at = None
        from pooled_serve.backend.scope import shorten

        number = len(self._in_flight)
        oldest = sorted(self._in_flight.items(), key=itemgetter(1))[:MOST_NAMED]
        self.log.warning(
            "worker %s has %d request%s in flight (%s%s): --graceful-timeout is over%s %s may "
            "be cut\n  → if requests take that long, raise it, and what the process manager waits",
            self.pid,
            number,
            "" if number == 1 else "s",
            ", ".join(f"{r.method} {shorten(r.path)}, {now - began:.0f} s" for r, began in oldest),
            ", ..." if number > MOST_NAMED else "",
            f" in {left:.1f} s, after which" if left >= 0.05 else ", and",
            "it" if number == 1 else "they",
        )

    def run(self) -> None:
        """Serve until stopped, finish the requests in flight, and close idle connections."""
        status = self._start_status()
        self._listeners = {each: _Listener(each.getsockname()) for each in self.sockets}
        try:
            super().run()
        finally:
            if self._quitting is not None:
                self._quitting.kill()  # it has ended
            if status is not None:
                status.stop()
            self._patch.end_serving()
            if self.alive:  # an exception ends it; --max-requests tells it to end
                self._died = True
            self._mark_stopping()
            if status is not None:
                status.refresh_gauges()  # hooks and exit handlers may take long; it holds nothing

    def last_call(self) -> None:
        """Prepare the end of the pools. Runs after the user's last hook."""
        if self._patch is not None:
            self._patch.last_call()

    def _start_status(self) -> Any:
        """Serve the status listener apart from the others: without TLS, the project's hooks and
        gunicorn's counts, and with greenlets of its own, so that a full main port cannot starve it.
        Returns None without a status page."""
        listener = next(filter(self.cfg.is_status_listener, self.sockets), None)
        if listener is None:
            return None
        from pooled_serve.status.listener import StatusServer

        self.sockets.remove(listener)
        status = StatusServer(
            listener,
            self,
            self._patch.pools,
            self._patch.atomic_aliases,
            self._route_of,
            self._patch.try_urls,
            self._patch.addresses,
        )
        status.start()
        return status


def _problems_of_settings(addresses: Mapping[str, str]) -> Sequence[Finding]:
    from pooled_serve.preflight import loaded  # of no use to a worker that follows no HUP

    return loaded.problems(addresses)
