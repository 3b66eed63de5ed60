"""Every attack that The Update Framework names, tried on a device, and refused by its name."""

from __future__ import annotations

import json
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

from helpers.releases import DAY, NOW, Counting, FolderFetcher, Publisher, device, new_publisher
from rankcast.errors import DeliveryError, TrustError
from rankcast.release.ceremony import LIFETIMES, rotate
from rankcast.release.http import CHUNK
from rankcast.release.keys import ROLES
from rankcast.release.manifest import LARGEST_MANIFEST, Manifest
from rankcast.release.repository import Repository, Signing
from rankcast.release.verify import (
    LARGEST_ROOT,
    LARGEST_TIMESTAMP,
    SeenReleases,
    TufSource,
    trust_root,
)


@pytest.fixture
def publisher(publisher: Publisher) -> Publisher:
    """Return a publisher of version 1."""
    publisher.publish(0)
    return publisher


@pytest.fixture
def phone(publisher: Publisher, tmp_path: Path) -> TufSource:
    """Return a device that has seen version 1."""
    source = device(publisher, tmp_path / "device")
    assert source.manifest("sst2").version == 1
    return source


def sign(publisher: Publisher, change: Callable[[Repository], object]) -> None:
    """Sign what the thief of all online keys wants signed."""
    repository = Repository.load(publisher.store)
    change(repository)
    signers = {role: publisher.keys.signers(repository.root.signed, role) for role in ROLES[1:]}
    repository.write(publisher.store, Signing(signers, NOW, LIFETIMES))


def sign_manifest(publisher: Publisher, data: bytes, length: int | None = None) -> None:
    def change(repository: Repository) -> None:
        target = TargetFile.from_data("adapters/sst2.json", data, ["sha256"])
        file = publisher.store.targets / target.get_prefixed_paths()[0]
        file.write_bytes(data)
        target.length = length or target.length
        repository.targets.signed.targets["adapters/sst2.json"] = target

    sign(publisher, change)


def test_a_refresh_without_news_asks_for_two_files(publisher: Publisher, phone: TufSource) -> None:
    counting = Counting()
    assert replace(phone, fetcher=counting).manifest("sst2").version == 1
    assert counting.files == ["2.root.json", "timestamp.json"]
    assert counting.n_bytes == (publisher.store.metadata / "timestamp.json").stat().st_size < 512


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("metadata/timestamp.json", "wrong signature"),
        ("metadata/2.snapshot.json", "tampered"),
        ("metadata/2.targets.json", "tampered"),
        ("targets/adapters/*.json", "tampered"),
    ],
)
def test_tampered_files(pattern: str, words: str, publisher: Publisher, tmp_path: Path) -> None:
    path = next(publisher.store.root.glob(pattern))
    path.write_bytes(path.read_bytes().replace(b"2030", b"2039").replace(b"tiny", b"tinx"))
    with pytest.raises(TrustError, match=words):
        device(publisher, tmp_path / "new").manifest("sst2")
    path.write_bytes(b"{")
    with pytest.raises(TrustError, match="tampered"):
        device(publisher, tmp_path / "new").manifest("sst2")


def test_rollback_of_the_timestamp(publisher: Publisher, phone: TufSource) -> None:
    stamp = publisher.store.metadata / "timestamp.json"
    old = stamp.read_bytes()
    publisher.publish(1)
    assert phone.manifest("sst2").version == 2
    stamp.write_bytes(old)
    with pytest.raises(TrustError, match=r"timestamp\.json .*rollback"):
        phone.manifest("sst2")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_rollback_with_stolen_online_keys(
    role: str, publisher: Publisher, phone: TufSource
) -> None:
    before = Repository.load(publisher.store)
    publisher.publish(1)
    assert phone.manifest("sst2").version == 2
    now = Repository.load(publisher.store)
    keys, signed = publisher.keys, now.root.signed
    if role == "snapshot":
        now.timestamp.signed.snapshot_meta = before.timestamp.signed.snapshot_meta
        signers = {"timestamp": keys.signers(signed, "timestamp")}
    else:
        now.snapshot.signed.meta = before.snapshot.signed.meta
        signers = {r: keys.signers(signed, r) for r in ("snapshot", "timestamp")}
    now.write(publisher.store, Signing(signers, NOW, LIFETIMES))
    with pytest.raises(TrustError, match="rollback"):
        phone.manifest("sst2")


