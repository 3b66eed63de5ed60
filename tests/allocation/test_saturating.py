from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.allocation import budget, predicted, row_of, state, text
from rankcast.allocation import saturating
from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.beliefs import BayesianUtility, LearnedUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.saturating import SaturatingUtility, make_utility, marginal_gains
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.policy import UtilityConfig, UtilityForm
from rankcast.errors import CheckpointError
from rankcast.learner.synthetic import SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import (
    AdapterLayout,
    FloatArray,
    IntArray,
    LinkState,
    Projection,
    TextStats,
)
from studies.surrogate.monotone import MonotoneUtility

LAYOUT = transformer_layout(n_layers=2, d_hidden=8, d_ffn=20)
N, R = LAYOUT.n_projections, LAYOUT.r_max
COSTS = LinkCostModel.for_layout(LAYOUT, Awgn())
PROBLEM = AllocationProblem(LAYOUT, COSTS)
FULL_BITS = float(COSTS.payload_bits(np.full(N, R)))
LN2 = 0.69


def saturating_truth(seed: int) -> MonotoneUtility:
    """Return a loss of 0.25 + 0.45·exp(-s) with nearly all gain in the first rank."""
    level = 0.8 * np.random.default_rng(seed).standard_normal((N, 1))
    gains = np.exp(level - 3.0 * np.log2(np.arange(1, R + 1)))
    return MonotoneUtility("exp", 0.25, 0.45, 2.5 * gains / gains.sum())


def plans(rng: np.random.Generator, size: int, n: int = N, r_max: int = R) -> IntArray:
    """Return random plans of varied mean level."""
    return rng.binomial(r_max, rng.uniform(0.02, 0.98, size)[:, None], (size, n))


def learned(
    truth: Any, form: UtilityForm, *, paired: bool, noise: float = 0.05, size: int = 300
) -> LearnedUtility:
    """Return a belief that has seen random plans; a pair shares the noise of its batch."""
    rng = np.random.default_rng(7)
    config = UtilityConfig(total_gain=LN2, noise_std=noise, paired_noise_std=0.03, form=form)
    utility, ranks = make_utility(LAYOUT, config), plans(rng, size)
    loss = truth.loss(ranks)
    if paired:
        batch = rng.normal(0.0, 0.15, size)
        full = truth.loss(np.full((1, N), R)) + batch
        utility.update(ranks, loss + batch + rng.normal(0.0, 0.03, size), text(size), full)
    else:
        utility.update(ranks, loss + rng.normal(0.0, noise, size), text(size))
    return utility


def determination(utility: LearnedUtility, truth: Any, *, paired: bool) -> float:
    """Return R² on plans it has not seen; pairs say nothing of the loss at full rank."""
    ranks = plans(np.random.default_rng(8), 400)
    expected, true = predicted(utility, ranks, text(400)), truth.loss(ranks)
    if paired:
        expected, true = expected - expected.mean(), true - true.mean()
    return float(1.0 - ((expected - true) ** 2).mean() / true.var())


def links(size: int = 40) -> LinkState:
    return LinkState(np.zeros(size), FULL_BITS * np.geomspace(0.05, 4.0, size), 1.0)


def objective(utility: LearnedUtility, truth: Any) -> float:
    link = links()
    ranks = BeliefAllocator(PROBLEM, utility).allocate(state(link), np.random.default_rng(0))
    return float(PROBLEM.objective(truth.loss(ranks), ranks, link).mean())


def regret(utility: LearnedUtility, truth: Any, best: IntArray) -> float:
    """Return the regret of the solver on a belief, as a share of that of one rank for all."""
    link = links()
    level = np.floor(COSTS.budget_bits(link) / COSTS.payload_bits(np.ones(N, dtype=np.int64)))
    uniform = np.repeat(np.minimum(level, R).astype(np.int64)[:, None], N, axis=1)
    least, most = (
        PROBLEM.objective(truth.loss(ranks), ranks, link).mean() for ranks in (best, uniform)
    )
    return float((objective(utility, truth) - least) / (most - least))


# Gains that make an additive problem.

