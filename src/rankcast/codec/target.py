"""The file of at most so many bytes that loses least of an adapter, without training.

What is chosen: how many components of each projection are sent, one step for all of them, which
projections get a step one exponent finer, and a dead zone. Candidates are compared by their exact
error and by an estimate of their bits (`losses`). Those that no other beats in both are a path from
small files to exact ones, and the last of them whose file fits is taken. No target changes the
path, so that a larger target never loses more.

At few bytes most of the gain comes from sending few components, each at a step at which it is worth
its bits: steps that are coarse enough for all components lose more than all that they keep. Lost
energy is not the model's loss, though: a file that loses less of it can answer worse.

Shapes: `N` projections, `R` the largest rank, `J` roundings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.losses import PLAIN, Losses, Rounding, left_of
from rankcast.codec.packing import Source, block_offsets, exponent_of_quality
from rankcast.codec.planner import rounded_entropy
from rankcast.codec.quantiser import EXPONENTS, exponent_near, step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import LEAST_BYTES
from rankcast.errors import InfeasibleSizeError
from rankcast.records import FloatArray, IntArray

COARSEST, FINEST = 30.0, 8e-4
"""Steps that are tried, as multiples of the weights' root mean square."""
DEAD_ZONES, FINEST_WITH_THEM = (0.6, 0.7, 0.8, 0.9), 0.8
"""Beside plain rounding, at steps that are not finer than this."""
ONE_CHUNK_BYTES = 16_384
"""A file of at most so many bytes is one chunk: what others cost would be missed elsewhere."""
_PRICES, _SHARES = 64, 6
"""How many prices of a bit, and parts of the projections to get finer steps, are tried."""
_FINER_BITS = 2.0
"""That a component takes more if it has to say what its step is."""
_FURTHER = 8
"""Options that are tried behind the last that fits: sizes do not grow at every place."""
_PATHS: WeakKeyDictionary[Source, list[_Option]] = WeakKeyDictionary()  # of sources in use


def pack_into(source: Source, target_bytes: float) -> Container:
    """Return the file of at most so many bytes, header included, that loses least of an adapter.

    Args:
        source: what to pack; an adapter without low-rank updates takes the finest steps that fit.
        target_bytes: of the whole file.

    Raises:
        InfeasibleSizeError: no file that keeps anything of the update is so small.
        CodecError: as `pack_at_exponent`.
    """
    path = _PATHS.get(source) or _PATHS.setdefault(source, _path(source))
    found, low, high = None, 0, len(path)
    while low < high:
        middle = (low + high) // 2
        file = path[middle].file(source)
        if file.n_bits <= 8 * target_bytes:
            found, low = file, middle + 1
        else:
            high = middle
    smallest = math.inf
    for option in reversed(path[low : low + _FURTHER]):
        file = option.file(source)
        if file.n_bits <= 8 * target_bytes:
            return file
        smallest = min(smallest, file.n_bits / 8)
    if found is None:
        trainable = bool(source.tensors.ranks.any()) and target_bytes >= LEAST_BYTES
        raise InfeasibleSizeError(int(smallest), int(target_bytes), trainable=trainable)
    return found


def file_of_roundings(
    source: Source, ranks: Sequence[int], roundings: Sequence[Rounding], exponent: int
) -> Container:
    """Return an adapter as a file, each projection with a rounding of its own.

    Small files are one chunk. Tensors beside the projections get steps that suit those of what is
    sent.

    Args:
        source: the adapter; its own offsets do not count.
        ranks: (N,) components that are sent.
        roundings: (N,) of each projection.
        exponent: of the common step.

    Raises:
        CodecError: as `pack_at_exponent`.
    """
    sent = source.tensors.truncated(np.array(ranks, dtype=np.int64))
    beside = block_offsets(sent)[len(ranks) :]
    known = {name: int(o[0]) for name, o in zip(sent.shapes, beside, strict=True)}
    planned = replace(
        source,
        tensors=left_of(source.tensors, ranks, roundings),
        offsets=tuple(rounding.exponent - exponent for rounding in roundings),
        tensor_offsets={**known, **source.tensor_offsets},
    )
    file = pack_at_exponent(planned, exponent, 1, 1)
    return file if file.n_bits <= 8 * ONE_CHUNK_BYTES else pack_at_exponent(planned, exponent)


