from __future__ import annotations

import numpy as np
import pytest

from rankcast.errors import ConfigError
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import GaussMarkovSnr
from rankcast.records import AdapterLayout, FloatArray, LinkState, Projection
from studies.sequential.problem import IncrementalProblem
from studies.sequential.stopping import (
    SnrTrace,
    StoppingRule,
    gauss_markov_transition,
    gittins_index,
)
from studies.sequential.world import clairvoyant_value, coupled_clairvoyant_value

PROCESS = GaussMarkovSnr(5.0, 6.0, 0.9)
STATES_DB = np.array([0.0, 10.0])


def test_two_states_drawn_anew_at_every_step_by_hand() -> None:
    # γ = 1/2; a bit costs 3 in the bad state and 1 in the good one, each with probability 1/2.
    # Good: nothing better will come, so θ = (1 - γ)·1 = 1/2.
    # Bad: 2w - 3 now, or wait for the good state: V = γ·(½·(2w - 1) + ½·V) = (2w - 1)/3. They are
    # equal at w = 2, where the myopic solver asks for 3.
    rule = StoppingRule.of_chain(STATES_DB, np.full((2, 2), 0.5), np.array([3.0, 1.0]), 0.5)
    assert rule.threshold == pytest.approx([2.0, 0.5])
    link = LinkState(np.array([0.0, 10.0, -40.0, 40.0]), 1e6, 1.0)
    assert rule.price_factor(link) == pytest.approx([2 / 3, 1 / 2, 2 / 3, 1 / 2])


def test_a_channel_that_never_changes_leaves_nothing_to_wait_for() -> None:
    cost = np.array([3.0, 1.0])
    rule = StoppingRule.of_chain(STATES_DB, np.eye(2), cost, 0.95)
    assert rule.threshold == pytest.approx(0.05 * cost)
    still = StoppingRule.of_process(GaussMarkovSnr(5.0, 6.0, 1.0), Awgn(), 0.95)
    assert still.threshold == pytest.approx(0.05 * still.cost)


def test_a_device_that_is_gone_tomorrow_makes_everyone_myopic() -> None:
    rule = StoppingRule.of_process(PROCESS, Awgn(), 0.0)
    assert rule.threshold == pytest.approx(rule.cost)


def value_iteration(
    worth: float, cost: FloatArray, transition: FloatArray, discount: float
) -> FloatArray:
    """Return (S,) what sending now is ahead of waiting."""
    value = np.zeros(len(cost))
    for _ in range(600):
        value = np.maximum(worth / (1.0 - discount) - cost, discount * transition @ value)
    return worth / (1.0 - discount) - cost - discount * transition @ value


def test_at_the_threshold_sending_and_waiting_are_worth_the_same() -> None:
    rule = StoppingRule.of_process(PROCESS, Awgn(), 0.9, states=31)
    transition = gauss_markov_transition(PROCESS, rule.snr_db)
    for s in (0, 7, 15, 22, 30):
        threshold = rule.threshold[s]
        ahead = value_iteration(threshold, rule.cost, transition, 0.9)[s]
        assert ahead == pytest.approx(0.0, abs=1e-9 * rule.cost[s])
        assert value_iteration(1.01 * threshold, rule.cost, transition, 0.9)[s] > 0
        assert value_iteration(0.99 * threshold, rule.cost, transition, 0.9)[s] < 0


def test_the_rule_lies_between_the_two_that_do_not_wait() -> None:
    rule = StoppingRule.of_process(PROCESS, Awgn(), 0.95)
    factor = rule.threshold / rule.cost
    assert factor.min() >= 0.05 * (1 - 1e-9)
    assert factor.max() <= 1.0
    assert factor[0] > 8 * factor[-1]  # a deep fade will pass
    assert factor[-1] == pytest.approx(0.05)  # nothing better will come
    assert (np.diff(factor) < 1e-9).all()


def test_a_finer_grid_changes_little() -> None:
    link = LinkState(np.linspace(-15.0, 25.0, 21), 1e6, 1.0)
    coarse, fine = (
        StoppingRule.of_process(PROCESS, Awgn(), 0.95, states).price_factor(link)
        for states in (121, 301)
    )
    assert coarse == pytest.approx(fine, rel=0.02)


def test_transitions_have_the_moments_of_the_process() -> None:
    grid = np.linspace(-25.0, 35.0, 241)
    transition = gauss_markov_transition(PROCESS, grid)
    assert transition.sum(axis=1) == pytest.approx(np.ones(241))
    middle = slice(80, 161)
    mean = transition @ grid
    assert mean[middle] == pytest.approx(5.0 + 0.9 * (grid[middle] - 5.0), abs=1e-6)
    variance = transition @ grid**2 - mean**2
    assert variance[middle] == pytest.approx(np.full(81, 36.0 * (1 - 0.81)), rel=0.01)


