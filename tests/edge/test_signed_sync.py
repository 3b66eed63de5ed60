"""The parts as a user meets them: keys, releases and a device, over a server of plain files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError
from tuf.ngclient import FetcherInterface

from helpers.releases import BASE, Publisher, new_publisher
from helpers.servers import files_over_http
from rankcast.edge.sync import EdgeClient, Runtime
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.release.verify import signed_source


def active_weights(folder: Path) -> bytes:
    return (folder / "adapter" / "current" / "adapter_model.safetensors").read_bytes()


class Breaking(FetcherInterface):
    """Gets files from another fetcher; its first connections break."""

    def __init__(self, inner: FetcherInterface, n_breaks: int) -> None:
        self.inner, self.n_breaks = inner, n_breaks

    def _fetch(self, url: str) -> Iterator[bytes]:
        if self.n_breaks:
            self.n_breaks -= 1
            raise DownloadError("connection reset")
        yield from self.inner.fetch(url)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = new_publisher(tmp_path)
    publisher.publish(1, now=datetime.now(UTC))
    return publisher


@pytest.fixture
def url(publisher: Publisher) -> Iterator[str]:
    with files_over_http(publisher.store.root) as address:
        yield address


def test_a_device_syncs_from_plain_files(publisher: Publisher, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    signed_source(url, folder, root=publisher.store.metadata / "root.json")
    client = EdgeClient(url, "sst2", BASE, folder)
    first = client.sync()
    assert (first.outcome, first.planned_by) == ("activated", "device")
    assert client.sync().outcome == "up-to-date"
    before = active_weights(folder)
    publisher.publish(2, now=datetime.now(UTC))
    assert client.sync().outcome == "activated"
    assert active_weights(folder) != before


def test_what_is_not_signed_stays_out(publisher: Publisher, url: str, tmp_path: Path) -> None:
    folder, root = tmp_path / "device", publisher.store.metadata / "root.json"
    with pytest.raises(TrustError, match="no trusted root"):
        EdgeClient(url, "sst2", BASE, folder).sync()
    with pytest.raises(DeliveryError, match="cannot be read"):
        signed_source(url, folder, root=tmp_path / "nothing.json")
    with pytest.raises(TrustError, match="was expected"):
        signed_source(url, folder, root=root, root_sha256="f" * 64)
    signed_source(url, folder, root=root)
    client = EdgeClient(url, "sst2", BASE, folder)
    client.sync()
    before = active_weights(folder)
    stranger = new_publisher(tmp_path / "stranger")
    stranger.publish(3, now=datetime.now(UTC))
    for file in ("timestamp.json", "snapshot.json", "targets.json"):
        for theirs in stranger.store.metadata.glob(f"*{file}"):
            (publisher.store.metadata / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(TrustError):
        client.sync()
    assert active_weights(folder) == before


@pytest.mark.parametrize("years", [-50, 50])
def test_a_wrong_clock_changes_nothing_and_heals_when_it_is_set(
    publisher: Publisher, url: str, tmp_path: Path, years: int
) -> None:
    """A clock that lost its battery starts in the past; one that runs ahead finds all expired."""
    folder = tmp_path / "device"
    right = signed_source(url, folder, root=publisher.store.metadata / "root.json")
    client = EdgeClient(url, "sst2", BASE, folder, right)
    client.sync()
    before = active_weights(folder)
    publisher.publish(2, now=datetime.now(UTC))
    wrong = replace(right, now=lambda: datetime.now(UTC) + timedelta(days=365 * years))
    odd = EdgeClient(url, "sst2", BASE, folder, wrong)
    if years > 0:
        with pytest.raises(TrustError, match="clock is wrong"):
            odd.sync()
        assert active_weights(folder) == before
        assert client.sync().outcome == "activated"
    else:  # nothing seems expired: what was seen before still guards against older releases
        assert odd.sync().outcome == "activated"
        assert client.sync().outcome == "up-to-date"
    assert active_weights(folder) != before


def test_metadata_are_asked_for_again_over_a_link_that_breaks(
    publisher: Publisher, url: str, tmp_path: Path
) -> None:
    folder, pauses = tmp_path / "device", []
    source = signed_source(url, folder, root=publisher.store.metadata / "root.json")
    runtime = Runtime(sleep=pauses.append)
    for n_breaks, outcome in ((2, "activated"), (3, None)):
        breaking = Breaking(source.fetcher, n_breaks)
        client = EdgeClient(
            url, "sst2", BASE, folder, replace(source, fetcher=breaking), runtime=runtime
        )
        pauses.clear()
        if outcome is None:
            with pytest.raises(UnavailableError, match="could not be fetched"):
                client.sync()
        else:
            assert client.sync().outcome == outcome
        assert (breaking.n_breaks, len(pauses)) == (0, 2)