@dataclass(frozen=True, slots=True)
class _Option:
    """What may be sent.

    Attributes:
        ranks: components of each projection.
        rounding: of their numbers.
        finer: projections whose step is one exponent finer.
    """

    ranks: tuple[int, ...]
    rounding: Rounding
    finer: tuple[int, ...] = ()

    def file(self, source: Source) -> Container:
        """Return it as a file; see `file_of_roundings`."""
        offsets = list(source.offsets or [0] * len(self.ranks))
        for i in self.finer:
            offsets[i] -= 1
        roundings = [self.rounding.above(offset) for offset in offsets]
        return file_of_roundings(source, self.ranks, roundings, self.rounding.exponent)


@dataclass(frozen=True, eq=False, slots=True)
class _Candidate:
    """An option with its estimated bits and its exact error."""

    bits: float
    error: float
    option: _Option


def _path(source: Source) -> list[_Option]:
    """Return what may be sent, from few bits to many, each with a smaller error than those before.

    What loses as much as sending nothing is left out.
    """
    tensors = source.tensors
    roundings = roundings_of(tensors)
    losses = Losses.of(tensors, roundings, source.offsets)
    least = float(losses.energies.sum())
    if not least > 0:
        ranks = tuple(tensors.ranks.tolist())
        return [_Option(ranks, r) for r in roundings if r.dead_zone == PLAIN]
    path: list[_Option] = []
    for found in sorted(_candidates(tensors, roundings, losses), key=lambda c: (c.bits, c.error)):
        if found.error < least:
            path.append(found.option)
            least = found.error
    return path


def roundings_of(tensors: AdapterTensors) -> list[Rounding]:
    """Return what is tried: for each dead zone, steps from coarse to fine."""
    coarse, finer, fine = (
        exponent_of_quality(tensors, quality) for quality in (COARSEST, FINEST_WITH_THEM, FINEST)
    )
    plain = [Rounding(e) for e in range(coarse, fine - 1, -1)]
    return plain + [Rounding(e, zone) for zone in DEAD_ZONES for e in range(coarse, finer - 1, -1)]


def _candidates(
    tensors: AdapterTensors, roundings: Sequence[Rounding], losses: Losses
) -> Iterator[_Candidate]:
    """Yield ranks that pay at some price, at every rounding, and whole adapters between two."""
    beside = _Beside.of(tensors)
    order = np.argsort(-losses.energies, kind="stable")
    for j, rounding in enumerate(roundings):
        choices = np.array(_choices(losses.errors[j], losses.bits[j], tensors.ranks))
        each = np.arange(choices.shape[1]), choices
        bits = losses.bits[j][each].sum(axis=1) + beside.bits(choices, rounding.exponent)
        errors = losses.errors[j][each].sum(axis=1)
        for ranks, b, e in zip(choices.tolist(), bits.tolist(), errors.tolist(), strict=True):
            yield _Candidate(b, e, _Option(tuple(ranks), rounding))
        whole = _Option(tuple(tensors.ranks.tolist()), rounding)
        b, e = float(bits[-1]) + _FINER_BITS * sum(whole.ranks), float(errors[-1])
        for some, more, less in _finer(losses, roundings, j, order):
            yield _Candidate(b + more, e - less, replace(whole, finer=some))


