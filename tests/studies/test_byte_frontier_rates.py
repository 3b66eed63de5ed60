"""Curves of accuracy against bytes, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.shared.rates import bd_rate, bytes_at, frontier, upper_hull

CURVE = [(100.0, 0.80), (200.0, 0.84), (400.0, 0.86)]
points = st.lists(
    st.tuples(st.integers(1, 10**6).map(float), st.integers(0, 50).map(lambda k: k / 50)),
    min_size=1,
    max_size=8,
)


def test_the_frontier_leaves_out_what_is_dearer_and_no_better() -> None:
    assert frontier([(3.0, 0.5), (1.0, 0.4), (2.0, 0.4), (4.0, 0.45), (3.0, 0.6)]) == [
        (1.0, 0.4),
        (3.0, 0.6),
    ]


def test_the_hull_goes_over_a_dent() -> None:
    # 0.80 at 1, 0.84 at 4: the straight line has 0.82 at 2, where only 0.81 was measured
    assert upper_hull([(1.0, 0.80), (2.0, 0.81), (4.0, 0.84)]) == [(1.0, 0.80), (4.0, 0.84)]
    assert upper_hull(CURVE) == CURVE


def test_bytes_at_an_accuracy_by_hand() -> None:
    assert bytes_at(CURVE, 0.84) == pytest.approx(200)
    # halfway from 0.80 to 0.84: the geometric mean of 100 and 200
    assert bytes_at(CURVE, 0.82) == pytest.approx(math.sqrt(100 * 200))
    assert bytes_at(CURVE, 0.79) == 100
    assert bytes_at(CURVE, 0.861) is None
    assert bytes_at([], 0.5) is None


def test_a_curve_of_twice_the_bytes_has_a_rate_of_100_percent() -> None:
    twice = [(2 * b, a) for b, a in CURVE]
    assert bd_rate(twice, CURVE) == pytest.approx(1.0)
    assert bd_rate(CURVE, twice) == pytest.approx(-0.5)
    assert bd_rate(CURVE, CURVE) == pytest.approx(0.0)


def test_straight_lines_by_hand() -> None:
    # log2 of the bytes over the accuracy: 0 → 0, 1 → 1 against 0.5 → 1, 1.5 → 3. From 0.5 to 1 the
    # first runs from 0.5 to 1 (mean 0.75), the other from 1 to 2 (mean 1.5).
    one = [(1.0, 0.0), (2.0, 1.0)]
    other = [(2.0, 0.5), (8.0, 1.5)]
    assert bd_rate(other, one) == pytest.approx(2**0.75 - 1)


def test_a_piecewise_cubic_by_hand() -> None:
    # PCHIP through (0, 0), (1, 1), (2, 3), log2 of the bytes. With equal widths its slope in the
    # middle is the harmonic mean of 1 and 2, 4/3, at the left end (3·1 - 2)/2 = 1/2. A cubic from
    # y0 to y1 with slopes d0 and d1 has the mean (y0 + y1)/2 + (d0 - d1)/12.
    curve = [(1.0, 0.0), (2.0, 1.0), (8.0, 2.0)]
    flat = [(1.0, 0.0), (1.0 + 1e-12, 1.0)]
    assert bd_rate(curve, flat) == pytest.approx(2 ** (1 / 2 + (1 / 2 - 4 / 3) / 12) - 1)


def test_no_rate_without_a_common_range() -> None:
    better = [(100.0, 0.90), (200.0, 0.95)]
    assert bd_rate(better, CURVE) is None
    assert bd_rate([(100.0, 0.85)], CURVE) is None
    assert bd_rate([(100.0, 0.86), (200.0, 0.90)], CURVE) is None  # a point in common, no range


@given(points, st.floats(0.0, 1.0))
def test_the_hull_never_asks_for_more_than_a_code_that_is_good_enough(
    found: list[tuple[float, float]], accuracy: float
) -> None:
    enough = [b for b, a in found if a >= accuracy]
    n_bytes = bytes_at(found, accuracy)
    if enough:
        assert n_bytes is not None
        assert n_bytes <= min(enough) * (1 + 1e-9)
    else:
        assert n_bytes is None


@given(points, points)
def test_rates_are_inverse(
    one: list[tuple[float, float]], other: list[tuple[float, float]]
) -> None:
    there, back = bd_rate(one, other), bd_rate(other, one)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert (1 + there) * (1 + back) == pytest.approx(1.0, rel=1e-6)
