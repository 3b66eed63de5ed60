from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.allocation import PAIR, PAIR_COSTS, budget, row_of, state
from rankcast.allocation.baselines import UniformAllocator
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.problem import AllocationProblem, keep_within_budget
from rankcast.allocation.waterfilling import waterfill
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import AdapterLayout, Projection


def problem(**settings: Any) -> AllocationProblem:
    return AllocationProblem(PAIR, PAIR_COSTS, **settings)


def test_waterfill_sends_what_is_worth_its_price() -> None:
    # η of a component at 1,000 bits: 0.008 and 0.024; at λ = 0.5 the prices are 0.004 and 0.012.
    gains = np.array([[0.5, 0.005, 0.003], [0.5, 0.02, 0.01]])
    assert waterfill(gains, problem(link_weight=0.5), budget(1000)).tolist() == [[2, 2]]
    # A link four times as good quarters the prices.
    assert waterfill(gains, problem(link_weight=0.5), budget(4000)).tolist() == [[3, 3]]


def test_a_binding_deadline_leaves_the_least_gain_per_bit_behind() -> None:
    # Gains per bit: a 10, 5, 1 and b 8, 4, 2 (in 1/80).
    gains = np.array([[1.0, 0.5, 0.1], [2.4, 1.2, 0.6]])
    free = problem(link_weight=0.0)
    links = budget(8, 32, 40, 64, 87, 88, 96)
    assert waterfill(gains, free, links).tolist() == [
        [1, 0], [1, 1], [2, 1], [2, 2], [2, 2], [2, 3], [3, 3],
    ]  # fmt: skip


def test_the_knapsack_fills_what_greed_leaves_empty() -> None:
    # In 47 bits greed takes a, b and stops before b's second; the knapsack goes on with a's.
    gains = np.array([[0.9, 0.06, 0.05], [3.0, 0.2, 0.1]])
    values = np.concatenate([np.zeros((2, 1)), gains.cumsum(axis=1)], axis=1)
    free = problem(link_weight=0.0)
    assert waterfill(gains, free, budget(47)).tolist() == [[1, 1]]
    assert knapsack(values, free, budget(47)).tolist() == [[2, 1]]


def test_the_knapsack_sees_past_a_useless_component() -> None:
    values = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert knapsack(values, problem(), budget(1000)).tolist() == [[2, 0]]
    late = knapsack(values, problem(link_weight=0.0), budget(15, 16))
    assert late[0, 0] < 2
    assert late[1].tolist() == [2, 0]


@pytest.mark.parametrize("bits_per_param", [1.0, 32.0, 2.7, 0.1])
def test_the_knapsack_is_never_late_by_a_hair(bits_per_param: float) -> None:
    rng = np.random.default_rng(0)
    layout = AdapterLayout(
        tuple(Projection(f"p{i}", i, "q", *rng.integers(300, 2000, 2)) for i in range(12)), 8
    )
    costs = LinkCostModel.for_layout(layout, Awgn(), bits_per_param=bits_per_param)
    tight = AllocationProblem(layout, costs, link_weight=0.01)
    values = np.concatenate([np.zeros((12, 1)), rng.random((12, 8)).cumsum(axis=1)], axis=1)
    payload = costs.payload_bits(rng.integers(0, 9, (6, 12)))
    for bits in np.concatenate([payload, np.nextafter(payload, 0)]):
        link = budget(bits)
        plan = knapsack(values, tight, link)
        assert costs.payload_bits(plan)[0] <= costs.budget_bits(link)[0]


def test_only_a_price_where_the_deadline_is_no_constraint() -> None:
    gains = np.full((2, 3), 9.0)
    values = np.concatenate([np.zeros((2, 1)), gains.cumsum(axis=1)], axis=1)
    paper = problem(deadline="penalise", link_weight=0.1)
    assert waterfill(gains, paper, budget(1)).tolist() == [[3, 3]]
    assert knapsack(values, paper, budget(1)).tolist() == [[3, 3]]


def test_the_minimum_is_kept_whatever_it_is_worth() -> None:
    gains = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    values = np.concatenate([np.zeros((2, 1)), gains.cumsum(axis=1)], axis=1)
    least = problem(min_rank=1, link_weight=0.0)
    # 32 bits for one of each, then 24 for each more of b.
    assert waterfill(gains, least, budget(32, 56, 1000)).tolist() == [[1, 1], [1, 2], [1, 3]]
    assert knapsack(values, least, budget(32, 56))[:, 1].tolist() == [1, 2]
    for solve in (lambda link: waterfill(gains, least, link), lambda k: knapsack(values, least, k)):
        with pytest.raises(InfeasibleDeadlineError, match="short by 2 bits") as error:
            solve(budget(1000, 30))
        assert (error.value.payload_bits, error.value.budget_bits) == (32.0, 30.0)


