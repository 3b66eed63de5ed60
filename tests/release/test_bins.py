"""A list of releases in bins: what a device fetches, and the attacks of `test_trust` on bins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, SuccinctRoles, TargetFile, Targets
from tuf.ngclient import FetcherInterface

from helpers.releases import (
    DAY,
    NOW,
    Counting,
    FolderFetcher,
    Publisher,
    container,
    crashed,
    device,
    new_publisher,
)
from rankcast.errors import DeliveryError, TrustError
from rankcast.release import bins
from rankcast.release.bins import Divide, wanted_bits
from rankcast.release.ceremony import LIFETIMES, refresh_timestamp, rotate, status
from rankcast.release.http import CHUNK
from rankcast.release.keys import ROLES, KeyFolder, Role
from rankcast.release.manifest import Manifest
from rankcast.release.publish import publish
from rankcast.release.repository import Repository, Signers, Signing, versions_of
from rankcast.release.store import Store, read_releases, target_path
from rankcast.release.verify import TufSource

OTHER = "mnli"
OWN_BIN = SuccinctRoles([], 1, 5, "bin").get_role_for_target(target_path("sst2"))


def divided(
    publisher: Publisher, seed: int = 0, name: str = "sst2", divide: Divide = "always"
) -> Manifest:
    return publish([container(seed)], name, publisher.store, publisher.keys, NOW, divide=divide)


@pytest.fixture
def publisher(publisher: Publisher) -> Publisher:
    """Return a publisher of version 1 of two adapters, in bins."""
    divided(publisher)
    divided(publisher, name=OTHER)
    return publisher


@pytest.fixture
def phone(publisher: Publisher, tmp_path: Path) -> TufSource:
    """Return a device that has seen version 1."""
    source = device(publisher, tmp_path / "device")
    assert source.manifest("sst2").version == 1
    return source


def signers(publisher: Publisher, *roles: Role) -> Signers:
    root = Repository.load(publisher.store).root.signed
    return {role: publisher.keys.signers(root, role) for role in roles}


def sign(
    publisher: Publisher, change: Callable[[Repository], Repository | None], **signing: Any
) -> None:
    """Sign what the thief of all online keys wants signed."""
    repository = Repository.load(publisher.store)
    repository = change(repository) or repository
    stolen = signers(publisher, *ROLES[1:])
    repository.write(publisher.store, replace(Signing(stolen, NOW, LIFETIMES), **signing))


def bin_file(publisher: Publisher, name: str = OWN_BIN) -> Path:
    return publisher.store.metadata / f"{versions_of(publisher.store, name)[-1]}.{name}.json"


@pytest.mark.parametrize(
    ("n_adapters", "now", "divide", "bits"),
    [
        (1, 0, "auto", 0),
        (32, 0, "auto", 0),
        (33, 0, "auto", 5),
        (33, 0, "never", 0),
        (1, 0, "always", 5),
        (32 * 256, 5, "auto", 5),
        (32 * 256 + 1, 5, "auto", 6),
        (128 * 256 + 1, 5, "never", 8),  # divided already, so it grows
        (10**6, 0, "auto", 8),
        (10, 7, "auto", 7),
    ],
)
def test_how_many_bins(n_adapters: int, now: int, divide: Divide, bits: int) -> None:
    assert wanted_bits(n_adapters, now, divide) == bits


def test_a_store_of_few_adapters_stays_whole_and_one_of_many_is_divided(tmp_path: Path) -> None:
    made, phone = new_publisher(tmp_path), tmp_path / "device"
    names = [f"a-{n}" for n in range(33)]
    for name in names[:-1]:
        made.publish(name=name)
    assert not list(made.store.metadata.glob("*bin*"))
    source = device(made, phone)
    before = source.manifest("a-7")
    made.publish(name=names[-1])
    assert not Repository.load(made.store).targets.signed.targets
    assert len(list(made.store.metadata.glob("1.bin-*.json"))) == 32
    assert source.manifest("a-7") == before
    assert sorted(read_releases(made.store, {})) == sorted(names)
    made.publish(1, name="a-7")
    assert source.manifest("a-7").version == 2
    with pytest.raises(DeliveryError, match="has no adapter 'a-99'"):
        source.manifest("a-99")


def test_what_a_device_fetches(publisher: Publisher, tmp_path: Path) -> None:
    counting = Counting()
    source = device(publisher, tmp_path / "new", fetcher=counting)

    def asked() -> list[str]:
        counting.files.clear()
        source.manifest("sst2")
        return [file for file in counting.files if not file.endswith("root.json")]

    first = asked()
    assert first[:3] == ["timestamp.json", "3.snapshot.json", "2.targets.json"]
    assert [first[3], first[4][-10:]] == [f"1.{OWN_BIN}.json", ".sst2.json"]
    assert asked() == ["timestamp.json"]
    divided(publisher, 1, OTHER)
    assert asked() == ["timestamp.json", "4.snapshot.json"]
    divided(publisher, 1)
    again = asked()
    assert again[:3] == ["timestamp.json", "5.snapshot.json", f"2.{OWN_BIN}.json"]
    assert [file[-10:] for file in again[3:]] == [".sst2.json"]


def test_publishing_the_same_again_divides_and_is_no_new_release(tmp_path: Path) -> None:
    made = new_publisher(tmp_path)
    manifest = made.publish()
    source = device(made, tmp_path / "device")
    source.manifest("sst2")
    assert divided(made) == manifest
    assert len(Repository.load(made.store).bins) == 32
    assert source.manifest("sst2") == manifest
    assert divided(made, divide="never") == manifest
    assert len(Repository.load(made.store).bins) == 32


def test_bins_grow(publisher: Publisher, phone: TufSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bins, "MOST_IN_A_BIN", 1 / 16)
    divided(publisher, 0, "third")  # 3 adapters in 32 bins of a sixteenth: 64
    after = Repository.load(publisher.store)
    assert len(after.bins) == 64
    assert after.bins["bin-00"].signed.version == 2
    assert phone.manifest("sst2").version == 1
    divided(publisher, 1)
    assert phone.manifest("sst2").version == 2
    assert set(read_releases(publisher.store, {})) == {"sst2", OTHER, "third"}


def test_a_bin_that_was_tampered_with(publisher: Publisher, tmp_path: Path) -> None:
    path = bin_file(publisher)
    path.write_bytes(path.read_bytes().replace(b"2030", b"2039"))
    with pytest.raises(TrustError, match="tampered"):
        device(publisher, tmp_path / "new").manifest("sst2")
    with pytest.raises(TrustError, match="without the keys"):
        Repository.load(publisher.store)


def test_mix_and_match_of_bins(publisher: Publisher, phone: TufSource) -> None:
    old = bin_file(publisher)
    divided(publisher, 1)
    shutil.copy(old, bin_file(publisher))
    with pytest.raises(TrustError, match=r"bin-.*mix-and-match"):
        phone.manifest("sst2")


def test_rollback_of_a_bin_with_stolen_online_keys(publisher: Publisher, phone: TufSource) -> None:
    before = Repository.load(publisher.store)
    divided(publisher, 1)
    assert phone.manifest("sst2").version == 2
    now = Repository.load(publisher.store)
    now.snapshot.signed.meta = before.snapshot.signed.meta
    stolen = signers(publisher, "snapshot", "timestamp")
    now.write(publisher.store, Signing(stolen, NOW, LIFETIMES))
    with pytest.raises(TrustError, match="rollback"):
        phone.manifest("sst2")


def test_a_bin_that_disappears_from_the_snapshot(publisher: Publisher, phone: TufSource) -> None:
    now = Repository.load(publisher.store)
    del now.snapshot.signed.meta[f"{OWN_BIN}.json"]
    stolen = signers(publisher, "snapshot", "timestamp")
    now.write(publisher.store, Signing(stolen, NOW, LIFETIMES))
    with pytest.raises(TrustError, match="missing info"):
        phone.manifest("sst2")
    with pytest.raises(TrustError, match="without the keys"):
        Repository.load(publisher.store)


def test_rollback_of_a_manifest_even_by_all_online_keys(
    publisher: Publisher, phone: TufSource
) -> None:
    entry = Repository.load(publisher.store).target(target_path("sst2"))
    assert entry is not None
    divided(publisher, 1)
    assert phone.manifest("sst2").version == 2
    sign(publisher, lambda repository: repository.with_targets({entry.path: entry}))
    with pytest.raises(TrustError, match=r"Version 1 of sst2 is older than version 2.*rollback"):
        phone.manifest("sst2")


def test_an_adapter_counts_in_its_own_bin_alone(publisher: Publisher, phone: TufSource) -> None:
    def misplace(repository: Repository) -> None:
        path = target_path("sst2")
        entry = repository.bins[OWN_BIN].signed.targets.pop(path)
        other = next(name for name in repository.bins if name != OWN_BIN)
        repository.bins[other].signed.targets[path] = entry

    sign(publisher, misplace)
    with pytest.raises(DeliveryError, match="has no adapter 'sst2'"):
        phone.manifest("sst2")


def test_freeze_of_a_bin(publisher: Publisher, phone: TufSource) -> None:
    """The list of bins is signed for longer than the bins: a device refuses an old bin."""
    sign(publisher, lambda repository: None, lifetimes=replace(LIFETIMES, targets=DAY))

    def renew_the_list(repository: Repository) -> None:
        repository.targets.signatures.clear()

    longer = replace(LIFETIMES, targets=1.5 * DAY, timestamp=7 * DAY)
    sign(publisher, renew_the_list, lifetimes=longer, renew=False)
    assert [role.expires for role in status(publisher.keys, publisher.store)][1] == NOW + DAY
    with pytest.raises(TrustError, match=rf"{OWN_BIN}.* is expired.*freeze"):
        replace(phone, now=lambda: NOW + 1.25 * DAY).manifest("sst2")
    assert replace(phone, now=lambda: NOW + 0.75 * DAY).manifest("sst2").version == 1


class Endless(FetcherInterface):
    """Goes on without end with the bin of sst2."""

    n_bytes = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        if not url.endswith(f"{OWN_BIN}.json"):
            yield from FolderFetcher().fetch(url)
            return
        while True:
            self.n_bytes += CHUNK
            yield b" " * CHUNK


def test_a_bin_without_end(publisher: Publisher, tmp_path: Path) -> None:
    fetcher = Endless()
    with pytest.raises(TrustError, match=r"longer than it may be.*endless data"):
        device(publisher, tmp_path / "new", fetcher=fetcher).manifest("sst2")
    assert 0 < fetcher.n_bytes <= CHUNK


def test_a_bin_by_a_stranger(publisher: Publisher, phone: TufSource, tmp_path: Path) -> None:
    """Named by the right snapshot, as a thief of the keys of snapshot and timestamp could do."""
    stranger = new_publisher(tmp_path / "stranger")

    def replaced(repository: Repository) -> None:
        keys = stranger.keys.signers(Repository.load(stranger.store).root.signed, "targets")
        signed = Targets(version=3, expires=NOW + DAY)
        forged = Metadata(signed)
        forged.sign(keys[0])
        data = forged.to_bytes()
        (publisher.store.metadata / f"3.{OWN_BIN}.json").write_bytes(data)
        meta = repository.snapshot.signed.meta[f"{OWN_BIN}.json"]
        meta.version, meta.length = 3, len(data)
        meta.hashes = TargetFile.from_data("x", data, ["sha256"]).hashes

    repository = Repository.load(publisher.store)
    stolen = signers(publisher, "snapshot", "timestamp")
    replaced(repository)
    repository.write(publisher.store, Signing(stolen, NOW, LIFETIMES))
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")
    with pytest.raises(TrustError, match="without the keys"):
        Repository.load(publisher.store)


def test_other_delegations_are_not_ours(publisher: Publisher) -> None:
    repository = Repository.load(publisher.store)
    assert repository.targets.signed.delegations is not None
    repository.targets.signed.delegations.succinct_roles = SuccinctRoles([], 1, 2, "bin")
    with pytest.raises(ValueError, match="delegates in a way"):
        repository.with_targets({})


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_rotation_takes_the_bins_along(
    is_lost: bool, publisher: Publisher, phone: TufSource
) -> None:
    old = Repository.load(publisher.store)
    thief = signers(publisher, *ROLES[1:])
    if is_lost:
        next(p for p in publisher.keys.files() if p.name.startswith("targets")).unlink()
    added = rotate("targets", publisher.keys, publisher.store, NOW)
    now = Repository.load(publisher.store)
    assert now.targets.signed.delegations is not None
    assert list(now.targets.signed.delegations.keys) == [added]
    assert {key for each in now.bins.values() for key in each.signatures} == {added}
    assert phone.manifest("sst2").version == 1
    divided(publisher, 1)
    assert phone.manifest("sst2").version == 2
    now = Repository.load(publisher.store)
    now.targets.signed.delegations = old.targets.signed.delegations
    now.write(publisher.store, Signing(thief, NOW, LIFETIMES), old.root.signed)
    with pytest.raises(TrustError, match="wrong signature"):
        phone.manifest("sst2")


def test_bins_that_nobody_publishes_are_signed_anew_in_time(
    publisher: Publisher, tmp_path: Path
) -> None:
    later, far = NOW + 50 * DAY, NOW + 100 * DAY
    publisher.publish(1, now=NOW + 40 * DAY)
    assert versions_of(publisher.store, "bin-00") == [1]
    publisher.publish(2, now=later)  # less than half of the 90 days is left
    assert versions_of(publisher.store, "bin-00") == [1, 2]
    assert versions_of(publisher.store, "targets")[-1] == 3
    refresh_timestamp(publisher.keys, publisher.store, far)
    assert device(publisher, tmp_path / "late", far).manifest(OTHER).version == 1
    refresh_timestamp(publisher.keys, publisher.store, far, targets=True)
    assert versions_of(publisher.store, "bin-00") == [1, 2, 3]


def test_a_crash_leaves_the_old_release_or_the_new_one(tmp_path: Path) -> None:
    """Division takes some hundred operations on files; a release afterwards about twenty."""
    origin = new_publisher(tmp_path / "origin")
    origin.publish(0)
    device(origin, tmp_path / "origin" / "device").manifest("sst2")
    divisions, dies_at = [], 1
    while True:
        here = tmp_path / f"at-{dies_at}"
        shutil.copytree(tmp_path / "origin", here, symlinks=True)
        made = Publisher(Store(here / "store"), KeyFolder(here / "keys"))
        if not crashed(lambda made=made: divided(made, 1), dies_at):
            break
        divisions.append(len(Repository.load(made.store).bins))
        version = device(made, here / "device").manifest("sst2").version
        assert version == (2 if divisions[-1] else 1)
        assert divided(made, 1).version == 2
        assert device(made, here / "device").manifest("sst2").version == 2
        shutil.rmtree(here)
        dies_at += 29
    assert len(divisions) > 3
    assert divisions == sorted(divisions)


def test_a_server_reads_bins(publisher: Publisher) -> None:
    known = read_releases(publisher.store, {})
    assert {name: x.manifest.version for name, x in known.items()} == {"sst2": 1, OTHER: 1}
    divided(publisher, 1)
    after = read_releases(publisher.store, known)
    assert after["sst2"].manifest.version == 2
    assert after[OTHER] is known[OTHER]
    bin_file(publisher).unlink()
    with pytest.raises(DeliveryError, match=rf"lacks 2.{OWN_BIN}.json"):
        read_releases(publisher.store, known)
