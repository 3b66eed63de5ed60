"""Limits of a server, and the state that its parts share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

from rankcast.rate_limit import Buckets, Rate
from rankcast.release.manifest import File
from rankcast.release.store import Releases, Store
from rankcast.server import DEFAULT_DATABASE
from rankcast.server.contents import Contents, contents_of
from rankcast.server.metrics import Metrics
from rankcast.server.registry import Registry

CALLS = Rate(per_s=10.0, burst=50)
FILES = Rate(per_s=200.0, burst=2000)
_KEPT_CONTENTS = 64


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits and addresses of a server.

    Attributes:
        database: URL, see `rankcast.server.registry`.
        needs_token: whether requests without a token are refused.
        largest_body: of a request [bytes]; a plan with 8192 held blobs has 550 KB.
        body_timeout_s: in which a body has to arrive [s].
        stall_s: in which a client has to take 64 KiB [s]; a link of 4.4 kbit/s does.
        calls: of `/v1`, for each device and process.
        files: requests of files, likewise.
        poll_s: between two looks for new events [s].
        active_s: a device that asked within so many seconds counts as active.
        keep_token_s: how long a device that was let in may fetch blobs without being looked up
            again [s]; a revoked one is refused files after it at the latest.
        keep_events_s: age at which events are deleted [s].
    """

    database: str = DEFAULT_DATABASE
    needs_token: bool = True
    largest_body: int = 640 * 2**10
    body_timeout_s: float = 10.0
    stall_s: float = 120.0
    calls: Rate = CALLS
    files: Rate = FILES
    poll_s: float = 0.5
    active_s: float = 300.0
    keep_token_s: float = 5.0
    keep_events_s: float = 30 * 86400.0


@dataclass(frozen=True)
class ServerState:
    """State that the parts of one server share.

    Attributes:
        store: of the adapters.
        settings: what is allowed.
        releases: that the store has.
        registry: of devices and events.
        metrics: counted by this process.
        calls: how often each device may still call.
        files: likewise for files.
        contents_of: what a file of a release brings; remembers the last it was asked for.
        stopping: set when the server is told to stop, for streams that never would.
    """

    store: Store
    settings: ServerSettings
    releases: Releases
    registry: Registry
    metrics: Metrics
    calls: Buckets
    files: Buckets
    contents_of: Callable[[File], Contents | None]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, store: Store, settings: ServerSettings) -> ServerState:
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
            lru_cache(_KEPT_CONTENTS)(partial(contents_of, store)),
        )
