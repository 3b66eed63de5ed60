"""The active ranks after the Trainer, or its user, went back to a checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from helpers.trainers import adapted, random_callback, trainer_of
from rankcast.errors import CheckpointError
from rankcast.training.callback import RANKS_FILE

WEIGHTS = "adapter_model.safetensors"
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "score"}
FAST = {"learning_rate": 0.1, "lr_scheduler_type": "constant"}
"""So fast that the loss moves visibly at every step."""


class Witness(TrainerCallback):
    """Remembers ranks, loss and link cost of each step's first evaluation."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.seen = callback, dict[int, Any]()

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step not in self.seen:
            ranks, link_cost = self.callback.adapter.ranks.tolist(), self.callback.plan.link_cost
            self.seen[state.global_step] = ranks, given["metrics"]["eval_loss"], link_cost


def scored(best: int) -> Any:
    """Return a metric that is highest at the `best`-th evaluation."""
    counts = iter(range(1, 1000))
    return lambda _: {"score": 1.0 / (1 + abs(next(counts) - best))}


def prepared(folder: Path, best: int, others: Any = (), **arguments: Any) -> tuple[Any, Any, Any]:
    """Return callback, trainer and witness of a training that will be best at an evaluation."""
    callback = random_callback(adapted(), every_n_steps=1)
    witness = Witness(callback)
    given: dict[str, Any] = EACH_STEP | BEST | FAST | {"max_steps": 6} | arguments
    trainer = trainer_of(
        callback, folder, others=[witness, *others], compute_metrics=scored(best), **given
    )
    for group in trainer.optimizer.param_groups:
        group["lr"] = FAST["learning_rate"]
    return callback, trainer, witness


def write_bin(trainer: Any) -> None:
    """Let a trainer write .bin files, as transformers 4 did with `save_safetensors=False`."""
    original = trainer.model.save_pretrained

    def save(*args: Any, **kwargs: Any) -> None:
        original(*args, **(kwargs | {"safe_serialization": False}))

    trainer.model.save_pretrained = save


def drop_ranks(checkpoint: Path) -> None:
    """Make the weights of a checkpoint what an earlier version wrote."""
    kept = {k: v for k, v in load_file(checkpoint / WEIGHTS).items() if "lora_rank" not in k}
    save_file(kept, checkpoint / WEIGHTS)


def check_in_force(callback: Any, trainer: Any, step: int, seen: dict[int, Any]) -> None:
    """Check that ranks, plan and loss are those of a step, and that this makes a difference."""
    ranks, loss, link_cost = seen[step]
    assert callback.adapter.ranks.tolist() == ranks
    trainer.compute_metrics = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-6)
    assert callback.plan.link_cost == pytest.approx(link_cost)
    last = seen[max(seen)][0]
    if step != max(seen):
        assert last != ranks
        with callback.adapter.at_ranks(last):
            assert abs(trainer.evaluate()["eval_loss"] - loss) > 1e-3


@pytest.mark.parametrize(
    ("best", "as_bin"), [(1, False), (3, True), (6, False)], ids=["first", "middle, bin", "last"]
)
def test_the_best_steps_ranks_come_back(best: int, as_bin: bool, tmp_path: Path) -> None:
    callback, trainer, witness = prepared(tmp_path, best)
    if as_bin:
        write_bin(trainer)
    trainer.train()
    checkpoint = tmp_path / f"checkpoint-{best}"
    assert trainer.state.best_model_checkpoint == str(checkpoint)
    assert (checkpoint / WEIGHTS).is_file() is not as_bin
    check_in_force(callback, trainer, best, witness.seen)


@pytest.mark.parametrize(("limit", "metric"), [(1, "eval_loss"), (2, "score")])
def test_rotation_leaves_the_best(limit: int, metric: str, tmp_path: Path) -> None:
    callback, trainer, witness = prepared(
        tmp_path, 2, save_total_limit=limit, metric_for_best_model=metric,
        greater_is_better=metric == "score",
    )  # fmt: skip
    trainer.train()
    best = 2 if metric == "score" else min(witness.seen, key=lambda step: witness.seen[step][1])
    assert best < 6
    left = {folder.name for folder in tmp_path.glob("checkpoint-*")}
    assert left == {f"checkpoint-{best}"} | ({"checkpoint-6"} if limit == 2 else set())
    check_in_force(callback, trainer, best, witness.seen)


@pytest.mark.parametrize(("first", "patience"), [("ranks", 3), ("stopping", 1)])
def test_early_stopping_goes_back_to_the_best(first: str, patience: int, tmp_path: Path) -> None:
    callback, trainer, witness = prepared(tmp_path, 2, [EarlyStoppingCallback(patience)])
    order = trainer.callback_handler.callbacks
    assert order[0] is callback
    if first == "stopping":
        order.append(order.pop(0))
    trainer.train()
    assert trainer.state.global_step == max(witness.seen) == 2 + patience
    check_in_force(callback, trainer, 2, witness.seen)


def test_epochs_and_a_plan_for_several_steps(tmp_path: Path) -> None:
    callback, trainer, witness = prepared(
        tmp_path, 2, max_steps=-1, num_train_epochs=4, eval_strategy="epoch",
        save_strategy="epoch", save_total_limit=1,
    )  # fmt: skip
    callback.every_n_steps = 3
    trainer.train()
    assert sorted(witness.seen) == [2, 4, 6, 8]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    check_in_force(callback, trainer, 4, witness.seen)


