"""What every `Allocator` must do, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.allocation import COSTS, FULL_BITS, LAYOUT, SMALL_POLICY, budget, text
from rankcast.allocation.baselines import BeliefAllocator, RandomAllocator, UniformAllocator
from rankcast.allocation.beliefs import BayesianUtility, LearnedUtility
from rankcast.allocation.knapsack import KnapsackAllocator
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.allocation.saturating import SaturatingUtility
from rankcast.config.policy import PolicyConfig
from rankcast.errors import InfeasibleDeadlineError
from rankcast.learner.synthetic import SyntheticUtility
from rankcast.policy.airllm import AirLLM
from rankcast.records import IntArray, LinkState, Observation, TextStats
from studies.baselines.scored import EqualBitsUniform, ScoredAllocator

TRUTH = SyntheticUtility.draw(np.random.default_rng(0), LAYOUT)


def belief(form: type[BayesianUtility | SaturatingUtility] = BayesianUtility) -> LearnedUtility:
    utility, rng = form(LAYOUT), np.random.default_rng(1)
    ranks = rng.integers(0, 5, (200, 12))
    utility.update(ranks, TRUTH.loss(ranks) + 0.05 * rng.normal(size=200), text(200))
    return utility


# As of components that were never sorted: they rise and fall along the rank.
SCORES = np.random.default_rng(2).exponential(size=(12, 4))


def scored(name: str, **limits: Any) -> Callable[[AllocationProblem], Allocator]:
    return lambda problem: ScoredAllocator(problem, SCORES, name, **limits)


def solver(
    name: str, form: type[SaturatingUtility], width: float = 0.0
) -> Callable[[AllocationProblem], Allocator]:
    return lambda problem: BeliefAllocator(problem, belief(form), width, name)


def policy(**settings: Any) -> Callable[[AllocationProblem], Allocator]:
    return lambda problem: AirLLM(problem, PolicyConfig(**SMALL_POLICY, **settings))


DETERMINISTIC: dict[str, Callable[[AllocationProblem], Allocator]] = {
    "uniform": UniformAllocator,
    "uniform-3": lambda problem: UniformAllocator(problem, 3),
    "equal-bits": lambda problem: EqualBitsUniform(problem, name="equal-bits"),
    "equal-bits-half": lambda problem: EqualBitsUniform(problem, FULL_BITS / 2, "equal-bits-half"),
    "scored": scored("scored"),
    "scored-by-score": scored("scored-by-score", per_bit=False),
    "scored-80%": scored("scored-80%", fill=0.8),
    "scored-bits": scored("scored-bits", budget_bits=0.6 * FULL_BITS),
    "scored-threshold": scored("scored-threshold", fill=None, threshold=0.5, per_bit=False),
    "solver": lambda problem: BeliefAllocator(problem, belief()),
    "knapsack": lambda problem: KnapsackAllocator(problem, belief()),
    "solver-saturating": solver("solver-saturating", SaturatingUtility),
    "knapsack-saturating": lambda problem: KnapsackAllocator(
        problem, belief(SaturatingUtility), "knapsack-saturating"
    ),
    "ppo": policy(refinement="none"),
}
RANDOM: dict[str, Callable[[AllocationProblem], Allocator]] = {
    "random": RandomAllocator,
    "thompson": lambda problem: BeliefAllocator(problem, belief(), 1.0, "thompson"),
    "thompson-saturating": solver("thompson-saturating", SaturatingUtility, 1.0),
    "ppo+ddim": policy(),
    "ddim": policy(proposal="none"),
    "ppo+ddpm": policy(refinement="ddpm"),
    "ppo+ddim/unet": policy(denoiser="unet", unet_depth=2, unet_channels=4),
}
ALL = DETERMINISTIC | RANDOM
MONOTONE = sorted(DETERMINISTIC.keys() - {"ppo"})  # a network promises no order
every_allocator = pytest.mark.parametrize("name", ALL)


def problem(min_rank: int = 0) -> AllocationProblem:
    return AllocationProblem(LAYOUT, COSTS, link_weight=0.1, min_rank=min_rank)


def observation(shares: Any) -> Observation:
    """Return links whose budgets are shares of the full payload, to the bit where that is exact."""
    bits = FULL_BITS * np.asarray(shares, dtype=np.float64)
    rng = np.random.default_rng(4)
    size = len(bits)
    words = TextStats(rng.uniform(2, 3, size), rng.uniform(0, 0.2, size))
    return Observation(budget(*bits), words, rng.integers(0, 5, (size, 12)))


def one_of(seen: Observation, index: int) -> Observation:
    at = slice(index, index + 1)
    link, text = seen.link, seen.text
    return Observation(
        LinkState(link.snr_db[at], link.bandwidth_hz[at], link.deadline_s[at]),
        TextStats(text.lexical_entropy[at], text.oov_rate[at]),
        seen.ranks[at],
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


SHARES = [1e-6, 0.01, 0.25, 0.5, 0.75, 1.0, 30.0]


@every_allocator
def test_satisfies_the_protocol_and_has_its_name(name: str) -> None:
    allocator = ALL[name](problem())
    assert isinstance(allocator, Allocator)
    assert allocator.name == name


@every_allocator
@pytest.mark.parametrize("size", [1, 5])
def test_one_integer_rank_for_each_projection(name: str, size: int) -> None:
    plans = ALL[name](problem()).allocate(observation(np.ones(size)), rng())
    assert plans.shape == (size, 12)
    assert plans.dtype == np.int64


@every_allocator
@pytest.mark.parametrize("min_rank", [0, 1])
def test_within_bounds_and_in_time_on_every_link(name: str, min_rank: int) -> None:
    shares = [share for share in SHARES if share >= min_rank / 4] + [0.250001, 0.3]
    seen = observation(shares)
    for seed in range(3):
        plans = ALL[name](problem(min_rank)).allocate(seen, rng(seed))
        assert plans.min() >= min_rank
        assert plans.max() <= LAYOUT.r_max
        assert (COSTS.payload_bits(plans) <= COSTS.budget_bits(seen.link)).all()
        for index, ranks in enumerate(plans):
            assert COSTS.plan(ranks, one_of(seen, index).link).arrives


@every_allocator
def test_same_generator_same_plan(name: str) -> None:
    seen = observation(SHARES)
    first, second = (ALL[name](problem()).allocate(seen, rng(7)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", RANDOM)
def test_other_generator_other_plan(name: str) -> None:
    seen = observation(np.full(20, 0.6))
    allocator = ALL[name](problem())
    assert not np.array_equal(allocator.allocate(seen, rng(1)), allocator.allocate(seen, rng(2)))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_batch_is_as_many_single_questions(name: str) -> None:
    seen = observation(SHARES)
    allocator = ALL[name](problem())
    together = allocator.allocate(seen, rng(1))
    alone = [allocator.allocate(one_of(seen, i), rng(2))[0] for i in range(len(SHARES))]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("min_rank", [0, 1])
def test_a_better_link_never_carries_less(name: str, min_rank: int) -> None:
    seen = observation(np.geomspace(0.26, 2.0, 30))
    bits = COSTS.payload_bits(ALL[name](problem(min_rank)).allocate(seen, rng()))
    assert (np.diff(bits) >= 0).all()
    assert bits[0] < bits[-1]


@every_allocator
def test_the_question_is_left_as_it_was(name: str) -> None:
    seen = observation(SHARES)
    before = [seen.ranks.copy(), seen.link.snr_db.copy(), seen.text.oov_rate.copy()]
    ALL[name](problem()).allocate(seen, rng())
    after = [seen.ranks, seen.link.snr_db, seen.text.oov_rate]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@every_allocator
def test_the_shortfall_is_named_where_not_even_the_smallest_plan_arrives(name: str) -> None:
    allocator = ALL[name](problem(min_rank=2))
    smallest: IntArray = np.full(12, 2)
    needed = float(COSTS.payload_bits(smallest))
    with pytest.raises(InfeasibleDeadlineError, match="short by") as error:
        # A hair short on the worst of three links. The others have room.
        allocator.allocate(observation([1.0, 0.5 * (1 - 1e-12), 0.7]), rng())
    assert error.value.payload_bits == needed
    assert 0 < needed - error.value.budget_bits < 1e-6 * needed
    exactly = allocator.allocate(observation([0.5]), rng())
    assert exactly.tolist() == [[2] * 12]


@every_allocator
def test_a_mere_price_is_no_limit(name: str) -> None:
    free = AllocationProblem(LAYOUT, COSTS, link_weight=0.0, min_rank=2, deadline="penalise")
    plans = ALL[name](free).allocate(observation([1e-6] * 3), rng())
    assert plans.min() >= 2
    assert (COSTS.payload_bits(plans) > COSTS.budget_bits(observation([1e-6] * 3).link)).all()
