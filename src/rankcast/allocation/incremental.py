"""Which ranks, when only the increase is paid for and what was received stays.

Differs from the paper, whose every step pays for the whole plan (Eq. 8): here a component is sent
once and is free from then on, so that it may be worth waiting for a better link.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.allocation.base import AllocationProblem, keep_within_budget, per_bit
from rankcast.allocation.solve import waterfill
from rankcast.allocation.stopping import PriceFactor, StoppingRule, check_discount
from rankcast.allocation.utility import LearnedUtility
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
                "Where only the increase is paid for, every step would have the overhead of its "
                "own that link_costs counts; use costs with overhead_bits=0."
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


def solve_at_price(
    gains: FloatArray,
    problem: AllocationProblem,
    observation: Observation,
    price: PriceFactor | None = None,
) -> IntArray:
    """Return (B, N) ranks: every component that removes more than its price, settled.

    Args:
        gains: (N, R) or (B, N, R) loss removed per step by each component, decreasing along R.
        problem: λ, bounds and deadline.
        observation: B links and the ranks received.
        price: factor on λ·η by link; None: 1, the myopic solver.
    """
    return problem.settle(_wanted(gains, problem, observation, price), observation, gains)


def plan_at_price(
    gains: FloatArray,
    problem: AllocationProblem,
    observation: Observation,
    price: PriceFactor | None = None,
) -> IntArray:
    """Return (B, N) ranks that settle within the deadline and say nothing of what was received.

    Where an increase does not arrive in time the price rises until it does. Unlike what
    `solve_at_price` returns, the plan then depends on the ranks received only through that price,
    so that a denoiser can learn it.

    Args:
        gains: (B, N, R) loss removed per step by each component, decreasing along R.
        problem: λ, bounds and deadline.
        observation: B links and the ranks received.
        price: factor on λ·η by link; None: 1, the myopic solver.
    """
    wanted = _wanted(gains, problem, observation, price)
    settled = problem.settle(wanted, observation, gains)
    i = np.arange(1, problem.layout.r_max + 1)
    worth = per_bit(gains, problem.link_costs)
    left_behind = (i > settled[..., None]) & (i <= wanted[..., None])
    level = np.where(left_behind, worth, -np.inf).max(axis=(1, 2))
    return ((worth > level[:, None, None]) & (i <= wanted[..., None])).sum(axis=2)


@dataclass(frozen=True)
class MyopicIncremental:
    """Sends what is worth its price at once, as if there were no later step to wait for.

    Attributes:
        problem: λ, γ and deadline.
        gains: (N, R) gains per step, or a belief that goes on learning outside.
        horizon_worth: steps for which a component counts: 1 as in Eq. 10, or 1/(1 - γ) for all
            that are to be expected.
        name: for tables.

    Raises:
        ConfigError: a worth that is not positive.
    """

    problem: IncrementalProblem
    gains: FloatArray | LearnedUtility
    horizon_worth: float = 1.0
    name: str = "myopic"

    def __post_init__(self) -> None:
        """Refuse components that are worth nothing."""
        if not self.horizon_worth > 0:
            raise ConfigError(f"horizon_worth must be positive, got {self.horizon_worth}.")

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; `rng` is not used."""
        del rng
        factor = np.full(observation.link.size, 1.0 / self.horizon_worth)
        return solve_at_price(_gains(self.gains), self.problem, observation, lambda _: factor)


@dataclass(frozen=True)
class StoppingAllocator:
    """Sends a component when that beats waiting; optimal where nothing couples the components.

    Attributes:
        problem: λ, γ and deadline.
        gains: (N, R) gains per step, or a belief that goes on learning outside.
        rule: when to send.
        name: for tables.
    """

    problem: IncrementalProblem
    gains: FloatArray | LearnedUtility
    rule: StoppingRule
    name: str = "stopping"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; `rng` is not used."""
        del rng
        gains = _gains(self.gains)
        return solve_at_price(gains, self.problem, observation, self.rule.price_factor)


def _wanted(
    gains: FloatArray,
    problem: AllocationProblem,
    observation: Observation,
    price: PriceFactor | None,
) -> IntArray:
    asked = gains if price is None else gains / price(observation.link)[:, None, None]
    return waterfill(asked, problem, observation.link)


def _gains(known: FloatArray | LearnedUtility) -> FloatArray:
    return known if isinstance(known, np.ndarray) else known.mean_gains()
