"""The most of an adapter within a number of bits: steps, or ranks and steps together.

`pack_within` takes the finest steps that fit, `pack_planned` the ranks and steps that gain most.
`Spreads` predicts, without coding, the bits of every component at every step and what rounding
leaves of it: the coder models each strip, a column of a left factor or a row of a right one, as
rounded Gaussian numbers (docs/format.md), so entropy and error of that model at the strips' own
spreads say both. `plan_coding` chooses among them.

Shapes: `N` projections, `R` the largest rank, `E` step exponents that are tried.

Goes beyond the paper, which sends 32 bits for every parameter: a component that is sent coarsely
takes fewer bits and keeps a share of its gain, so that precision is one more thing to choose.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.packing import Source, exponent_of_quality
from rankcast.codec.quantiser import EXPONENTS, PER_RADIX, exponent_near, step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, ConfigError, InfeasibleDeadlineError
from rankcast.link.capacity import scipy
from rankcast.records import FloatArray, IntArray

FINEST, COARSEST = 0.1, 10.0
"""Steps that are tried, as multiples of the weights' root mean square."""
SIDE_BITS = 12.0
"""Bits of a component beside its numbers: classes of its strips, its share of the rest."""
_NARROWEST, _WIDEST, _POINTS = 0.02, 30.0, 512
_HALVINGS = 60
_TRIALS = 9


@dataclass(frozen=True, eq=False)
class Spreads:
    """Sizes of the weights of every component.

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
    distinct, inverse = np.unique(exponents, return_inverse=True)
    steps = np.array([float(step_of(int(e))) for e in distinct])
    return steps[inverse].reshape(np.shape(exponents))[..., None]


@dataclass(frozen=True, eq=False)
class CodedPlan:
    """Ranks and precisions of an adapter.

    Attributes:
        ranks: (N,).
        exponents: (N,) of the quantiser's steps 3^(e / 6); of no meaning at rank 0.
        payload_bits: that its components are expected to take.
        gain: what they are expected to remove from the loss, in the unit of the gains.
    """

    ranks: IntArray
    exponents: IntArray
    payload_bits: float
    gain: float

    @property
    def exponent(self) -> int:
        """The median exponent of what is sent."""
        sent = self.exponents[self.ranks > 0]
        return int(np.median(sent)) if sent.size else 0

    @property
    def offsets(self) -> tuple[int, ...]:
        """(N,) what each projection's exponent has above the median."""
        return tuple(np.where(self.ranks > 0, self.exponents - self.exponent, 0).tolist())


def plan_coding(spreads: Spreads, gains: FloatArray, budget_bits: float) -> CodedPlan:
    """Return the ranks and steps that gain most within a budget.

    Every projection takes the rank and the step at which gain less price is greatest, and the
    price rises until the bits fit (Everett's method): optimal for what it spends, and at most one
    projection's next choice away from the budget. A component keeps of its gain what rounding
    leaves of its energy.

    Differs from the paper: ranks at 32 bits a parameter.

    Args:
        spreads: of the adapter (`Spreads.of`).
        gains: (N, R) loss removed by each component.
        budget_bits: for the components; header and modules are the caller's to subtract.

    Raises:
        ConfigError: gains of another shape, or not finite.
        InfeasibleDeadlineError: a budget below zero.
    """
    gains = np.asarray(gains, dtype=np.float64)
    if gains.shape != spreads.left.shape or not np.isfinite(gains).all():
        raise ConfigError(
            f"gains must be finite, one row for each projection and one column for each "
            f"component: {spreads.left.shape}, got {gains.shape}."
        )
    if not budget_bits >= 0:
        raise InfeasibleDeadlineError(0.0, float(budget_bits))
    exponents = exponents_of(spreads)
    each = np.repeat(exponents[:, None], len(gains), axis=1)
    values = cumulative(gains * spreads.kept_share(each))
    bits = cumulative(spreads.component_bits(each).astype(np.float64))
    best = values.max(axis=(0, 2)).sum()
    low, high = 0.0, best + 1e-300  # at this price per bit nothing is worth sending
    chosen = _cheapest(values, bits, high)
    for _ in range(_HALVINGS):
        price = np.sqrt(low * high) if low > 0 else high / 1024
        tried = _cheapest(values, bits, price)
        if _total(bits, tried) <= budget_bits:
            chosen, high = tried, price
        else:
            low = price
        if low == 0 and high < best * 1e-30:
            break
    at, ranks = chosen
    return CodedPlan(ranks, exponents[at], _total(bits, chosen), _total(values, chosen))


