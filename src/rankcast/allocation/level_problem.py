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
from rankcast.records import AdapterLayout, FloatArray, IntArray


@dataclass(frozen=True)
class LevelProblem(AllocationProblem):
    """Eq. 9 for levels.

    Attributes:
        levels: what each level is, in the order of the layout's projections.

    Raises:
        ConfigError: levels of another number than the layout's largest rank.
    """

    levels: Levels = field(kw_only=True)

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        super().__post_init__()
        if self.levels.n_levels != self.layout.r_max:
            raise ConfigError(
                f"There are {self.levels.n_levels} levels, the layout has {self.layout.r_max}; "
                f"make the problem by LevelProblem.of."
            )

    @classmethod
    def of(
        cls,
        levels: Levels,
        layout: AdapterLayout,
        rate_model: RateModel,
        link_weight: float = 0.1,
        deadline: DeadlineRule = "enforce",
    ) -> Self:
        """Return the problem of an adapter's levels.

        Args:
            levels: of the adapter.
            layout: its projections; its largest rank does not matter.
            rate_model: how SNR becomes rate (Eq. 5).
            link_weight: λ.
            deadline: whether a plan must arrive in time or only pays for being late.
        """
        of_levels, costs = levels.layout(layout), levels.link_costs(rate_model)
        return cls(of_levels, costs, link_weight, deadline=deadline, levels=levels)

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
