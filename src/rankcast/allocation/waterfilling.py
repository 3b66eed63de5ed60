"""The exact answer to Eq. 9 for gains that decrease along the rank: water-filling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankcast.allocation.problem import AllocationProblem, per_bit
from rankcast.records import FloatArray, IntArray, LinkState, Observation

PriceFactor = Callable[[LinkState], FloatArray]
"""Maps B links to the (B,) factors on λ·η at which their components are worth sending."""


def waterfill(
    gains: FloatArray,
    problem: AllocationProblem,
    link: LinkState,
    price: PriceFactor | None = None,
) -> IntArray:
    """Return the (B, N) optimum for gains that decrease along the rank.

    A component is sent iff it removes more loss than λ times its link cost. Where the deadline
    binds, the water level rises: the components with least gain per bit stay behind. That is
    optimal up to the one component that straddles the deadline.

    Args:
        gains: (N, R) or (B, N, R) loss removed by each component, decreasing along R.
        problem: λ, bounds and deadline.
        link: B links.
        price: factor on λ·η by link; None: 1.

    Raises:
        InfeasibleDeadlineError: the smallest plan is too large for some link.
    """
    if price is not None:
        gains = gains / price(link)[:, None, None]
    worthwhile = (gains > problem.link_weight * problem.component_costs(link)).sum(axis=-1)
    return problem.feasible(worthwhile, link, gains)


def plan_at_price(
    gains: FloatArray,
    problem: AllocationProblem,
    observation: Observation,
    price: PriceFactor | None = None,
) -> IntArray:
    """Return (B, N) ranks that settle within the deadline and do not repeat what was received.

    Where an increase does not arrive in time the price rises until it does. Unlike the plan of
    an allocator's, this one depends on the ranks received only through that price, so that
    a denoiser can learn it.

    Args:
        gains: (B, N, R) loss removed per step by each component, decreasing along R.
        problem: λ, bounds and deadline.
        observation: B links and the ranks received.
        price: factor on λ·η by link; None: 1.
    """
    wanted = waterfill(gains, problem, observation.link, price)
    settled = problem.settle(wanted, observation, gains)
    i = np.arange(1, problem.layout.r_max + 1)
    worth = per_bit(gains, problem.link_costs)
    left_behind = (i > settled[..., None]) & (i <= wanted[..., None])
    level = np.where(left_behind, worth, -np.inf).max(axis=(1, 2))
    return ((worth > level[:, None, None]) & (i <= wanted[..., None])).sum(axis=2)
