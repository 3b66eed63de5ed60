"""Levels near a size, to choose from where what each loses is measured.

By the energy of the update a few components at a fine step are best. A model may lose less with all
of them at a coarse one. So both are among the levels of a projection: what energy takes at some
prices of a bit, dead zones included, and all components at some steps. Prices and steps lie around
those at which the whole adapter has the size.

Shapes: `N` projections, `R` the largest rank, `J` roundings, `K` levels beside nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rankcast.codec.container import Container
from rankcast.codec.levels import Levels, hull
from rankcast.codec.losses import PLAIN, Losses, Rounding
from rankcast.codec.packing import Source, exponent_of_quality
from rankcast.codec.target import file_of_roundings, roundings_of
from rankcast.codec.tensors import Factors
from rankcast.errors import CodecError
from rankcast.records import FloatArray, IntArray

PRICES = (1 / 4, 1.0, 4.0)
"""Of a bit, as multiples of the one at which the adapter has the size."""
STEPS = (-2, 0, 2, 4)
"""How many exponents finer than the finest common step that fits; two are a factor of 3^(1/3)."""
_HALVINGS = 80


@dataclass(frozen=True, eq=False)
class CodedLevels:
    """Levels of an adapter that can be decoded and packed.

    Attributes:
        source: the adapter.
        levels: ranks, steps, counted bits and kept energy; bits never fall along K.
        dead_zones: (N, K + 1) of each level [steps].
        counts: (N,) how many levels a projection has; the last one is there again behind them.
    """

    source: Source
    levels: Levels
    dead_zones: FloatArray
    counts: IntArray

    @classmethod
    def near(cls, source: Source, budget_bits: float) -> Self:
        """Return the levels of an adapter that may be of use in a file of a size.

        Args:
            source: the adapter, balanced, components in order of importance.
            budget_bits: of the file, about.

        Raises:
            CodecError: an adapter without components, or NaN or infinite weights.
        """
        tensors = source.tensors
        if not tensors.ranks.any():
            raise CodecError("The adapter has no components.")
        roundings = roundings_of(tensors)
        losses = Losses.of(tensors, roundings)
        points = zip(
            _by_energy(losses, budget_bits),
            _whole(losses, roundings, tensors.ranks, budget_bits),
            strict=True,
        )
        nothing = (0.0, 0.0, 0.0, 0.0)
        rows = [
            np.array(sorted({p if p[3] else nothing for p in (nothing, *some, *whole)}))
            for some, whole in points
        ]
        counts = np.array([len(row) for row in rows])
        longest = counts.max()
        table = np.array([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
        at = table[..., 2].astype(np.int64)
        exponents = np.array([r.exponent for r in roundings])[at]
        zones = np.array([r.dead_zone for r in roundings])[at]
        bits, ranks = np.ceil(table[..., 0]).astype(np.int64), table[..., 3].astype(np.int64)
        return cls(source, Levels(ranks, exponents, bits, table[..., 1]), zones, counts)

    def factors(self, i: int, level: int) -> Factors:
        """Return a projection as a reader decodes it."""
        whole, rank = self.source.tensors.factors[i], int(self.levels.ranks[i, level])
        rounding = self._rounding(i, level)
        sent = whole.left[:, :rank], whole.right[:rank]
        left, right = (rounding.decoded(rounding.indices(x)) for x in sent)
        return Factors(left, right)

    def file(self, plan: IntArray) -> Container:
        """Return the adapter at an (N,) plan of levels, as a file.

        Raises:
            CodecError: NaN or infinite weights.
        """
        ranks, exponents = self.levels.chosen(plan)
        sent = exponents[ranks > 0]
        common = exponent_of_quality(self.source.tensors, 1.0)
        if sent.size:
            common = int(np.median(sent))
        roundings = [
            self._rounding(i, int(k)) if ranks[i] else Rounding(common) for i, k in enumerate(plan)
        ]
        return file_of_roundings(self.source, ranks.tolist(), roundings, common)

    def _rounding(self, i: int, level: int) -> Rounding:
        return Rounding(int(self.levels.exponents[i, level]), float(self.dead_zones[i, level]))


_Point = tuple[float, float, float, float]
"""Bits, energy that is kept, place of the rounding, and rank."""


def _by_energy(losses: Losses, budget_bits: float) -> list[list[_Point]]:
    """Return for each projection what keeps most energy at each price of a bit."""
    gains = losses.energies[:, None] - losses.errors
    hulls = [hull(losses.bits[:, i], gains[:, i]) for i in range(len(losses.energies))]

    def chosen(price: float) -> list[FloatArray]:
        return [h[np.argmax(h[:, 1] - price * h[:, 0])] for h in hulls]

    high = max(float(losses.energies.sum()), 1e-300)  # nothing is worth so much for a bit
    low = high * 1e-24
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        if sum(point[0] for point in chosen(middle)) <= budget_bits:
            high = middle
        else:
            low = middle
    plans = [chosen(high * share) for share in PRICES]
    return [[tuple(plan[i].tolist()) for plan in plans] for i in range(len(hulls))]


def _whole(
    losses: Losses, roundings: list[Rounding], ranks: IntArray, budget_bits: float
) -> list[list[_Point]]:
    """Return for each projection all its components at each step, without dead zone."""
    each = np.arange(len(ranks)), ranks
    plain = [j for j, rounding in enumerate(roundings) if rounding.dead_zone == PLAIN]
    n_fit = sum(float(losses.bits[j][each].sum()) <= budget_bits for j in plain)
    at = {min(max(n_fit - 1 + step, 0), len(plain) - 1) for step in STEPS}
    places = [plain[k] for k in sorted(at)]
    bits, kept = (
        table[places][:, *each] for table in (losses.bits, losses.energies[:, None] - losses.errors)
    )
    return [
        [(float(bits[k, i]), float(kept[k, i]), float(j), float(r)) for k, j in enumerate(places)]
        for i, r in enumerate(ranks)
    ]
