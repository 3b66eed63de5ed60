"""What a device believes: releases signed by keys that follow from the root it was installed with.

The root comes with the installation or over a way that people check, never from the server that
the releases come from. Everything a refresh learns is kept in the state folder, so that a server
cannot take the device back behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from rankcast.delivery.blobs import Blob, checked_name, checked_sha256
from rankcast.delivery.locking import only_one
from rankcast.delivery.manifest import LARGEST_MANIFEST, Manifest
from rankcast.delivery.refusals import Watched, translated
from rankcast.delivery.store import target_path
from rankcast.errors import DeliveryError, TrustError
from rankcast.files import put_file

LARGEST_ROOT = 2**16
LARGEST_TIMESTAMP = 2**14
LARGEST_SNAPSHOT = 2**16
LARGEST_TARGETS = 2**22
MOST_ROTATIONS = 256
"""Roots that one refresh follows."""
_PINNED = "trusted-root.json"
_SEEN = "seen.json"


def utc_now() -> datetime:
    """Return the time by this machine's clock."""
    return datetime.now(UTC)


def trust_root(state_dir: Path, data: bytes, sha256: str | None = None) -> str:
    """Pin the root that a device begins with, once, and return its SHA-256.

    Args:
        state_dir: the device's folder of what it believes.
        data: `root.json`, from the installation medium or checked by people.
        sha256: what the key ceremony printed, to compare with.

    Raises:
        TrustError: no root, not signed by its own keys, not the expected one, or another one than
            is pinned already.
        DeliveryError: the folder cannot be written.
    """
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and checked_sha256(sha256.lower()) != found:
        raise TrustError(
            f"This root has the SHA-256 {found}, and {sha256} was expected: do not use it."
        )
    if len(data) > LARGEST_ROOT:
        raise TrustError(f"A root of {len(data):,} bytes is too long to be one.")
    try:
        root: Metadata[Any] = Metadata.from_bytes(data)
        if not isinstance(root.signed, Root):
            raise TrustError(f"This file is {root.signed.type}.json; a device trusts root.json.")
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"This is no root signed by its own keys: {error}.") from error
    try:
        _pin(state_dir, data)
    except OSError as error:
        raise DeliveryError(f"{state_dir} cannot be written: {error.strerror}.") from error
    return found


