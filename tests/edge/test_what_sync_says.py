"""Words of a device: of a part, of nothing new, of damage, of failures; and whose a folder is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.commands import Call
from helpers.edge import (
    BASE,
    SILENCE_S,
    EdgeServer,
    FileSource,
    active_file,
    biggest,
    client_of,
    release_of,
    settings,
)
from rankcast.codec.container import Container
from rankcast.edge.advice import RadioLink
from rankcast.edge.fetch import FetchSettings
from rankcast.edge.state import StateFile, read_state
from rankcast.edge.sync import EdgeClient
from rankcast.errors import DeliveryError, InfeasibleDeadlineError
from rankcast.release import verify as signed


def trained(more: float) -> Container:
    """Return a file; more training has moved the weights a little."""
    widths, ranks = ((64, 64), (64, 128)), (6, 6)
    first, change = random_adapter(1, widths, ranks, size=0.3), random_adapter(2, widths, ranks)
    factors = tuple(
        replace(f, left=f.left + np.float32(more) * g.left, right=f.right)
        for f, g in zip(first.factors, change.factors, strict=True)
    )
    return packed(replace(first, factors=factors), finest=-30)


def other(server: EdgeServer, tmp_path: Path, name: str) -> EdgeClient:
    return EdgeClient(server.url, name, BASE, tmp_path / "state", FileSource(server.manifest_file))


def test_a_sync_that_fails_does_not_claim_the_folder(server: EdgeServer, tmp_path: Path) -> None:
    server.publish(release_of(1), name="demo2")
    with pytest.raises(DeliveryError):
        other(server, tmp_path, "demo3").sync()
    state = read_state(tmp_path / "state")
    assert state is not None
    assert (state.adapter, state.active) == ("demo3", None)
    assert other(server, tmp_path, "demo2").sync().outcome == "activated"
    with pytest.raises(DeliveryError, match="is the folder of demo2"):
        other(server, tmp_path, "demo3").sync()


def test_a_part_says_of_how_many_and_the_whole_that_nothing_is_new(
    server: EdgeServer, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileSource(server.manifest_file)
    monkeypatch.setattr(signed, "signed_source", lambda *_, **__: source)
    one = release_of(1)
    server.publish(one)
    n = len(one.chunks)
    client = client_of(server, tmp_path)
    StateFile(client.folder, "demo").change(throughput_bps=1e-6)  # room for one chunk
    first = client.sync()
    assert f"1 of {n} chunks; sync again for the rest." in first.message
    assert (first.active and first.active.n_chunks, first.file_chunks) == (1, n)
    assert f"1 of {n} chunks" in call.ok("edge", "status", "--folder", str(client.folder))
    plain = json.loads(call.ok("edge", "status", "--folder", str(client.folder), "--json"))
    assert plain["file_chunks"] == n
    words = ["edge", "sync", "--server", server.url, "--adapter", "demo", "--folder",
             str(client.folder), "--base-fingerprint", BASE, "--snr-db", "20", "--bandwidth-hz",
             "1e6", "--format", "rcast", "--output", str(tmp_path / "adapter")]  # fmt: skip
    plain = json.loads(call.ok(*words, "--json"))
    assert (plain["outcome"], plain["file_chunks"]) == ("activated", n)
    assert "sync again" not in plain["message"]
    assert call.ok(*words).startswith("up-to-date: There is nothing new: all of demo-v1")


def test_what_does_not_arrive_in_time_is_not_called_nothing_new(
    server: EdgeServer, tmp_path: Path
) -> None:
    one = release_of(1)
    server.publish(one)
    client = client_of(server, tmp_path)
    StateFile(client.folder, "demo").change(throughput_bps=1e-6)
    client.sync()
    server.faults.plan = "no"  # so that the device plans for itself
    result = client.sync(radio=RadioLink(-60.0, 1.0))
    assert result.message == "Nothing better than the active adapter arrives in time."


def test_a_deadline_that_is_too_short_names_what_helps(server: EdgeServer, tmp_path: Path) -> None:
    server.publish(release_of(1))
    fetch = FetchSettings(max_bps=8e-3, silence_s=SILENCE_S)
    slow = settings(deadline_s=100.0, radio=RadioLink(20.0, 1e6), fetch=fetch)
    with pytest.raises(InfeasibleDeadlineError) as refused:
        client_of(server, tmp_path, settings=slow).sync()
    assert "what has arrived is kept" in str(refused.value)
    assert "minimum rank" not in str(refused.value)
    assert "inf" not in str(InfeasibleDeadlineError(8.0, 0.0))


def test_changed_files_are_not_called_lost_alone(server: EdgeServer, tmp_path: Path) -> None:
    server.publish(release_of(1))
    client = client_of(server, tmp_path)
    client.sync()
    next((tmp_path / "adapter" / "versions").glob("*/adapter.rcast")).write_bytes(b"changed")
    message = client.sync().message
    assert "had lost demo-v1" in message
    assert "or its files were changed" in message


def test_damage_on_the_disk_before_an_update_is_told(server: EdgeServer, tmp_path: Path) -> None:
    one, two = trained(0.0), trained(0.003)
    before = server.publish(one)
    client_of(server, tmp_path).sync()
    assert server.publish(two, version=2, older=[before]).update_blobs
    blob = biggest(before)
    (tmp_path / "state" / "blobs" / blob.sha256).write_bytes(bytes(blob.n_bytes))
    result = client_of(server, tmp_path).sync()
    assert (result.outcome, result.update) == ("activated", "none")
    assert "was damaged: whole files were fetched" in result.message
    assert active_file(tmp_path) == two.to_bytes()


def test_after_a_failed_hook_the_status_says_what_to_mend(
    server: EdgeServer, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileSource(server.manifest_file)
    monkeypatch.setattr(signed, "signed_source", lambda *_, **__: source)
    server.publish(release_of(1))
    folder = tmp_path / "device"
    words = ["edge", "sync", "--server", server.url, "--adapter", "demo", "--folder", str(folder),
             "--base-fingerprint", BASE]  # fmt: skip
    assert call(*words, "--hook", "false")[0] == 1
    assert "Mend what failed" in " ".join(
        call.ok("edge", "status", "--folder", str(folder)).split()
    )


def test_a_folder_where_no_sync_finished_says_so(tmp_path: Path, call: Call) -> None:
    (tmp_path / "device").mkdir()
    err = call.refused("edge", "status", "--folder", str(tmp_path / "device"))
    assert "no sync has finished in it. Run rankcast edge sync" in err
    assert "does not exist" in call.refused("edge", "status", "--folder", str(tmp_path / "none"))


def test_a_missing_token_file_and_a_wrong_root_name_their_options(
    server: EdgeServer, tmp_path: Path, call: Call
) -> None:
    words = ["edge", "sync", "--server", server.url, "--adapter", "demo", "--folder",
             str(tmp_path / "device"), "--base-fingerprint", BASE]  # fmt: skip
    assert "--token-file" in call.refused(*words, "--token-file", str(tmp_path / "none"))
    (tmp_path / "root.json").write_text("{}")
    err = call.refused(*words, "--root", str(tmp_path / "root.json"))
    assert "no root signed by its own keys (--root)" in err
