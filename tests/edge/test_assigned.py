"""A device takes the version that its server says, as far as the signed release names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.edge import EdgeServer, active_file, client_of, release_of, serving
from rankcast.edge.sync import EdgeClient
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.files import replace_file
from rankcast.release.manifest import Manifest, Older, blob_of


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EdgeServer]:
    with serving(tmp_path / "server") as server:
        yield server


def say(version: int | None, *, holds: bool = False) -> dict[str, Any]:
    return {"adapter": "demo", "version": version, "holds": holds, "reason": "A rollout.",
            "rollout": 1}  # fmt: skip


def publish_two(server: EdgeServer) -> tuple[Manifest, Manifest]:
    """Publish a version 2 that lists version 1, and return both."""
    first = server.publish(release_of(1))
    older = (Older(1, server.store.put(first.listed())),)
    second = replace(server.publish(release_of(2), version=2), older=older)
    rewrite(server, second)
    return first, second


def rewrite(server: EdgeServer, manifest: Manifest) -> None:
    replace_file(server.manifest_file, lambda file: file.write_bytes(manifest.to_bytes()))


def version_of(client: EdgeClient) -> int | None:
    active = client.resume()
    return None if active is None else active.version


def test_a_new_device_begins_with_the_older_version_that_it_is_told(
    server: EdgeServer, tmp_path: Path
) -> None:
    first, _ = publish_two(server)
    client = client_of(server, tmp_path)
    server.assigned = say(1)
    result = client.sync()
    assert result.active is not None
    assert (result.outcome, result.active.version) == ("activated", 1)
    assert set(result.active.blobs) == {blob.sha256 for blob in first.files[0].blobs()}
    assert server.reports[-1]["version"] == 1
    assert client.sync().outcome == "up-to-date"
    assert server.questions == ["/v1/adapters/demo/assigned", "/v1/adapters/demo/assigned?active=1"]


def test_a_device_goes_on_and_back_without_fetching_what_it_has(
    server: EdgeServer, tmp_path: Path
) -> None:
    first = server.publish(release_of(1))
    client = client_of(server, tmp_path)
    server.assigned = say(1)
    client.sync()
    old = active_file(tmp_path)
    second = replace(
        server.publish(release_of(2), version=2),
        older=(Older(1, server.store.put(first.listed())),),
    )
    rewrite(server, second)
    assert client.sync().outcome == "up-to-date"
    server.assigned = say(2)
    assert client.sync().outcome == "activated"
    assert (version_of(client), active_file(tmp_path) != old) == (2, True)
    server.assigned, n_before = say(1), len(server.requests)
    result = client.sync()
    assert (result.outcome, result.n_bytes, version_of(client)) == ("activated", 0, 1)
    assert active_file(tmp_path) == old
    assert len(server.requests) == n_before
    assert [report["version"] for report in server.reports] == [1, 2, 1]
    server.assigned = 404  # a server of plain files: the newest is meant
    assert client.sync().outcome == "activated"
    assert version_of(client) == 2


def test_a_version_that_is_not_signed_is_refused_and_nothing_changes(
    server: EdgeServer, tmp_path: Path
) -> None:
    first = server.publish(release_of(1))
    client = client_of(server, tmp_path)
    client.sync()
    server.publish(release_of(2), version=2)
    client.sync()
    server.assigned = say(1)
    with pytest.raises(TrustError, match="says version 1 of demo, and the signed release names 2"):
        client.sync()
    assert version_of(client) == 2
    forged = Older(1, server.store.put(replace(first, version=7).listed()))
    rewrite(server, replace(server.publish(release_of(2), version=2), older=(forged,)))
    client = client_of(server, tmp_path / "other")
    with pytest.raises(TrustError, match=r"signed as version 1 of demo is of demo version 7"):
        client.sync()
    server.faults.wrong_bytes.add(forged.blob.sha256)
    with pytest.raises(TrustError):
        client_of(server, tmp_path / "third").sync()
    assert version_of(client) is None


def test_a_kept_manifest_is_taken_only_if_it_is_the_one_that_is_signed(
    server: EdgeServer, tmp_path: Path
) -> None:
    first, _ = publish_two(server)
    client = client_of(server, tmp_path)
    server.assigned = say(1)
    client.sync()
    kept = tmp_path / "state" / "manifests" / "1.json"
    kept.write_bytes(replace(first, task={"swapped": True}).to_bytes())
    client.sync()
    assert Manifest.from_bytes(kept.read_bytes()).task == first.task
    listed = blob_of(first.listed()).sha256
    assert [sha256 for sha256, _ in server.requests].count(listed) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_say_is_waited_for(
    server: EdgeServer, tmp_path: Path, status: int
) -> None:
    """The newest could be too early: it may be halted, or kept for other devices."""
    publish_two(server)
    client = client_of(server, tmp_path)
    server.assigned = say(1)
    client.sync()
    server.assigned = status
    with pytest.raises(UnavailableError, match=f"HTTP status {status}.*active adapter stays"):
        client.sync()
    assert version_of(client) == 1


def test_a_revoked_device_keeps_what_it_has(server: EdgeServer, tmp_path: Path) -> None:
    publish_two(server)
    server.assigned = say(1)
    client = client_of(server, tmp_path, token="rc_x")  # noqa: S106 no secret
    client.sync()
    server.assigned = 401
    with pytest.raises(DeliveryError, match="does not accept this device's token"):
        client.sync()
    assert version_of(client) == 1


@pytest.mark.parametrize(
    "answer", [{}, {"adapter": "other", "version": 1}, {"error": "x"}, {"adapter": "demo"}]
)
def test_what_is_no_answer_means_the_newest(
    server: EdgeServer, tmp_path: Path, answer: dict[str, Any]
) -> None:
    publish_two(server)
    server.assigned = answer
    client = client_of(server, tmp_path)
    client.sync()
    assert version_of(client) == 2


def test_a_device_that_is_held_keeps_what_it_has(server: EdgeServer, tmp_path: Path) -> None:
    publish_two(server)
    client = client_of(server, tmp_path)
    server.assigned = say(None, holds=True)
    with pytest.raises(UnavailableError, match=r"no adapter for this device yet. A rollout"):
        client.sync()
    server.assigned = say(1)
    client.sync()
    server.assigned = say(None, holds=True)
    result = client.sync()
    assert (result.outcome, version_of(client)) == ("up-to-date", 1)
    assert "A rollout." in result.message
    server.assigned = say(3)  # published already, but not yet at the mirror of this device
    with pytest.raises(UnavailableError, match="says version 3 of demo, and the newest"):
        client.sync()


def test_a_version_that_failed_is_told_when_the_device_asks(
    server: EdgeServer, tmp_path: Path
) -> None:
    publish_two(server)
    server.assigned = say(1)
    client_of(server, tmp_path).sync()
    sick = client_of(server, tmp_path, health=lambda: False)
    server.assigned = say(2)
    assert sick.sync().outcome == "rolled-back"
    assert (server.reports[-1]["event"], server.reports[-1]["version"]) == ("rolled-back", 2)
    server.assigned = say(1)
    assert sick.sync().outcome == "up-to-date"
    assert server.questions[-1] == "/v1/adapters/demo/assigned?active=1&rejected=2"
    assert version_of(sick) == 1
