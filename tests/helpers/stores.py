"""Stores with releases as the server reads them: laid out like signed ones, without signatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankcast.codec.header import BaseModel
from rankcast.files import replace_file
from rankcast.release.manifest import Chunk, File, Manifest, blob_of
from rankcast.release.store import Store

FINGERPRINT = "ab" * 32


def chunk(name: str, n_bytes: int) -> bytes:
    """Return bytes that only this name has."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * (n_bytes // len(seed) + 1))[:n_bytes]


def put_release(
    store: Store,
    name: str = "sst2",
    version: int = 1,
    sizes: Sequence[Sequence[int]] = ((100, 200, 300, 400),),
    losses: Sequence[Sequence[float]] | None = None,
) -> Manifest:
    """Keep the blobs of a release: for each file its header's length, then its chunks'."""
    files = []
    for i, (head, *chunks) in enumerate(sizes):
        header = store.put(chunk(f"{name}-{version}-{i}-header", head))
        entries = tuple(
            Chunk(
                store.put(chunk(f"{name}-{version}-{i}-{n}", size)),
                losses[i][n] if losses else 1.0 - 0.1 * n - 0.01 * i,
                0.5 + 0.1 * n if n < 5 else None,
            )
            for n, size in enumerate(chunks)
        )
        files.append(File(header, entries))
    return Manifest(name, version, BaseModel("tiny", FINGERPRINT), tuple(files), {})


def lay_out(store: Store, manifests: Sequence[Manifest], version: int = 1) -> None:
    """Write manifests and metadata with consistent snapshots, the timestamp last."""
    targets = {}
    for manifest in manifests:
        data = manifest.to_bytes()
        digest = blob_of(data).sha256
        path = store.manifest_path(manifest.name, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial, data=data: partial.write_bytes(data))
        targets[f"adapters/{manifest.name}.json"] = {
            "hashes": {"sha256": digest},
            "length": len(data),
        }
    _write(store.metadata / f"{version}.targets.json", {"targets": targets, "version": version})
    meta = {"targets.json": {"version": version}}
    _write(store.metadata / f"{version}.snapshot.json", {"meta": meta, "version": version})
    meta = {"snapshot.json": {"version": version}}
    _write(store.metadata / "timestamp.json", {"meta": meta, "version": version})


def store_with(root: Path, *manifests: Manifest) -> Store:
    """Return a store; the release of `put_release` if none is given."""
    store = Store(root)
    lay_out(store, manifests or (put_release(store),))
    return store


def _write(path: Path, signed: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"signatures": [], "signed": signed}).encode()
    replace_file(path, lambda partial: partial.write_bytes(data))