@dataclass(frozen=True)
class TufSource:
    """Releases by The Update Framework. One process at a time uses a state folder.

    Attributes:
        metadata_url: of signed metadata.
        targets_url: of manifests.
        state_dir: what the device believes, with the root that `trust_root` pinned.
        fetcher: gets files; see `downloads`.
        now: the clock.
        base_fingerprint: of the device's model; None to accept releases for any.
    """

    metadata_url: str
    targets_url: str
    state_dir: Path
    fetcher: FetcherInterface
    now: Callable[[], datetime] = utc_now
    base_fingerprint: str | None = None

    def expect_base(self, fingerprint: str) -> TufSource:
        """Return a source that refuses releases for another base model.

        Raises:
            DeliveryError: no fingerprint.
        """
        return replace(self, base_fingerprint=checked_sha256(fingerprint))

    def manifest(self, name: str) -> Manifest:
        """Return the release in force, after a refresh of all metadata.

        Raises:
            DeliveryError: no such adapter, no network, or a disk that cannot be written.
            TrustError: no pinned root, or anything that must not be trusted, named.
        """
        path = target_path(name)
        pinned = self._pinned()
        watched = Watched(self.fetcher)
        with only_one(self.state_dir / ".lock", "refreshing"), translated(watched):
            updater = self._updater(pinned, watched)
            updater.refresh()
            data = self._target(updater, name, path)
            root: Root = updater._trusted_set.root  # noqa: SLF001 public by no other way
            return self._accepted(name, Manifest.from_bytes(data), root)

    def _pinned(self) -> bytes:
        try:
            return (self.state_dir / _PINNED).read_bytes()
        except OSError as error:
            raise TrustError(
                f"{self.state_dir} has no trusted root, and one from the server would prove "
                f"nothing: pin the publisher's root.json with trust_root when installing."
            ) from error

    def _updater(self, pinned: bytes, fetcher: FetcherInterface) -> Updater:
        folder = self.state_dir / "metadata"
        folder.mkdir(parents=True, exist_ok=True)
        lengths = UpdaterConfig(
            max_root_rotations=MOST_ROTATIONS,
            max_delegations=0,
            root_max_length=LARGEST_ROOT,
            timestamp_max_length=LARGEST_TIMESTAMP,
            snapshot_max_length=LARGEST_SNAPSHOT,
            targets_max_length=LARGEST_TARGETS,
        )
        updater = Updater(
            str(folder),
            self.metadata_url,
            target_base_url=self.targets_url,
            fetcher=fetcher,
            config=lengths,
            bootstrap=pinned,
        )
        updater._trusted_set.reference_time = self.now()  # noqa: SLF001 the clock has no other door
        return updater

    def _target(self, updater: Updater, name: str, path: str) -> bytes:
        info = updater.get_targetinfo(path)
        if info is None:
            raise DeliveryError(f"The publisher has no adapter {name!r}; check the name.")
        if info.length > LARGEST_MANIFEST:
            raise TrustError(
                f"The manifest of {name} is signed with {info.length:,} bytes, more than the "
                f"{LARGEST_MANIFEST:,} that a device reads; it was not fetched."
            )
        file = self.state_dir / "manifests" / f"{checked_name(name)}.json"
        found = updater.find_cached_target(info, str(file))
        return Path(found or updater.download_target(info, str(file))).read_bytes()

    def _accepted(self, name: str, manifest: Manifest, root: Root) -> Manifest:
        """Return a release after the last checks, and remember its version."""
        if manifest.name != name:
            raise TrustError(
                f"The manifest signed as {name} is of {manifest.name}: swapped by the publisher."
            )
        wanted, base = self.base_fingerprint, manifest.base
        if wanted is not None and base.fingerprint != wanted:
            raise TrustError(
                f"{name} is for another base model, {base.name} ({str(base.fingerprint)[:16]}…); "
                f"this device runs {wanted[:16]}…, on which it would be wrong."
            )
        keyids = sorted(root.roles["targets"].keyids)
        seen = _seen(self.state_dir / _SEEN)
        versions = seen["versions"] if seen["keys"] == keyids else {}  # new keys, new count
        newest = versions.get(name, 0)
        if manifest.version < newest:
            raise TrustError(
                f"Version {manifest.version} of {name} is older than version {newest}, which this "
                f"device has seen (rollback). To go back, publish the old files as a new version."
            )
        if manifest.version > newest:
            plain = {"keys": keyids, "versions": {**versions, name: manifest.version}}
            put_file(self.state_dir / _SEEN, json.dumps(plain).encode())
        return manifest


def fetch_blob(fetcher: FetcherInterface, blobs_url: str, blob: Blob) -> bytes:
    """Return a blob that a manifest names, reading no byte more than it has.

    Args:
        fetcher: gets files.
        blobs_url: where blobs lie, without the two digits of their folder.
        blob: what the manifest says of it.

    Raises:
        DeliveryError: it cannot be had now.
        TrustError: other bytes came.
    """
    digest = checked_sha256(blob.sha256)
    watched = Watched(fetcher)
    with translated(watched):
        url = f"{blobs_url.rstrip('/')}/{digest[:2]}/{digest}"
        data = watched.download_bytes(url, blob.n_bytes)
    if len(data) != blob.n_bytes or hashlib.sha256(data).hexdigest() != digest:
        raise TrustError(
            f"Blob {digest[:16]}… was tampered with or damaged on the way: {len(data):,} other "
            f"bytes came. Fetch it again."
        )
    return data


def _pin(state_dir: Path, data: bytes) -> None:
    pinned = state_dir / _PINNED
    state_dir.mkdir(parents=True, exist_ok=True)
    if pinned.exists() and pinned.read_bytes() != data:
        raise TrustError(
            f"{state_dir} trusts another root already. Newer roots are found by themselves; for "
            f"another publisher choose another folder."
        )
    put_file(pinned, data)


def _seen(path: Path) -> dict[str, Any]:
    """Return which versions this device has seen, and by which keys they were signed."""
    if not path.exists():
        return {"keys": [], "versions": {}}
    try:
        raw = json.loads(path.read_bytes())
        versions = {str(k): int(v) for k, v in raw["versions"].items()}
        return {"keys": list(cast("list[str]", raw["keys"])), "versions": versions}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(
            f"{path} is damaged, so that a rollback could not be noticed. Remove it only if "
            f"nobody else could have written to this device."
        ) from error
