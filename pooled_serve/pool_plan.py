"""The numbers of each pool, which the plan makes of the options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pooled_serve.options import PoolOptions

SAFE_SHARE = 0.8
"""Age limit of connections as a share of ``wait_timeout``, unless one was set explicitly."""


@dataclass(frozen=True)
class PoolPlan:
    """The numbers of one pool."""

    size: int
    cap: float  # infinity: no limit
    timeout: float
    max_age: float  # infinity: never
    reset: str
    overload: str
    size_explicit: bool = False
    cap_explicit: bool = False
    age_explicit: bool = False
    leak_threshold: float | None = None  # seconds; None: off
    per_host: int | None = None  # connections of all workers together; None: no limit
    named: str = ""  # the alias whose --pool sets size and cap, which wins over the options for all

    def safe_age(self, wait_timeout: float | None) -> float:
        """The age limit of connections to a server with this ``wait_timeout``, in seconds."""
        if wait_timeout is None or self.age_explicit:
            return self.max_age
        return min(self.max_age, SAFE_SHARE * wait_timeout)


class PoolPlans(Protocol):
    """The source of each pool's numbers: :class:`pooled_serve.preflight.plan.Plan`."""

    @property
    def options(self) -> PoolOptions:
        """The options as given."""

    def pool(self, alias: str, conn_max_age: float | None) -> PoolPlan:
        """The numbers for an alias with this CONN_MAX_AGE."""
