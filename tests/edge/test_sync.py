"""A device from nothing to an active adapter, and back again when it is a bad one."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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
from rankcast.codec.container import Container, read_container
from rankcast.codec.header import header_bytes
from rankcast.edge.activate import Candidate
from rankcast.edge.advice import RadioLink
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.fetch import Backoff, FetchSettings
from rankcast.edge.state import StateFile, read_state
from rankcast.edge.sync import EdgeClient
from rankcast.errors import (
    CodecError,
    ConfigError,
    DeliveryError,
    InfeasibleDeadlineError,
    ModelError,
    TrustError,
    UnavailableError,
)
from rankcast.files import only_one
from rankcast.release.manifest import blob_of


@pytest.fixture(scope="module")
def one() -> Container:
    return release_of(1, measured=True)


@pytest.fixture(scope="module")
def two() -> Container:
    return release_of(2, measured=True)


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state" / "state.json").read_text("utf-8"))


def test_two_releases_one_after_the_other(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    server.publish(one)
    client = client_of(server, tmp_path, token="of-this-device")  # noqa: S106
    result = client.sync()
    assert (result.outcome, result.planned_by) == ("activated", "server")
    assert active_file(tmp_path) == one.to_bytes()
    assert result.n_bytes == len(one.to_bytes())
    assert server.tokens == {"Bearer of-this-device"}
    n = len(server.requests)
    assert client.sync().outcome == "up-to-date"
    assert len(server.requests) == n
    server.publish(two, version=2)
    assert client.sync().outcome == "activated"
    assert active_file(tmp_path) == two.to_bytes()
    state = state_of(tmp_path)
    assert [state[key]["version"] for key in ("active", "previous")] == [2, 1]
    reported = [(r["event"], r["version"], r["n_rungs"]) for r in server.reports]
    n_chunks = [len(one.chunks), len(two.chunks)]
    assert reported == [
        ("activated", 1, 3), ("activated", 1, n_chunks[0]), ("activated", 2, n_chunks[1])
    ]  # fmt: skip
    assert server.asked[0]["base_fingerprint"] == BASE[:16]  # all that the file carries
    third = release_of(3)
    server.publish(third, version=3)
    client.sync()
    kept = {path.name for path in (tmp_path / "state" / "blobs").iterdir()}
    assert kept == {blob_of(chunk).sha256 for c in (two, third) for chunk in c.chunks} | {
        entry["blobs"][0] for entry in (state_of(tmp_path)[k] for k in ("active", "previous"))
    }
    assert len(list((tmp_path / "adapter" / "versions").iterdir())) == 2


def test_a_slow_link_brings_a_prefix_and_the_next_sync_the_rest(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    enough = 8.0 * (len(one.to_bytes()) - len(one.chunks[-1]) - 1)  # not for the last two chunks
    client = client_of(server, tmp_path, settings=settings(assumed_bps=enough, deadline_s=1.0))
    first = client.sync()
    assert first.outcome == "activated"
    assert first.active is not None
    assert first.active.n_chunks == len(one.chunks) - 2
    here = active_file(tmp_path)
    assert here is not None
    assert one.to_bytes().startswith(here)
    assert read_container(here, allow_prefix=True).chunks == one.chunks[: first.active.n_chunks]
    sent = server.sent.copy()
    while active_file(tmp_path) != one.to_bytes():
        assert client.sync().outcome == "activated"
    assert all(server.sent[sha256] == n for sha256, n in sent.items())


def test_a_deadline_that_passes_leaves_the_prefix_that_is_complete(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    # The plan is for megabits; the cap lets through 0.8 times all but the last chunk.
    sent = len(one.to_bytes()) - len(one.chunks[-1])
    fetch = FetchSettings(max_bps=8.0 * 0.8 * sent / 1000.0, silence_s=SILENCE_S)
    changed = settings(deadline_s=1000.0, radio=RadioLink(20.0, 1e6), fetch=fetch)
    result = client_of(server, tmp_path, settings=changed).sync()
    assert server.asked[-1]["link"] == {"snr_db": 20.0, "bandwidth_hz": 1e6, "rate_model": "awgn"}
    assert result.outcome == "activated"
    assert result.active is not None
    assert 1 <= result.active.n_chunks < len(one.chunks)
    slow = replace(changed, fetch=FetchSettings(max_bps=8e-3), deadline_s=100.0)
    with pytest.raises(InfeasibleDeadlineError):
        client_of(server, tmp_path / "other", settings=slow).sync()
    assert active_file(tmp_path / "other") is None


def test_a_device_without_an_adapter_has_a_good_prefix_early(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    seen: list[int] = []

    class Watching(WriteAdapter):
        def activate(self, candidate: Candidate) -> None:
            seen.append(candidate.prefix.n_chunks)
            super().activate(candidate)

    early = Watching("rcast", tmp_path / "adapter")
    result = client_of(server, tmp_path, activator=early).sync()
    assert (result.outcome, seen) == ("activated", [3, len(one.chunks)])
    assert result.n_bytes == len(one.to_bytes())
    assert active_file(tmp_path) == one.to_bytes()
    server.publish(release_of(2), version=2)  # from then on an adapter is active
    client_of(server, tmp_path, activator=early).sync()
    assert len(seen) == 3
    whole = Watching("rcast", tmp_path / "other" / "adapter")
    changed = settings(progressive=False)
    client_of(server, tmp_path / "other", activator=whole, settings=changed).sync()
    assert len(seen) == 4


def test_an_early_prefix_stays_if_the_server_goes(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)

    class Ending(WriteAdapter):
        def activate(self, candidate: Candidate) -> None:
            super().activate(candidate)
            server.faults.statuses = [503] * 4

    fetch = FetchSettings(silence_s=SILENCE_S, backoff=Backoff(n_tries=2))
    ending = Ending("rcast", tmp_path / "adapter")
    client = client_of(server, tmp_path, activator=ending, settings=settings(fetch=fetch))
    with pytest.raises(DeliveryError, match="sync again"):
        client.sync()
    active = state_of(tmp_path)["active"]
    assert len(active["blobs"]) == 4
    data = active_file(tmp_path)
    assert data is not None
    assert len(read_container(data, allow_prefix=True).chunks) == 3
    server.faults.statuses = []
    assert client_of(server, tmp_path).sync().outcome == "activated"
    assert active_file(tmp_path) == one.to_bytes()


def test_without_a_planner_the_device_plans_for_itself(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    for number, nonsense in enumerate(({"version": 7}, [1], "no")):
        server.faults.plan = nonsense
        result = client_of(server, tmp_path / str(number)).sync()
        assert (result.outcome, result.planned_by) == ("activated", "device")
    radio = settings(radio=RadioLink(-30.0, 1e3), deadline_s=0.1)
    with pytest.raises(InfeasibleDeadlineError, match="short by"):
        client_of(server, tmp_path / "radio", settings=radio).sync()
    with pytest.raises(ConfigError, match="positive"):
        client_of(server, tmp_path / "none", settings=settings(deadline_s=0.0)).sync()


@pytest.mark.parametrize(
    "change",
    [
        {"blobs": [{"sha256": "f" * 64, "n_bytes": 10}]},
        {"blobs": None},
        {"ladder": 1},
        {"ladder": True},
        {"n_rungs": 0},
        {"n_rungs": 10**9},
    ],
)
def test_a_plan_with_foreign_blobs_is_refused(
    change: dict[str, Any], server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    manifest = server.publish(one)
    blob = manifest.files[0].header
    good = {"version": 1, "ladder": 0, "n_rungs": 1,
            "blobs": [{"sha256": blob.sha256, "n_bytes": blob.n_bytes}]}  # fmt: skip
    server.faults.plan = good | change
    with pytest.raises(TrustError, match="no part of the prefix"):
        client_of(server, tmp_path).sync()
    assert server.requests == []
    assert server.reports[-1]["event"] == "refused"
    state = state_of(tmp_path)
    assert state["last_error"]["kind"] == "TrustError"
    assert state["last_error"]["remedy"]


def test_what_must_not_be_taken_is_refused_and_what_is_active_stays(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    server.publish(one, version=2)
    client_of(server, tmp_path).sync()
    server.publish(two, version=1)
    with pytest.raises(TrustError, match="never goes back"):
        client_of(server, tmp_path).sync()
    server.publish(two, version=2)
    with pytest.raises(TrustError, match="not the one that this device has seen"):
        client_of(server, tmp_path).sync()
    server.publish(two, version=3, name="other")
    with pytest.raises(TrustError, match="Asked for demo"):
        client_of(server, tmp_path).sync()
    header = replace(two.header, base=replace(two.header.base, fingerprint="1" * 64))
    server.publish(Container(header, two.chunks), version=3)
    with pytest.raises(ModelError, match="another base model"):
        client_of(server, tmp_path).sync()
    manifest = server.publish(two, version=4)
    server.faults.wrong_bytes = {biggest(manifest).sha256}
    with pytest.raises(TrustError, match="other bytes"):
        client_of(server, tmp_path).sync()
    assert active_file(tmp_path) == one.to_bytes()
    server.faults.wrong_bytes = set()
    assert client_of(server, tmp_path).sync().outcome == "activated"
    assert state_of(tmp_path)["last_error"] is None


def test_a_header_that_names_other_chunks_is_never_active(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    manifest = server.publish(one)
    header = server.store.put(header_bytes(two.header))
    file = replace(manifest.files[0], header=header)
    crossed = replace(manifest, files=(file,))
    server.manifest_file.write_bytes(crossed.to_bytes())
    with pytest.raises(CodecError):
        client_of(server, tmp_path).sync()
    assert active_file(tmp_path) is None


def test_a_failing_hook_brings_the_one_before_back(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    """The hook writes down what it was told, and fails for version 2."""
    log = tmp_path / "log"
    words = (
        f"import os; open({str(log)!r}, 'a').write(os.environ['RANKCAST_RELEASE'] + ' '); "
        "assert os.path.isfile(os.environ['RANKCAST_ADAPTER'] + '/adapter.rcast'); "
        "raise SystemExit('-v2-' in os.environ['RANKCAST_RELEASE'] and 'not this one')"
    )
    hook = (sys.executable, "-I", "-S", "-c", words)
    activator = WriteAdapter("rcast", tmp_path / "adapter", hook=hook)
    server.publish(one)
    assert client_of(server, tmp_path, activator=activator).sync().outcome == "activated"
    server.publish(two, version=2)
    result = client_of(server, tmp_path, activator=activator).sync()
    assert result.outcome == "rolled-back"
    assert "not this one" in result.message
    assert "status 1" in result.message
    assert active_file(tmp_path) == one.to_bytes()
    assert [x.split("-")[1] for x in log.read_text().split()] == ["v1", "v1", "v2", "v1"]
    assert server.reports[-1]["event"] == "rolled-back"
    again = client_of(server, tmp_path, activator=activator).sync()
    assert again.outcome == "rejected"
    assert len(log.read_text().split()) == 4
    well = client_of(server, tmp_path).sync(retry_rejected=True)
    assert well.outcome == "activated"
    assert active_file(tmp_path) == two.to_bytes()


def test_a_hook_that_hangs_or_does_not_exist_fails(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    for hook, words in ((("sleep", "60"), "took longer"), (("/nowhere/x",), "cannot be run")):
        activator = WriteAdapter("rcast", tmp_path / "adapter", hook=hook, hook_timeout_s=0.2)
        client = client_of(server, tmp_path, activator=activator)
        result = client.sync(retry_rejected=True)
        assert (result.outcome, words in result.message) == ("rolled-back", True)
        assert active_file(tmp_path) is None


def test_a_failing_health_check_brings_the_one_before_back(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    def broken() -> bool:
        raise ValueError("no answer")

    server.publish(one)
    assert client_of(server, tmp_path, health=lambda: False).sync().outcome == "rolled-back"
    assert active_file(tmp_path) is None
    client_of(server, tmp_path).sync(retry_rejected=True)
    server.publish(two, version=2)
    result = client_of(server, tmp_path, health=broken).sync()
    assert "ValueError('no answer')" in result.message
    assert active_file(tmp_path) == one.to_bytes()
    assert state_of(tmp_path)["active"]["version"] == 1


class Dies:
    """Dies in the middle of an activation, as a process that runs out of memory would."""

    def __init__(self, inner: WriteAdapter) -> None:
        self.inner = inner
        for name in ("active", "restore", "deactivate", "discard"):
            setattr(self, name, getattr(inner, name))

    def activate(self, candidate: Candidate) -> None:
        self.inner.write(candidate)
        self.inner.switch(candidate.prefix.label)
        raise KeyboardInterrupt


def test_an_activation_that_keeps_dying_is_given_up(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    server.publish(one)
    client_of(server, tmp_path).sync()
    server.publish(two, version=2)
    dying = Dies(WriteAdapter("rcast", tmp_path / "adapter"))
    client = client_of(server, tmp_path, activator=dying)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            client.sync()
        assert active_file(tmp_path) == two.to_bytes()  # whole, if not proved
    assert client.sync().outcome == "rejected"
    assert active_file(tmp_path) == one.to_bytes()
    assert "given up" in state_of(tmp_path)["last_error"]["message"]


def test_a_damaged_state_is_set_aside_and_rebuilt(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    server.publish(one)
    client_of(server, tmp_path).sync()
    server.publish(two, version=2)
    client_of(server, tmp_path).sync()
    n = len(server.requests)
    for damage in (b"{", b"\xff\xfe", b"[]", b'{"adapter": "demo", "phase": "odd"}', None):
        file = tmp_path / "state" / "state.json"
        file.unlink() if damage is None else file.write_bytes(damage)
        assert client_of(server, tmp_path).sync().outcome == "up-to-date"
        state = state_of(tmp_path)
        assert [state[k]["version"] for k in ("active", "previous")] == [2, 1]
        assert state["history"][-1]["kind"] == "rebuilt"
    assert len(server.requests) == n
    assert (tmp_path / "state" / "state.damaged.json").exists()
    (tmp_path / "state" / "state.json").write_bytes(b"{")
    with pytest.raises(DeliveryError, match="is damaged"):
        read_state(tmp_path / "state")


def test_a_folder_of_an_older_rankcast_goes_on(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    """It kept a digest of the manifest in the state, and no copy of the state."""
    server.publish(one)
    client_of(server, tmp_path).sync()
    (tmp_path / "state" / "state.backup.json").unlink()
    old = {**state_of(tmp_path), "manifest_sha256": "0" * 64}
    assert list(old["active"]) == ["name", "version", "ladder", "blobs", "loss", "accuracy"]
    (tmp_path / "state" / "state.json").write_text(json.dumps(old))
    n = len(server.requests)
    assert client_of(server, tmp_path).sync().outcome == "up-to-date"
    (tmp_path / "state" / "state.json").write_text("{")
    assert client_of(server, tmp_path).sync().outcome == "activated"
    assert len(server.requests) == n  # the blobs are all here
    server.publish(two, version=2)
    assert client_of(server, tmp_path).sync().outcome == "activated"
    assert [state_of(tmp_path)[key]["version"] for key in ("active", "previous")] == [2, 1]


def test_a_lost_adapter_comes_back_from_the_cache_without_a_network(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    client_of(server, tmp_path).sync()
    (tmp_path / "adapter" / "current").unlink()
    client_of(server, tmp_path).resume()
    assert active_file(tmp_path) == one.to_bytes()
    file = next((tmp_path / "adapter" / "versions").glob("*/adapter.rcast"))
    file.write_bytes(b"damaged")
    (tmp_path / "adapter" / "current").unlink()
    client_of(server, tmp_path).resume()
    assert active_file(tmp_path) == one.to_bytes()


def test_a_blob_that_rots_on_the_disk_is_fetched_again(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    manifest = server.publish(one)
    client = client_of(server, tmp_path, health=lambda: False)
    client.sync()
    blob = biggest(manifest)
    (tmp_path / "state" / "blobs" / blob.sha256).write_bytes(bytes(blob.n_bytes))
    result = client_of(server, tmp_path).sync(retry_rejected=True)
    assert result.outcome == "activated"
    assert active_file(tmp_path) == one.to_bytes()


def test_an_unreachable_server_leaves_everything_as_it_is(
    server: EdgeServer, tmp_path: Path, one: Container, two: Container
) -> None:
    server.publish(one)
    client_of(server, tmp_path).sync()
    server.publish(two, version=2)
    server.faults.statuses = [503] * 4
    patience = FetchSettings(silence_s=SILENCE_S, backoff=Backoff(n_tries=2))
    impatient = client_of(server, tmp_path, settings=settings(fetch=patience))
    for _ in range(2):
        with pytest.raises(DeliveryError, match="sync again"):
            impatient.sync()
    events = [e["kind"] for e in state_of(tmp_path)["history"]]
    assert events.count("failed") == 1  # the same failure is not written down again
    assert active_file(tmp_path) == one.to_bytes()


@pytest.mark.parametrize("where", ["engines.folder.flush_file", "state.put_file"])
def test_a_disk_that_is_full_at_activation_is_no_proof_against_a_release(
    where: str, server: EdgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = release_of(1), release_of(2)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.publish(one)
    client_of(server, tmp_path).sync()
    server.publish(two, version=2)
    with monkeypatch.context() as patched:
        patched.setattr(f"rankcast.edge.{where}", full)
        with pytest.raises(UnavailableError, match="disk is full"):
            client_of(server, tmp_path).sync()
        assert active_file(tmp_path) == one.to_bytes()
    assert client_of(server, tmp_path).sync().outcome == "activated"
    assert active_file(tmp_path) == two.to_bytes()


def test_two_processes_do_not_sync_one_folder(server: EdgeServer, tmp_path: Path) -> None:
    client = client_of(server, tmp_path)
    with (
        only_one(client.folder / ".lock", "busy"),
        pytest.raises(DeliveryError, match="Someone else is syncing"),
    ):
        client.sync()


def test_a_folder_belongs_to_one_adapter(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    server.publish(one)
    client_of(server, tmp_path).sync()
    other = EdgeClient(server.url, "other", BASE, tmp_path / "state", FileSource(tmp_path))
    with pytest.raises(DeliveryError, match="folder of demo"):
        other.sync()


@pytest.mark.parametrize("measured", [False, True])
def test_a_slow_measurement_does_not_stop_a_device_forever(
    measured: bool, server: EdgeServer, tmp_path: Path
) -> None:
    """A device whose link was slow once finds out when it is not any more."""
    one = release_of(1, measured=measured)
    server.publish(one)
    client = client_of(server, tmp_path)
    states = StateFile(client.folder, "demo")
    for n_chunks in range(1, len(one.chunks) + 1):
        states.change(throughput_bps=1e-6)
        result = client.sync()
        assert (result.outcome, result.planned_by) == ("activated", "device")
        assert result.active is not None
        assert result.active.n_chunks == n_chunks
        states.recover()
    states.change(throughput_bps=1e-6)
    assert client.sync().outcome == "up-to-date"


def test_a_release_that_names_only_the_first_digits_of_a_base_model_is_taken_for_that_one(
    server: EdgeServer, tmp_path: Path, one: Container
) -> None:
    cut = replace(
        one, header=replace(one.header, base=replace(one.header.base, fingerprint="1" * 16))
    )
    server.publish(cut)
    for other in (BASE, "1" * 15 + "0" * 49):
        with pytest.raises(ModelError, match="another base model"):
            client_of(server, tmp_path, base=other).sync()
    assert client_of(server, tmp_path, base="1" * 16 + "0" * 48).sync().outcome == "activated"
    with pytest.raises(DeliveryError, match="first 16"):
        client_of(server, tmp_path, base="")
