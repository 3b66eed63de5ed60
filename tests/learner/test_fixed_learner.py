"""Measuring plans of levels on a model that no longer trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.level_models import CONFIG
from helpers.models import keyword_splits, randomise
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.levels import Levels
from rankcast.env import AllocationMdp
from rankcast.errors import ConfigError, ModelError
from rankcast.learner.fixed_learner import FixedLearner
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.capacity import Awgn
from rankcast.link.processes import IidSnr


def levels_of(n: int, ranks: tuple[int, ...] = (0, 1, 3)) -> Levels:
    table = np.tile(np.array(ranks), (n, 1))
    return Levels(table, np.zeros_like(table), 100 * table, table.astype(float), 200.0)


def fixed(ranks: tuple[int, ...] = (0, 1, 3)) -> FixedLearner:
    learner = TransformerLearner(CONFIG, keyword_splits())
    randomise(learner.adapter, 0, scale=0.5)
    levels = levels_of(learner.layout.n_projections, ranks)
    return FixedLearner(learner, LevelProblem.of(levels, learner.layout, Awgn()))


def test_a_step_measures_plan_and_all_levels_on_one_batch_and_trains_nothing() -> None:
    learner = fixed()
    before = [f.detach().clone() for factors in learner.learner.adapter.factors() for f in factors]
    plan = np.array([[0, 1, 2] * (learner.layout.n_projections // 3)])
    learner.apply(plan)
    live = learner.learner
    ranks = learner.problem.levels.chosen(plan[0])[0]
    assert live.adapter.ranks.tolist() == ranks.tolist()
    expected = live.next_loss()
    with live.adapter.at_ranks(np.full(len(ranks), 3)):
        reference = live.next_loss()
    result = learner.step()
    assert result.reference_loss is not None
    assert result.task_loss[0] == pytest.approx(expected, abs=1e-6)
    assert result.reference_loss[0] == pytest.approx(reference, abs=1e-6)
    after = [f for factors in live.adapter.factors() for f in factors]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert live.n_steps == 0
    assert live.next_loss() != expected  # another batch


def test_it_continues_from_its_state() -> None:
    one, other = fixed(), fixed()
    plan = np.full((1, one.layout.n_projections), 1)
    one.apply(plan)
    one.step()
    other.load_state_dict(one.state_dict())
    assert one.step() == other.step()


def test_the_mdp_takes_it() -> None:
    learner = fixed()
    env = AllocationMdp(learner, IidSnr((5.0,)), learner.problem)
    env.reset(seed=0)
    outcome = env.step(np.full((1, learner.layout.n_projections), 2))
    assert outcome.reference_loss is not None
    assert outcome.task_loss[0] == pytest.approx(outcome.reference_loss[0])


def test_what_it_refuses() -> None:
    learner = fixed()
    n = learner.layout.n_projections
    for plan in (np.full((1, n), 3), np.full((1, n + 1), 0), np.full((1, n), -1)):
        with pytest.raises(ModelError, match=r"levels 0\.\.2"):
            learner.apply(plan)
    with pytest.raises(ConfigError, match="rank 9"):
        fixed((0, 1, 9))
