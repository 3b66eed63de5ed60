from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import tiny_model
from helpers.trainers import (
    R_MAX,
    Rows,
    adapted,
    costs_of,
    full_bits,
    random_callback,
    trainer_of,
)
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import export_lora
from rankcast.allocation.baselines import UniformAllocator
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.errors import CheckpointError, ConfigError, InfeasibleDeadlineError
from rankcast.link.processes import StaticSnr
from rankcast.records import LinkState
from rankcast.training.callback import RANKS_FILE, RankcastCallback


def factors(adapter: ElasticAdapter) -> list[list[torch.Tensor]]:
    """Return Q, Λ, P of each projection with one component a row."""
    return [
        [Q.detach().clone(), lam.detach().clone(), P.detach().t().clone()]
        for Q, lam, P in adapter.factors()
    ]


class Watcher(RankcastCallback):
    """Remembers the ranks of every step, and what the step left untouched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks: list[list[int]] = []
        self.moved: list[bool] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        self.ranks.append(self.adapter.ranks.tolist())
        self.before = factors(self.adapter)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after = factors(self.adapter)
        for rank, old, new in zip(self.ranks[-1], self.before, after, strict=True):
            for a, b in zip(old, new, strict=True):
                assert torch.equal(a[rank:], b[rank:])
                self.moved.append(not torch.equal(a[:rank], b[:rank]))


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_ranks_follow_the_link_and_only_the_prefix_is_trained(tmp_path: Path) -> None:
    adapter = adapted()
    callback = random_callback(adapter, Watcher)
    trainer = trainer_of(callback, tmp_path)
    trainer.train()
    ranks = callback.ranks
    assert len(ranks) == 8
    assert [ranks[i] == ranks[i + 1] for i in (0, 2, 4, 6)] == [True] * 4
    assert [ranks[i] == ranks[i + 1] for i in (1, 3, 5)] == [False] * 3
    assert any(callback.moved)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["mean_rank"] for row in rows] == pytest.approx([np.mean(r) for r in ranks])
    expected = costs_of(adapter).payload_bits(np.array(ranks))
    assert [row["payload_bits"] for row in rows] == pytest.approx(expected)
    assert all(0 <= row["link_cost"] <= 1 for row in rows)
    assert len({row["snr_db"] for row in rows}) == 4


def test_the_model_trains_and_exports_as_a_plain_lora(tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = adapted()
    problem = AllocationProblem(adapter.layout, costs_of(adapter))

    def link(step: int) -> LinkState:
        share = 0.5 if step >= 20 else 1.0
        return LinkState(np.zeros(1), np.array([share * full_bits(adapter)]), np.ones(1))

    callback = RankcastCallback(adapter, UniformAllocator(problem), link, costs_of(adapter))
    trainer = trainer_of(callback, tmp_path, max_steps=30)
    trainer.train()
    curve = losses(trainer)
    assert np.mean(curve[-4:]) < 0.5 * curve[0]
    assert [row["mean_rank"] for row in trainer.state.log_history[:30]] == [4.0] * 20 + [2.0] * 10

    assert adapter.ranks.tolist() == [2] * 12
    assert callback.plan is not None
    assert callback.plan.arrives
    adapter.model.eval()
    export_lora(adapter, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "lora").eval()
    batch = Rows().batch
    with torch.no_grad():
        expected = adapter.model(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(tiny_model("bert")(**batch).logits, expected, atol=0.1)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    adapter = adapted()
    whole = random_callback(adapter, Watcher, every_n_steps=3)
    trainer = trainer_of(whole, tmp_path, save_steps=4)
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-4" / RANKS_FILE).read_text())
    assert saved["ranks"] == whole.ranks[3]
    assert not list((tmp_path / "checkpoint-4").glob("*.tmp"))

    resumed = random_callback(adapted(), Watcher, every_n_steps=3, seed=99)
    again = trainer_of(resumed, tmp_path, save_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.ranks == whole.ranks[4:]
    assert losses(again)[4:] == losses(trainer)[4:]
    for ours, theirs in zip(factors(resumed.adapter), factors(adapter), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def test_a_checkpoint_from_elsewhere_is_loaded_by_hand(tmp_path: Path) -> None:
    first = random_callback(adapted(), Watcher, every_n_steps=5)
    trainer_of(first, tmp_path / "a", save_steps=4, max_steps=4).train()
    checkpoint = tmp_path / "a" / "checkpoint-4"

    lost = random_callback(adapted(), every_n_steps=5)
    trainer = trainer_of(lost, tmp_path / "b", max_steps=5)
    with pytest.raises(CheckpointError, match=r"call load\(folder\)"):
        trainer.train(resume_from_checkpoint=str(checkpoint))

    callback = random_callback(adapted(), Watcher, every_n_steps=5)
    callback.load(checkpoint)
    assert callback.adapter.ranks.tolist() == first.ranks[-1]
    trainer_of(callback, tmp_path / "b", max_steps=5).train(resume_from_checkpoint=str(checkpoint))
    assert callback.ranks == [first.ranks[-1]]


def test_ranks_of_another_adapter_are_refused(tmp_path: Path) -> None:
    callback = random_callback(adapted())
    callback.save(tmp_path, step=1)
    other = ElasticAdapter.attach(tiny_model("bert"), r_max=R_MAX, kinds=["q", "v"])
    smaller = random_callback(other)
    with pytest.raises(CheckpointError, match="other projections"):
        smaller.load(tmp_path)
    (tmp_path / RANKS_FILE).write_text('{"format_version": 1')
    with pytest.raises(CheckpointError, match="no readable file"):
        callback.load(tmp_path)
    with pytest.raises(ConfigError, match="4 projections"):
        RankcastCallback(adapted(), callback.allocator, StaticSnr(0.0), smaller.link_costs)


def test_the_regulariser_keeps_components_apart(tmp_path: Path) -> None:
    ends, starts = [], []
    for weight in (0.0, 0.5):
        adapter = adapted()
        with torch.no_grad():
            for Q, _, P in adapter.factors():
                Q.mul_(1.5)
                P.copy_(torch.eye(*P.shape) * 1.2)
        starts.append(float(adapter.orthogonality().detach()))
        problem = AllocationProblem(adapter.layout, costs_of(adapter))
        callback = RankcastCallback(
            adapter, UniformAllocator(problem), StaticSnr(0.0), costs_of(adapter),
            orthogonality_weight=weight,
        )  # fmt: skip
        trainer_of(callback, tmp_path / str(weight), max_grad_norm=0.0).train()
        ends.append(float(adapter.orthogonality().detach()))
    assert starts[0] == starts[1]
    assert ends[1] < 0.5 * starts[1]
    assert ends[1] < 0.5 * ends[0]


def test_the_belief_learns_only_from_losses_of_one_plan(tmp_path: Path) -> None:
    counts = []
    for logging_steps in (2, 4, 3):
        adapter = adapted()
        belief = BayesianUtility(adapter.layout)
        seen: list[Any] = []
        original = belief.update

        def update(ranks: Any, loss: Any, text: Any, seen: Any = seen, go: Any = original) -> None:
            seen.append((ranks[0].tolist(), float(loss[0])))
            go(ranks, loss, text)

        belief.update = update  # type: ignore[method-assign]
        callback = random_callback(adapter, Watcher, utility=belief, every_n_steps=4)
        trainer = trainer_of(callback, tmp_path, logging_steps=logging_steps)
        trainer.train()
        counts.append(len(seen))
        logged = losses(trainer)
        assert all(loss in logged for _, loss in seen)
        assert all(ranks in callback.ranks for ranks, _ in seen)
    # Of the losses after 3 and 6 steps, the second mixes two plans.
    assert counts == [4, 2, 1]


def test_reporters_see_the_plan_if_the_callback_is_attached(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.rows.append(dict(logs))

    for attach in (True, False):
        reporter = Reporter()
        callback = random_callback(adapted())
        trainer = trainer_of(callback, tmp_path, attach=attach, max_steps=1)
        trainer.callback_handler.callbacks.insert(1, reporter)
        trainer.train()
        assert ("mean_rank" in reporter.rows[0]) is attach
        assert "mean_rank" in trainer.state.log_history[0]


@pytest.mark.parametrize("attach", [True, False])
def test_a_callback_that_is_attached_again_still_chooses_once(
    attach: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, chosen = random_callback(adapted()), list[int]()
    trainer = trainer_of(callback, tmp_path, attach=attach)
    callback.attach(trainer)
    real = callback._choose
    monkeypatch.setattr(callback, "_choose", lambda step: (chosen.append(step), real(step)))
    trainer.train()
    assert chosen == [0, 2, 4, 6]
    assert trainer.callback_handler.callbacks[0] is callback


def test_a_link_that_carries_nothing_stops_the_run(tmp_path: Path) -> None:
    adapter = adapted()
    problem = AllocationProblem(adapter.layout, costs_of(adapter), min_rank=1)
    callback = RankcastCallback(
        adapter, UniformAllocator(problem), StaticSnr(0.0), costs_of(adapter), bandwidth_hz=10.0
    )
    with pytest.raises(InfeasibleDeadlineError, match="short by"):
        trainer_of(callback, tmp_path).train()


def test_impossible_settings(tmp_path: Path) -> None:
    adapter = adapted()
    for wrong in ({"every_n_steps": 0}, {"orthogonality_weight": -1.0}):
        with pytest.raises(ConfigError, match="every_n_steps"):
            random_callback(adapter, **wrong)
    two = random_callback(adapter)
    two.link = lambda step: LinkState(np.zeros(2), np.ones(2), np.ones(2))
    with pytest.raises(ConfigError, match="one link"):
        trainer_of(two, tmp_path).train()
