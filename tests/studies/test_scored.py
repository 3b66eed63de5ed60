from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankcast.allocation.problem import AllocationProblem
from rankcast.errors import ConfigError
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import AdapterLayout, IntArray, LinkState, Observation, Projection, TextStats
from studies.baselines.scored import EqualBitsUniform, ScoredAllocator, nested_plans

# Three projections of 10, 10 and 30 parameters a rank, at one bit a parameter.
SIZES = ((4, 5), (4, 5), (9, 20))


def problem(min_rank: int = 0, r_max: int = 3, sizes: Any = SIZES, **rest: Any) -> Any:
    projections = tuple(
        Projection(f"layers.{i}.x", i, "x", d_in, d_out) for i, (d_in, d_out) in enumerate(sizes)
    )
    layout = AdapterLayout(projections, r_max)
    costs = LinkCostModel.for_layout(layout, Awgn(), bits_per_param=rest.pop("bits", 1.0))
    return AllocationProblem(layout, costs, min_rank=min_rank, **rest)


def plan(allocator: Any, *budgets: float) -> Any:
    # At 0 dB a hertz carries a bit a second.
    size, n = len(budgets), allocator.problem.layout.n_projections
    link = LinkState(np.zeros(size), np.array(budgets, dtype=float), 1.0)
    text = TextStats(np.zeros(size), np.zeros(size))
    seen = Observation(link, text, np.zeros((size, n), dtype=np.int64))
    return allocator.allocate(seen, np.random.default_rng(0)).tolist()


SCORES = np.array([[9.0, 4.0, 1.0], [6.0, 5.0, 2.0], [30.0, 24.0, 3.0]])
"""Per bit: 0.9 0.4 0.1 | 0.6 0.5 0.2 | 1.0 0.8 0.1."""


# Per bit, in 1/80: a 8, 4; b 19.2, 2.4; c 7.3, 0.35.
GAINS = np.array([[1.0, 0.5], [2.4, 0.3], [2.75, 0.13]])


def test_nested_plans_add_one_component_at_a_time() -> None:
    assert nested_plans(GAINS, problem(r_max=2)).tolist() == [
        [0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2],
    ]  # fmt: skip


def test_nested_plans_look_past_a_useless_component() -> None:
    gains = np.array([[0.0, 4.0], [0.1, 0.1], [0.1, 0.1]])
    assert nested_plans(gains, problem(r_max=2))[2].tolist() == [2, 0, 0]


def test_nested_plans_start_at_the_minimum_rank() -> None:
    plans = nested_plans(GAINS, problem(min_rank=1, r_max=2))
    assert plans.tolist() == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]


def test_components_come_in_order_of_score_per_bit() -> None:
    chosen = ScoredAllocator(problem(), SCORES)
    assert plan(chosen, 29, 30, 39, 40, 70, 80, 100, 149, 150) == [
        *([0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 2]),
        *([1, 1, 2], [2, 2, 2], [3, 3, 2], [3, 3, 3]),
    ]


def test_by_score_alone_a_large_component_is_no_dearer() -> None:
    scores = np.array([[9.0, 4.0, 1.0], [6.0, 5.0, 2.0], [8.0, 7.0, 0.5]])
    assert plan(ScoredAllocator(problem(), scores, per_bit=False), 40, 70) == [[1, 0, 1], [1, 0, 2]]
    assert plan(ScoredAllocator(problem(), scores), 40, 70) == [[2, 2, 0], [2, 2, 1]]


def test_the_tightest_limit_counts() -> None:
    assert plan(ScoredAllocator(problem(), SCORES, fill=0.5), 80) == [[1, 0, 1]]
    fixed = ScoredAllocator(problem(), SCORES, budget_bits=40)
    assert plan(fixed, 30, 40, 500) == [[0, 0, 1], [1, 0, 1], [1, 0, 1]]
    assert plan(ScoredAllocator(problem(), SCORES, fill=None, budget_bits=80), 70) == [[1, 0, 2]]


