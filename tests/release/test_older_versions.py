"""A release lists the versions that devices may go back to, and the publisher can withdraw one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.releases import NOW, Publisher, container, device, new_publisher
from rankcast.errors import DeliveryError
from rankcast.release.manifest import MOST_OLDER, Blob, Manifest, Older
from rankcast.release.publish import KEPT_OLDER, publish

BLOB = Blob("ab" * 32, 100)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return new_publisher(tmp_path)


def test_a_release_lists_those_before_it_as_they_can_be_fetched(
    publisher: Publisher, tmp_path: Path
) -> None:
    releases = [publisher.publish(seed) for seed in range(KEPT_OLDER + 2)]
    newest = device(publisher, tmp_path / "device").manifest("sst2")
    assert newest == releases[-1]
    assert [older.version for older in newest.older] == [5, 4, 3, 2]
    for older in newest.older:
        listed = Manifest.from_bytes(publisher.store.get(older.blob))
        release = releases[older.version - 1]
        assert listed == replace(release.without_updates(), older=())
        for blob in listed.blobs:
            publisher.store.get(blob)


def test_publishing_the_same_again_keeps_the_list_and_may_shorten_it(
    publisher: Publisher, tmp_path: Path
) -> None:
    phone = device(publisher, tmp_path / "device")
    for seed in range(3):
        newest = publisher.publish(seed)
    assert phone.manifest("sst2") == newest
    assert publisher.publish(2) == newest

    def withdraw(*older: int) -> Manifest:
        return publish([container(2)], "sst2", publisher.store, publisher.keys, NOW, older=older)

    shorter = withdraw(1)
    assert (shorter.version, [older.version for older in shorter.older]) == (3, [1])
    assert phone.manifest("sst2") == shorter  # the same version, and no other release under it
    assert withdraw(2, 1) == shorter  # what was withdrawn does not come back by itself
    assert withdraw().older == ()


def test_the_list_is_passed_over_by_programs_that_do_not_know_it(publisher: Publisher) -> None:
    publisher.publish(0)
    newest = publisher.publish(1)
    raw = json.loads(newest.to_bytes())
    assert set(raw["older"][0]) == {"version", "sha256", "n_bytes"}
    del raw["older"]
    assert Manifest.from_bytes(json.dumps(raw).encode()) == replace(newest, older=())


@pytest.mark.parametrize(
    ("older", "words"),
    [
        ((Older(2, BLOB),), "older versions from the newest on"),
        ((Older(0, BLOB),), "older versions from the newest on"),
        ((Older(1, BLOB), Older(1, BLOB)), "older versions from the newest on"),
        ((Older(1, Blob("ab", 100)),), "64 hexadecimal digits"),
        ((Older(1, Blob("ab" * 32, 2**20 + 1)),), "No manifest has"),
        ((Older("1", BLOB),), "A version is a whole number"),  # pyright: ignore[reportArgumentType]
        (tuple(Older(1, BLOB) for _ in range(MOST_OLDER + 1)), "at most 64 older versions"),
    ],
)
def test_lists_that_nobody_could_use_are_refused(
    publisher: Publisher, older: tuple[Older, ...], words: str
) -> None:
    publisher.publish(0)
    second = replace(publisher.publish(1), older=())
    with pytest.raises(DeliveryError, match=words):
        replace(second, older=older)