def test_rollback_of_a_manifest_even_by_all_online_keys(
    publisher: Publisher, phone: TufSource
) -> None:
    old = phone.manifest("sst2").to_bytes()
    publisher.publish(1)
    assert phone.manifest("sst2").version == 2
    sign_manifest(publisher, old)
    with pytest.raises(TrustError, match=r"Version 1 of sst2 is older than version 2.*rollback"):
        phone.manifest("sst2")
    rotate("targets", publisher.keys, publisher.store, NOW)  # a thief may have driven the count up
    assert phone.manifest("sst2").version == 1


def test_a_version_is_never_another_release(publisher: Publisher, phone: TufSource) -> None:
    manifest = phone.manifest("sst2")
    sign_manifest(publisher, replace(manifest, task={"task_type": "CAUSAL_LM"}).to_bytes())
    with pytest.raises(TrustError, match="not the one that this device has seen"):
        phone.manifest("sst2")


def test_releases_seen_by_an_older_rankcast_are_remembered(
    publisher: Publisher, tmp_path: Path
) -> None:
    """Its file has no digests: the first release under a known version is taken."""
    file, manifest = tmp_path / "seen.json", publisher.publish(1)
    file.write_text(json.dumps({"keys": ["a"], "versions": {"sst2": 2, "other": 7}}))
    seen = SeenReleases(file)
    with pytest.raises(TrustError, match="older than version 2"):
        seen.check(replace(manifest, version=1, older=()), ["a"])
    seen.check(manifest, ["a"])
    with pytest.raises(TrustError, match="not the one"):
        seen.check(replace(manifest, task={}), ["a"])
    with pytest.raises(TrustError, match="older than version 7"):
        seen.check(replace(manifest, name="other"), ["a"])


def test_a_stolen_timestamp_key_cannot_lock_devices_out_forever(
    publisher: Publisher, phone: TufSource
) -> None:
    stamp = publisher.store.metadata / "timestamp.json"
    honest, repository = stamp.read_bytes(), Repository.load(publisher.store)
    repository.timestamp.signed.version = 10**9
    signers = {"timestamp": publisher.keys.signers(repository.root.signed, "timestamp")}
    repository.write(publisher.store, Signing(signers, NOW, LIFETIMES))
    assert phone.manifest("sst2").version == 1
    stamp.write_bytes(honest)
    with pytest.raises(TrustError, match="rollback"):
        phone.manifest("sst2")
    rotate("timestamp", publisher.keys, publisher.store, NOW)
    assert phone.manifest("sst2").version == 1


@pytest.mark.parametrize(
    ("later", "what"),
    [(timedelta(days=1), "timestamp"), (timedelta(days=366), "root")],
)
def test_freeze(later: timedelta, what: str, phone: TufSource) -> None:
    with pytest.raises(TrustError, match=rf"{what}.json is expired.*freeze"):
        replace(phone, now=lambda: NOW + later).manifest("sst2")


def test_freeze_of_what_is_behind_the_timestamp(publisher: Publisher, phone: TufSource) -> None:
    repository = Repository.load(publisher.store)
    signers = {"timestamp": publisher.keys.signers(repository.root.signed, "timestamp")}
    for later, what in ((7 * DAY, "snapshot"), (90 * DAY, "targets")):
        if what == "targets":
            signers["snapshot"] = publisher.keys.signers(repository.root.signed, "snapshot")
        repository = repository.write(publisher.store, Signing(signers, NOW + later, LIFETIMES))
        with pytest.raises(TrustError, match=rf"{what}.* is expired.*freeze"):
            replace(phone, now=lambda later=later: NOW + later).manifest("sst2")


class Endless(FetcherInterface):
    """Goes on without end with one file."""

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
def test_endless_data(file: str, most: int, publisher: Publisher, tmp_path: Path) -> None:
    fetcher = Endless(FolderFetcher(), file)
    with pytest.raises(TrustError, match=r"longer than it may be.*endless data"):
        device(publisher, tmp_path / "new", fetcher=fetcher).manifest("sst2")
    assert 0 < fetcher.n_bytes <= most + CHUNK


