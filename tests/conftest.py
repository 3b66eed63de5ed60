"""Settings of the whole suite: one thread per process; nothing depends on speed or luck."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the suite runs in two processes, on as few as two cores
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

from helpers import commands
from helpers.browser import chromium
from helpers.clusters import ray_may_start
from rankcast.cli.main import main

settings.register_profile(
    "suite",
    max_examples=50,  # always the same ones: more say little more
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("suite"), max_examples=200, derandomize=False
)
settings.load_profile("suite")  # pytest --hypothesis-profile=explore draws other examples


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> commands.Call:
    return commands.Call(capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; no test may change its settings or weights."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["train", *commands.TINY, "--output", str(folder)])
    assert stopped.value.code == 0
    return folder


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test start Ray; skip it where Ray is not installed."""
    with ray_may_start(monkeypatch):
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Run Chromium; skip where there is none."""
    with chromium() as running:
        yield running
