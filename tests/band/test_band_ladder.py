from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.band.ladder import Ladder, stacked, upper_hull
from rankcast.errors import ConfigError


def test_worth_is_the_loss_removed_by_the_best_prefix_so_far() -> None:
    ladder = Ladder.of_losses([10.0, 20.0, 30.0], [0.5, 0.6, 0.25], 0.75)
    assert ladder.prefix_bits.tolist() == [0.0, 10.0, 20.0, 30.0]
    assert ladder.worth.tolist() == [0.0, 0.25, 0.25, 0.5]
    assert ladder.n_chunks == 3


def test_a_prefix_that_does_harm_is_worth_nothing() -> None:
    assert Ladder.of_losses([1.0], [0.9], 0.7).worth.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("bits", "worth"),
    [
        ([0, 1], [0, 1, 2]),
        ([0], [0]),
        ([1, 2], [0, 1]),
        ([0, 2, 1], [0, 1, 2]),
        ([0, 1], [0, -1]),
        ([0, 1], [0, np.nan]),
    ],
)
def test_what_is_no_ladder_is_refused(bits: list[float], worth: list[float]) -> None:
    with pytest.raises(ConfigError):
        Ladder(np.array(bits), np.array(worth))


def test_shorter_ladders_are_filled_with_their_last_prefix() -> None:
    short = Ladder(np.array([0.0, 5.0]), np.array([0.0, 1.0]))
    long = Ladder(np.array([0.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0]))
    bits, worth = stacked([short, long])
    assert bits.tolist() == [[0, 5, 5], [0, 2, 3]]
    assert worth.tolist() == [[0, 1, 1], [0, 1, 4]]
    with pytest.raises(ConfigError, match="at least one"):
        stacked([])


def test_the_hull_leaves_out_what_a_mixture_beats() -> None:
    # Half of the way to (2, 4) is worth 2 at 1 bit, so (1, 1) goes; (4, 4) adds nothing.
    bits, worth = upper_hull(np.array([0.0, 1, 2, 4, 6]), np.array([0.0, 1, 4, 4, 5]))
    assert (bits.tolist(), worth.tolist()) == ([0, 2, 6], [0, 4, 5])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7))
def test_hull_properties_it_covers_every_prefix_and_its_slopes_fall(
    steps: list[tuple[int, int]],
) -> None:
    bits, worth = (np.concatenate([[0.0], np.cumsum([step[i] for step in steps])]) for i in (0, 1))
    bits[1:] += np.arange(1, len(bits))  # every chunk has a bit at least
    at, value = upper_hull(bits, worth)
    assert (np.interp(bits, at, value) >= worth - 1e-9).all()
    assert set(zip(at, value, strict=True)) <= set(zip(bits, worth, strict=True))
    assert (np.diff(np.diff(value) / np.diff(at)) <= 1e-9).all()
