"""The tokens of one database in the memory of a host: who owns them, and who wants one.

See host.py for the file that this is a part of.
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

from pooled_serve.options import MAX_PER_HOST

if TYPE_CHECKING:
    from pooled_serve.pool.host import Host

MAX_SLOTS = 254
"""Processes with connections at a time: after a HUP, old and new workers run side by side."""

NO_SLOT = MAX_SLOTS + 1
"""Of a token whose owner has no slot, or has died."""

MAX_TOKENS = MAX_PER_HOST

TRACE_BYTES = 48

SLOTS = MAX_SLOTS + 1  # slot 0 is nobody
NAME = struct.Struct("96p")  # longer names are cut; two that are the same then share an area

_WORD = 8
_PER_SLOT = ("since", "wanted", "promised", "lent")
# The first: whether any worker may be hungry; the last: see Area.asked.
_WORDS = 1 + len(_PER_SLOT) * SLOTS + 1

AREA_BYTES = NAME.size + _WORDS * _WORD + MAX_TOKENS * (1 + TRACE_BYTES)
LOCKS_PER_AREA = MAX_TOKENS + 1  # the last: for who has one connection more for a moment


class Area:
    """The tokens of one database, and who wants one.

    :param offset: in the file.
    :param locks: the offset of its locks.
    """

    def __init__(self, host: Host, memory: mmap.mmap, index: int, offset: int, locks: int) -> None:
        self.host = host
        self.index = index
        self._memory = memory
        self._offset = offset
        self._locks = locks
        words = self._offset + NAME.size
        self._owners_at = words + _WORDS * _WORD
        self._traces_at = self._owners_at + MAX_TOKENS
        view = memoryview(memory)
        numbers: Any = view[words : self._owners_at].cast("d")
        self.hungry: Any = numbers[:1]
        """Whether to look at `since`: set by who begins to wait, cleared by who finds nobody."""
        self.since, self.wanted, self.promised, self.lent = (
            numbers[1 + i * SLOTS : 1 + (i + 1) * SLOTS] for i in range(len(_PER_SLOT))
        )
        self.asked: Any = numbers[-1:]
        """Since when the login of the one connection more has had no answer; 0 if it has, or there
        is none. Of use only to those who find that another has it: who has died leaves it set."""
        self._owners = view[self._owners_at : self._traces_at]
        self.owned: set[int] = set()
        """The tokens of this process."""
        self.replacer: object = None
        """Who in this process has :meth:`begin_replacing`."""

    @property
    def packed_name(self) -> bytes:
        """The alias, as it is kept; its first byte is 0 if there is none."""
        return self._memory[self._offset : self._offset + NAME.size]

    @packed_name.setter
    def packed_name(self, packed: bytes) -> None:
        self._memory[self._offset : self._offset + NAME.size] = packed

    def orphan(self, slot: int) -> None:
        """The process with this slot has died, and another may take the slot."""
        self.forget(slot)
        for token, owner in enumerate(bytes(self._owners)):
            if owner == slot:
                self._owners[token] = NO_SLOT

    def forget(self, slot: int) -> None:
        """The process with this slot waits for no token."""
        self.since[slot] = self.wanted[slot] = self.promised[slot] = 0.0

    # --- Tokens --------------------------------------------------------------------------------

    def take(self, limit: int, *, search: bool) -> int | None:
        """Take a free token. Returns its number, or None if there is none.

        :param search: look also for tokens of processes that have died, with a system call for each
            process.
        """
        owners = self._memory[self._owners_at : self._owners_at + limit]
        token = owners.find(0)
        while token >= 0:
            if self._own(token):
                return token
            token = owners.find(0, token + 1)
        if search:
            dead = {owner for owner in set(owners) if owner == NO_SLOT or self._is_dead(owner)}
            for token, owner in enumerate(owners):
                if owner in dead and self._own(token):
                    return token
        return None

    def _is_dead(self, slot: int) -> bool:
        return slot != self.host.slot and not self.host.is_alive(slot)

    def _own(self, token: int) -> bool:
        if token in self.owned or not self.host.lock(self._locks + token):
            return False
        self.owned.add(token)
        self._owners[token] = self.host.slot or NO_SLOT
        return True

    def give_back(self, token: int, *, keep_trace: bool = False) -> None:
        """Free a token of this process.

        :param keep_trace: the server may still have its connection, which the next owner ends.
        """
        if not keep_trace:
            self.write_trace(token, b"")
        self._owners[token] = NO_SLOT if keep_trace else 0
        self.owned.discard(token)
        self.host.unlock(self._locks + token)

    def trace(self, token: int) -> bytes:
        """Returns the trace of a token's connection; empty if it has none."""
        at = self._traces_at + token * TRACE_BYTES
        length = self._memory[at]
        return self._memory[at + 1 : at + 1 + length]

    def write_trace(self, token: int, trace: bytes) -> None:
        """Keep the trace of a token's connection.

        The length is written last: who is killed in between leaves none, rather than a wrong one.
        """
        at = self._traces_at + token * TRACE_BYTES
        self._memory[at] = 0
        self._memory[at + 1 : at + 1 + len(trace)] = trace
        self._memory[at] = len(trace)

    def taken(self) -> int:
        """Returns how many tokens living processes own. Asks the kernel about each."""
        return len(self.owners())

    def owners(self) -> list[int]:
        """Returns the slot of the owner for each of these tokens."""
        owners = self._memory[self._owners_at : self._traces_at]
        return [
            owner
            for token, owner in enumerate(owners)
            if owner and (token in self.owned or self.host.is_locked(self._locks + token))
        ]

    def has_free(self, limit: int) -> bool:
        """Whether a token is free that was given back. Costs no system call."""
        return self._memory.find(b"\0", self._owners_at, self._owners_at + limit) >= 0

    def is_full(self, limit: int) -> bool:
        """Whether living processes own all tokens. Unlike :meth:`has_free` this counts those as
        free that were given back with a trace, as all may be in an outage, and those of the dead.
        Asks the kernel, but only if none was given back without."""
        return not self.has_free(limit) and all(
            token in self.owned or self.host.is_locked(self._locks + token)
            for token in range(limit)
        )

    # --- One connection more -------------------------------------------------------------------

    def begin_replacing(self, who: object) -> bool:
        """Ask for the right to have one connection beyond the tokens, to end an abandoned one with.
        Returns False if somebody else has it."""
        if self.replacer is None and self.host.lock(self._locks + MAX_TOKENS):
            self.replacer = who
            self.asked[0] = 0.0
        return self.replacer is who

    def end_replacing(self, who: object) -> None:
        """Give that right back."""
        if self.replacer is who:
            self.replacer = None
            self.asked[0] = 0.0
            self.host.unlock(self._locks + MAX_TOKENS)
