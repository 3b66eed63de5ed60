"""Uniform quantisers whose cells nest by threes, so that a finer one only adds a digit.

A step is 3^(exponent / 6), an exponent an integer. Rounding to multiples of a step and of a third
of it gives indices q and 3·q + d with d in {-1, 0, 1}: a balanced ternary digit. Reconstruction is
q times the step in float32, one IEEE rounding, hence the same on every machine.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankcast.errors import CodecError

Indices = NDArray[np.int32]
Float32Array = NDArray[np.float32]

RADIX = 3
PER_RADIX = 6
"""Exponents to a factor of `RADIX`."""
LARGEST_INDEX = 2**24
"""Integers up to here are exact in float32."""
EXPONENTS = (-180, 120)
"""Lowest and highest exponent: steps from 5e-15 to 3.5e9."""
_ROOTS = (1.0, 1.2009369551760027, 1.4422495703074083, 1.7320508075688772, 2.080083823051904,
          2.498049532966813)  # fmt: skip
"""3^(k/6), k = 0..5, as IEEE doubles: `**` may differ in the last bit between machines."""


@cache
def step_of(exponent: int) -> np.float32:
    """Return 3^(exponent / 6) as every machine computes it.

    Raises:
        CodecError: an exponent outside `EXPONENTS`.
    """
    low, high = EXPONENTS
    if not low <= exponent <= high:
        raise CodecError(f"A step exponent must lie in {low}..{high}, got {exponent}.")
    whole, part = divmod(exponent, PER_RADIX)
    power = float(RADIX ** abs(whole))  # exact: 3^30 < 2^53
    return np.float32(_ROOTS[part] * power if whole >= 0 else _ROOTS[part] / power)


def exponent_near(step: float) -> int:
    """Return the exponent whose step is nearest to `step` on a logarithmic scale.

    Raises:
        CodecError: no positive finite number.
    """
    if not (math.isfinite(step) and step > 0):
        raise CodecError(f"A quantiser step must be positive and finite, got {step}.")
    low, high = EXPONENTS
    return min(max(round(PER_RADIX * math.log(step) / math.log(RADIX)), low), high)


def quantise(values: ArrayLike, exponent: int) -> Indices:
    """Return the index of the cell of each value.

    Raises:
        CodecError: NaN or infinity, or a value of more than 2^24 steps.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise CodecError(
            "The adapter holds NaN or infinite weights, so it cannot be coded; its training has "
            "diverged."
        )
    scaled = np.rint(array / np.float64(step_of(exponent)))
    if scaled.size and np.abs(scaled).max() > LARGEST_INDEX:
        raise CodecError(
            f"A weight of {np.abs(array).max():.3g} is more than 2^24 steps of "
            f"{step_of(exponent):.3g}; choose a coarser step."
        )
    return scaled.astype(np.int32)


def dequantise(indices: Indices, exponent: int) -> Float32Array:
    """Return the centre of each cell."""
    return indices.astype(np.float32) * step_of(exponent)


def coarser(indices: Indices, digits: int = 1) -> Indices:
    """Return the indices with their last `digits` ternary digits taken away."""
    for _ in range(digits):
        indices = np.floor_divide(indices + 1, RADIX)
    return indices


def finer(indices: Indices, digit: Indices) -> Indices:
    """Return the indices with one more ternary digit, in {-1, 0, 1}."""
    return RADIX * indices + digit


def at_exponent(indices: Indices, exponent: int, other: int) -> Indices:
    """Return the cells of another step in which the middles of some cells lie.

    The same on every machine: digits are taken away, or IEEE doubles divided, multiplied, rounded.
    """
    digits, rest = divmod(other - exponent, PER_RADIX)
    if not rest and digits >= 0:
        return coarser(indices, digits)
    ratio = np.float64(step_of(exponent)) / np.float64(step_of(other))
    limited = np.clip(np.rint(indices * ratio), -2 * LARGEST_INDEX, 2 * LARGEST_INDEX)
    return limited.astype(np.int32)
