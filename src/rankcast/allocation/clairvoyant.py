"""What no policy can exceed: the best delivery for one who knows every SNR to come.

Shapes: `T` steps, `N` projections, `R` = r_max. The value of a delivery is what it removes from the
discounted loss for ever, less λ times the discounted link cost.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from rankcast.allocation.incremental import IncrementalProblem
from rankcast.errors import RankcastError
from rankcast.records import FloatArray, LinkState


def clairvoyant_value(gains: FloatArray, problem: IncrementalProblem, path: LinkState) -> float:
    """Return the greatest value of a delivery along a path; exact while steps have no limit.

    Each component is sent at the step where γ^t·(g/(1 - γ) - λ·c_t) is greatest, if that is above
    zero. With `deadline="penalise"` this is attained; otherwise `coupled_clairvoyant_value` is the
    tighter bound.

    Args:
        gains: (N, R) loss removed per step by each component, decreasing along R.
        problem: λ, γ and link costs.
        path: T links, one after the other.
    """
    price = problem.link_weight * problem.component_costs(path)
    fades = problem.discount ** np.arange(path.size)
    worth = gains / (1.0 - problem.discount)
    values = fades[:, None, None] * (worth - price)
    return float(np.maximum(values.max(axis=0), 0.0).sum())


def coupled_clairvoyant_value(
    gains: FloatArray, problem: IncrementalProblem, path: LinkState
) -> float:
    """Return an upper bound on a delivery whose every step has to meet its deadline (Eq. 7).

    The linear relaxation: components may be split over steps, and each step carries at most what
    arrives in time. Solved by HiGHS (through SciPy).

    Args:
        gains: (N, R) loss removed per step by each component, decreasing along R.
        problem: λ, γ and link costs.
        path: T links, one after the other.

    Raises:
        RankcastError: the solver gave up.
    """
    bits = problem.link_costs.component_bits.ravel()
    price = problem.link_weight * bits / problem.link_costs.budget_bits(path)[:, None]
    fades = problem.discount ** np.arange(path.size)
    values = fades[:, None] * (gains.ravel() / (1.0 - problem.discount) - price)
    step, component = np.nonzero(values > 0.0)
    if not len(step):
        return 0.0
    column = np.arange(len(step))
    load = bits[component] / problem.link_costs.budget_bits(path)[step]
    n_limits = len(bits) + path.size
    limits = csr_array(
        (
            np.concatenate([np.ones(len(step)), load]),
            (np.concatenate([component, len(bits) + step]), np.concatenate([column, column])),
        ),
        shape=(n_limits, len(step)),
    )
    objective = values[step, component]
    solution = linprog(-objective, A_ub=limits, b_ub=np.ones(n_limits), method="highs")
    if solution.x is None:
        raise RankcastError(f"The clairvoyant bound was not solved: {solution.message}")
    return float(-solution.fun)
