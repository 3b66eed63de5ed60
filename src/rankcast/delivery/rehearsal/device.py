"""One device of a rehearsal: the real client with real checks, in a thread, over its own link."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rankcast.delivery.downloads import HttpFetcher, http_client
from rankcast.delivery.edge.activation import Candidate, WriteAdapter
from rankcast.delivery.edge.advice import RadioLink
from rankcast.delivery.edge.client import EdgeClient
from rankcast.delivery.edge.fetching import FetchSettings
from rankcast.delivery.edge.pacing import Backoff
from rankcast.delivery.edge.records import Release
from rankcast.delivery.edge.syncing import Surroundings, SyncResult, SyncSettings
from rankcast.delivery.trust import TufSource, trust_root
from rankcast.errors import InfeasibleDeadlineError, RankcastError

_BACKOFF = Backoff(n_tries=6, first_s=0.25, longest_s=4.0)
_SILENCE_S = 10.0
_MOST_FAILURES = 200


@dataclass(frozen=True, slots=True)
class Step:
    """What a sync changed.

    Attributes:
        at_s: since the rehearsal began [s].
        release: in force since then.
    """

    at_s: float
    release: Release


@dataclass(frozen=True, slots=True)
class Failure:
    """A sync that came to nothing.

    Attributes:
        at_s: since the rehearsal began [s].
        kind: of the error.
        message: in words.
    """

    at_s: float
    kind: str
    message: str


@dataclass
class DeviceLog:
    """What one device did; written by its thread, read by others.

    Attributes:
        began_s: when it first asked, since the rehearsal began [s].
        steps: what it put in force.
        failures: syncs that failed; the first 200.
        n_failures: of them.
        n_syncs: that were begun.
        n_bytes: of blobs that it received, those thrown away included.
        throughput_bps: as it measured it [bit/s].
        outcome: of the last sync.
        crash: what ended its thread, if anything did.
    """

    began_s: float = 0.0
    steps: list[Step] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    n_failures: int = 0
    n_syncs: int = 0
    n_bytes: int = 0
    throughput_bps: float | None = None
    outcome: str = "waiting"
    crash: str = ""

    @property
    def active(self) -> Release | None:
        """What is in force."""
        return self.steps[-1].release if self.steps else None


@dataclass(frozen=True)
class DeviceSettings:
    """What the devices of a rehearsal have in common.

    Attributes:
        adapter: its name.
        base_fingerprint: of the base model that they have.
        root: metadata that they were installed with.
        deadline_s: time for a transfer [s].
        every_s: from the end of a sync to the next, drawn between a half and the whole of it [s].
        assumed_bps: rate to plan with before anything was measured [bit/s].
    """

    adapter: str
    base_fingerprint: str
    root: bytes
    deadline_s: float
    every_s: float
    assumed_bps: float


class _EndedError(Exception):
    """The rehearsal is over."""


@dataclass(frozen=True)
class _Noted(WriteAdapter):
    """Writes adapters, and says when."""

    note: Callable[[Release], None] = lambda release: None  # noqa: ARG005

    def activate(self, candidate: Candidate) -> None:
        """Put an adapter in force."""
        super().activate(candidate)
        self.note(candidate.release)


class Device:
    """A device and its thread.

    Args:
        number: of the device.
        settings: of all devices.
        folder: of this one.
        url: of the server, behind its link.
        token: of this device.
        rng: draws its pauses.
        clock: gives seconds since the rehearsal began.
        stopping: set when it is over.
        radio: says what the modem sees now; None to plan with what was measured.
    """

    def __init__(  # noqa: PLR0917 what a device is
        self,
        number: int,
        settings: DeviceSettings,
        folder: Path,
        url: str,
        token: str,
        rng: np.random.Generator,
        clock: Callable[[], float],
        stopping: threading.Event,
        radio: Callable[[], RadioLink] | None = None,
    ) -> None:
        self.number, self.log, self.folder = number, DeviceLog(), folder
        self._settings, self._rng, self._clock = settings, rng, clock
        self._stopping, self._radio = stopping, radio
        self._http = http_client()
        self._http.headers["Authorization"] = f"Bearer {token}"
        self.client = self._client(url, token)
        self.thread = threading.Thread(target=self._live, name=f"device-{number}", daemon=True)

    def _client(self, url: str, token: str) -> EdgeClient:
        given = self._settings
        trust_root(self.folder / "trust", given.root)
        source = TufSource(
            f"{url}/metadata/", f"{url}/targets/", self.folder / "trust", HttpFetcher(self._http)
        )
        return EdgeClient(
            url, given.adapter, given.base_fingerprint, self.folder / "state", source,
            _Noted("rcast", self.folder / "adapter", note=self._in_force),
            settings=SyncSettings(
                deadline_s=given.deadline_s, assumed_bps=given.assumed_bps,
                fetch=FetchSettings(silence_s=_SILENCE_S, backoff=_BACKOFF),
            ),
            token=token, surroundings=Surroundings(rng=self._rng, sleep=self._wait),
        )  # fmt: skip

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise _EndedError

    def _live(self) -> None:
        try:
            self._wait(self._rng.uniform(0.0, min(1.0, self._settings.every_s)))
            self.log.began_s = self._clock()
            while True:
                self._sync()
                self._wait(self._settings.every_s * self._rng.uniform(0.5, 1.0))
        except _EndedError:
            pass
        except Exception as error:  # noqa: BLE001 a thread has nobody else to tell
            if not self._stopping.is_set():
                self.log.crash = f"{type(error).__name__}: {error}"
        finally:
            self._http.close()

    def _sync(self) -> None:
        log, client = self.log, self.client
        if self._radio is not None:
            client.settings = replace(client.settings, radio=self._radio())
        log.n_syncs += 1
        try:
            result = client.sync()
        except RankcastError as error:
            if self._stopping.is_set():
                raise _EndedError from error
            log.n_failures += 1
            late = isinstance(error, InfeasibleDeadlineError)
            log.outcome = "too slow" if late else "failed"
            if len(log.failures) < _MOST_FAILURES:
                log.failures.append(Failure(self._clock(), type(error).__name__, str(error)))
            return
        self._note(result)

    def _in_force(self, release: Release) -> None:
        self.log.steps.append(Step(self._clock(), release))

    def _note(self, result: SyncResult) -> None:
        log = self.log
        log.outcome, log.throughput_bps = result.outcome, result.throughput_bps
        log.n_bytes += result.n_bytes


def wait_for(devices: list[Device], within_s: float) -> int:
    """Wait for threads to end and return how many did not."""
    until_s = time.monotonic() + within_s
    for device in devices:
        device.thread.join(max(0.0, until_s - time.monotonic()))
    return sum(device.thread.is_alive() for device in devices)
