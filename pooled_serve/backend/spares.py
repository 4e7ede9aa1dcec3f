"""Django's connection wrappers, used again for the next request.

Stock Django keeps a wrapper as long as its thread, here that is as long as its client stays
connected, and whatever a request has left in it is there for the next. To make a new one each time
is clean but dear: its parts are made anew, and what the server can do is found out again; 2 to 3 %
of the CPU of a request with one query.
"""

from __future__ import annotations

import _thread
from collections import deque
from collections.abc import Callable
from typing import Any

from django.utils.functional import cached_property

from pooled_serve.tuning import switches as savings

MOST = 64
"""Wrappers that are kept; of a spike's the rest is dropped."""

_RESTORED = (bool, int, float, str, type(None))
_UNDER_WAY = ("in_atomic_block", "needs_rollback", "_thread_sharing_count")
_RELIED_ON = {*_UNDER_WAY, "connection", "_thread_ident"}
"""A Django that has other names for these gets a new wrapper each time."""

_LATER = frozenset({"isolation_level", "_scope", "_leasing", "_spares"})
"""What a wrapper gets later, from Django and from us, the same each time."""


class Spares:
    """The wrappers of one database that nobody uses.

    They remember what its server can do: where that may have changed, make new ``Spares``. What is
    under way comes back to the old ones, and is not seen again.

    :param make: a new one.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._spare: list[Any] = []
        self._at_least: frozenset[str] = frozenset()
        self._at_most: frozenset[str] = frozenset()
        self._restored: dict[str, Any] = {}
        self._empty: list[str] = []

    def take(self) -> Any:
        """One that belongs to the current greenlet."""
        try:
            wrapper = self._spare.pop()
        except IndexError:
            wrapper = self._make()
            wrapper._spares = self
            if not self._restored:
                self._remember(wrapper)
        else:
            wrapper._thread_ident = _thread.get_ident()  # Django's own, patched by gevent
        return wrapper

    def give_back(self, wrapper: Any) -> None:
        """Keep it, if it can be made as good as new."""
        state = vars(wrapper)
        if (
            # Else somebody has left something in it, or taken something out.
            self._at_least <= state.keys() <= self._at_most
            and wrapper.connection is None
            and not any(map(state.__getitem__, _UNDER_WAY))
            and not any(map(state.__getitem__, self._empty))
            and len(self._spare) < MOST
        ):
            state.update(self._restored)
            self._spare.append(wrapper)

    def _remember(self, wrapper: Any) -> None:
        """What a new one looks like."""
        state = vars(wrapper)
        self._restored = {k: v for k, v in state.items() if isinstance(v, _RESTORED)}
        # Django refuses its use to whoever still has it.
        self._restored["_thread_ident"] = None
        self._empty = [
            k for k, v in state.items() if isinstance(v, (list, deque, set, dict)) and not v
        ]
        if savings.on("wrappers") and state.keys() >= _RELIED_ON:  # else none is good enough
            facts = {
                name
                for kind in type(wrapper).__mro__
                for name, value in vars(kind).items()
                if isinstance(value, cached_property)
            }
            self._at_least = frozenset(state)
            self._at_most = _LATER | facts | state.keys()
