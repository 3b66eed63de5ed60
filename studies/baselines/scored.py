"""Keep the components that look most important, as an engineer would try first.

Shapes: `B` links, `N` projections, `R` = r_max, `K` plans of growing size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankcast.allocation.beliefs import isotonic_decreasing
from rankcast.allocation.problem import AllocationProblem, per_bit
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray, LinkState, Observation


def nested_plans(gains: FloatArray, problem: AllocationProblem) -> IntArray:
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


@dataclass(frozen=True, eq=False)
class ScoredAllocator:
    """Components in order of their score until a limit is reached, whatever the link costs.

    A projection's components can only be kept in order, so scores that rise along R are first
    averaged until they fall (the concave envelope of their sums). Where several limits are given,
    the tightest counts.

    Attributes:
        problem: layout and deadline; λ is not used.
        scores: (N, R) importance of each component, in any unit.
        name: for tables.
        fill: share of what arrives before the deadline that is used; None for no such limit.
        budget_bits: bits that are used on every link; None for no such limit.
        threshold: components at or below this score (per bit) are never sent; None sends all.
        per_bit: whether components rank, and pass the threshold, by score per bit or by score.

    Raises:
        ConfigError: scores of another shape or not finite, `fill` outside (0, 1], or
            `budget_bits` not positive.
    """

    problem: AllocationProblem
    scores: FloatArray
    name: str = "scored"
    fill: float | None = 1.0
    budget_bits: float | None = None
    threshold: float | None = None
    per_bit: bool = True

    def __post_init__(self) -> None:
        """Refuse scores and limits that make no sense."""
        shape = (self.problem.layout.n_projections, self.problem.layout.r_max)
        if np.shape(self.scores) != shape or not np.isfinite(self.scores).all():
            raise ConfigError(
                f"scores must be finite, one row for each projection and one column for each "
                f"component: {shape}, got {np.shape(self.scores)}."
            )
        if self.fill is not None and not 0 < self.fill <= 1:
            raise ConfigError(f"fill is a share of the budget in (0, 1], got {self.fill}.")
        if self.budget_bits is not None and not self.budget_bits > 0:
            raise ConfigError(f"budget_bits must be positive, got {self.budget_bits}.")

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; `rng` is not used."""
        del rng
        link = observation.link
        self.problem.require_feasible(link)
        limit = _limit_bits(self.problem, link, self.budget_bits)
        if self.fill is not None:
            limit = np.minimum(limit, self.fill * self.problem.link_costs.budget_bits(link))
        ranks = _largest_within(self._plans, self.problem, limit)
        return self.problem.settle(ranks, observation, self.scores)

    @cached_property
    def _plans(self) -> IntArray:
        """(K, N) plans, one component more in each, of which the last passes the threshold."""
        costs, scores = self.problem.link_costs, np.asarray(self.scores, dtype=np.float64)
        bits = costs.component_bits
        plans = nested_plans(scores if self.per_bit else scores * bits, self.problem)
        if self.threshold is None:
            return plans
        worth = isotonic_decreasing(scores, np.ones(scores.shape[1]))
        passing = ((per_bit(worth, costs) if self.per_bit else worth) > self.threshold).sum(axis=1)
        most = np.maximum(passing, self.problem.min_rank)
        return plans[(plans <= most).all(axis=1)]


@dataclass(frozen=True, eq=False)
class EqualBitsUniform:
    """As equal a rank for all projections as fills a number of bits.

    The largest equal rank that fits, and one rank more for those projections whose bits come
    closest to what is left, spread over the layers.

    Attributes:
        problem: layout and deadline; λ is not used.
        budget_bits: bits to match; None stands for all that arrive in time.
        name: for tables.

    Raises:
        ConfigError: `budget_bits` not positive.
    """

    problem: AllocationProblem
    budget_bits: float | None = None
    name: str = "uniform-equal-bits"

    def __post_init__(self) -> None:
        """Refuse a budget of nothing."""
        if self.budget_bits is not None and not self.budget_bits > 0:
            raise ConfigError(f"budget_bits must be positive, got {self.budget_bits}.")

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; `rng` is not used."""
        del rng
        problem, costs = self.problem, self.problem.link_costs
        problem.require_feasible(observation.link)
        limit = _limit_bits(problem, observation.link, self.budget_bits)
        n, r_max = problem.layout.n_projections, problem.layout.r_max
        equal = np.repeat(np.arange(problem.min_rank, r_max + 1)[:, None], n, axis=1)
        ranks = _largest_within(equal, problem, limit)
        rooms = costs.whole_units(limit) - costs.payload_units(ranks)
        extra = np.zeros_like(ranks)
        for at, (level, room) in enumerate(zip(ranks[:, 0], rooms, strict=True)):
            if level < r_max:
                extra[at] = self._subset(int(level), room)
        return problem.settle(ranks + extra, observation)

    @cached_property
    def _reached_by(self) -> dict[int, IntArray]:
        """Tables of `_reach`, by the rank from which projections go on."""
        return {}

    def _reach(self, level: int) -> IntArray:
        """Return (S + 1,) for each sum of units: 1 + place of the projection that completes it.

        0 where no subset has that sum, and -1 for the empty subset.
        """
        if level in self._reached_by:
            return self._reached_by[level]
        units = self.problem.link_costs.component_units[:, level]
        reached = np.zeros(int(units.sum()) + 1, dtype=np.int64)
        reached[0] = -1
        for place, index in enumerate(self._order):
            size = int(units[index])
            if not size:
                continue
            fresh = (reached[:-size] != 0) & (reached[size:] == 0)
            reached[size:][fresh] = place + 1
        self._reached_by[level] = reached
        return reached

    @cached_property
    def _order(self) -> IntArray:
        """(N,) projections such that any first few lie far apart."""
        golden = (np.sqrt(5.0) - 1.0) / 2.0
        return np.argsort(np.arange(self.problem.layout.n_projections) * golden % 1.0)

    def _subset(self, level: int, room: float) -> IntArray:
        """Return (N,) 0 or 1: the projections whose next components fill the room best."""
        units, reached = self.problem.link_costs.component_units[:, level], self._reach(level)
        chosen = np.zeros(len(units), dtype=np.int64)
        within = int(np.clip(room, 0, len(reached) - 1))
        total = int(np.flatnonzero(reached[: within + 1])[-1])
        # The projection that first completes a sum leaves a sum that earlier ones complete.
        while total > 0:
            index = self._order[reached[total] - 1]
            chosen[index] = 1
            total -= int(units[index])
        return chosen


def _limit_bits(
    problem: AllocationProblem, link: LinkState, budget_bits: float | None = None
) -> FloatArray:
    """Return (B,) bits that a plan may have; infinite where nothing limits it."""
    most = np.full(link.size, np.inf if budget_bits is None else budget_bits)
    if problem.deadline == "penalise":
        return most
    return np.minimum(most, problem.link_costs.budget_bits(link))


def _largest_within(plans: IntArray, problem: AllocationProblem, limit: FloatArray) -> IntArray:
    """Return for each of (B,) limits the last of (K, N) growing plans within it, or the first."""
    bits = problem.link_costs.payload_bits(plans)
    return plans[np.maximum(np.searchsorted(bits, limit, side="right") - 1, 0)]
