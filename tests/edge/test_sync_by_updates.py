"""A device with the release before fetches the difference; whatever is wrong, the whole file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.codec import packed, random_adapter
from helpers.edge import EdgeServer, active_file, client_of, settings
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel
from rankcast.edge.advice import RadioLink
from rankcast.edge.install import SyncResult
from rankcast.errors import InfeasibleDeadlineError, TrustError
from rankcast.release.manifest import Manifest

WIDTHS = ((64, 64), (64, 128), (128, 64))


def version(n: int, base: str = "0" * 64) -> Container:
    """Return a file of 6 chunks; each version has moved a little from the one before."""
    tensors = random_adapter(1, WIDTHS, (6, 6, 6), size=0.3)
    moved = random_adapter(1 + n, WIDTHS, (6, 6, 6), size=0.003 * n)
    factors = tuple(
        replace(f, left=f.left + g.left, right=f.right + g.right)
        for f, g in zip(tensors.factors, moved.factors, strict=True)
    )
    file = packed(replace(tensors, factors=factors), finest=-30)
    return replace(file, header=replace(file.header, base=BaseModel("tiny", base)))


FILES = [version(n) for n in range(4)]


def size(manifest: Manifest) -> int:
    return sum(blob.n_bytes for blob in manifest.update_blobs)


def has(server: EdgeServer, folder: Path, n: int) -> Manifest:
    """Publish a version and sync; return the release."""
    manifest = server.publish(FILES[n], version=n + 1)
    client_of(server, folder).sync()
    assert active_file(folder) == FILES[n].to_bytes()
    server.requests.clear()
    return manifest


def test_a_chain_of_updates(server: EdgeServer, tmp_path: Path) -> None:
    manifest = has(server, tmp_path, 0)
    for n in (1, 2, 3):
        manifest = server.publish(FILES[n], version=n + 1, older=[manifest])
        result = client_of(server, tmp_path).sync()
        assert (result.outcome, result.update) == ("activated", "applied")
        assert result.n_bytes == size(manifest) < 0.5 * len(FILES[n].to_bytes())
        assert f"An update of {size(manifest):,} bytes made it." in result.message
        assert active_file(tmp_path) == FILES[n].to_bytes()
        assert {sha256 for sha256, _ in server.requests} == {
            blob.sha256 for blob in manifest.update_blobs
        }
        server.requests.clear()
        assert client_of(server, tmp_path).sync().outcome == "up-to-date"
        assert server.requests == []
    here = {path.name for path in (tmp_path / "state" / "blobs").iterdir()}
    assert not here & {blob.sha256 for blob in manifest.update_blobs}
    assert server.reports[-1]["received_bits"] == 8 * size(manifest)


def test_a_device_that_skipped_a_release_or_has_none(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path / "a", 0)
    second = server.publish(FILES[1], version=2)
    third = server.publish(FILES[2], version=3, older=[second])
    for folder in (tmp_path / "a", tmp_path / "b"):
        result = client_of(server, folder).sync()
        assert (result.outcome, result.update) == ("activated", "none")
        assert active_file(folder) == FILES[2].to_bytes()
    server.publish(FILES[3], version=4, older=[first, third])
    assert client_of(server, tmp_path / "a").sync().update == "applied"
    assert active_file(tmp_path / "a") == FILES[3].to_bytes()


def test_the_release_before_the_active_one_serves_too(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path, 0)
    has(server, tmp_path, 1)
    server.publish(FILES[2], version=3, older=[first])
    result = client_of(server, tmp_path).sync()
    assert (result.update, active_file(tmp_path)) == ("applied", FILES[2].to_bytes())


def test_a_prefix_is_updated_and_then_completed(server: EdgeServer, tmp_path: Path) -> None:
    first = server.publish(FILES[0])
    budget = sum(blob.n_bytes for blob in first.files[0].blobs(3)) + 1

    def sync(n_bytes: float) -> SyncResult:
        link = RadioLink(0.0, 8.0 * n_bytes, "awgn")  # 1 bit/s/Hz
        return client_of(server, tmp_path, settings=settings(deadline_s=1.0, radio=link)).sync()

    server.faults.plan = {}  # the device plans for itself
    sync(budget)
    assert active_file(tmp_path) == FILES[0].prefix(3).to_bytes()
    second = server.publish(FILES[1], version=2, older=[first])
    result = sync(64)
    assert (result.outcome, result.update) == ("activated", "applied")
    assert active_file(tmp_path) == FILES[1].prefix(3).to_bytes()
    assert result.n_bytes == size(second)
    result = sync(10_000)
    assert active_file(tmp_path) == FILES[1].to_bytes()
    rest = second.files[0].blobs()[4:]
    assert (result.update, result.n_bytes) == ("none", sum(blob.n_bytes for blob in rest))


@pytest.mark.parametrize("what", ["tampered", "lost", "another", "cut"])
def test_an_update_that_does_not_work(server: EdgeServer, tmp_path: Path, what: str) -> None:
    first = has(server, tmp_path, 0)
    manifest = server.publish(FILES[1], version=2, older=[first])
    (file,) = manifest.files
    (update,) = file.updates
    if what == "tampered":
        server.faults.wrong_bytes.add(update.blob.sha256)
    elif what == "lost":
        server.store.blob_path(update.blob.sha256).unlink()
    else:  # the publisher signed another one
        other = server.publish(FILES[2], version=3, older=[first]).files[0].updates[0]
        cut = replace(update, blob=server.store.put(server.store.get(update.blob)[:-1]))
        changed = {"another": other, "cut": cut}[what]
        manifest = replace(manifest, files=(replace(file, updates=(changed,)),))
        server.manifest_file.write_bytes(manifest.to_bytes())
    result = client_of(server, tmp_path).sync()
    assert (result.outcome, result.update) == ("activated", "refused")
    assert "The update was refused: " in result.message
    assert result.n_bytes >= len(FILES[1].to_bytes())
    assert active_file(tmp_path) == FILES[1].to_bytes()
    here = {path.name for path in (tmp_path / "state" / "blobs").iterdir()}
    assert update.blob.sha256 not in here


@pytest.mark.parametrize("n", [0, 2])
def test_what_lies_on_the_disk_decides(server: EdgeServer, tmp_path: Path, n: int) -> None:
    first = has(server, tmp_path, 0)
    blob = first.files[0].blobs()[n]
    path = tmp_path / "state" / "blobs" / blob.sha256
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    server.publish(FILES[1], version=2, older=[first])
    result = client_of(server, tmp_path).sync()
    assert (result.outcome, result.update) == ("activated", "none")
    assert active_file(tmp_path) == FILES[1].to_bytes()


def test_a_broken_download_of_an_update_is_resumed(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path, 0)
    manifest = server.publish(FILES[1], version=2, older=[first])
    (blob,) = manifest.update_blobs
    server.faults.reset_after = [blob.n_bytes // 2]
    result = client_of(server, tmp_path).sync()
    assert (result.update, result.n_bytes) == ("applied", size(manifest))
    assert (blob.sha256, blob.n_bytes // 2) in server.requests
    assert server.sent[blob.sha256] == blob.n_bytes


def test_a_deadline_in_the_middle_of_an_update(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path, 0)
    manifest = server.publish(FILES[1], version=2, older=[first])
    (blob,) = manifest.update_blobs
    server.faults.reset_after = [10]  # and the pause until the next try is longer
    with pytest.raises(InfeasibleDeadlineError):
        client_of(server, tmp_path, settings=settings(deadline_s=0.2)).sync()
    assert active_file(tmp_path) == FILES[0].to_bytes()
    result = client_of(server, tmp_path).sync()
    assert (result.outcome, result.update) == ("activated", "applied")
    assert (blob.sha256, 10) in server.requests  # the next sync goes on where this one ended
    assert active_file(tmp_path) == FILES[1].to_bytes()


def test_what_failed_its_proof_is_not_updated_again(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path, 0)
    server.publish(FILES[1], version=2, older=[first])
    failing = client_of(server, tmp_path, health=lambda: False)
    assert (failing.sync().outcome, active_file(tmp_path)) == ("rolled-back", FILES[0].to_bytes())
    server.requests.clear()
    assert client_of(server, tmp_path).sync().outcome == "rejected"
    assert server.requests == []


def test_whole_files_are_checked_as_ever(server: EdgeServer, tmp_path: Path) -> None:
    first = has(server, tmp_path, 0)
    manifest = server.publish(FILES[1], version=2, older=[first])
    server.faults.wrong_bytes |= {blob.sha256 for blob in (*manifest.blobs, *manifest.update_blobs)}
    with pytest.raises(TrustError):
        client_of(server, tmp_path).sync()
    assert active_file(tmp_path) == FILES[0].to_bytes()
