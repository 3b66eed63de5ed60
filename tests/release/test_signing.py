"""Keys: made, kept, replaced, lost; and what devices that were installed earlier make of it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from helpers.releases import DAY, HOUR, NOW, Publisher, crashed, device, new_publisher
from rankcast.errors import DeliveryError, TrustError
from rankcast.release.ceremony import (
    LIFETIMES,
    init_keys,
    refresh_timestamp,
    renew_root,
    root_sha256,
    rotate,
    status,
)
from rankcast.release.keys import ROLES, KeyFolder, Role
from rankcast.release.repository import Repository, Signing, versions_of, write_root
from rankcast.release.store import Store
from rankcast.release.verify import trust_root


def signed_by(publisher: Publisher, root_of: Repository, role: Role) -> None:
    """Make metadata active that the keys of an earlier root sign, as a thief of a key could."""
    now = Repository.load(publisher.store)
    changed = ROLES[max(1, ROLES.index(role)) :]
    signers = {
        r: publisher.keys.signers((root_of if r == role else now).root.signed, r) for r in changed
    }
    now.write(publisher.store, Signing(signers, NOW + HOUR, LIFETIMES))


def test_private_keys_are_the_owners_alone_and_outside_the_store(publisher: Publisher) -> None:
    files = publisher.keys.files()
    assert sorted(path.name.split("-")[0] for path in files) == sorted(ROLES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(publisher.keys.folder.stat().st_mode) == 0o700
    for path in publisher.store.root.rglob("*.json"):
        assert b"PRIVATE" not in path.read_bytes()
    names = {path.name for path in publisher.store.metadata.iterdir()}
    assert names == {
        "1.root.json", "root.json", "1.targets.json", "1.snapshot.json", "timestamp.json",
    }  # fmt: skip


def test_keys_are_not_made_twice_nor_in_the_store(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="signed metadata already"):
        init_keys(KeyFolder(tmp_path / "others"), publisher.store, NOW)
    with pytest.raises(DeliveryError, match="private keys already"):
        init_keys(publisher.keys, Store(tmp_path / "second"), NOW)
    with pytest.raises(DeliveryError, match="handed out"):
        init_keys(KeyFolder(tmp_path / "s" / "keys"), Store(tmp_path / "s"), NOW)
    with pytest.raises(DeliveryError, match="threshold"):
        init_keys(KeyFolder(tmp_path / "k"), Store(tmp_path / "s"), NOW, threshold=2)
    with pytest.raises(DeliveryError, match="zone"):
        init_keys(KeyFolder(tmp_path / "k"), Store(tmp_path / "s"), datetime(2030, 1, 1))  # noqa: DTZ001
    (tmp_path / "file").touch()
    with pytest.raises(DeliveryError, match="cannot be written"):
        init_keys(KeyFolder(tmp_path / "k"), Store(tmp_path / "file"), NOW)
    with pytest.raises(DeliveryError, match="cannot be written"):
        init_keys(KeyFolder(tmp_path / "file" / "k"), Store(tmp_path / "t"), NOW)


def test_encrypted_keys_need_their_passphrase(tmp_path: Path) -> None:
    locked = KeyFolder(tmp_path / "keys", passphrase=lambda path: b"open sesame")
    publisher = Publisher(Store(tmp_path / "store"), locked)
    init_keys(publisher.keys, publisher.store, NOW)
    assert all(b"ENCRYPTED" in path.read_bytes() for path in locked.files())
    assert publisher.publish(0).version == 1
    for keys, words in (
        (replace(locked, passphrase=lambda path: b"wrong"), "passphrase is wrong"),
        (KeyFolder(locked.folder), "--passphrase-env"),
    ):
        with pytest.raises(DeliveryError, match=words):
            replace(publisher, keys=keys).publish(1)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----", None])
def test_key_files_that_are_damaged_or_swapped(content: bytes | None, publisher: Publisher) -> None:
    files = {path.name.split("-")[0]: path for path in publisher.keys.files()}
    files["targets"].write_bytes(files["root"].read_bytes() if content is None else content)
    with pytest.raises(DeliveryError, match=r"another key|does not open"):
        publisher.publish(0)


@pytest.mark.parametrize("role", ROLES)
def test_a_device_follows_a_rotation_and_refuses_the_old_key(
    role: Role, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish(0)
    first, before = publisher.root_file, Repository.load(publisher.store)
    old = device(publisher, tmp_path / "old")
    old.manifest("sst2")
    added = rotate(role, publisher.keys, publisher.store, NOW)
    after = Repository.load(publisher.store).root.signed
    assert after.roles[role].keyids == [added]
    assert not {added} & set(before.root.signed.keys)
    assert old.manifest("sst2").version == 1
    publisher.publish(1)
    assert old.manifest("sst2").version == 2
    assert device(publisher, tmp_path / "late", root=first).manifest("sst2").version == 2

    if role == "root":
        thief = publisher.keys.signers(before.root.signed, "root")
        forged = Repository.load(publisher.store).root
        forged.signed.version += 1
        write_root(publisher.store, forged, thief)
    else:
        signed_by(publisher, before, role)
    with pytest.raises(TrustError, match="wrong signature"):
        old.manifest("sst2")


def test_a_lost_online_key_is_replaced_without_it(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish(0)
    old = device(publisher, tmp_path / "old")
    old.manifest("sst2")
    next(path for path in publisher.keys.files() if path.name.startswith("targets")).unlink()
    with pytest.raises(DeliveryError, match="Signing as targets needs 1"):
        publisher.publish(1)
    rotate("targets", publisher.keys, publisher.store, NOW)
    assert publisher.publish(1).version == 2
    assert old.manifest("sst2").version == 2


def test_two_of_three_root_keys(tmp_path: Path) -> None:
    publisher = new_publisher(tmp_path, n_root=3, threshold=2)
    publisher.publish(0)
    old = device(publisher, tmp_path / "old")
    lost, kept, third = (p for p in publisher.keys.files() if p.name.startswith("root"))
    away = tmp_path / "away"
    away.mkdir()
    lost.unlink()
    shutil.move(third, away)
    lost_id = lost.stem.removeprefix("root-")
    with pytest.raises(DeliveryError, match=r"Signing as root needs 2 .* and 1 are in"):
        rotate("timestamp", publisher.keys, publisher.store, NOW)
    with pytest.raises(DeliveryError, match="--replaced"):
        rotate("root", publisher.keys, publisher.store, NOW)
    both = replace(publisher.keys, more=(away,))
    rotate("timestamp", both, publisher.store, NOW)
    rotate("root", both, publisher.store, NOW, replaced=lost_id)
    assert old.manifest("sst2").version == 1
    root = status(both, publisher.store)[0]
    assert (root.version, root.threshold, len(root.keyids), len(root.held)) == (3, 2, 3, 3)
    assert not any(keyid.startswith(lost_id) for keyid in root.keyids)

    forged = Repository.load(publisher.store).root  # by the one key that was left at home
    held = publisher.keys.held(forged.signed, "root")
    signer = publisher.keys.signer(
        forged.signed, "root", next(k for k in held if k[:16] in kept.name)
    )
    forged.signed.version += 1
    write_root(publisher.store, forged, [signer])
    with pytest.raises(TrustError, match="wrong signature"):
        old.manifest("sst2")


def test_refresh_needs_only_the_online_keys_and_renews_the_snapshot_in_time(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish(0)
    online = KeyFolder(tmp_path / "online")
    online.folder.mkdir()
    for path in publisher.keys.files():
        if path.name.startswith(("timestamp", "snapshot")):
            shutil.copy(path, online.folder)
    phone = tmp_path / "device"
    assert versions_of(publisher.store, "snapshot") == [1, 2]
    for hours in range(12, 24 * 9, 12):
        now = NOW + hours * HOUR
        refresh_timestamp(online, publisher.store, now)
        assert device(publisher, phone, now).manifest("sst2").version == 1
    assert versions_of(publisher.store, "snapshot") == [1, 2, 3, 4]  # after 4 and after 8 days
    assert versions_of(publisher.store, "targets") == [1, 2]
    with pytest.raises(DeliveryError, match="Signing as targets"):
        refresh_timestamp(online, publisher.store, NOW, targets=True)
    refresh_timestamp(publisher.keys, publisher.store, NOW + 89 * DAY, targets=True)
    assert device(publisher, phone, NOW + 89.5 * DAY).manifest("sst2").version == 1


def test_the_root_is_renewed_before_and_after_it_expires(
    publisher: Publisher, tmp_path: Path
) -> None:
    publisher.publish(0)
    phone = tmp_path / "device"
    device(publisher, phone)
    pinned, later = root_sha256(publisher.store), NOW + 400 * DAY
    with pytest.raises(DeliveryError, match="--root"):
        refresh_timestamp(publisher.keys, publisher.store, later)
    assert renew_root(publisher.keys, publisher.store, later) == 2
    refresh_timestamp(publisher.keys, publisher.store, later, targets=True)
    assert device(publisher, phone, later).manifest("sst2").version == 1
    assert root_sha256(publisher.store) != pinned
    assert trust_root(phone, (publisher.store.metadata / "1.root.json").read_bytes()) == pinned


@pytest.mark.parametrize(
    "act",
    [
        lambda publisher: rotate("timestamp", publisher.keys, publisher.store, NOW),
        lambda publisher: refresh_timestamp(publisher.keys, publisher.store, NOW),
        lambda publisher: renew_root(publisher.keys, publisher.store, NOW),
    ],
)
def test_a_full_disk_is_reported_and_changes_nothing(
    act: Callable[[Publisher], object],
    publisher: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.publish(0)

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DeliveryError, match="still active"):
            act(publisher)
    assert device(publisher, tmp_path / "device").manifest("sst2").version == 1
    act(publisher)
    assert device(publisher, tmp_path / "device").manifest("sst2").version == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_crash_within_a_rotation_locks_no_device_out(role: Role, tmp_path: Path) -> None:
    origin = new_publisher(tmp_path / "origin")
    origin.publish(0)
    device(origin, tmp_path / "origin" / "device").manifest("sst2")
    versions, died = [], True
    while died:
        here = tmp_path / f"at-{len(versions) + 1}"
        shutil.copytree(tmp_path / "origin", here, symlinks=True)
        publisher = Publisher(Store(here / "store"), KeyFolder(here / "keys"))
        died = crashed(
            lambda publisher=publisher: rotate(role, publisher.keys, publisher.store, NOW),
            len(versions) + 1,
        )
        assert device(publisher, here / "device").manifest("sst2").version == 1
        versions.append(Repository.load(publisher.store).root.signed.version)
        assert publisher.publish(1).version == 2
        assert device(publisher, here / "device").manifest("sst2").version == 2
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
