from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.allocation import PAIR, PAIR_COSTS, budget, state
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.allocation.waterfilling import PriceFactor, plan_at_price, waterfill
from rankcast.errors import ConfigError
from rankcast.learner.synthetic import SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import GaussMarkovSnr
from rankcast.records import (
    FloatArray,
    IntArray,
    LinkState,
    Observation,
    TextStats,
)
from studies.sequential.problem import IncrementalProblem
from studies.sequential.stopping import IncrementalAllocator, StoppingRule
from studies.sequential.world import clairvoyant_value, coupled_clairvoyant_value

GAINS = np.array([[1.0, 0.5, 0.1], [2.4, 1.2, 0.6]])  # per bit: a 10, 5, 1 and b 8, 4, 2 (in 1/80)
RNG = np.random.default_rng(0)


def delivery(**changes: Any) -> IncrementalProblem:
    return IncrementalProblem(PAIR, PAIR_COSTS, **({"link_weight": 0.0} | changes))


def constant(factor: float) -> PriceFactor:
    return lambda link: np.full(link.size, factor)


def received(ranks: Any, bits: float) -> Observation:
    return state(budget(bits), np.array(ranks), n=2)


def test_what_was_received_stays_and_only_the_rest_has_a_deadline() -> None:
    # All six components weigh 96 bits; with (2, 2) received the rest weighs 8 + 24 = 32.
    full = np.array([[3, 3]])
    assert delivery().settle(full, received([2, 2], 32)).tolist() == [[3, 3]]
    assert delivery().settle(np.array([[0, 1]]), received([2, 2], 32)).tolist() == [[2, 2]]
    assert delivery().settle(np.array([[9, -1]]), received([0, 1], 1e4)).tolist() == [[3, 1]]


def test_a_late_increase_leaves_the_least_gain_per_bit_behind() -> None:
    full = np.array([[3, 3]])
    asked = [([0, 0], 40), ([1, 1], 32), ([1, 1], 56), ([2, 2], 24), ([3, 2], 23)]
    settled = [
        delivery().settle(full, received(held, bits), GAINS)[0].tolist() for held, bits in asked
    ]
    assert settled == [[2, 1], [2, 2], [2, 3], [2, 3], [3, 2]]


def test_without_gains_a_late_increase_shrinks_evenly() -> None:
    # The increase of (2, 2) would weigh 64 bits; half of it goes.
    assert delivery().settle(np.array([[3, 3]]), received([1, 1], 32)).tolist() == [[2, 2]]


def test_a_late_increase_is_only_paid_for_where_that_is_the_rule() -> None:
    relaxed = delivery(deadline="penalise")
    assert relaxed.settle(np.array([[3, 3]]), received([0, 0], 1)).tolist() == [[3, 3]]


@given(
    held=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    asked=st.lists(st.integers(-2, 9), min_size=2, max_size=2),
    bits=st.floats(0.5, 200.0),
    known=st.booleans(),
)
@settings(max_examples=100)
def test_settled_ranks_contain_what_was_received_and_arrive(
    held: list[int], asked: list[int], bits: float, known: bool
) -> None:
    observation = received(held, bits)
    gains = GAINS if known else None
    ranks = delivery().settle(np.array([asked]), observation, gains)
    increase = ranks - observation.ranks
    assert (increase >= 0).all()
    assert (ranks <= np.maximum(np.clip(asked, 0, 3), held)).all()
    assert (PAIR_COSTS.payload_bits(increase) <= bits).all()
    assert np.array_equal(delivery().settle(ranks, observation, gains), ranks)


def test_the_myopic_solver_counts_one_step_and_its_neighbour_all() -> None:
    # At λ = 1 and 100 bits the prices are 0.08 and 0.24; at 10 bits ten times as much.
    gains = np.array([[0.1, 0.05, 0.03], [0.3, 0.2, 0.01]])
    problem = delivery(link_weight=1.0, discount=0.9, deadline="penalise")
    one = IncrementalAllocator(problem, gains)
    every = IncrementalAllocator(problem, gains, constant(0.1))
    assert one.allocate(received([0, 0], 100), RNG).tolist() == [[1, 1]]
    assert one.allocate(received([0, 0], 10), RNG).tolist() == [[0, 0]]
    assert one.allocate(received([0, 2], 10), RNG).tolist() == [[0, 2]]
    assert every.allocate(received([0, 0], 10), RNG).tolist() == [[1, 1]]
    assert every.allocate(received([0, 0], 100), RNG).tolist() == [[3, 2]]


def test_stopping_waits_where_a_better_link_is_likely() -> None:
    # The two-state chain of test_stopping: factors 2/3 in the bad state (0 dB), 1/2 in the other.
    cost = np.array([3.0, 1.0])
    rule = StoppingRule.of_chain(np.array([0.0, 10.0]), np.full((2, 2), 0.5), cost, 0.5)
    problem = delivery(link_weight=1.0, discount=0.5, deadline="penalise")
    gains = np.array([[0.07, 0.05, 0.0], [0.25, 0.17, 0.15]])  # prices 0.08 and 0.24
    allocator = IncrementalAllocator(problem, gains, rule.price_factor)
    observation = received([0, 0], 100)
    assert allocator.allocate(observation, RNG).tolist() == [[1, 2]]
    rushed = IncrementalAllocator(problem, gains, constant(0.5))
    assert rushed.allocate(observation, RNG).tolist() == [[2, 3]]


