from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.frontier import best_plan, frontier
from rankcast.allocation.solve import knapsack, waterfill
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.finetune.monotone import MonotoneUtility
from rankcast.finetune.synthetic import SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import AdapterLayout, LinkState, Projection

# Three projections of 8, 24 and 11 parameters a rank, one bit each; at 0 dB one hertz carries one
# bit a second, so the bandwidth in hertz is the budget in bits.
LAYOUT = AdapterLayout(
    (
        Projection("a", 0, "q", 3, 4),
        Projection("b", 0, "k", 11, 12),
        Projection("c", 1, "q", 5, 5),
    ),
    r_max=2,
)
COSTS = LinkCostModel.for_layout(LAYOUT, Awgn(), bits_per_param=1.0)


def problem(**settings: Any) -> AllocationProblem:
    return AllocationProblem(LAYOUT, COSTS, **settings)


def budget(*bits: float) -> LinkState:
    return LinkState(np.zeros(len(bits)), np.array(bits, dtype=float), 1.0)


def exhaustive(loss: Any, asked: AllocationProblem, link: LinkState) -> Any:
    """Return (B,) the least objective over all feasible plans."""
    levels = range(asked.min_rank, asked.layout.r_max + 1)
    plans = np.array(list(product(levels, repeat=asked.layout.n_projections)))
    bits = COSTS.payload_bits(plans)
    limits = COSTS.budget_bits(link)
    scores = loss(plans) + asked.link_weight * bits / limits[:, None]
    if asked.deadline == "enforce":
        scores = np.where(bits <= limits[:, None], scores, np.inf)
    return scores.min(axis=1)


def test_the_frontier_adds_one_component_at_a_time() -> None:
    # Gains per bit: a 10, 5; b 8, 1; c 20, 1 (in 1/80).
    gains = np.array([[1.0, 0.5], [2.4, 0.3], [2.75, 0.13]])
    assert frontier(gains, problem()).tolist() == [
        [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2],
    ]  # fmt: skip


def test_the_frontier_looks_past_a_useless_component() -> None:
    gains = np.array([[0.0, 4.0], [0.1, 0.1], [0.1, 0.1]])
    assert frontier(gains, problem())[2].tolist() == [2, 0, 0]


def test_the_frontier_starts_at_the_minimum_rank() -> None:
    gains = np.array([[1.0, 0.5], [2.4, 0.3], [2.75, 0.13]])
    plans = frontier(gains, problem(min_rank=1))
    assert plans.tolist() == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


@pytest.mark.parametrize("rule", ["enforce", "penalise"])
@pytest.mark.parametrize("link_weight", [0.0, 0.05, 0.5])
def test_it_equals_exhaustive_search(rule: Any, link_weight: float) -> None:
    rng = np.random.default_rng(7)
    asked = problem(link_weight=link_weight, deadline=rule)
    link = budget(7, 19, 31, 42, 60, 86, 300)
    gaps = []
    for _ in range(40):
        gains = rng.exponential(1.0, (3, 2)) * rng.lognormal(0, 1, (3, 1))
        easy = MonotoneUtility("exp", 0.1, 1.0, gains)
        hard = MonotoneUtility("identity", 2.0, 0.1, gains * rng.lognormal(0, 0.3, (3, 2)))

        def loss(ranks: Any, easy: Any = easy, hard: Any = hard) -> Any:
            return 0.7 * easy.loss(ranks) + 0.3 * hard.loss(ranks)

        found = best_plan(loss, gains, asked, link)
        gaps.append(asked.objective(loss(found), found, link) - exhaustive(loss, asked, link))
        if rule == "enforce":
            assert (COSTS.payload_bits(found) <= COSTS.budget_bits(link)).all()
    gaps = np.array(gaps)
    assert gaps.min() > -1e-9
    assert (gaps > 1e-9).mean() < 0.01
    assert gaps.max() < 0.05


def test_additive_concave_gains_give_the_water_filling() -> None:
    layout = transformer_layout(n_layers=2, r_max=4)
    costs = LinkCostModel.for_layout(layout, Awgn())
    utility = SyntheticUtility.draw(np.random.default_rng(1), layout)
    asked = AllocationProblem(layout, costs, deadline="penalise")
    full = costs.payload_bits(np.full(12, 4))
    link = LinkState(np.array([-5.0, 0.0, 5.0, 10.0, 0.0]), np.array(full / 2), 1.0)
    found = best_plan(utility.loss, utility.gains, asked, link)
    assert np.array_equal(found, waterfill(utility.gains, asked, link))
    assert np.array_equal(found[1], found[4])


def test_a_binding_deadline_is_filled_as_by_the_knapsack() -> None:
    layout = transformer_layout(n_layers=2, r_max=4)
    costs = LinkCostModel.for_layout(layout, Awgn())
    utility = SyntheticUtility.draw(np.random.default_rng(2), layout)
    asked = AllocationProblem(layout, costs, link_weight=0.01)
    full = costs.payload_bits(np.full(12, 4))
    link = LinkState(np.zeros(4), full * np.array([0.05, 0.11, 0.23, 0.47]), 1.0)
    found = best_plan(utility.loss, utility.gains, asked, link)
    values = np.concatenate([np.zeros((12, 1)), utility.gains.cumsum(axis=1)], axis=1)
    exact = knapsack(values, asked, link)
    greedy = waterfill(utility.gains, asked, link)
    ours, best, filled = (
        asked.objective(utility.loss(ranks), ranks, link) for ranks in (found, exact, greedy)
    )
    assert (ours - best < 2e-4).all()
    assert (ours <= filled + 1e-12).all()
    assert (ours < filled - 1e-6).any()


def test_poor_gains_are_made_up_for_by_the_loss() -> None:
    gains = np.array([[1.0, 0.1], [0.02, 0.01], [0.5, 0.2]])
    utility = MonotoneUtility("identity", 2.0, 1.0, gains)
    asked = problem(link_weight=0.1)
    link = budget(20, 43)
    misled = best_plan(utility.loss, gains[::-1], asked, link)
    objective = asked.objective(utility.loss(misled), misled, link)
    assert objective == pytest.approx(exhaustive(utility.loss, asked, link))


def test_the_minimum_rank_is_kept() -> None:
    utility = MonotoneUtility("exp", 0.0, 1.0, np.zeros((3, 2)))
    found = best_plan(utility.loss, utility.gains, problem(min_rank=1), budget(100))
    assert found.tolist() == [[1, 1, 1]]


def test_a_single_projection_has_nothing_to_exchange() -> None:
    layout = AdapterLayout(LAYOUT.projections[:1], 2)
    costs = LinkCostModel.for_layout(layout, Awgn(), bits_per_param=1.0)
    utility = MonotoneUtility("identity", 1.0, 1.0, np.array([[0.5, 0.4]]))
    asked = AllocationProblem(layout, costs)
    assert best_plan(utility.loss, utility.gains, asked, budget(8, 16)).tolist() == [[1], [2]]


def test_bad_input_is_refused() -> None:
    utility = MonotoneUtility("exp", 0.0, 1.0, np.ones((3, 2)))
    with pytest.raises(ConfigError, match="shape"):
        best_plan(utility.loss, np.ones((2, 2)), problem(), budget(100))
    with pytest.raises(ConfigError, match="finite"):
        best_plan(utility.loss, np.full((3, 2), np.nan), problem(), budget(100))
    with pytest.raises(InfeasibleDeadlineError):
        best_plan(utility.loss, utility.gains, problem(min_rank=1), budget(10))
