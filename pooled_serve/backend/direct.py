"""Attributes of a pooled connection that its users may reach past the session."""

from __future__ import annotations

from typing import Any

from pymysql.connections import Connection

CONSTANT = (str, bytes, int, float, bool, type(None), type)
"""Attributes of these types cannot be changed by those who read them."""

HARMLESS = frozenset({"character_set_name", "get_host_info", "get_proto_info", "get_server_info"})
"""Methods that only read what the login has said."""


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
