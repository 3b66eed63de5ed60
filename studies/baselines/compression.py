"""Other ways to compress an adapter: each returns what a decoder has, and its bits.

Bits are those of the numbers and their scales, without any header, which favours these baselines
over a container. Modules travel in float16 beside everything below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError

Kind = Literal["fp32", "fp16", "int8", "int4"]
Numbers = NDArray[np.floating[Any]]
_SCALE_BITS = 16
_MODULE_BITS = 16


@dataclass(frozen=True, eq=False)
class Coded:
    """An adapter after coding and decoding.

    Attributes:
        tensors: what the decoder has.
        bits: that were sent.
    """

    tensors: AdapterTensors
    bits: float


def round_numbers(tensors: AdapterTensors, kind: Kind) -> Coded:
    """Return the adapter with every number rounded alike.

    Integers have one scale a component and factor, from the largest magnitude, symmetric.
    """
    if kind == "fp32":
        return Coded(tensors, 32.0 * tensors.n_params)
    if kind == "fp16":
        return Coded(_mapped(tensors, _half), 16.0 * tensors.n_params)
    width = {"int8": 8, "int4": 4}[kind]
    most = 2 ** (width - 1) - 1

    def rounded(strips: Float32Array) -> Float32Array:
        scale = np.abs(strips).max(axis=1, keepdims=True) / most
        scale = _half(np.where(scale > 0, scale, 1.0))
        return np.clip(np.rint(strips / scale), -most, most).astype(np.float32) * scale

    n_strips = 2 * int(tensors.ranks.sum())
    bits = width * _n_factors(tensors) + _SCALE_BITS * n_strips + _module_bits(tensors)
    return Coded(_mapped(tensors, rounded), bits)


def compeft(
    tensors: AdapterTensors, density: float, gain: float = 1.0, start: AdapterTensors | None = None
) -> Coded:
    """Return the adapter as ComPEFT sends it: signs of the largest changes and one magnitude.

    Yadav et al. 2023, arXiv 2311.13171: of what training changed in the factors, the `density`
    largest magnitudes keep their sign and get `gain` times the standard deviation of all; places
    cost their entropy, which Golomb coding comes near to.

    Args:
        tensors: factors as they were trained.
        density: share of the numbers that is kept.
        gain: α, which ComPEFT chooses on validation texts.
        start: factors before training, which the receiver can draw from their seed; None for zero.

    Raises:
        CodecError: a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise CodecError(f"ComPEFT keeps a share in (0, 1] of the numbers, got {density}.")
    changed = tensors if start is None else _combined(tensors, start, np.subtract)
    values = np.concatenate([x.ravel() for f in changed.factors for x in (f.left, f.right)])
    kept = max(round(density * values.size), 1)
    floor = np.partition(np.abs(values), values.size - kept)[values.size - kept]
    size = np.float32(gain * values.std())

    def ternary(strips: Float32Array) -> Float32Array:
        return (np.sign(strips) * (np.abs(strips) >= floor) * size).astype(np.float32)

    share = kept / values.size
    places = values.size * _binary_entropy(share)
    decoded = _mapped(changed, ternary)
    if start is not None:
        decoded = _combined(decoded, start, np.add)
    return Coded(decoded, places + kept + 32 + _module_bits(tensors))


def _combined(
    tensors: AdapterTensors, other: AdapterTensors, how: Callable[..., Float32Array]
) -> AdapterTensors:
    """Return an adapter with factors combined number by number with those of another."""
    factors = tuple(
        Factors(how(f.left, g.left), how(f.right, g.right))
        for f, g in zip(tensors.factors, other.factors, strict=True)
    )
    return replace(tensors, factors=factors)


def loraquant(tensors: AdapterTensors, share: float, group: int = 128) -> Coded:
    """Return the adapter in the manner of LoRAQuant: strong components in 2 bits, weak ones in 1.

    After arXiv 2510.26690: components sorted by singular value; the first that hold `share` of
    ΔW's squared norm are rounded to 2 bits, the rest to their signs, in groups with a float16 scale
    (and, for 2 bits, a float16 zero point). Without its optimisation of the factors.

    Raises:
        CodecError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise CodecError(f"LoRAQuant's share of the norm lies in [0, 1], got {share}.")
    bits, factors = _module_bits(tensors), []
    for f in tensors.factors:
        energy = np.square(np.linalg.norm(f.left, axis=0) * np.linalg.norm(f.right, axis=1))
        before = np.cumsum(energy) - energy
        strong = before < share * energy.sum()
        columns, rows = [], []
        for k in range(f.rank):
            code = _two_bits if strong[k] else _one_bit
            columns.append(code(f.left[:, k], group))
            rows.append(code(f.right[k], group))
            bits += sum(_group_bits(x.size, group, strong=bool(strong[k]))
                        for x in (f.left[:, k], f.right[k]))  # fmt: skip
        empty = (np.zeros_like(f.left), np.zeros_like(f.right))
        factors.append(
            Factors(np.stack(columns, axis=1), np.stack(rows)) if f.rank else Factors(*empty)
        )
    return Coded(replace(tensors, factors=tuple(factors), modules=_half_modules(tensors)), bits)


def _group_bits(size: int, group: int, *, strong: bool) -> float:
    n_groups = -(-size // group)
    return size * (2 if strong else 1) + n_groups * _SCALE_BITS * (2 if strong else 1)


def _two_bits(strip: Float32Array, group: int) -> Float32Array:
    """Round to four even levels between the extremes of each group."""

    def levels(x: Float32Array) -> Numbers:
        low, high = _half(x.min()), _half(x.max())
        scale = _half((high - low) / 3) or np.float32(1.0)
        return low + scale * np.clip(np.rint((x - low) / scale), 0, 3)

    return _grouped(strip, group, levels)


def _one_bit(strip: Float32Array, group: int) -> Float32Array:
    """Keep the signs and the mean magnitude of each group."""
    return _grouped(strip, group, lambda x: np.where(x < 0, -1.0, 1.0) * _half(np.abs(x).mean()))


def _grouped(
    strip: Float32Array, group: int, code: Callable[[Float32Array], Numbers]
) -> Float32Array:
    parts: Iterable[Float32Array] = (strip[i : i + group] for i in range(0, strip.size, group))
    return np.concatenate([code(part) for part in parts]).astype(np.float32)


def _mapped(
    tensors: AdapterTensors, code: Callable[[Float32Array], Float32Array]
) -> AdapterTensors:
    """Return the adapter with `code` applied to the components, one strip a row."""
    factors = tuple(
        Factors(np.ascontiguousarray(code(f.left.T).T), code(f.right)) if f.rank else f
        for f in tensors.factors
    )
    return replace(tensors, factors=factors, modules=_half_modules(tensors))


def _half_modules(tensors: AdapterTensors) -> dict[str, Float32Array]:
    return {name: _half(values) for name, values in tensors.modules.items()}


def _half(values: Float32Array | Numbers | np.floating) -> Float32Array:
    return np.asarray(values, dtype=np.float16).astype(np.float32)


def _n_factors(tensors: AdapterTensors) -> int:
    return sum(f.left.size + f.right.size for f in tensors.factors)


def _module_bits(tensors: AdapterTensors) -> float:
    return float(_MODULE_BITS * sum(m.size for m in tensors.modules.values()))


def _binary_entropy(share: float) -> float:
    if share in (0.0, 1.0):
        return 0.0
    return float(-share * np.log2(share) - (1 - share) * np.log2(1 - share))