def test_what_a_killed_refresh_left_is_removed_by_the_next_one(phone: TufSource) -> None:
    phone.manifest("sst2")
    files = set((phone.state_dir / "metadata").iterdir())
    for n in range(3):
        (phone.state_dir / "metadata" / f"tmp{n}abcd_x").write_bytes(b"half")
    phone.manifest("sst2")
    assert set((phone.state_dir / "metadata").iterdir()) == files


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match(role: str, publisher: Publisher, phone: TufSource) -> None:
    publisher.publish(1)
    shutil.copy(
        publisher.store.metadata / f"2.{role}.json", publisher.store.metadata / f"3.{role}.json"
    )
    with pytest.raises(TrustError, match="mix-and-match"):
        phone.manifest("sst2")


@pytest.mark.parametrize("files", ["*.json", "timestamp.json", "2.root.json"])
def test_wrong_keys(files: str, publisher: Publisher, phone: TufSource, tmp_path: Path) -> None:
    stranger = new_publisher(tmp_path / "stranger")
    stranger.publish(1)
    rotate("root", stranger.keys, stranger.store, NOW)
    for path in stranger.store.metadata.glob(files):
        shutil.copy(path, publisher.store.metadata)
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")


def test_nothing_signed_at_all(publisher: Publisher, phone: TufSource) -> None:
    stamp = publisher.store.metadata / "timestamp.json"
    raw = json.loads(stamp.read_bytes())
    stamp.write_text(json.dumps({**raw, "signatures": []}))
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")
    stamp.unlink()
    with pytest.raises(DeliveryError, match=r"does not have timestamp\.json") as refused:
        phone.manifest("sst2")
    assert not isinstance(refused.value, TrustError)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc/passwd", "a\0b", "SST2", ""])
def test_names_that_could_be_paths(name: str, publisher: Publisher, phone: TufSource) -> None:
    counting = Counting()
    with pytest.raises(DeliveryError, match="adapter's name"):
        replace(phone, fetcher=counting).manifest(name)
    assert counting.files == []


def test_oversized_manifests_are_not_even_fetched(publisher: Publisher, phone: TufSource) -> None:
    sign_manifest(publisher, b"{}", length=LARGEST_MANIFEST + 1)
    counting = Counting()
    with pytest.raises(TrustError, match=r"more than the 1,048,576 .* not fetched"):
        replace(phone, fetcher=counting).manifest("sst2")
    assert not any(file.endswith("sst2.json") for file in counting.files)


def test_manifests_of_another_adapter_or_of_none(publisher: Publisher, phone: TufSource) -> None:
    sign_manifest(publisher, replace(phone.manifest("sst2"), name="other").to_bytes())
    with pytest.raises(TrustError, match="swapped"):
        phone.manifest("sst2")
    sign_manifest(publisher, b"[]")
    with pytest.raises(DeliveryError, match="No manifest"):
        phone.manifest("sst2")
    with pytest.raises(DeliveryError, match="no adapter 'other'"):
        phone.manifest("other")


def test_the_root_is_pinned_once_and_never_fetched_first(
    publisher: Publisher, tmp_path: Path
) -> None:
    root, state = publisher.root_file, tmp_path / "new"
    source = replace(device(publisher, tmp_path / "any"), state_dir=state)
    with pytest.raises(TrustError, match="no trusted root"):
        source.manifest("sst2")
    stranger = new_publisher(tmp_path / "stranger").root_file
    for data, sha256, words in (
        (root, "0" * 64, "was expected"),
        (b"{", None, "no root"),
        (b" " * (LARGEST_ROOT + 1), None, "too long"),
        ((publisher.store.metadata / "timestamp.json").read_bytes(), None, "timestamp.json"),
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


def test_damage_on_the_device_heals_or_is_named(publisher: Publisher, phone: TufSource) -> None:
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
    publisher: Publisher, phone: TufSource
) -> None:
    file = next((publisher.store.targets / "adapters").iterdir())
    assert phone.manifest("sst2") == Manifest.from_bytes(file.read_bytes())
