"""A llama.cpp server that runs on: whatever dies, it answers with a whole, proved adapter."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from helpers.codec import packed, random_adapter
from helpers.edge import EdgeServer, FakeTime, client_of, serving
from helpers.llama_fake import TOKENS, WIDTH, FakeLlama, says, write_small_base
from helpers.waiting import in_background
from rankcast.codec.container import Container
from rankcast.codec.formats.gguf import write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.edge.engines import llama_server
from rankcast.edge.engines.llama_api import LlamaApi
from rankcast.edge.engines.llama_server import LlamaServer
from rankcast.edge.engines.llama_slots import SLOTS, Content, Slots
from rankcast.edge.install import SyncResult
from rankcast.edge.state import read_state
from rankcast.errors import DeliveryError, UnavailableError
from rankcast.files import replace_file
from rankcast.release.manifest import Manifest
from rankcast.release.proof import Probe, ProbeAnswers, Proof

ENGINE = Path(llama_server.__file__).parent
EDGE = ENGINE.parent
TRACED = {
    str(EDGE / "activate.py"),
    *(str(ENGINE / f"llama_{part}.py") for part in ("server", "slots")),
}
"""Where a device is killed before a line."""


class PowerCutError(BaseException):
    """Nothing can be done about it."""


def adapter(seed: int, width: int = WIDTH) -> Container:
    """Return an adapter of one chunk on the queries of two layers."""
    tensors = random_adapter(seed, ((width, WIDTH), (width, WIDTH)), (2, 2))
    named = tuple(replace(p, name=f"model.{p.name}") for p in tensors.projections)
    file = packed(replace(tensors, projections=named), n_steps=1)
    return replace(file, header=replace(file.header, task={"task_type": "CAUSAL_LM"}))


@dataclass
class Device:
    """A device, its server and its cloud.

    Attributes:
        cloud: hands out releases.
        root: folder of all of it.
        llama: answers.
        files: what the adapter of a release is as GGUF, by its version.
    """

    cloud: EdgeServer
    root: Path
    llama: FakeLlama
    files: dict[int, bytes] = field(default_factory=dict)

    @property
    def slots(self) -> Slots:
        return Slots(self.root / "adapter", "demo", self.root / "base.gguf")

    def engine(self, **changes: Any) -> LlamaServer:
        time = FakeTime()
        given: dict[str, Any] = {"clock": time.clock, "sleep": time.sleep, "patience_s": 2.0}
        base = self.root / "base.gguf"
        given |= {"architecture": lambda _: GgufArchitecture.of_gguf(base)}
        return LlamaServer(LlamaApi(self.llama.url), self.slots, **{**given, **changes})

    def publish(self, container: Container, *, is_good: bool = True) -> Manifest:
        """Publish the next release, with a proof: its own, or one of another adapter."""
        version = len(self.files) + 1
        path = self.root / "as.gguf"
        architecture = GgufArchitecture.of_gguf(self.root / "base.gguf")
        self.files[version] = write_gguf(container.tensors(), path, architecture).read_bytes()
        expected = says(self.files[version])
        proof = Proof(
            (Probe((1, 2), TOKENS, tuple(says(None))),),
            (ProbeAnswers(0, 1, (tuple(expected if is_good else expected[1:] + expected[:1]),)),),
        )
        manifest = replace(self.cloud.publish(container, version=version), proof=proof)
        data = manifest.to_bytes()
        replace_file(self.cloud.manifest_file, lambda file: file.write_bytes(data))
        return manifest

    def sync(self, **changes: Any) -> SyncResult:
        return client_of(self.cloud, self.root, activator=self.engine(**changes)).sync()

    def active(self) -> int | None:
        """Return the version that the server answers with; it is whole, and the only one."""
        used = self.llama.answering_with()
        assert len(used) <= 1
        return next((v for v, data in self.files.items() if used and data == used[0]), None)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    base = write_small_base(tmp_path / "base.gguf")
    slots = Slots(tmp_path / "adapter", "demo", base)
    slots.prepare()
    llama = FakeLlama([slots.path(slot) for slot in SLOTS])
    with serving(tmp_path) as cloud, in_background(llama):
        yield Device(cloud, tmp_path, llama)


def test_releases_go_from_slot_to_slot(device: Device) -> None:
    used = []
    for seed in range(3):
        device.publish(adapter(seed))
        assert device.sync().outcome == "activated"
        assert device.active() == seed + 1
        used.append(device.llama.scales.index(1.0))
    assert used == [0, 1, 0]
    n_loads = device.llama.n_loads
    assert device.sync().outcome == "up-to-date"
    assert device.llama.n_loads == n_loads


def test_after_a_restart_of_the_server_the_scales_are_set_again(device: Device) -> None:
    device.publish(adapter(0))
    label = device.sync().message.split()[0]
    n_loads = device.llama.n_loads
    device.llama.restart()
    assert device.active() is None
    result = device.sync()
    assert (result.outcome, device.active()) == ("up-to-date", 1)
    assert result.message.startswith(f"The engine had lost {label}, or its files were changed")
    assert device.llama.n_loads == n_loads + 1
    assert "had lost" not in device.sync().message
    device.llama.restart()
    device.cloud.manifest_file.unlink()
    with pytest.raises(DeliveryError, match="No release"):
        device.sync()
    assert device.active() == 1
    device.llama.restart()
    device.publish(adapter(1))
    assert "had lost" not in device.sync().message  # what matters is that the next one is active
    assert device.active() == 2
    state = read_state(device.root / "state")
    assert state is not None
    kinds = [event.kind for event in state.history]
    assert kinds == ["fetched", "activated", "restored", "restored", "failed", "restored",
                     "fetched", "activated"]  # fmt: skip


def test_a_server_that_is_down_is_told_of_in_the_state(device: Device) -> None:
    device.publish(adapter(0))
    device.sync()
    device.llama.has_ended = True
    for _ in range(2):
        with pytest.raises(UnavailableError, match="does not answer"):
            device.sync()
    state = read_state(device.root / "state")
    assert state is not None
    assert state.last_error is not None
    assert (state.last_error.kind, state.phase) == ("UnavailableError", "failed")
    assert [event.kind for event in state.history].count("failed") == 1
    assert device.cloud.reports[-1]["event"] == "failed"
    device.llama.restart()
    device.sync()
    state = read_state(device.root / "state")
    assert state is not None
    assert (state.last_error, state.phase) == (None, "idle")


def test_adapters_of_others_keep_their_scales(device: Device) -> None:
    other = write_small_base(device.root / "other.gguf")
    device.llama.paths.append(other)
    device.llama.scales.append(0.5)
    device.llama.load()
    for seed in (0, 1):
        device.publish(adapter(seed))
        device.sync()
        assert device.llama.scales[2] == 0.5
    assert device.llama.scales[:2] == [0.0, 1.0]


def test_a_server_that_was_started_with_both_at_scale_1_is_put_right(device: Device) -> None:
    device.publish(adapter(0))
    device.llama.scales = [1.0, 1.0]
    assert device.sync().outcome == "activated"
    assert device.active() == 1


def test_what_does_not_fit_the_model_never_reaches_the_server(device: Device) -> None:
    """The server would end."""
    device.publish(adapter(0))
    device.sync()
    device.publish(adapter(1, width=32))
    result = device.sync()
    assert (result.outcome, "takes 64" in result.message) == ("rolled-back", True)
    write_small_base(device.root / "base.gguf", name="qwen2")
    device.publish(adapter(2))  # written for qwen2
    write_small_base(device.root / "base.gguf")
    qwen2 = replace(GgufArchitecture.of_gguf(device.root / "base.gguf"), name="qwen2")
    result = device.sync(architecture=lambda _: qwen2)
    assert (result.outcome, "written for qwen2" in result.message) == ("rolled-back", True)
    assert (device.active(), device.llama.has_ended) == (1, False)


def test_what_fails_its_proof_never_answers_and_is_not_tried_again(device: Device) -> None:
    device.publish(adapter(0))
    device.sync()
    device.publish(adapter(1), is_good=False)
    result = device.sync()
    assert (result.outcome, "as it was published" in result.message) == ("rolled-back", True)
    assert device.active() == 1
    assert device.sync().outcome == "rejected"
    device.llama.restart()
    device.sync()
    assert device.active() == 1


def test_a_changed_file_is_found_and_written_anew(device: Device) -> None:
    device.publish(adapter(0))
    device.sync()
    path = device.slots.path("a")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    device.sync()
    assert device.active() == 1
    assert device.slots.content("b") is not None
    assert device.llama.scales == [0.0, 1.0]


def test_a_server_that_never_sleeps_is_tried_again(device: Device) -> None:
    device.publish(adapter(0))
    device.sync()
    device.publish(adapter(1))
    device.llama.is_busy = True
    with pytest.raises(UnavailableError, match="--sleep-idle-seconds"):
        device.sync()
    assert device.active() == 1
    device.llama.is_busy = False
    assert device.sync().outcome == "activated"
    assert device.active() == 2


def test_a_hook_makes_a_busy_server_read(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.llama.is_busy = True
    ran: list[str] = []

    def restart(command: Any, variables: Any, timeout_s: float) -> None:
        ran.append(variables["RANKCAST_RELEASE"])
        device.llama.restart()

    monkeypatch.setattr(llama_server, "run_hook", restart)
    for seed in (0, 1):
        device.publish(adapter(seed))
        assert device.sync(hook=("restart",)).outcome == "activated"
        assert device.active() == seed + 1
    assert [label.split("-")[1] for label in ran] == ["v1", "v2"]


def test_a_server_that_ends_as_it_reads_gets_an_empty_file(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.publish(adapter(0))
    device.sync()
    device.publish(adapter(1, width=32))
    monkeypatch.setattr("rankcast.edge.engines.llama_slots._check_fits", lambda *_: None)
    with pytest.raises(UnavailableError):  # it is down, so the one before cannot be put back
        device.sync()
    assert device.llama.has_ended
    device.llama.restart()
    assert not device.llama.has_ended
    assert device.sync().outcome == "rejected"
    assert device.active() == 1


def test_an_unread_file_is_emptied_where_the_server_is_down(device: Device) -> None:
    """It may be what the server ended of while the device was dead."""
    device.publish(adapter(0))
    device.sync()
    device.slots.path("b").write_bytes(b"GGUF nonsense")
    digest = hashlib.sha256(b"GGUF nonsense").hexdigest()
    device.slots._note("b", Content("demo-v9", digest, read=False))
    device.llama.has_ended = True
    with pytest.raises(UnavailableError):
        device.sync()
    device.llama.restart()
    assert not device.llama.has_ended
    device.sync()
    assert device.active() == 1


def test_a_server_with_other_files_is_told_how_to_start(device: Device, tmp_path: Path) -> None:
    device.publish(adapter(0))
    device.llama.paths = [write_small_base(tmp_path / name) for name in ("x.gguf", "y.gguf")]
    with pytest.raises(DeliveryError, match=r"--lora-scaled .*demo-a\.gguf:0"):
        device.sync()


def test_the_files_may_lie_elsewhere_for_the_server(device: Device, tmp_path: Path) -> None:
    """As in a container."""
    (tmp_path / "mounted").symlink_to(tmp_path / "adapter", target_is_directory=True)
    device.llama.paths = [tmp_path / "mounted" / path.name for path in device.llama.paths]
    device.publish(adapter(0))
    assert device.sync().outcome == "activated"


@contextmanager
def killed_before_line(number: int) -> Iterator[Callable[[], bool]]:
    """End this thread's work before the n-th line of the traced files (counted from 0)."""
    left = [number]

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename not in TRACED or left[0] < 0:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                raise PowerCutError
        return trace

    sys.settrace(trace)
    try:
        yield lambda: left[0] < 0
    except PowerCutError:
        pass
    finally:
        sys.settrace(None)


