from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from helpers.allocation import PROBLEM, budget, predicted, row_of, text
from rankcast.allocation.beliefs import BayesianUtility, RankBins, isotonic_decreasing
from rankcast.allocation.saturating import make_utility
from rankcast.config.policy import UtilityConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.learner.synthetic import SyntheticUtility, transformer_layout
from rankcast.records import FloatArray, TextStats


def no_text(size: int) -> TextStats:
    return text(size, 0.0, 0.0)


def random_text(rng: np.random.Generator, size: int) -> TextStats:
    return TextStats(rng.uniform(1, 4, size), rng.uniform(0, 0.4, size))


def belief(utility: BayesianUtility) -> tuple[FloatArray, FloatArray]:
    """Return mean and covariance of everything that is unknown."""
    covariance = np.linalg.inv(utility._precision)
    return covariance @ utility._information, covariance


def test_one_observation_by_hand() -> None:
    # Prior: intercept 1.4 ± 2, gain 0.7 ± 1.4. Rank 1 is expected to lose 0.7, and 0.1 is seen;
    # the variance of that surprise of -0.6 is 4 + 1.96 + 0.2² = 6.
    utility = BayesianUtility(row_of(1, 1), UtilityConfig(relative_std=2.0, noise_std=0.2))
    assert predicted(utility, np.array([[0], [1]]), no_text(2)) == pytest.approx([1.4, 0.7])
    utility.update(np.array([[1]]), np.array([0.1]), no_text(1))
    assert utility.mean_gains() == pytest.approx(np.array([[0.7 + 1.96 / 6 * 0.6]]))
    assert predicted(utility, np.array([[0]]), no_text(1))[0] == pytest.approx(1.4 - 4 / 6 * 0.6)
    assert belief(utility)[1][3, 3] == pytest.approx(1.96 - 1.96**2 / 6)


def test_a_pair_by_hand() -> None:
    # Rank 0 against full rank on one batch: the difference 0.5 is the gain, ± 0.2.
    utility = BayesianUtility(row_of(1, 1), UtilityConfig(relative_std=2.0, paired_noise_std=0.2))
    utility.update(np.array([[0]]), np.array([0.9]), no_text(1), np.array([0.4]))
    assert utility.mean_gains() == pytest.approx(np.array([[0.7 + 1.96 / 2.0 * (0.5 - 0.7)]]))
    mean, covariance = belief(utility)
    assert covariance[3, 3] == pytest.approx(1.96 * 0.04 / 2.0)
    assert mean[:3] == pytest.approx([1.4, 0.0, 0.0])  # nothing is learned of the baseline


