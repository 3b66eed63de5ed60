"""Manifests are read back as written; damage gives a DeliveryError and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.codec.header import BaseModel
from rankcast.errors import DeliveryError
from rankcast.release.manifest import Blob, Choice, Chunk, File, Manifest, Update

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
blobs = st.builds(Blob, digests, st.integers(1, 2**30))
worths = st.none() | st.floats(allow_nan=False, allow_infinity=False)
chunks = st.builds(Chunk, blobs, worths, worths)
updates = st.builds(Update, digests.map(lambda digest: digest[:16]), blobs)
files = st.builds(
    File,
    blobs,
    st.lists(chunks, min_size=1, max_size=3).map(tuple),
    st.lists(updates, max_size=2).map(tuple),
)
odd = st.sampled_from([10**400, -(2**63), float("nan"), float("inf"), "..", "\ud800", ""])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | odd | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=5,
)
tasks = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.lists(st.integers()))
choices = st.builds(
    Choice, st.floats(1e-3, 1e12), st.floats(-50, 50), st.floats(1.0, 1e9), st.just(0)
)
by_whom = st.just(("solver", ())) | st.lists(choices, min_size=1, max_size=3).map(
    lambda found: ("policy", tuple(found))
)


def release(*parts: Any, by: Any) -> Manifest:
    return Manifest(*parts, *by)


manifests = st.builds(
    release,
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
    st.integers(1, 2**53),
    st.builds(BaseModel, st.none() | st.text(max_size=5), digests),
    st.lists(files, min_size=1, max_size=3).map(tuple),
    tasks,
    by=by_whom,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    found = [(*path, key) for key in keys]
    return found + [
        deeper for key in keys if isinstance(node[key], dict | list)
        for deeper in places(node[key], (*path, key))
    ]  # fmt: skip


@settings(max_examples=50)
@given(manifests)
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert Manifest.from_bytes(data).to_bytes() == data


@settings(max_examples=300)
@given(manifests, st.data())
def test_a_changed_manifest_is_another_manifest_or_refused(
    manifest: Manifest, data: st.DataObject
) -> None:
    raw = json.loads(manifest.to_bytes())
    *path, last = data.draw(st.sampled_from(places(raw)))
    node: Any = raw
    for key in path:
        node = node[key]
    if data.draw(st.booleans()):
        node[last] = data.draw(anything)
    else:
        del node[last]
    try:
        found = Manifest.from_bytes(json.dumps(raw).encode())
    except DeliveryError:
        return
    assert Manifest.from_bytes(found.to_bytes()) == found


@settings(max_examples=100)
@given(manifests, st.data())
def test_bytes_that_are_damaged(manifest: Manifest, data: st.DataObject) -> None:
    damaged = bytearray(manifest.to_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    for changed in (bytes(damaged), bytes(damaged[:at]), data.draw(st.binary(max_size=50))):
        try:
            found = Manifest.from_bytes(changed)
        except DeliveryError:
            continue
        assert Manifest.from_bytes(found.to_bytes()) == found


def test_depth_and_length_have_an_end() -> None:
    blob = Blob("0" * 64, 1)
    good = Manifest("a", 1, BaseModel(None, "0" * 64), (File(blob, (Chunk(blob),)),), {})
    plain = good.to_bytes().decode()
    for task in ('{"x":' * 40 + "1" + "}" * 40, '{"x":' * 9**5 + "1" + "}" * 9**5, " " * 2**20):
        assert '"task":{}' in plain
        with pytest.raises(DeliveryError, match=r"nests deeper|No manifest|too long"):
            Manifest.from_bytes(plain.replace('"task":{}', f'"task":{task}').encode())
