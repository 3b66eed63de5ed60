"""The best plans that are known for a utility that can be computed.

Shapes: K links, `B` plans, `N` projections, `R` = r_max.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.solve import knapsack, waterfill
from rankcast.records import FloatArray, IntArray, LinkState

Loss = Callable[[IntArray], FloatArray]
"""(B,) noise-free U(r) of (B, N) ranks."""


def best_known(
    problem: AllocationProblem,
    loss: Loss,
    gains: FloatArray,
    link: LinkState,
    rng: np.random.Generator,
) -> IntArray:
    """Return (K, N) optimal plans: exact if U is additive, else the best of ten descents.

    Args:
        problem: λ, bounds and deadline rule.
        loss: U.
        gains: (N, R) loss removed by each component, if it were alone.
        link: K links.
        rng: of the starts of the descents.
    """
    additive = is_additive(loss, gains)
    decreasing = bool((np.diff(gains, axis=1) <= 0).all())
    if additive and not (decreasing and problem.deadline == "penalise"):
        return knapsack(_removed(gains), problem, link)
    best = waterfill(gains, problem, link)
    if additive:
        return best
    top = problem.layout.r_max + 1
    starts = [best, *(rng.integers(0, top, best.shape) for _ in range(9))]
    found = [descend(problem, loss, problem.feasible(start, link), link) for start in starts]
    scores = np.array([problem.objective(loss(ranks), ranks, link) for ranks in found])
    return np.array([found[i][k] for k, i in enumerate(scores.argmin(axis=0))])


def is_additive(loss: Loss, gains: FloatArray) -> bool:
    """Return whether U is its (N, R) gains added up, tried on random plans."""
    n, r_max = gains.shape
    ranks = np.random.default_rng(0).integers(0, r_max + 1, (64, n))
    expected = _removed(gains)[np.arange(n), ranks].sum(axis=1)
    found = loss(np.zeros((1, n), dtype=np.int64)) - loss(ranks)
    return bool(np.allclose(found, expected, rtol=1e-6, atol=1e-9))


def descend(problem: AllocationProblem, loss: Loss, ranks: IntArray, link: LinkState) -> IntArray:
    """Change one rank at a time while that lowers the objective and the plan may be sent."""
    ranks, top = ranks.copy(), problem.layout.r_max + 1

    def score(choice: IntArray) -> FloatArray:
        objective = problem.objective(loss(choice), choice, link)
        late = problem.link_costs.link_cost(choice, link) > 1.0
        return np.where(late & (problem.deadline == "enforce"), np.inf, objective)

    while True:
        before = score(ranks).mean()
        for m in range(ranks.shape[1]):
            choices = np.repeat(ranks[None], top, axis=0)
            choices[:, :, m] = np.arange(top)[:, None]
            scores = np.array([score(choice) for choice in choices[problem.min_rank :]])
            ranks[:, m] = problem.min_rank + scores.argmin(axis=0)
        if score(ranks).mean() >= before - 1e-12:
            return ranks


def _removed(gains: FloatArray) -> FloatArray:
    """Return (N, R + 1) loss removed by each projection at each rank."""
    return np.pad(gains.cumsum(axis=1), ((0, 0), (1, 0)))
