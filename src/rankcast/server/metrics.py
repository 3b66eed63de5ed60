"""Counters for Prometheus: requests, bytes, plans, reports, devices.

Each server has its own registry. Where several worker processes serve one port, `rankcast serve`
names a folder in `PROMETHEUS_MULTIPROC_DIR`, and whichever worker is asked answers for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

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
    """

    def __init__(self, active_devices: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._devices = _ActiveDevices(active_devices)
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

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        together.register(self._devices)
        return generate_latest(together)


class _ActiveDevices(Collector):
    """Asks the database, which all servers share, when Prometheus asks."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "rankcast_active_devices",
            "Devices that asked or reported lately, at any server.",
            value=self._count(),
        )

    def describe(self) -> Iterable[Metric]:
        return [GaugeMetricFamily("rankcast_active_devices", "")]
