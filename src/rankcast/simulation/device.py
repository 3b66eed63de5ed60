"""One device of a simulation: the real client with real checks, in a thread, over its own link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rankcast.edge.activate import Candidate
from rankcast.edge.advice import RadioLink
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.fetch import Backoff, FetchSettings
from rankcast.edge.state import ReleasePrefix
from rankcast.edge.sync import EdgeClient, Runtime, SyncSettings
from rankcast.errors import InfeasibleDeadlineError, RankcastError
from rankcast.release.manifest import Manifest
from rankcast.simulation.settings import SimulationSettings

_FETCH = FetchSettings(silence_s=10.0, backoff=Backoff(n_tries=6, first_s=0.25, longest_s=4.0))
_MOST_FAILURES = 200


@dataclass(frozen=True, slots=True)
class Activated:
    """A prefix that a device made active.

    Attributes:
        at_s: since the simulation began [s].
        prefix: active since then.
    """

    at_s: float
    prefix: ReleasePrefix


@dataclass(frozen=True, slots=True)
class Failure:
    """A sync that failed.

    Attributes:
        at_s: since the simulation began [s].
        kind: of the error.
        message: in words.
    """

    at_s: float
    kind: str
    message: str


@dataclass
class DeviceLog:
    """The log of one device; written by its thread, read by others.

    Attributes:
        began_s: when it first asked, since the simulation began [s].
        activations: what it made active.
        failures: syncs that failed; the first 200.
        n_syncs: that were begun.
        n_bytes: of blobs that it received, those thrown away included.
        throughput_bps: as it measured it [bit/s].
        outcome: of the last sync.
        crash: what ended its thread, if anything did.
    """

    began_s: float = 0.0
    activations: list[Activated] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    n_syncs: int = 0
    n_bytes: int = 0
    throughput_bps: float | None = None
    outcome: str = "waiting"
    crash: str = ""


class _StoppedError(Exception):
    """The simulation is over."""


@dataclass(frozen=True)
class _ReportingWriter(WriteAdapter):
    """Writes adapters, and calls a function for each."""

    on_activated: Callable[[ReleasePrefix], None] = lambda prefix: None  # noqa: ARG005

    def activate(self, candidate: Candidate) -> None:
        """Make an adapter active."""
        super().activate(candidate)
        self.on_activated(candidate.prefix)


class Device:
    """A device and its thread.

    Args:
        number: of the device.
        settings: of the simulation.
        manifest: of the first release, for the base model that the device has.
        folder: of this one; it trusts a root already.
        url: of the server, behind its link.
        token: of this device.
        rng: draws its pauses.
        clock: gives seconds since the simulation began.
        stopping: set when it is over.
        radio: what the modem reports now; None to plan with what was measured.
    """

    def __init__(  # noqa: PLR0917 what a device is
        self,
        number: int,
        settings: SimulationSettings,
        manifest: Manifest,
        folder: Path,
        url: str,
        token: str,
        rng: np.random.Generator,
        clock: Callable[[], float],
        stopping: threading.Event,
        radio: Callable[[], RadioLink] | None = None,
    ) -> None:
        self.number, self.log = number, DeviceLog()
        self._every_s, self._rng, self._clock = settings.every_s, rng, clock
        self._stopping, self._radio = stopping, radio
        self._client = EdgeClient(
            url, manifest.name, str(manifest.base.fingerprint), folder,
            activator=_ReportingWriter("rcast", folder / "adapter", on_activated=self._activated),
            settings=SyncSettings(
                deadline_s=settings.deadline_s, assumed_bps=settings.assumed_bps, fetch=_FETCH
            ),
            token=token, runtime=Runtime(rng=rng, sleep=self._wait),
        )  # fmt: skip
        self.thread = threading.Thread(target=self._live, name=f"device-{number}", daemon=True)

    def _live(self) -> None:
        try:
            self._wait(self._rng.uniform(0.0, min(1.0, self._every_s)))
            self.log.began_s = self._clock()
            while True:
                self._sync()
                self._wait(self._every_s * self._rng.uniform(0.5, 1.0))
        except _StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 a thread has nobody else to tell
            if not self._stopping.is_set():
                self.log.crash = f"{type(error).__name__}: {error}"

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _StoppedError

    def _sync(self) -> None:
        log = self.log
        log.n_syncs += 1
        try:
            result = self._client.sync(radio=None if self._radio is None else self._radio())
        except RankcastError as error:
            if self._stopping.is_set():
                raise _StoppedError from error
            late = isinstance(error, InfeasibleDeadlineError)
            log.outcome = "too slow" if late else "failed"
            if len(log.failures) < _MOST_FAILURES:
                log.failures.append(Failure(self._clock(), type(error).__name__, str(error)))
            return
        log.outcome, log.throughput_bps = result.outcome, result.throughput_bps
        log.n_bytes += result.n_bytes

    def _activated(self, prefix: ReleasePrefix) -> None:
        self.log.activations.append(Activated(self._clock(), prefix))


def join_all(devices: Sequence[Device], within_s: float) -> int:
    """Wait for threads to end and return how many did not."""
    until_s = time.monotonic() + within_s
    for device in devices:
        device.thread.join(max(0.0, until_s - time.monotonic()))
    return sum(device.thread.is_alive() for device in devices)
