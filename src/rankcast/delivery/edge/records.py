"""What a device knows of itself: releases, errors and events, as plain records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from rankcast.delivery.blobs import checked_name, checked_sha256
from rankcast.delivery.manifest import Manifest
from rankcast.errors import (
    CodecError,
    DeliveryError,
    InfeasibleDeadlineError,
    ModelError,
    TrustError,
)

Phase = Literal["idle", "fetching", "activating", "failed"]
MOST_EVENTS = 50
MOST_REJECTED = 20
_REMEDIES: Mapping[type[Exception], str] = {
    TrustError: "Nothing was changed. Ask whoever published; do not switch the check off.",
    InfeasibleDeadlineError: "Give it more time (--deadline-s) or a better link.",
    ModelError: "Load the base model that the adapter names, or ask for an adapter of this one.",
    CodecError: "Ask whoever published to pack and publish the adapter again.",
    DeliveryError: "What is active stays so, and what arrived is kept. Sync again.",
}


@dataclass(frozen=True, slots=True)
class Release:
    """A prefix of a ladder of a release: what is, was, or is to be active.

    Attributes:
        name: of the adapter.
        version: of the release.
        ladder: index of the ladder in it.
        blobs: SHA-256 of the header and of each chunk of the prefix.
        loss: expected of the prefix [nats]; None if not measured.
        accuracy: likewise, a share.
    """

    name: str
    version: int
    ladder: int
    blobs: tuple[str, ...]
    loss: float | None = None
    accuracy: float | None = None

    @classmethod
    def of(cls, manifest: Manifest, ladder: int, n_rungs: int) -> Release:
        """Return a prefix of a ladder of a manifest."""
        chosen = manifest.ladders[ladder]
        rungs = chosen.rungs[:n_rungs]
        blobs = (chosen.header.sha256, *(rung.blob.sha256 for rung in rungs))
        last = rungs[-1]
        return cls(manifest.name, manifest.version, ladder, blobs, last.loss, last.accuracy)

    @property
    def n_rungs(self) -> int:
        """Chunks of the prefix."""
        return len(self.blobs) - 1

    @property
    def label(self) -> str:
        """A name for files: what it is, and the beginning of a digest of its blobs."""
        digest = hashlib.sha256("".join(self.blobs).encode()).hexdigest()[:8]
        return f"{self.name}-v{self.version}-l{self.ladder}-n{self.n_rungs}-{digest}"

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Release:
        """Rebuild one.

        Raises:
            DeliveryError: it names something else than blobs.
            KeyError, TypeError, ValueError: something is missing or wrong.
        """
        blobs = tuple(checked_sha256(sha256) for sha256 in raw["blobs"])
        if len(blobs) < 2:
            raise ValueError("a release has a header and a chunk")
        name, version, ladder = checked_name(raw["name"]), int(raw["version"]), int(raw["ladder"])
        return cls(name, version, ladder, blobs, _number(raw["loss"]), _number(raw["accuracy"]))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        at: date and time in UTC.
        kind: `fetched`, `activated`, `rolled-back`, `refused`, `failed`, `rebuilt`.
        message: in words.
    """

    at: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class LastError:
    """Why the last sync came to nothing.

    Attributes:
        at: date and time in UTC.
        kind: name of the error's class.
        message: what was wrong.
        remedy: what to do.
    """

    at: str
    kind: str
    message: str
    remedy: str

    @classmethod
    def of(cls, error: Exception, at: str) -> LastError:
        """Return an error for the file."""
        remedy = next((words for kind, words in _REMEDIES.items() if isinstance(error, kind)), "")
        return cls(at, type(error).__name__, str(error), remedy)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Everything that a device keeps between two syncs.

    Attributes:
        adapter: name of the adapter.
        phase: what it is doing, or was when it stopped.
        active: the release in force; None before the first.
        previous: the one before it, kept to go back to.
        pending: the one that is being activated.
        attempts: how often that was begun.
        rejected: labels of releases that failed their proof.
        newest_version: of all manifests seen; older ones are refused.
        manifest_sha256: of the manifest of that version; another one is refused.
        throughput_bps: of the link, as measured [bit/s].
        last_error: why the last sync came to nothing; None if it did not.
        history: the last `MOST_EVENTS` events, oldest first.
    """

    adapter: str
    phase: Phase = "idle"
    active: Release | None = None
    previous: Release | None = None
    pending: Release | None = None
    attempts: int = 0
    rejected: tuple[str, ...] = ()
    newest_version: int = 0
    manifest_sha256: str | None = None
    throughput_bps: float | None = None
    last_error: LastError | None = None
    history: tuple[Event, ...] = ()

    def with_event(self, kind: str, message: str, at: str) -> DeviceState:
        """Return the state with one more event."""
        events = (*self.history, Event(at, kind, message))[-MOST_EVENTS:]
        return replace(self, history=events)

    def with_rejected(self, label: str) -> DeviceState:
        """Return the state with one more release that failed."""
        others = tuple(known for known in self.rejected if known != label)
        return replace(self, rejected=(*others, label)[-MOST_REJECTED:])

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> DeviceState:
        """Rebuild a state.

        Raises:
            DeliveryError: it names something else than blobs.
            KeyError, TypeError, ValueError: something is missing or wrong.
        """
        if raw["phase"] not in get_args(Phase):
            raise ValueError(f"no phase {raw['phase']!r}")
        releases = {
            key: None if raw[key] is None else Release.from_plain(raw[key])
            for key in ("active", "previous", "pending")
        }
        error = raw["last_error"]
        return cls(
            adapter=checked_name(raw["adapter"]),
            phase=raw["phase"],
            **releases,
            attempts=int(raw["attempts"]),
            rejected=tuple(str(label) for label in raw["rejected"]),
            newest_version=int(raw["newest_version"]),
            manifest_sha256=raw["manifest_sha256"],
            throughput_bps=_number(raw["throughput_bps"]),
            last_error=None if error is None else LastError(**error),
            history=tuple(Event(**event) for event in raw["history"]),
        )


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
