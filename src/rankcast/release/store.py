"""Keep published adapters as plain files that any web server can hand out.

| path | what | how long it holds |
|---|---|---|
| `blobs/ab/abcd…` | header or chunk, named by its SHA-256 | forever |
| `metadata/*.json` | signed metadata of The Update Framework | `timestamp.json`: minutes |
| `targets/adapters/HASH.NAME.json` | manifest of a release, named by its own SHA-256 | forever |

Private keys are never in the store. Several servers may share one store; only `rankcast publish`
writes. Whoever reads a store here verifies lengths and digests only: who holds a store can lie,
which is why devices check signatures themselves (see `verify`), and a server uses what it reads for
advice alone.

`targets.json` lists the manifest of adapter NAME as `adapters/NAME.json`; where there are many
adapters, each is in one of the bins `bin-00.json`, `bin-01.json`, … instead. With consistent
snapshots these files are `N.targets.json` and `N.bin-00.json`, where N stands in `M.snapshot.json`,
whose M stands in `timestamp.json`, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankcast.errors import DeliveryError
from rankcast.files import put_file
from rankcast.release.manifest import (
    LARGEST_MANIFEST,
    Blob,
    Manifest,
    blob_of,
    checked_name,
    checked_sha256,
)

LARGEST_METADATA = 16 * 2**20
"""Bytes of one file of metadata."""
_PREFIX, _SUFFIX = "adapters/", ".json"
_RETRY_S = 1.0
"""Before files that could not be read are tried again [s]."""
_LOG = logging.getLogger("rankcast.serve")
_BIN_FILE = re.compile(r"bin-[0-9a-f]{2}\.json")
_METADATA = re.compile(r"(?:[1-9][0-9]{0,9}\.)?[a-z][a-z0-9_-]{0,63}\.json")


@dataclass(frozen=True)
class Store:
    """A store's folder.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def metadata(self) -> Path:
        """Folder of signed metadata."""
        return self.root / "metadata"

    @property
    def targets(self) -> Path:
        """Folder of manifests."""
        return self.root / "targets"

    def blob_path(self, sha256: str) -> Path:
        """Return where a blob lies or would lie.

        Raises:
            DeliveryError: no SHA-256; nothing else can name a file here.
        """
        digest = checked_sha256(sha256)
        return self.root / "blobs" / digest[:2] / digest

    def metadata_path(self, name: str) -> Path:
        """Return where metadata lie or would lie.

        Args:
            name: such as `timestamp.json` or `3.targets.json`.

        Raises:
            DeliveryError: a name that metadata cannot have.
        """
        if not _METADATA.fullmatch(name):
            raise DeliveryError(f"Metadata are named ROLE.json or NUMBER.ROLE.json, not {name!r}.")
        return self.metadata / name

    def manifest_path(self, name: str, sha256: str) -> Path:
        """Return where the manifest of a release lies or would lie.

        Args:
            name: of the adapter.
            sha256: of the manifest.

        Raises:
            DeliveryError: a name or digest that no manifest can have.
        """
        return self.targets / "adapters" / f"{checked_sha256(sha256)}.{checked_name(name)}.json"

    def put(self, data: bytes) -> Blob:
        """Keep some bytes, once; whole or not at all. A damaged blob is replaced."""
        blob = blob_of(data)
        path = self.blob_path(blob.sha256)
        if not path.is_file() or path.read_bytes() != data:
            put_file(path, data)
        return blob

    def get(self, blob: Blob) -> bytes:
        """Return the bytes of a blob.

        Raises:
            DeliveryError: it is not here, or damaged.
        """
        path = self.blob_path(blob.sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeliveryError(f"The store lacks {blob.sha256}: {error.strerror}.") from error
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise DeliveryError(f"{path} is damaged: publish its adapter again.")
        return data


def target_path(name: str) -> str:
    """Return the name of a release's manifest among the signed targets.

    Raises:
        DeliveryError: no name of an adapter.
    """
    return f"adapters/{checked_name(name)}.json"


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

    While a publication is half written, or a file is damaged, the releases read before stay active.
    Threads may share it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._stamp: object = None
        self._releases: Mapping[str, Release] | None = None
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
            if self._releases is None:
                assert self._failure is not None
                raise DeliveryError(str(self._failure))
            return self._releases

    def _reload(self, stamp: object) -> None:
        self._stamp = stamp
        try:
            self._releases = read_releases(self._store, self._releases or {})
            self._failure = None
        except DeliveryError as error:
            self._failure = error
            self._retry_at = time.monotonic() + _RETRY_S
            _LOG.warning("Releases could not be read: %s", error)

    def _stamp_now(self) -> object:
        """Return a value that changes whenever a publication ends."""
        stamps: list[tuple[int, int, int] | None] = []
        for name in ("timestamp.json", "targets.json"):
            try:
                stat = self._store.metadata_path(name).stat()
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                stamps.append(None)
        return tuple(stamps)


def read_releases(store: Store, known: Mapping[str, Release]) -> Mapping[str, Release]:
    """Read which releases a store has.

    Args:
        store: the store.
        known: releases read before; those that did not change are not read again.

    Raises:
        DeliveryError: metadata or a manifest missing, damaged or too long.
    """
    listed: dict[str, Any] = {}
    for file in _lists(store):
        targets = _signed(store, file).get("targets")
        if not isinstance(targets, dict):
            raise DeliveryError(f"{file} lists no targets: publish again.")
        listed |= targets
    releases = {}
    for path, described in sorted(listed.items()):
        if path.startswith(_PREFIX) and path.endswith(_SUFFIX):
            name = path[len(_PREFIX) : -len(_SUFFIX)]
            releases[name] = _release(store, name, described, known.get(name))
    return releases


def _lists(store: Store) -> list[str]:
    """Return the names of the lists of releases that are active now."""
    if not store.metadata_path("timestamp.json").is_file():
        return ["targets.json"]
    name = f"{_version(_signed(store, 'timestamp.json'), 'snapshot.json')}.snapshot.json"
    if not store.metadata_path(name).is_file():
        return ["targets.json"]
    snapshot = _signed(store, name)
    bins = sorted(filter(_BIN_FILE.fullmatch, snapshot.get("meta") or ()))
    return [f"{_version(snapshot, listed)}.{listed}" for listed in ("targets.json", *bins)]


def _version(signed: Mapping[str, Any], name: str) -> int:
    try:
        version = signed["meta"][name]["version"]
    except (KeyError, TypeError) as error:
        raise DeliveryError(f"The metadata name no version of {name}: publish again.") from error
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DeliveryError(f"A version of {name} is a whole number from 1 on, got {version!r}.")
    return version


def _signed(store: Store, name: str) -> Mapping[str, Any]:
    """Return the part of a file of metadata that its signatures cover."""
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
