"""Other ways to compress an adapter: each returns what a decoder has, and its bits.

Bits are those of the numbers and their scales, without any header, which favours these baselines
over a container. Modules travel in float16 beside everything below it.

Strips are numbers in one dimension that share a scale: the columns and rows of factors, or tensors
of any other adapter. What is done to strips (`round_strip`, `step_strip`, `symbol_bits`) suits
every kind of adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import IntArray

Kind = Literal["fp32", "fp16", "int8", "int4"]
Numbers = NDArray[np.floating[Any]]
_SCALE_BITS = 16
_MODULE_BITS = 16
_RANGE_BITS = 16
"""For the smallest and the largest symbol of a model of symbols."""
CLIPPED = np.linspace(0.3, 1.0, 36)
"""Shares of the largest magnitude that are tried as the largest one that can be sent."""


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


COMPEFT_GAINS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
"""The grid of α in ComPEFT's paper."""


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


@dataclass(frozen=True, eq=False)
class Symbols:
    """Strips after rounding.

    Attributes:
        symbols: whole numbers of each strip.
        decoded: what a decoder has for each strip.
        scale_bits: of the scales.
    """

    symbols: tuple[IntArray, ...]
    decoded: tuple[Float32Array, ...]
    scale_bits: float

    def plain_bits(self, width: int) -> float:
        """Return the bits with so many for each symbol."""
        return width * sum(s.size for s in self.symbols) + self.scale_bits

    @property
    def coded_bits(self) -> float:
        """The bits with the symbols entropy coded; see `symbol_bits`."""
        return symbol_bits(self.symbols) + self.scale_bits


def round_strips(strips: Sequence[Float32Array], width: int, group: int | None = None) -> Symbols:
    """Return strips rounded to `width` bits, with a float16 scale for each or for each group.

    The scale is the one of `CLIPPED` with the least squared error, so that a few large numbers do
    not spoil the others. Levels are symmetric: with 2 bits four odd ones, with more an odd number
    of even ones, as is common.

    Args:
        strips: of one dimension.
        width: 2 to 8 bits.
        group: numbers that share a scale; None for all of a strip.

    Raises:
        CodecError: another width.
    """
    if not 2 <= width <= 8:
        raise CodecError(f"Numbers are rounded to 2 to 8 bits, not {width}.")
    symbols, decoded, n_scales = [], [], 0
    for strip in strips:
        size = group or max(strip.size, 1)
        parts = [_rounded(strip[i : i + size], width) for i in range(0, strip.size, size)]
        symbols.append(np.concatenate([part[0] for part in parts]))
        decoded.append(np.concatenate([part[1] for part in parts]))
        n_scales += len(parts)
    return Symbols(tuple(symbols), tuple(decoded), float(_SCALE_BITS * n_scales))


def _rounded(x: Float32Array, width: int) -> tuple[IntArray, Float32Array]:
    """Return symbols and what is decoded from them, at the best scale."""
    half = 2 ** (width - 1)
    shift, low, high = (0.5, -half, half - 1) if width == 2 else (0.0, 1 - half, half - 1)
    largest = float(np.abs(x).max(initial=0.0))
    steps = _half(CLIPPED * largest / (high + shift))
    steps = np.where(steps > 0, steps, np.float32(1.0))
    found = np.clip(np.rint(x / steps[:, None] - shift), low, high)
    values = ((found + shift) * steps[:, None]).astype(np.float32)
    best = int(np.square(values - x).sum(axis=1).argmin())
    return found[best].astype(np.int64), values[best]


def step_strips(strips: Sequence[Float32Array], step: float) -> Symbols:
    """Return strips rounded to multiples of one step, which is sent once in float16."""
    size = float(_half(np.float32(step)))
    symbols = tuple(np.rint(strip / size).astype(np.int64) for strip in strips)
    decoded = tuple((s * size).astype(np.float32) for s in symbols)
    return Symbols(symbols, decoded, float(_SCALE_BITS))


def symbol_bits(strips: Sequence[IntArray]) -> float:
    """Return the bits of an ideal adaptive coder of order 0, with their ranges.

    A model for each strip or one for all, whichever takes less, and a bit that says so.
    """
    together = adaptive_bits(np.concatenate([np.zeros(0, np.int64), *strips]))
    return 1.0 + min(together, sum(adaptive_bits(strip) for strip in strips))


def adaptive_bits(symbols: IntArray) -> float:
    """Return the bits of whole numbers between their smallest and largest, and of these two.

    Each is coded with the shares of the symbols before it, half a symbol of every kind counted in
    advance (Krichevsky and Trofimov, 1981), by a coder without any loss of its own.
    """
    if not symbols.size:
        return float(_RANGE_BITS)
    counts = np.bincount(symbols - symbols.min())
    k = len(counts)
    log = gammaln(symbols.size + k / 2) - gammaln(k / 2)
    log -= (gammaln(counts + 0.5) - gammaln(0.5)).sum()
    return float(log / np.log(2)) + _RANGE_BITS


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
