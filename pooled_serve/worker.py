"""Gunicorn's gevent worker, with fair turns and an orderly end for the pools."""

from __future__ import annotations

import signal
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker


class PooledWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """A subclass, not server hooks: those belong to the user."""

    def init_process(self) -> None:
        """Become a worker."""
        # gunicorn does this much later, and until then a TERM ends in the arbiter's handler,
        # which the fork has copied: the worker would never hear of it, and be killed in the end.
        signal.signal(signal.SIGTERM, self.handle_exit)
        super().init_process()

    def handle_request(self, *args: Any) -> Any:
        """One request of HTTP/1."""
        return self._one_request(super().handle_request, args)

    def handle_http2_request(self, *args: Any) -> Any:
        """One request of HTTP/2, several of which share a connection."""
        return self._one_request(super().handle_http2_request, args)

    def _one_request(self, handle: Any, args: tuple[Any, ...]) -> Any:
        try:
            result = handle(*args)
        finally:
            self._patch.end_request()
        # Stock gunicorn goes on as long as a keep-alive client has sent more, and a few busy
        # clients starve the rest (p99 881 ms instead of 29 ms with 32 of them).
        gevent.sleep(0)
        return result

    def load_wsgi(self) -> None:
        """Load the project, pooled. gevent has patched by now, Django is not imported yet."""
        super().load_wsgi()
        from pooled_serve import patch

        self._patch = patch

    def notify(self) -> None:
        """gunicorn's heartbeat: once a second, also while requests in flight are waited for."""
        super().notify()
        if not self.alive:
            self._patch.drain()

    def run(self) -> None:
        """Serve until told to stop, finish what is in flight, say goodbye to the databases."""
        try:
            super().run()
        finally:
            self._patch.close()
