"""Releases that `publish` makes active, refuses, and leaves behind after a crash."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.releases import (
    BASE,
    DAY,
    HOUR,
    NOW,
    Publisher,
    container,
    crashed,
    device,
    new_publisher,
)
from rankcast.codec.container import Container, read_container
from rankcast.errors import DeliveryError, TrustError
from rankcast.files import only_one
from rankcast.release.keys import KeyFolder
from rankcast.release.manifest import LARGEST_MANIFEST
from rankcast.release.publish import publish, published
from rankcast.release.repository import Repository
from rankcast.release.store import Store


def test_what_is_published_arrives_and_is_the_file(publisher: Publisher, tmp_path: Path) -> None:
    files = [container(0), container(1)]
    sent = publish(files, "sst2", publisher.store, publisher.keys, NOW)
    got = device(publisher, tmp_path / "device").manifest("sst2")
    assert got == sent
    assert (got.version, got.base.fingerprint, got.task) == (1, BASE, {"task_type": "SEQ_CLS"})
    for file, container_ in zip(got.files, files, strict=True):
        data = b"".join(publisher.store.get(blob) for blob in file.blobs())
        assert read_container(data).to_bytes() == container_.to_bytes()


def test_folders_that_an_earlier_version_wrote_into_a_file_are_not_published(
    publisher: Publisher,
) -> None:
    file = container(0)
    base = replace(file.header.base, name="/home/alice/models/llama")
    config = {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "C:\\alice\\llama"}
    old = replace(file, header=replace(file.header, base=base, config=config))
    manifests = [publish([old], "sst2", publisher.store, publisher.keys, NOW) for _ in range(2)]
    assert [manifest.version for manifest in manifests] == [1, 1]
    assert manifests[1].base.name == "llama"
    data = b"".join(map(publisher.store.get, manifests[1].files[0].blobs()))
    published_ = read_container(data)
    assert published_.header.config == config | {"tokenizer_name_or_path": "llama"}
    assert published_.chunks == file.chunks
    written = [path.read_bytes() for path in publisher.store.root.rglob("*") if path.is_file()]
    assert not [file for file in written if b"alice" in file]


def test_versions_count_changes_and_nothing_else(publisher: Publisher) -> None:
    assert publisher.publish(0).version == 1
    files = sorted(publisher.store.root.rglob("*.json"))
    stamp = (publisher.store.metadata / "timestamp.json").read_bytes()
    assert publisher.publish(0, now=NOW + HOUR).version == 1
    assert sorted(publisher.store.root.rglob("*.json")) == files
    assert (publisher.store.metadata / "timestamp.json").read_bytes() == stamp
    assert publisher.publish(1).version == 2
    assert publisher.publish(0).version == 3  # going back is a new version
    assert publisher.publish(0, name="other").version == 1


def test_publishing_again_heals_a_damaged_blob_and_a_lost_manifest(
    publisher: Publisher, tmp_path: Path
) -> None:
    manifest = publisher.publish(0)
    path = publisher.store.blob_path(manifest.blobs[-1].sha256)
    path.write_bytes(b"")
    with pytest.raises(DeliveryError, match="publish its adapter again"):
        publisher.store.get(manifest.blobs[-1])
    next((publisher.store.targets / "adapters").iterdir()).unlink()
    assert publisher.publish(0) == manifest
    assert publisher.store.get(manifest.blobs[-1])
    assert device(publisher, tmp_path / "device").manifest("sst2") == manifest


def test_another_base_model_needs_a_word(publisher: Publisher) -> None:
    publisher.publish(0)
    other = [container(0, base="1" * 64)]
    with pytest.raises(DeliveryError, match="--allow-new-base"):
        publish(other, "sst2", publisher.store, publisher.keys, NOW)
    found = publish(other, "sst2", publisher.store, publisher.keys, NOW, allow_new_base=True)
    assert (found.version, found.base.fingerprint) == (2, "1" * 64)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "at least one file"),
        ([container(0), container(1, base="1" * 64)], "different base models"),
        ([container(0), container(1, task="CAUSAL_LM")], "different tasks"),
        ([replace(container(0), chunks=())], "whole files"),
        ([container(0)] * 65, "1 to 64 files"),
        ([container(0, task="x" * LARGEST_MANIFEST)], "more than devices read"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    files: list, words: str, publisher: Publisher
) -> None:
    with pytest.raises(DeliveryError, match=words):
        publish(files, "sst2", publisher.store, publisher.keys, NOW)
    assert not (publisher.store.root / "blobs").exists()


def test_files_without_a_fingerprint_are_refused(publisher: Publisher) -> None:
    file = container(0)
    base = replace(file.header.base, fingerprint=None)
    bare = replace(file, header=replace(file.header, base=base))
    with pytest.raises(DeliveryError, match="by fingerprint"):
        publish([bare], "sst2", publisher.store, publisher.keys, NOW)


@pytest.mark.parametrize(
    "name", ["", "..", "../root", "a/b", "/etc/passwd", "A", "a\0b", "a\n", ".a", "a..b", "x" * 65]
)
def test_names_that_could_be_paths_are_refused(name: str, publisher: Publisher) -> None:
    with pytest.raises(DeliveryError, match="adapter's name"):
        publisher.publish(0, name=name)
    assert not publisher.store.targets.exists()


def test_keys_are_missing_or_within_the_store(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="Signing as targets needs 1"):
        publish([container()], "sst2", publisher.store, KeyFolder(tmp_path / "empty"), NOW)
    inside = KeyFolder(publisher.store.root / "keys")
    with pytest.raises(DeliveryError, match="handed out"):
        publish([container()], "sst2", publisher.store, inside, NOW)
    with pytest.raises(DeliveryError, match="rankcast keys init"):
        publish([container()], "sst2", Store(tmp_path / "none"), publisher.keys, NOW)
    assert not (publisher.store.root / "blobs").exists()


def test_an_expired_root_signs_nothing(publisher: Publisher) -> None:
    with pytest.raises(DeliveryError, match="refresh --root"):
        publisher.publish(0, now=NOW + 366 * DAY)
    assert publisher.publish(0, now=NOW + 364 * DAY).version == 1  # the other roles are renewed


def test_two_publishers_at_once(publisher: Publisher) -> None:
    with (
        only_one(publisher.store.root / ".lock", "publishing"),
        pytest.raises(DeliveryError, match=f"Someone else is publishing .process {os.getpid()}"),
    ):
        publisher.publish(0)
    assert publisher.publish(0).version == 1


def test_a_store_that_cannot_be_written_keeps_its_release(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publisher.publish(0)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DeliveryError, match="still active"):
            publisher.publish(1)
    assert device(publisher, tmp_path / "device").manifest("sst2") == before


@pytest.mark.parametrize(
    "file", ["1.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
)
def test_nothing_is_signed_on_top_of_metadata_that_were_changed(
    file: str, publisher: Publisher
) -> None:
    publisher.publish(0)
    path = publisher.store.metadata / file
    path.write_bytes(path.read_bytes().replace(b"2030", b"2039").replace(b"2031", b"2039"))
    with pytest.raises(TrustError, match="restore"):
        publisher.publish(1)


def test_lists_that_another_program_signed_are_named(publisher: Publisher) -> None:
    publisher.publish(0)
    repository = Repository.load(publisher.store)
    repository.targets.signed.targets["adapters/sst2.json"].unrecognized_fields.clear()
    with pytest.raises(DeliveryError, match="not written by"):
        published(repository, "sst2")


def test_a_crash_at_any_write_leaves_the_old_release_or_the_new_one(tmp_path: Path) -> None:
    origin = new_publisher(tmp_path / "origin")
    old = origin.publish(0)
    device(origin, tmp_path / "origin" / "device").manifest("sst2")
    outcomes = []
    while not outcomes or outcomes[-1][0]:
        here = tmp_path / f"at-{len(outcomes) + 1}"
        shutil.copytree(tmp_path / "origin", here, symlinks=True)
        publisher = Publisher(Store(here / "store"), KeyFolder(here / "keys"))
        died = crashed(lambda publisher=publisher: publisher.publish(1), len(outcomes) + 1)
        fresh = device(publisher, here / "fresh").manifest("sst2")
        assert device(publisher, here / "device").manifest("sst2") == fresh
        assert all(publisher.store.get(blob) for blob in fresh.blobs)
        outcomes.append((died, fresh.version))
        assert fresh == old or fresh.version == 2
        assert publisher.publish(1).version == 2  # whoever tries again succeeds
        after = device(publisher, here / "device").manifest("sst2")
        assert (after.version, after.files) == (2, publisher.publish(1).files)
        shutil.rmtree(here)
    versions = [version for _, version in outcomes]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert len(versions) > 30


def test_a_cut_fingerprint_is_published_and_made_whole_by_what_is_known(
    publisher: Publisher,
) -> None:
    def as_read(seed: int) -> Container:
        return read_container(container(seed).to_bytes())

    def published_base(*files: Container) -> tuple[int, str | None]:
        manifest = publish(files, "sst2", publisher.store, publisher.keys, NOW)
        return manifest.version, manifest.base.fingerprint

    assert published_base(as_read(0)) == (1, BASE[:16])
    assert published_base(container(0)) == (1, BASE[:16])  # the same files: nothing changes
    assert published_base(as_read(1), container(2)) == (2, BASE)
    assert published_base(as_read(3)) == (3, BASE)
    with pytest.raises(DeliveryError, match="is for the base model 0000"):
        published_base(read_container(container(4, base="0" * 15 + "1" + "0" * 48).to_bytes()))


@pytest.mark.parametrize("fingerprint", ["", "0" * 15, "0" * 65, "0" * 15 + "G", " " * 64])
def test_a_fingerprint_that_is_none_is_refused(fingerprint: str, publisher: Publisher) -> None:
    manifest = publisher.publish(0)
    with pytest.raises(DeliveryError, match="by fingerprint"):
        replace(manifest, base=replace(manifest.base, fingerprint=fingerprint))
