"""What a sync needs to know, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import httpx2
import numpy as np

from rankcast.delivery.edge.advice import PlannedBy, RadioLink
from rankcast.delivery.edge.fetching import FetchSettings
from rankcast.delivery.edge.records import Release
from rankcast.delivery.edge.state import utc_now
from rankcast.delivery.manifest import Manifest

Outcome = Literal["activated", "up-to-date", "rolled-back", "rejected"]


class ManifestSource(Protocol):
    """Where trusted manifests come from."""

    def manifest(self, name: str) -> Manifest:
        """Return the newest release of an adapter.

        Raises:
            TrustError: what is there must not be trusted.
            DeliveryError: nothing is there, or nobody answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """How to sync.

    Attributes:
        deadline_s: time for a transfer [s].
        radio: the link as the modem sees it; None to use what was measured.
        assumed_bps: rate to plan with before anything was measured [bit/s].
        fetch: cap, patience and pauses.
        progressive: whether a device without an adapter begins with a prefix that is good enough as
            soon as it is here, and takes the rest later; see `judging.early_prefix`.
        most_attempts: activations of one release that may be cut short before it is given up.
    """

    deadline_s: float = 60.0
    radio: RadioLink | None = None
    assumed_bps: float = 1e6
    fetch: FetchSettings = field(default_factory=FetchSettings)
    progressive: bool = True
    most_attempts: int = 3


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What came of a sync.

    Attributes:
        outcome: `activated`; `up-to-date`; `rolled-back`: the new one failed its proof and the one
            before is in force; `rejected`: the new one failed before and was not tried again.
        release: in force now; None for none.
        planned_by: who chose the prefix.
        n_bytes: received.
        elapsed_s: of the transfer [s].
        throughput_bps: of the link, smoothed over syncs [bit/s]; None before the first transfer.
        message: in words.
    """

    outcome: Outcome
    release: Release | None
    planned_by: PlannedBy
    n_bytes: int
    elapsed_s: float
    throughput_bps: float | None
    message: str


@dataclass(frozen=True)
class Surroundings:
    """What a client finds around it, so that tests can put something else there.

    Attributes:
        rng: draws the jitter of pauses.
        clock: gives seconds that never run backwards.
        sleep: waits [s].
        now: gives date and time in UTC.
        transport: of the connection; None for the network.
    """

    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], str] = utc_now
    transport: httpx2.BaseTransport | None = None
