"""The allocators to compare with: one rank for all, random ranks, and the exact solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.waterfilling import waterfill
from rankcast.errors import ConfigError
from rankcast.records import IntArray, Observation


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
class BeliefAllocator:
    """Water-filling on a learned utility.

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
        gains = self.utility.gains_at(self.problem, link, drawn, self.width, text=observation.text)
        return waterfill(gains, self.problem, link)
