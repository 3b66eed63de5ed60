"""The best plan for a utility that can only be asked, not taken apart.

Shapes: `B` links, `N` projections, `R` = r_max. The loss falls with every rank but need not be
additive: gains say in which order components are likely to be worth sending, and the loss itself
decides. For concave additive utilities the answer is that of `waterfill`, without its gap of one
component at a binding deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankcast.allocation.base import AllocationProblem, keep_within_budget, per_bit
from rankcast.allocation.utility import isotonic_decreasing
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray, LinkState

Loss = Callable[[IntArray], FloatArray]
"""(K, N) ranks to (K,) task losses."""

LARGEST_EXCHANGE = 3
"""Components of a projection that are exchanged for so many of another in one move."""

STARTS = 4
"""Plans that are improved where the deadline may bind; the best result counts."""

CHUNK = 8192  # exchanges judged at once
PINNED = 2_000_000  # components sorted at once
MAX_MOVES = 1000
_IMPROVEMENT = 1e-12


def best_plan(
    loss: Loss, gains: FloatArray, problem: AllocationProblem, link: LinkState
) -> IntArray:
    """Return (B, N) ranks near the least U(r) + λ·η(r), feasible for the deadline.

    The best prefix of the components in order of gain per bit, improved by changing single ranks
    and by exchanging up to three components between two projections until nothing helps. Where the
    deadline may bind, likewise from the best plans in which one projection was served first.

    Args:
        loss: U, evaluated on many plans at once.
        gains: (N, R) worth of each component, as an order; need not decrease along R.
        problem: λ, bounds and deadline.
        link: B links.

    Raises:
        ConfigError: gains of another shape, or not finite.
        InfeasibleDeadlineError: the smallest plan is too large for some link.
    """
    shape = (problem.layout.n_projections, problem.layout.r_max)
    gains = np.asarray(gains, dtype=np.float64)
    if gains.shape != shape or not np.isfinite(gains).all():
        raise ConfigError(f"gains must be finite and of shape {shape}, got {gains.shape}.")
    problem.require_feasible(link)
    budget = problem.link_costs.budget_bits(link)
    limit = budget if problem.deadline == "enforce" else np.full_like(budget, np.inf)
    prefixes = frontier(gains, problem)
    losses = loss(prefixes)
    exchanges = _exchanges(shape[0])
    # Links that carry equally much have the same answer.
    carried, first, inverse = np.unique(budget, return_index=True, return_inverse=True)
    plans = [
        _Search(loss, gains, problem, problem.link_weight / bits, float(limit[at])).run(
            prefixes, losses, exchanges
        )
        for bits, at in zip(carried, first, strict=True)
    ]
    return np.array(plans)[inverse.ravel()]


def frontier(gains: FloatArray, problem: AllocationProblem) -> IntArray:
    """Return (K, N) plans from the smallest to full rank, one component more in each.

    Components come in order of gain per bit on the concave envelope of each projection's gains,
    so that a component of little worth before one of much does not hide it.
    """
    n, r_max = gains.shape
    i = np.arange(1, r_max + 1)
    envelope = isotonic_decreasing(gains, np.ones(r_max))
    worth = per_bit(envelope, problem.link_costs)
    worth = np.where(i <= problem.min_rank, np.inf, worth)
    order = np.argsort(-worth.ravel(), kind="stable")[n * problem.min_rank :]
    added = np.zeros((len(order) + 1, n), dtype=np.int64)
    added[np.arange(1, len(order) + 1), order // r_max] = 1
    return problem.min_rank + added.cumsum(axis=0)


@dataclass(frozen=True)
class _Search:
    """Local search for one link.

    Attributes:
        loss: U.
        gains: (N, R) worth of each component, as an order.
        problem: bounds and payload.
        price: λ per transmitted bit.
        limit_bits: largest payload.
    """

    loss: Loss
    gains: FloatArray
    problem: AllocationProblem
    price: float
    limit_bits: float

    def run(self, prefixes: IntArray, losses: FloatArray, exchanges: IntArray) -> IntArray:
        """Return the (N,) best plan found."""
        bits = self.problem.link_costs.payload_bits(prefixes)
        scores = np.where(bits <= self.limit_bits, losses + self.price * bits, np.inf)
        starts, scores = prefixes[[scores.argmin()]], scores.min(keepdims=True)
        if bits.max() > self.limit_bits:
            pinned = np.unique(self._served_first(), axis=0)
            starts = np.concatenate([starts, pinned])
            scores = np.concatenate([scores, self._scores(pinned)])
        best = np.argsort(scores, kind="stable")[:STARTS]
        ends = [self._improve(starts[at], float(scores[at]), exchanges) for at in best]
        return min(ends, key=lambda end: end[1])[0]

    def _improve(self, plan: IntArray, score: float, exchanges: IntArray) -> tuple[IntArray, float]:
        """Return the plan, and its score, that no move improves."""
        for _ in range(MAX_MOVES):
            # Exchanges are many, so they are only tried where single ranks no longer help.
            found = self._best_of(self._single_ranks(plan))
            if found[1] >= score - _IMPROVEMENT:
                blocks = np.array_split(exchanges, -(-exchanges.shape[1] // CHUNK) or 1, axis=1)
                tried = (self._best_of(self._exchanged(plan, block)) for block in blocks)
                found = min(tried, key=lambda end: end[1])
            if found[1] >= score - _IMPROVEMENT:
                break
            plan, score = found
        return plan, score

    def _served_first(self) -> IntArray:
        """Return (K, N) plans that fill the budget after 1, 2, 4, … ranks of one projection."""
        n, r_max = self.gains.shape
        costs, least = self.problem.link_costs, self.problem.min_rank
        worth = per_bit(self.gains, costs)
        plans = []
        for level in 2 ** np.arange(r_max.bit_length()):
            for block in np.array_split(np.arange(n), -(-(n * n * r_max) // PINNED)):
                pinned = np.tile(worth, (len(block), 1, 1))
                pinned[np.arange(len(block)), block, :level] = np.inf
                full = np.full((len(block), n), r_max, dtype=np.int64)
                room = np.full(len(block), costs.whole_units(np.array(self.limit_bits)))
                plans.append(keep_within_budget(pinned, costs.component_units, room, full, least))
        return self._affordable(np.concatenate(plans))

    def _single_ranks(self, plan: IntArray) -> IntArray:
        """Return all plans that differ from this in one rank."""
        levels = np.arange(self.problem.min_rank, self.problem.layout.r_max + 1)
        plans = np.tile(plan, (len(plan) * len(levels), 1))
        at = np.repeat(np.arange(len(plan)), len(levels))
        plans[np.arange(len(plans)), at] = np.tile(levels, len(plan))
        return self._affordable(plans)

    def _exchanged(self, plan: IntArray, exchanges: IntArray) -> IntArray:
        """Return the plans in which components of one projection give way to another's."""
        source, removed, target, added = exchanges
        inside = (plan[source] - removed >= self.problem.min_rank) & (
            plan[target] + added <= self.problem.layout.r_max
        )
        source, removed, target, added = exchanges[:, inside]
        plans = np.tile(plan, (len(source), 1))
        rows = np.arange(len(plans))
        plans[rows, source] -= removed
        plans[rows, target] += added
        return self._affordable(plans)

    def _affordable(self, plans: IntArray) -> IntArray:
        if not np.isfinite(self.limit_bits):
            return plans
        return plans[self.problem.link_costs.payload_bits(plans) <= self.limit_bits]

    def _scores(self, plans: IntArray) -> FloatArray:
        return self.loss(plans) + self.price * self.problem.link_costs.payload_bits(plans)

    def _best_of(self, plans: IntArray) -> tuple[IntArray, float]:
        if not len(plans):
            return plans, np.inf
        scores = self._scores(plans)
        return plans[scores.argmin()], float(scores.min())


def _exchanges(n: int) -> IntArray:
    """Return (4, K) all exchanges: from which projection how many, to which how many."""
    size = np.arange(1, LARGEST_EXCHANGE + 1)
    grid = np.meshgrid(np.arange(n), size, np.arange(n), size, indexing="ij")
    table = np.array([axis.ravel() for axis in grid])
    return table[:, table[0] != table[2]]
