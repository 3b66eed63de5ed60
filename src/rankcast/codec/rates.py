"""Bits and errors of an adapter's components at a quantiser step, without coding them.

Shapes: `N` projections, `R` the largest rank. The coder models each strip, a column of a left
factor or a row of a right one, as rounded Gaussian numbers (docs/format.md); what follows are
entropy and error of that model at the strips' own spreads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankcast.codec.quantise import step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError
from rankcast.link.late import scipy
from rankcast.records import FloatArray, IntArray

SIDE_BITS = 12.0
"""What a component takes beside its numbers: classes of its strips, its share of the rest."""
_NARROWEST, _WIDEST, _POINTS = 0.02, 30.0, 512


@dataclass(frozen=True, eq=False)
class Spreads:
    """How large the weights of every component are.

    Attributes:
        left: (N, R) root mean square of each left column; 0 beyond a projection's rank.
        right: (N, R) likewise of each right row.
        left_width: (N,) numbers in a left column.
        right_width: (N,) numbers in a right row.
    """

    left: FloatArray
    right: FloatArray
    left_width: IntArray
    right_width: IntArray

    @classmethod
    def of(cls, tensors: AdapterTensors) -> Spreads:
        """Return those of an adapter.

        Raises:
            CodecError: an adapter without components.
        """
        n, r_max = len(tensors.projections), int(tensors.ranks.max(initial=0))
        if not r_max:
            raise CodecError("The adapter has no components.")
        left, right = np.zeros((n, r_max)), np.zeros((n, r_max))
        for i, f in enumerate(tensors.factors):
            left[i, : f.rank] = np.sqrt(np.square(f.left.astype(np.float64)).mean(axis=0))
            right[i, : f.rank] = np.sqrt(np.square(f.right.astype(np.float64)).mean(axis=1))
        d_out = np.array([p.d_out for p in tensors.projections], dtype=np.int64)
        d_in = np.array([p.d_in for p in tensors.projections], dtype=np.int64)
        return cls(left, right, d_out, d_in)

    def component_bits(self, exponents: IntArray) -> IntArray:
        """Return (..., N, R) bits of each component, rounded up, at (..., N) step exponents.

        A component that is rounded to zeros altogether takes its side information alone.
        """
        steps = _steps(exponents)
        bits = self.left_width[:, None] * rounded_entropy(self.left / steps)
        bits = bits + self.right_width[:, None] * rounded_entropy(self.right / steps)
        return np.ceil(bits + SIDE_BITS).astype(np.int64)

    def kept_share(self, exponents: IntArray) -> FloatArray:
        """Return (..., N, R) what rounding leaves of each component, at (..., N) step exponents.

        The product over both strips of 1 less the share of their energy that is rounded away: 1 for
        a fine step, 0 for a component that vanishes.
        """
        steps = _steps(exponents)
        return (1 - rounding_error(self.left / steps)) * (1 - rounding_error(self.right / steps))


def rounded_entropy(spread: FloatArray) -> FloatArray:
    """Return the entropy [bit] of a Gaussian number of a spread, rounded to integers."""
    grid, entropy, _ = _table()
    spread = np.asarray(spread, dtype=np.float64)
    wide = 0.5 * math.log2(2 * math.pi * math.e) + np.log2(np.maximum(spread, _NARROWEST))
    narrow = np.interp(np.log(np.maximum(spread, _NARROWEST)), grid, entropy)
    return np.where(spread > _WIDEST, wide, np.where(spread < _NARROWEST, 0.0, narrow))


def rounding_error(spread: FloatArray) -> FloatArray:
    """Return E[(x - round(x))²] / spread² of a Gaussian number x of a spread."""
    grid, _, error = _table()
    spread = np.asarray(spread, dtype=np.float64)
    narrow = np.interp(np.log(np.maximum(spread, _NARROWEST)), grid, error)
    wide = 1 / (12 * np.square(np.maximum(spread, _NARROWEST)))
    return np.where(spread > _WIDEST, wide, np.where(spread < _NARROWEST, 1.0, narrow))


@lru_cache(maxsize=1)
def _table() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return logarithms of spreads, and entropy and relative error at each."""
    ndtr = scipy("special").ndtr  # not needed to decode
    grid = np.linspace(math.log(_NARROWEST), math.log(_WIDEST), _POINTS)
    spread = np.exp(grid)[:, None]
    cells = np.arange(-8 * math.ceil(_WIDEST), 8 * math.ceil(_WIDEST) + 1)
    low, high = (cells - 0.5) / spread, (cells + 0.5) / spread
    share = ndtr(high) - ndtr(low)
    entropy = -(share * np.log2(np.maximum(share, 1e-300))).sum(axis=1)
    density = [np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) for x in (low, high)]
    mean_of_cell = spread * (density[0] - density[1])  # ∫ x over the cell
    s2 = np.square(spread[:, 0])
    error = 1 + ((cells**2 * share).sum(axis=1) - 2 * (cells * mean_of_cell).sum(axis=1)) / s2
    return grid, entropy, np.clip(error, 0.0, None)


def _steps(exponents: IntArray) -> FloatArray:
    """Return (..., N, 1) quantiser steps of (..., N) exponents."""
    found = np.asarray(exponents)
    distinct, inverse = np.unique(found, return_inverse=True)
    steps = np.array([float(step_of(int(e))) for e in distinct])
    return steps[inverse].reshape(found.shape)[..., None]
