"""Gaussian models of quantised weights, with the same probabilities on every machine.

The columns and rows of an SVD-form adapter are close to Gaussian (their excess kurtosis is about
0.1 in the median), so one number, the spread σ in steps, says all that the coder needs to know of
a strip of weights. Spreads come in classes: class c ≥ 1 has σ = 3^((c - 11) / 6) steps; class 0
is a strip of zeros.

Probabilities are computed from +, -, ×, ÷ in IEEE doubles and rounded to 16-bit weights, so that
two machines never disagree; the functions of a C library may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from rankcast.codec.quantiser import PER_RADIX, RADIX, Indices, step_of

ans: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] compiled, no stubs

FRESH_CLASSES = 17
"""Classes that a strip may have when it first appears: σ up to 3 steps. More steps are coded as
digits of a coarser index."""
CLASSES = FRESH_CLASSES + PER_RADIX
"""Highest class: σ = 9 steps. A digit below that is almost evenly distributed."""
_ONE_STEP = 11
ESCAPE = 13
"""Magnitudes from here on are coded by this symbol and their excess."""
CONTEXTS = 4
"""A digit has a model for each magnitude of the index above it: 0, 1, 2, more."""
TAILS = (None, 6, 4, 2)
"""How the magnitudes of indices fall off in classes up to `SPARSE`: None as a Gaussian number's; t
by 2^-t from one to the next, which suits adapters that were trained for few bits."""
SPARSE = 10
"""Class with σ = 0.83 steps: about half of the indices are 0."""
FALLS = (0.12, 0.3, 0.5, 0.75)
"""Chances of one more unit of difference from what was predicted, one of which a chunk uses."""
WEIGHT_BITS = 16
_DOUBT = 0.125
"""Chance that a digit below a magnitude of 3 or more is any of the three: outliers are not
Gaussian."""


def spread_of(spread_class: int) -> float:
    """Return σ in steps of a class of at least 1."""
    return float(step_of(spread_class - _ONE_STEP))


def class_of(indices: Indices, tail: int = 0) -> int:
    """Return the class that codes a strip in the fewest bits; 0 if all are zero."""
    counts = magnitude_counts(indices)
    if counts[0] == indices.size:
        return 0
    return int(np.argmin(_magnitude_costs(tail) @ counts)) + 1


def best_tail(counts: Sequence[NDArray[np.int64]]) -> int:
    """Return which of `TAILS` codes strips of these counts of magnitudes in the fewest bits."""
    if not counts:
        return 0
    table = np.array(counts)
    bits = [(table @ _magnitude_costs(t).T).min(axis=1).sum() for t in range(len(TAILS))]
    return int(np.argmin(bits))


def magnitude_counts(indices: Indices) -> NDArray[np.int64]:
    """Return how often each magnitude occurs, those from `ESCAPE` on as one."""
    return np.bincount(np.minimum(np.abs(indices), ESCAPE), minlength=ESCAPE + 1)


def finer_class(spread_class: int) -> int:
    """Return the class of a strip after one more digit."""
    return min(spread_class + PER_RADIX, CLASSES) if spread_class else 0


@cache
def _magnitude_costs(tail: int) -> NDArray[np.float64]:
    """Return (classes, magnitudes) bits, signs and excess left out."""
    rows = []
    for c in range(1, FRESH_CLASSES + 1):
        weights = fresh_weights(c, tail).astype(np.float64)
        share = weights / weights.sum()
        folded = share[ESCAPE:].copy()
        folded[1:] += share[:ESCAPE][::-1]
        rows.append(-np.log2(folded))
    return np.array(rows)


@cache
def fresh_weights(spread_class: int, tail: int = 0) -> NDArray[np.int64]:
    """Return (27,) integer weights of the indices -13..13; the outermost stand for beyond, too."""
    shift = TAILS[tail]
    if shift is not None and spread_class <= SPARSE:  # as many zeros as of a Gaussian number
        gaussian: list[int] = fresh_weights(spread_class).tolist()
        rest = (sum(gaussian) - gaussian[ESCAPE]) // 2
        falling = [rest * (2**shift - 1) >> shift * m for m in range(1, ESCAPE)]
        side = [max(1, weight) for weight in (*falling, rest >> shift * (ESCAPE - 1))]
        return np.array([*reversed(side), gaussian[ESCAPE], *side], dtype=np.int64)
    sigma = spread_of(spread_class)
    mass = [normal_mass((m - 0.5) / sigma, (m + 0.5) / sigma) for m in range(ESCAPE)]
    side = [*mass[1:], normal_mass((ESCAPE - 0.5) / sigma, math.inf)]
    return _weights([*reversed(side), mass[0], *side])


@cache
def digit_weights(spread_class: int, context: int) -> NDArray[np.int64]:
    """Return (3,) integer weights of the digits -1, 0, 1 towards larger magnitude.

    Args:
        spread_class: after the digit.
        context: magnitude of the index before it, at most `CONTEXTS` - 1.
    """
    sigma, centre = spread_of(spread_class), RADIX * context
    cells = [
        normal_mass((centre + d - 0.5) / sigma, (centre + d + 0.5) / sigma) for d in (-1, 0, 1)
    ]
    total = sum(cells)
    shares = [cell / total if total else 0.0 for cell in cells]
    doubt = _DOUBT if context == CONTEXTS - 1 else 0.0
    return _weights([(1.0 - doubt) * share + doubt / RADIX for share in shares])


def _weights(shares: list[float]) -> NDArray[np.int64]:
    """Round shares to whole 1/2^16, at least 1 each."""
    return np.array([max(1, math.floor(s * 2**WEIGHT_BITS + 0.5)) for s in shares], dtype=np.int64)


def normal_mass(low: float, high: float) -> float:
    """Return P(low < x < high) of a standard normal variable, from + - × ÷ alone."""
    if low < 0 < high:
        return _below(-low) + _below(high)
    if high <= 0:
        low, high = -high, -low
    return _beyond(low) - _beyond(high)


def _beyond(x: float) -> float:
    """Return P(X > x) for x ≥ 0."""
    if math.isinf(x):
        return 0.0
    return 0.5 - _below(x) if x < 2.0 else _density(x) * _mills_ratio(x)


def _below(x: float) -> float:
    """Return P(0 < X < x): φ(x)·(x + x³/3 + x⁵/15 + …)."""
    if x > 6.0:
        return 0.5
    term = total = x
    n = 1
    while term > 1e-20 * total:
        n += 2
        term *= x * x / n
        total += term
    return _density(x) * total


def _mills_ratio(x: float) -> float:
    """Return P(X > x) / φ(x): the continued fraction 1/(x + 1/(x + 2/(x + 3/(x + …))))."""
    value = x
    for k in range(120, 0, -1):
        value = x + k / value
    return 1.0 / value


def _density(x: float) -> float:
    """Return φ(x), with e^(x²/2) summed from its series."""
    half = 0.5 * x * x
    if half > 600.0:
        return 0.0
    term = total = 1.0
    n = 0
    while term > 1e-20 * total:
        n += 1
        term *= half / n
        total += term
    return 0.3989422804014327 / total


@cache
def fresh_model(spread_class: int, tail: int = 0) -> Any:
    """Return constriction's model of the symbols 0..26, which stand for -13..13."""
    return categorical(fresh_weights(spread_class, tail))