STEP = int(os.environ.get("RANKCAST_KILL_STEP", "37"))
"""Of about 600 lines."""


@pytest.mark.parametrize("is_good", [True, False])
def test_killed_before_ever_later_lines(device: Device, is_good: bool) -> None:
    """An activation is cut off ever later, each time from the same start, until it ends."""
    device.publish(adapter(0))
    device.sync()
    good, number, n_cut = 1, 0, 0
    while True:
        seed = len(device.files)
        device.publish(adapter(seed), is_good=is_good)
        with killed_before_line(number) as was_killed:
            device.sync()
        newest = len(device.files)
        assert device.active() in ({good, newest} if is_good else {good})
        assert not device.llama.has_ended
        device.sync()
        assert device.active() == (newest if is_good else good)
        state = read_state(device.root / "state")
        assert state is not None
        assert state.active is not None
        assert state.active.version == device.active()
        good = newest if is_good else good
        if not was_killed():
            break
        n_cut += 1
        number += STEP
    assert n_cut > 10


def test_notes_that_were_damaged_cost_a_reading_and_no_more(device: Device) -> None:
    device.publish(adapter(0))
    device.sync()
    for damage in (b"{", b"[]", b"\xff", json.dumps({"a": 1, "b": {"label": 2}}).encode()):
        (device.root / "adapter" / "demo-slots.json").write_bytes(damage)
        device.sync()
        assert device.active() == 1
