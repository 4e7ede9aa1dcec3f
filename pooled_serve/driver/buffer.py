"""What a server has sent, until it is read: in large pieces, with few calls."""

from __future__ import annotations

from typing import Any

RECEIVE_BYTES, MAX_RECEIVE_BYTES = 64 * 1024, 1024 * 1024
"""Bytes to ask the kernel for at once: at least, and at most, within a large packet."""


class ReadBuffer:
    """Bytes that were received but not yet read. Replaces the file that PyMySQL reads from."""

    __slots__ = ("_receive", "closed", "data", "position")

    def __init__(self, sock: Any) -> None:
        self._receive = sock.recv
        self.data, self.position = b"", 0
        self.closed = False

    def read(self, size: int) -> bytes:
        """Returns that many bytes, or fewer at the end of the stream."""
        if self.position + size > len(self.data):
            self.fill(size)
        begin = self.position
        self.position = min(begin + size, len(self.data))
        return self.data[begin : self.position]

    def fill(self, size: int) -> None:
        """Receive until that many bytes are unread, or the stream ends.

        Bytes already read are dropped, and a large packet is joined once, not with every piece.
        """
        rest = self.data[self.position :]
        self.data, self.position = b"", 0
        pieces = [rest] if rest else []  # joining a single piece copies nothing
        missing = size - len(rest)
        while missing > 0:
            piece = self._receive(min(max(missing, RECEIVE_BYTES), MAX_RECEIVE_BYTES))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        self.data = b"".join(pieces)

    def close(self) -> None:
        """Drop the unread bytes."""
        self.data, self.position = b"", 0
        self.closed = True