def pack_within(source: Source, budget_bits: float) -> Container:
    """Return an adapter at the finest steps whose whole file fits a budget.

    The finest common step that fits, and for as many projections as fit one step finer, those whose
    components have the most energy first.

    Raises:
        InfeasibleDeadlineError: not even the coarsest step fits.
        CodecError: as `pack_at_exponent`.
    """
    coarsest = exponent_of_quality(source.tensors, 30.0)
    finest = exponent_of_quality(source.tensors, 1e-3)
    smallest = pack_at_exponent(source, coarsest).n_bits
    if smallest > budget_bits:
        raise InfeasibleDeadlineError(smallest, budget_bits)
    exponent = finest + bisect_left(
        range(finest, coarsest), 1, key=lambda e: pack_at_exponent(source, e).n_bits <= budget_bits
    )
    energy = [sum(sizes.squares) for sizes in source.tensors.component_sizes]
    order = sorted(range(len(energy)), key=lambda i: -energy[i])

    def with_finer(n: int) -> Container:
        offsets = list(source.offsets or (0,) * len(order))
        for i in order[:n]:
            offsets[i] -= 1
        return pack_at_exponent(replace(source, offsets=tuple(offsets)), exponent)

    best, low, high = with_finer(0), 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        tried = with_finer(middle)
        if tried.n_bits <= budget_bits:
            best, low = tried, middle
        else:
            high = middle - 1
    return best


def pack_planned(source: Source, budget_bits: float, gains: FloatArray | None = None) -> Container:
    """Return an adapter with the ranks and steps that gain most, as a file within a budget.

    Args:
        source: what to pack; its own offsets give way to the plan's.
        budget_bits: for the whole file, header and modules included.
        gains: (N, R) loss removed by each component; as learned in training if left out.

    Raises:
        ConfigError: as `plan_coding`, or nothing was learned.
        CodecError: as `pack_at_exponent`.
        InfeasibleDeadlineError: not even header and modules fit.
    """
    spreads, worth = Spreads.of(source.tensors), source.gains if gains is None else gains
    if worth is None:
        raise ConfigError(
            "Planning ranks and steps needs a run of rankcast, which has learned what its "
            "components are worth."
        )

    def planned(component_bits: float) -> Container:
        plan = plan_coding(spreads, worth, component_bits)
        cut = source.tensors.truncated(plan.ranks)
        return pack_at_exponent(replace(source, tensors=cut, offsets=plan.offsets), plan.exponent)

    best, low, high = planned(0.0), 0.0, float(budget_bits)
    if best.n_bits > budget_bits:
        raise InfeasibleDeadlineError(best.n_bits, float(budget_bits))
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        tried = planned(middle)
        if tried.n_bits <= budget_bits:
            best, low = tried, middle
        else:
            high = middle
    return best


def exponents_of(spreads: Spreads) -> IntArray:
    """Return (E,) exponents from `FINEST` to `COARSEST`."""
    energy = np.square(spreads.left) * spreads.left_width[:, None]
    energy = energy + np.square(spreads.right) * spreads.right_width[:, None]
    numbers = (spreads.left > 0).sum(axis=1) @ (spreads.left_width + spreads.right_width)
    rms = float(np.sqrt(energy.sum() / max(numbers, 1)))
    if not rms > 0:
        raise ConfigError("The adapter is zero: there is nothing to plan.")
    low, high = (exponent_near(rms * share) for share in (FINEST, COARSEST))
    low, high = max(low, EXPONENTS[0] + 4 * PER_RADIX), min(high, EXPONENTS[1] - 4 * PER_RADIX)
    return np.arange(low, high + 1)


def cumulative(components: FloatArray) -> FloatArray:
    """Return (E, N, R + 1) sums over the first components of (E, N, R)."""
    none = np.zeros((*components.shape[:2], 1))
    return np.concatenate([none, components.cumsum(axis=2)], axis=2)


def _cheapest(values: FloatArray, bits: FloatArray, price: float) -> tuple[IntArray, IntArray]:
    """Return (N,) places of the exponents and (N,) ranks with the greatest value less price."""
    worth = (values - price * bits).transpose(1, 0, 2)
    n, _, ranks = worth.shape
    # Ties go to rank 0, whose place among the exponents means nothing.
    at, rank = np.divmod(worth.reshape(n, -1).argmax(axis=1), ranks)
    return at, rank


def _total(table: FloatArray, chosen: tuple[IntArray, IntArray]) -> float:
    at, ranks = chosen
    return float(table[at, np.arange(len(ranks)), ranks].sum())
