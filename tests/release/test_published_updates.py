"""Releases whose files come as the difference to an older release, too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers.codec import packed, random_adapter
from helpers.releases import BASE, NOW, Publisher, container
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.codec.update import apply_update
from rankcast.errors import DeliveryError
from rankcast.release.manifest import Blob, File, Manifest, Update, base_of, blob_of
from rankcast.release.publish import publish
from rankcast.release.updates import ENTRY_BYTES


def version(n: int, seed: int = 0) -> Container:
    """Return a file of some kilobytes; each version has moved a little from the one before."""
    tensors = random_adapter(seed, ((256, 256), (256, 384)), (3, 3))
    moved = random_adapter(seed + n, ((256, 256), (256, 384)), (3, 3))
    factors = tuple(
        replace(f, left=f.left + 0.01 * (n > 0) * g.left, right=f.right + 0.01 * n * g.right)
        for f, g in zip(tensors.factors, moved.factors, strict=True)
    )
    file = packed(replace(tensors, factors=factors))
    return replace(file, header=replace(file.header, base=BaseModel("tiny", BASE)))


def put(
    publisher: Publisher, *files: Container, update_from: tuple[int, ...] | None = None
) -> Manifest:
    return publish(files, "sst2", publisher.store, publisher.keys, NOW, update_from=update_from)


def check(publisher: Publisher, file: File, update: int, old: Container, new: Container) -> int:
    """Check that an update makes a file from another one, and return its bytes."""
    assert file.updates[update].base == base_of(blob_of(header_bytes(old.header)))
    data = publisher.store.get(file.updates[update].blob)
    made = apply_update(old.to_bytes(), data, [blob.sha256 for blob in file.blobs()])
    assert b"".join(made) == new.to_bytes()
    return len(data)


def test_the_active_release_is_what_devices_have(publisher: Publisher) -> None:
    files = [version(n) for n in range(4)]
    assert put(publisher, files[0]).files[0].updates == ()
    for n in (1, 2, 3):
        manifest = put(publisher, files[n])
        assert manifest.version == n + 1
        (update,) = manifest.files[0].updates
        size = check(publisher, manifest.files[0], 0, files[n - 1], files[n])
        assert size < len(files[n].to_bytes()) / 2
        assert manifest.update_blobs == (update.blob,)
        assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_the_same_again_changes_nothing(publisher: Publisher) -> None:
    put(publisher, version(0))
    manifest = put(publisher, version(1))
    assert put(publisher, version(1)) == manifest
    assert put(publisher, version(1), update_from=()) == manifest
    assert put(publisher, version(1), update_from=(1,)) == manifest


def test_other_versions_and_none(publisher: Publisher) -> None:
    files = [version(n) for n in range(4)]
    for file in files[:3]:
        put(publisher, file)
    manifest = put(publisher, files[3], update_from=(1, 3))
    for i, n in enumerate((0, 2)):
        check(publisher, manifest.files[0], i, files[n], files[3])
    assert put(publisher, version(4), update_from=()).update_blobs == ()
    with pytest.raises(DeliveryError, match=r"no version 9 of sst2.*it has 1, 2, 3, 4, 5"):
        put(publisher, version(5), update_from=(9,))
    assert put(publisher, version(5)).version == 6


def test_each_file_of_a_release_has_its_own(publisher: Publisher) -> None:
    put(publisher, version(0), version(0, seed=50))
    manifest = put(publisher, version(1), version(1, seed=50), version(1, seed=90))
    check(publisher, manifest.files[0], 0, version(0), version(1))
    check(publisher, manifest.files[1], 0, version(0, seed=50), version(1, seed=50))
    assert manifest.files[2].updates == ()


def test_no_update_where_it_saves_nothing_or_the_old_file_is_gone(publisher: Publisher) -> None:
    first = put(publisher, version(0))
    publisher.store.blob_path(first.files[0].header.sha256).unlink()
    assert put(publisher, version(1)).update_blobs == ()
    put(publisher, container(0))  # of another adapter, with hardly any numbers
    (file,) = put(publisher, version(1)).files
    assert file.updates == ()


def test_a_manifest_that_was_lost_is_no_base(publisher: Publisher) -> None:
    put(publisher, version(0))
    for path in (publisher.store.targets / "adapters").iterdir():
        path.write_bytes(b"{}")
    assert put(publisher, version(0)).version == 1  # the same files repair it
    for path in (publisher.store.targets / "adapters").iterdir():
        path.unlink()
    manifest = put(publisher, version(1))
    assert (manifest.version, manifest.update_blobs) == (2, ())


def test_programs_that_know_no_updates_find_what_they_know(publisher: Publisher) -> None:
    put(publisher, version(0))
    manifest = put(publisher, version(1))
    raw, plain = (json.loads(m.to_bytes()) for m in (manifest, manifest.without_updates()))
    updates = raw["ladders"][0].pop("updates")
    assert raw == plain
    assert {"base", "n_bytes", "sha256"} == set(updates[0])
    n_bytes = len(manifest.to_bytes()) - len(manifest.without_updates().to_bytes())
    assert ENTRY_BYTES - 10 <= n_bytes <= ENTRY_BYTES


def test_updates_outside_their_bounds_are_refused(publisher: Publisher) -> None:
    manifest = put(publisher, version(0))
    (file,) = manifest.files
    update = Update("0" * 16, blob_of(b"update"))
    for updates in (
        (update,) * 17,
        (replace(update, base="x"),),
        (replace(update, base="0" * 64),),
        (replace(update, blob=Blob("0" * 64, 0)),),
    ):
        with pytest.raises(DeliveryError):
            replace(manifest, files=(replace(file, updates=updates),))
