"""Attributes of a pooled connection that its users can reach past the session."""

from __future__ import annotations

from typing import Any

from pymysql.connections import Connection

CONSTANT = (str, bytes, int, float, bool, type(None), type)
"""Types of attributes that can be given out: their values are immutable."""

HARMLESS = frozenset({"character_set_name", "get_host_info", "get_proto_info", "get_server_info"})
"""Methods that only return what the server said at the login."""


class DirectUse:
    """The part of a session that gives access to the connection below it."""

    _conn: Any
    _lease: Any
    _pin: Any
    release_if_unneeded: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # probed by copy() and the like, which must not lease
        conn = self._conn or self._lease()
        try:
            value = getattr(conn, name)
            if not isinstance(value, CONSTANT) and name not in HARMLESS:
                self.use_directly()
            return value
        finally:
            self.release_if_unneeded()

    def use_directly(self) -> Any:
        """Returns the connection itself, which is closed after this session: the caller may keep a
        method of it, and call that at any time."""
        conn = self._conn or self._lease()
        conn.condemn("direct use")
        # Possibly. If these were false, the user's own questions would be refused.
        self._ran_statement = self._has_own_key = self._used_sequence = self._got_rows = True
        self._pin("direct use")
        return conn


class _Forwarded:
    """A descriptor that reads and writes an attribute of the connection."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, session: Any, owner: Any = None) -> Any:
        return self if session is None else session.__getattr__(self._name)

    def __set__(self, session: Any, value: Any) -> None:
        setattr(session.use_directly(), self._name, value)


def forward_attributes(session: type) -> None:
    """Forward assignments of a connection's attributes from a session to its connection.

    With descriptors: a ``__setattr__()`` would slow down every assignment in a session.
    """
    own = {*vars(session), "_closed"}
    of_connections = vars(Connection(defer_connect=True, ssl_disabled=True))
    for name in {*of_connections, "_rfile", "server_status"} - own:
        setattr(session, name, _Forwarded(name))
