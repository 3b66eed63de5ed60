"""Plans where what was sent stays: only the increase is paid for.

Differs from the paper, whose every step pays for the whole plan (Eq. 8), so that the future cannot
matter: here a component is sent once and is free from then on, and it may be worth waiting for a
better link. How long it is worth waiting is a factor on the price, which depends on the link alone
(`studies.sequential.stopping`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rankcast.allocation.problem import AllocationProblem, keep_within_budget, per_bit
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray, LinkState, Observation


@dataclass(frozen=True)
class IncrementalProblem(AllocationProblem):
    """Eq. 9 over a delivery: the ranks received are free, and each step's increase has a deadline.

    Attributes:
        discount: γ, the probability that the device is still there one step later.

    Raises:
        ConfigError: γ outside [0, 1), link costs with an overhead, or a minimum rank: a delivery
            begins with rank 0.
    """

    discount: float = 0.95
    sent_stays: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        super().__post_init__()
        check_discount(self.discount)
        if self.min_rank > 0:
            raise ConfigError(
                f"A delivery begins with rank 0, so min_rank must be 0, got {self.min_rank}."
            )
        if self.link_costs.overhead_bits > 0:
            raise ConfigError(
                "Where only the increase is paid for, every step would pay the overhead of "
                "link_costs again; use costs with overhead_bits=0."
            )

    def feasible(
        self, ranks: IntArray, link: LinkState, gains: FloatArray | None = None
    ) -> IntArray:
        """Return the (B, N) ranks brought within bounds.

        Whether they arrive in time depends on what was received before; `settle` sees to that.
        """
        del gains
        bounded = np.clip(np.asarray(ranks, dtype=np.int64), 0, self.layout.r_max)
        if bounded.shape != (link.size, self.layout.n_projections):
            raise ConfigError(
                f"Ranks must have shape ({link.size}, {self.layout.n_projections}) for {link.size} "
                f"links, got {bounded.shape}."
            )
        return bounded

    def settle(
        self, ranks: IntArray, observation: Observation, gains: FloatArray | None = None
    ) -> IntArray:
        """Return the (B, N) ranks, at least those received, whose increase arrives in time.

        Of an increase that is too large the components with least gain per bit stay behind when
        gains are known; without gains every projection's increase shrinks by about the same share.
        """
        held, link = observation.ranks, observation.link
        wanted = np.maximum(self.feasible(ranks, link), held)
        increase, costs = wanted - held, self.link_costs
        budget = costs.budget_bits(link)
        late = costs.payload_bits(wanted, held) > budget
        if self.deadline == "penalise" or not late.any():
            return wanted
        i = np.arange(1, self.layout.r_max + 1)
        place = np.minimum(held[..., None] + i - 1, len(i) - 1)
        shape = (*increase.shape, len(i))
        units = np.take_along_axis(np.broadcast_to(costs.component_units, shape), place, axis=2)
        if gains is None:
            worth = -i / np.maximum(increase, 1)[..., None]
        else:
            worth = per_bit(np.broadcast_to(gains, shape), costs)
            worth = np.take_along_axis(worth, place, axis=2)
        kept = keep_within_budget(worth, units, costs.whole_units(budget), increase)
        return held + np.where(late[:, None], kept, increase)


def check_discount(discount: float) -> None:
    """Refuse a γ under which what lasts without end has no finite worth.

    Raises:
        ConfigError: γ outside [0, 1).
    """
    if not 0.0 <= discount < 1.0:
        raise ConfigError(f"The discount γ must lie in [0, 1), got {discount}.")
