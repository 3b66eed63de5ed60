from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.allocation.baselines import RandomAllocator, UniformAllocator
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.problem import AllocationProblem, keep_within_budget
from rankcast.allocation.waterfilling import waterfill
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import (
    AdapterLayout,
    FloatArray,
    IntArray,
    LinkState,
    Observation,
    Projection,
    TextStats,
)

BITS = st.sampled_from([1.0, 32.0, 2.7, 0.1, 1 / 3])
SEEDS = st.integers(0, 2**32 - 1)
MAX_EXAMPLES = settings(max_examples=60)


@st.composite
def problems(draw: Any, max_n: int = 3, max_r: int = 3, *, enforced: bool = True) -> Any:
    n, r_max = draw(st.integers(1, max_n)), draw(st.integers(1, max_r))
    widths = draw(st.lists(st.integers(1, 2000), min_size=n, max_size=n))
    layout = AdapterLayout(
        tuple(Projection(f"p{i}", i, "q", width, 3) for i, width in enumerate(widths)), r_max
    )
    costs = LinkCostModel.for_layout(layout, Awgn(), bits_per_param=draw(BITS))
    weight = draw(st.sampled_from([0.0, 0.01, 0.3, 2.0]))
    least = draw(st.integers(0, 1))
    rule = "enforce" if enforced else "penalise"
    return AllocationProblem(layout, costs, weight, least, rule)


def every_plan(problem: AllocationProblem) -> IntArray:
    one = range(problem.min_rank, problem.layout.r_max + 1)
    return np.array(list(product(one, repeat=problem.layout.n_projections)))


def link_with(bits: float) -> LinkState:
    """Return the link whose budget is exactly `bits`: 0 dB carries one bit a second per hertz."""
    return LinkState(np.zeros(1), np.array([bits]), 1.0)


def decreasing(rng: np.random.Generator, problem: AllocationProblem) -> FloatArray:
    shape = (problem.layout.n_projections, problem.layout.r_max)
    return -np.sort(-rng.random(shape) * rng.random((shape[0], 1)), axis=1)


def table(gains: FloatArray) -> FloatArray:
    return np.concatenate([np.zeros((len(gains), 1)), gains.cumsum(axis=1)], axis=1)


def total(values: FloatArray, plans: IntArray, problem: Any, link: LinkState) -> FloatArray:
    """Return (M,) value minus price of (M, N) plans on one link."""
    value = values[np.arange(len(values)), plans].sum(axis=1)
    bits = problem.link_costs.payload_bits(plans)
    return value - problem.link_weight * bits / problem.link_costs.budget_bits(link)


def tight_link(problem: AllocationProblem, rng: np.random.Generator) -> LinkState:
    """Return a link that carries some plan, chosen at random, to the bit."""
    plans = every_plan(problem)
    bits = problem.link_costs.payload_bits(plans[rng.integers(len(plans))])
    return link_with(max(float(bits), 1e-3))


@MAX_EXAMPLES
@given(problem=problems(), seed=SEEDS, room=st.sampled_from([1.0, 3.0, 50.0]))
def test_waterfill_is_optimal_where_the_deadline_does_not_bind(
    problem: AllocationProblem, seed: int, room: float
) -> None:
    gains = decreasing(np.random.default_rng(seed), problem)
    plans = every_plan(problem)
    link = link_with(room * problem.link_costs.payload_bits(plans).max())
    (chosen,) = waterfill(gains, problem, link)
    objectives = total(table(gains), plans, problem, link)
    ours = total(table(gains), chosen[None], problem, link)[0]
    assert ours >= objectives.max() - 1e-12


@MAX_EXAMPLES
@given(problem=problems(), seed=SEEDS, exact=st.booleans())
def test_knapsack_is_brute_force_for_values_of_any_shape(
    problem: AllocationProblem, seed: int, exact: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(problem.layout.n_projections, problem.layout.r_max + 1))
    link = tight_link(problem, rng)
    if not exact:
        link = link_with(float(link.bandwidth_hz[0]) * rng.uniform(1.0, 1.5))
    plans = every_plan(problem)
    fits = problem.link_costs.payload_bits(plans) <= problem.link_costs.budget_bits(link)
    (chosen,) = knapsack(values, problem, link)
    assert problem.link_costs.plan(chosen, link).arrives
    best = total(values, plans[fits], problem, link).max()
    assert abs(total(values, chosen[None], problem, link)[0] - best) < 1e-7


