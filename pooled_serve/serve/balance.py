"""How many client connections each worker has, in memory that all workers share.

Workers accept from one listener, and a keep-alive client stays with the worker that accepted it.
Left to chance, some workers end up with several times as many clients as others, and serve each of
them that much less. So a worker with more clients than another leaves the next one to that other:
Envoy calls this exact connection balance, and uses a lock; here there is none.

The master makes the memory before it forks. Each worker has one word, which only it writes; the
master clears the word when the worker has died, however it died. A worker writes zero there when it
stops accepting, so that others do not wait for workers that a HUP has replaced.

A worker may also hang, or be busy with one long view. If it did nothing for ``MAX_LOOKS`` looks
while a client was waiting, others no longer wait for it, until it does something again.
"""

from __future__ import annotations

import mmap

MAX_WORKERS = 256
"""At a time: after a HUP the old and the new ones run side by side. Others are not balanced."""

MAX_LOOKS = 4
"""Looks without progress after which a worker no longer waits for another. It looks between its own
views: a worker that is busy itself grants others, which share its cores, as much time."""

TOLERANCE_DIVISOR = 4
"""A busy worker leaves the next client to one that has fewer than three quarters of its own. To be
exact would cost more than it is worth: if each of two accepted one only after the other had done
so, the backlog would wait for the slower one."""

_WORD = 8
_OPEN_MASK = (1 << 32) - 1  # number of open connections, plus 1; 0: the worker does not accept
_ONE_ACCEPTED = 1 << 32  # a counter: one connection opened and one closed is a change, too
_ACCEPTED_WRAP = 1 << 30  # well below the size of the word


class Balance:
    """Made by the master, once, before it forks."""

    def __init__(self) -> None:
        # The first word is the highest index that was ever taken.
        self._words = memoryview(mmap.mmap(-1, (MAX_WORKERS + 1) * _WORD)).cast("q")
        self._taken: set[int] = set()

    def join(self) -> Share:
        """Returns the share of a worker that is about to be forked."""
        index = next((n for n in range(1, MAX_WORKERS + 1) if n not in self._taken), None)
        if index is None:
            return Balance().join()  # a balance of its own: it does not wait for others
        self._taken.add(index)
        self._words[0] = max(self._words[0], index)
        return Share(self._words, index)

    def retire(self, share: Share) -> None:
        """Free the share of a worker that has died."""
        share.leave()
        if share.words is self._words:
            self._taken.discard(share.index)


Looks = dict[int, tuple[int, int]]
"""index -> the word there, and how many looks in a row have found that word"""


class Share:
    """One worker's part of the balance."""

    def __init__(self, words: memoryview[int], index: int) -> None:
        self.words = words
        self.index = index
        self._open = 0
        self._accepted = 0
        self._accepting = False
        self._given_up: dict[int, int] = {}  # index -> its word at that time

    def enter(self) -> None:
        """Note that the worker accepts connections from now on."""
        self._accepting = True
        self._write()

    def leave(self) -> None:
        """Note that it no longer does. Its open connections no longer count."""
        self._accepting = False
        self._write()

    def opened(self) -> None:
        """Count an accepted connection."""
        self._open += 1
        self._accepted = (self._accepted + 1) % _ACCEPTED_WRAP
        self._write()

    def closed(self) -> None:
        """Count a closed connection."""
        self._open -= 1
        self._write()

    def workers(self) -> int:
        """Returns how many workers accept connections; at least 1."""
        words = self.words
        return sum(word & _OPEN_MASK > 0 for word in words[1 : words[0] + 1]) or 1

    def is_last(self) -> bool:
        """Whether no other worker accepts connections. A worker that stops asks after it has left:
        of two that stop at the same time, at least one is the last."""
        words = self.words
        others = (word for index, word in enumerate(words[: words[0] + 1]) if index != self.index)
        next(others)  # the first word is no worker's
        return not any(word & _OPEN_MASK for word in others)

    def is_ahead(self, yielded: int = 0) -> bool:
        """Whether a worker with fewer connections should take the next one. Costs a few memory
        reads.

        :param yielded: how many of this worker's clients wait for their turns.
        """
        return bool(self._behind(yielded))

    def look(self, seen: Looks, yielded: int = 0) -> bool:
        """Look for progress of the workers with fewer connections. Returns whether to go on waiting
        for one of them.

        :param seen: the results of the previous looks of this wait, and then of this one; empty
            before the first.
        :param yielded: see :meth:`is_ahead`.
        """
        behind = self._behind(yielded)
        for index, word in behind.items():
            last, times = seen.get(index, (word, 0))
            seen[index] = word, times + 1 if word == last else 1
        return any(seen[index][1] < MAX_LOOKS for index in behind)

    def give_up(self, seen: Looks) -> None:
        """Do not wait for the workers that did nothing, until they do: a client was waiting."""
        self._given_up |= {
            index: word for index, (word, times) in seen.items() if times >= MAX_LOOKS
        }

    def _behind(self, yielded: int) -> dict[int, int]:
        """Returns index -> word of the workers that have fewer connections."""
        words, given_up = self.words, self._given_up
        enough = self._open + 1 - min(self._open // TOLERANCE_DIVISOR, yielded)
        return {
            index: word
            for index, word in enumerate(words[1 : words[0] + 1], 1)
            if 0 < word & _OPEN_MASK < enough and given_up.get(index) != word
        }

    def _write(self) -> None:
        word = self._accepted * _ONE_ACCEPTED + self._open + 1
        self.words[self.index] = word if self._accepting else 0
