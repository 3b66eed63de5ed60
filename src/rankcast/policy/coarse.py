"""What PPO says and what the networks see: the coarse description of a plan, and the state.

The coarse action must mean something, or PPO's gradient is noise by the time it has passed the
denoiser. It is the mean rank code of the plan per group of neighbouring layers and per kind of
projection. The denoiser learns it by hindsight: every plan it is shown comes with its description.

Differs from the paper, where a^out is a latent of dimension 6L without stated meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.allocation.base import AllocationProblem
from rankcast.policy.rank_code import bin_width
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Observation

N_STATE_FEATURES = 4


@dataclass(frozen=True, eq=False)
class CoarseDescription:
    """The linear map from a plan to its coarse description.

    Attributes:
        weights: (K, N), each row the average over one group of projections.
        names: K names of the groups.
        r_max: largest rank.
    """

    weights: FloatArray
    names: tuple[str, ...]
    r_max: int

    @classmethod
    def of_layout(cls, layout: AdapterLayout, depth_groups: int = 3) -> CoarseDescription:
        """Group the projections by depth (at most `depth_groups` groups) and by kind."""
        layers = sorted({p.layer for p in layout.projections})
        groups = min(depth_groups, len(layers))
        group_of = {layer: i * groups // len(layers) for i, layer in enumerate(layers)}
        depth = np.array([group_of[p.layer] for p in layout.projections])
        kind = np.array([layout.kinds.index(p.kind) for p in layout.projections])
        members = [depth == g for g in range(groups)]
        names = [f"depth {g + 1}/{groups}" for g in range(groups)]
        if len(layout.kinds) > 1:
            members += [kind == k for k in range(len(layout.kinds))]
            names += list(layout.kinds)
        table = np.array(members, dtype=np.float64)
        return cls(table / table.sum(axis=1, keepdims=True), tuple(names), layout.r_max)

    @property
    def size(self) -> int:
        """K."""
        return len(self.names)

    def __call__(self, ranks: IntArray) -> FloatArray:
        """Return the (B, K) description of (B, N) ranks, in [-1, 1]."""
        code = bin_width(self.r_max) * (np.asarray(ranks) + 0.5) - 1.0
        return code @ self.weights.T


def state_features(observation: Observation, problem: AllocationProblem) -> FloatArray:
    """Return (B, 4) what a plan depends on, each of order one.

    They are the log10 of η at full rank (the price of the link, through which bandwidth, deadline
    and rate act), SNR / 10 dB, lexical entropy around 2.5 nats, and OOV rate.
    """
    link, text = observation.link, observation.text
    return np.column_stack(
        [
            log_full_cost(link, problem),
            link.snr_db / 10.0,
            text.lexical_entropy - 2.5,
            text.oov_rate,
        ]
    )


def log_full_cost(link: LinkState, problem: AllocationProblem) -> FloatArray:
    """Return (B,) log10 of η at full rank, limited to four decades either side of 1."""
    full = problem.link_costs.full_bits / problem.link_costs.budget_bits(link)
    return np.clip(np.log10(full), -4.0, 4.0)


def actor_features(observation: Observation, problem: AllocationProblem) -> FloatArray:
    """Return (B, 4 + N): the state features and the ranks in force, mapped to [-1, 1]."""
    ranks = 2.0 * observation.ranks / problem.layout.r_max - 1.0
    return np.concatenate([state_features(observation, problem), ranks], axis=1)