TWO = row_of(2, 2)
TWO_COSTS = LinkCostModel.for_layout(TWO, Awgn())
RANK_BITS = float(TWO_COSTS.component_bits[0, 0])


def two(price: float, **settings: Any) -> tuple[AllocationProblem, LinkState]:
    """Return a problem in which λη of one component is `price`, without a deadline."""
    problem = AllocationProblem(TWO, TWO_COSTS, **{"deadline": "penalise"} | settings)
    weight = problem.link_weight or 1.0
    return problem, budget(weight * RANK_BITS / price)


def solved(
    gains: Any, amplitude: float, problem: AllocationProblem, link: LinkState
) -> tuple[FloatArray, list[int]]:
    g = np.array([gains], dtype=np.float64)
    worth = marginal_gains(g, np.array([amplitude]), problem, link)
    return worth[0], waterfill(worth, problem, link)[0].tolist()


def test_marginal_gains_by_hand() -> None:
    # In order 1.0, 0.7, 0.3, 0.1: exp(-s) is 1, 0.368, 0.183, 0.135, 0.122. At 0.1 each the
    # objective is 1, 0.468, 0.383, 0.435, 0.522, so two are sent; one more would remove 0.047.
    problem, link = two(0.1)
    worth, ranks = solved([[1.0, 0.3], [0.7, 0.1]], 1.0, problem, link)
    assert ranks == [1, 1]
    # exp(-1.7) = 0.183 lies between the prices per gain of the two, 0.1/0.7 and 0.1/0.3.
    assert worth == pytest.approx(np.exp(-1.7) * np.array([[1.0, 0.3], [0.7, 0.1]]))


def test_the_factor_keeps_between_the_prices_of_its_neighbours() -> None:
    # One component of 3.0 leaves exp(-3) = 0.050 ≤ 0.1/3.0 < 0.1/0.2: one is sent, none more.
    problem, link = two(0.3)
    worth, ranks = solved([[3.0, 0.2], [0.2, 0.1]], 1.0, problem, link)
    assert ranks == [1, 0]
    assert worth[0, 0] == pytest.approx(0.3)
    assert worth[0, 0] > 0.3 > worth[0, 1]


def test_nothing_is_worthwhile() -> None:
    problem, link = two(0.5)
    assert solved([[0.5, 0.3], [0.4, 0.1]], 0.7, problem, link)[1] == [0, 0]


def test_everything_is_worthwhile() -> None:
    problem, link = two(1e-6)
    assert solved([[0.5, 0.3], [0.4, 0.1]], 0.7, problem, link)[1] == [2, 2]


@pytest.mark.parametrize("gains", [[[1.0, 0.3], [0.7, 0.1]], [[1.0, 1e-25], [900.0, 600.0]]])
def test_without_a_price_everything_is_sent(gains: Any) -> None:
    # In the second nothing that a float can hold is left: the least gain is still worth nothing.
    problem, link = two(0.1, link_weight=0.0)
    worth, ranks = solved(gains, 1.0, problem, link)
    assert ranks == [2, 2]
    assert np.isfinite(worth).all()


def test_some_of_many_equal_components_are_sent() -> None:
    # Of four equal ones at 0.3: 1 + 0, e⁻¹ + 0.3 = 0.668, e⁻² + 0.6 = 0.735, so one is sent.
    for price, count in ((0.3, 1), (0.1, 2), (0.04, 3), (0.03, 4)):
        problem, link = two(price)
        ranks = solved(np.ones((2, 2)), 1.0, problem, link)[1]
        assert sum(ranks) == count


def test_the_minimum_rank_saturates_too() -> None:
    # Two components that must be sent leave exp(-1.1) = 0.333; the next, 0.9, removes 0.198.
    gains = [[1.0, 0.9], [0.1, 0.05]]
    problem, link = two(0.19, min_rank=1)
    assert solved(gains, 1.0, problem, link)[1] == [2, 1]
    problem, link = two(0.2, min_rank=1)
    assert solved(gains, 1.0, problem, link)[1] == [1, 1]


