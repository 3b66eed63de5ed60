"""Ranks and steps together: bits and errors are the coder's, budgets kept, nothing better found."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.adapters.rate import rounded_gaussian_entropy
from rankcast.codec.chunks import ChunkPlan, encode
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source, block_offsets
from rankcast.codec.planner import (
    SIDE_BITS,
    Spreads,
    pack_planned,
    pack_within,
    plan_coding,
    rounded_entropy,
    rounding_error,
)
from rankcast.errors import CodecError, ConfigError, InfeasibleDeadlineError

TENSORS = random_adapter(1, widths=((60, 40), (30, 70)), ranks=(3, 3), size=0.5)
SPREADS = Spreads.of(TENSORS)
GAINS = np.array([[0.5, 0.2, 0.1], [0.3, 0.25, 0.01]])
SOURCE = Source(TENSORS, BaseModel("tiny"), {"task_type": "SEQ_CLS"})


def value_and_bits(ranks: tuple[int, ...], exponents: tuple[int, ...]) -> tuple[float, float]:
    e = np.array(exponents)
    kept = np.arange(3) < np.array(ranks)[:, None]
    value = (GAINS * SPREADS.kept_share(e) * kept).sum()
    return float(value), float((SPREADS.component_bits(e) * kept).sum())


def differentiable_entropy(spread: np.ndarray) -> np.ndarray:
    return rounded_gaussian_entropy(torch.tensor(spread)).numpy()


@pytest.mark.parametrize("entropy", [rounded_entropy, differentiable_entropy])
def test_entropy_by_hand(entropy: Callable[[np.ndarray], np.ndarray]) -> None:
    # σ = ½: masses 0.6827, 2·0.1573, 2·0.0013; σ = 10: the density's.
    p = np.array([0.6826895, 0.1573054, 0.1573054, 0.0013496, 0.0013496])
    bits = entropy(np.array([0.5, 10.0, 1e-3, 0.0, 1e3, 2.4999, 2.5001]))
    assert bits[0] == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-3)
    assert bits[1] == pytest.approx(2.0471 + np.log2(10), rel=1e-3)
    assert bits[2:4] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert bits[4] == pytest.approx(2.0471 + np.log2(1e3), rel=1e-3)
    assert bits[5] == pytest.approx(bits[6], abs=0.01)


def test_entropy_is_that_of_the_differentiable_twin() -> None:
    spread = np.linspace(0.06, 5.0, 50)
    np.testing.assert_allclose(rounded_entropy(spread), differentiable_entropy(spread), atol=1e-2)


def test_error_of_sampled_numbers() -> None:
    x = np.random.default_rng(0).standard_normal(200_000)
    for spread in (0.1, 0.3, 0.7, 2.0, 20.0):
        sampled = np.square(spread * x - np.rint(spread * x)).mean() / spread**2
        assert rounding_error(np.array(spread)) == pytest.approx(sampled, rel=0.02, abs=1e-6)
    assert rounding_error(np.array([0.0, 1e-3])).tolist() == [1.0, 1.0]
    assert rounding_error(np.array(100.0)) == pytest.approx(1 / 12e4)


def test_component_bits_are_those_of_the_coder() -> None:
    tensors = random_adapter(0, widths=((400, 300), (300, 500)), ranks=(4, 2), size=0.5)
    spreads = Spreads.of(tensors)
    exponents = np.array([-18, -12])
    expected = spreads.component_bits(exponents)
    assert expected.shape == (2, 4)
    assert expected[1, 2:].tolist() == [SIDE_BITS, SIDE_BITS]  # nothing there to code
    offsets = block_offsets(tensors, (-18, -12))
    coded = 8 * len(encode(tensors, [ChunkPlan(0, (4, 2))], offsets)[0])
    assert expected[0].sum() + expected[1, :2].sum() == pytest.approx(coded, rel=0.03)


def test_kept_share_falls_with_the_step() -> None:
    spreads = Spreads.of(random_adapter(0, size=0.5))
    shares = spreads.kept_share(np.array([[-60, -60], [-12, -12], [20, 20]]))
    assert shares[0, 0].min() > 0.999
    assert (shares[1] <= shares[0]).all()
    assert shares[2].max() == 0.0


def test_an_adapter_without_components_is_refused() -> None:
    with pytest.raises(CodecError, match="no components"):
        Spreads.of(random_adapter(0, ranks=(0, 0)))


@pytest.mark.parametrize("budget", [200.0, 500.0, 1000.0])
def test_nothing_better_for_the_bits_that_it_spends(budget: float) -> None:
    plan = plan_coding(SPREADS, GAINS, budget)
    assert plan.payload_bits <= budget
    planned = value_and_bits(tuple(plan.ranks), tuple(plan.exponents))
    assert planned == pytest.approx((plan.gain, plan.payload_bits))
    for ranks in itertools.product(range(4), repeat=2):
        for exponents in itertools.product(range(-24, 8, 2), repeat=2):
            value, bits = value_and_bits(ranks, exponents)
            assert bits > plan.payload_bits or value <= plan.gain + 1e-9


def test_precision_beats_any_common_step_at_full_rank() -> None:
    budget = 600.0
    common = max(
        value
        for e in range(-30, 10)
        for value, bits in [value_and_bits((3, 3), (e, e))]
        if bits <= budget
    )
    assert plan_coding(SPREADS, GAINS, budget).gain > common


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.0, 5000.0))
def test_budgets_are_kept_and_used(seed: int, budget: float) -> None:
    gains = np.random.default_rng(seed).exponential(size=(2, 3))
    plan = plan_coding(SPREADS, gains, budget)
    assert 0.0 <= plan.payload_bits <= budget
    more = plan_coding(SPREADS, gains, 2 * budget + 1)
    assert more.gain >= plan.gain


def test_a_budget_for_everything_sends_everything_finely() -> None:
    plan = plan_coding(SPREADS, GAINS, 1e9)
    assert plan.ranks.tolist() == [3, 3]
    assert plan.gain == pytest.approx(GAINS.sum(), rel=0.01)
    nothing = plan_coding(SPREADS, GAINS, 0.0)
    assert nothing.ranks.tolist() == [0, 0]
    assert (nothing.payload_bits, nothing.gain, nothing.exponent) == (0.0, 0.0, 0)
    assert nothing.offsets == (0, 0)


def test_worthless_components_are_not_sent() -> None:
    plan = plan_coding(SPREADS, np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), 1e6)
    assert plan.ranks.tolist() == [1, 0]


@pytest.mark.parametrize("gains", [np.zeros((2, 2)), np.full((2, 3), np.nan)])
def test_impossible_gains_are_refused(gains: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="gains"):
        plan_coding(SPREADS, gains, 100.0)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(InfeasibleDeadlineError):
        plan_coding(SPREADS, GAINS, -1.0)


def test_a_planned_file_fits_and_decodes_to_the_plan() -> None:
    budget = 8.0 * 500
    container = pack_planned(SOURCE, budget, GAINS)
    size = 8 * len(container.to_bytes())
    assert 0.9 * budget < size <= budget
    decoded = container.tensors()
    assert decoded.ranks.sum() > 0
    for mine, theirs in zip(decoded.factors, TENSORS.factors, strict=True):
        full = theirs.left[:, : mine.rank] @ theirs.right[: mine.rank]
        if mine.rank:
            error = np.linalg.norm(mine.delta_weight() - full) / np.linalg.norm(full)
            assert error < 0.7


def test_a_common_step_fills_the_budget_too() -> None:
    for budget in (5000.0, 5600.0, 7000.0):
        assert 0.93 * budget < pack_within(SOURCE, budget).n_bits <= budget


def test_a_planned_file_that_cannot_fit_says_so() -> None:
    with pytest.raises(InfeasibleDeadlineError):
        pack_planned(SOURCE, 400.0, GAINS)
    pack_within(SOURCE, 8.0 * 500)  # which the common step can do as well
    with pytest.raises(InfeasibleDeadlineError, match="short by"):
        pack_within(SOURCE, 100.0)