def test_only_the_best_is_saved(tmp_path: Path) -> None:
    callback, trainer, witness = prepared(
        tmp_path, 3, save_strategy="best", save_only_model=True, eval_on_start=False
    )
    trainer.train()
    check_in_force(callback, trainer, 3, witness.seen)


def test_the_best_from_before_a_resumption(tmp_path: Path) -> None:
    _, trainer, before = prepared(tmp_path, 2, max_steps=4)
    trainer.train()
    callback, trainer, after = prepared(tmp_path, 100)
    trainer.compute_metrics = lambda _: {"score": 0.1}
    trainer.train(resume_from_checkpoint=True)
    assert sorted(after.seen) == [5, 6]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    check_in_force(callback, trainer, 2, before.seen | after.seen)


def test_a_second_training_starts_anew_and_goes_back_to_its_own_best(tmp_path: Path) -> None:
    callback, trainer, witness = prepared(tmp_path, 2)
    trainer.train()
    first = dict(witness.seen)
    witness.seen.clear()
    trainer.compute_metrics = scored(4)
    trainer.train()
    assert [witness.seen[step][0] for step in (1, 2)] != [first[step][0] for step in (1, 2)]
    check_in_force(callback, trainer, 4, witness.seen)


def test_the_last_ranks_stay_where_the_best_is_not_asked_for(tmp_path: Path) -> None:
    callback, trainer, witness = prepared(tmp_path, 2, load_best_model_at_end=False)
    trainer.train()
    check_in_force(callback, trainer, 6, witness.seen)


@pytest.mark.parametrize("by", ["trainer", "peft"])
def test_a_checkpoint_loaded_by_hand(by: str, tmp_path: Path) -> None:
    callback, trainer, witness = prepared(tmp_path, 2, load_best_model_at_end=False)
    trainer.train()
    for step in (3, 1):
        folder = str(tmp_path / f"checkpoint-{step}")
        if by == "trainer":
            trainer._load_from_checkpoint(folder)
        else:
            trainer.model.load_adapter(folder, "default")
        trainer.compute_metrics = None
        assert callback.adapter.ranks.tolist() == witness.seen[step][0]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(witness.seen[step][1], abs=1e-6)


@pytest.mark.parametrize("file", ["deleted", "cut", "of another step"])
def test_without_the_callbacks_file_the_ranks_come_with_the_weights(
    file: str, tmp_path: Path
) -> None:
    class Vandal(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = tmp_path / "checkpoint-2" / RANKS_FILE
            if state.global_step != 3:
                return
            if file == "deleted":
                path.unlink()
            elif file == "cut":
                path.write_bytes(path.read_bytes()[:40])
            else:
                shutil.copy(tmp_path / "checkpoint-1" / RANKS_FILE, path)

    callback, trainer, witness = prepared(tmp_path, 2, [Vandal()])
    trainer.train()
    assert callback.plan is None  # on which link those ranks were chosen is not known any more
    ranks, loss, _ = witness.seen[2]
    assert callback.adapter.ranks.tolist() == ranks
    trainer.compute_metrics = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-6)

    again, resumed, _ = prepared(tmp_path, 2)
    says = "other ranks than the weights" if file == "of another step" else "no readable file"
    with pytest.raises(CheckpointError, match=says):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.adapter.ranks.tolist() == ranks


def test_weights_without_ranks_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Earlier(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            drop_ranks(tmp_path / f"checkpoint-{state.global_step}")

    callback, trainer, witness = prepared(tmp_path, 2, [Earlier()])
    with caplog.at_level(logging.WARNING, logger="rankcast"):
        trainer.train()
    assert "lack 12 ranks" in caplog.text
    assert callback.adapter.ranks.tolist() == witness.seen[6][0]
    assert callback.plan is None
    callback.load(tmp_path / "checkpoint-2")  # the remedy that the report names
    check_in_force(callback, trainer, 2, witness.seen)


def test_an_earlier_versions_checkpoint_is_resumed_by_the_callbacks_file(tmp_path: Path) -> None:
    whole, trainer, witness = prepared(tmp_path, 6)
    trainer.train()
    drop_ranks(tmp_path / "checkpoint-4")
    callback, resumed, after = prepared(tmp_path, 1, load_best_model_at_end=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [after.seen[step] for step in (5, 6)] == [witness.seen[step] for step in (5, 6)]
    assert callback.adapter.ranks.tolist() == whole.adapter.ranks.tolist()


def test_a_checkpoint_of_another_run_with_the_same_name_is_not_mixed_in(tmp_path: Path) -> None:
    _, trainer, _ = prepared(tmp_path / "a", 1, max_steps=2)
    trainer.train()
    other, trainer, _ = prepared(tmp_path / "b", 1, max_steps=2)
    for _ in range(3):  # other ranks than the first run's
        other._choose(0)
    trainer.train()
    ranks = [json.loads((tmp_path / run / "checkpoint-2" / RANKS_FILE).read_text())["ranks"]
             for run in "ab"]  # fmt: skip
    assert ranks[0] != ranks[1]

    callback, resumed, _ = prepared(tmp_path / "a", 1)
    with pytest.raises(CheckpointError, match=r"of another checkpoint. Call load\(folder\)"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    callback.load(tmp_path / "b" / "checkpoint-2")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert resumed.state.global_step == 6