def test_expected_gains_are_where_a_belief_begins_by_hand() -> None:
    # Two projections of two components; the second component is three times the size of the first.
    # 0.7 is shared out 6 : 3 : 1 : 0, but nothing is expected to be worth less than a hundredth of
    # the mean of 10 / 8 a unit of size, which is 3 * 0.0125 for the last.
    sizes, expected = np.array([[1.0, 3.0]] * 2), np.array([[6.0, 3.0], [1.0, 0.0]])
    utility = BayesianUtility(row_of(2, 2), weights=sizes, expected=expected)
    shares = np.array([[6.0, 3.0], [1.0, 0.0375]])
    mean = 0.7 * shares / 10.0375
    assert utility.mean_gains() == pytest.approx(mean)
    # each is as wide as it is large, and the two of a projection go together
    covariance = belief(utility)[1][3:, 3:]
    unit = (mean / sizes).reshape(-1)
    assert np.sqrt(np.diag(covariance)) == pytest.approx(unit)
    assert covariance[0, 1] == pytest.approx(0.98 * unit[0] * unit[1])
    assert covariance[1, 2] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (np.ones((2, 3)), r"of shape \(2, 2\), got \(2, 3\)"),
        (np.full((2, 2), -1.0), "at least 0"),
        (np.zeros((2, 2)), "No component is expected to be worth anything"),
    ],
)
def test_expected_gains_that_make_no_sense_are_refused(expected: FloatArray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BayesianUtility(row_of(2, 2), expected=expected)


def test_a_pair_at_full_rank_says_nothing() -> None:
    utility = BayesianUtility(row_of(2, 3))
    before = utility.state_dict()
    utility.update(np.full((1, 2), 3), np.array([0.9]), no_text(1), np.array([0.9]))
    after = utility.state_dict()
    assert np.array_equal(before["precision"], after["precision"])
    assert np.array_equal(before["information"], after["information"])


def test_posterior_is_batch_ridge_regression() -> None:
    config = UtilityConfig(
        total_gain=0.6, relative_std=1.5, rank_correlation=0.5, rank_decay=2.0, noise_std=0.1
    )
    utility = BayesianUtility(row_of(2, 3), config)
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 4, (12, 2))
    loss = rng.normal(0.5, 0.2, 12)
    words = random_text(rng, 12)
    for part in (slice(0, 1), slice(1, 5), slice(5, 12)):
        stats = TextStats(words.lexical_entropy[part], words.oov_rate[part])
        utility.update(ranks[part], loss[part], stats)

    shape = np.exp(-np.arange(3) / 2.0)
    gains = 0.6 * shape / (2 * shape.sum())
    one = np.outer(1.5 * gains, 1.5 * gains) * 0.5 ** np.abs(np.subtract.outer(range(3), range(3)))
    prior = np.zeros((9, 9))
    prior[:3, :3] = np.diag([4.0, 0.04, 0.04])
    prior[3:6, 3:6] = prior[6:, 6:] = one
    start = np.concatenate([[1.2, 0.0, 0.0], gains, gains])
    active = (np.arange(1, 4) <= ranks[..., None]).reshape(12, 6).astype(float)
    baseline = np.column_stack([np.ones(12), words.lexical_entropy, words.oov_rate])
    x = np.concatenate([baseline, -active], axis=1)
    # Ridge towards `start`: whiten the prior and solve one least-squares problem.
    root = np.linalg.inv(np.linalg.cholesky(prior))
    stacked = np.concatenate([x / 0.1, root])
    wanted = np.concatenate([loss / 0.1, root @ start])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    assert belief(utility)[0] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert predicted(utility, ranks, words) == pytest.approx(x @ expected, rel=1e-6)


def draws_of(utility: BayesianUtility, seed: int, size: int, width: float = 1.0) -> FloatArray:
    """Return (size, N, R) draws; an additive belief looks at no problem."""
    return utility.gains_at(PROBLEM, budget(*[1.0] * size), np.random.default_rng(seed), width)


def sharp() -> BayesianUtility:
    """Return a belief so sharp that draws need no isotonic correction."""
    utility = BayesianUtility(row_of(2, 2), UtilityConfig(paired_noise_std=0.005))
    truth = SyntheticUtility(np.array([[0.3, 0.1], [0.2, 0.15]]))
    ranks = np.array([[a, b] for a in range(3) for b in range(3)])
    full = truth.loss(np.full((9, 2), 2))
    utility.update(ranks, truth.loss(ranks), no_text(9), full)
    return utility


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_draws_have_the_moments_of_the_belief(width: float) -> None:
    utility = sharp()
    mean, covariance = belief(utility)
    draws = draws_of(utility, 1, 40_000, width).reshape(-1, 4)
    std = width * np.sqrt(np.diag(covariance)[3:])
    assert np.abs(draws.mean(axis=0) - mean[3:]).max() < 5 * std.max() / 200
    assert draws.std(axis=0) == pytest.approx(std, rel=0.03)
    ours, theirs = np.cov(draws.T), width**2 * covariance[3:, 3:]
    assert np.abs(ours - theirs).max() < 0.03 * np.abs(theirs).max()
    assert (np.diff(draws.reshape(-1, 2, 2), axis=2) <= 0).all()


def test_draws_without_width_are_the_expected_gains() -> None:
    utility = sharp()
    draws = draws_of(utility, 1, 3, 0.0)
    assert draws == pytest.approx(np.repeat(utility.mean_gains()[None], 3, axis=0))
    assert utility.mean_gains() == pytest.approx(np.array([[0.3, 0.1], [0.2, 0.15]]), abs=0.01)


