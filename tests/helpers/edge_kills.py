"""Devices that die: by SIGKILL after a random time, or before the n-th time they touch the disk.

Imported by a process that forks one child for each sync, so that a child starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from helpers.edge import BASE, EdgeServer, FileSource, active_file, release_of, settings
from rankcast.codec.container import Container, read_container
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.state import read_state
from rankcast.edge.sync import EdgeClient
from rankcast.release.manifest import blob_of

TOUCHING = frozenset(
    {"open", "os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "socket.connect"}
)
"""Audit events of what leaves traces."""
N_DIFFERENT = 4
"""Releases that are packed; they come again in turn under new versions."""


def device(url: str, manifest_file: Path, folder: Path) -> EdgeClient:
    return EdgeClient(
        url, "demo", BASE, folder / "state", FileSource(manifest_file),
        WriteAdapter("rcast", folder / "adapter"), settings=settings(most_attempts=10**6),
    )  # fmt: skip


def sync_and_die(url: str, manifest_file: Path, folder: Path, die_at: int | None) -> None:
    """Sync; with `die_at` be killed before that touch of the disk (counted from 0)."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    touched = [0]

    def count(event: str, args: Any) -> None:
        if event in TOUCHING and (event != "open" or str(folder) in str(args[0])):
            if touched[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            touched[0] += 1

    sys.addaudithook(count)
    device(url, manifest_file, folder).sync()


def forking() -> Any:
    """Return what starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.edge_kills", "helpers.llama_kills"])
    with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
        forkserver.ensure_running()  # Python 3.11 does not tell it where modules lie
    return context


_BEYOND = 1.25
"""Kills reach so far beyond the length of a sync, for no two syncs take equally long."""


@dataclass
class Mortal:
    """A device that is killed again and again while releases appear.

    Attributes:
        server: that it asks.
        folder: of the device.
        context: starts processes.
        releases: what was published, the first one as version 1.
    """

    server: EdgeServer
    folder: Path
    context: Any
    releases: list[Container]

    def publish(self) -> None:
        """Publish the next release; a device drops its blobs before the same ones come again."""
        version = len(self.releases) + 1
        again = version > N_DIFFERENT
        self.releases.append(self.releases[-N_DIFFERENT] if again else release_of(version))
        self.server.publish(self.releases[-1], version=version)

    def run(self, *, die_at: int | None = None, kill_after_s: float | None = None) -> bool:
        """Sync once in a process of its own and return whether it came to its end."""
        args = (self.server.url, self.server.manifest_file, self.folder, die_at)
        process = self.context.Process(target=sync_and_die, args=args)
        process.start()
        if kill_after_s is not None:
            process.join(kill_after_s)
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode == 0

    def check(self) -> None:
        """Check that all that is on the disk is whole and verified, and that the state is true."""
        blobs = self.folder / "state" / "blobs"
        for path in blobs.iterdir() if blobs.is_dir() else ():
            if path.suffix != ".part":
                assert blob_of(path.read_bytes()).sha256 == path.name
        state = read_state(self.folder / "state")  # raises if it is damaged
        data = active_file(self.folder)
        current = WriteAdapter("rcast", self.folder / "adapter").active()
        if data is None:
            assert current is None
            assert state is None or state.active is None
            return
        container = read_container(data, allow_prefix=True)
        assert data in [release.to_bytes() for release in self.releases[-N_DIFFERENT:]]
        assert container.is_whole
        assert state is not None
        known = {p.label for p in (state.active, state.pending) if p is not None}
        assert current in known

    @property
    def is_done(self) -> bool:
        return active_file(self.folder) == self.releases[-1].to_bytes()


def kill_at_random(mortal: Mortal, n_kills: int, rng: np.random.Generator) -> int:
    """Kill `n_kills` syncs at random moments; return how many releases were delivered meanwhile."""
    mortal.publish()
    mortal.run()  # the first process imports everything
    mortal.publish()
    start = time.perf_counter()
    mortal.run()
    whole_s = time.perf_counter() - start
    mortal.publish()
    killed = 0
    while killed < n_kills:
        killed += not mortal.run(kill_after_s=rng.uniform(0.0, _BEYOND * whole_s))
        mortal.check()
        if mortal.is_done:
            mortal.publish()
    assert mortal.run()
    mortal.check()
    assert mortal.is_done
    return len(mortal.releases)
