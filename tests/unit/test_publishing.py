"""What `publish` puts in force, what it refuses, and what a crash leaves behind."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rankcast.codec.container import read_container
from rankcast.delivery.keyring import KeyFolder
from rankcast.delivery.locking import only_one
from rankcast.delivery.manifest import LARGEST_MANIFEST
from rankcast.delivery.publishing import publish, published
from rankcast.delivery.repository import Repository
from rankcast.delivery.store import Store
from rankcast.errors import DeliveryError, TrustError
from release_data import BASE, DAY, HOUR, NOW, Publisher, container, crashed, device, publisher


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def made(tmp_path: Path) -> Publisher:
    return publisher(tmp_path)


def test_what_is_published_arrives_and_is_the_file(made: Publisher, tmp_path: Path) -> None:
    files = [container(0), container(1)]
    sent = publish(files, "sst2", made.store, made.keys, NOW)
    got = device(made, tmp_path / "device").manifest("sst2")
    assert got == sent
    assert (got.version, got.base.fingerprint, got.task) == (1, BASE, {"task_type": "SEQ_CLS"})
    for ladder, file in zip(got.ladders, files, strict=True):
        blobs = [ladder.header, *(rung.blob for rung in ladder.rungs)]
        data = b"".join(made.store.get(blob) for blob in blobs)
        assert read_container(data).to_bytes() == file.to_bytes()


def test_versions_count_changes_and_nothing_else(made: Publisher) -> None:
    assert made.publish(0).version == 1
    files = sorted(made.store.root.rglob("*.json"))
    stamp = (made.store.metadata / "timestamp.json").read_bytes()
    assert made.publish(0, now=NOW + HOUR).version == 1
    assert sorted(made.store.root.rglob("*.json")) == files
    assert (made.store.metadata / "timestamp.json").read_bytes() == stamp
    assert made.publish(1).version == 2
    assert made.publish(0).version == 3  # going back is a new version
    assert made.publish(0, name="other").version == 1


def test_publishing_again_heals_a_damaged_blob_and_a_lost_manifest(
    made: Publisher, tmp_path: Path
) -> None:
    manifest = made.publish(0)
    path = made.store.blob_path(manifest.blobs[-1].sha256)
    path.write_bytes(b"")
    with pytest.raises(DeliveryError, match="publish its adapter again"):
        made.store.get(manifest.blobs[-1])
    next((made.store.targets / "adapters").iterdir()).unlink()
    assert made.publish(0) == manifest
    assert made.store.get(manifest.blobs[-1])
    assert device(made, tmp_path / "device").manifest("sst2") == manifest


def test_another_base_model_needs_a_word(made: Publisher) -> None:
    made.publish(0)
    other = [container(0, base="1" * 64)]
    with pytest.raises(DeliveryError, match="--allow-new-base"):
        publish(other, "sst2", made.store, made.keys, NOW)
    found = publish(other, "sst2", made.store, made.keys, NOW, allow_new_base=True)
    assert (found.version, found.base.fingerprint) == (2, "1" * 64)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "at least one file"),
        ([container(0), container(1, base="1" * 64)], "different base models"),
        ([container(0), container(1, task="CAUSAL_LM")], "different tasks"),
        ([replace(container(0), chunks=())], "whole files"),
        ([container(0)] * 65, "ladders"),
        ([container(0, task="x" * LARGEST_MANIFEST)], "more than devices read"),
    ],
)
def test_what_does_not_belong_together_is_refused(files: list, words: str, made: Publisher) -> None:
    with pytest.raises(DeliveryError, match=words):
        publish(files, "sst2", made.store, made.keys, NOW)
    assert not (made.store.root / "blobs").exists()


def test_files_without_a_fingerprint_are_refused(made: Publisher) -> None:
    file = container(0)
    base = replace(file.header.base, fingerprint=None)
    bare = replace(file, header=replace(file.header, base=base))
    with pytest.raises(DeliveryError, match="by fingerprint"):
        publish([bare], "sst2", made.store, made.keys, NOW)


@pytest.mark.parametrize(
    "name", ["", "..", "../root", "a/b", "/etc/passwd", "A", "a\0b", "a\n", ".a", "a..b", "x" * 65]
)
def test_names_that_could_be_paths_are_refused(name: str, made: Publisher) -> None:
    with pytest.raises(DeliveryError, match="adapter's name"):
        made.publish(0, name=name)
    assert not made.store.targets.exists()


def test_keys_are_missing_or_within_the_store(made: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="Signing as targets needs 1"):
        publish([container()], "sst2", made.store, KeyFolder(tmp_path / "empty"), NOW)
    inside = KeyFolder(made.store.root / "keys")
    with pytest.raises(DeliveryError, match="handed out"):
        publish([container()], "sst2", made.store, inside, NOW)
    with pytest.raises(DeliveryError, match="rankcast keys init"):
        publish([container()], "sst2", Store(tmp_path / "none"), made.keys, NOW)
    assert not (made.store.root / "blobs").exists()


def test_an_expired_root_signs_nothing(made: Publisher) -> None:
    with pytest.raises(DeliveryError, match="refresh --root"):
        made.publish(0, now=NOW + 366 * DAY)
    assert made.publish(0, now=NOW + 364 * DAY).version == 1  # the other roles are renewed


def test_two_publishers_at_once(made: Publisher) -> None:
    with (
        only_one(made.store.root / ".lock", "publishing"),
        pytest.raises(DeliveryError, match=f"Someone else is publishing .process {os.getpid()}"),
    ):
        made.publish(0)
    assert made.publish(0).version == 1


def test_a_store_that_cannot_be_written_keeps_its_release(
    made: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.publish(0)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DeliveryError, match="still in force"):
            made.publish(1)
    assert device(made, tmp_path / "device").manifest("sst2") == before


@pytest.mark.parametrize(
    "file", ["1.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
)
def test_nothing_is_signed_on_top_of_metadata_that_were_changed(file: str, made: Publisher) -> None:
    made.publish(0)
    path = made.store.metadata / file
    path.write_bytes(path.read_bytes().replace(b"2030", b"2039").replace(b"2031", b"2039"))
    with pytest.raises(TrustError, match="restore"):
        made.publish(1)


def test_lists_that_another_program_signed_are_named(made: Publisher) -> None:
    made.publish(0)
    repository = Repository.load(made.store)
    repository.targets.signed.targets["adapters/sst2.json"].unrecognized_fields.clear()
    with pytest.raises(DeliveryError, match="not written by"):
        published(repository, "sst2")


def test_a_crash_at_any_write_leaves_the_old_release_or_the_new_one(tmp_path: Path) -> None:
    origin = publisher(tmp_path / "origin")
    old = origin.publish(0)
    device(origin, tmp_path / "origin" / "device").manifest("sst2")
    outcomes = []
    while not outcomes or outcomes[-1][0]:
        here = tmp_path / f"at-{len(outcomes) + 1}"
        shutil.copytree(tmp_path / "origin", here, symlinks=True)
        made = Publisher(Store(here / "store"), KeyFolder(here / "keys"))
        died = crashed(lambda made=made: made.publish(1), len(outcomes) + 1)
        fresh = device(made, here / "fresh").manifest("sst2")
        assert device(made, here / "device").manifest("sst2") == fresh
        assert all(made.store.get(blob) for blob in fresh.blobs)
        outcomes.append((died, fresh.version))
        assert fresh == old or fresh.version == 2
        assert made.publish(1).version == 2  # whoever tries again succeeds
        after = device(made, here / "device").manifest("sst2")
        assert (after.version, after.ladders) == (2, made.publish(1).ladders)
        shutil.rmtree(here)
    versions = [version for _, version in outcomes]
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert len(versions) > 30
