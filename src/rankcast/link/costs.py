"""The cost of a plan on the air: bits, seconds and the link cost η (Eq. 6-8).

Shapes: `N` projections, `R` = r_max, `B` links; `ranks` (..., N) with any leading batch axes. A
component is one unit of rank of one projection.

Differs from the paper: the components of a projection may cost differently, as they do once they
are coded; with the paper's accounting each costs its parameters times b_t. And b_t, there the
length of a codeword, is the number of bits that carry one parameter, which is how Eq. 6 uses it
and the only reading that gives seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Self, get_args

import numpy as np

from rankcast.config.link import Accounting
from rankcast.errors import ConfigError, LinkError, check_choice
from rankcast.link.capacity import RateModel, rate_bps
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Plan, Projection


def params_per_rank(layout: AdapterLayout, accounting: Accounting = "exact") -> IntArray:
    """Return (N,) parameters transmitted per unit of rank (the factor 2·d_h + 1 of Eq. 6).

    Differs from the paper: the default counts the true widths of each projection.

    Raises:
        ConfigError: unknown accounting.
    """
    check_choice("payload accounting", accounting, get_args(Accounting))
    if accounting == "exact":
        return layout.params_per_rank.copy()
    of_layer: defaultdict[int, list[Projection]] = defaultdict(list)
    for projection in layout.projections:
        of_layer[projection.layer].append(projection)
    hidden = {layer: _hidden_width(members) for layer, members in of_layer.items()}
    singular_values = int(accounting == "paper_with_singular_values")
    return np.array(
        [2 * hidden[p.layer] + singular_values for p in layout.projections], dtype=np.int64
    )


def budget_bits(rate_bps: FloatArray | float, deadline_s: FloatArray | float) -> FloatArray:
    """Return C·T_max, the bits that arrive before the deadline (Eq. 7).

    Raises:
        LinkError: a rate or deadline that is not positive and finite.
    """
    for name, value in (("Rate [bit/s]", rate_bps), ("Deadline [s]", deadline_s)):
        numbers = np.asarray(value, dtype=np.float64)
        if not (np.isfinite(numbers) & (numbers > 0)).all():
            raise LinkError(f"{name} must be positive and finite, got {numbers.tolist()}.")
    return np.asarray(rate_bps, dtype=np.float64) * deadline_s


def _hidden_width(members: list[Projection]) -> int:
    """Return d_h of one layer: the input of its query, else its most common width.

    A tie goes to the narrower width, since feed-forward layers widen.
    """
    for projection in members:
        if projection.kind == "q":
            return projection.d_in
    counts = Counter(width for p in members for width in (p.d_in, p.d_out))
    return min(counts, key=lambda width: (-counts[width], width))


@dataclass(frozen=True, eq=False)
class LinkCostModel:
    """Turns ranks and a link into η.

    Costs are counted in whole units, which add up without rounding, so that "fits" means the same
    to everyone who asks.

    Attributes:
        component_units: (N, R) units that each component takes: parameters, or bits as coded.
        bits_per_unit: b_t where units are parameters, 1 where they are bits.
        rate_model: how SNR becomes rate (Eq. 5).
        overhead_bits: what every plan takes besides its components: header, task head.

    Raises:
        ConfigError: no component, a negative cost or overhead, a projection that costs nothing, or
            bits_per_unit not positive.
    """

    component_units: IntArray
    bits_per_unit: float
    rate_model: RateModel
    overhead_bits: float = 0.0

    def __post_init__(self) -> None:
        """Take a private copy of the costs and check them."""
        if not (np.isfinite(self.bits_per_unit) and self.bits_per_unit > 0):
            raise ConfigError(
                f"A unit must take a positive, finite number of bits, got {self.bits_per_unit}."
            )
        given = np.asarray(self.component_units)
        whole = given.ndim == 2 and given.size > 0 and bool((given == np.rint(given)).all())
        if not whole or (given < 0).any() or (given.sum(axis=1) <= 0).any():
            raise ConfigError(
                f"component_units must be a table of whole numbers, one row for each projection "
                f"and one column for each component, none negative and no row of zeros; got "
                f"{given.tolist()}."
            )
        if not (np.isfinite(self.overhead_bits) and self.overhead_bits >= 0):
            raise ConfigError(f"overhead_bits must be at least 0, got {self.overhead_bits}.")
        units = given.astype(np.int64)
        units.setflags(write=False)
        object.__setattr__(self, "component_units", units)

    @classmethod
    def for_layout(
        cls,
        layout: AdapterLayout,
        rate_model: RateModel,
        accounting: Accounting = "exact",
        bits_per_param: float = 32.0,
    ) -> Self:
        """Count parameters of so many bits each, as the paper does.

        Raises:
            ConfigError: unknown accounting, or bits_per_param not positive.
        """
        counts = params_per_rank(layout, accounting)
        return cls(np.repeat(counts[:, None], layout.r_max, axis=1), bits_per_param, rate_model)

    @property
    def n_projections(self) -> int:
        """N."""
        return self.component_units.shape[0]

    @property
    def r_max(self) -> int:
        """R."""
        return self.component_units.shape[1]

    @cached_property
    def component_bits(self) -> FloatArray:
        """(N, R) bits that each component takes."""
        return self.component_units * np.float64(self.bits_per_unit)

    @cached_property
    def full_bits(self) -> float:
        """Bits of r_max everywhere, overhead included."""
        return float(self.component_bits.sum() + self.overhead_bits)

    def rate_bps(self, link: LinkState) -> FloatArray:
        """Return (B,) C_t [bit/s] (Eq. 5)."""
        return rate_bps(self.rate_model, link)

    def budget_bits(self, link: LinkState) -> FloatArray:
        """Return (B,) bits that arrive before the deadline (Eq. 7)."""
        return budget_bits(self.rate_bps(link), link.deadline_s)

    def payload_units(self, ranks: IntArray) -> IntArray:
        """Return (...) units of the components of (..., N) ranks; no overhead.

        Raises:
            ConfigError: ranks that are not integers in 0..R, or another N.
        """
        ranks = self._checked(ranks)
        if self._even:
            return ranks @ self.component_units[:, 0]
        total = np.zeros(ranks.shape[:-1], dtype=np.int64)
        for n in range(self.n_projections):
            total += self._cumulative[n][ranks[..., n]]
        return total

    def payload_bits(self, ranks: IntArray, held: IntArray | None = None) -> FloatArray:
        """Return (...) bits on the air of (..., N) ranks: the numerator of Eq. 8.

        Args:
            ranks: (..., N).
            held: (..., N) ranks, nowhere greater, that the receiver has: only the components above
                them are counted, and no overhead.

        Raises:
            ConfigError: ranks that are not integers in 0..R, or another N.
        """
        units = self.payload_units(ranks)
        if held is not None:
            return (units - self.payload_units(held)) * np.float64(self.bits_per_unit)
        return units * np.float64(self.bits_per_unit) + self.overhead_bits

    def whole_units(self, bits: FloatArray) -> FloatArray:
        """Return how many units go into so many bits beside the overhead, exactly.

        Negative where not even the overhead does, infinite where the bits are.
        """
        room = np.asarray(bits, dtype=np.float64) - self.overhead_bits
        whole, size = np.floor(room / self.bits_per_unit), self.bits_per_unit
        whole = np.where(whole * size + self.overhead_bits > bits, whole - 1, whole)
        return np.where((whole + 1) * size + self.overhead_bits <= bits, whole + 1, whole)

    def component_costs(self, link: LinkState) -> FloatArray:
        """Return (B, N, R) η of each component."""
        return self.component_bits / self.budget_bits(link)[:, None, None]

    def link_cost(
        self, ranks: IntArray, link: LinkState, held: IntArray | None = None
    ) -> FloatArray:
        """Return (B,) η of (B, N) ranks (Eq. 8), or of what they add to the ranks held.

        Raises:
            ConfigError: impossible ranks, or another B than the link's.
        """
        bits = self.payload_bits(ranks, held)
        if bits.shape != (link.size,):
            raise ConfigError(
                f"Ranks must have shape ({link.size}, {self.n_projections}) for {link.size} "
                f"links, got {np.shape(ranks)}."
            )
        return bits / self.budget_bits(link)

    def plan(self, ranks: IntArray, link: LinkState) -> Plan:
        """Return (N,) ranks with what they cost on a single link (Eq. 6-8).

        Raises:
            ConfigError: impossible ranks, or more than one link.
        """
        if link.size != 1 or np.ndim(ranks) != 1:
            raise ConfigError(
                f"A plan is one rank vector on one link, got ranks of shape {np.shape(ranks)} "
                f"and {link.size} links; use link_cost for batches."
            )
        ranks = np.array(ranks)
        bits, rate = self.payload_bits(ranks), self.rate_bps(link)
        return Plan(
            ranks=ranks.astype(np.int64),
            payload_bits=bits.item(),
            rate_bps=rate.item(),
            transmission_time_s=(bits / rate).item(),
            link_cost=(bits / budget_bits(rate, link.deadline_s)).item(),
        )

    @cached_property
    def _even(self) -> bool:
        """Whether the components of every projection cost the same."""
        return bool((self.component_units == self.component_units[:, :1]).all())

    @cached_property
    def _cumulative(self) -> IntArray:
        """(N, R + 1) units of the first components."""
        none = np.zeros((self.n_projections, 1), dtype=np.int64)
        return np.concatenate([none, self.component_units.cumsum(axis=1)], axis=1)

    def _checked(self, ranks: IntArray) -> IntArray:
        ranks = np.asarray(ranks)
        if not np.issubdtype(ranks.dtype, np.integer):
            raise ConfigError(
                f"Ranks must be integers, got {ranks.dtype}; round or decode them first."
            )
        if ranks.ndim == 0 or ranks.shape[-1] != self.n_projections:
            raise ConfigError(
                f"The last axis of ranks must have one entry for each of the {self.n_projections} "
                f"projections, got shape {ranks.shape}."
            )
        if ranks.size and (ranks.min() < 0 or ranks.max() > self.r_max):
            raise ConfigError(
                f"Ranks must be at least 0 and at most {self.r_max}, got {ranks.min()} to "
                f"{ranks.max()}."
            )
        return ranks.astype(np.int64)
