"""Runs for a file of a given size: what they leave, how they stop and go on, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.commands import Call
from rankcast.codec.container import load
from rankcast.config.run import RunConfig
from rankcast.errors import CheckpointError, ConfigError, InfeasibleDeadlineError
from rankcast.packaging.planned import planned_files
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


def test_smaller_files_lie_beside_it(tmp_path: Path, call: Call) -> None:
    command = ("train", "tiny", "--steps", "24", "--output", str(tmp_path), "--codec.teachers", "0")
    sizes = ("--codec.target-bytes", "1500", "--codec.smaller-bytes", "900", "600")
    plain = json.loads(call.ok(*command, *sizes, "--json"))
    files = [load(tmp_path / f"adapter{name}.rcast") for name in ("", "-900", "-600")]
    found = [plain["bytes"], *(file["bytes"] for file in plain["smaller"])]
    assert [file.n_bits // 8 for file in files] == found
    assert all(n <= size for n, size in zip(found, (1500, 900, 600), strict=True))
    assert all(file["loss"] > 0 for file in plain["smaller"])
    # One release has them all.
    place = ("--store", str(tmp_path / "store"), "--keys", str(tmp_path / "keys"))
    call.ok("keys", "init", *place)
    named = [str(tmp_path / f"adapter{name}.rcast") for name in ("", "-900", "-600")]
    release = json.loads(call.ok("publish", *named, "--name", "a", *place, "--json"))
    assert release["ladders"] == 3
    # Another run in the folder leaves none of an older one, and keeps what is no run's.
    mine = tmp_path / "adapter-mine.rcast"
    mine.write_bytes(b"")
    call.ok(*command, "--codec.target-bytes", "1500", "--overwrite")
    assert list(tmp_path.glob("adapter-*.rcast")) == [mine]


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


@pytest.fixture(scope="module")
def planned(tmp_path_factory: Any) -> SizeResult:
    """A run whose policy plans the levels of its files."""
    return train_to_size(planned_config(tmp_path_factory.mktemp("planned") / "run"))


def planned_config(output: Path) -> RunConfig:
    changes = {
        "steps": 24, "codec.rank": 1, "codec.smaller_bytes": (900, 600), "codec.target_bytes": 1500,
        "codec.plan_episodes": 2, "link.bandwidth_hz": 5e3, "link.link_weight": 0.0,
        "link.iid.values_db": (0.0, 5.0, 10.0),
    }  # fmt: skip
    return small(output, **changes)


def test_a_policy_plans_the_levels_of_the_files(planned: SizeResult) -> None:
    assert [link.snr_db for link in planned.links] == [0.0, 5.0, 10.0]
    for link in planned.links:
        budget = 5e3 * np.log2(1 + 10 ** (link.snr_db / 10)) / 8
        assert link.budget_bytes == int(budget)
        assert 0 < link.n_bytes <= budget
        assert link.largest_bytes <= link.budget_bytes
    assert planned.links[0].largest_bytes > 500  # 625 bytes carry the smallest
    stored = json.loads(planned.folder.result.read_text("utf-8"))["links"]
    assert [row["bytes"] for row in stored] == [link.n_bytes for link in planned.links]


def test_a_plan_of_levels_by_command(planned: SizeResult, tmp_path: Path, call: Call) -> None:
    command = ("allocate", "--run", str(planned.folder.path), "--snr-db", "5")
    output = tmp_path / "plan.rcast"
    plain = json.loads(call.ok(*command, "-o", str(output), "--json"))
    link = planned.links[1]
    assert output.stat().st_size == plain["bytes"] == link.n_bytes
    ranks = load(output).tensors().ranks.tolist()
    assert sum(ranks) <= sum(plain["ranks"].values())  # less what did not fit by a few bytes
    assert set(plain["levels"]) == set(plain["ranks"])
    assert plain["payload_bits"] <= 8 * (link.budget_bytes + 1)
    assert "bytes." in call.ok(*command, "-o", str(output))
    said = call.refused("evaluate", "--run", str(planned.folder.path))
    assert "levels" in said


def test_files_for_links_as_the_policy_of_levels_plans_them(planned: SizeResult) -> None:
    files = planned_files(planned.folder.path, "policy", [5.0, 10.0, -20.0])
    assert files.left_out_db == (-20.0,)
    assert [choice.snr_db for choice in files.choices] == [5.0, 10.0]
    for choice in files.choices:
        assert files.containers[choice.file_index].n_bits <= choice.rate_bps  # a second


def test_a_policy_of_ranks_writes_no_file_of_levels(tmp_path: Path, call: Call) -> None:
    call.ok("train", "tiny", "--steps", "3", "--horizon", "3", "--output", str(tmp_path / "run"))
    command = ("allocate", "--run", str(tmp_path / "run"), "--snr-db", "5", "--bandwidth-hz", "1e8")
    said = call.refused(*command, "-o", str(tmp_path / "x.rcast"))
    assert "plans ranks" in said
    assert not (tmp_path / "x.rcast").exists()


def test_a_run_that_is_stopped_while_it_plans_plans_anew(
    planned: SizeResult, tmp_path: Path
) -> None:
    config = planned_config(tmp_path / "run")
    first = train_to_size(config, should_stop=stop_after(25))  # 24 steps, an episode
    assert first.adapter is None
    assert not first.folder.policy.exists()
    second = train_to_size(config, resume=True)
    assert [link.to_plain() for link in second.links] == [x.to_plain() for x in planned.links]
    assert not planned_config(tmp_path / "x").codec.teachers


def test_plans_need_several_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="smaller_bytes"):
        small(tmp_path, **{"codec.plan_episodes": 3})


def test_links_that_carry_no_file_are_refused_before_training(tmp_path: Path) -> None:
    config = planned_config(tmp_path / "run")
    late = replace(config, link=replace(config.link, bandwidth_hz=1000.0))  # 125 bytes at 0 dB
    with pytest.raises(InfeasibleDeadlineError, match="1,000 before the deadline"):
        train_to_size(late)
    assert not (tmp_path / "run").exists()
