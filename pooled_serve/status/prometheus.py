"""``/metrics``: the numbers of all workers in Prometheus' form.

The names are those of OpenTelemetry's semantic conventions for database clients, where they have
one. All of it, help texts included, derives from the declarations in ``pool/metrics.py``
and ``status/instance_metrics.py``.

The label of a route is as bounded as the table of routes: for each worker 64, and three that are
none. It may contain anything that a project writes into its URLconf; prometheus_client escapes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from pooled_serve import __version__
from pooled_serve.pool import metrics
from pooled_serve.pool.metric import Kind, Metric
from pooled_serve.status import instance_metrics
from pooled_serve.status.peaks import PEAK_METRICS
from pooled_serve.status.routes import RouteUse
from pooled_serve.status.scoreboard import Snapshot
from pooled_serve.status.stats import servers

POOL, WORKER, STATE, REASON = (
    *("db_client_connection_pool_name", "worker", "db_client_connection_state"),
    "reason",
)
ROUTE, METHOD, WINDOW = "http_route", "http_request_method", "window"
"""Labels. The worker is the slot, not the process id: a new worker goes on with the counters of the
one before it."""


class Collector:
    """A collector for prometheus_client's registry.

    :param instance: those of INSTANCE_METRICS, and ``app``.
    :param hosts: see :meth:`pooled_serve.pool.host.Host.stats`.
    :param peaks: alias -> what :meth:`pooled_serve.status.history.History.peaks` returns.
    :param routes: see :meth:`pooled_serve.status.scoreboard.Scoreboard.read_routes`.
    :param loads: slot -> numbers of its workers; see status/load.py.
    :param pools: alias -> those of POOL_METRICS.
    :raises ImportError: prometheus_client is not installed.
    """

    def __init__(
        self,
        snapshots: Iterable[Snapshot],
        instance: Mapping[str, Any],
        hosts: Mapping[str, Mapping[str, int]],
        peaks: Mapping[str, Mapping[str, Mapping[str, float]]],
        routes: Mapping[int, Iterable[RouteUse]],
        loads: Mapping[int, Mapping[str, float | str | None]],
        pools: Mapping[str, Mapping[str, float]],
    ) -> None:
        from prometheus_client import metrics_core

        self._snapshots = list(snapshots)
        self._instance = instance
        self._hosts = hosts
        self._peaks = peaks
        self._routes = routes
        self._loads = loads
        self._pools = pools
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
                make = self._kinds.get(metric.kind, self._gauge)
                family = families[metric.family] = make(metric.family, metric.help, labels=labels)
            for snapshot in self._snapshots:
                _add(family, metric, snapshot, now)
        yield from families.values()
        yield from self._infos()
        for kind, key, text in instance_metrics.INSTANCE_METRICS:
            family = self._family(kind, key, text, [])
            family.add_metric([], self._instance[key])
            yield family
        for kind, key, text in instance_metrics.WORKER_METRICS:
            family = self._family(kind, f"worker_{key}", text, [WORKER])
            for slot, numbers in self._loads.items():
                if (number := numbers.get(key)) is not None:  # a dead worker has no gauges
                    family.add_metric([str(slot)], float(number))
            yield family
        for kind, key, text in instance_metrics.HOST_METRICS if self._hosts else ():
            family = self._family(kind, f"host_{key}", text, [POOL])
            for alias, numbers in self._hosts.items():
                family.add_metric([alias], numbers[key])
            yield family
        for kind, key, text in instance_metrics.POOL_METRICS:
            family = self._family(kind, key, text, [POOL])
            for alias, numbers in self._pools.items():
                family.add_metric([alias], numbers[key])
            yield family
        for key, text in PEAK_METRICS.items():
            text = f"Of a window of time, all workers together. {text}"
            family = self._family(Kind.GAUGE, f"peak_{key}", text, [POOL, WINDOW])
            for alias, windows in self._peaks.items():
                for window, highest in windows.items():
                    family.add_metric([alias, window], highest[key])
            yield family
        for i, (kind, key, text) in enumerate(instance_metrics.ROUTE_METRICS):
            family = self._family(kind, f"route_{key}", text, [METHOD, ROUTE, WORKER])
            for slot, uses in self._routes.items():
                for use in uses:
                    # Django's name of the home page is empty, and Prometheus drops empty labels.
                    family.add_metric([use.method, use.route or "/", str(slot)], use.numbers[i])
            yield family

    def _family(self, kind: Kind, key: str, text: str, labels: list[str]) -> Any:
        make: Any = self._kinds.get(kind, self._gauge)
        return make(f"pooled_serve_{key}".removesuffix("_total"), text, labels=labels)

    def _infos(self) -> Iterable[Any]:
        """Texts, as labels of numbers that are always 1."""
        text = "The program. A setting: it changes with a release."
        family = self._family(Kind.GAUGE, "info", text, ["version", "app"])
        family.add_metric([__version__, str(self._instance["app"])], 1.0)
        yield family
        text = "The database servers. A setting: DATABASES. If engine changes, one was upgraded."
        family = self._family(Kind.GAUGE, "database_info", text, [POOL, "engine", "server"])
        names = servers(self._snapshots).items()
        for texts in [(alias, *its) for alias, its in names if its[0]]:
            family.add_metric(texts, 1.0)
        yield family


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
        elif metric.kind in (Kind.SINCE, Kind.LATEST):
            if metric.kind is Kind.LATEST and not value:
                return  # it never was
            value = metrics.age(value, now)
        family.add_metric([*labels, metric.state] if metric.state else labels, value)
