"""Tiny adapters with costs that can be worked out by hand, links of known budgets, and states."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankcast.allocation.beliefs import N_BASELINE, BayesianUtility, baseline_features
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.saturating import SaturatingUtility
from rankcast.learner.synthetic import transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import (
    AdapterLayout,
    FloatArray,
    IntArray,
    LinkState,
    Observation,
    Projection,
    TextStats,
)

LAYOUT = transformer_layout(n_layers=2, d_hidden=8, d_ffn=20, r_max=4)
"""Twelve projections of all six kinds."""
COSTS = LinkCostModel.for_layout(LAYOUT, Awgn())
PROBLEM = AllocationProblem(LAYOUT, COSTS)
FULL_BITS = float(COSTS.payload_bits(np.full(12, 4)))

PAIR = AdapterLayout((Projection("a", 0, "q", 3, 4), Projection("b", 0, "k", 11, 12)), r_max=3)
"""Two projections of 8 and 24 parameters a rank."""
PAIR_COSTS = LinkCostModel.for_layout(PAIR, Awgn(), bits_per_param=1.0)
"""At one bit a parameter a budget in bits is what fits."""

SMALL_POLICY: dict[str, Any] = {"hidden": 16, "blocks": 1, "actor_hidden": 16}
"""Settings of networks that train in milliseconds."""


def row_of(n: int, r_max: int) -> AdapterLayout:
    """Return `n` equal projections of 8 parameters a rank, one a layer."""
    return AdapterLayout(tuple(Projection(f"p{i}", i, "q", 3, 4) for i in range(n)), r_max)


def budget(*bits: float) -> LinkState:
    """Return links that carry so many bits: at 0 dB one hertz carries one bit a second."""
    return LinkState(np.zeros(len(bits)), np.array(bits, dtype=np.float64), 1.0)


def text(size: int, entropy: float = 2.5, oov: float = 0.1) -> TextStats:
    """Return texts that are all alike."""
    return TextStats(np.full(size, entropy), np.full(size, oov))


def state(link: LinkState, ranks: IntArray | int = 0, n: int = 12) -> Observation:
    """Return what is observed of links: the same text everywhere, and the active ranks."""
    ranks = np.broadcast_to(np.asarray(ranks, dtype=np.int64), (link.size, n)).copy()
    return Observation(link, text(link.size), ranks)


def predicted(utility: Any, ranks: IntArray, words: TextStats) -> FloatArray:
    """Return the (B,) task losses of plans that a belief expects."""
    counts, baseline = utility._bins.counts(ranks), baseline_features(words)
    if isinstance(utility, BayesianUtility):
        return np.concatenate([baseline, -counts], axis=1) @ utility._mean()
    assert isinstance(utility, SaturatingUtility)
    utility._fit()
    b, log_amplitude, log_gains = np.split(utility._theta, [N_BASELINE, N_BASELINE + 1])
    return baseline @ b + np.exp(log_amplitude - counts @ np.exp(log_gains))