def _choices(errors: FloatArray, bits: FloatArray, most: IntArray) -> list[IntArray]:
    """Return (N,) ranks that pay at some price of a bit, equal ones, and last the whole adapter.

    Args:
        errors: (N, R + 1).
        bits: (N, R + 1).
        most: (N,) ranks of the adapter.
    """
    saved = -np.diff(errors, axis=1) / np.maximum(np.diff(bits, axis=1), 1.0)
    prices = np.unique(saved[saved > 0])
    if len(prices) > _PRICES:
        prices = np.quantile(prices, np.linspace(0, 1, _PRICES))
    # Just below what a component saves for each bit, it is worth its bits.
    chosen = (errors + 0.999 * prices[:, None, None] * bits).argmin(axis=2)
    whole = int(most.max(initial=0))
    equal = [*(2**k for k in range(whole.bit_length()) if 2**k < whole), whole]
    return [*np.unique(np.minimum(chosen, most), axis=0), *(np.minimum(r, most) for r in equal)]


def _finer(
    losses: Losses, roundings: Sequence[Rounding], j: int, order: IntArray
) -> Iterator[tuple[tuple[int, ...], float, float]]:
    """Yield some projections of a whole adapter, and bits and error of their getting finer steps.

    Args:
        losses: of the adapter.
        roundings: that are tried.
        j: place of the common one.
        order: projections, those with the most energy first.
    """
    finer = replace(roundings[j], exponent=roundings[j].exponent - 1)
    if j + 1 == len(roundings) or roundings[j + 1] != finer:
        return
    more = (losses.bits[j + 1] - losses.bits[j])[:, -1][order].cumsum()
    less = (losses.errors[j] - losses.errors[j + 1])[:, -1][order].cumsum()
    for n in sorted({len(order) * k // _SHARES for k in range(1, _SHARES)} - {0}):
        yield tuple(order[:n].tolist()), float(more[n - 1]), float(less[n - 1])


@dataclass(frozen=True, eq=False)
class _Beside:
    """Bits of the tensors beside the projections, whose steps follow the common one.

    Attributes:
        squares: (N, R + 1) sums of the squares of the numbers of the first components.
        numbers: (N, R + 1) how many they are.
        table: their bits, by how much the common exponent lies above what is `good` for the rest.
    """

    squares: FloatArray
    numbers: FloatArray
    table: FloatArray

    @classmethod
    def of(cls, tensors: AdapterTensors) -> _Beside:
        """Return those of an adapter."""
        n, r_max = len(tensors.projections), int(tensors.ranks.max(initial=0))
        squares = np.zeros((n, r_max + 1))
        for i, sizes in enumerate(tensors.component_sizes):
            squares[i, 1 : 1 + len(sizes.norms)] = 2 * sizes.norms  # of balanced factors
        widths = np.array([p.d_in + p.d_out for p in tensors.projections], dtype=np.float64)
        numbers = widths[:, None] * np.arange(r_max + 1)
        good = exponent_of_quality(tensors, 1.0)
        offsets = dict(zip(tensors.modules, block_offsets(tensors)[n:], strict=True))
        known = list(tensors.module_sizes.items())
        exponents = [good + int(offsets[name][0]) for name, _ in known]
        steps = [float(step_of(int(np.clip(e, *EXPONENTS)))) for e in exponents]
        spreads = np.array([s.spread / step for (_, s), step in zip(known, steps, strict=True)])
        counts = np.array([float(np.prod(tensors.shapes[name][0])) for name, _ in known])
        coarser = [float(step_of(e)) for e in range(EXPONENTS[0], EXPONENTS[1] + 1)]
        table = np.array([(counts * rounded_entropy(spreads / step)).sum() for step in coarser])
        return cls(squares.cumsum(axis=1), numbers, table)

    def bits(self, ranks: IntArray, exponent: int) -> FloatArray:
        """Return (C,) of them beside the first (C, N) components, at a common exponent."""
        each = np.arange(ranks.shape[1]), ranks
        squares, numbers = self.squares[each].sum(axis=1), self.numbers[each].sum(axis=1)
        sizes = np.sqrt(squares / np.maximum(numbers, 1.0))
        above = [exponent - (exponent_near(size) if size else 0) for size in sizes.tolist()]
        return np.where(sizes > 0, self.table[np.clip(above, *EXPONENTS) - EXPONENTS[0]], 0.0)
