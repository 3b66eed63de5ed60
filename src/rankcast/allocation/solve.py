"""The exact answer to Eq. 9 when the utility is known: water-filling, and the general knapsack."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array, vstack

from rankcast.allocation.base import AllocationProblem
from rankcast.errors import ConfigError, InfeasibleDeadlineError
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
    price = problem.link_weight * problem.cost_per_rank(link)
    worthwhile = (gains > price[..., None]).sum(axis=-1)
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
    """
    n, choices = problem.layout.n_projections, problem.layout.r_max + 1
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (n, choices) or not np.isfinite(values).all():
        raise ConfigError(
            f"values must be finite, one row for each projection and one column for each rank "
            f"0..r_max: ({n}, {choices}), got {values.shape}."
        )
    problem.require_feasible(link)
    one_choice = csr_array(block_diag([np.ones((1, choices))] * n))
    allowed = np.tile(np.arange(choices) >= problem.min_rank, n).astype(np.float64)
    plans = []
    for cost in problem.cost_per_rank(link):
        spent = (cost[:, None] * np.arange(choices)).ravel()
        limit = 1.0 if problem.deadline == "enforce" else np.inf
        rows = vstack([one_choice, csr_array(spent[None, :])])
        solution = milp(
            problem.link_weight * spent - values.ravel(),
            constraints=LinearConstraint(rows, [*np.ones(n), -np.inf], [*np.ones(n), limit]),
            bounds=Bounds(0.0, allowed),
            integrality=np.ones(n * choices),
            options={"mip_rel_gap": 1e-9},
        )
        if solution.x is None:
            raise InfeasibleDeadlineError(problem.min_rank * cost.sum(), limit)
        plans.append(solution.x.reshape(n, choices).argmax(axis=1))
    return np.array(plans, dtype=np.int64)
