from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import lay_out, put_release, store_with
from rankcast.errors import DeliveryError
from rankcast.release.store import Releases, Store, read_releases


def versions(releases: Releases) -> dict[str, int]:
    return {name: found.manifest.version for name, found in releases.current().items()}


def test_a_new_timestamp_brings_the_new_release(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    releases = Releases(store)
    assert versions(releases) == {"sst2": 1}
    assert releases.current() is releases.current()
    lay_out(store, [put_release(store, version=2), put_release(store, "mnli")], version=2)
    assert versions(releases) == {"mnli": 1, "sst2": 2}


def test_targets_json_without_consistent_snapshots_is_read(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    (store.metadata / "1.targets.json").rename(store.metadata / "targets.json")
    (store.metadata / "timestamp.json").unlink()
    assert versions(Releases(store)) == {"sst2": 1}


def test_an_unchanged_manifest_is_not_read_again(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    known = read_releases(store, {})
    lay_out(store, [known["sst2"].manifest, put_release(store, "mnli")], version=2)
    assert read_releases(store, known)["sst2"] is known["sst2"]


@pytest.mark.parametrize("missing", ["2.targets.json", "manifest", "garbage"])
def test_the_old_release_stays_while_the_new_one_is_incomplete(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path)
    releases = Releases(store)
    assert versions(releases) == {"sst2": 1}
    lay_out(store, [put_release(store, version=2)], version=2)
    path = store.metadata / "2.targets.json"
    if missing == "manifest":
        (path,) = [
            p for p in (store.targets / "adapters").iterdir() if b'"version":2' in p.read_bytes()
        ]
    data = path.read_bytes()
    path.write_bytes(b"{") if missing == "garbage" else path.unlink()
    assert versions(releases) == {"sst2": 1}
    path.write_bytes(data)
    assert versions(releases) == {"sst2": 1}  # not tried again at once
    monkeypatch.setattr("rankcast.release.store.time.monotonic", lambda: 1e12)
    assert versions(releases) == {"sst2": 2}


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match=r"lacks targets.json .* publish an adapter"):
        Releases(Store(tmp_path)).current()


def spoil(path: Path, change: Any) -> None:
    raw = json.loads(path.read_bytes())
    change(raw["signed"])
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1.targets.json", lambda x: x.pop("targets"), "lists no targets"),
        ("1.targets.json", lambda x: x["targets"]["adapters/sst2.json"].pop("hashes"), "lack"),
        ("1.targets.json", lambda x: x["targets"]["adapters/sst2.json"].update(length=3), "not wh"),
        ("timestamp.json", lambda x: x["meta"]["snapshot.json"].update(version="../1"), "whole"),
        ("timestamp.json", lambda x: x["meta"].clear(), "no version of snapshot"),
        (
            "1.targets.json",
            lambda x: x["targets"].update(
                {"adapters/../x.json": {"hashes": {"sha256": "0" * 64}, "length": 1}}
            ),
            "name has lower-case",
        ),
    ],
)
def test_damaged_metadata_are_refused_in_words(
    tmp_path: Path, file: str, change: Any, message: str
) -> None:
    store = store_with(tmp_path)
    spoil(store.metadata / file, change)
    with pytest.raises(DeliveryError, match=message):
        read_releases(store, {})


def test_a_manifest_has_the_name_of_its_target(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    (path,) = (store.targets / "adapters").iterdir()
    path.rename(path.with_name(path.name.replace("sst2", "mnli")))
    spoil(
        store.metadata / "1.targets.json",
        lambda x: x["targets"].update(
            {"adapters/mnli.json": x["targets"].pop("adapters/sst2.json")}
        ),
    )
    with pytest.raises(DeliveryError, match="calls itself 'sst2'"):
        read_releases(store, {})
