"""Limits of a server, and the state that its parts share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

from rankcast.rate_limit import Buckets, Rate
from rankcast.release.manifest import Blob, File, Manifest
from rankcast.release.store import Release, Releases, Store
from rankcast.server import DEFAULT_DATABASE
from rankcast.server.cell_shares import CellShares
from rankcast.server.cells import Cell
from rankcast.server.contents import Contents, contents_of
from rankcast.server.looks import Looks
from rankcast.server.metrics import Metrics
from rankcast.server.registry import Registry
from rankcast.server.rollouts.database import Rollouts
from rankcast.server.rollouts.decide import Published
from rankcast.server.shared_limits import SharedBuckets

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
        calls: of `/v1`, for each device, over all servers of the database.
        files: requests of files, for each device and process.
        poll_s: between two looks for new events [s].
        active_s: a device that asked within so many seconds counts as active.
        keep_token_s: how long a device that was let in may fetch blobs without being looked up
            again [s]; a revoked one is refused files after it at the latest.
        keep_events_s: age at which events are deleted [s].
        now_s: the clock of rollouts and cells [s since 1970].
        look_event_s: a device's look that changes nothing is an event only after so long [s].
        write_looks_s: between two times at which the times of such looks are written [s].
        cells: whose band or backhaul devices share.
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
    now_s: Callable[[], float] = time.time
    look_event_s: float = 86400.0
    write_looks_s: float = 5.0
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class ServerState:
    """State that the parts of one server share.

    Attributes:
        store: of the adapters.
        settings: what is allowed.
        releases: that the store has.
        registry: of devices and events.
        rollouts: which version each device is to have.
        looks: when devices were last seen; keeps their plans and reports.
        cells: what the devices of each cell were told to fetch.
        metrics: counted by this process.
        calls: how often each device may still call, at any server.
        files: how often it may still ask this process for files.
        contents_of: what a file of a release brings; remembers the last it was asked for.
        older_manifest: that a release lists, by its blob; likewise.
        stopping: set when the server is told to stop, for streams that never would.
    """

    store: Store
    settings: ServerSettings
    releases: Releases
    registry: Registry
    rollouts: Rollouts
    looks: Looks
    cells: CellShares
    metrics: Metrics
    calls: SharedBuckets
    files: Buckets
    contents_of: Callable[[File], Contents | None]
    older_manifest: Callable[[Blob], Manifest]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, store: Store, settings: ServerSettings) -> ServerState:
        """Connect the parts.

        Raises:
            ConfigError: a database that cannot be.
            DeliveryError: it does not answer.
        """
        registry = Registry(settings.database)
        looks = Looks(registry, settings.look_event_s)
        cells = CellShares(registry, settings.cells)
        return cls(
            store,
            settings,
            Releases(store),
            registry,
            Rollouts(registry),
            looks,
            cells,
            Metrics(
                lambda: looks.active_devices(settings.active_s),
                lambda: cells.loads(settings.now_s()),
            ),
            SharedBuckets(settings.calls, registry),
            Buckets(settings.files),
            lru_cache(_KEPT_CONTENTS)(partial(contents_of, store)),
            lru_cache(_KEPT_CONTENTS)(lambda blob: Manifest.from_bytes(store.get(blob))),
        )

    def published(self, adapter: str) -> Published:
        """Return the versions that the signed release of an adapter names.

        Raises:
            DeliveryError: the metadata cannot be read, and never could since the start.
        """
        return published_of(self.releases.current().get(adapter))


def published_of(release: Release | None) -> Published:
    """Return the versions that a signed release names."""
    if release is None:
        return Published()
    manifest = release.manifest
    return Published(manifest.version, frozenset(older.version for older in manifest.older))
