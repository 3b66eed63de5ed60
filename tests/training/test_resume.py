from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import SMALL
from rankcast.config.run import RunConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.presets import load_preset
from rankcast.training.folder import RunFolder, load_state, save_state
from rankcast.training.journal import Journal, read_log
from rankcast.training.run import TrainResult, train


def small(output: Path, **changes: Any) -> RunConfig:
    return load_preset("tiny", SMALL | {"output": str(output)} | changes)


def stop_after(n_episodes: int) -> Callable[[], bool]:
    left = iter(range(n_episodes))
    return lambda: next(left, None) == n_episodes - 1


def flat(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {k: v for key, x in state.items() for k, v in flat(x, f"{path}/{key}").items()}
    if isinstance(state, (list, tuple)):
        return {k: v for i, x in enumerate(state) for k, v in flat(x, f"{path}/{i}").items()}
    return {path: state}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: Any) -> TrainResult:
    return train(small(tmp_path_factory.mktemp("straight") / "run"))


@pytest.mark.parametrize("reward_term", ["utility-guided", "reward-weighted"])
def test_two_and_two_episodes_equal_four(
    straight: TrainResult, tmp_path: Path, reward_term: str
) -> None:
    changes = {"training.reward_term": reward_term}
    if reward_term != "utility-guided":
        straight = train(small(tmp_path / "straight", **changes))
    config = small(tmp_path / "run", **changes)
    first = train(config, should_stop=stop_after(2))
    assert not first.finished
    assert first.session.step == 6
    second = train(config, resume=True)
    assert second.finished
    assert second.session.step == 12
    one, other = (flat(load_state(r.folder.checkpoint)) for r in (straight, second))
    ignored = {"/config/output", "/elapsed_s"}
    assert one.keys() == other.keys()
    for key in one.keys() - ignored:
        if isinstance(one[key], torch.Tensor):
            assert torch.equal(one[key], other[key]), key
        else:
            assert one[key] == other[key], key
    assert straight.folder.log.read_text() == second.folder.log.read_text()
    assert straight.result["links"] == second.result["links"]


def test_rows_after_the_checkpoint_are_dropped(straight: TrainResult, tmp_path: Path) -> None:
    config = small(tmp_path / "run", checkpoint_every=3)
    train(config, should_stop=stop_after(3))
    folder = RunFolder(tmp_path / "run")
    with folder.log.open("a") as log:  # as left behind by a run that was killed later
        log.write('{"kind": "step", "step": 10}\n')
    resumed = train(config, resume=True)
    assert resumed.folder.log.read_text() == straight.folder.log.read_text()


def test_a_finished_run_can_be_resumed_without_effect(tmp_path: Path) -> None:
    config = small(tmp_path / "run", steps=3)
    first = train(config)
    again = train(config, resume=True)
    assert again.session.step == first.session.step == 3
    assert again.result["links"] == first.result["links"]


def test_the_folder_holds_all_that_a_run_is_worth(straight: TrainResult) -> None:
    folder = straight.folder
    result = json.loads(folder.result.read_text())
    assert result["steps"] == 12
    assert result["versions"]["torch"] == torch.__version__
    assert result["seeds"] == {"run": 0, "data": 0, "finetune": 0}
    assert [row["snr_db"] for row in result["links"]] == [-5, 0, 5, 10, 15]
    assert all(row["link_cost"] <= 1 for row in result["links"])
    assert all(0 <= row["test_accuracy"] <= 1 for row in result["links"])
    assert load_preset(str(folder.config)) == straight.session.config
    steps = read_log(folder.log, "step")
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert {row["snr_db"] for row in steps} <= {-5.0, 0.0, 5.0, 10.0, 15.0}
    assert [row["step"] for row in read_log(folder.log, "evaluation")] == [6, 12]
    episodes = read_log(folder.log, "episode")
    expected = np.mean([row["reward"] for row in steps[:3]])
    assert episodes[0]["reward"] == pytest.approx(expected)
    assert (folder.adapter / "rankcast_adapter.safetensors").exists()
    assert not list(folder.path.glob(".*.tmp"))


def test_another_run_is_neither_overwritten_nor_continued(
    straight: TrainResult, tmp_path: Path
) -> None:
    config = straight.session.config
    with pytest.raises(ConfigError, match="--overwrite"):
        train(config)
    with pytest.raises(CheckpointError, match=r"finetune\.lr was 0\.02 and is now 0\.5"):
        train(replace(config, finetune=replace(config.finetune, lr=0.5)), resume=True)
    with pytest.raises(CheckpointError, match=r"finetune\.model was 'tiny' and is now 'minilm'"):
        train(replace(config, finetune=replace(config.finetune, model="minilm")), resume=True)
    with pytest.raises(CheckpointError, match="has not come as far"):
        train(small(tmp_path / "nothing"), resume=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_checkpoint_is_named(
    straight: TrainResult, tmp_path: Path, share: float
) -> None:
    content = straight.folder.checkpoint.read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is truncated"):
        train(replace(straight.session.config, output=str(tmp_path)), resume=True)


def test_a_foreign_file_and_a_shortened_log_are_refused(
    straight: TrainResult, tmp_path: Path
) -> None:
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="another version"):
        load_state(tmp_path / "foreign.pt")
    torch.save({"format": 1, "code": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="no file of rankcast"):
        load_state(tmp_path / "code.pt")
    (tmp_path / "log.jsonl").write_text('{"kind": "step"}\n')
    with pytest.raises(CheckpointError, match="has 1 rows"):
        Journal(tmp_path / "log.jsonl", n_rows=2)


def test_state_comes_back_as_tensors_of_the_same_values(tmp_path: Path) -> None:
    big = 2**100 + 1  # a generator's state holds such numbers
    state = {"a": np.array([1.5, 2.5]), "b": (1, [torch.ones(2), None]), "c": np.int64(3), "d": big}
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["a"].dtype == torch.float64
    assert loaded["a"].tolist() == [1.5, 2.5]
    assert loaded["b"][0] == 1
    assert (loaded["c"], loaded["d"]) == (3, big)


def test_early_stopping_ends_a_run(tmp_path: Path) -> None:
    config = small(
        tmp_path / "run", steps=30, eval_every=3, early_stopping=True, patience=1,
        **{"link.link_weight": 100.0, "finetune.lr": 1e-6},
    )  # fmt: skip
    result = train(config)
    assert result.finished
    assert result.session.step < 30
    assert result.result["steps"] == result.session.step


def test_tensorboard_gets_the_rows(tmp_path: Path) -> None:
    result = train(small(tmp_path / "run", steps=3, tensorboard=True))
    events = list(result.folder.tensorboard.iterdir())
    assert events
    assert b"step/reward" in events[0].read_bytes()