def test_a_belief_may_stand_for_the_gains() -> None:
    utility = BayesianUtility(PAIR)
    problem = delivery(link_weight=0.1)
    observation = received([0, 1], 60)
    believed = IncrementalAllocator(problem, utility).allocate(observation, RNG)
    given = IncrementalAllocator(problem, utility.mean_gains()).allocate(observation, RNG)
    assert np.array_equal(believed, given)
    assert isinstance(IncrementalAllocator(problem, utility), Allocator)


@given(
    held=st.lists(st.integers(0, 3), min_size=2, max_size=2),
    bits=st.floats(1.0, 200.0),
    weight=st.floats(0.0, 5.0),
)
@settings(max_examples=100)
def test_a_plan_at_a_price_settles_within_what_the_solver_sends(
    held: list[int], bits: float, weight: float
) -> None:
    problem, observation = delivery(link_weight=weight), received(held, bits)
    plan = plan_at_price(GAINS[None], problem, observation)
    solved = IncrementalAllocator(problem, GAINS).allocate(observation, RNG)
    assert (np.maximum(plan, held) <= solved).all()
    wanted = waterfill(GAINS, problem, observation.link)
    if np.array_equal(solved, np.maximum(wanted, held)):
        assert np.array_equal(plan, wanted)  # nothing was late: the received ranks play no part


def test_a_problem_that_pays_for_plans_settles_as_it_always_did() -> None:
    plain = AllocationProblem(PAIR, PAIR_COSTS, link_weight=0.0)
    observation = received([3, 3], 40)
    ranks = np.array([[3, 3]])
    feasible = plain.feasible(ranks, observation.link, GAINS)
    assert np.array_equal(plain.settle(ranks, observation, GAINS), feasible)
    assert np.array_equal(plan_at_price(GAINS[None], plain, observation), feasible)


SMALL = transformer_layout(n_layers=2, d_hidden=8, d_ffn=16, r_max=3)
SMALL_COSTS = LinkCostModel.for_layout(SMALL, Awgn())
PROCESS = GaussMarkovSnr(5.0, 6.0, 0.9)
BAND = float(SMALL_COSTS.payload_bits(np.full(12, 3))) / 20  # full rank: η of about ten at 5 dB


def values(allocator: Any, problem: IncrementalProblem, snr_db: FloatArray) -> FloatArray:
    """Return (E,) what deliveries over (T, E) SNRs remove without end, less what they cost."""
    held: IntArray = np.zeros((snr_db.shape[1], 12), dtype=np.int64)
    total = np.zeros(len(held))
    text = TextStats(np.full(len(held), 2.5), np.full(len(held), 0.1))
    i = np.arange(3)
    for t, snr in enumerate(snr_db):
        observation = Observation(LinkState(snr, BAND, 1.0), text, held)
        ranks = allocator.allocate(observation, RNG)
        new = (i >= held[..., None]) & (i < ranks[..., None])
        worth = (new * allocator.gains).sum(axis=(1, 2)) / (1 - problem.discount)
        cost = SMALL_COSTS.link_cost(ranks - held, observation.link)
        total += problem.discount**t * (worth - problem.link_weight * cost)
        held = ranks
    return total


@pytest.mark.parametrize("deadline", ["penalise", "enforce"])
def test_stopping_beats_both_that_do_not_wait_and_no_one_beats_the_clairvoyant(
    deadline: Any,
) -> None:
    problem = IncrementalProblem(SMALL, SMALL_COSTS, 0.3, deadline=deadline)
    gains = SyntheticUtility.draw(np.random.default_rng(0), SMALL).gains
    rng = np.random.default_rng(1)
    state = PROCESS.start(rng, 40)
    snr = [state.snr_db]
    for _ in range(59):
        state = PROCESS.advance(state, rng)
        snr.append(state.snr_db)
    paths = np.array(snr)
    rule = StoppingRule.of_process(PROCESS, Awgn(), problem.discount)
    waiting = IncrementalAllocator(problem, gains, rule.price_factor)
    myopic = values(IncrementalAllocator(problem, gains), problem, paths)
    future = values(IncrementalAllocator(problem, gains, constant(0.05)), problem, paths)
    stopping = values(waiting, problem, paths)
    bound = clairvoyant_value if deadline == "penalise" else coupled_clairvoyant_value
    most = np.array([bound(gains, problem, LinkState(p, BAND, 1.0)) for p in paths.T])
    assert stopping.mean() > future.mean() > myopic.mean()
    for achieved in (myopic, future, stopping):
        assert (achieved <= most + 1e-9).all()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="min_rank must be 0"):
        delivery(min_rank=1)
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        delivery(discount=1.0)
    with pytest.raises(ConfigError, match=r"shape \(1, 2\)"):
        delivery().settle(np.zeros((1, 3), dtype=int), received([0, 0], 10))
