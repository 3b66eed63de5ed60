"""The parts as a user meets them: keys, releases and a device, over a server of plain files."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadError
from tuf.ngclient import FetcherInterface

from rankcast.delivery.edge.client import EdgeClient
from rankcast.delivery.edge.signed import signed_source
from rankcast.delivery.edge.syncing import Surroundings
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from release_data import BASE, Publisher, publisher


def in_force(folder: Path) -> bytes:
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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def made(tmp_path: Path) -> Publisher:
    found = publisher(tmp_path)
    found.publish(1, now=datetime.now(UTC))
    return found


@pytest.fixture
def url(made: Publisher) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(made.store.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_device_syncs_from_plain_files(made: Publisher, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    signed_source(url, folder, root=made.store.metadata / "root.json")
    client = EdgeClient(url, "sst2", BASE, folder)
    first = client.sync()
    assert (first.outcome, first.planned_by) == ("activated", "device")
    assert client.sync().outcome == "up-to-date"
    before = in_force(folder)
    made.publish(2, now=datetime.now(UTC))
    assert client.sync().outcome == "activated"
    assert in_force(folder) != before


def test_what_is_not_signed_stays_out(made: Publisher, url: str, tmp_path: Path) -> None:
    folder, root = tmp_path / "device", made.store.metadata / "root.json"
    with pytest.raises(TrustError, match="no trusted root"):
        EdgeClient(url, "sst2", BASE, folder).sync()
    with pytest.raises(DeliveryError, match="cannot be read"):
        signed_source(url, folder, root=tmp_path / "nothing.json")
    with pytest.raises(TrustError, match="was expected"):
        signed_source(url, folder, root=root, root_sha256="f" * 64)
    signed_source(url, folder, root=root)
    client = EdgeClient(url, "sst2", BASE, folder)
    client.sync()
    before = in_force(folder)
    stranger = publisher(tmp_path / "stranger")
    stranger.publish(3, now=datetime.now(UTC))
    for file in ("timestamp.json", "snapshot.json", "targets.json"):
        for theirs in stranger.store.metadata.glob(f"*{file}"):
            (made.store.metadata / theirs.name).write_bytes(theirs.read_bytes())
    with pytest.raises(TrustError):
        client.sync()
    assert in_force(folder) == before


@pytest.mark.parametrize("years", [-50, 50])
def test_a_wrong_clock_changes_nothing_and_heals_when_it_is_set(
    made: Publisher, url: str, tmp_path: Path, years: int
) -> None:
    """A clock that lost its battery starts in the past; one that runs ahead finds all expired."""
    folder = tmp_path / "device"
    right = signed_source(url, folder, root=made.store.metadata / "root.json")
    client = EdgeClient(url, "sst2", BASE, folder, right)
    client.sync()
    before = in_force(folder)
    made.publish(2, now=datetime.now(UTC))
    wrong = replace(right, now=lambda: datetime.now(UTC) + timedelta(days=365 * years))
    odd = EdgeClient(url, "sst2", BASE, folder, wrong)
    if years > 0:
        with pytest.raises(TrustError, match="clock is wrong"):
            odd.sync()
        assert in_force(folder) == before
        assert client.sync().outcome == "activated"
    else:  # nothing seems expired: what was seen before still guards against older releases
        assert odd.sync().outcome == "activated"
        assert client.sync().outcome == "up-to-date"
    assert in_force(folder) != before


def test_metadata_are_asked_for_again_over_a_link_that_breaks(
    made: Publisher, url: str, tmp_path: Path
) -> None:
    folder, pauses = tmp_path / "device", []
    source = signed_source(url, folder, root=made.store.metadata / "root.json")
    around = Surroundings(sleep=pauses.append)
    for n_breaks, outcome in ((2, "activated"), (3, None)):
        breaking = Breaking(source.fetcher, n_breaks)
        client = EdgeClient(
            url, "sst2", BASE, folder, replace(source, fetcher=breaking), surroundings=around
        )
        pauses.clear()
        if outcome is None:
            with pytest.raises(UnavailableError, match="could not be fetched"):
                client.sync()
        else:
            assert client.sync().outcome == outcome
        assert (breaking.n_breaks, len(pauses)) == (0, 2)
