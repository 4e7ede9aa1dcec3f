"""The ceiling: connections on a stack, one for all of the process, and nothing else.

No bound, no checks, no cleaning, no statistics: what reuse costs at least. Not fit for use.
"""

from typing import Any

from django.db.backends.mysql import base

_idle: list[Any] = []


class DatabaseWrapper(base.DatabaseWrapper):
    _reused = False

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self._reused = bool(_idle)
        return _idle.pop() if self._reused else super().get_new_connection(conn_params)

    def init_connection_state(self) -> None:
        if not self._reused:
            super().init_connection_state()

    def _close(self) -> None:
        if self.connection is not None:
            _idle.append(self.connection)
