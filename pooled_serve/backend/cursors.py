"""Cursors that tell their session which statement is about to run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pymysql.err import ProgrammingError

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session


class _Tracked:
    """A cursor that tells its session which statement is about to run."""

    connection: Session | None
    _many: Any = None
    """What executemany() is at: it calls execute() with pieces of that."""

    def execute(self, query: Any, args: Any = None) -> Any:
        many = self._many
        part = many is not None and (query is many or isinstance(query, bytearray))
        return self._run(super().execute, many if part else query, query, args)  # type: ignore[misc]

    def executemany(self, query: Any, args: Any) -> Any:
        outer, self._many = self._many, query
        try:
            return self._run(super().executemany, query, query, args)  # type: ignore[misc]
        finally:
            self._many = outer

    def callproc(self, procname: Any, args: Any = ()) -> Any:
        return self._run(super().callproc, "CALL", procname, args)  # type: ignore[misc]

    def _run(self, method: Any, template: Any, *args: Any) -> Any:
        session = self.connection
        if session is None:
            return method(*args)  # closed; it says so itself
        session.begin_statement(template)
        try:
            return method(*args)
        finally:
            session.end_statement()

    def _get_db(self) -> Any:
        """What PyMySQL's cursor works on. During a statement that is the connection itself: the
        session has said all about it. It may be closed meanwhile, and then refuses."""
        session = self.connection
        if session is None:
            raise ProgrammingError("Cursor closed")
        conn = session._conn
        return session if conn is None or not session._depth else conn


@functools.lru_cache(maxsize=16)  # a class may be made anew for each request
def tracked(cursorclass: Any) -> Any:
    """A cursor class, made to tell its session what it runs."""
    return type("Cursor", (_Tracked, cursorclass), {})