def test_gains_may_differ_by_link() -> None:
    gains = np.array([[[1.0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1.0, 0, 0]]])
    assert waterfill(gains, problem(), budget(1000, 1000)).tolist() == [[2, 0], [0, 1]]


def test_without_gains_all_shrink_by_about_the_same_share() -> None:
    layout = row_of(4, 8)
    costs = LinkCostModel.for_layout(layout, Awgn(), bits_per_param=1.0)
    even = AllocationProblem(layout, costs)
    wanted = np.array([[8, 4, 2, 0]])
    assert even.feasible(wanted, budget(112)).tolist() == [[8, 4, 2, 0]]
    assert even.feasible(wanted, budget(56)).tolist() == [[4, 2, 1, 0]]
    assert even.feasible(wanted, budget(0.5)).tolist() == [[0, 0, 0, 0]]


def test_only_the_late_plans_of_a_batch_change() -> None:
    ranks = np.array([[3, 3], [3, 3], [9, -2]])
    assert problem().feasible(ranks, budget(96, 95, 1000)).tolist()[::2] == [[3, 3], [3, 0]]
    assert PAIR_COSTS.payload_bits(problem().feasible(ranks, budget(96, 95, 1000))[1]) <= 95


def test_kept_components_are_prefixes_by_worth() -> None:
    worth = np.array([[[1.0, 9.0, 0.5], [0.8, 0.7, 0.6]]])
    full, units = np.array([[3, 3]]), PAIR_COSTS.component_units
    # The 9 cannot be had without the 1 before it, and so counts for 1.
    kept = [
        keep_within_budget(worth, units, PAIR_COSTS.whole_units(np.array([b])), full)[0].tolist()
        for b in (7.0, 8.0, 16.0, 39.0, 40.0, 64.0, 88.0, 96.0)
    ]
    assert kept == [[0, 0], [1, 0], [2, 0], [2, 0], [2, 1], [2, 2], [2, 3], [3, 3]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"link_weight": -0.1}, "link_weight"),
        ({"link_weight": float("nan")}, "link_weight"),
        ({"min_rank": 4}, "min_rank"),
        ({"min_rank": -1}, "min_rank"),
        ({"deadline": "penalize"}, "did you mean 'penalise'"),
    ],
)
def test_impossible_problems(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        problem(**settings)


def test_tables_of_another_shape() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 4\)"):
        knapsack(np.zeros((2, 3)), problem(), budget(100))
    with pytest.raises(ConfigError, match="finite"):
        knapsack(np.full((2, 4), np.nan), problem(), budget(100))
    with pytest.raises(ConfigError, match=r"\(3, 2\) for 3 links"):
        problem().feasible(np.zeros((1, 2), dtype=np.int64), budget(1, 2, 3))


def test_the_largest_uniform_rank_that_fits() -> None:
    rng = np.random.default_rng(0)
    seen = state(budget(31, 32, 63.9, 64, 95, 96, 1e6), n=2)
    assert UniformAllocator(problem()).allocate(seen, rng)[:, 0].tolist() == [0, 1, 1, 2, 2, 3, 3]
    two = UniformAllocator(problem(), rank=2)
    assert two.allocate(seen, rng).tolist() == [[r, r] for r in (0, 1, 1, 2, 2, 2, 2)]
    late = UniformAllocator(problem(deadline="penalise"), rank=2)
    assert late.allocate(seen, rng).tolist() == [[2, 2]] * 7
    assert (two.name, UniformAllocator(problem()).name) == ("uniform-2", "uniform")
    for rank in (4, -1):
        with pytest.raises(ConfigError, match=r"0\.\.3"):
            UniformAllocator(problem(), rank=rank)


def test_water_filling_is_no_worse_than_any_uniform_plan() -> None:
    rng = np.random.default_rng(0)
    gains = -np.sort(-rng.random((2, 3)), axis=1)
    links = state(budget(20, 50, 70, 500), n=2)
    priced = problem()
    best = waterfill(gains, priced, links.link)

    def objective(ranks: Any) -> Any:
        active = np.arange(1, 4) <= ranks[..., None]
        return priced.objective(-(active * gains).sum(axis=(1, 2)), ranks, links.link)

    uniform = UniformAllocator(problem()).allocate(links, rng)
    assert (objective(best) <= objective(uniform) + 1e-12).all()
    assert (objective(best) < objective(uniform)).any()
