"""Whatever dies, and when: llama.cpp answers with the old adapter or the new one, and goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from helpers.commands import Call
from helpers.edge_kills import forking
from helpers.llama_cpp import LlamaServer, needs_llama_cpp
from helpers.llama_device import SAME, Device, alone, distance, new_cloud, says
from helpers.llama_kills import Moment, sync_and_die
from helpers.programs import free_port
from helpers.servers import files_over_http
from rankcast.release.proof import Proof

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
SEEDS = (1, 2, 3, 4)
"""Of adapters that are published in turn; a device has dropped the bytes of one before it comes
again."""


@dataclass
class Mortal:
    """A device whose syncs are killed while releases appear.

    Attributes:
        device: with its folder.
        context: starts processes.
        proofs: what was recorded of the adapters of `SEEDS`.
        answers: with each of them.
        versions: what was published, as places in `SEEDS`.
    """

    device: Device
    context: Any
    proofs: list[Proof | None]
    answers: list[NDArray[Any]]
    versions: list[int] = field(default_factory=list)

    def publish(self) -> None:
        """Publish the next release."""
        which = len(self.versions) % len(SEEDS)
        self.device.cloud.publish_again(SEEDS[which], self.proofs[which])
        self.versions.append(which)

    @cached_property
    def notes(self) -> Path:
        return self.device.cloud.root / "notes"

    def sync(
        self, server: LlamaServer, at: Moment | int | None = None, victim: int | None = None
    ) -> int:
        """Sync in a process of its own, kill at a moment, and return the exit status."""
        folder = self.device.folder
        args = (self.device.words(server), folder, self.notes, at, victim)
        process = self.context.Process(target=sync_and_die, args=args)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def said(self) -> dict[str, Any]:
        """Return what the last sync printed."""
        return json.loads(self.notes.with_suffix(".out").read_text())

    def check_whole(self, server: LlamaServer, *, may_be_alone: bool = False) -> None:
        """The server answers with the release before or the newest, and the state names it."""
        found, state = says(server), self.device.state
        known = {p.version for p in (state.active, state.pending) if p is not None}
        assert known <= {len(self.versions) - 1, len(self.versions)}
        answers = [self.answers[self.versions[version - 1]] for version in known]
        answers += [alone()] if may_be_alone else []
        assert min(distance(answer, found) for answer in answers) < SAME
        assert server.process.poll() is None

    def check_newest(self, server: LlamaServer) -> None:
        """The server answers with the newest release, and the state says that it is active."""
        state = self.device.state
        assert (state.phase, state.pending, state.last_error) == ("idle", None, None)
        assert state.active is not None
        assert state.active.version == len(self.versions)
        assert distance(self.answers[self.versions[-1]], says(server)) < SAME
        assert server.process.poll() is None


@pytest.fixture
def mortal(tmp_path: Path, call: Call) -> Iterator[Mortal]:
    needs_llama_cpp()
    cloud = new_cloud(tmp_path, call)
    proofs = []
    for seed in SEEDS:
        cloud.publish(seed, *(("--runs-on", str(cloud.gguf)) if seed == SEEDS[0] else ()))
        proofs.append(cloud.active_manifest().proof)
    answers = [cloud.expected(seed) for seed in SEEDS]
    with files_over_http(cloud.root / "store") as url:
        versions = list(range(len(SEEDS)))
        yield Mortal(Device(cloud, url, call), forking(), proofs, answers, versions)


MOMENTS = {
    "the trusted root is being linked anew": Moment("put trust/metadata/root.json"),
    "the list of releases is being fetched": Moment("asked GET /metadata/timestamp.json"),
    "the list of releases is being replaced": Moment("put trust/metadata/targets.json"),
    "a chunk has been fetched": Moment("put blobs/*", 3),
    "all chunks were verified": Moment("asked GET /lora-adapters", 2),
    "the GGUF was written": Moment("put adapter/demo-*.gguf"),
    "it is in its place": Moment("put adapter/demo-slots.json"),
    "the device waits until the server sleeps": Moment("asked GET /props"),
    "the server wakes and reads": Moment("asked GET /lora-adapters", 4),
    "the server has read": Moment("put adapter/demo-slots.json", 2),
    "the proof is being asked": Moment("asked POST /completion", 4),
    "the scales are being set": Moment("asked POST /lora-adapters"),
    "the scales are set": Moment("put adapter/demo-slots.json", 3),
    "the copy of the state is written": Moment("put state.backup.json"),
    "the state is written": Moment("put state.json", 5),
    "nobody was told of it": Moment("asked POST /v1/report"),
}  # fmt: skip
"""What a sync does, in about this order."""


def test_a_killed_sync_leaves_the_old_adapter_or_the_new(mortal: Mortal) -> None:
    """One process of the server sees all of it."""
    with mortal.device.serve() as server:
        assert mortal.sync(server) == 0
        mortal.check_newest(server)
        for words, moment in MOMENTS.items():
            mortal.publish()
            assert mortal.sync(server, moment) == -signal.SIGKILL, words
            mortal.check_whole(server)
            assert mortal.sync(server) == 0, words
            mortal.check_newest(server)
        assert mortal.sync(server) == 0
        assert mortal.said()["outcome"] == "up-to-date"


STEP = int(os.environ.get("RANKCAST_KILL_STEP", "0")) or 45
"""Of about 60 things that a sync does."""


def test_killed_before_ever_later_steps(mortal: Mortal) -> None:
    """A sync is cut off ever later, each time from the same start, until it comes through."""
    with mortal.device.serve() as server:
        assert mortal.sync(server) == 0
        at = STEP // 2
        while True:
            mortal.publish()
            status = mortal.sync(server, at)
            mortal.check_whole(server)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            at += STEP
            assert mortal.sync(server) == 0
            mortal.check_newest(server)
        mortal.check_newest(server)
        assert at > STEP


DEATHS = {
    "the device waits until it sleeps": Moment("asked GET /props"),
    "it wakes and reads": Moment("asked GET /lora-adapters", 4),
    "it has read": Moment("put adapter/demo-slots.json", 2),
    "the proof is being asked": Moment("asked POST /completion", 4),
    "the scales are being set": Moment("asked POST /lora-adapters"),
    "the scales are set": Moment("put adapter/demo-slots.json", 3),
}  # fmt: skip


def test_a_server_that_is_killed_in_the_middle_of_a_sync(mortal: Mortal) -> None:
    """Its supervisor starts it again, without an adapter; the next sync brings the newest."""
    port = free_port()
    with mortal.device.serve(port=port) as server:
        assert mortal.sync(server) == 0
    for number, (words, moment) in enumerate(DEATHS.items()):
        with mortal.device.serve(f"{number}", port=port) as server:
            mortal.publish()
            status = mortal.sync(server, moment, victim=server.process.pid)
            assert server.process.wait() == -signal.SIGKILL
            assert status in (0, 2), words
        with mortal.device.serve(f"{number}-again", port=port) as server:
            assert distance(alone(), says(server)) < SAME
            mortal.check_whole(server, may_be_alone=True)
            assert mortal.sync(server) == 0, words
            mortal.check_newest(server)
