"""What every `Learner` must do, whichever it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.models import keyword_splits
from rankcast.errors import ModelError
from rankcast.learner.protocol import Learner, StepResult
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration, TextGroup
from studies.surrogate.fitting import FitQuality
from studies.surrogate.monotone import MonotoneUtility


def synthetic(n_envs: int) -> Learner:
    layout = transformer_layout(n_layers=2, r_max=4)
    utility = SyntheticUtility.draw(np.random.default_rng(0), layout)
    return SyntheticLearner(layout, utility, n_envs, seed=1)


def calibrated(n_envs: int) -> Learner:
    layout = transformer_layout(n_layers=2, r_max=4)
    gains = SyntheticUtility.draw(np.random.default_rng(0), layout).gains
    easy = TextGroup(0.6, (2.0, 0.2), (0.05, 0.1), MonotoneUtility("identity", 0.7, 1.0, gains))
    hard = TextGroup(0.4, (3.0, 0.2), (0.2, 0.1), MonotoneUtility("exp", 0.2, 0.6, 5 * gains))
    quality = FitQuality(0.98, (0.97, 0.99), 0.9, 0.8, (0.7, 0.9), 0.01, 100)
    made = Calibration(layout, (easy, hard), 0.05, 0.02, quality, (quality, quality))
    return CalibratedLearner(made, n_envs, seed=1)


def live(**settings: Any) -> Learner:
    from rankcast.config.learner import FinetuneConfig
    from rankcast.learner.transformer import TransformerLearner

    config = FinetuneConfig(
        model="tiny", lr=1e-2, r_max=4, batch_size=8, mixed_precision="no", **settings
    )
    return TransformerLearner(config, keyword_splits())


def live_levels() -> Learner:
    from helpers.level_models import tiny_levels

    return tiny_levels(random_share=0.5)


LEARNERS: dict[str, Callable[[], Learner]] = {
    "synthetic": lambda: synthetic(1),
    "synthetic, 3 copies": lambda: synthetic(3),
    "calibrated": lambda: calibrated(1),
    "calibrated, 3 copies": lambda: calibrated(3),
    "live": live,
    "live, with dropout and no reference": lambda: live(
        dropout=0.2, base_dropout=True, measure_reference=False
    ),
    "live, levels": live_levels,
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


def plans(learner: Learner, steps: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    shape = (learner.n_envs, learner.layout.n_projections)
    return [rng.integers(0, learner.layout.r_max + 1, shape) for _ in range(steps)]


def run(learner: Learner, steps: int, seed: int = 0) -> list[Any]:
    """Return what each step of the MDP revealed: text, loss, reference."""
    rows = []
    for ranks in plans(learner, steps, seed):
        text = learner.next_text()
        learner.apply(ranks)
        result = learner.step()
        parts = [text.lexical_entropy, text.oov_rate, result.task_loss, result.reference_loss]
        rows.append([part for part in parts if part is not None])
    return rows


@every_learner
def test_satisfies_the_protocol(name: str) -> None:
    learner = LEARNERS[name]()
    assert isinstance(learner, Learner)
    assert learner.n_envs >= 1
    assert learner.layout.n_projections == 12
    assert learner.layout.r_max == 4
    assert (learner.layout.params_per_rank > 0).all()
    assert len({p.name for p in learner.layout.projections}) == 12


@every_learner
def test_shapes_and_finite_values(name: str) -> None:
    learner = LEARNERS[name]()
    learner.reset(0)
    for row in run(learner, 3):
        assert len(row) >= 3
        for array in row:
            assert array.shape == (learner.n_envs,)
            assert array.dtype == np.float64
            assert np.isfinite(array).all()
        assert (row[0] >= 0).all()
        assert ((row[1] >= 0) & (row[1] <= 1)).all()


@every_learner
def test_asking_for_the_text_changes_nothing(name: str) -> None:
    asked, silent = LEARNERS[name](), LEARNERS[name]()
    for learner in (asked, silent):
        learner.reset(3)
    for _ in range(5):
        asked.next_text()
    assert np.array_equal(run(asked, 2), run(silent, 2))


@every_learner
def test_the_active_plan_is_the_last_one_applied(name: str) -> None:
    once, twice = LEARNERS[name](), LEARNERS[name]()
    zero, full = (np.full_like(plans(once, 1)[0], rank) for rank in (0, 4))
    once.apply(full)
    twice.apply(zero)
    twice.apply(full)
    assert np.array_equal(once.step().task_loss, twice.step().task_loss)


@every_learner
def test_ranks_given_may_be_changed_afterwards(name: str) -> None:
    learner, other = LEARNERS[name](), LEARNERS[name]()
    ranks = plans(learner, 1)[0]
    other.apply(ranks.copy())
    learner.apply(ranks)
    ranks[:] = 0
    assert np.array_equal(learner.step().task_loss, other.step().task_loss)


@every_learner
def test_the_ranks_matter(name: str) -> None:
    losses = []
    for rank in (0, 4):
        learner = LEARNERS[name]()
        warm = np.full((learner.n_envs, 12), 4)
        for _ in range(4):  # so that a live model's components are no longer zero
            learner.apply(warm)
            learner.step()
        learner.apply(np.full_like(warm, rank))
        losses.append(learner.step().task_loss)
    assert not np.array_equal(*losses)


@every_learner
def test_continues_identically_from_its_state(name: str) -> None:
    learner = LEARNERS[name]()
    learner.reset(5)
    run(learner, 3)
    state = copy.deepcopy(learner.state_dict())
    expected = run(learner, 3, seed=1)
    learner.load_state_dict(state)
    assert np.array_equal(run(learner, 3, seed=1), expected)
    other = LEARNERS[name]()
    other.load_state_dict(state)
    assert np.array_equal(run(other, 3, seed=1), expected)


@every_learner
def test_a_state_is_a_copy(name: str) -> None:
    learner, other = LEARNERS[name](), LEARNERS[name]()
    run(learner, 2)
    state = learner.state_dict()
    later = run(learner, 2, seed=1)
    other.load_state_dict(state)
    assert np.array_equal(run(other, 2, seed=1), later)


@every_learner
def test_the_active_ranks_are_part_of_the_state(name: str) -> None:
    learner, other = LEARNERS[name](), LEARNERS[name]()
    learner.apply(plans(learner, 1)[0])
    other.load_state_dict(learner.state_dict())
    assert np.array_equal(other.step().task_loss, learner.step().task_loss)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_loss_is_refused_before_anything_learns_from_it(bad: float) -> None:
    with pytest.raises(ModelError, match=r"task_loss is .*Lower its learning rate"):
        StepResult(np.array([0.5, bad]))
    with pytest.raises(ModelError, match="reference_loss"):
        StepResult(np.array([0.5]), np.array([bad]))
