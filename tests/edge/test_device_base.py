"""The fingerprint of a device's base model is taken once while its files stay the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.edge import BASE, EdgeServer, FileSource, client_of, release_of
from helpers.llama_fake import write_small_base
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.gguf_base import GgufBase
from rankcast.edge.base import CACHE, architecture_on, fingerprints_of
from rankcast.edge.manifests import KeptManifests
from rankcast.errors import ModelError
from rankcast.release.manifest import File, Manifest
from rankcast.release.runs_on import BaseCopy


def never(folder: Path) -> list[str]:
    raise AssertionError(folder)


def test_a_gguf_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_small_base(tmp_path / "base.gguf")
    known = fingerprints_of(base, tmp_path / "device", never)
    assert known == (GgufBase.open(base).fingerprint(),)
    with monkeypatch.context() as patched:
        patched.setattr(GgufBase, "open", never)
        assert fingerprints_of(base, tmp_path / "device", never) == known
    write_small_base(base, width=32)
    assert fingerprints_of(base, tmp_path / "device", never) != known
    (tmp_path / "device" / CACHE).write_bytes(b"{")
    assert fingerprints_of(base, tmp_path / "device", never) != known


def test_a_folder_is_asked_again_when_a_file_of_it_changes(tmp_path: Path) -> None:
    folder, asked = tmp_path / "base", list[Path]()
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"1")

    def of_folder(path: Path) -> list[str]:
        asked.append(path)
        return [f"{len(asked):064x}", "f" * 64]

    for _ in range(2):
        found = fingerprints_of(folder, tmp_path / "device", of_folder)
        assert found == (f"{1:064x}", "f" * 64)
    (folder / "readme.md").write_text("new")
    fingerprints_of(folder, tmp_path / "device", of_folder)
    assert len(asked) == 1
    os.utime(weights, (1, 1))
    assert fingerprints_of(folder, tmp_path / "device", of_folder)[0] == f"{2:064x}"


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--base-model"):
        fingerprints_of(tmp_path / "none.gguf", tmp_path / "device", never)


def manifest(*copies: BaseCopy) -> Manifest:
    file = release_of(1)
    return Manifest("demo", 1, file.header.base, (File.of(file),), {}, runs_on=copies)


def test_the_release_says_the_architecture_of_its_copy(tmp_path: Path) -> None:
    base = write_small_base(tmp_path / "base.gguf")
    (own,) = fingerprints_of(base, tmp_path / "device", never)
    measured = GgufArchitecture("llama", 2, 4, 2, interleaved=False, tied=True)
    copy = BaseCopy(own, "gguf", "base.gguf", "F32", 1, None, measured.to_plain())
    assert architecture_on(base, [own], manifest(copy)) == measured
    assert architecture_on(base, [own], manifest()) == GgufArchitecture.of_gguf(base)
    assert architecture_on(base, [own], None).interleaved


def test_a_device_with_a_copy_takes_the_release_and_another_is_told_both(
    server: EdgeServer, tmp_path: Path
) -> None:
    copy = BaseCopy("ab" * 32, "gguf", "tiny-Q4_K_M.gguf", "Q4_K_M", 1)
    file = release_of(1)
    server.publish(file)
    published = Manifest.from_bytes(server.manifest_file.read_bytes())
    data = replace(published, runs_on=(copy,)).to_bytes()
    server.manifest_file.write_bytes(data)
    source = FileSource(server.manifest_file)
    result = client_of(server, tmp_path, base="ab" * 32, source=source).sync()
    assert "is active on a Q4_K_M copy of tiny (tiny-Q4_K_M.gguf)" in result.message
    assert KeptManifests(tmp_path / "state" / "manifests").get(1) is not None
    with pytest.raises(
        ModelError, match=r"adapts tiny .*a Q4_K_M copy of tiny .*\(cdcdcdcdcdcd…\)"
    ):
        client_of(server, tmp_path / "other", base="cd" * 32, source=source).sync()
    assert client_of(server, tmp_path / "own", base=BASE, source=source).sync().active is not None


def test_manifests_of_what_is_gone_are_dropped(tmp_path: Path) -> None:
    kept = KeptManifests(tmp_path / "manifests")
    for version in (1, 2, 3):
        kept.put(replace(manifest(), version=version))
    kept.collect({1, 3})
    assert [kept.get(version) is not None for version in (1, 2, 3)] == [True, False, True]
    (tmp_path / "manifests" / "1.json").write_bytes(b"{")
    assert kept.get(1) is None