def test_what_does_not_pass_the_threshold_is_never_sent() -> None:
    above = ScoredAllocator(problem(), SCORES, fill=None, threshold=0.5)
    assert plan(above, 1e6, 40) == [[1, 1, 2], [1, 0, 1]]
    by_score = ScoredAllocator(problem(), SCORES, fill=None, threshold=5.0, per_bit=False)
    assert plan(by_score, 1e6) == [[1, 1, 2]]
    nothing = ScoredAllocator(problem(), SCORES, threshold=99.0)
    assert plan(nothing, 1e6) == [[0, 0, 0]]
    smallest = ScoredAllocator(problem(min_rank=1), SCORES, threshold=99.0)
    assert plan(smallest, 1e6) == [[1, 1, 1]]


def test_a_poor_component_does_not_hide_a_good_one_behind_it() -> None:
    scores = np.array([[0.0, 8.0, 0.0], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    # The first two of the first projection are worth 4 each on average, more than 3.
    assert plan(ScoredAllocator(problem(), scores), 20) == [[2, 0, 0]]


def test_where_lateness_is_a_price_only_given_limits_hold() -> None:
    free = problem(deadline="penalise")
    assert plan(ScoredAllocator(free, SCORES, fill=None), 1) == [[3, 3, 3]]
    assert plan(ScoredAllocator(free, SCORES, fill=None, budget_bits=40), 1) == [[1, 0, 1]]
    assert plan(ScoredAllocator(free, SCORES, fill=1.0), 40) == [[1, 0, 1]]
    assert plan(EqualBitsUniform(free), 1) == [[3, 3, 3]]


@pytest.mark.parametrize(
    "settings",
    [
        {"scores": np.ones((3, 2))},
        {"scores": np.full((3, 3), np.nan)},
        {"fill": 0.0},
        {"fill": 1.1},
        {"budget_bits": 0.0},
    ],
)
def test_scores_and_limits_that_make_no_sense_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigError):
        ScoredAllocator(problem(), **({"scores": SCORES} | settings))


def test_the_remainder_of_an_equal_rank_is_filled_as_well_as_it_can_be() -> None:
    # All at one rank more: 50 bits. 30 are the third; of 49, it and a small one; of 29, two small.
    allocator = EqualBitsUniform(problem())
    assert plan(allocator, 50, 80, 149, 150) == [[1, 1, 1], [1, 1, 2], [3, 2, 3], [3, 3, 3]]
    assert plan(allocator, 79) == [[2, 2, 1]]
    matched, short = plan(EqualBitsUniform(problem(), 80), 1e6, 60)
    assert matched == [1, 1, 2]
    assert sorted(short) == [1, 1, 2]
    assert short[2] == 1


def best_payload(sizes: Any, room: int) -> int:
    """Return the largest sum of a subset, by trying all."""
    sums: IntArray = np.zeros(1, dtype=np.int64)
    for size in sizes:
        sums = np.unique(np.concatenate([sums, sums + size]))
    return int(sums[sums <= room].max())


@pytest.mark.parametrize("bits", [1.0, 32.0, 4.4])
def test_no_other_subset_comes_closer(bits: float) -> None:
    rng = np.random.default_rng(5)
    sizes = [(int(a), int(b)) for a, b in rng.integers(3, 40, (9, 2))]
    asked = problem(sizes=sizes, bits=bits)
    params = np.array([a + b + 1 for a, b in sizes])
    rooms = rng.integers(0, params.sum(), 20)
    plans = plan(EqualBitsUniform(asked), *((params.sum() + rooms) * np.float64(bits)))
    for ranks, room in zip(plans, rooms, strict=True):
        assert set(ranks) <= {1, 2}
        assert (np.array(ranks) - 1) @ params == best_payload(params, room)


def test_the_remainder_is_spread_over_the_layers() -> None:
    allocator = EqualBitsUniform(problem(sizes=[(4, 5)] * 12))
    (ranks,) = plan(allocator, 12 * 10 + 40)
    raised = np.flatnonzero(np.array(ranks) == 2)
    assert len(raised) == 4
    assert np.diff(raised).min() >= 2


def test_equal_bits_need_bits() -> None:
    with pytest.raises(ConfigError, match="positive"):
        EqualBitsUniform(problem(), 0.0)
