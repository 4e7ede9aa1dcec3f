"""How many client connections each worker has, in memory that all workers share.

Workers accept from one listener, and a keep-alive client stays where it was accepted. Left to
chance, some workers end up with several times as many clients as others, and each of those clients
gets that much less. So a worker with more clients than another leaves the next one to that other:
what Envoy calls exact connection balance, here without a lock.

The master makes the memory before it forks. Each worker has one word, which only it writes, until
the master clears it when the worker has died, however it died. A worker writes zero there when it
stops accepting, so that nobody waits for a generation that a HUP has replaced.

A worker may also hang, or be busy with one long view. Nobody waits for one that did nothing for
``MAX_LOOKS`` looks while a client was waiting, until it does something again.
"""

from __future__ import annotations

import mmap

MAX_WORKERS = 256
"""At a time. A HUP has the old and the new ones side by side; more than these are not counted."""

MAX_LOOKS = 4
"""Looks without progress after which a worker no longer waits for another. It looks between its own
views: a worker that is busy itself grants others, which share its cores, as much time."""

TOLERANCE = 4
"""A busy worker may have a quarter more clients than another. To be exact would cost more than it
is worth: if each of two accepted one only after the other had done so, the backlog would wait for
the slower one."""

_WORD = 8
_OPEN_MASK = (1 << 32) - 1  # one more than the open connections; zero: does not accept
_ONE_ACCEPTED = 1 << 32  # counts up, so that one that came and one that left are a change, too
_ACCEPTED_WRAP = 1 << 30  # far from the end of the word


class Balance:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        # The first word is the highest index that was ever taken.
        self._words = memoryview(mmap.mmap(-1, (MAX_WORKERS + 1) * _WORD)).cast("q")
        self._taken: set[int] = set()

    def join(self) -> Share:
        """For a worker that is about to be forked."""
        index = next((n for n in range(1, MAX_WORKERS + 1) if n not in self._taken), None)
        if index is None:
            return Balance().join()  # a balance of its own: it waits for nobody
        self._taken.add(index)
        self._words[0] = max(self._words[0], index)
        return Share(self._words, index)

    def retire(self, share: Share) -> None:
        """The worker has died."""
        share.leave()
        if share.words is self._words:
            self._taken.discard(share.index)


Looks = dict[int, tuple[int, int]]
"""index -> its word, and how many looks in a row have found just that"""


class Share:
    """One worker's part."""

    def __init__(self, words: memoryview[int], index: int) -> None:
        self.words = words
        self.index = index
        self._open = 0
        self._accepted = 0
        self._accepting = False
        self._given_up: dict[int, int] = {}  # index -> its word at that time

    def enter(self) -> None:
        """The worker accepts connections from now on."""
        self._accepting = True
        self._write()

    def leave(self) -> None:
        """It no longer does. Those that it has do not count any more."""
        self._accepting = False
        self._write()

    def opened(self) -> None:
        """A connection was accepted."""
        self._open += 1
        self._accepted = (self._accepted + 1) % _ACCEPTED_WRAP
        self._write()

    def closed(self) -> None:
        """One was closed."""
        self._open -= 1
        self._write()

    def workers(self) -> int:
        """How many workers accept connections, this one among them."""
        words = self.words
        return sum(word & _OPEN_MASK > 0 for word in words[1 : words[0] + 1]) or 1

    def is_ahead(self, busy: int = 0) -> bool:
        """Whether a worker with fewer connections should take the next one; some memory reads.

        :param busy: how many of this worker's clients wait for their turns.
        """
        return bool(self._behind(busy))

    def look(self, seen: Looks, busy: int = 0) -> bool:
        """Whether to go on waiting for one of those, as after the last look.

        :param seen: what the looks of this wait have found; empty before the first.
        :param busy: see :meth:`is_ahead`.
        """
        behind = self._behind(busy)
        for index, word in behind.items():
            last, times = seen.get(index, (word, 0))
            seen[index] = word, times + 1 if word == last else 1
        return any(seen[index][1] < MAX_LOOKS for index in behind)

    def give_up(self, seen: Looks) -> None:
        """A client waited all the time: leave those alone who did nothing, until they do."""
        self._given_up |= {
            index: word for index, (word, times) in seen.items() if times >= MAX_LOOKS
        }

    def _behind(self, busy: int) -> dict[int, int]:
        """Indexes of those who have fewer, and their words."""
        words, given_up = self.words, self._given_up
        enough = self._open + 1 - min(self._open // TOLERANCE, busy)
        return {
            index: word
            for index, word in enumerate(words[1 : words[0] + 1], 1)
            if 0 < word & _OPEN_MASK < enough and given_up.get(index) != word
        }

    def _write(self) -> None:
        word = self._accepted * _ONE_ACCEPTED + self._open + 1
        self.words[self.index] = word if self._accepting else 0
