"""What a server allows, and what its parts share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rankcast.delivery.inspecting import Inspector
from rankcast.delivery.registry import DEFAULT_DATABASE, Registry
from rankcast.delivery.releases import Releases
from rankcast.delivery.serving.buckets import Buckets, Rate
from rankcast.delivery.serving.metrics import Metrics
from rankcast.delivery.store import Store

CALLS = Rate(per_s=10.0, burst=50)
FILES = Rate(per_s=200.0, burst=2000)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server allows.

    Attributes:
        database: URL, see `rankcast.delivery.registry`.
        is_open: whether requests without a token are answered.
        largest_body: of a request [bytes]; a plan with 8192 held blobs has 550 KB.
        body_timeout_s: in which a body has to arrive [s].
        stall_s: in which a client has to take 64 KiB [s]; a link of 4.4 kbit/s does.
        calls: of `/v1`, for each device and process.
        files: requests of files, likewise.
        poll_s: between two looks for new events [s].
        heartbeat_s: after which a silent stream of events shows that it lives [s].
        active_s: a device that asked within so many seconds counts as active.
        keep_token_s: a device that was let in may fetch blobs for so long without being looked up
            again, so that a revoked one is refused files after it at the latest [s].
        keep_events_s: older events are forgotten [s].
    """

    database: str = DEFAULT_DATABASE
    is_open: bool = False
    largest_body: int = 640 * 2**10
    body_timeout_s: float = 10.0
    stall_s: float = 120.0
    calls: Rate = CALLS
    files: Rate = FILES
    poll_s: float = 0.5
    heartbeat_s: float = 15.0
    active_s: float = 300.0
    keep_token_s: float = 5.0
    keep_events_s: float = 30 * 86400.0


@dataclass(frozen=True)
class Serving:
    """What the parts of one server share.

    Attributes:
        store: of the adapters.
        settings: what is allowed.
        releases: that the store has.
        registry: of devices and events.
        metrics: counted by this process.
        calls: how often each device may still call.
        files: likewise for files.
        inspector: of what ladders bring.
        stopping: set when the server is told to end, for streams that would never.
    """

    store: Store
    settings: ServerSettings
    releases: Releases
    registry: Registry
    metrics: Metrics
    calls: Buckets
    files: Buckets
    inspector: Inspector
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, store: Store, settings: ServerSettings) -> Serving:
        """Connect the parts.

        Raises:
            ConfigError: a database that cannot be.
            DeliveryError: it does not answer.
        """
        registry = Registry(settings.database)
        return cls(
            store,
            settings,
            Releases(store),
            registry,
            Metrics(lambda: registry.active_devices(settings.active_s)),
            Buckets(settings.calls),
            Buckets(settings.files),
            Inspector(store),
        )
