from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankcast.errors import ConfigError
from rankcast.statistics import bootstrap_interval
from studies.report.statistics import (
    Estimate,
    area_under_curve,
    auc_interval,
    equivalent,
    not_worse,
    paired_t,
    pooled_bootstrap,
    t_interval,
)

finite = st.floats(-100.0, 100.0)


def test_the_t_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, t(0.975; 2) = 4.303.
    estimate = t_interval([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


@given(st.lists(finite, min_size=2, max_size=12))
@settings(max_examples=50)
def test_the_t_interval_agrees_with_scipy(values: list[float]) -> None:
    estimate, x = t_interval(values), np.array(values)
    expected = stats.ttest_1samp(x + np.arange(len(x)), 0.0).confidence_interval(0.95)
    shifted = t_interval(x + np.arange(len(x)))
    assert (shifted.low, shifted.high) == pytest.approx((expected.low, expected.high))
    assert estimate.low <= estimate.value <= estimate.high


def test_one_seed_has_no_interval() -> None:
    estimate = t_interval([0.5])
    assert estimate.interval is None
    assert f"{estimate:.2f}" == "0.50"
    assert not not_worse(estimate.interval, 1.0)
    assert not equivalent(estimate.interval, 1.0)


def test_pairs_cancel_what_seeds_have_in_common() -> None:
    hard = np.array([0.0, 5.0, 10.0])
    estimate = paired_t(hard + 1.0, hard)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ConfigError, match="one shape"):
        paired_t([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="at least one"):
        t_interval([])


def test_estimates_are_written_with_their_interval() -> None:
    assert f"{Estimate(0.05, -0.1, 0.2):+.2f}" == "+0.05 ± 0.15"
    assert f"{Estimate(0.05, 0.0, 0.2):.2f}" == "0.05 (0.00 to 0.20)"
    assert f"{Estimate(0.05, -0.1, 0.2).scaled(-100):.0f}" == "-5 ± 15"


def test_with_one_seed_the_pooled_bootstrap_resamples_texts_only() -> None:
    difference = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=300)
    low, high = bootstrap_interval(difference, 0)
    pooled = pooled_bootstrap(difference[None], 1)
    assert pooled.value == difference.mean()
    assert (pooled.low, pooled.high) == pytest.approx((low, high), abs=0.01)


def test_the_pooled_bootstrap_has_the_spread_of_seeds() -> None:
    # No text differs from another, so that all spread is the seeds': s² / S.
    by_seed = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
    estimate = pooled_bootstrap(np.repeat(by_seed[:, None], 10, axis=1), 0)
    standard_error = by_seed.std(ddof=1) / math.sqrt(8)
    assert estimate.half_width == pytest.approx(1.96 * standard_error, rel=0.05)


def test_texts_are_resampled_jointly_for_all_seeds() -> None:
    # Equal seeds hold no more texts than one of them: the interval must not shrink by √3.
    texts = np.random.default_rng(0).normal(size=200)
    one, three = pooled_bootstrap(texts[None], 0), pooled_bootstrap(np.tile(texts, (3, 1)), 0)
    assert three.half_width == pytest.approx(one.half_width, rel=0.05)


def test_two_groups_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # A is one text of 1, B three of 0. Two draws: AA has the mean 1, AB and BA 1 / 4, BB 0.
    difference, groups = np.array([[0.0, 1.0, 0.0, 0.0]]), ["B", "A", "B", "B"]
    estimate = pooled_bootstrap(difference, 0, groups=groups)
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.0, 1.0)
    monkeypatch.setattr("studies.report.statistics.TAILS", (0.3, 0.7))  # of AB and BA, half of all
    middle = pooled_bootstrap(difference, 0, groups=groups)
    assert (middle.low, middle.high) == (0.25, 0.25)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=30)
def test_groups_of_one_text_change_nothing(n_seeds: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    difference = rng.integers(-1, 2, (n_seeds, n))
    alone = pooled_bootstrap(difference, seed, 200)
    assert pooled_bootstrap(difference, seed, 200, groups=3 * np.arange(n) - 7) == alone


def test_equal_texts_of_a_group_hold_no_more_than_one_of_them() -> None:
    sentences = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(3, 300))
    phrases, groups = np.repeat(sentences, 5, axis=1), np.repeat(np.arange(300), 5)
    one, grouped = pooled_bootstrap(sentences, 0), pooled_bootstrap(phrases, 0, groups=groups)
    assert grouped.half_width == pytest.approx(one.half_width, rel=0.05)
    assert grouped.half_width > 1.5 * pooled_bootstrap(phrases, 0).half_width


