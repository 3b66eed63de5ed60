"""Ranks and steps together: budgets kept, nothing better found, and the file that comes out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_data import random_adapter
from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.precision import coded_costs, pack_planned, plan_coding
from rankcast.allocation.solve import knapsack, waterfill
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source, pack_within, unpack
from rankcast.codec.rates import Spreads
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.link.capacity import Awgn
from rankcast.records import AdapterLayout, LinkState

TENSORS = random_adapter(1, widths=((60, 40), (30, 70)), ranks=(3, 3), size=0.5)
SPREADS = Spreads.of(TENSORS)
GAINS = np.array([[0.5, 0.2, 0.1], [0.3, 0.25, 0.01]])
SOURCE = Source(TENSORS, BaseModel("tiny"), {"task_type": "SEQ_CLS"})


def value_and_bits(ranks: tuple[int, ...], exponents: tuple[int, ...]) -> tuple[float, float]:
    e = np.array(exponents)
    kept = np.arange(3) < np.array(ranks)[:, None]
    value = (GAINS * SPREADS.kept_share(e) * kept).sum()
    return float(value), float((SPREADS.component_bits(e) * kept).sum())


@pytest.mark.parametrize("budget", [200.0, 500.0, 1000.0])
def test_nothing_better_for_the_bits_that_it_spends(budget: float) -> None:
    plan = plan_coding(SPREADS, GAINS, budget)
    assert plan.payload_bits <= budget
    found = value_and_bits(tuple(plan.ranks), tuple(plan.exponents))
    assert found == pytest.approx((plan.gain, plan.payload_bits))
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


@settings(max_examples=40, deadline=None)
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
    budget = 8.0 * 700
    container = pack_planned(SOURCE, GAINS, budget)
    size = 8 * len(container.to_bytes())
    assert 0.9 * budget < size <= budget
    decoded = unpack(container)
    assert decoded.ranks.sum() > 0
    for mine, theirs in zip(decoded.factors, TENSORS.factors, strict=True):
        full = theirs.left[:, : mine.rank] @ theirs.right[: mine.rank]
        if mine.rank:
            error = np.linalg.norm(mine.delta_weight() - full) / np.linalg.norm(full)
            assert error < 0.7


def test_a_common_step_fills_the_budget_too() -> None:
    for budget in (5000.0, 5600.0, 7000.0):
        assert 0.93 * budget < 8 * len(pack_within(SOURCE, budget).to_bytes()) <= budget


def test_a_planned_file_that_cannot_fit_says_so() -> None:
    with pytest.raises(InfeasibleDeadlineError):
        pack_planned(SOURCE, GAINS, 800.0)
    pack_within(SOURCE, 8.0 * 700)  # which the common step can do as well


def test_allocators_count_bits_as_coded() -> None:
    exponents = np.array([-18, -18])
    costs = coded_costs(SPREADS, exponents, Awgn(), overhead_bits=50.0)
    layout = AdapterLayout(TENSORS.projections, 3)
    problem = AllocationProblem(layout, costs, link_weight=1e-9)
    bits = SPREADS.component_bits(exponents)
    assert costs.full_bits == bits.sum() + 50.0
    link = LinkState(np.zeros(1), np.array([float(bits[:, :2].sum() + 50)]), np.ones(1))
    gains = np.array([[3.0, 2.0, 1e-9], [3.0, 2.0, 1e-9]]) * bits
    assert waterfill(gains, problem, link).tolist() == [[2, 2]]
    values = np.concatenate([np.zeros((2, 1)), gains.cumsum(axis=1)], axis=1)
    assert knapsack(values, problem, link).tolist() == [[2, 2]]
