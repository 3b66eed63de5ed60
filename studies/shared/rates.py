"""Compare curves of accuracy against bytes by one number each.

A curve is measured at a few codes, and noise makes some of them worse than cheaper ones. What a
sender would choose is the frontier: the codes that are better than every cheaper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

Point = tuple[float, float]
"""Bytes and accuracy."""


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that are better than every cheaper one, from cheap to dear."""
    kept: list[Point] = []
    for n_bytes, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((n_bytes, accuracy))
    return kept


def upper_hull(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the concave hull above the points, up to the best of them.

    Between two codes a sender with many adapters gets any mean on the line that joins them, over
    the logarithm of the bytes as curves are drawn.
    """
    hull: list[Point] = []
    for point in frontier(points):
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Point, b: Point) -> float:
    """Return the rise of accuracy over the logarithm of the bytes."""
    return (b[1] - a[1]) / (math.log(b[0]) - math.log(a[0]))


def bytes_at(points: Sequence[Point], accuracy: float) -> float | None:
    """Return the bytes at which the upper hull reaches an accuracy; None where it does not.

    A curve whose cheapest code is better already takes the bytes of that one.
    """
    hull = upper_hull(points)
    if not hull or hull[-1][1] < accuracy:
        return None
    if hull[0][1] >= accuracy:
        return hull[0][0]
    accuracies, logs = [a for _, a in hull], [math.log(b) for b, _ in hull]
    return math.exp(float(np.interp(accuracy, accuracies, logs)))


def bd_rate(points: Sequence[Point], anchor: Sequence[Point]) -> float | None:
    """Return the Bjøntegaard delta rate: the share of bytes that a curve takes more than another.

    The logarithm of the bytes is interpolated over the accuracy by piecewise cubic polynomials
    that keep its order (PCHIP, as in VCEG-AZ07), and the difference averaged over the accuracies
    that both frontiers reach. -0.5 means half of the bytes at equal accuracy.

    Returns:
        None where the two have no range of accuracies in common.
    """
    mine, theirs = frontier(points), frontier(anchor)
    if min(len(mine), len(theirs)) < 2:
        return None
    low, high = max(mine[0][1], theirs[0][1]), min(mine[-1][1], theirs[-1][1])
    if not low < high:
        return None
    means = [_log_bytes(curve).integrate(low, high) / (high - low) for curve in (mine, theirs)]
    return float(np.exp(means[0] - means[1]) - 1.0)


def _log_bytes(curve: Sequence[Point]) -> PchipInterpolator:
    return PchipInterpolator([a for _, a in curve], [math.log(b) for b, _ in curve])
