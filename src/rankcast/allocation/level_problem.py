"""Eq. 9 with levels for ranks: how much of each projection and how finely, paid in coded bits.

Differs from the paper, where a plan is a vector of ranks and each parameter takes 32 bits. What
allocators, policies and environments call ranks are levels here; `LevelProblem.levels` says which
rank and which step of the quantiser each of them is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from rankcast.allocation.problem import AllocationProblem, keep_within_budget, per_bit
from rankcast.codec.levels import Levels
from rankcast.config.link import DeadlineRule
from rankcast.errors import ConfigError
from rankcast.link.capacity import RateModel
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState


@dataclass(frozen=True)
class LevelProblem(AllocationProblem):
    """Eq. 9 for levels.

    Attributes:
        levels: what each level is, in the order of the layout's projections.
        wholes: (P, N) plans, each within the next, that were trained as a whole: a plan holds the
            largest of them that arrives, because what a part of it is worth by itself is less than
            its share. None where levels are worth what they are worth alone.

    Raises:
        ConfigError: levels of another number than the layout's largest rank, or wholes of which
            one is not within the next.
    """

    levels: Levels = field(kw_only=True)
    wholes: IntArray | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        super().__post_init__()
        if self.levels.n_levels != self.layout.r_max:
            raise ConfigError(
                f"There are {self.levels.n_levels} levels, the layout has {self.layout.r_max}; "
                f"make the problem by LevelProblem.of."
            )
        if self.wholes is not None and (np.diff(self.wholes, axis=0) < 0).any():
            raise ConfigError("Of the wholes each must be within the next.")

    @classmethod
    def of(
        cls,
        levels: Levels,
        layout: AdapterLayout,
        rate_model: RateModel,
        link_weight: float = 0.1,
        deadline: DeadlineRule = "enforce",
        *,
        wholes: IntArray | None = None,
    ) -> Self:
        """Return the problem of an adapter's levels.

        Args:
            levels: of the adapter.
            layout: its projections; its largest rank does not matter.
            rate_model: how SNR becomes rate (Eq. 5).
            link_weight: λ.
            deadline: whether a plan must arrive in time or only pays for being late.
            wholes: (P, N) plans that were trained as a whole.
        """
        of_levels, costs = levels.layout(layout), levels.link_costs(rate_model)
        own = {"levels": levels, "wholes": wholes}
        return cls(of_levels, costs, link_weight, deadline=deadline, **own)

    def feasible(
        self, ranks: IntArray, link: LinkState, gains: FloatArray | None = None
    ) -> IntArray:
        """Return plans within bounds and in time, with the largest whole that arrives.

        See `AllocationProblem.feasible`.
        """
        if self.wholes is None:
            return super().feasible(ranks, link, gains)
        least = self.largest_whole(link)
        wanted = np.clip(np.maximum(ranks, least), self.min_rank, self.layout.r_max)
        costs = self.link_costs
        budget = costs.budget_bits(link)
        late = costs.payload_bits(wanted) > budget
        if self.deadline == "penalise" or not late.any():
            return wanted
        self.require_feasible(link)
        i = np.arange(1, self.layout.r_max + 1)
        worth = per_bit(self.levels.step_gains if gains is None else gains, costs)
        worth = np.where(i <= least[..., None], np.inf, worth)
        room = costs.whole_units(budget)
        kept = keep_within_budget(worth, costs.component_units, room, wanted)
        return np.where(late[:, None], kept, wanted)

    def largest_whole(self, link: LinkState) -> IntArray:
        """Return (B, N) the largest whole that arrives over each link; nothing where none does."""
        found = np.zeros((link.size, self.layout.n_projections), dtype=np.int64)
        budget = self.link_costs.budget_bits(link)
        for whole in [] if self.wholes is None else self.wholes:
            arrives = self.link_costs.payload_bits(whole) <= budget
            found = np.where(arrives[:, None], whole, found)
        return found

    def worth(self, gains: FloatArray, link: LinkState) -> FloatArray:
        """Return (N, K) gains per bit over a single link; infinite within the whole that arrives.

        Args:
            gains: (N, K) of each level beyond the one before.
            link: B = 1.
        """
        i = np.arange(1, self.layout.r_max + 1)
        inside = i <= self.largest_whole(link)[0][:, None]
        return np.where(inside, np.inf, per_bit(gains, self.link_costs))

    def plans_within(self, budget_bits: FloatArray) -> IntArray:
        """Return (B, N) plans that keep most of the adapter within (B,) budgets.

        Levels of the most gain by bit first, as the levels themselves have it. Nothing where a
        budget is below the overhead of a file.
        """
        full = np.full((len(budget_bits), self.layout.n_projections), self.layout.r_max)
        worth = per_bit(self.levels.step_gains, self.link_costs)
        room = self.link_costs.whole_units(budget_bits)
        units = self.link_costs.component_units
        return keep_within_budget(
            np.broadcast_to(worth, (len(full), *worth.shape)), units, room, full
        )

    @property
    def component_weights(self) -> FloatArray:
        """(N, K) coded bits of each level beyond the one before, as multiples of their mean."""
        return self.levels.weights

    @property
    def expected_gains(self) -> FloatArray | None:
        """(N, K) what each level keeps of the adapter beyond the one before; None if all is zero.

        Of an adapter in a file, that is energy of its update: what a sender knows of a level before
        any plan is tried.
        """
        kept = self.levels.step_gains
        return kept if kept.any() else None