def test_independent_texts_have_the_same_interval_in_groups() -> None:
    texts = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(1, 2000))
    grouped = pooled_bootstrap(texts, 0, groups=np.arange(2000) // 4)
    assert grouped.half_width == pytest.approx(pooled_bootstrap(texts, 0).half_width, rel=0.1)


def test_groups_need_no_order_and_no_numbers() -> None:
    rng = np.random.default_rng(0)
    difference, groups = rng.integers(-1, 2, (2, 60)), np.sort(rng.integers(0, 12, 60))
    mixed = rng.permutation(60)
    names = [f"{group:02d}" for group in groups[mixed]]
    expected = pooled_bootstrap(difference, 0, groups=groups)
    assert pooled_bootstrap(difference[:, mixed], 0, groups=names) == expected


def test_a_group_for_each_text() -> None:
    with pytest.raises(ConfigError, match="4 texts need as many groups"):
        pooled_bootstrap(np.zeros((2, 4)), 0, groups=[0, 0, 1])


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 0), (2, 2, 2)])
def test_the_pooled_bootstrap_wants_seeds_and_texts(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="seeds, texts"):
        pooled_bootstrap(np.zeros(shape), 0)


def test_the_area_by_hand() -> None:
    bits, accuracy = [1.0, 4.0, 16.0], [0.5, 0.7, 0.8]
    # log2: 0, 2, 4. Trapezia of 1..16: (0.6 + 0.75) / 2; of 2..8: (0.65 + 0.725) / 2.
    assert area_under_curve(bits, accuracy, 1.0, 16.0) == pytest.approx(0.675)
    assert area_under_curve(bits, accuracy, 2.0, 8.0) == pytest.approx(0.6875)
    # Beyond the largest budget its accuracy holds: half of 4..64 rises, half is 0.8.
    assert area_under_curve(bits, accuracy, 4.0, 64.0) == pytest.approx(0.775)


@given(st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(0.0, 1.0)), min_size=1, max_size=8))
@settings(max_examples=60)
def test_the_area_is_a_mean_of_accuracies(points: list[tuple[float, float]]) -> None:
    bits, accuracy = np.array(points).T
    low, high = bits.min() * 1.1, bits.max() * 2.0
    area = area_under_curve(bits, accuracy, low, high)
    assert accuracy.min() - 1e-9 <= area <= accuracy.max() + 1e-9
    backwards = area_under_curve(bits[::-1], accuracy[::-1], low, high)
    assert backwards == pytest.approx(float(area))


def test_equal_budgets_count_as_their_mean() -> None:
    assert area_under_curve([1.0, 4.0, 4.0], [0.4, 0.6, 1.0], 1.0, 4.0) == pytest.approx(0.6)


@pytest.mark.parametrize(("low", "high"), [(0.5, 4.0), (4.0, 2.0), (0.0, 4.0), (math.nan, 4.0)])
def test_impossible_budgets_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="budgets"):
        area_under_curve([1.0, 4.0], [0.5, 0.6], low, high)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 budgets"):
        area_under_curve([1.0, 4.0], [0.5], 1.0, 4.0)
    with pytest.raises(ConfigError, match="seeds, budgets, texts"):
        auc_interval([1.0, 4.0], [0.5, 0.6], 1.0, 4.0, 0)


def test_the_interval_of_the_area_is_that_of_the_areas_of_texts() -> None:
    rng = np.random.default_rng(0)
    answers = (rng.random((3, 4, 120)) < np.array([0.5, 0.6, 0.7, 0.8])[:, None]).astype(float)
    bits = np.array([1.0, 2.0, 4.0, 8.0])
    estimate = auc_interval(bits, answers, 1.0, 8.0, 0)
    mean_curve = answers.mean(axis=(0, 2))
    assert estimate.value == pytest.approx(float(area_under_curve(bits, mean_curve, 1.0, 8.0)))
    assert estimate.low < estimate.value < estimate.high
    single = auc_interval(bits, mean_curve[None], 1.0, 8.0, 0)
    assert single.low == single.high == pytest.approx(estimate.value)


def test_not_worse_and_equivalent_need_the_whole_interval() -> None:
    assert not_worse((-0.4, 2.0), 0.5)
    assert not not_worse((-0.6, 2.0), 0.5)
    assert not_worse((0.0, 2.0))
    assert equivalent((-0.4, 0.5), 0.5)
    assert not equivalent((-0.4, 0.6), 0.5)
    with pytest.raises(ConfigError, match="margin"):
        not_worse((0.0, 1.0), -0.1)