def test_wide_draws_are_decreasing_and_never_negative() -> None:
    utility = BayesianUtility(row_of(3, 64), UtilityConfig(relative_std=3.0, rank_decay=20.0))
    draws = draws_of(utility, 0, 200)
    assert draws.shape == (200, 3, 64)
    assert (draws >= 0).all()
    assert (np.diff(draws, axis=2) <= 1e-15).all()
    assert draws.std(axis=0).min() > 0


def test_draws_depend_on_the_generator_alone() -> None:
    utility = sharp()
    first, again, other = (draws_of(utility, seed, 2) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_forgetting_returns_to_the_prior() -> None:
    utility = BayesianUtility(row_of(2, 3), UtilityConfig(forgetting=0.8))
    prior = belief(utility)
    nothing = (np.full((1, 2), 3), np.array([0.5]), no_text(1), np.array([0.5]))
    for _ in range(20):
        utility.update(np.array([[0, 1]]), np.array([0.2]), no_text(1))
    learned = belief(utility)
    assert np.abs(learned[0] - prior[0]).max() > 0.1
    utility.update(*nothing)  # a pair at full rank only lets time pass
    assert np.trace(belief(utility)[1]) > np.trace(learned[1])
    for _ in range(300):
        utility.update(*nothing)
    assert belief(utility)[0] == pytest.approx(prior[0], rel=1e-6, abs=1e-9)
    assert belief(utility)[1] == pytest.approx(prior[1], rel=1e-6, abs=1e-9)


def test_forgetting_counts_observations_not_calls() -> None:
    loss = np.array([0.2, 0.2])
    config = UtilityConfig(forgetting=0.5)
    batch, single = BayesianUtility(row_of(2, 3), config), BayesianUtility(row_of(2, 3), config)
    for utility in (batch, single):
        utility.update(np.full((1, 2), 2), np.array([0.4]), no_text(1))
    nothing = (np.full((2, 2), 3), loss, no_text(2), loss)
    batch.update(*nothing)
    for _ in range(2):
        single.update(np.full((1, 2), 3), loss[:1], no_text(1), loss[:1])
    assert batch.state_dict()["precision"] == pytest.approx(single.state_dict()["precision"])


def test_without_forgetting_the_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    ranks, loss = rng.integers(0, 4, (6, 2)), rng.normal(size=6)
    forwards, backwards = BayesianUtility(row_of(2, 3)), BayesianUtility(row_of(2, 3))
    for k in range(6):
        forwards.update(ranks[[k]], loss[[k]], no_text(1))
        backwards.update(ranks[[5 - k]], loss[[5 - k]], no_text(1))
    assert forwards.mean_gains() == pytest.approx(backwards.mean_gains())


def test_bins_of_high_ranks() -> None:
    utility = BayesianUtility(row_of(2, 64), UtilityConfig(rank_decay=20.0))
    assert utility._bins.middles.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12.5, 24.5, 48.5]
    assert utility._bins.widths.tolist() == [[1] * 8 + [8, 16, 32]] * 2
    gains = utility.mean_gains()
    assert gains.shape == (2, 64)
    assert gains.sum() == pytest.approx(0.7)
    for start, stop in ((8, 16), (16, 32), (32, 64)):
        assert np.ptp(gains[:, start:stop], axis=1) == pytest.approx([0.0, 0.0])
        assert gains[0, start - 1] > gains[0, start]
    # Inside a bin each rank removes as much as its neighbour: 12 lies half-way from 8 to 16.
    loss = predicted(utility, np.array([[8, 0], [12, 0], [16, 0]]), no_text(3))
    assert loss[1] == pytest.approx((loss[0] + loss[2]) / 2)
    assert loss[0] - loss[2] == pytest.approx(gains[0, 8:16].sum())


@pytest.mark.parametrize(("r_max", "widths"), [(1, [1]), (8, [1] * 8), (10, [1] * 8 + [2])])
def test_bins_end_at_r_max(r_max: int, widths: list[int]) -> None:
    assert BayesianUtility(row_of(1, r_max))._bins.widths.tolist() == [widths]


