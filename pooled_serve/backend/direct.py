"""Attributes of a pooled connection that its users may reach past the session."""

from __future__ import annotations

from typing import Any

from pymysql.connections import Connection

CONSTANT = (str, bytes, int, float, bool, type(None), type)
"""Attributes of these types cannot be changed by those who read them."""

HARMLESS = frozenset({"character_set_name", "get_host_info", "get_proto_info", "get_server_info"})
"""Methods that only read what the login has said."""


class DirectUse:
    """The part of a session that reaches past it, to the connection."""

    _conn: Any
    _lease: Any
    _pin: Any
    release_if_unneeded: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # somebody copies it, or wants to know what it can do
        conn = self._conn or self._lease()
        try:
            value = getattr(conn, name)
            if not isinstance(value, CONSTANT) and name not in HARMLESS:
                self.use_directly()
            return value
        finally:
            self.release_if_unneeded()

    def use_directly(self) -> Any:
        """The connection itself, which nobody is to have after this session."""
        # What is given out may be a method, to be called at any time.
        conn = self._conn or self._lease()
        conn.condemn("direct use")
        # Possibly. With "not", questions about it would be refused.
        self._ran_statement = self._has_own_key = self._used_sequence = self._got_rows = True
        self._pin("direct use")
        return conn


class _Forwarded:
    """An attribute that is the connection's, to read and to write."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, session: Any, owner: Any = None) -> Any:
        return self if session is None else session.__getattr__(self._name)

    def __set__(self, session: Any, value: Any) -> None:
        setattr(session.use_directly(), self._name, value)


def forward_attributes(session: type) -> None:
    """Let what is set on a session, and is a connection's, arrive there.

    With descriptors, because a ``__setattr__()`` would slow down all that a session does.
    """
    own = {*vars(session), "_closed"}
    of_connections = vars(Connection(defer_connect=True, ssl_disabled=True))
    for name in {*of_connections, "_rfile", "server_status"} - own:
        setattr(session, name, _Forwarded(name))
