"""What each device of a rehearsal had by when, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rankcast.delivery.manifest import Manifest
from rankcast.delivery.rehearsal.device import DeviceLog
from rankcast.delivery.rehearsal.shaping import RateSchedule

OVERHEAD_BYTES = 8192
"""Signed metadata, the manifest and the headers of HTTP, before the first blob."""
_GENEROUS = 2.0
"""How much more than the least a link has to carry until a device has no excuse."""


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """What one device had by when.

    Attributes:
        device: its number.
        mean_snr_db: of its link [dB]; None where only throughput is known.
        mean_bps: rate of its link while it took part [bit/s].
        first_usable_s: from its first question until an adapter was in force [s]; None for never.
        best_s: likewise until the best prefix of the first release that it ever had [s].
        in_time: whether the first usable one came within the deadline.
        updated_s: from the second publication until that was in force [s]; None for never.
        version: of the release in force; 0 for none.
        n_rungs: chunks of it that are in force.
        of: chunks that it has.
        loss: expected of that prefix [nats]; None if not measured.
        accuracy: likewise, a share.
        received_bits: of blobs.
        link_bits: everything that passed its link towards it.
        throughput_bps: as it measured it [bit/s].
        n_syncs: that it began.
        failures: that came of them, by kind.
        last_failure: in words; empty if none failed.
        n_resets: connections of it that were reset on purpose.
        outcome: of its last sync.
        link_allowed: whether its link carried twice what the smallest prefix needs.
        crash: what ended it, if anything did.
    """

    device: int
    mean_snr_db: float | None
    mean_bps: float
    first_usable_s: float | None
    best_s: float | None
    in_time: bool
    updated_s: float | None
    version: int
    n_rungs: int
    of: int
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


@dataclass(frozen=True, slots=True)
class Publication:
    """A release and when it was published.

    Attributes:
        at_s: since the rehearsal began [s].
        manifest: of the release.
    """

    at_s: float
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class ServerResult:
    """What the server did.

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
class Rehearsed:
    """Everything that came out.

    Attributes:
        elapsed_s: how long it went on [s].
        releases: in the order of their publication.
        devices: one result each.
        server: what it did; None while it runs.
        late_s: 95th percentile of how late this machine passed bytes on [s].
        unended: threads of devices that did not end with the rehearsal.
    """

    elapsed_s: float
    releases: Sequence[Publication]
    devices: Sequence[DeviceResult]
    server: ServerResult | None = None
    late_s: float = 0.0
    unended: int = 0

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
            "whole": sum(d.version == newest and d.n_rungs == d.of for d in done),
            "last_sync_failed": sum(d.outcome in ("failed", "too slow") for d in self.devices),
            "in_time": sum(d.in_time for d in self.devices),
            "first_usable_s": quantiles(d.first_usable_s for d in self.devices),
            "best_s": quantiles(d.best_s for d in self.devices),
            "updated_s": quantiles(d.updated_s for d in self.devices),
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
            "releases": [_release(publication) for publication in self.releases],
            "summary": self.summary(),
            "server": server,
            "late_s": self.late_s,
            "unended": self.unended,
            "devices": [asdict(device) for device in self.devices],
        }


def quantiles(values: Any) -> dict[str, float | None]:
    """Return the median and the 95th percentile of those that are not None."""
    known = [value for value in values if value is not None]
    if not known:
        return {"p50": None, "p95": None}
    found = np.quantile(known, [0.5, 0.95])
    return {"p50": round(float(found[0]), 3), "p95": round(float(found[1]), 3)}


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
    """Return what a log amounts to."""
    steps = list(log.steps)
    active = steps[-1].release if steps else None
    first_s = steps[0].at_s - log.began_s if steps else None
    of_first = [s.at_s for s in steps if s.release.version == steps[0].release.version]
    second = next((s.at_s for s in steps if s.release.version > 1), None)
    carried = np.diff(schedule.carried_bits([min(log.began_s, now_s), now_s]))[0]
    of = 0
    if active is not None:
        of = len(releases[active.version - 1].manifest.ladders[active.ladder].rungs)
    return DeviceResult(
        device=number,
        mean_snr_db=mean_snr_db,
        mean_bps=float(carried / max(now_s - log.began_s, 1e-9)),
        first_usable_s=first_s,
        best_s=of_first[-1] - log.began_s if of_first else None,
        in_time=first_s is not None and first_s <= deadline_s,
        updated_s=None if second is None or len(releases) < 2 else second - releases[1].at_s,
        version=0 if active is None else active.version,
        n_rungs=0 if active is None else active.n_rungs,
        of=of,
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


def least_bits(manifest: Manifest) -> int:
    """Return the bits of the smallest prefix, with everything that comes before it."""
    smallest = min(x.header.n_bytes + x.rungs[0].blob.n_bytes for x in manifest.ladders)
    return 8 * (smallest + OVERHEAD_BYTES)


def _release(publication: Publication) -> dict[str, Any]:
    manifest = publication.manifest
    return {
        "at_s": publication.at_s,
        "name": manifest.name,
        "version": manifest.version,
        "n_rungs": [len(ladder.rungs) for ladder in manifest.ladders],
        "n_bytes": sum(blob.n_bytes for blob in manifest.blobs),
    }
