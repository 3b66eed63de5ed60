"""Make the updates of a release: what saves devices with an older version most of the bytes.

Nothing here has to be trusted: an update can only give the file whose SHA-256 the signed manifest
names, and a device that cannot use it fetches the whole file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rankcast.codec.update import apply_update, make_update
from rankcast.errors import CodecError, DeliveryError
from rankcast.release.manifest import (
    LARGEST_MANIFEST,
    MOST_UPDATES,
    File,
    Manifest,
    Update,
    base_of,
    is_sha256,
)
from rankcast.release.store import Store

ENTRY_BYTES = 140
"""That an update takes in the manifest, which every device fetches, at most."""


def released(store: Store, name: str, versions: Sequence[int]) -> list[Manifest]:
    """Return older releases of an adapter whose manifests are still in a store.

    Raises:
        DeliveryError: one of them is not there.
    """
    found: dict[int, Manifest] = {}
    for path in sorted((store.targets / "adapters").glob(f"*.{name}.json")):
        digest = path.name.removesuffix(f".{name}.json")
        data = path.read_bytes() if is_sha256(digest) else b""
        if data and hashlib.sha256(data).hexdigest() == digest:
            manifest = Manifest.from_bytes(data)
            found[manifest.version] = manifest
    missing = sorted(set(versions) - set(found))
    if missing:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise DeliveryError(
            f"The store has no version {', '.join(map(str, missing))} of {name} to make an update "
            f"from; it has {known}."
        )
    return [found[version] for version in dict.fromkeys(versions)]


def with_updates(
    store: Store, manifest: Manifest, files: Sequence[Sequence[bytes]], older: Sequence[Manifest]
) -> Manifest:
    """Return a release with updates from older ones, and put them into the store.

    Each file has one from the file at the same place of each older release: where that is still in
    the store, and the update saves more than it takes in the manifest.

    Args:
        store: where the older files are, and where the updates go.
        manifest: the release.
        files: header and chunks of each of its files.
        older: releases that devices may have.
    """
    new = []
    for i, (file, blobs) in enumerate(zip(manifest.files, files, strict=True)):
        made = [_update(store, blobs, old.files[i]) for old in older if i < len(old.files)]
        updates = dict.fromkeys(update for update in made if update is not None)
        new.append(replace(file, updates=tuple(updates)[:MOST_UPDATES]))
    result = replace(manifest, files=tuple(new))
    return result if len(result.to_bytes()) <= LARGEST_MANIFEST - 32 else manifest


def _update(store: Store, new: Sequence[bytes], old: File) -> Update | None:
    """Return the update of a file from an older one; None where it is of no use."""
    try:
        before = b"".join(store.get(blob) for blob in old.blobs())
        update = make_update(before, b"".join(new))
        sha256s = [hashlib.sha256(data).hexdigest() for data in new]
        if apply_update(before, update, sha256s) != tuple(new):
            return None
    except (CodecError, DeliveryError):
        return None
    saved = sum(map(len, new)) - len(update)
    if before == b"".join(new) or saved <= ENTRY_BYTES:
        return None
    return Update(base_of(old.header), store.put(update))
