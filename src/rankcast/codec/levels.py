"""Levels: what may be sent of each projection, from nothing to the most, in coded bits.

A level is a rank and a step of the quantiser. Of all ranks and steps of a projection those are kept
that no mixture of others beats: the upper hull of what is kept of the gain over the coded bits.
Along it a bit brings less and less, so that whatever chooses ranks chooses levels just as well:
solver, belief, policy. Ranks at 32 bits a number are the case of the paper.

Shapes: `N` projections, `R` the largest rank, `E` steps that are tried, `K` levels beside nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.packing import Source, block_offsets, exponent_of_quality
from rankcast.codec.planner import Spreads, cumulative, exponents_of
from rankcast.errors import ConfigError
from rankcast.link.capacity import RateModel
from rankcast.link.costs import LinkCostModel
from rankcast.records import AdapterLayout, FloatArray, IntArray

N_LEVELS = 8


@dataclass(frozen=True, eq=False)
class Levels:
    """Operating points of every projection.

    Attributes:
        ranks: (N, K + 1) components at each level; the first level is nothing.
        exponents: (N, K + 1) of the step 3^(e / 6); of no meaning at rank 0.
        bits: (N, K + 1) coded bits, whole numbers, growing along K.
        gains: (N, K + 1) what is kept, in the unit of the gains; the gain of a bit falls along K.
        overhead_bits: of a file beside the components: header, tensors beside the projections.
    """

    ranks: IntArray
    exponents: IntArray
    bits: IntArray
    gains: FloatArray
    overhead_bits: float = 0.0

    @classmethod
    def of(
        cls, source: Source, gains: FloatArray | None = None, n_levels: int = N_LEVELS
    ) -> Levels:
        """Return the levels of an adapter, with the overhead of its file.

        Args:
            source: the adapter, balanced, components in order of importance.
            gains: (N, R) loss removed by each component; None for the energy of its update.
            n_levels: K.

        Raises:
            ConfigError: gains of another shape or negative, or fewer than one level.
            CodecError: an adapter without components, or NaN or infinite weights.
        """
        found = cls.of_spreads(Spreads.of(source.tensors), gains, n_levels)
        nothing = np.zeros(len(found.bits), dtype=np.int64)
        return replace(found, overhead_bits=float(file_of(source, found, nothing).n_bits))

    @classmethod
    def of_spreads(
        cls,
        spreads: Spreads,
        gains: FloatArray | None = None,
        n_levels: int = N_LEVELS,
        overhead_bits: float = 0.0,
    ) -> Levels:
        """Return the levels of an adapter whose weights have some spreads; see `of`."""
        if n_levels < 1:
            raise ConfigError(f"A projection needs at least one level, got {n_levels}.")
        worth = _energies(spreads) if gains is None else np.asarray(gains, dtype=np.float64)
        if worth.shape != spreads.left.shape or not (np.isfinite(worth) & (worth >= 0)).all():
            raise ConfigError(
                f"gains must be finite and at least 0, one row for each projection and one column "
                f"for each component: {spreads.left.shape}, got {worth.shape}."
            )
        exponents = exponents_of(spreads)
        each = np.repeat(exponents[:, None], len(worth), axis=1)
        values = cumulative(worth * spreads.kept_share(each))
        bits = np.ceil(cumulative(spreads.component_bits(each).astype(np.float64)))
        points = [
            thinned(hull(bits[:, n], values[:, n]), n_levels) for n in range(len(worth))
        ]  # each (K + 1, 4): bits, gain, place of the exponent, rank
        table = np.array(points)
        at = table[..., 2].astype(np.int64)
        return cls(
            ranks=table[..., 3].astype(np.int64),
            exponents=exponents[at],
            bits=table[..., 0].astype(np.int64),
            gains=table[..., 1],
            overhead_bits=overhead_bits,
        )

    @property
    def n_levels(self) -> int:
        """K."""
        return self.bits.shape[1] - 1

    @cached_property
    def step_gains(self) -> FloatArray:
        """(N, K) what each level keeps more than the one before."""
        return np.diff(self.gains, axis=1)

    @cached_property
    def weights(self) -> FloatArray:
        """(N, K) bits of each level beyond the one before, as multiples of their mean."""
        more = np.diff(self.bits, axis=1).astype(np.float64)
        return more / more.mean()

    def layout(self, layout: AdapterLayout) -> AdapterLayout:
        """Return a layout whose ranks are levels, for allocators, policies and environments."""
        return replace(layout, r_max=self.n_levels)

    def link_costs(self, rate_model: RateModel) -> LinkCostModel:
        """Return what levels cost on a link, in coded bits, the file's overhead included."""
        more = np.diff(self.bits, axis=1)
        return LinkCostModel(more, 1.0, rate_model, self.overhead_bits)

    def chosen(self, plan: IntArray) -> tuple[IntArray, IntArray]:
        """Return the (N,) ranks and (N,) step exponents of an (N,) plan of levels."""
        each = np.arange(len(self.bits)), plan
        return self.ranks[each], self.exponents[each]


