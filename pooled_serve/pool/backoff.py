"""When to try to connect again after a failure. Pure: it reads a clock, and sets no timer."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0
"""Between attempts to connect: after the first failure in a row, and after many."""

_MOST_DOUBLINGS = 10  # far beyond the longest pause, and 2 ** failures stays small


class Backoff:
    """Failures to connect in a row, and the pause that each of them causes.

    The pause doubles, and up to half of it is cut at random: workers that lost the same server
    together must not come back in step.

    :param clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_resume_at", "failures", "last_error")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._resume_at = 0.0
        self.failures = 0
        self.last_error: Exception | None = None

    def failed(self, error: Exception) -> None:
        """Note a failed attempt."""
        doublings = min(self.failures, _MOST_DOUBLINGS)
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**doublings)
        self._resume_at = self._clock() + pause * random.uniform(0.5, 1.0)
        self.failures += 1
        self.last_error = error

    def succeeded(self) -> bool:
        """Note that an attempt worked. Returns whether it ended a series of failures."""
        recovered = self.failures > 0
        self.failures = 0
        self.last_error = None
        return recovered

    @property
    def seconds_left(self) -> float:
        """The rest of the pause; 0 if there is none."""
        return max(0.0, self._resume_at - self._clock()) if self.failures else 0.0

    def allows(self, connecting: int) -> bool:
        """Whether another attempt may start.

        After a failure there is one attempt at a time, and none before the pause is over: a server
        that comes back meets no stampede, one that stays away is not hammered.

        :param connecting: attempts under way.
        """
        return not self.failures or (not connecting and self.seconds_left == 0.0)
