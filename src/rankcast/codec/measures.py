"""Sizes of an adapter's numbers, from which steps and the order of the chunks follow.

An adapter may lie on a disk, so that everything that is asked of its numbers is taken down in one
look at each array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.records import FloatArray

_AT_A_TIME = 2**20
"""Numbers of a tensor that are in double precision at once."""
_FAR_FROM_ZERO = 2.0
"""Spreads between zero and a mean from which on a tensor is coded as deviations from it."""


@dataclass(frozen=True, eq=False)
class ComponentSizes:
    """Sizes of the components of one projection.

    Attributes:
        squares: sum over the left factor's numbers, and over the right one's.
        count: numbers in both.
        norms: (r,) ‖left column‖·‖right row‖.
        peaks: (r,) the largest magnitude of a column or row, of the two the smaller one.
    """

    squares: tuple[float, float]
    count: int
    norms: FloatArray
    peaks: NDArray[np.float32]

    @classmethod
    def of(cls, left: NDArray[np.float32], right: NDArray[np.float32]) -> ComponentSizes:
        """Return those of two factors."""
        norms = np.linalg.norm(left.astype(np.float64), axis=0)
        norms = norms * np.linalg.norm(right.astype(np.float64), axis=1)
        peaks = np.abs(left).max(axis=0, initial=0), np.abs(right).max(axis=1, initial=0)
        squares = float(np.square(left).sum()), float(np.square(right).sum())
        return cls(squares, left.size + right.size, norms, np.minimum(*peaks))


@dataclass(frozen=True, slots=True)
class TensorSizes:
    """Sizes of the numbers of a tensor.

    Attributes:
        centre: their mean in float32, where it is far from zero beside their spread; else 0.
        spread: root mean square of their differences from the centre.
        peak: the largest of these differences.
        is_vector: whether no more than one axis is longer than 1.
    """

    centre: float
    spread: float
    peak: float
    is_vector: bool

    @classmethod
    def of(cls, values: NDArray[Any]) -> TensorSizes:
        """Return those of a tensor; NaN or infinite where it holds such numbers."""
        with np.errstate(invalid="ignore", over="ignore"):
            return cls._of(values)

    @classmethod
    def _of(cls, values: NDArray[Any]) -> TensorSizes:
        mean = sum(float(part.sum()) for part in _parts(values)) / max(values.size, 1)
        about_mean, about_zero = _spread(values, mean), _spread(values, 0.0)
        centred = abs(mean) > _FAR_FROM_ZERO * about_mean
        centre = float(np.float32(mean if centred else 0.0))
        spread = _spread(values, centre) if centred else about_zero
        ends = values.min(initial=centre) - centre, values.max(initial=centre) - centre
        return cls(centre, spread, float(np.abs(ends).max()), sum(n > 1 for n in values.shape) < 2)


def _spread(values: NDArray[Any], centre: float) -> float:
    total = sum(float(np.square(part - centre).sum()) for part in _parts(values))
    return float(np.sqrt(total / max(values.size, 1)))


def _parts(values: NDArray[Any]) -> Iterator[FloatArray]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        yield flat[start : start + _AT_A_TIME].astype(np.float64)
