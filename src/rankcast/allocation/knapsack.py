"""The exact answer to Eq. 9 for any table of values: a multiple-choice knapsack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.errors import ConfigError, RankcastError
from rankcast.records import FloatArray, IntArray, LinkState, Observation


def knapsack(values: FloatArray, problem: AllocationProblem, link: LinkState) -> IntArray:
    """Return the (B, N) optimum for any table of values.

    Solved as a mixed-integer programme by HiGHS (through SciPy).

    Args:
        values: (N, R + 1) loss removed by each projection at each rank, in any shape.
        problem: λ, bounds and deadline.
        link: B links.

    Raises:
        ConfigError: values of another shape, or not finite.
        InfeasibleDeadlineError: the smallest plan is too large for some link.
        RankcastError: the solver found no solution.
    """
    n, choices = problem.layout.n_projections, problem.layout.r_max + 1
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (n, choices) or not np.isfinite(values).all():
        raise ConfigError(
            f"values must be finite, one row for each projection and one column for each rank "
            f"0..r_max: ({n}, {choices}), got {values.shape}."
        )
    problem.require_feasible(link)
    units = np.zeros((n, choices))
    units[:, 1:] = problem.link_costs.component_units.cumsum(axis=1)
    per_bit = problem.link_weight / problem.link_costs.budget_bits(link)
    per_unit = per_bit * problem.link_costs.bits_per_unit
    plans = [
        _choose(price * units - values, units, problem.min_rank, limit)
        for price, limit in zip(per_unit, _whole_units(problem, link), strict=True)
    ]
    # The solver's tolerance may let a plan pass that is a hair too large.
    return problem.feasible(np.array(plans), link, np.diff(values, axis=1))


@dataclass(frozen=True)
class KnapsackAllocator:
    """The knapsack on a learned utility: no gap where the deadline binds, gains in any order.

    Attributes:
        problem: layout, λ and deadline.
        utility: a belief, whose expected gains count; it goes on learning outside.
        name: for tables.
    """

    problem: AllocationProblem
    utility: LearnedUtility
    name: str = "knapsack"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return the (B, N) optimum; `rng` is not used."""
        del rng
        link = observation.link
        plans: list[IntArray] = []
        expected = self.utility.gains_at(self.problem, link, text=observation.text)
        for k, gains in enumerate(expected):
            values = np.pad(gains.cumsum(axis=1), ((0, 0), (1, 0)))
            plans.append(knapsack(values, self.problem, link.select(np.arange(link.size) == k)))
        return np.concatenate(plans)


def _choose(regret: FloatArray, units: FloatArray, min_rank: int, limit: float) -> IntArray:
    """Return the (N,) ranks of least total regret, (N, R + 1), whose units keep to a limit."""
    n, choices = regret.shape
    one_choice = csr_array(block_diag([np.ones((1, choices))] * n))
    allowed: Any = np.tile(np.arange(choices) >= min_rank, n).astype(np.float64)
    # HiGHS stops at an absolute gap of 1e-6, which must be small relative to the values.
    scale = 1e3 / max(float(np.abs(regret).max()), 1e-30)
    rows = vstack([one_choice, csr_array(units.reshape(1, -1))])
    least: Any = np.append(np.ones(n), -np.inf)
    most: Any = np.append(np.ones(n), limit)
    solution = milp(
        regret.ravel() * scale,
        constraints=LinearConstraint(rows, least, most),
        bounds=Bounds(0.0, allowed),
        integrality=np.ones(n * choices),
        options={"mip_rel_gap": 1e-9},
    )
    if solution.x is None:
        raise RankcastError(f"The knapsack was not solved: {solution.message}")
    return solution.x.reshape(n, choices).argmax(axis=1)


def _whole_units(problem: AllocationProblem, link: LinkState) -> FloatArray:
    """Return (B,) how many units fit, exactly; infinite where the deadline is no limit."""
    if problem.deadline == "penalise":
        return np.full(link.size, np.inf)
    return problem.link_costs.whole_units(problem.link_costs.budget_bits(link))
