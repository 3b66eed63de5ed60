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

from rankcast.delivery.keyring import ROLES, KeyFolder, Role
from rankcast.delivery.repository import Repository, Signing, versions_of, write_root
from rankcast.delivery.role_status import root_sha256, status
from rankcast.delivery.signing import LIFETIMES, init_keys, refresh_timestamp, renew_root, rotate
from rankcast.delivery.store import Store
from rankcast.delivery.trust import trust_root
from rankcast.errors import DeliveryError, TrustError
from release_data import DAY, HOUR, NOW, Publisher, crashed, device, publisher


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def made(tmp_path: Path) -> Publisher:
    return publisher(tmp_path)


def signed_by(made: Publisher, root_of: Repository, role: Role) -> None:
    """Put metadata in force that the keys of an earlier root sign, as a thief of a key could."""
    now = Repository.load(made.store)
    changed = ROLES[max(1, ROLES.index(role)) :]
    signers = {
        r: made.keys.signers((root_of if r == role else now).root.signed, r) for r in changed
    }
    now.write(made.store, Signing(signers, NOW + HOUR, LIFETIMES))


def test_private_keys_are_the_owners_alone_and_outside_the_store(made: Publisher) -> None:
    files = made.keys.files()
    assert sorted(path.name.split("-")[0] for path in files) == sorted(ROLES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(made.keys.folder.stat().st_mode) == 0o700
    for path in made.store.root.rglob("*.json"):
        assert b"PRIVATE" not in path.read_bytes()
    names = {path.name for path in made.store.metadata.iterdir()}
    assert names == {
        "1.root.json", "root.json", "1.targets.json", "1.snapshot.json", "timestamp.json",
    }  # fmt: skip


def test_keys_are_not_made_twice_nor_in_the_store(made: Publisher, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="signed metadata already"):
        init_keys(KeyFolder(tmp_path / "others"), made.store, NOW)
    with pytest.raises(DeliveryError, match="private keys already"):
        init_keys(made.keys, Store(tmp_path / "second"), NOW)
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
    made = Publisher(Store(tmp_path / "store"), locked)
    init_keys(made.keys, made.store, NOW)
    assert all(b"ENCRYPTED" in path.read_bytes() for path in locked.files())
    assert made.publish(0).version == 1
    for keys, words in (
        (replace(locked, passphrase=lambda path: b"wrong"), "passphrase is wrong"),
        (KeyFolder(locked.folder), "--passphrase-env"),
    ):
        with pytest.raises(DeliveryError, match=words):
            replace(made, keys=keys).publish(1)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----", None])
def test_key_files_that_are_damaged_or_swapped(content: bytes | None, made: Publisher) -> None:
    files = {path.name.split("-")[0]: path for path in made.keys.files()}
    files["targets"].write_bytes(files["root"].read_bytes() if content is None else content)
    with pytest.raises(DeliveryError, match=r"another key|does not open"):
        made.publish(0)


@pytest.mark.parametrize("role", ROLES)
def test_a_device_follows_a_rotation_and_refuses_the_old_key(
    role: Role, made: Publisher, tmp_path: Path
) -> None:
    made.publish(0)
    first, before = made.root_file, Repository.load(made.store)
    old = device(made, tmp_path / "old")
    old.manifest("sst2")
    added = rotate(role, made.keys, made.store, NOW)
    after = Repository.load(made.store).root.signed
    assert after.roles[role].keyids == [added]
    assert not {added} & set(before.root.signed.keys)
    assert old.manifest("sst2").version == 1
    made.publish(1)
    assert old.manifest("sst2").version == 2
    assert device(made, tmp_path / "late", root=first).manifest("sst2").version == 2

    if role == "root":
        thief = made.keys.signers(before.root.signed, "root")
        forged = Repository.load(made.store).root
        forged.signed.version += 1
        write_root(made.store, forged, thief)
    else:
        signed_by(made, before, role)
    with pytest.raises(TrustError, match="wrong signature"):
        old.manifest("sst2")


def test_a_lost_online_key_is_replaced_without_it(made: Publisher, tmp_path: Path) -> None:
    made.publish(0)
    old = device(made, tmp_path / "old")
    old.manifest("sst2")
    next(path for path in made.keys.files() if path.name.startswith("targets")).unlink()
    with pytest.raises(DeliveryError, match="Signing as targets needs 1"):
        made.publish(1)
    rotate("targets", made.keys, made.store, NOW)
    assert made.publish(1).version == 2
    assert old.manifest("sst2").version == 2


def test_two_of_three_root_keys(tmp_path: Path) -> None:
    made = publisher(tmp_path, n_root=3, threshold=2)
    made.publish(0)
    old = device(made, tmp_path / "old")
    lost, kept, third = (p for p in made.keys.files() if p.name.startswith("root"))
    away = tmp_path / "away"
    away.mkdir()
    lost.unlink()
    shutil.move(third, away)
    lost_id = lost.stem.removeprefix("root-")
    with pytest.raises(DeliveryError, match=r"Signing as root needs 2 .* and 1 are in"):
        rotate("timestamp", made.keys, made.store, NOW)
    with pytest.raises(DeliveryError, match="--replaced"):
        rotate("root", made.keys, made.store, NOW)
    both = replace(made.keys, more=(away,))
    rotate("timestamp", both, made.store, NOW)
    rotate("root", both, made.store, NOW, replaced=lost_id)
    assert old.manifest("sst2").version == 1
    root = status(both, made.store)[0]
    assert (root.version, root.threshold, len(root.keyids), len(root.held)) == (3, 2, 3, 3)
    assert not any(keyid.startswith(lost_id) for keyid in root.keyids)

    forged = Repository.load(made.store).root  # by the one key that was left at home
    held = made.keys.held(forged.signed, "root")
    signer = made.keys.signer(forged.signed, "root", next(k for k in held if k[:16] in kept.name))
    forged.signed.version += 1
    write_root(made.store, forged, [signer])
    with pytest.raises(TrustError, match="wrong signature"):
        old.manifest("sst2")


def test_refresh_needs_only_the_online_keys_and_renews_the_snapshot_in_time(
    made: Publisher, tmp_path: Path
) -> None:
    made.publish(0)
    online = KeyFolder(tmp_path / "online")
    online.folder.mkdir()
    for path in made.keys.files():
        if path.name.startswith(("timestamp", "snapshot")):
            shutil.copy(path, online.folder)
    phone = tmp_path / "device"
    assert versions_of(made.store, "snapshot") == [1, 2]
    for hours in range(12, 24 * 9, 12):
        now = NOW + hours * HOUR
        refresh_timestamp(online, made.store, now)
        assert device(made, phone, now).manifest("sst2").version == 1
    assert versions_of(made.store, "snapshot") == [1, 2, 3, 4]  # after 4 and after 8 days
    assert versions_of(made.store, "targets") == [1, 2]
    with pytest.raises(DeliveryError, match="Signing as targets"):
        refresh_timestamp(online, made.store, NOW, targets=True)
    refresh_timestamp(made.keys, made.store, NOW + 89 * DAY, targets=True)
    assert device(made, phone, NOW + 89.5 * DAY).manifest("sst2").version == 1


def test_the_root_is_renewed_before_and_after_it_expires(made: Publisher, tmp_path: Path) -> None:
    made.publish(0)
    phone = tmp_path / "device"
    device(made, phone)
    pinned, later = root_sha256(made.store), NOW + 400 * DAY
    with pytest.raises(DeliveryError, match="--root"):
        refresh_timestamp(made.keys, made.store, later)
    assert renew_root(made.keys, made.store, later) == 2
    refresh_timestamp(made.keys, made.store, later, targets=True)
    assert device(made, phone, later).manifest("sst2").version == 1
    assert root_sha256(made.store) != pinned
    assert trust_root(phone, (made.store.metadata / "1.root.json").read_bytes()) == pinned


@pytest.mark.parametrize(
    "act",
    [
        lambda made: rotate("timestamp", made.keys, made.store, NOW),
        lambda made: refresh_timestamp(made.keys, made.store, NOW),
        lambda made: renew_root(made.keys, made.store, NOW),
    ],
)
def test_a_full_disk_is_said_and_changes_nothing(
    act: Callable[[Publisher], object],
    made: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made.publish(0)

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DeliveryError, match="still in force"):
            act(made)
    assert device(made, tmp_path / "device").manifest("sst2").version == 1
    act(made)
    assert device(made, tmp_path / "device").manifest("sst2").version == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_crash_within_a_rotation_locks_no_device_out(role: Role, tmp_path: Path) -> None:
    origin = publisher(tmp_path / "origin")
    origin.publish(0)
    device(origin, tmp_path / "origin" / "device").manifest("sst2")
    versions, died = [], True
    while died:
        here = tmp_path / f"at-{len(versions) + 1}"
        shutil.copytree(tmp_path / "origin", here, symlinks=True)
        made = Publisher(Store(here / "store"), KeyFolder(here / "keys"))
        died = crashed(
            lambda made=made: rotate(role, made.keys, made.store, NOW), len(versions) + 1
        )
        assert device(made, here / "device").manifest("sst2").version == 1
        versions.append(Repository.load(made.store).root.signed.version)
        assert made.publish(1).version == 2
        assert device(made, here / "device").manifest("sst2").version == 2
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
