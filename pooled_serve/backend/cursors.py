"""Cursors that announce each statement to their session."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pymysql.err import MySQLError, ProgrammingError

if TYPE_CHECKING:
    from pooled_serve.backend.lease import Session


class _Tracked:
    """A mixin for a cursor that announces each statement to its session."""

    connection: Session | None
    _number = 0  # of the statement
    _many: Any = None
    """The statement of a running executemany(), which calls execute() with parts of it."""

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
            return method(*args)  # raises the error of a closed cursor
        self._number = session.begin_statement(template)
        try:
            return method(*args)
        finally:
            session.end_statement()

    def _query(self, q: Any) -> Any:
        try:
            return super()._query(q)  # type: ignore[misc]
        except MySQLError as error:
            session = self.connection
            if session is None or not session.runs_again(error, self._number):
                raise
            return super()._query(q)  # type: ignore[misc]

    def _get_db(self) -> Any:
        """Returns what PyMySQL's cursor works on: during a statement, which is announced, the
        connection itself, else the session. If the connection is closed meanwhile, it raises."""
        session = self.connection
        if session is None:
            raise ProgrammingError("Cursor closed")
        conn = session._conn
        return session if conn is None or not session._depth else conn


@functools.lru_cache(maxsize=16)  # bounded: a project may make a class in each request
def tracked(cursorclass: Any) -> Any:
    """Returns a subclass of a cursor class that announces its statements to its session."""
    return type("Cursor", (_Tracked, cursorclass), {})
