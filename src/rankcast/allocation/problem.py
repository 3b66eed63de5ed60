"""The question that every allocator answers, and the guarantee that each answer keeps.

Shapes: `B` links, `N` projections, `R` = r_max. A *component* is one unit of rank of one
projection; `gains` (N, R) or (B, N, R) holds the loss that each component removes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, get_args, runtime_checkable

import numpy as np

from rankcast.config.link import DeadlineRule, LinkConfig
from rankcast.errors import ConfigError, InfeasibleDeadlineError, check_choice
from rankcast.link.costs import LinkCostModel
from rankcast.link.rate_models import rate_model_of
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Observation


@runtime_checkable
class Allocator(Protocol):
    """Anything that chooses ranks for a link."""

    @property
    def name(self) -> str:
        """A short name for tables and plots."""
        ...

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks, feasible for each link of the observation.

        Raises:
            InfeasibleDeadlineError: not even the smallest plan arrives in time.
        """
        ...


@dataclass(frozen=True)
class AllocationProblem:
    """Eq. 9: minimise U(r) + λ·η(r) subject to the deadline and the bounds on every rank.

    Attributes:
        layout: the projections and r_max.
        link_costs: turns ranks and a link into η.
        link_weight: λ.
        min_rank: smallest rank allowed. The paper has 1 in Eq. 9 and 0 in its action space; 0 here.
        deadline: whether a plan must arrive in time or only pays for being late.

    Raises:
        ConfigError: a negative λ, a minimum rank outside 0..r_max, an unknown rule, or link costs
            of another layout.
    """

    layout: AdapterLayout
    link_costs: LinkCostModel
    link_weight: float = 0.1
    min_rank: int = 0
    deadline: DeadlineRule = "enforce"
    sent_stays: ClassVar[bool] = False
    """Whether only the increase of rank is paid for, so that plans depend on what was received."""

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not self.link_weight >= 0:
            raise ConfigError(f"link_weight (λ) must be at least 0, got {self.link_weight}.")
        if not 0 <= self.min_rank <= self.layout.r_max:
            raise ConfigError(
                f"min_rank must lie in 0..r_max = {self.layout.r_max}, got {self.min_rank}."
            )
        costed = self.link_costs.component_units.shape
        if costed != (self.layout.n_projections, self.layout.r_max):
            raise ConfigError(
                f"The link costs are of {costed[0]} projections with {costed[1]} components, the "
                f"layout has {self.layout.n_projections} with {self.layout.r_max}."
            )
        check_choice("deadline rule", self.deadline, get_args(DeadlineRule))

    @property
    def component_weights(self) -> FloatArray | None:
        """(N, R) sizes of components whose gain by size decreases; None: the gain itself does."""
        return None

    @property
    def expected_gains(self) -> FloatArray | None:
        """(N, R) what components are expected to be worth, up to a factor; None: not known."""
        return None

    @classmethod
    def from_config(cls, link: LinkConfig, layout: AdapterLayout) -> Self:
        """Return the problem of a configured link.

        Raises:
            ConfigError: settings that make no sense for this layout.
            LinkError: a rate model that cannot be.
        """
        costs = LinkCostModel.for_layout(
            layout, rate_model_of(link), link.accounting, link.bits_per_param
        )
        return cls(layout, costs, link.link_weight, link.min_rank, link.deadline)

    def component_costs(self, link: LinkState) -> FloatArray:
        """Return (B, N, R): η of each component."""
        return self.link_costs.component_costs(link)

    def objective(self, task_loss: FloatArray, ranks: IntArray, link: LinkState) -> FloatArray:
        """Return (B,) U(r) + λ·η(r), what Eq. 9 minimises."""
        return task_loss + self.link_weight * self.link_costs.link_cost(ranks, link)

    def feasible(
        self, ranks: IntArray, link: LinkState, gains: FloatArray | None = None
    ) -> IntArray:
        """Return the (B, N) ranks brought within bounds and, unless lateness is a price, in time.

        Components leave in order of least gain per bit when gains are known. Without gains every
        projection shrinks by about the same share of its rank. What already fits is returned
        unchanged.

        Raises:
            InfeasibleDeadlineError: the smallest plan is too large for some link.
            ConfigError: another shape than one plan for each link.
        """
        bounded = np.clip(np.asarray(ranks, dtype=np.int64), self.min_rank, self.layout.r_max)
        if bounded.shape != (link.size, self.layout.n_projections):
            raise ConfigError(
                f"Ranks must have shape ({link.size}, {self.layout.n_projections}) for {link.size} "
                f"links, got {bounded.shape}."
            )
        if self.deadline == "penalise":
            return bounded
        budget = self.link_costs.budget_bits(link)
        late = self.link_costs.payload_bits(bounded) > budget
        if not late.any():
            return bounded
        self.require_feasible(link)
        i = np.arange(1, self.layout.r_max + 1)
        if gains is None:
            worth = -i / np.maximum(bounded, 1)[..., None]
        else:
            worth = per_bit(np.broadcast_to(gains, (*bounded.shape, len(i))), self.link_costs)
        room = self.link_costs.whole_units(budget)
        units = self.link_costs.component_units
        kept = keep_within_budget(worth, units, room, bounded, self.min_rank)
        return np.where(late[:, None], kept, bounded)

    def settle(
        self, ranks: IntArray, observation: Observation, gains: FloatArray | None = None
    ) -> IntArray:
        """Return the (B, N) ranks that may be sent in the observed state.

        This is `feasible`, unless what the device has received matters (`sent_stays`).

        Raises:
            InfeasibleDeadlineError: the smallest plan is too large for some link.
        """
        return self.feasible(ranks, observation.link, gains)

    def require_feasible(self, link: LinkState) -> None:
        """Check that the smallest plan arrives on every link.

        Raises:
            InfeasibleDeadlineError: it does not; the message names the worst link's shortfall.
        """
        if not self.arrivable(link).all():
            budget = self.link_costs.budget_bits(link).min()
            raise InfeasibleDeadlineError(self._smallest_bits(), float(budget))

    def arrivable(self, link: LinkState) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return (B,) whether the smallest plan may be sent over each link."""
        if self.deadline == "penalise":
            return np.ones(link.size, dtype=bool)
        return self._smallest_bits() <= self.link_costs.budget_bits(link)

    def _smallest_bits(self) -> float:
        smallest = np.full(self.layout.n_projections, self.min_rank, dtype=np.int64)
        return float(self.link_costs.payload_bits(smallest))


def per_bit(gains: FloatArray, link_costs: LinkCostModel) -> FloatArray:
    """Return (..., N, R) gains per bit; what costs nothing and gains something is worth most."""
    bits = link_costs.component_bits
    if (bits > 0).all():
        return gains / bits
    free = np.where(gains > 0, np.inf, 0.0)
    return np.where(bits > 0, gains / np.where(bits > 0, bits, 1.0), free)


def keep_within_budget(
    worth: FloatArray,
    units: IntArray,
    room: FloatArray,
    ranks: IntArray,
    min_rank: int = 0,
) -> IntArray:
    """Keep the worthiest components of each plan until its budget is used up.

    Args:
        worth: (B, N, R) priority of each component. Components of a projection can only be kept in
            order, so a component counts for no more than the ones before it.
        units: (N, R) or (B, N, R) what each component weighs, in whole numbers.
        room: (B,) whole units that may be sent (`LinkCostModel.whole_units`).
        ranks: (B, N) upper bound on each rank.
        min_rank: components that are kept whatever they are worth.

    Returns:
        (B, N) ranks whose weight is at most the room, if the minimum allows it.
    """
    i = np.arange(1, worth.shape[2] + 1)
    optional = np.where(i <= ranks[..., None], worth, -np.inf)
    priority = np.minimum.accumulate(np.where(i <= min_rank, np.inf, optional), axis=2)
    flat = priority.reshape(len(worth), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    weights = np.broadcast_to(units, worth.shape).reshape(flat.shape)
    fits = np.take_along_axis(weights, order, axis=1).cumsum(axis=1) <= room[:, None]
    kept = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(kept, order, fits, axis=1)
    kept = (kept & (flat > -np.inf)).reshape(worth.shape) | (i <= min_rank)
    return kept.sum(axis=2)
