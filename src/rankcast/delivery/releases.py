"""Which releases a store has, as its metadata say.

Nothing is verified here beyond lengths and digests: whoever holds a store can lie, which is why
devices check signatures themselves. What a server reads serves for advice only.

Metadata of The Update Framework, version 1: `targets.json` lists the manifest of adapter NAME as
`adapters/NAME.json`. With consistent snapshots it is `N.targets.json`, where N stands in
`M.snapshot.json`, whose M stands in `timestamp.json`; that one is written last.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankcast.delivery.blobs import Blob, blob_of
from rankcast.delivery.manifest import LARGEST_MANIFEST, Manifest
from rankcast.delivery.store import Store
from rankcast.errors import DeliveryError

LARGEST_METADATA = 16 * 2**20
"""Bytes of one file of metadata."""
_PREFIX, _SUFFIX = "adapters/", ".json"
_PATIENCE_S = 1.0  # before files that could not be read are tried again
_LOG = logging.getLogger("rankcast.serve")


@dataclass(frozen=True, slots=True)
class Release:
    """A manifest and where it lies.

    Attributes:
        manifest: what the release consists of.
        target: the manifest's own bytes.
    """

    manifest: Manifest
    target: Blob


class Releases:
    """The releases of a store; read again when its metadata change.

    While a publication is half written, or a file is damaged, the releases read before stay in
    force. Threads may share it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._stamp: object = None
        self._found: Mapping[str, Release] | None = None
        self._failure: DeliveryError | None = None
        self._retry_at = 0.0

    def current(self) -> Mapping[str, Release]:
        """Return the releases by adapter.

        Raises:
            DeliveryError: the metadata cannot be read, and never could since the start.
        """
        stamp = self._stamp_now()
        with self._lock:
            stale = stamp != self._stamp
            again = self._failure is not None and time.monotonic() >= self._retry_at
            if stale or again:
                self._reload(stamp)
            if self._found is None:
                assert self._failure is not None
                raise DeliveryError(str(self._failure))
            return self._found

    def _reload(self, stamp: object) -> None:
        self._stamp = stamp
        try:
            self._found = read_releases(self._store, self._found or {})
            self._failure = None
        except DeliveryError as error:
            self._failure = error
            self._retry_at = time.monotonic() + _PATIENCE_S
            _LOG.warning("Releases could not be read: %s", error)

    def _stamp_now(self) -> object:
        """Return what changes whenever a publication ends."""
        found: list[tuple[int, int, int] | None] = []
        for name in ("timestamp.json", "targets.json"):
            try:
                stat = self._store.metadata_path(name).stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                found.append(None)
        return tuple(found)


def read_releases(store: Store, known: Mapping[str, Release]) -> Mapping[str, Release]:
    """Read which releases a store has.

    Args:
        store: the store.
        known: releases read before; those that did not change are not read again.

    Raises:
        DeliveryError: metadata or a manifest missing, damaged or too long.
    """
    targets = _signed(store, _targets_name(store)).get("targets")
    if not isinstance(targets, dict):
        raise DeliveryError("targets.json lists no targets: publish again.")
    found = {}
    for path, described in sorted(targets.items()):
        if path.startswith(_PREFIX) and path.endswith(_SUFFIX):
            name = path[len(_PREFIX) : -len(_SUFFIX)]
            found[name] = _release(store, name, described, known.get(name))
    return found


def _targets_name(store: Store) -> str:
    if not store.metadata_path("timestamp.json").is_file():
        return "targets.json"
    snapshot = f"{_version(_signed(store, 'timestamp.json'), 'snapshot.json')}.snapshot.json"
    if not store.metadata_path(snapshot).is_file():
        return "targets.json"
    return f"{_version(_signed(store, snapshot), 'targets.json')}.targets.json"


def _version(signed: Mapping[str, Any], name: str) -> int:
    try:
        version = signed["meta"][name]["version"]
    except (KeyError, TypeError) as error:
        raise DeliveryError(f"The metadata name no version of {name}: publish again.") from error
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DeliveryError(f"A version of {name} is a whole number from 1 on, got {version!r}.")
    return version


def _signed(store: Store, name: str) -> Mapping[str, Any]:
    """Return what the signatures of a file of metadata cover."""
    data = _read(store.metadata_path(name), LARGEST_METADATA)
    try:
        signed = json.loads(data)["signed"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DeliveryError(f"{name} is damaged ({error}): publish again.") from error
    if not isinstance(signed, dict):
        raise DeliveryError(f"{name} is damaged: publish again.")
    return signed


def _release(store: Store, name: str, described: Any, known: Release | None) -> Release:
    try:
        target = Blob(described["hashes"]["sha256"], described["length"])
    except (KeyError, TypeError) as error:
        raise DeliveryError(f"The metadata of adapter {name!r} lack {error}.") from error
    if known is not None and known.target == target:
        return known
    path = store.manifest_path(name, target.sha256)
    data = _read(path, LARGEST_MANIFEST)
    if blob_of(data) != target:
        raise DeliveryError(f"{path.name} is not what the metadata say: publish again.")
    manifest = Manifest.from_bytes(data)
    if manifest.name != name:
        raise DeliveryError(f"The manifest of {name!r} calls itself {manifest.name!r}.")
    return Release(manifest, target)


def _read(path: Path, limit: int) -> bytes:
    """Return a file, which may not be longer than `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DeliveryError(
            f"The store lacks {path.name} ({error.strerror}): publish an adapter, or check --store."
        ) from error
    if len(data) > limit:
        raise DeliveryError(f"{path.name} is longer than {limit:,} bytes.")
    return data