def test_where_the_deadline_binds_the_best_per_bit_are_sent() -> None:
    gains = np.array([[[1.0, 0.3], [0.7, 0.1]]])
    problem = AllocationProblem(TWO, TWO_COSTS, link_weight=1e-6)
    link = budget(3.5 * RANK_BITS)
    worth = marginal_gains(gains, np.ones(1), problem, link)
    assert waterfill(worth, problem, link).tolist() == [[2, 1]]


@pytest.mark.parametrize("equal", [True, False])
def test_no_plan_is_better(equal: bool) -> None:
    # Every plan of three projections of rank 2, for random gains and prices.
    rng = np.random.default_rng(3)
    shape = [(3, 4)] * 3 if equal else [(3, 4), (8, 4), (3, 10)]
    three = AdapterLayout(
        tuple(Projection(f"p{i}", i, "q", *widths) for i, widths in enumerate(shape)), 2
    )
    costs = LinkCostModel.for_layout(three, Awgn())
    problem = AllocationProblem(three, costs, link_weight=0.1, deadline="penalise")
    size = 300
    gains = -np.sort(-rng.exponential(rng.uniform(0.05, 2.0, (size, 1, 1)), (size, 3, 2)), axis=2)
    amplitude = rng.uniform(0.2, 1.5, size)
    full = float(costs.payload_bits(np.full(3, 2)))
    link = LinkState(np.zeros(size), full * 10.0 ** rng.uniform(-1.5, 1.5, size), 1.0)

    def value(ranks: IntArray) -> FloatArray:
        s = (gains * (np.arange(1, 3) <= ranks[..., None])).sum(axis=(1, 2))
        return problem.objective(amplitude * np.exp(-s), ranks, link)

    sent = waterfill(marginal_gains(gains, amplitude, problem, link), problem, link)
    every = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T
    best = np.min([value(np.repeat(ranks[None], size, axis=0)) for ranks in every], axis=0)
    excess = value(sent) - best
    assert (excess > -1e-12).all()
    if equal:
        assert excess.max() < 1e-12
    else:  # no prefix of the order per bit is far from the best plan: not by a whole component
        assert (
            excess < (problem.link_weight * problem.component_costs(link)).max(axis=(1, 2))
        ).all()
        assert (excess < 1e-12).mean() > 0.8


# The fit.


@pytest.mark.parametrize("mixed", [False, True])
def test_derivatives_are_those_of_the_misfit(mixed: bool) -> None:
    rng = np.random.default_rng(0)
    utility = SaturatingUtility(row_of(2, 12), UtilityConfig(form="saturating", forgetting=0.9))
    words = TextStats(rng.uniform(1, 4, 6), rng.uniform(0, 0.4, 6))
    utility.update(plans(rng, 6, 2, 12), rng.uniform(0.2, 0.7, 6), words)
    if mixed:
        full = rng.uniform(0.1, 0.3, 6)
        utility.update(plans(rng, 6, 2, 12), rng.uniform(0.2, 0.7, 6), words, full)
    theta = utility._prior_mean + 0.1 * rng.standard_normal(len(utility._prior_mean))
    weights = utility._weights()
    value, ascent, precision = utility._linearised(theta, weights)
    assert value == pytest.approx(utility._misfit(theta, weights))
    steps = 1e-6 * np.eye(len(theta))
    slope = [
        (utility._misfit(theta + h, weights) - utility._misfit(theta - h, weights)) / 2e-6
        for h in steps
    ]
    assert -ascent == pytest.approx(np.array(slope), rel=1e-4, abs=1e-4)
    jacobian = -np.array(
        [(utility._residual(theta + h)[0] - utility._residual(theta - h)[0]) / 2e-6 for h in steps]
    )
    expected = (jacobian * weights) @ jacobian.T + utility._prior_precision
    assert precision == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("paired", [True, False])
