"""A URL configuration that failed when this worker loaded the project, and may work by now.

Django imports it again with each request until that works, for example because a file was corrected
without a HUP, or because a database that it asks is back. So a request finds out. But while
``/readyz`` says 503, an orchestrator sends none, and so each request for ``/readyz`` tries it, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import gevent
from django.urls import get_resolver


class BrokenUrls:
    """Finds out when the URL configuration works.

    :param works: called once it does.
    """

    def __init__(self, works: Callable[[], None]) -> None:
        self._works = works
        self._attempt: gevent.Greenlet | None = None  # truthy while it runs

    def look(self) -> bool:
        """See whether it works, at no cost: it is kept when it was imported. A request may have a
        URL configuration of its own, so that its view says nothing."""
        if "url_patterns" not in vars(get_resolver()):
            return False
        self._works()
        return True

    def try_again(self) -> None:
        """Try it in the background: the project's code may take long, or ask a database."""
        if not self._attempt:
            self._attempt = gevent.spawn(self._try)

    def _try(self) -> None:
        with contextlib.suppress(Exception, SystemExit):
            get_resolver().url_patterns  # noqa: B018 - imported at first use
        self.look()
