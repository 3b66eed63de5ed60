"""Results of a simulation: which device had which prefix when, and which errors occurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rankcast.release.manifest import Manifest
from rankcast.simulation.device import DeviceLog
from rankcast.simulation.releases import least_bits
from rankcast.simulation.shaping import RateSchedule

_GENEROUS = 2.0
"""A link that carried so many times what the smallest prefix needs allowed for an adapter."""


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """The results of one device.

    Attributes:
        device: its number.
        mean_snr_db: of its link [dB]; None where only throughput is known.
        mean_bps: rate of its link while it took part [bit/s].
        first_usable_s: from its first request until an adapter was active [s]; None for never.
        best_s: likewise until the best prefix of the first release that it ever had [s].
        in_time: whether the first usable one came within the deadline.
        updated_s: from the second publication until that was active [s]; None for never.
        version: of the active release; 0 for none.
        n_chunks: of the active prefix.
        n_file_chunks: of the file that it is a prefix of.
        loss: expected of that prefix [nats]; None if not measured.
        accuracy: likewise, a share.
        received_bits: of blobs.
        link_bits: everything that passed its link towards it.
        throughput_bps: as it measured it [bit/s].
        n_syncs: that it began.
        failures: of them, by kind.
        last_failure: in words; empty if none failed.
        n_resets: connections of it that were reset on purpose.
        outcome: of its last sync.
        link_allowed: whether its link carried twice what the smallest prefix needs.
        crash: what ended its thread, if anything did.
    """

    device: int
    mean_snr_db: float | None
    mean_bps: float
    first_usable_s: float | None
    best_s: float | None
    in_time: bool
    updated_s: float | None
    version: int
    n_chunks: int
    n_file_chunks: int
    loss: float | None
    accuracy: float | None
    received_bits: int
    link_bits: int
    throughput_bps: float | None
    n_syncs: int
    failures: Mapping[str, int]
    last_failure: str
    n_resets: int
    outcome: str
    link_allowed: bool
    crash: str

    @property
    def unexcused(self) -> bool:
        """Whether it ended without an adapter although its link allowed for one."""
        return bool(self.crash) or (self.link_allowed and self.first_usable_s is None)

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold; chunks are called `n_rungs` and `of` there."""
        names = {"n_chunks": "n_rungs", "n_file_chunks": "of"}
        return {names.get(key, key): value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Publication:
    """A release and when it was published.

    Attributes:
        at_s: since the simulation began [s].
        manifest: of the release.
    """

    at_s: float
    manifest: Manifest

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold; chunks are called `n_rungs` there."""
        return {
            "at_s": self.at_s,
            "name": self.manifest.name,
            "version": self.manifest.version,
            "n_rungs": [len(file.chunks) for file in self.manifest.files],
            "n_bytes": sum(blob.n_bytes for blob in self.manifest.blobs),
        }


@dataclass(frozen=True, slots=True)
class ServerResult:
    """The server's answers and restarts.

    Attributes:
        answers: how often it answered with each status.
        tracebacks: that it wrote.
        starts: of its process.
    """

    answers: Mapping[int, int]
    tracebacks: int
    starts: int

    @property
    def n_errors(self) -> int:
        """Answers with a status of 500 and more."""
        return sum(n for status, n in self.answers.items() if status >= 500)


@dataclass(frozen=True)
class SimulationResult:
    """Everything that came out.

    Attributes:
        elapsed_s: how long it went on [s].
        releases: in the order of their publication.
        devices: one result each.
        server: what it did; None while it runs.
        late_s: 95th percentile of how late this machine passed bytes on [s].
        unended: threads of devices that did not end with the simulation.
    """

    elapsed_s: float
    releases: Sequence[Publication]
    devices: Sequence[DeviceResult]
    server: ServerResult | None = None
    late_s: float = 0.0
    unended: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether every device has what its link allowed, and the server did not fail."""
        failed = self.server is not None and self.server.tracebacks > 0
        return not (self.unexcused or self.unended or failed)

    @property
    def unexcused(self) -> tuple[int, ...]:
        """Devices without an adapter although their links allowed for one."""
        return tuple(result.device for result in self.devices if result.unexcused)

    def summary(self) -> dict[str, Any]:
        """Return counts and quantiles over devices."""
        newest = len(self.releases)
        done = [d for d in self.devices if d.version]
        return {
            "devices": len(self.devices),
            "with_adapter": len(done),
            "newest_version": sum(d.version == newest for d in done),
            "whole": sum(d.version == newest and d.n_chunks == d.n_file_chunks for d in done),
            "last_sync_failed": sum(d.outcome in ("failed", "too slow") for d in self.devices),
            "in_time": sum(d.in_time for d in self.devices),
            "first_usable_s": _quantiles(d.first_usable_s for d in self.devices),
            "best_s": _quantiles(d.best_s for d in self.devices),
            "updated_s": _quantiles(d.updated_s for d in self.devices),
            "received_bits": sum(d.received_bits for d in self.devices),
            "link_bits": sum(d.link_bits for d in self.devices),
            "failures": dict(sum((Counter(d.failures) for d in self.devices), Counter[str]())),
            "resets": sum(d.n_resets for d in self.devices),
            "unexcused": list(self.unexcused),
        }

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        server = None
        if self.server is not None:
            server = {**asdict(self.server), "errors": self.server.n_errors}
            server["answers"] = {str(k): v for k, v in sorted(self.server.answers.items())}
        return {
            "elapsed_s": self.elapsed_s,
            "releases": [publication.to_plain() for publication in self.releases],
            "summary": self.summary(),
            "server": server,
            "late_s": self.late_s,
            "unended": self.unended,
            "devices": [device.to_plain() for device in self.devices],
        }


def _quantiles(values: Any) -> dict[str, float | None]:
    """Return the median and the 95th percentile of those that are not None."""
    known = [value for value in values if value is not None]
    if not known:
        return {"p50": None, "p95": None}
    p50, p95 = np.quantile(known, [0.5, 0.95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def device_result(
    number: int,
    log: DeviceLog,
    schedule: RateSchedule,
    releases: Sequence[Publication],
    *,
    now_s: float,
    deadline_s: float,
    link_bits: int,
    n_resets: int,
    mean_snr_db: float | None,
) -> DeviceResult:
    """Return what one device had by when.

    Args:
        number: of the device.
        log: what it did.
        schedule: the rate of its link.
        releases: in the order of their publication.
        now_s: since the simulation began [s].
        deadline_s: time for a transfer [s].
        link_bits: everything that passed its link towards it.
        n_resets: connections that were reset on purpose.
        mean_snr_db: of its link [dB]; None where only throughput is known.
    """
    activations = list(log.activations)
    active = activations[-1].prefix if activations else None
    first_s = activations[0].at_s - log.began_s if activations else None
    of_first = [x.at_s for x in activations if x.prefix.version == activations[0].prefix.version]
    second_at_s = next((x.at_s for x in activations if x.prefix.version > 1), None)
    carried = np.diff(schedule.carried_bits([min(log.began_s, now_s), now_s]))[0]
    n_file_chunks = 0
    if active is not None:
        manifest = releases[active.version - 1].manifest
        n_file_chunks = len(manifest.files[active.file_index].chunks)
    return DeviceResult(
        device=number,
        mean_snr_db=mean_snr_db,
        mean_bps=float(carried / max(now_s - log.began_s, 1e-9)),
        first_usable_s=first_s,
        best_s=of_first[-1] - log.began_s if of_first else None,
        in_time=first_s is not None and first_s <= deadline_s,
        updated_s=(
            None if second_at_s is None or len(releases) < 2 else second_at_s - releases[1].at_s
        ),
        version=0 if active is None else active.version,
        n_chunks=0 if active is None else active.n_chunks,
        n_file_chunks=n_file_chunks,
        loss=None if active is None else active.loss,
        accuracy=None if active is None else active.accuracy,
        received_bits=8 * log.n_bytes,
        link_bits=link_bits,
        throughput_bps=log.throughput_bps,
        n_syncs=log.n_syncs,
        failures=dict(Counter(failure.kind for failure in list(log.failures))),
        last_failure=log.failures[-1].message if log.failures else "",
        n_resets=n_resets,
        outcome=log.outcome,
        link_allowed=bool(carried >= _GENEROUS * least_bits(releases[0].manifest)),
        crash=log.crash,
    )
