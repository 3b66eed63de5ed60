"""The state of a device in a file that a person can read.

`state.json` is replaced in one step at every change, and it alone says what the device does.
`state.backup.json` is a copy from the last activation; it is read only if `state.json` was damaged
or lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from rankcast.codec.header import Measure, measure_of
from rankcast.errors import (
    CodecError,
    DeliveryError,
    InfeasibleDeadlineError,
    ModelError,
    TrustError,
)
from rankcast.files import disk_errors, put_file
from rankcast.release.manifest import Manifest, checked_name, checked_sha256

Phase = Literal["idle", "fetching", "activating", "failed"]
STATE, BACKUP = "state.json", "state.backup.json"
MOST_EVENTS = 50
MOST_REJECTED = 20
_PREFIXES = ("active", "previous", "pending")
_REMEDIES: Mapping[type[Exception], str] = {
    TrustError: "Nothing was changed. Ask whoever published; do not switch the check off.",
    InfeasibleDeadlineError: "Give it more time (--deadline-s) or a better link.",
    ModelError: "Load the base model that the adapter names, or ask for an adapter of this one.",
    CodecError: "Ask whoever published to pack and publish the adapter again.",
    DeliveryError: "The active adapter stays, and what arrived is kept. Sync again.",
}


@dataclass(frozen=True, slots=True)
class ReleasePrefix:
    """The first chunks of a file of a release: an adapter that is, was, or is to be active.

    Attributes:
        name: of the adapter.
        version: of the release.
        file_index: of the file in it; `ladder` in JSON.
        blobs: SHA-256 of the header and of each chunk of the prefix.
        loss: expected of the prefix [nats], or what `measure` says; None if not measured.
        accuracy: likewise, a share.
        measure: what `loss` is; see `rankcast.codec.header.measure_of`.
    """

    name: str
    version: int
    file_index: int
    blobs: tuple[str, ...]
    loss: float | None = None
    accuracy: float | None = None
    measure: Measure = "loss"

    @classmethod
    def of(cls, manifest: Manifest, file_index: int, n_chunks: int) -> ReleasePrefix:
        """Return a prefix of a file of a release."""
        file = manifest.files[file_index]
        blobs = tuple(blob.sha256 for blob in file.blobs(n_chunks))
        last = file.chunks[n_chunks - 1]
        worth = last.loss, last.accuracy, measure_of(manifest.task)
        return cls(manifest.name, manifest.version, file_index, blobs, *worth)

    @property
    def n_chunks(self) -> int:
        """Chunks of the prefix."""
        return len(self.blobs) - 1

    @property
    def label(self) -> str:
        """A name for files: what it is, and the beginning of a digest of its blobs."""
        digest = hashlib.sha256("".join(self.blobs).encode()).hexdigest()[:8]
        return f"{self.name}-v{self.version}-l{self.file_index}-n{self.n_chunks}-{digest}"

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON; `measure` only where it is no loss."""
        plain = asdict(self)
        if self.measure == "loss":
            del plain["measure"]
        return {"ladder" if key == "file_index" else key: plain[key] for key in plain}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> ReleasePrefix:
        """Rebuild one.

        Raises:
            DeliveryError: it names something else than blobs.
            KeyError, TypeError, ValueError: something is missing or wrong.
        """
        blobs = tuple(checked_sha256(sha256) for sha256 in raw["blobs"])
        if len(blobs) < 2:
            raise ValueError("a prefix has a header and a chunk")
        name, version, index = checked_name(raw["name"]), int(raw["version"]), int(raw["ladder"])
        worth = _number(raw["loss"]), _number(raw["accuracy"]), measure_of(raw)
        return cls(name, version, index, blobs, *worth)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        at: date and time in UTC.
        kind: `fetched`, `activated`, `restored`, `rolled-back`, `refused`, `failed`, `rebuilt`.
        message: in words.
    """

    at: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class LastError:
    """Why the last sync failed.

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
        active: the prefix that the device answers with; None before the first.
        previous: the one before it, kept to go back to.
        pending: the one that is being activated.
        attempts: how often that was begun.
        rejected: labels of prefixes that failed their proof.
        newest_version: of the release that was offered last; see `verify.SeenReleases` for what
            keeps older ones away.
        throughput_bps: of the link, as measured [bit/s].
        last_error: why the last sync failed; None if it did not.
        history: the last `MOST_EVENTS` events, oldest first.
    """

    adapter: str
    phase: Phase = "idle"
    active: ReleasePrefix | None = None
    previous: ReleasePrefix | None = None
    pending: ReleasePrefix | None = None
    attempts: int = 0
    rejected: tuple[str, ...] = ()
    newest_version: int = 0
    throughput_bps: float | None = None
    last_error: LastError | None = None
    history: tuple[Event, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        prefixes = {name: getattr(self, name) for name in _PREFIXES}
        plain = {name: None if p is None else p.to_plain() for name, p in prefixes.items()}
        return asdict(self) | plain

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> DeviceState:
        """Rebuild a state.

        Raises:
            DeliveryError: it names something else than blobs.
            KeyError, TypeError, ValueError: something is missing or wrong.
        """
        if raw["phase"] not in get_args(Phase):
            raise ValueError(f"no phase {raw['phase']!r}")
        prefixes = {
            name: None if raw[name] is None else ReleasePrefix.from_plain(raw[name])
            for name in _PREFIXES
        }
        error = raw["last_error"]
        return cls(
            adapter=checked_name(raw["adapter"]),
            phase=raw["phase"],
            **prefixes,
            attempts=int(raw["attempts"]),
            rejected=tuple(str(label) for label in raw["rejected"]),
            newest_version=int(raw["newest_version"]),
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


def utc_now() -> str:
    """Return date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class StateFile:
    """The state of a device's adapter: kept here, and replaced in the file at every change.

    Args:
        folder: that holds `state.json`.
        adapter: name of the adapter.
        now: gives date and time in UTC.
    """

    def __init__(self, folder: Path, adapter: str, now: Callable[[], str] = utc_now) -> None:
        self.folder, self.adapter, self.now = folder, adapter, now
        self.state = DeviceState(adapter)

    def recover(self) -> None:
        """Read the state; the copy of it if it was damaged or lost; begin anew without both.

        A damaged file is set aside. A new device fetches nothing that lies in its cache already.

        Raises:
            DeliveryError: the folder is another adapter's.
            UnavailableError: the disk does not take it.
        """
        damaged, copy, path = False, None, self.folder / STATE
        try:
            state = read_state(self.folder)
        except DeliveryError:
            state, damaged = None, True
            path.replace(path.with_name("state.damaged.json"))
        if state is None:
            with contextlib.suppress(DeliveryError):
                copy = read_state(self.folder, BACKUP)
        self.state = state or copy or DeviceState(self.adapter)
        if not (self.state.active or self.state.previous or self.state.pending):
            self.state = replace(self.state, adapter=self.adapter)  # nobody's before a delivery
        if self.state.adapter != self.adapter:
            raise DeliveryError(
                f"{self.folder} is the folder of {self.state.adapter}; give {self.adapter} "
                f"another one."
            )
        if state is None and (copy or damaged):
            what = "damaged (see state.damaged.json)" if damaged else "lost"
            source = "nothing is known" if copy is None else "the last activation is known"
            self.note("rebuilt", f"The state was {what}; {source}.")
            self.change()

    def note(self, kind: str, message: str) -> None:
        """Add an event, to be written with the next change."""
        events = (*self.state.history, Event(self.now(), kind, message))
        self.state = replace(self.state, history=events[-MOST_EVENTS:])

    def reject(self, label: str) -> None:
        """Remember a prefix that failed, to be written with the next change."""
        others = tuple(known for known in self.state.rejected if known != label)
        self.state = replace(self.state, rejected=(*others, label)[-MOST_REJECTED:])

    def change(self, *, with_backup: bool = False, **fields: Any) -> None:
        """Change fields of the state and replace the file.

        Args:
            with_backup: whether to write the copy, too, which then comes first: it may be ahead of
                the file by one activation, never behind what lies in the cache.
            fields: of `DeviceState`.

        Raises:
            UnavailableError: the disk does not take it.
        """
        self.state = replace(self.state, **fields)
        data = (json.dumps(self.state.to_plain(), indent=2) + "\n").encode()
        for name in (BACKUP, STATE) if with_backup else (STATE,):
            with disk_errors(self.folder / name):
                put_file(self.folder / name, data)


def read_state(folder: Path, name: str = STATE) -> DeviceState | None:
    """Return the state in a device's folder, or the copy of it; None if there is none.

    Raises:
        DeliveryError: the file cannot be understood.
    """
    path = folder / name
    try:
        return DeviceState.from_plain(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, DeliveryError, RecursionError) as error:
        raise DeliveryError(
            f"{path} is damaged ({error!r}). The next sync sets it aside and goes on from the copy "
            f"of the last activation."
        ) from error
