"""Counters for Prometheus: requests, bytes, plans, reports, devices.

Each server has its own registry. Where several worker processes serve one port, `rankcast serve`
names a folder in `PROMETHEUS_MULTIPROC_DIR`, and whichever worker is asked answers for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

_PLAN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The counters of one process.

    Attributes:
        requests: by method, route and status.
        sent_bytes: of bodies, by route.
        plan_s: how long plans took [s].
        infeasible: plans that fit no link, by adapter.
        reports: by event.
        looks: plans that changed nothing.
        cell_refusals: plans for which a cell had no room, by cell.
    """

    def __init__(
        self,
        active_devices: Callable[[], int],
        cell_loads: Callable[[], Mapping[str, tuple[int, float]]] = dict,
    ) -> None:
        self._registry = CollectorRegistry()
        self._devices = _Shared(active_devices, cell_loads)
        self._registry.register(self._devices)
        of = self._registry
        self.requests = Counter(
            "rankcast_requests", "Requests answered.", ("method", "route", "status"), registry=of
        )
        self.sent_bytes = Counter(
            "rankcast_sent_bytes", "Bytes of bodies sent.", ("route",), registry=of
        )
        self.plan_s = Histogram(
            "rankcast_plan_seconds",
            "Time to make a plan, without its way over the network.",
            buckets=_PLAN_BUCKETS_S,
            registry=of,
        )
        self.infeasible = Counter(
            "rankcast_infeasible_plans", "Plans that no link carried.", ("adapter",), registry=of
        )
        self.reports = Counter("rankcast_reports", "Reports of devices.", ("event",), registry=of)
        self.looks = Counter(
            "rankcast_looks", "Plans that changed nothing, and are no events.", registry=of
        )
        self.cell_refusals = Counter(
            "rankcast_cell_refusals", "Plans that a cell had no room for.", ("cell",), registry=of
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        together.register(self._devices)
        return generate_latest(together)


class _Shared(Collector):
    """Asks the database, which all servers share, when Prometheus asks."""

    def __init__(
        self, count: Callable[[], int], cell_loads: Callable[[], Mapping[str, tuple[int, float]]]
    ) -> None:
        self._count, self._cell_loads = count, cell_loads

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "rankcast_active_devices",
            "Devices that asked or reported lately, at any server.",
            value=self._count(),
        )
        syncs = GaugeMetricFamily(
            "rankcast_cell_syncs", "Syncs under way in a cell, at any server.", labels=("cell",)
        )
        promised = GaugeMetricFamily(
            "rankcast_cell_promised_ratio",
            "Share of a cell's budget until the last deadline that is promised.",
            labels=("cell",),
        )
        for cell, (n_syncs, promised_share) in self._cell_loads().items():
            syncs.add_metric((cell,), n_syncs)
            promised.add_metric((cell,), promised_share)
        yield from (syncs, promised)

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("rankcast_active_devices", "")]