@MAX_EXAMPLES
@given(problem=problems(enforced=False), seed=SEEDS)
def test_a_mere_price_is_solved_for_each_projection_alone(
    problem: AllocationProblem, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(problem.layout.n_projections, problem.layout.r_max + 1))
    link = tight_link(problem, rng)
    plans = every_plan(problem)
    (chosen,) = knapsack(values, problem, link)
    best = total(values, plans, problem, link).max()
    assert total(values, chosen[None], problem, link)[0] >= best - 1e-7 * max(1.0, abs(best))


@MAX_EXAMPLES
@given(problem=problems(max_n=4), seed=SEEDS)
def test_waterfill_under_a_deadline_is_within_one_component_of_the_knapsack(
    problem: AllocationProblem, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gains = decreasing(rng, problem)
    link = tight_link(problem, rng)
    greedy, exact = waterfill(gains, problem, link), knapsack(table(gains), problem, link)
    assert problem.link_costs.plan(greedy[0], link).arrives
    gap = (
        total(table(gains), exact, problem, link)[0] - total(table(gains), greedy, problem, link)[0]
    )
    assert -1e-7 <= gap <= gains.max() + 1e-7


@MAX_EXAMPLES
@given(problem=problems(max_n=5, max_r=6), seed=SEEDS, below=st.booleans())
def test_what_is_kept_fits_to_the_bit_and_is_a_prefix(
    problem: AllocationProblem, seed: int, below: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (4, problem.layout.n_projections)
    ranks = rng.integers(problem.min_rank, problem.layout.r_max + 1, shape)
    smallest = problem.link_costs.payload_bits(np.full(shape, problem.min_rank))
    plans = rng.integers(problem.min_rank, problem.layout.r_max + 1, shape)
    budget = problem.link_costs.payload_bits(plans)
    budget = np.maximum(np.nextafter(budget, 0) if below else budget, smallest)
    worth = rng.normal(size=(*shape, problem.layout.r_max))
    kept = keep_within_budget(
        worth, problem.link_costs.component_units, problem.link_costs.whole_units(budget), ranks,
        problem.min_rank,
    )  # fmt: skip
    assert kept.shape == shape
    assert (kept >= problem.min_rank).all()
    assert (kept <= ranks).all()
    assert (problem.link_costs.payload_bits(kept) <= budget).all()
    fits = problem.link_costs.payload_bits(ranks) <= budget
    assert np.array_equal(kept[fits], ranks[fits])
    # Whatever is left out of a projection was worth no more than what was kept elsewhere.
    steps = np.arange(1, problem.layout.r_max + 1)
    counted = np.minimum.accumulate(np.where(steps <= problem.min_rank, np.inf, worth), axis=2)
    left_out = (steps > kept[..., None]) & (steps <= ranks[..., None])
    inside = (steps <= kept[..., None]) & (steps > problem.min_rank)
    for b in np.flatnonzero(left_out.any(axis=(1, 2)) & inside.any(axis=(1, 2))):
        assert counted[b][left_out[b]].max() <= counted[b][inside[b]].min()


@MAX_EXAMPLES
@given(problem=problems(max_n=5, max_r=6), seed=SEEDS, guided=st.booleans())
def test_a_feasible_plan_always_arrives(
    problem: AllocationProblem, seed: int, guided: bool
) -> None:
    rng = np.random.default_rng(seed)
    link = tight_link(problem, rng)
    fitting = rng.integers(problem.min_rank, problem.layout.r_max + 1, problem.layout.n_projections)
    exact = link_with(max(float(problem.link_costs.payload_bits(fitting)), 1e-3))
    gains = decreasing(rng, problem) if guided else None
    # A plan that fills its budget to the bit comes back as it was.
    assert np.array_equal(problem.feasible(fitting[None], exact, gains)[0], fitting)
    # One that is a hair too large does not.
    hair = link_with(float(np.nextafter(exact.bandwidth_hz[0], 0)))
    if fitting.max() > problem.min_rank:
        smaller = problem.feasible(fitting[None], hair, gains)[0]
        assert problem.link_costs.payload_bits(smaller) <= problem.link_costs.budget_bits(hair)[0]
    full = np.full((1, problem.layout.n_projections), problem.layout.r_max)
    text = TextStats(np.ones(1), np.zeros(1))
    seen = Observation(link, text, full)
    for plan in (
        problem.feasible(full, link, gains)[0],
        UniformAllocator(problem).allocate(seen, rng)[0],
        RandomAllocator(problem).allocate(seen, rng)[0],
    ):
        assert problem.link_costs.plan(plan, link).arrives
        assert problem.link_costs.payload_bits(plan) <= problem.link_costs.budget_bits(link)[0]
        assert (plan >= problem.min_rank).all()
