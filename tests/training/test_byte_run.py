"""Runs for a file of a given size: what they leave, how they stop and go on, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.commands import Call
from rankcast.codec.container import load
from rankcast.config.run import RunConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.presets import load_preset
from rankcast.training.byte_run import SizeResult, train_to_size
from rankcast.training.journal import read_log
from rankcast.training.run import train

STEPS, TARGET = 12, 900


def small(output: Path, **changes: Any) -> RunConfig:
    settings = {"steps": STEPS, "codec.target_bytes": TARGET, "output": str(output)}
    settings["codec.teachers"] = 0
    return load_preset("tiny", settings | changes)


def stop_after(n_steps: int) -> Callable[[], bool]:
    left = iter(range(n_steps))
    return lambda: next(left, None) == n_steps - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> SizeResult:
    return train_to_size(small(tmp_path_factory.mktemp("sized") / "run"))


def test_what_a_run_leaves(whole: SizeResult) -> None:
    folder, adapter = whole.folder, whole.adapter
    assert adapter is not None
    assert folder.file.read_bytes() == adapter.file.to_bytes()
    assert folder.file.stat().st_size <= TARGET
    result = json.loads(folder.result.read_text("utf-8"))
    assert result["bytes"] == folder.file.stat().st_size
    assert result["loss"] == adapter.after.loss
    assert result["loss_before"] == adapter.before.loss
    assert result["n_texts"] == 64
    rows = read_log(folder.log, "step")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    sizes = [row["n_bytes"] for row in rows]
    assert sizes[: STEPS // 4] == [None] * (STEPS // 4)
    assert all(size > 0 for size in sizes[STEPS // 4 :])


@pytest.mark.parametrize("stop", [2, 7])  # before weights are rounded, and after
def test_two_parts_equal_the_whole(whole: SizeResult, tmp_path: Path, stop: int) -> None:
    config = small(tmp_path / "run")
    first = train_to_size(config, should_stop=stop_after(stop))
    assert first.adapter is None
    assert first.step == stop
    assert not first.folder.file.exists()
    second = train_to_size(config, resume=True)
    assert second.folder.file.read_bytes() == whole.folder.file.read_bytes()
    assert second.folder.log.read_text() == whole.folder.log.read_text()
    assert second.result["loss_before"] == whole.result["loss_before"]


def test_a_run_goes_on_with_its_own_settings(tmp_path: Path) -> None:
    train_to_size(small(tmp_path / "run"), should_stop=stop_after(3))
    with pytest.raises(CheckpointError, match=r"codec\.target_bytes"):
        train_to_size(small(tmp_path / "run", **{"codec.target_bytes": 1000}), resume=True)
    with pytest.raises(ConfigError, match="--overwrite"):
        train_to_size(small(tmp_path / "run"))


def test_a_policy_is_trained_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target_bytes"):
        train(small(tmp_path))
    with pytest.raises(ConfigError, match="target_bytes"):
        train_to_size(small(tmp_path, **{"codec.target_bytes": None}))


@pytest.mark.parametrize(
    "command",
    [("evaluate",), ("allocate", "--snr-db", "5"), ("export", "--snr-db", "5", "-o", "x")],
)
def test_what_needs_a_policy_names_the_file(
    whole: SizeResult, call: Call, command: tuple[str, ...]
) -> None:
    said = call.refused(command[0], "--run", str(whole.folder.path), *command[1:])
    assert "adapter.rcast" in said


def test_rank_as_it_is_asked_for(tmp_path: Path) -> None:
    outcome = train_to_size(small(tmp_path / "run", **{"codec.rank": 2}))
    assert outcome.result["rank"] == 2
    assert load(outcome.folder.file).tensors().ranks.max() <= 2


def test_prefixes_of_given_sizes(tmp_path: Path, call: Call) -> None:
    command = ("train", "tiny", "--steps", "24", "--output", str(tmp_path), "--codec.rank", "1")
    sizes = ("--codec.target-bytes", "1500", "--codec.prefix-bytes", "600", "900")
    plain = json.loads(call.ok(*command, *sizes, "--json"))
    found = [prefix["bytes"] for prefix in plain["prefixes"]]
    assert all(n <= size for n, size in zip(found, (600, 900, 1500), strict=True))
    file = load(tmp_path / "adapter.rcast")
    assert [prefix.n_bytes for prefix in file.ladder] == found
    # `pack` finds the sizes again.
    for target, n in ((1600, 3), (found[1], 2), (found[0], 1)):
        again = tmp_path / "again.rcast"
        call.ok("pack", str(tmp_path), "-o", str(again), "--target-bytes", str(target))
        packed, trained = load(again).tensors(), list(file.decoded())[n - 1][1]
        for f, g in zip(packed.factors, trained.factors, strict=True):
            np.testing.assert_array_equal(f.left, g.left)
    # A prefix is an adapter by itself: what a device has after a packet.
    (tmp_path / "first.rcast").write_bytes((tmp_path / "adapter.rcast").read_bytes()[:600])
    call.ok("unpack", str(tmp_path / "first.rcast"), "-o", str(tmp_path / "lora"), "--prefix")
    assert "needs codec.target_bytes" in call.refused(*command, *sizes[2:], "--overwrite")


def test_train_by_command(tmp_path: Path, call: Call) -> None:
    command = ("train", "tiny", "--steps", str(STEPS), "--codec.target-bytes", str(TARGET))
    out = call.ok(*command, "--output", str(tmp_path / "a"))
    assert "adapter.rcast" in out
    assert "in float32 ->" in out
    plain = json.loads(call.ok(*command, "--json", "--output", str(tmp_path / "b")))
    assert plain["bytes"] <= TARGET
    assert plain["steps"] == STEPS
    # `pack` makes the same file from the folder.
    call.ok("pack", str(tmp_path / "a"), "-o", str(tmp_path / "again.rcast"))
    assert (tmp_path / "again.rcast").read_bytes() == (tmp_path / "a/adapter.rcast").read_bytes()
    message = call.refused("train", "tiny", "--codec.target-bytes", "20")
    assert "at least 200" in message
