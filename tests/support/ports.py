"""Ports that nobody else takes before the server that is told of them does."""

from __future__ import annotations

import socket
from contextlib import suppress

MAX_HELD = 200  # held at a time: more than a test needs, and fewer than the files it may have open

_held: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which the kernel gives to nobody else.

    It is bound here. With SO_REUSEADDR, which servers set, others can listen on it all the same,
    as often as they like; as long as none does, connections are refused.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    if len(_held) > MAX_HELD:
        _held.pop(0).close()
    port: int = holder.getsockname()[1]
    return port


def is_listening(port: int) -> bool:
    """Whether connections to this port of 127.0.0.1 are accepted."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
        return True
    return False
