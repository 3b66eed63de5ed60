"""Training under plans of levels: rank mask, rounding, random budgets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.level_models import CONFIG, tiny_levels
from helpers.models import keyword_splits
from rankcast.adapters.arrays import load_tensors, tensors_of
from rankcast.codec.container import read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.levels import file_of
from rankcast.codec.packing import Source
from rankcast.env import AllocationMdp
from rankcast.errors import ConfigError, ModelError
from rankcast.learner.level_learner import LevelLearner
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.processes import IidSnr


def random_plan(learner: LevelLearner, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, learner.layout.r_max + 1, (1, learner.layout.n_projections))


def test_the_loss_is_that_of_the_file_of_the_plan() -> None:
    """What a device decodes answers as the model did when the plan was measured."""
    learner = tiny_levels()
    plan = random_plan(learner)
    learner.apply(plan)
    live = learner.learner
    full = np.full(live.layout.n_projections, live.layout.r_max)
    with live.adapter.at_ranks(full):
        source = Source(tensors_of(live.adapter), BaseModel("tiny"), {})
    measured = live.next_loss()
    sent = read_container(file_of(source, learner.problem.levels, plan[0]).to_bytes()).tensors()
    kept = replace(sent, modules=source.tensors.modules)  # the classifier is rounded in the file
    live.round_weights(None)
    load_tensors(live.adapter, kept)
    assert live.next_loss() == pytest.approx(measured, abs=1e-6)


def test_a_step_trains_what_the_plan_sends_and_nothing_else() -> None:
    learner = tiny_levels()
    plan = random_plan(learner)
    plan[0, 0] = 0
    learner.apply(plan)
    ranks, _ = learner.problem.levels.chosen(plan[0])
    before = [
        [f.detach().clone() for f in factors] for factors in learner.learner.adapter.factors()
    ]
    learner.step()
    for r, old, new in zip(ranks, before, learner.learner.adapter.factors(), strict=True):
        assert torch.equal(old[0][r:], new[0][r:])
        assert r == 0 or not torch.equal(old[0][:r], new[0][:r])


def test_random_budgets_train_but_the_loss_is_the_plans() -> None:
    """The first loss is the same whether the plan itself is trained or another one."""
    losses = []
    for share in (0.0, 1.0):
        learner = tiny_levels(random_share=share)
        learner.apply(random_plan(learner))
        losses.append(learner.step().task_loss[0])
        assert learner.learner.adapter.ranks.tolist() == (
            learner.problem.levels.chosen(random_plan(learner)[0])[0].tolist()
        )
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_training_helps_every_plan() -> None:
    learner = tiny_levels(random_share=0.7)
    plans = [np.full((1, learner.layout.n_projections), k) for k in (1, 2, 4)]

    def losses() -> list[float]:
        found = []
        for plan in plans:
            learner.apply(plan)
            found.append(learner.learner.next_loss())
        return found

    before = losses()
    for i in range(60):
        learner.apply(plans[i % 3])
        learner.step()
    assert all(after < b for after, b in zip(losses(), before, strict=True))


def test_it_is_stepped_by_the_mdp() -> None:
    learner = tiny_levels(random_share=0.5)
    mdp = AllocationMdp(learner, IidSnr(), learner.problem)
    mdp.reset(seed=0)
    outcome = mdp.step(random_plan(learner))
    assert np.isfinite(outcome.reward).all()


def test_what_does_not_fit_is_refused() -> None:
    learner = TransformerLearner(CONFIG, keyword_splits())
    problem = tiny_levels().problem
    with pytest.raises(ConfigError, match="nested_prob 0"):
        LevelLearner(
            TransformerLearner(replace(CONFIG, nested_prob=0.5), keyword_splits()), problem
        )
    with pytest.raises(ConfigError, match="Levels go up to rank 4, the learner to 2"):
        LevelLearner(TransformerLearner(replace(CONFIG, r_max=2), keyword_splits()), problem)
    with pytest.raises(ConfigError, match="other projections"):
        LevelLearner(TransformerLearner(replace(CONFIG, kinds=("q",)), keyword_splits()), problem)
    with pytest.raises(ModelError, match=r"levels 0\.\.4"):
        LevelLearner(learner, problem).apply(np.full((1, learner.layout.n_projections), 5))