def file_of(source: Source, levels: Levels, plan: IntArray) -> Container:
    """Return an adapter at an (N,) plan of levels, as a file of one chunk.

    Tensors beside the projections get the steps that suit the whole adapter, whatever the plan.

    Raises:
        CodecError: NaN or infinite weights.
    """
    ranks, exponents = levels.chosen(plan)
    sent = exponents[ranks > 0]
    common = exponent_of_quality(source.tensors, 1.0)
    exponent = int(np.median(sent)) if sent.size else common
    beside = block_offsets(source.tensors)[len(ranks) :]
    of_tensors = {
        name: int(offsets[0]) + common - exponent
        for name, offsets in zip(source.tensors.shapes, beside, strict=True)
    }
    planned = replace(
        source,
        tensors=source.tensors.truncated(ranks),
        offsets=tuple(np.where(ranks > 0, exponents - exponent, 0).tolist()),
        tensor_offsets={**of_tensors, **source.tensor_offsets},
    )
    return pack_at_exponent(planned, exponent, 1, 1)


def _energies(spreads: Spreads) -> FloatArray:
    """Return (N, R) squared norms of the updates of single components."""
    widths = spreads.left_width.astype(np.float64) * spreads.right_width
    return np.square(spreads.left * spreads.right) * widths[:, None]


def hull(bits: FloatArray, gains: FloatArray) -> FloatArray:
    """Return (H, 4) bits, gain, place of the exponent and rank along the upper hull, from nothing.

    Args:
        bits: (E, R + 1) of a projection.
        gains: (E, R + 1).
    """
    place, rank = np.indices(bits.shape)
    points = np.column_stack([x.ravel() for x in (bits, gains, place, rank)]).astype(np.float64)
    points = points[np.lexsort((-points[:, 1], points[:, 0]))]
    kept = [np.array([0.0, 0.0, points[0, 2], 0.0])]
    for point in points[points[:, 3] > 0]:
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], point):
            kept.pop()
        if point[1] > kept[-1][1] and point[0] > kept[-1][0]:
            kept.append(point)
    return np.array(kept)


def _slope(one: FloatArray, other: FloatArray) -> float:
    return (other[1] - one[1]) / max(other[0] - one[0], 1e-9)


def thinned(points: FloatArray, n_levels: int) -> FloatArray:
    """Return nothing and `n_levels` points of a hull; the last one again where there are fewer.

    Again and again the point is left out whose gain a mixture of its neighbours comes nearest to,
    as a share of its own, so that coarse levels are as dense as fine ones.
    """
    kept = list(points)
    while len(kept) > n_levels + 1:
        missed = [
            (b[1] - (a[1] + _slope(a, c) * (b[0] - a[0]))) / max(b[1], 1e-300)
            for a, b, c in zip(kept, kept[1:], kept[2:], strict=False)
        ]
        del kept[1 + int(np.argmin(missed))]
    return np.array(kept + [kept[-1]] * (n_levels + 1 - len(kept)))
