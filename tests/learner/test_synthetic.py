from __future__ import annotations

import numpy as np
import pytest

from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout


def test_the_layout_is_that_of_a_small_encoder() -> None:
    layout = transformer_layout()
    assert layout.n_projections == 36
    assert layout.n_layers == 6
    assert layout.r_max == 8
    assert layout.kinds == ("q", "k", "v", "o", "fc1", "fc2")
    assert layout.params_per_rank[:6].tolist() == [769] * 4 + [1921] * 2
    fc1, fc2 = layout.projections[4:6]
    assert (fc1.d_in, fc1.d_out, fc2.d_in, fc2.d_out) == (384, 1536, 1536, 384)


def test_loss_by_hand() -> None:
    utility = SyntheticUtility(np.array([[0.1, 0.05], [0.2, 0.02]]), base_loss=0.7)
    ranks = np.array([[0, 0], [1, 0], [2, 1], [2, 2]])
    assert utility.loss(ranks) == pytest.approx([0.7, 0.6, 0.35, 0.33])


def test_interactions_by_hand() -> None:
    # Centred ranks of r_max 2 are -1, 0, 1; only the pair (0, 1) interacts.
    pairs = np.array([[0.0, 0.3], [0.0, 0.0]])
    utility = SyntheticUtility(np.zeros((2, 2)), base_loss=0.0, interactions=pairs)
    ranks = np.array([[0, 0], [0, 2], [2, 2], [1, 2]])
    assert utility.loss(ranks) == pytest.approx([-0.3, 0.3, -0.3, 0.0])


def test_drawn_gains_are_scaled_and_decrease() -> None:
    layout = transformer_layout()
    utility = SyntheticUtility.draw(np.random.default_rng(0), layout)
    assert utility.gains.shape == (36, 8)
    assert utility.gains.sum() == pytest.approx(0.45)
    assert (utility.gains > 0).all()
    assert (np.diff(utility.gains, axis=1) < 0).all()
    # Within a projection the gains fall by a constant factor exp(-1/τ), 0.7 < τ < 4.7.
    factor = utility.gains[:, 1:] / utility.gains[:, :-1]
    assert factor == pytest.approx(np.repeat(factor[:, :1], 7, axis=1))
    assert ((factor > np.exp(-1 / 0.7)) & (factor < np.exp(-1 / 4.7))).all()
    again = SyntheticUtility.draw(np.random.default_rng(0), layout)
    assert np.array_equal(again.gains, utility.gains)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_interactions_hold_their_share_of_the_variance(share: float) -> None:
    layout = transformer_layout(n_layers=2)
    utility = SyntheticUtility.draw(np.random.default_rng(1), layout, interaction_share=share)
    additive = SyntheticUtility(utility.gains)
    ranks = np.random.default_rng(2).integers(0, 9, (60_000, 12))
    alone = additive.loss(ranks)
    pairs = utility.loss(ranks) - alone
    assert pairs.var() / alone.var() == pytest.approx(share, rel=0.05)
    assert abs(np.corrcoef(pairs, alone)[0, 1]) < 0.02
    assert abs(pairs.mean()) < 0.02 * pairs.std()


def test_observations_scatter_around_the_loss() -> None:
    layout = transformer_layout(n_layers=1)
    utility = SyntheticUtility.draw(np.random.default_rng(0), layout)
    live = SyntheticLearner(layout, utility, n_envs=20_000, noise_std=0.05, seed=1)
    ranks = np.full((20_000, 6), 3)
    live.apply(ranks)
    error = live.step().task_loss - utility.loss(ranks)
    assert error.std() == pytest.approx(0.05, rel=0.03)
    assert abs(error.mean()) < 5 * 0.05 / np.sqrt(20_000)


def test_a_seed_restarts_the_noise_and_none_does_not() -> None:
    layout = transformer_layout(n_layers=1)
    live = SyntheticLearner(layout, SyntheticUtility(np.zeros((6, 8))), n_envs=2)
    live.reset(9)
    first = live.step().task_loss
    live.reset()
    assert not np.array_equal(live.step().task_loss, first)
    live.reset(9)
    assert np.array_equal(live.step().task_loss, first)


def test_active_ranks_are_a_copy() -> None:
    layout = transformer_layout(n_layers=1)
    utility = SyntheticUtility.draw(np.random.default_rng(0), layout)
    live = SyntheticLearner(layout, utility, noise_std=0.0)
    ranks = np.full((1, 6), 8)
    live.apply(ranks)
    ranks[:] = 0
    assert live.step().task_loss[0] == pytest.approx(0.70 - 0.45)
