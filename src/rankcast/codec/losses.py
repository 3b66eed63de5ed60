"""What rounding and missing components take from an adapter, and about how many bits are left.

An error is ‖PQ - P'Q'‖² over all projections, where P' and Q' are what a decoder has. It is
computed from products of the factors with themselves, never from a d_out x d_in matrix.

A dead zone is how far from zero a number has to be, in steps, to become another one than zero. 0.5
is plain rounding. At coarse steps a wider one loses less for the same bits; a reader notices
nothing of it.

Shapes: `N` projections, `R` the largest rank, `J` roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.planner import SIDE_BITS, rounded_entropy
from rankcast.codec.quantiser import Float32Array, step_of
from rankcast.codec.tensors import AdapterTensors, Factors, LazyFactors
from rankcast.records import FloatArray

PLAIN = 0.5
"""The dead zone of rounding to the nearest."""
_EXACT = 1e-13
"""Share of the energy below which an error is the rounding of double precision."""
_COUNTED = 64
"""Indices below are counted; where there are others, numbers are taken for Gaussian."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How numbers become indices.

    Attributes:
        exponent: of the common step.
        dead_zone: see above [steps].
    """

    exponent: int
    dead_zone: float = PLAIN

    @property
    def step(self) -> np.float32:
        """The step of the exponent."""
        return step_of(self.exponent)

    def above(self, offset: int) -> Rounding:
        """Return the same at another step."""
        return replace(self, exponent=self.exponent + offset)

    def cleared(self, values: Float32Array) -> Float32Array:
        """Return numbers with zeros in the dead zone, as a copy."""
        # Plain rounding does it itself, and ties are its business.
        limit = 0.0 if self.dead_zone == PLAIN else self.dead_zone * float(self.step)
        return np.where(np.abs(values) < limit, 0, values).astype(np.float32)

    def indices(self, values: Float32Array) -> FloatArray:
        """Return the indices of numbers."""
        steps = values / np.float64(self.step)
        return np.where(np.abs(steps) < self.dead_zone, 0.0, np.rint(steps))

    def decoded(self, indices: FloatArray) -> Float32Array:
        """Return the numbers that a reader makes of indices."""
        return indices.astype(np.float32) * self.step


def left_of(
    tensors: AdapterTensors, ranks: Sequence[int], roundings: Sequence[Rounding]
) -> AdapterTensors:
    """Return an adapter with zeros for what is not sent, so that plain rounding gives the rest.

    It has as many components as before, so that later versions can be coded beside it.

    Args:
        tensors: the adapter.
        ranks: components of each projection that are sent, the first ones.
        roundings: of each projection.
    """

    def cleared(i: int) -> Factors:
        whole, rounding = tensors.factors[i], roundings[i]
        left, right = (rounding.cleared(x) for x in (whole.left, whole.right))
        left[:, ranks[i] :], right[ranks[i] :] = 0, 0
        return Factors(left, right)

    lazy = LazyFactors(tuple(tensors.ranks.tolist()), cleared)
    keep = isinstance(tensors.factors, LazyFactors)
    return replace(tensors, factors=lazy if keep else tuple(lazy))


@dataclass(frozen=True, eq=False)
class Losses:
    """Errors and bits of every projection at every rank and rounding.

    Attributes:
        energies: (N,) ‖PQ‖².
        errors: (J, N, R + 1); beyond a projection's rank those at its rank.
        bits: (J, N, R + 1) that the components take, about: entropies of the indices of each column
            and row, and side information.
    """

    energies: FloatArray
    errors: FloatArray
    bits: FloatArray

    @classmethod
    def of(
        cls, tensors: AdapterTensors, roundings: Sequence[Rounding], offsets: Sequence[int] = ()
    ) -> Losses:
        """Return those of an adapter.

        Args:
            tensors: the adapter.
            roundings: that are tried.
            offsets: of the exponents of projections; empty for none.
        """
        n, r_max = len(tensors.projections), int(tensors.ranks.max(initial=0))
        energies, shape = np.zeros(n), (len(roundings), n, r_max + 1)
        errors, bits = np.zeros(shape), np.zeros(shape)
        for i, factors in enumerate(tensors.factors):
            energies[i] = squared_error(factors, _none_of(factors))
            for j, rounding in enumerate(roundings):
                own = rounding.above(offsets[i] if offsets else 0)
                left, right = own.indices(factors.left), own.indices(factors.right)
                rounded = Factors(own.decoded(left), own.decoded(right))
                r = factors.rank
                errors[j, i, : r + 1] = _errors_of_ranks(factors, rounded, energies[i])
                errors[j, i, r + 1 :] = errors[j, i, r]
                spent = _entropy_bits(left.T) + _entropy_bits(right) + SIDE_BITS
                bits[j, i, 1 : r + 1] = spent.cumsum()
                bits[j, i, r + 1 :] = bits[j, i, r]
        return cls(energies, errors, bits)


def lost_energy(tensors: AdapterTensors, decoded: AdapterTensors) -> float | None:
    """Return the share of an update's energy ‖PQ‖² that a decoded adapter has not.

    Args:
        tensors: the adapter.
        decoded: what a file makes of it.

    Returns:
        0 for what is decoded exactly, 1 where all is zero; None without projections, or where they
        are zero.
    """
    error = energy = 0.0
    for own, other in zip(tensors.factors, decoded.factors, strict=True):
        error += squared_error(own, other)
        energy += squared_error(own, _none_of(own))
    return error / energy if energy > 0 else None


def squared_error(factors: Factors, other: Factors) -> float:
    """Return ‖PQ - P'Q'‖² of two versions of a projection."""
    lefts = np.concatenate([factors.left, other.left], axis=1, dtype=np.float64)
    rights = np.concatenate([factors.right, -other.right], dtype=np.float64)
    return max(float(((lefts.T @ lefts) * (rights @ rights.T)).sum()), 0.0)


def _none_of(factors: Factors) -> Factors:
    return Factors(factors.left[:, :0], factors.right[:0])


def _errors_of_ranks(factors: Factors, rounded: Factors, energy: float) -> FloatArray:
    """Return (r + 1,) errors with the first components of what was rounded."""
    left, right = factors.left.astype(np.float64), factors.right.astype(np.float64)
    own_left, own_right = rounded.left.astype(np.float64), rounded.right.astype(np.float64)
    shared = ((left.T @ own_left) * (right @ own_right.T)).sum(axis=0).cumsum()
    own = (own_left.T @ own_left) * (own_right @ own_right.T)
    errors = energy - 2 * shared + own.cumsum(axis=0).cumsum(axis=1).diagonal()
    errors[errors < _EXACT * energy] = 0.0
    return np.concatenate([[energy], errors])


def _entropy_bits(strips: NDArray[np.float64]) -> FloatArray:
    """Return (r,) bits of (r, width) indices, each strip by its own frequencies."""
    r, width = strips.shape
    sizes = np.abs(strips)
    if sizes.max(initial=0) >= _COUNTED:
        return width * rounded_entropy(np.sqrt(np.square(strips).mean(axis=1)))
    places = np.arange(r)[:, None] * _COUNTED + sizes.astype(np.int64)
    counts = np.bincount(places.ravel(), minlength=r * _COUNTED).reshape(r, _COUNTED)
    signs = width - counts[:, 0]
    return signs - (counts * np.log2(np.maximum(counts, 1) / width)).sum(axis=1)
