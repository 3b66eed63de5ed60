"""Levels: ranks and steps of each projection on the hull of coded bits and gain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.codec.header import BaseModel
from rankcast.codec.levels import Levels, file_of, hull, thinned
from rankcast.codec.packing import Source
from rankcast.codec.planner import Spreads
from rankcast.errors import ConfigError
from rankcast.link.capacity import Awgn
from rankcast.records import FloatArray, LinkState

# One projection; at two steps ranks 0, 1 and 2 take so many bits and keep so much.
BITS = np.array([[0.0, 10, 30], [0.0, 4, 16]])
GAINS = np.array([[0.0, 5, 9], [0.0, 4, 5]])


def test_hull_by_hand() -> None:
    # (4, 4) gains 1 a bit; from there (10, 5) gains 1/6, and (30, 9) 5/26, which is more: (10, 5)
    # lies below. (16, 5) is beaten by (10, 5).
    assert hull(BITS, GAINS).tolist() == [[0, 0, 0, 0], [4, 4, 1, 1], [30, 9, 0, 2]]


def test_what_a_mixture_comes_nearest_to_is_left_out() -> None:
    points = np.array([[0.0, 0, 0, 0], [1, 10, 0, 1], [2, 15, 0, 2], [4, 16, 0, 3], [8, 17, 0, 4]])
    # At 1 bit a mixture of its neighbours has 7.5 of 10, at 2 bits 12 of 15, at 4 bits 15.67 of 16.
    assert thinned(points, 3)[:, 0].tolist() == [0, 1, 2, 8]
    assert thinned(points, 6)[:, 0].tolist() == [0, 1, 2, 4, 8, 8, 8]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_a_bit_brings_less_and_less(seed: int, n_levels: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.uniform(0.01, 1.0, (2, 3, 4))
    spreads = Spreads(left, right, np.array([8, 16, 64]), np.array([8, 24, 16]))
    levels = Levels.of_spreads(spreads, rng.uniform(0, 1, (3, 4)), n_levels)
    more, kept = np.diff(levels.bits, axis=1), levels.step_gains
    assert levels.bits.shape == (3, n_levels + 1)
    assert (levels.bits[:, 0] == 0).all()
    assert (levels.ranks[:, 0] == 0).all()
    assert (more >= 0).all()
    assert (kept >= 0).all()
    assert (kept[more == 0] == 0).all()
    for own_more, own_kept in zip(more, kept, strict=True):
        slopes = own_kept[own_more > 0] / own_more[own_more > 0]
        assert (np.diff(slopes) <= 1e-12).all()


@pytest.mark.parametrize("seed", range(3))
def test_predicted_bits_are_those_of_the_file(seed: int) -> None:
    """Within 3 %, container included, for any plan."""
    source = Source(random_adapter(seed, ((96, 192),) * 8, (4,) * 8), BaseModel("tiny"), {})
    levels, rng = Levels.of(source), np.random.default_rng(seed)
    costs = levels.link_costs(Awgn())
    plans = [np.full(8, k) for k in range(levels.n_levels + 1)]
    plans += [rng.integers(0, levels.n_levels + 1, 8) for _ in range(8)]
    for plan in plans:
        predicted = float(costs.payload_bits(plan))
        assert predicted == pytest.approx(file_of(source, levels, plan).n_bits, rel=0.03)


def test_a_file_holds_the_ranks_of_its_plan() -> None:
    source = Source(random_adapter(0, ((24, 16),) * 3, (3, 3, 3)), BaseModel("tiny"), {})
    levels = Levels.of(source)
    plan = np.array([0, levels.n_levels, 1])
    ranks, _ = levels.chosen(plan)
    assert file_of(source, levels, plan).tensors().ranks.tolist() == ranks.tolist()


def test_link_costs_are_coded_bits() -> None:
    source = Source(random_adapter(0), BaseModel("tiny"), {})
    levels = Levels.of(source)
    costs, link = levels.link_costs(Awgn()), LinkState(np.zeros(1), np.array([1e4]), np.ones(1))
    plan = np.array([[1, 2]])
    bits = levels.bits[0, 1] + levels.bits[1, 2] + levels.overhead_bits
    assert costs.link_cost(plan, link) == pytest.approx(bits / 1e4)  # at 0 dB a bit for each hertz


@pytest.mark.parametrize("gains", [np.ones((1, 1)), np.full((3, 4), -1.0)])
def test_impossible_gains_are_refused(gains: FloatArray) -> None:
    spreads = Spreads(np.ones((3, 4)), np.ones((3, 4)), np.full(3, 8), np.full(3, 8))
    with pytest.raises(ConfigError, match="gains must be finite"):
        Levels.of_spreads(spreads, gains)
    with pytest.raises(ConfigError, match="at least one level"):
        Levels.of_spreads(spreads, n_levels=0)
