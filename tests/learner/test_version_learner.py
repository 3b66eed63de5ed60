"""Measuring plans of versions on a model that no longer trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.level_models import CONFIG
from helpers.models import keyword_splits, randomise
from rankcast.adapters.arrays import balanced_tensors_of, load_tensors
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.header import BaseModel
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Coding, Source
from rankcast.codec.tensors import Factors
from rankcast.codec.versions import Versions
from rankcast.env import AllocationMdp
from rankcast.errors import ConfigError, ModelError
from rankcast.learner.transformer import TransformerLearner
from rankcast.learner.version_learner import VersionLearner
from rankcast.link.capacity import Awgn
from rankcast.link.processes import IidSnr
from rankcast.records import IntArray


def two_versions(learner: TransformerLearner) -> Versions:
    """Return two adapters of a model."""
    sources = []
    for seed in (1, 2):
        randomise(learner.adapter, seed, scale=0.5)
        tensors = balanced_tensors_of(learner.adapter)
        each = tuple((0,) * f.rank for f in tensors.factors)
        coding = Coding(-20, (), {}, (tuple(tensors.ranks.tolist()),), each)
        sources.append(Source(tensors, BaseModel("tiny"), {}).at(coding))
    return Versions(tuple(sources))


def made(*, ranks_beyond: int = 0) -> VersionLearner:
    """Return a learner of two versions of each projection."""
    learner = TransformerLearner(CONFIG, keyword_splits())
    versions = two_versions(learner)
    ranks = np.full_like(versions.wholes.T, CONFIG.r_max + ranks_beyond)
    bits = 100 * np.tile(np.arange(3), (len(ranks), 1))
    table = np.concatenate([np.zeros_like(ranks[:, :1]), ranks], axis=1)
    levels = Levels(table, np.zeros_like(table), bits, bits.astype(float), 200.0)
    problem = LevelProblem.of(levels, learner.layout, Awgn(), wholes=versions.wholes)
    return VersionLearner(learner, problem, versions)


def some_plan(learner: VersionLearner) -> IntArray:
    """Return a (1, N) plan of every level."""
    return np.arange(learner.layout.n_projections)[None] % 3


def test_a_step_measures_a_mixture_beside_the_largest_file_on_one_batch() -> None:
    own = made()
    live, versions, plan = own.learner, two_versions(own.learner), some_plan(own)
    largest = versions.largest.tensors
    factors = tuple(
        versions.sources[version - 1].tensors.factors[n]
        if version
        else Factors(f.left[:, :0], f.right[:0])
        for n, (version, f) in enumerate(zip(plan[0], largest.factors, strict=True))
    )
    losses = []
    for wanted in (replace(versions.sources[0].tensors, factors=factors), largest):
        load_tensors(live.adapter, wanted)
        losses.append(live.next_loss())
    own.apply(plan)
    before = [f.detach().clone() for factors in live.adapter.factors() for f in factors]
    result = own.step()
    assert result.reference_loss is not None
    assert [result.task_loss[0], result.reference_loss[0]] == pytest.approx(losses, abs=1e-6)
    assert losses[0] != losses[1]
    after = [f for factors in live.adapter.factors() for f in factors]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert live.n_steps == 0
    assert live.next_loss() != pytest.approx(losses[0])  # another batch


def test_it_continues_from_its_state() -> None:
    one, other = made(), made()
    one.apply(some_plan(one))
    one.step()
    other.load_state_dict(one.state_dict())
    assert one.step() == other.step()


def test_the_mdp_takes_it() -> None:
    learner = made()
    env = AllocationMdp(learner, IidSnr((5.0,)), learner.problem)
    env.reset(seed=0)
    outcome = env.step(np.full((1, learner.layout.n_projections), 2))
    assert outcome.reference_loss is not None
    assert outcome.task_loss[0] == pytest.approx(outcome.reference_loss[0])


def test_what_it_refuses() -> None:
    learner = made()
    n = learner.layout.n_projections
    for plan in (np.full((1, n), 3), np.full((1, n + 1), 0), np.full((1, n), -1)):
        with pytest.raises(ModelError, match=r"levels 0\.\.2"):
            learner.apply(plan)
    with pytest.raises(ConfigError, match="Levels go up to rank"):
        made(ranks_beyond=1)