def test_a_fit_ends_at_a_mode(paired: bool) -> None:
    # All losses at once, of another form than the belief: the hardest start for the fit.
    truth = SyntheticUtility.draw(np.random.default_rng(1), LAYOUT)
    utility = learned(truth, "saturating", paired=paired, noise=0.02)
    assert isinstance(utility, SaturatingUtility)
    utility._fit()
    _, ascent, precision = utility._linearised(utility._theta, utility._weights())
    assert ascent @ np.linalg.solve(precision, ascent) / 2 < 5 * saturating.ENOUGH


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("paired", [True, False])
def test_learns_losses_of_plans_it_has_not_seen(seed: int, paired: bool) -> None:
    truth = saturating_truth(seed)
    ours, additive = (
        determination(learned(truth, form, paired=paired), truth, paired=paired)
        for form in ("saturating", "additive")
    )
    assert ours > (0.97 if paired else 0.93)
    assert ours > additive + 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("paired", "noise"), [(True, 0.05), (False, 0.05), (False, 0.15)])
def test_the_solver_on_it_beats_the_solver_on_an_additive_belief(
    seed: int, paired: bool, noise: float
) -> None:
    truth, link = saturating_truth(seed), links()
    gains = np.repeat(truth.gains[None], link.size, axis=0)
    amplitude = np.full(link.size, truth.amplitude)
    best = waterfill(marginal_gains(gains, amplitude, PROBLEM, link), PROBLEM, link)
    ours, additive = (
        regret(learned(truth, form, paired=paired, noise=noise), truth, best)
        for form in ("saturating", "additive")
    )
    assert ours < min(0.3, additive / 2)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("paired", [True, False])
def test_an_additive_truth_is_nearly_within_reach(seed: int, paired: bool) -> None:
    truth = SyntheticUtility.draw(np.random.default_rng(seed), LAYOUT)
    assert determination(learned(truth, "saturating", paired=paired), truth, paired=paired) > 0.95


# The belief.


@pytest.mark.parametrize("r_max", [1, 8, 64])
def test_draws_are_positive_and_decrease_along_the_rank(r_max: int) -> None:
    utility = SaturatingUtility(row_of(3, r_max))
    utility.update(plans(np.random.default_rng(0), 5, 3, r_max), np.full(5, 0.4), text(5))
    draws = utility._to_gains(utility._draw(np.random.default_rng(0), 50, 1.0))
    assert draws.shape == (50, 3, r_max)
    assert (draws > 0).all()
    assert (np.diff(draws, axis=2) <= 1e-15).all()
    assert draws.std(axis=0).min() > 0
    first, second = utility._to_gains(utility._draw(np.random.default_rng(0), 2, 0.0))
    assert np.array_equal(first, second)
    assert first / first.sum() == pytest.approx(utility.mean_gains() / utility.mean_gains().sum())


def test_the_prior_expects_the_total_gain() -> None:
    utility = SaturatingUtility(row_of(4, 8), UtilityConfig(total_gain=0.5, form="saturating"))
    gains = utility.mean_gains()
    removed = 0.5 * (1 - np.exp(-saturating.FULL_EXPONENT))
    assert gains.sum() == pytest.approx(removed)
    # From one rank to its double gains fall by exp(-2).
    assert gains[:, 1] / gains[:, 0] == pytest.approx(np.full(4, np.exp(-2.0)))
    assert gains[:, 7] / gains[:, 3] == pytest.approx(np.full(4, np.exp(-2.0)))
    ends = predicted(utility, np.array([[0] * 4, [8] * 4]), TextStats(np.zeros(2), np.zeros(2)))
    assert ends == pytest.approx([1.0, 1.0 - removed])


def test_high_ranks_share_their_gain() -> None:
    rng = np.random.default_rng(0)
    utility = SaturatingUtility(row_of(2, 64))
    utility.update(plans(rng, 40, 2, 64), rng.uniform(0.3, 0.6, 40), text(40))
    gains = utility.mean_gains()
    for start, stop in ((8, 16), (16, 32), (32, 64)):
        assert np.ptp(gains[:, start:stop], axis=1) == pytest.approx([0.0, 0.0])
    # exp(-s) of the middle of a bin is the geometric mean of its ends; differences lose the floor.
    at = predicted(utility, np.array([[8, 0], [12, 0], [16, 0]]), text(3))
    floor = utility._theta[:3] @ [1.0, 2.5, 0.1]
    assert at[1] - floor == pytest.approx(np.sqrt((at[0] - floor) * (at[2] - floor)))


