"""Devices that sync over one link in simulated time: real questions and plans, no bytes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from helpers.fleet import AppTransport, DirectApp, SimulatedClock
from rankcast.cli.main import main
from rankcast.edge.advice import Advice, CellFullError, MeasuredLink, RadioLink, advise
from rankcast.release.http import http_client
from rankcast.release.manifest import Blob, Manifest

ASKING_BITS = 8 * 1500
"""A question and its answer."""


def loss_without(manifest: Manifest) -> float:
    """Return the loss that stands for having nothing, as the server takes it."""
    losses = [c.loss for file in manifest.files for c in file.chunks if c.loss is not None]
    return max(losses) + max(max(losses) - min(losses), 0.1)


@dataclass
class Syncing:
    """A device and what it has.

    Attributes:
        token: its own.
        manifest: of the release that it wants.
        link: its own.
        starts_s: when it asks first [s].
        deadline_s: time for its transfer [s].
        reports: whether it reports at the end.
    """

    token: str
    manifest: Manifest
    link: RadioLink | MeasuredLink
    starts_s: float = 0.0
    deadline_s: float = 60.0
    reports: bool = True
    held: set[str] = field(default_factory=set)
    queue: list[Blob] = field(default_factory=list)
    left_bits: float = 0.0
    advice: Advice | None = None
    state: str = "waiting"
    asks_s: float = 0.0
    reasons: list[str] = field(default_factory=list)

    @property
    def until_s(self) -> float:
        return self.starts_s + self.deadline_s

    @property
    def gain(self) -> float:
        """Of the best prefix that is here [nats]."""
        best = 0.0
        for file in self.manifest.files:
            for n, chunk in enumerate(file.chunks, 1):
                if {b.sha256 for b in file.blobs(n)} <= self.held and chunk.loss is not None:
                    best = max(best, loss_without(self.manifest) - chunk.loss)
        return best


@dataclass
class SharedLink:
    """A link that everyone who transfers has an equal share of, and the app behind it."""

    app: Callable[[], DirectApp]
    clock: SimulatedClock
    rate_bps: float
    now_s: float = 0.0

    def deliver(self, devices: Sequence[Syncing]) -> float:
        """Let all devices sync; return the gain of what each holds at its deadline, summed."""
        for device in devices:
            device.asks_s = device.starts_s
        began_s, self.now_s = self.clock.now_s, 0.0
        while any(device.state != "done" for device in devices):
            busy = [device for device in devices if device.state == "busy"]
            step_s = min(self._next_s(device, len(busy)) for device in devices)
            self.now_s += step_s
            self.clock.now_s = began_s + self.now_s
            for device in busy:
                device.left_bits -= self.rate_bps * step_s / len(busy)
            for device in devices:
                self._act(device)
        return sum(device.gain for device in devices)

    def _next_s(self, device: Syncing, n_busy: int) -> float:
        if device.state == "done":
            return float("inf")
        if device.state == "waiting":
            return max(0.0, device.asks_s - self.now_s)
        arrives_s = device.left_bits * n_busy / self.rate_bps
        return max(0.0, min(arrives_s, device.until_s - self.now_s))

    def _act(self, device: Syncing) -> None:
        if device.state == "waiting" and self.now_s >= device.asks_s - 1e-9:
            self._ask(device)
        if device.state != "busy":
            return
        if device.left_bits <= 1e-6:
            device.held.add(device.queue.pop(0).sha256)
            if device.queue:
                device.left_bits += 8 * device.queue[0].n_bytes
            elif device.advice and device.advice.asks_again:
                self._ask(device)
            else:
                self._end(device)
        if device.state == "busy" and self.now_s >= device.until_s - 1e-9:
            self._end(device)

    def _ask(self, device: Syncing) -> None:
        http = http_client(device.token, "http://cloud", AppTransport(self.app))
        left_s = device.until_s - self.now_s
        if left_s <= 1e-6:
            self._end(device)
            return
        try:
            advice = advise(http, device.manifest, device.link, left_s, frozenset(device.held))
        except CellFullError as full:
            device.reasons.append(str(full))
            device.asks_s = self.now_s + full.wait_s
            if full.wait_s < left_s:
                device.state = "waiting"
            else:
                self._end(device)
            return
        device.advice, device.queue = advice, list(advice.plan.missing)
        if advice.cell:
            device.reasons.append(advice.cell)
        if not device.queue:
            self._end(device)
            return
        device.state = "busy"
        device.left_bits = 8 * device.queue[0].n_bytes + ASKING_BITS

    def _end(self, device: Syncing) -> None:
        device.state = "done"
        if device.reports:
            http = http_client(device.token, "http://cloud", AppTransport(self.app))
            body: dict[str, Any] = {
                "adapter": device.manifest.name, "version": device.manifest.version, "ladder": 0,
                "n_rungs": 1, "event": "activated",
            }  # fmt: skip
            assert http.post("v1/report", json=body).status_code == 204


def sync_as_typed(words: Sequence[str], output: Path) -> None:
    """Run `rankcast edge sync` in this process, and write its answer to a file."""
    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        main(["edge", "sync", *words])


def forking() -> Any:
    """Return what starts processes that have imported everything already, as torch is not."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.cells", "rankcast.cli.edge", "rankcast.edge.sync"])
    with patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
        forkserver.ensure_running()  # Python 3.11 does not tell it where modules lie
    return context
