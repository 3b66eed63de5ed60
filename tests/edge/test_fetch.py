"""Blobs over a link that breaks."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from helpers.edge import SILENCE_S, EdgeServer, FakeTime, serving
from rankcast.edge.fetch import (
    BURST_S,
    RESERVE_BYTES,
    Backoff,
    BlobCache,
    Fetcher,
    FetchSettings,
)
from rankcast.edge.state import StateFile
from rankcast.errors import ConfigError, DeliveryError, TrustError
from rankcast.release.manifest import Blob

DATA = np.random.default_rng(0).bytes(5000)


@pytest.fixture
def blob(server: EdgeServer) -> Blob:
    return server.store.put(DATA)


def fetcher(server: EdgeServer, folder: Path, time: FakeTime | None = None, **kw: Any) -> Fetcher:
    time = time or FakeTime()
    http = httpx2.Client(base_url=server.url + "/", transport=kw.pop("transport", None))
    settings = FetchSettings(silence_s=SILENCE_S, **kw.pop("settings", {}))
    cache = kw.pop("cache", None) or BlobCache(folder / "blobs")
    return Fetcher(
        http, cache, settings, rng=np.random.default_rng(0), clock=time.clock, sleep=time.sleep,
        **kw,
    )  # fmt: skip


def test_every_byte_is_asked_for_once_however_often_the_connection_is_reset(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.reset_after = [700, 1, 1300, 41, 1000]
    seen = []
    fetched = fetcher(server, tmp_path, on_progress=lambda _, n: seen.append(n)).fetch([blob])
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA
    starts = [start for _, start in server.requests]
    assert starts[0] == 0
    assert len(starts) == 6
    assert all(a <= b for a, b in pairwise(starts))
    assert fetched.n_bytes == len(DATA)  # nothing was received twice
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)
    assert fetched.missing == ()


def test_a_complete_blob_is_never_requested_again(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    fetcher(server, tmp_path).fetch([blob])
    n = len(server.requests)
    again = fetcher(server, tmp_path).fetch([blob, blob])
    assert (len(server.requests), again.n_bytes, again.throughput_bps) == (n, 0, None)


def test_another_process_resumes_where_the_first_one_ended(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    cache = BlobCache(tmp_path / "blobs")
    cache.root.mkdir()
    cache.partial(blob).write_bytes(DATA[:1234])
    fetched = fetcher(server, tmp_path).fetch([blob])
    assert server.requests == [(blob.sha256, 1234)]
    assert fetched.n_bytes == len(DATA) - 1234


def test_a_stalled_connection_is_given_up_and_resumed(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    ranges = []

    def stalled() -> Iterator[bytes]:
        yield DATA[:900]
        raise httpx2.ReadTimeout("nothing more came")

    def answer(request: httpx2.Request) -> httpx2.Response:
        ranges.append(request.headers.get("Range"))
        assert request.extensions["timeout"]["read"] == SILENCE_S
        if len(ranges) == 1:
            return httpx2.Response(200, content=stalled())
        headers = {"Content-Range": f"bytes 900-{len(DATA) - 1}/{len(DATA)}"}
        return httpx2.Response(206, headers=headers, content=iter([DATA[900:]]))

    device = fetcher(server, tmp_path, transport=httpx2.MockTransport(answer))
    assert device.fetch([blob]).n_bytes == len(DATA)
    assert ranges == [None, "bytes=900-"]
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA


def test_a_server_without_ranges_costs_bytes_but_not_the_beginning(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.no_range = True
    server.faults.reset_after = [2000, 1000, 3000]
    fetched = fetcher(server, tmp_path).fetch([blob])
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA
    assert fetched.n_bytes > len(DATA)


def test_a_wrong_content_range_is_not_used(server: EdgeServer, blob: Blob, tmp_path: Path) -> None:
    server.faults.reset_after, server.faults.wrong_range = [700], 2
    fetcher(server, tmp_path).fetch([blob])
    assert [start for _, start in server.requests] == [0, 700, 700, 0]
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA


def test_a_server_that_never_gets_ranges_right_hands_out_the_whole(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.reset_after, server.faults.wrong_range = [700], 100
    fetched = fetcher(server, tmp_path).fetch([blob])
    assert [start for _, start in server.requests] == [0, 700, 700, 0]
    assert (fetched.missing, fetched.n_bytes) == ((), 700 + len(DATA))
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA


def test_an_endless_body_is_cut_at_the_length_that_the_release_names(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.endless = True
    fetched = fetcher(server, tmp_path).fetch([blob])
    assert BlobCache(tmp_path / "blobs").read(blob.sha256) == DATA
    assert fetched.n_bytes < len(DATA) + 2**17


def test_wrong_bytes_are_refused_and_discarded(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.wrong_bytes = {blob.sha256}
    with pytest.raises(TrustError, match="other bytes"):
        fetcher(server, tmp_path).fetch([blob])
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_beginning_that_the_disk_damaged_is_fetched_again(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    cache = BlobCache(tmp_path / "blobs")
    cache.root.mkdir()
    cache.partial(blob).write_bytes(bytes(1000))
    fetcher(server, tmp_path).fetch([blob])
    assert [start for _, start in server.requests] == [1000, 0]
    assert cache.read(blob.sha256) == DATA


def test_pauses_grow_are_jittered_and_end(server: EdgeServer, blob: Blob, tmp_path: Path) -> None:
    server.faults.statuses = [500, 503, 502, 429, 500, 500]
    time = FakeTime()
    with pytest.raises(DeliveryError, match=r"in 6 tries \(it answered 500\)"):
        fetcher(server, tmp_path, time).fetch([blob])
    bounds = [0.5, 1.0, 2.0, 4.0, 8.0]
    assert all(b / 2 <= s <= b for s, b in zip(time.slept, bounds, strict=True))
    server.faults.statuses = [500] * 5
    assert fetcher(server, tmp_path).fetch([blob]).missing == ()


@pytest.mark.parametrize(("status", "words"), [(401, "token"), (404, "lacks"), (302, "address")])
def test_a_refusal_is_not_repeated(
    status: int, words: str, server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    server.faults.statuses = [status]
    with pytest.raises(DeliveryError, match=words):
        fetcher(server, tmp_path).fetch([blob])
    assert len(server.requests) == 1


def test_a_restarted_server_resumes(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        blob = first.store.put(DATA)
        first.faults.reset_after = [2500]
        first.faults.after_reset = [503, 503]
        device = fetcher(first, tmp_path, settings={"backoff": Backoff(n_tries=3)})
        with pytest.raises(DeliveryError, match="What arrived is kept"):
            device.fetch([blob])
    with pytest.raises(DeliveryError, match="tries"):  # nobody listens there now
        fetcher(first, tmp_path).fetch([blob])
    with serving(tmp_path) as second:
        fetcher(second, tmp_path).fetch([blob])
        assert second.requests == [(blob.sha256, 2500)]


def test_the_deadline_ends_the_fetch_and_keeps_what_came(
    server: EdgeServer, blob: Blob, tmp_path: Path
) -> None:
    small = server.store.put(b"first")
    server.faults.reset_after = [5, 700]
    time = FakeTime()
    device = fetcher(server, tmp_path, time, settings={"max_bps": 8 * 0.1})
    fetched = device.fetch([small, blob], deadline_s=3000.0)  # 300 bytes at the cap
    cache = BlobCache(tmp_path / "blobs")
    assert fetched.missing == (blob,)
    assert cache.has(small)
    assert 0 < cache.n_arrived(blob) < len(DATA)
    assert time.now <= 3000.0 + 0.1
    with pytest.raises(ConfigError, match="positive"):
        device.fetch([blob], deadline_s=0.0)


def test_the_cap_is_kept_on_average(server: EdgeServer, tmp_path: Path) -> None:
    time = FakeTime()
    blobs = [server.store.put(DATA + bytes([n])) for n in range(8)]
    fetched = fetcher(server, tmp_path, time, settings={"max_bps": 8e3}).fetch(blobs)
    bits = 8 * sum(blob.n_bytes for blob in blobs)
    assert time.now >= bits / 8e3 - BURST_S - 1e-6
    assert fetched.throughput_bps == pytest.approx(8 * fetched.n_bytes / fetched.elapsed_s)
    with pytest.raises(ConfigError, match="positive"):
        FetchSettings(max_bps=0.0)


def test_a_full_disk_is_noticed_before_or_while_fetching_and_loses_nothing(
    server: EdgeServer, blob: Blob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = BlobCache(tmp_path / "blobs", free=lambda _: RESERVE_BYTES + len(DATA) - 1)
    with pytest.raises(DeliveryError, match="1 more would have to be free"):
        fetcher(server, tmp_path, cache=full).fetch([blob])
    assert server.requests == []

    def write(file: Any, data: bytes) -> None:
        file.write(data[:1500])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rankcast.edge.fetch._write_all", write)
        with pytest.raises(DeliveryError, match="disk is full"):
            fetcher(server, tmp_path).fetch([blob])
    fetcher(server, tmp_path).fetch([blob])
    assert [start for _, start in server.requests] == [0, 1500]


def test_the_cache_drops_what_nobody_needs_and_what_the_disk_damaged(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    names = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    (tmp_path / names[0]).write_bytes(b"\0")
    (tmp_path / names[1]).write_bytes(b"\1")
    (tmp_path / f"{names[2]}.part").write_bytes(b"xyz")
    assert cache.collect({names[0]}) == 4
    assert cache.held([Blob(name, 1) for name in names]) == {names[0]}
    (tmp_path / names[0]).write_bytes(b"?")
    with pytest.raises(DeliveryError, match="damaged"):
        cache.read(names[0])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DeliveryError, match="64 hexadecimal"):
        cache.read("../../etc/passwd")


def test_history_and_rejections_are_bounded(tmp_path: Path) -> None:
    states = StateFile(tmp_path, "demo")
    for n in range(60):
        states.note("failed", str(n))
        states.reject(f"label {n % 40}")
    state = states.state
    assert [event.message for event in state.history] == [str(n) for n in range(10, 60)]
    assert state.rejected == tuple(f"label {n}" for n in range(20))