def test_the_largest_index_is_the_largest_reward() -> None:
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(5), size=5)
    reward = rng.normal(size=5)
    index = gittins_index(transition, reward, 0.9)
    assert index[reward.argmax()] == pytest.approx(reward.max())
    assert (index >= reward - 1e-12).all()  # to stop after one step is allowed


def test_a_trace_is_fitted_by_its_moments() -> None:
    trace, rng = SnrTrace(PROCESS), np.random.default_rng(0)
    for _ in range(20):
        state = trace.start(rng, 50)
        for _ in range(40):
            state = trace.advance(state, rng)
    fitted = trace.fit()
    assert trace.steps == 20 * 50 * 40
    assert fitted.mean_db == pytest.approx(5.0, abs=0.4)
    assert fitted.std_db == pytest.approx(6.0, abs=0.4)
    assert fitted.correlation == pytest.approx(0.9, abs=0.02)


def test_a_trace_moves_as_the_process_does_and_does_not_join_episodes() -> None:
    trace = SnrTrace(GaussMarkovSnr(0.0, 6.0, 1.0))
    for seed in range(40):  # each episode stands still, at another SNR
        state = trace.start(np.random.default_rng(seed), 1)
        for _ in range(3):
            after = trace.advance(state, np.random.default_rng(0))
            assert after.snr_db == pytest.approx(state.snr_db)
            state = after
    assert trace.fit().correlation == pytest.approx(1.0)


def test_the_rule_needs_a_chain_and_a_discount() -> None:
    cost = np.array([3.0, 1.0])
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        StoppingRule.of_chain(STATES_DB, np.eye(2), cost, 1.0)
    with pytest.raises(ConfigError, match="chain of 2 states"):
        StoppingRule.of_chain(STATES_DB, np.eye(3), cost, 0.9)
    with pytest.raises(ConfigError, match="sum to 1"):
        StoppingRule.of_chain(STATES_DB, np.ones((2, 2)), cost, 0.9)
    with pytest.raises(ConfigError, match="fitted to 0 steps"):
        SnrTrace(PROCESS).fit()


# One projection of 8 one-bit parameters a rank; at 0 dB the bandwidth is the budget in bits.
LAYOUT = AdapterLayout((Projection("a", 0, "q", 3, 4),), r_max=2)
COSTS = LinkCostModel.for_layout(LAYOUT, Awgn(), bits_per_param=1.0)
GAINS = np.array([[1.0, 0.5]])


def path(*bits: float) -> LinkState:
    return LinkState(np.zeros(len(bits)), np.array(bits), 1.0)


def delivery(**settings: object) -> IncrementalProblem:
    given = {"link_weight": 1.0, "discount": 0.5} | settings
    return IncrementalProblem(LAYOUT, COSTS, **given)  # type: ignore[arg-type]


def test_the_clairvoyant_waits_for_the_step_that_pays_by_hand() -> None:
    # Worth 2 and 1. Prices 8/5 = 1.6, then 8/80 = 0.1 at half the worth: the first component has
    # 2 - 1.6 = 0.4 now and (2 - 0.1)/2 = 0.95 later, the second -0.6 and 0.45.
    assert clairvoyant_value(GAINS, delivery(), path(5, 80)) == pytest.approx(0.95 + 0.45)
    # A good link at once: 1.9 + 0.9.
    assert clairvoyant_value(GAINS, delivery(), path(80, 80)) == pytest.approx(2.8)
    assert clairvoyant_value(GAINS, delivery(link_weight=100.0), path(8, 8)) == 0.0


def test_the_coupled_bound_by_hand() -> None:
    # λ = 0. Each step carries one component: worth 2 now and half of 1 at the second step.
    free = delivery(link_weight=0.0)
    assert coupled_clairvoyant_value(GAINS, free, path(8, 8)) == pytest.approx(2.5)
    # Half a component at each step: 1 + 0.5·1.
    assert coupled_clairvoyant_value(GAINS, free, path(4, 4)) == pytest.approx(1.5)
    wide = path(5, 80)
    free_of_limits = clairvoyant_value(GAINS, delivery(), wide)
    assert coupled_clairvoyant_value(GAINS, delivery(), wide) <= free_of_limits + 1e-12
    assert coupled_clairvoyant_value(GAINS, delivery(), path(800, 800)) == pytest.approx(
        clairvoyant_value(GAINS, delivery(), path(800, 800))
    )
    assert coupled_clairvoyant_value(GAINS, delivery(link_weight=100.0), path(8, 8)) == 0.0