def test_a_batch_is_as_many_single_losses() -> None:
    rng = np.random.default_rng(0)
    config = UtilityConfig(form="saturating", forgetting=0.9)
    ranks, loss, full = plans(rng, 8), rng.uniform(0.3, 0.6, 8), rng.uniform(0.2, 0.3, 8)
    batch, single = SaturatingUtility(LAYOUT, config), SaturatingUtility(LAYOUT, config)
    batch.update(ranks, loss, text(8))
    batch.update(ranks, loss, text(8), full)
    for reference in (None, full):
        for k in range(8):
            one = None if reference is None else reference[[k]]
            single.update(ranks[[k]], loss[[k]], text(1), one)
    assert np.array_equal(batch.mean_gains(), single.mean_gains())


def test_a_pair_at_full_rank_says_nothing() -> None:
    utility = SaturatingUtility(LAYOUT)
    before = utility.mean_gains()
    utility.update(np.full((3, N), R), np.full(3, 0.9), text(3), np.full(3, 0.9))
    assert np.array_equal(utility.mean_gains(), before)


def test_old_losses_count_for_less() -> None:
    rng = np.random.default_rng(0)
    ranks = plans(rng, 200)
    first = saturating_truth(0).loss(ranks)
    then = first + 0.3

    def error(forgetting: float) -> float:
        config = UtilityConfig(form="saturating", forgetting=forgetting)
        utility = SaturatingUtility(LAYOUT, config)
        utility.update(ranks, first, text(200))
        utility.update(ranks, then, text(200))
        return float(np.abs(predicted(utility, ranks, text(200)) - then).mean())

    assert error(1.0) == pytest.approx(0.15, abs=0.02)
    assert error(0.98) < 0.02


def test_forgetting_all_leaves_the_prior() -> None:
    utility = SaturatingUtility(LAYOUT, UtilityConfig(form="saturating", forgetting=0.5))
    prior = utility.mean_gains()
    utility.update(plans(np.random.default_rng(0), 20), np.full(20, 0.1), text(20))
    assert np.abs(utility.mean_gains() - prior).max() > 1e-3
    same = np.full(100, 0.1)  # pairs at full rank only let time pass
    utility.update(np.full((100, N), R), same, text(100), same)
    assert utility.mean_gains() == pytest.approx(prior, rel=1e-6)


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturating, "MEMORY", 10)
    rng = np.random.default_rng(0)
    ranks, loss = plans(rng, 25), rng.uniform(0.3, 0.6, 25)
    capped, recent = SaturatingUtility(LAYOUT), SaturatingUtility(LAYOUT)
    for part in (slice(0, 3), slice(3, 10), slice(10, 25)):  # the last alone is more than fits
        capped.update(ranks[part], loss[part], text(part.stop - part.start))
    recent.update(ranks[15:], loss[15:], text(10))
    assert len(capped.state_dict()["target"]) == 10
    assert np.array_equal(capped.mean_gains(), recent.mean_gains())


def test_continues_from_its_state() -> None:
    rng = np.random.default_rng(0)
    ranks, loss, full = plans(rng, 12), rng.uniform(0.3, 0.6, 12), rng.uniform(0.2, 0.3, 12)
    utility, other = SaturatingUtility(LAYOUT), SaturatingUtility(LAYOUT)
    utility.update(ranks, loss, text(12))
    utility.update(ranks, loss, text(12), full)
    utility.mean_gains()  # the mode so far is where the next fit starts
    saved = utility.state_dict()
    other.load_state_dict(saved)
    for part in saved.values():
        part[:] = 0.0  # a copy: neither belief may see this
    for u in (utility, other):
        u.update(ranks[:2], loss[:2], text(2))
    link = LinkState(np.array([0.0, 10.0]), FULL_BITS / 4, 1.0)
    draws = [u.gains_at(PROBLEM, link, np.random.default_rng(1)) for u in (utility, other)]
    assert np.array_equal(*draws)


