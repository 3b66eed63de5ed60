"""Every attack that The Update Framework names, tried on a device, and refused by its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface

from rankcast.delivery.downloads import CHUNK, FolderFetcher
from rankcast.delivery.keyring import ROLES
from rankcast.delivery.manifest import LARGEST_MANIFEST, Manifest
from rankcast.delivery.repository import Repository, Signing
from rankcast.delivery.signing import LIFETIMES, rotate
from rankcast.delivery.trust import (
    LARGEST_ROOT,
    LARGEST_TIMESTAMP,
    TufSource,
    fetch_blob,
    trust_root,
)
from rankcast.errors import DeliveryError, TrustError
from release_data import BASE, DAY, NOW, Counting, Publisher, device, publisher


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def made(tmp_path: Path) -> Publisher:
    found = publisher(tmp_path)
    found.publish(0)
    return found


@pytest.fixture
def phone(made: Publisher, tmp_path: Path) -> TufSource:
    """Return a device that has seen version 1."""
    source = device(made, tmp_path / "device")
    assert source.manifest("sst2").version == 1
    return source


def in_force(made: Publisher, change: Callable[[Repository], object]) -> None:
    """Sign what the thief of all online keys wants signed."""
    repository = Repository.load(made.store)
    change(repository)
    signers = {role: made.keys.signers(repository.root.signed, role) for role in ROLES[1:]}
    repository.write(made.store, Signing(signers, NOW, LIFETIMES))


def sign_manifest(made: Publisher, data: bytes, length: int | None = None) -> None:
    def change(repository: Repository) -> None:
        target = TargetFile.from_data("adapters/sst2.json", data, ["sha256"])
        file = made.store.targets / target.get_prefixed_paths()[0]
        file.write_bytes(data)
        target.length = length or target.length
        repository.targets.signed.targets["adapters/sst2.json"] = target

    in_force(made, change)


def test_a_refresh_without_news_asks_for_two_files(made: Publisher, phone: TufSource) -> None:
    counting = Counting(made.store.root)
    assert replace(phone, fetcher=counting).manifest("sst2").version == 1
    assert counting.files == ["2.root.json", "timestamp.json"]
    assert counting.n_bytes == (made.store.metadata / "timestamp.json").stat().st_size < 512


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("metadata/timestamp.json", "wrong signature"),
        ("metadata/2.snapshot.json", "tampered"),
        ("metadata/2.targets.json", "tampered"),
        ("targets/adapters/*.json", "tampered"),
    ],
)
def test_tampered_files(pattern: str, words: str, made: Publisher, tmp_path: Path) -> None:
    path = next(made.store.root.glob(pattern))
    path.write_bytes(path.read_bytes().replace(b"2030", b"2039").replace(b"tiny", b"tinx"))
    with pytest.raises(TrustError, match=words):
        device(made, tmp_path / "new").manifest("sst2")
    path.write_bytes(b"{")
    with pytest.raises(TrustError, match="tampered"):
        device(made, tmp_path / "new").manifest("sst2")


def test_tampered_blobs(made: Publisher) -> None:
    blob = made.publish(0).blobs[1]
    path = made.store.blob_path(blob.sha256)
    data = path.read_bytes()
    fetcher, url = FolderFetcher(made.store.root), (made.store.root / "blobs").as_uri()
    assert fetch_blob(fetcher, url, blob) == data
    for changed, words in (
        (bytes([data[0] ^ 1]) + data[1:], "tampered"),
        (data[:-1], "tampered"),
        (data + b"\0", "longer than it may be"),
    ):
        path.write_bytes(changed)
        with pytest.raises(TrustError, match=words):
            fetch_blob(fetcher, url, blob)
    path.unlink()
    with pytest.raises(DeliveryError, match="does not have"):
        fetch_blob(fetcher, url, blob)
    with pytest.raises(DeliveryError, match="64 hexadecimal"):
        fetch_blob(fetcher, url, replace(blob, sha256="../../keys"))


def test_rollback_of_the_timestamp(made: Publisher, phone: TufSource) -> None:
    stamp = made.store.metadata / "timestamp.json"
    old = stamp.read_bytes()
    made.publish(1)
    assert phone.manifest("sst2").version == 2
    stamp.write_bytes(old)
    with pytest.raises(TrustError, match=r"timestamp\.json .*rollback"):
        phone.manifest("sst2")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_rollback_with_stolen_online_keys(role: str, made: Publisher, phone: TufSource) -> None:
    before = Repository.load(made.store)
    made.publish(1)
    assert phone.manifest("sst2").version == 2
    now = Repository.load(made.store)
    keys, signed = made.keys, now.root.signed
    if role == "snapshot":
        now.timestamp.signed.snapshot_meta = before.timestamp.signed.snapshot_meta
        signers = {"timestamp": keys.signers(signed, "timestamp")}
    else:
        now.snapshot.signed.meta = before.snapshot.signed.meta
        signers = {r: keys.signers(signed, r) for r in ("snapshot", "timestamp")}
    now.write(made.store, Signing(signers, NOW, LIFETIMES))
    with pytest.raises(TrustError, match="rollback"):
        phone.manifest("sst2")


def test_rollback_of_a_manifest_even_by_all_online_keys(made: Publisher, phone: TufSource) -> None:
    old = phone.manifest("sst2").to_bytes()
    made.publish(1)
    assert phone.manifest("sst2").version == 2
    sign_manifest(made, old)
    with pytest.raises(TrustError, match=r"Version 1 of sst2 is older than version 2.*rollback"):
        phone.manifest("sst2")
    rotate("targets", made.keys, made.store, NOW)  # a thief may have driven the count up
    assert phone.manifest("sst2").version == 1


def test_a_stolen_timestamp_key_cannot_lock_devices_out_for_ever(
    made: Publisher, phone: TufSource
) -> None:
    stamp = made.store.metadata / "timestamp.json"
    honest, repository = stamp.read_bytes(), Repository.load(made.store)
    repository.timestamp.signed.version = 10**9
    signers = {"timestamp": made.keys.signers(repository.root.signed, "timestamp")}
    repository.write(made.store, Signing(signers, NOW, LIFETIMES))
    assert phone.manifest("sst2").version == 1
    stamp.write_bytes(honest)
    with pytest.raises(TrustError, match="rollback"):
        phone.manifest("sst2")
    rotate("timestamp", made.keys, made.store, NOW)
    assert phone.manifest("sst2").version == 1


@pytest.mark.parametrize(
    ("later", "what"),
    [(timedelta(days=1), "timestamp"), (timedelta(days=366), "root")],
)
def test_freeze(later: timedelta, what: str, phone: TufSource) -> None:
    with pytest.raises(TrustError, match=rf"{what}.json is expired.*freeze"):
        replace(phone, now=lambda: NOW + later).manifest("sst2")


def test_freeze_of_what_is_behind_the_timestamp(made: Publisher, phone: TufSource) -> None:
    repository = Repository.load(made.store)
    signers = {"timestamp": made.keys.signers(repository.root.signed, "timestamp")}
    for later, what in ((7 * DAY, "snapshot"), (90 * DAY, "targets")):
        if what == "targets":
            signers["snapshot"] = made.keys.signers(repository.root.signed, "snapshot")
        repository = repository.write(made.store, Signing(signers, NOW + later, LIFETIMES))
        with pytest.raises(TrustError, match=rf"{what}.* is expired.*freeze"):
            replace(phone, now=lambda later=later: NOW + later).manifest("sst2")


class Endless(FetcherInterface):
    """Goes on for ever with one file."""

    def __init__(self, inner: FetcherInterface, file: str) -> None:
        self.inner, self.file, self.n_bytes = inner, file, 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not url.endswith(self.file):
            yield from self.inner.fetch(url)
            return
        while True:
            self.n_bytes += CHUNK
            yield b" " * CHUNK


@pytest.mark.parametrize(
    ("file", "most"),
    [
        ("2.root.json", LARGEST_ROOT),
        ("timestamp.json", LARGEST_TIMESTAMP),
        ("snapshot.json", 0),
        ("targets.json", 0),
        ("sst2.json", 0),
    ],
)
def test_endless_data(file: str, most: int, made: Publisher, tmp_path: Path) -> None:
    fetcher = Endless(FolderFetcher(made.store.root), file)
    with pytest.raises(TrustError, match=r"longer than it may be.*endless data"):
        device(made, tmp_path / "new", fetcher=fetcher).manifest("sst2")
    assert 0 < fetcher.n_bytes <= most + CHUNK


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match(role: str, made: Publisher, phone: TufSource) -> None:
    made.publish(1)
    shutil.copy(made.store.metadata / f"2.{role}.json", made.store.metadata / f"3.{role}.json")
    with pytest.raises(TrustError, match="mix-and-match"):
        phone.manifest("sst2")


@pytest.mark.parametrize("files", ["*.json", "timestamp.json", "2.root.json"])
def test_wrong_keys(files: str, made: Publisher, phone: TufSource, tmp_path: Path) -> None:
    stranger = publisher(tmp_path / "stranger")
    stranger.publish(1)
    rotate("root", stranger.keys, stranger.store, NOW)
    for path in stranger.store.metadata.glob(files):
        shutil.copy(path, made.store.metadata)
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")


def test_nothing_signed_at_all(made: Publisher, phone: TufSource) -> None:
    stamp = made.store.metadata / "timestamp.json"
    raw = json.loads(stamp.read_bytes())
    stamp.write_text(json.dumps({**raw, "signatures": []}))
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")
    stamp.unlink()
    with pytest.raises(DeliveryError, match=r"does not have timestamp\.json") as refused:
        phone.manifest("sst2")
    assert not isinstance(refused.value, TrustError)


def test_another_base_model(made: Publisher, phone: TufSource) -> None:
    assert phone.expect_base(BASE).manifest("sst2").version == 1
    with pytest.raises(TrustError, match="another base model"):
        phone.expect_base("1" * 64).manifest("sst2")
    with pytest.raises(DeliveryError, match="64 hexadecimal"):
        phone.expect_base("tiny")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc/passwd", "a\0b", "SST2", ""])
def test_names_that_could_be_paths(name: str, made: Publisher, phone: TufSource) -> None:
    counting = Counting(made.store.root)
    with pytest.raises(DeliveryError, match="adapter's name"):
        replace(phone, fetcher=counting).manifest(name)
    assert counting.files == []


def test_a_folder_gives_nothing_outside_it(made: Publisher, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    fetcher = FolderFetcher(made.store.root)
    for url in (
        (tmp_path / "secret").as_uri(),
        f"{made.store.root.as_uri()}/../secret",
        f"{made.store.root.as_uri()}/%2e%2e/secret",
        "https://example.org/secret",
    ):
        with pytest.raises(DownloadError, match="outside"):
            fetcher.download_bytes(url, 100)
    with pytest.raises(DownloadError):
        fetcher.download_bytes(made.store.root.as_uri(), 100)


def test_oversized_manifests_are_not_even_fetched(made: Publisher, phone: TufSource) -> None:
    sign_manifest(made, b"{}", length=LARGEST_MANIFEST + 1)
    counting = Counting(made.store.root)
    with pytest.raises(TrustError, match=r"more than the 1,048,576 .* not fetched"):
        replace(phone, fetcher=counting).manifest("sst2")
    assert not any(file.endswith("sst2.json") for file in counting.files)


def test_manifests_of_another_adapter_or_of_none(made: Publisher, phone: TufSource) -> None:
    sign_manifest(made, replace(phone.manifest("sst2"), name="other").to_bytes())
    with pytest.raises(TrustError, match="swapped"):
        phone.manifest("sst2")
    sign_manifest(made, b"[]")
    with pytest.raises(DeliveryError, match="No manifest"):
        phone.manifest("sst2")
    with pytest.raises(DeliveryError, match="no adapter 'other'"):
        phone.manifest("other")


def test_the_root_is_pinned_once_and_never_fetched_first(made: Publisher, tmp_path: Path) -> None:
    root, state = made.root_file, tmp_path / "new"
    source = replace(device(made, tmp_path / "any"), state_dir=state)
    with pytest.raises(TrustError, match="no trusted root"):
        source.manifest("sst2")
    stranger = publisher(tmp_path / "stranger").root_file
    for data, sha256, words in (
        (root, "0" * 64, "was expected"),
        (b"{", None, "no root"),
        (b" " * (LARGEST_ROOT + 1), None, "too long"),
        ((made.store.metadata / "timestamp.json").read_bytes(), None, "timestamp.json"),
        (root.replace(b"2031", b"2039"), None, "no root signed by its own keys"),
    ):
        with pytest.raises(TrustError, match=words):
            trust_root(state, data, sha256)
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match="cannot be written"):
        trust_root(tmp_path / "file" / "state", root)
    digest = trust_root(state, root)
    assert trust_root(state, root, digest.upper()) == digest
    with pytest.raises(TrustError, match="another root already"):
        trust_root(state, stranger)
    assert source.manifest("sst2").version == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DownloadError("no route to host"), "could not be fetched"),
        (SlowRetrievalError("30 s"), "fell silent"),
        (DownloadHTTPError("503", 503), "cannot answer"),
        (ConnectionResetError(), "could not be fetched"),
    ],
)
def test_a_bad_network_is_no_attack(error: Exception, words: str, phone: TufSource) -> None:
    class Broken(FetcherInterface):
        def _fetch(self, url: str) -> Any:
            raise error

    with pytest.raises(DeliveryError, match=words) as refused:
        replace(phone, fetcher=Broken()).manifest("sst2")
    assert not isinstance(refused.value, TrustError)


def test_damage_on_the_device_heals_or_is_named(made: Publisher, phone: TufSource) -> None:
    for path in phone.state_dir.rglob("*.json"):
        if path.name in ("timestamp.json", "snapshot.json", "targets.json", "sst2.json"):
            path.write_bytes(b"{")
    assert phone.manifest("sst2").version == 1
    (phone.state_dir / "seen.json").write_text("{}")
    with pytest.raises(TrustError, match=r"seen\.json is damaged"):
        phone.manifest("sst2")
    (phone.state_dir / "trusted-root.json").write_bytes(b"{")
    with pytest.raises(TrustError, match="the pinned root"):
        phone.manifest("sst2")


def test_the_manifest_that_is_returned_is_the_one_that_was_signed(
    made: Publisher, phone: TufSource
) -> None:
    file = next((made.store.targets / "adapters").iterdir())
    assert phone.manifest("sst2") == Manifest.from_bytes(file.read_bytes())
