"""Ray clusters on this machine, however slow it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest


@contextmanager
def ray_may_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests start Ray, and end it after them; skip them where it is not installed."""
    ray = pytest.importorskip("ray")
    # Ray gives a node 30 s to start and has no option for it: stop the clock that it looks at.
    stopped = SimpleNamespace(**vars(time) | {"monotonic": lambda: 0.0})
    monkeypatch.setattr("ray._private.node.time", stopped)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine leaves workers no time
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()