def test_learns_true_gains_from_noisy_losses() -> None:
    shape = transformer_layout(n_layers=1)
    truth = SyntheticUtility.draw(np.random.default_rng(0), shape)
    utility = BayesianUtility(shape)
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 9, (3000, 6))
    utility.update(ranks, truth.loss(ranks) + 0.05 * rng.normal(size=3000), text(3000))
    removed = truth.gains.cumsum(axis=1)
    assert utility.mean_gains().cumsum(axis=1) == pytest.approx(removed, abs=0.02)


def test_continues_from_its_state() -> None:
    utility = sharp()
    other = BayesianUtility(row_of(2, 2), utility.config)
    state = utility.state_dict()
    other.load_state_dict(state)
    state["precision"][:] = 0.0  # a copy: neither belief may see this
    for u in (utility, other):
        u.update(np.array([[1, 1]]), np.array([0.4]), no_text(1))
    assert np.array_equal(utility.mean_gains(), other.mean_gains())
    with pytest.raises(CheckpointError, match=r"7 unknowns.*9"):
        BayesianUtility(row_of(3, 2)).load_state_dict(utility.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_gain": 0.0},
        {"noise_std": -0.1},
        {"paired_noise_std": float("nan")},
        {"rank_correlation": 1.0},
        {"forgetting": 0.0},
        {"forgetting": 1.1},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="utility"):
        UtilityConfig(**wrong)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
def test_isotonic_decreasing_is_scipys(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = rng.integers(1, 33, size).astype(np.float64)
    values = rng.normal(size=(4, 25, size))
    values[0, :5] = np.round(values[0, :5])  # ties
    values[1, :5] = np.sort(values[1, :5])  # all to be pooled
    values[2, :5] = -np.sort(values[2, :5])  # nothing to be done
    fit = isotonic_decreasing(values, weights)
    for row, ours in zip(values.reshape(-1, size), fit.reshape(-1, size), strict=True):
        theirs = isotonic_regression(row, weights=weights, increasing=False).x
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert fit[2, :5] == pytest.approx(values[2, :5])


WEIGHTS = np.array([[1.0, 2.0, 4.0], [2.0, 0.5, 0.0]])


def test_components_of_other_sizes_count_by_their_size() -> None:
    bins = RankBins(row_of(2, 3), WEIGHTS)
    assert bins.full.tolist() == [1, 2, 4, 2, 0.5, 0]
    assert bins.counts(np.array([[2, 1], [3, 3]])).tolist() == [
        [1, 2, 0, 2, 0, 0],
        [1, 2, 4, 2, 0.5, 0],
    ]
    # Of a unit of size 5, 2, 1 and 4, 6, 9: the latter becomes the mean of 4 and 6 by their sizes.
    gains = bins.to_ranks(np.array([[5.0, 2, 1, 4, 6, 9]]))[0]
    assert gains[0].tolist() == [5, 4, 4]
    assert gains[1] == pytest.approx([2 * 4.4, 0.5 * 4.4, 0.0], rel=1e-4)


@pytest.mark.parametrize("form", ["additive", "saturating"])
def test_gains_of_a_unit_of_size_decrease(form: str) -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 5.0, (4, 6))
    utility = make_utility(row_of(4, 6), UtilityConfig(form=form), weights)
    ranks = rng.integers(0, 7, (50, 4))
    utility.update(ranks, 0.7 - 0.02 * ranks.sum(axis=1) + 0.1 * rng.normal(size=50), text(50))
    each = utility.mean_gains() / weights
    assert (np.diff(each, axis=1) <= 1e-12).all()
    assert (each >= 0).all()


@pytest.mark.parametrize("form", ["additive", "saturating"])
def test_equal_sizes_are_ranks(form: str) -> None:
    rng = np.random.default_rng(1)
    ranks, losses = rng.integers(0, 7, (30, 4)), rng.normal(size=30)
    found = []
    for weights in (None, np.ones((4, 6))):
        utility = make_utility(row_of(4, 6), UtilityConfig(form=form), weights)
        utility.update(ranks, losses, text(30))
        found.append(utility.mean_gains())
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    "weights", [np.ones((2, 2)), np.full((2, 3), -1.0), np.full((2, 3), np.nan)]
)
def test_impossible_sizes_are_refused(weights: FloatArray) -> None:
    with pytest.raises(ConfigError, match="weights must be finite"):
        BayesianUtility(row_of(2, 3), weights=weights)