@cache
def digit_model(spread_class: int, context: int) -> Any:
    """Return constriction's model of the symbols 0..2, which stand for the digits -1, 0, 1."""
    return categorical(digit_weights(spread_class, context))


def categorical(weights: NDArray[np.int64]) -> Any:
    """Return constriction's categorical model of integer weights."""
    return ans.model.Categorical(weights.astype(np.float64), perfect=False, lazy=False)


@lru_cache(maxsize=256)
def uniform(size: int) -> Any:
    """Return constriction's model of `size` symbols that are all as likely."""
    return ans.model.Uniform(size)


@lru_cache(maxsize=4096)
def near_model(predicted: int, size: int, chance: float) -> Any:
    """Return constriction's model of the symbols 0..size - 1 that are likely near `predicted`."""
    return categorical(near_weights(predicted, size, chance))


@lru_cache(maxsize=4096)
def near_weights(predicted: int, size: int, chance: float) -> NDArray[np.int64]:
    """Return (size,) integer weights: 2^16 at `predicted`, times `chance` for each unit away."""
    weights = np.empty(size, dtype=np.int64)
    for symbol in range(size):
        share = 65536.0
        for _ in range(abs(symbol - predicted)):
            share *= chance
        weights[symbol] = max(1, int(share))
    return weights


def near_bits(symbol: int, predicted: int, size: int, chance: float) -> float:
    """Return what such a symbol costs [bit]."""
    weights = near_weights(predicted, size, chance)
    return float(np.log2(weights.sum() / weights[symbol]))