def test_a_fit_is_not_taken_further_by_saving_it() -> None:
    """With nothing learned in between, draws are the same before and after."""
    rng = np.random.default_rng(0)
    ranks, loss = plans(rng, 12), rng.uniform(0.3, 0.6, 12)
    utility, other = SaturatingUtility(LAYOUT), SaturatingUtility(LAYOUT)
    utility.update(ranks, loss, text(12))
    utility.mean_gains()
    other.load_state_dict(utility.state_dict())
    link = LinkState(np.array([0.0, 10.0]), FULL_BITS / 4, 1.0)
    draws = [u.gains_at(PROBLEM, link, np.random.default_rng(1)) for u in (utility, other)]
    assert np.array_equal(*draws)


def test_states_of_another_kind() -> None:
    ours, additive = SaturatingUtility(LAYOUT), BayesianUtility(LAYOUT)
    with pytest.raises(CheckpointError, match=r"utility\.form"):
        ours.load_state_dict(additive.state_dict())
    with pytest.raises(CheckpointError, match=r"utility\.form"):
        additive.load_state_dict(ours.state_dict())
    with pytest.raises(CheckpointError, match="r_max"):
        SaturatingUtility(row_of(2, 4)).load_state_dict(ours.state_dict())


def test_a_configuration_chooses_the_form() -> None:
    assert isinstance(make_utility(LAYOUT, UtilityConfig()), BayesianUtility)
    chosen = make_utility(LAYOUT, UtilityConfig(form="saturating"))
    assert isinstance(chosen, SaturatingUtility)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("level", [-1e3, 0.0, 5.0, 1e3, 1e6])
def test_extreme_losses_end_in_numbers(level: float, paired: bool) -> None:
    rng = np.random.default_rng(0)
    utility = SaturatingUtility(LAYOUT)
    with np.errstate(all="raise", under="ignore"):
        for _ in range(4):
            loss = level * rng.uniform(0.5, 1.0, 3)
            utility.update(plans(rng, 3), loss, text(3), np.zeros(3) if paired else None)
            gains = utility.gains_at(PROBLEM, links(5), rng)
            assert np.isfinite(gains).all()
            assert np.isfinite(utility.mean_gains()).all()
            assert np.isfinite(predicted(utility, plans(rng, 3), text(3))).all()


def test_identical_plans_and_no_data_at_all() -> None:
    empty, same = SaturatingUtility(LAYOUT), SaturatingUtility(LAYOUT)
    empty.update(np.zeros((0, N), dtype=np.int64), np.zeros(0), text(0))
    same.update(np.full((50, N), 3), np.full(50, 0.4), text(50))
    for utility in (empty, same):
        draws = utility.gains_at(PROBLEM, links(5), np.random.default_rng(0))
        assert np.isfinite(draws).all()
        assert (utility.mean_gains() > 0).all()
    assert np.array_equal(empty.mean_gains(), SaturatingUtility(LAYOUT).mean_gains())
    assert predicted(same, np.full((1, N), 3), text(1))[0] == pytest.approx(0.4, abs=0.01)


def test_losses_too_far_for_the_first_step() -> None:
    # Ten times what the prior expects, as of a decoder's loss under a classifier's prior.
    truth = MonotoneUtility("exp", 2.0, 6.0, saturating_truth(0).gains)
    utility, ranks = SaturatingUtility(LAYOUT), plans(np.random.default_rng(0), 100)
    full = np.repeat(truth.loss(np.full((1, N), R)), 100)
    utility.update(ranks, truth.loss(ranks), text(100), full)
    assert determination(utility, truth, paired=True) > 0.9


def test_expected_gains_for_many_links_are_those_for_each() -> None:
    utility = learned(saturating_truth(0), "saturating", paired=True)
    link = links(6)
    together = utility.gains_at(PROBLEM, link)
    alone = [utility.gains_at(PROBLEM, link.select(np.arange(6) == k))[0] for k in range(6)]
    assert np.array_equal(together, np.array(alone))
    together *= 2.0  # the caller's own, to change as it likes
    assert utility.gains_at(PROBLEM, link)[0] == pytest.approx(alone[0])
