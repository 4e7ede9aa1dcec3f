"""What a metric is, and the row that holds its numbers; metrics.py has those of a pool."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload


class Row(Protocol):
    """A list, or a piece of the memory that all workers share."""

    @overload
    def __getitem__(self, index: int, /) -> float: ...
    @overload
    def __getitem__(self, part: slice, /) -> Sequence[float]: ...
    def __setitem__(self, index: int, value: float, /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[float]: ...


class Kind(enum.Enum):
    """What a number is, and so how those of several workers become one."""

    COUNTER = enum.auto()
    """Only grows, and is kept when its worker dies. Summed."""
    HISTOGRAM = enum.auto()
    """A counter of seconds, then one for each bucket. Summed."""
    GAUGE = enum.auto()
    """Of the moment when it was refreshed. Summed."""
    SINCE = enum.auto()
    """A gauge: since when something lasts, monotonic seconds; 0 if nothing does. The earliest."""
    LATEST = enum.auto()
    """A gauge: when something last was, monotonic seconds; 0 if it never was. The latest."""
    LONGEST = enum.auto()
    """A gauge: seconds. The longest."""
    REACHABLE = enum.auto()
    """A gauge: UNKNOWN, YES or NO. The worst."""
    ERROR = enum.auto()
    """A gauge: the number of an error, or 0; then when that was, and when the same last worked, in
    monotonic seconds. The latest."""


@dataclass(frozen=True)
class Metric:
    """A number of a row, or several that belong together."""

    kind: Kind
    key: str
    """In ``/stats.json``. A histogram has two keys: this with ``_total`` and with ``_buckets``."""
    help: str
    start: int
    """Its first index in a row."""
    width: int
    """How many numbers it has."""
    reasons: tuple[str, ...] = ()
    """If it counts by reason: these, in their order."""
    otel: str = ""
    """Its name in OpenTelemetry's conventions; empty if they have none."""
    state: str = ""
    """The value of the state label, for metrics that are one metric there."""

    @property
    def family(self) -> str:
        """In ``/metrics``, without the ``_total`` that Prometheus puts behind counters."""
        if self.otel:
            return f"db_client_connection_{self.otel}"
        return f"pooled_serve_{self.key}".removesuffix("_total")
