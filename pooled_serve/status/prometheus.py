"""``/metrics``: the numbers of all workers in Prometheus' form.

The names are those of OpenTelemetry's semantic conventions for database clients, where they have
one. All of it, help texts included, derives from the declarations in ``pool/metrics.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pooled_serve.pool import metrics
from pooled_serve.pool.metrics import Kind, Metric
from pooled_serve.status.scoreboard import Snapshot

POOL, WORKER, STATE, REASON = (
    *("db_client_connection_pool_name", "worker", "db_client_connection_state"),
    "reason",
)
"""Labels. The worker is the slot, not the process id: a new worker goes on with the counters of the
one before it."""


class Collector:
    """A collector for prometheus_client's registry.

    :raises ImportError: prometheus_client is not installed.
    """

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        from prometheus_client import metrics_core

        self._snapshots = list(snapshots)
        self._kinds = {
            Kind.COUNTER: metrics_core.CounterMetricFamily,
            Kind.HISTOGRAM: metrics_core.HistogramMetricFamily,
        }
        self._gauge = metrics_core.GaugeMetricFamily

    def collect(self) -> Iterable[Any]:
        """Returns all metrics, as they are declared."""
        families: dict[str, Any] = {}
        now = time.monotonic()
        for metric in metrics.METRICS:
            family = families.get(metric.family)
            if family is None:
                labels = [POOL, WORKER]
                labels += [STATE] * bool(metric.state) + [REASON] * bool(metric.reasons)
                kind = self._kinds.get(metric.kind, self._gauge)
                family = families[metric.family] = kind(metric.family, metric.help, labels=labels)
            for snapshot in self._snapshots:
                _add(family, metric, snapshot, now)
        return families.values()


def _add(family: Any, metric: Metric, snapshot: Snapshot, now: float) -> None:
    row, labels = snapshot.row, [snapshot.alias, str(snapshot.slot)]
    value = row[metric.start]
    if metric.kind is Kind.HISTOGRAM:
        family.add_metric(labels, list(metrics.buckets(metric, row).items()), value)
    elif metric.reasons:
        for reason, count in metrics.by_reason(metric, row):
            family.add_metric([*labels, reason], count)
    elif metric.kind is Kind.COUNTER:
        family.add_metric(labels, value)
    elif snapshot.pid:  # a dead worker has no gauges
        if metric.kind is Kind.REACHABLE:
            if value == metrics.UNKNOWN:
                return
            value = float(value == metrics.YES)
        elif metric.kind is Kind.SINCE:
            value = metrics.age(value, now)
        family.add_metric([*labels, metric.state] if metric.state else labels, value)
