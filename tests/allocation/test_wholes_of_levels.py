"""Plans of levels hold the largest of those that were trained as a whole and arrive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.levels import Levels
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.learner.synthetic import transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.records import AdapterLayout, LinkState

N = 3
LAYOUT = AdapterLayout(transformer_layout().projections[:N], 2)
RANKS = np.tile([0, 1, 2], (N, 1))
BITS = np.array([[0, 100, 300], [0, 200, 300], [0, 300, 700]])
GAINS = np.array([[0.0, 1, 9], [0, 2, 3], [0, 3, 4]])
WHOLES = np.array([[1, 1, 1], [2, 2, 2]])
PROBLEM = LevelProblem.of(
    Levels(RANKS, RANKS, BITS, GAINS, 100.0), LAYOUT, Awgn(), 0.0, wholes=WHOLES
)


def link_of(*budgets_bits: float) -> LinkState:
    """Return links that carry so many bits in a second: 1 bit/s/Hz at 0 dB."""
    n = len(budgets_bits)
    return LinkState(np.zeros(n), np.array(budgets_bits), np.ones(n))


def test_by_hand() -> None:
    """The first whole takes 100 + 600 bits, all take 1,400."""
    link = link_of(600, 700, 900, 1000, 1400)
    assert PROBLEM.largest_whole(link).tolist() == [[0] * 3, *[[1] * 3] * 3, [2] * 3]
    nothing, everything = (np.full((5, N), k) for k in (0, 2))
    assert PROBLEM.feasible(nothing, link).tolist() == [[0] * 3, *[[1] * 3] * 3, [2] * 3]
    # Beyond the whole: 8 for 200 bits, 1 for 100, 1 for 400. The last leaves first.
    plans = PROBLEM.feasible(everything, link)
    assert plans[1:].tolist() == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert PROBLEM.link_costs.payload_bits(plans[0]) <= 600
    # Where levels are worth what they are worth alone, the dear one of little gain leaves.
    gains = PROBLEM.levels.step_gains[None]
    alone = replace(PROBLEM, wholes=None).feasible(everything, link, gains)
    assert alone[1].tolist() == [2, 2, 0]


def test_worth_is_infinite_within_the_whole() -> None:
    worth = PROBLEM.worth(PROBLEM.levels.step_gains, link_of(900))
    assert np.isinf(worth[:, 0]).all()
    assert worth[:, 1].tolist() == [8 / 200, 1 / 100, 1 / 400]
    assert np.isfinite(PROBLEM.worth(PROBLEM.levels.step_gains, link_of(600))).all()


@given(st.lists(st.integers(100, 1600), min_size=1, max_size=4), st.integers(0, 2**16))
def test_plans_fit_and_hold_the_whole(budgets: list[int], seed: int) -> None:
    rng, link = np.random.default_rng(seed), link_of(*budgets)
    wanted = rng.integers(0, 3, (len(budgets), N))
    plans = PROBLEM.feasible(wanted, link, rng.random((len(budgets), N, 2)))
    assert (PROBLEM.link_costs.payload_bits(plans) <= np.array(budgets)).all()
    assert (plans >= PROBLEM.largest_whole(link)).all()


def test_what_it_refuses() -> None:
    with pytest.raises(ConfigError, match="within the next"):
        replace(PROBLEM, wholes=WHOLES[::-1])
    with pytest.raises(InfeasibleDeadlineError):
        PROBLEM.feasible(np.full((1, N), 2), link_of(50))
    late = replace(PROBLEM, deadline="penalise")
    assert late.feasible(np.full((1, N), 2), link_of(50)).tolist() == [[2, 2, 2]]
