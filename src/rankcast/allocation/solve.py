"""The exact answer to Eq. 9 when the utility is known: water-filling, and the general knapsack."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from rankcast.allocation.base import AllocationProblem
from rankcast.errors import ConfigError, RankcastError
from rankcast.records import FloatArray, IntArray, LinkState


def waterfill(gains: FloatArray, problem: AllocationProblem, link: LinkState) -> IntArray:
    """Return the (B, N) optimum for gains that decrease along the rank.

    A component is sent iff it removes more loss than λ times its link cost. Where the deadline
    binds, the water level rises: the components with least gain per bit stay behind. That is
    optimal up to the one component that straddles the deadline; `knapsack` has no such gap.

    Args:
        gains: (N, R) or (B, N, R) loss removed by each component, decreasing along R.
        problem: λ, bounds and deadline.
        link: B links.

    Raises:
        InfeasibleDeadlineError: the smallest plan is too large for some link.
    """
    price = problem.link_weight * problem.component_costs(link)
    worthwhile = (gains > price).sum(axis=-1)
    return problem.feasible(worthwhile, link, gains)


def knapsack(values: FloatArray, problem: AllocationProblem, link: LinkState) -> IntArray:
    """Return the (B, N) optimum for any table of values, as a multiple-choice knapsack.

    Solved as a mixed-integer programme by HiGHS (through SciPy).

    Args:
        values: (N, R + 1) loss removed by each projection at each rank, in any shape.
        problem: λ, bounds and deadline.
        link: B links.

    Raises:
        ConfigError: values of another shape, or not finite.
        InfeasibleDeadlineError: the smallest plan is too large for some link.
        RankcastError: the solver gave up.
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
    price = problem.link_weight / problem.link_costs.budget_bits(link)
    prices = price * problem.link_costs.bits_per_unit
    plans = [
        _choose(price * units - values, units, problem.min_rank, limit)
        for price, limit in zip(prices, _whole_units(problem, link), strict=True)
    ]
    # The solver's tolerance may let pass what is a hair too large.
    return problem.feasible(np.array(plans), link, np.diff(values, axis=1))


def _choose(regret: FloatArray, units: FloatArray, min_rank: int, limit: float) -> IntArray:
    """Return the (N,) ranks of least total regret, (N, R + 1), whose units keep to a limit."""
    n, choices = regret.shape
    one_choice = csr_array(block_diag([np.ones((1, choices))] * n))
    allowed: Any = np.tile(np.arange(choices) >= min_rank, n).astype(np.float64)
    # HiGHS stops at an absolute gap of 1e-6, which must be little beside the values.
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
