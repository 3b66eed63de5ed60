"""Ranks and quantiser steps together: the most gain for a number of bits on the air.

Shapes: `N` projections, `R` = r_max, `E` step exponents that are tried.

Goes beyond the paper, which sends 32 bits for every parameter: a component that is sent coarsely
takes fewer bits and keeps a share of its gain, so that precision is one more thing to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankcast.codec.container import Container
from rankcast.codec.packing import Source, pack
from rankcast.codec.quantise import EXPONENTS, PER_RADIX, exponent_near
from rankcast.codec.rates import Spreads
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.link.capacity import RateModel
from rankcast.link.costs import LinkCostModel
from rankcast.records import FloatArray, IntArray

FINEST, COARSEST = 0.1, 10.0
"""Steps that are tried, as multiples of the weights' root mean square."""
_HALVINGS = 60
_TRIALS = 9


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
    exponents = _exponents(spreads)
    each = np.repeat(exponents[:, None], len(gains), axis=1)
    values = _cumulative(gains * spreads.kept_share(each))
    bits = _cumulative(spreads.component_bits(each).astype(np.float64))
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


def coded_costs(
    spreads: Spreads, exponents: IntArray, rate_model: RateModel, overhead_bits: float = 0.0
) -> LinkCostModel:
    """Return link costs in bits as coded at (N,) step exponents, for any allocator.

    Raises:
        ConfigError: a negative overhead.
    """
    return LinkCostModel(spreads.component_bits(exponents), 1.0, rate_model, overhead_bits)


def _exponents(spreads: Spreads) -> IntArray:
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


def _cumulative(components: FloatArray) -> FloatArray:
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


def pack_planned(source: Source, gains: FloatArray, budget_bits: float) -> Container:
    """Return an adapter with the ranks and steps that gain most, as a file within a budget.

    Args:
        source: what to pack; its own offsets give way to the plan's.
        gains: (N, R) loss removed by each component.
        budget_bits: for the whole file, header and modules included.

    Raises:
        ConfigError: as `plan_coding`.
        CodecError: as `pack`.
        InfeasibleDeadlineError: not even header and modules fit.
    """
    spreads = Spreads.of(source.tensors)

    def planned(component_bits: float) -> Container:
        plan = plan_coding(spreads, gains, component_bits)
        cut = source.tensors.truncated(plan.ranks)
        return pack(replace(source, tensors=cut, offsets=plan.offsets), plan.exponent)

    found, low, high = planned(0.0), 0.0, float(budget_bits)
    smallest = 8 * len(found.to_bytes())
    if smallest > budget_bits:
        raise InfeasibleDeadlineError(smallest, float(budget_bits))
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        tried = planned(middle)
        if 8 * len(tried.to_bytes()) <= budget_bits:
            found, low = tried, middle
        else:
            high = middle
    return found
