"""A synthetic learner that is given levels, and whose optimum is known.

Updates of components have energies in proportion to the gains of `rankcast.learner.synthetic`. A
level keeps what rounding leaves of that energy. How much loss a unit of energy removes differs from
projection to projection, and nobody but the learner knows it. Levels lie on a hull, so that
water-filling is exact.
"""

from __future__ import annotations

import numpy as np

from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.levels import N_LEVELS, Levels
from rankcast.codec.planner import Spreads
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn, RateModel
from rankcast.records import AdapterLayout, FloatArray

OVERHEAD_BITS = 8.0 * 150
"""Of a lean file beside its payload."""
SENSITIVITY_STD = 0.7
"""Of the logarithm of the loss that a unit of energy removes, over projections."""


def synthetic_levels(gains: FloatArray, layout: AdapterLayout, n_levels: int = N_LEVELS) -> Levels:
    """Return the levels of an adapter whose components have energies in proportion to their gains.

    Args:
        gains: (N, R) loss removed by each component.
        layout: widths of the projections.
        n_levels: K.
    """
    d_out = np.array([p.d_out for p in layout.projections], dtype=np.int64)
    d_in = np.array([p.d_in for p in layout.projections], dtype=np.int64)
    norms = gains**0.25  # of a left column and of a right row: their product squared is the energy
    left, right = norms / np.sqrt(d_out)[:, None], norms / np.sqrt(d_in)[:, None]
    spreads = Spreads(left, right, d_out, d_in)
    return Levels.of_spreads(spreads, gains, n_levels, OVERHEAD_BITS)


def synthetic_level_problem(
    seed: int = 0,
    n_envs: int = 1,
    *,
    layout: AdapterLayout | None = None,
    rate_model: RateModel | None = None,
    link_weight: float = 0.1,
    interaction_share: float = 0.0,
) -> tuple[SyntheticLearner, LevelProblem]:
    """Return a learner and the problem of its levels.

    Args:
        seed: of the utility.
        n_envs: B.
        layout: widths and largest rank of the projections; None for MiniLM's, at rank 8.
        rate_model: how SNR becomes rate; None for Shannon's.
        link_weight: λ.
        interaction_share: see `SyntheticUtility.draw`.
    """
    shape = layout or transformer_layout()
    rng = np.random.default_rng(seed)
    levels = synthetic_levels(SyntheticUtility.draw(rng, shape).gains, shape)
    problem = LevelProblem.of(levels, shape, rate_model or Awgn(), link_weight)
    energies = levels.step_gains
    sensitivity = np.exp(SENSITIVITY_STD * rng.standard_normal(len(energies)))
    gains = energies * sensitivity[:, None]
    gains *= energies.sum() / gains.sum()
    utility = SyntheticUtility.with_interactions(gains, rng, interaction_share)
    return SyntheticLearner(problem.layout, utility, n_envs, seed=seed), problem
