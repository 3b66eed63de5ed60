"""The simple answers: one rank for all, random ranks, and the solvers on what is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.solve import knapsack, waterfill
from rankcast.allocation.utility import LearnedUtility
from rankcast.errors import ConfigError
from rankcast.records import FloatArray, IntArray, Observation


@dataclass(frozen=True)
class UniformAllocator:
    """One rank for every projection: the given one, or the largest that arrives in time.

    Attributes:
        problem: layout, λ and deadline.
        rank: the rank wanted; None asks for r_max. Where it does not fit, the largest that does.

    Raises:
        ConfigError: a rank outside min_rank..r_max.
    """

    problem: AllocationProblem
    rank: int | None = None

    def __post_init__(self) -> None:
        """Refuse a rank that no plan may have."""
        low, high = self.problem.min_rank, self.problem.layout.r_max
        if self.rank is not None and not low <= self.rank <= high:
            raise ConfigError(f"The uniform rank must lie in {low}..{high}, got {self.rank}.")

    @property
    def name(self) -> str:
        """`uniform`, with the rank if it is fixed."""
        return "uniform" if self.rank is None else f"uniform-{self.rank}"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) equal ranks; `rng` is not used."""
        del rng
        problem, link = self.problem, observation.link
        wanted = problem.layout.r_max if self.rank is None else self.rank
        ranks = np.full(link.size, wanted, dtype=np.int64)
        if problem.deadline == "enforce":
            problem.require_feasible(link)
            every = np.arange(problem.layout.r_max + 1)[:, None]
            plans = np.repeat(every, problem.layout.n_projections, axis=1)
            payload = problem.link_costs.payload_bits(plans)
            fits = np.searchsorted(payload, problem.link_costs.budget_bits(link), side="right") - 1
            ranks = np.minimum(ranks, fits)
        return np.repeat(ranks[:, None], problem.layout.n_projections, axis=1)


@dataclass(frozen=True)
class RandomAllocator:
    """Every rank drawn uniformly from min_rank..r_max, then brought within the deadline."""

    problem: AllocationProblem
    name: str = "random"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) random ranks."""
        shape = (observation.link.size, self.problem.layout.n_projections)
        ranks = rng.integers(self.problem.min_rank, self.problem.layout.r_max + 1, size=shape)
        return self.problem.feasible(ranks, observation.link)


@dataclass(frozen=True)
class KnownUtilityAllocator:
    """The oracle: water-filling on gains that are known.

    Attributes:
        problem: layout, λ and deadline.
        gains: (N, R) true gains, decreasing along R.
        name: for tables.
    """

    problem: AllocationProblem
    gains: FloatArray
    name: str = "oracle"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return the (B, N) optimum; `rng` is not used."""
        del rng
        return waterfill(self.gains, self.problem, observation.link)


@dataclass(frozen=True)
class BeliefAllocator:
    """The exact solver on a learned utility.

    Attributes:
        problem: layout, λ and deadline.
        utility: the belief; it goes on learning outside.
        width: 0 solves for the expected gains; above 0 for a fresh draw per link (Thompson
            sampling; 1 is the full width of the belief).
        name: for tables.
    """

    problem: AllocationProblem
    utility: LearnedUtility
    width: float = 0.0
    name: str = "solver"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks."""
        link, drawn = observation.link, None if self.width == 0.0 else rng
        gains = self.utility.gains_at(self.problem, link, drawn, self.width)
        return waterfill(gains, self.problem, link)


@dataclass(frozen=True)
class KnapsackAllocator:
    """The exact knapsack on a utility: no gap where the deadline binds, and gains in any order.

    Attributes:
        problem: layout, λ and deadline.
        utility: a belief, whose expected gains count and which goes on learning outside, or (N, R)
            gains that are known.
        name: for tables.
    """

    problem: AllocationProblem
    utility: LearnedUtility | FloatArray
    name: str = "knapsack"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return the (B, N) optimum; `rng` is not used."""
        del rng
        known, link = self.utility, observation.link
        if isinstance(known, np.ndarray):
            return knapsack(_values(known), self.problem, link)
        plans = [
            knapsack(_values(gains), self.problem, link.select(np.arange(link.size) == k))
            for k, gains in enumerate(known.gains_at(self.problem, link))
        ]
        return np.concatenate(plans)


def _values(gains: FloatArray) -> FloatArray:
    """Return (N, R + 1) loss removed at each rank by (N, R) gains."""
    return np.pad(gains.cumsum(axis=1), ((0, 0), (1, 0)))
