"""Ranks in bins that share a gain, and gains made decreasing along the rank."""

from __future__ import annotations

import numpy as np

from rankcast.records import AdapterLayout, FloatArray, IntArray


class RankBins:
    """Ranks 1..8 each for themselves, then doubling bins (9–16, 17–32, …) that share a gain.

    Args:
        layout: the projections and r_max.
    """

    def __init__(self, layout: AdapterLayout) -> None:
        self._n = layout.n_projections
        edges = np.array(_bin_edges(layout.r_max))
        self.widths = np.diff(edges).astype(np.float64)
        self._starts = edges[:-1]
        self.middles = self._starts + (self.widths - 1) / 2 + 1
        """Rank in the middle of each bin, from 1."""

    @property
    def size(self) -> int:
        """N·bins."""
        return self._n * len(self.widths)

    @property
    def full(self) -> FloatArray:
        """(N·bins,) components of each bin at full rank."""
        return np.tile(self.widths, self._n)

    def counts(self, ranks: IntArray) -> FloatArray:
        """Return (B, N·bins): how many components of each bin are active in (B, N) ranks."""
        ranks = np.asarray(ranks)
        active = np.clip(ranks[..., None] - self._starts, 0, self.widths)
        return active.reshape(len(ranks), self.size).astype(np.float64)

    def to_ranks(self, gains: FloatArray) -> FloatArray:
        """Return (B, N, R) gains of single ranks, decreasing, from (B, N·bins) of bins."""
        binned = gains.reshape(len(gains), self._n, -1)
        decreasing = np.maximum(isotonic_decreasing(binned, self.widths), 0.0)
        return np.repeat(decreasing, self.widths.astype(int), axis=2)


def isotonic_decreasing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted least-squares decreasing fit along the last axis.

    By the min-max formula, fit_i = min_{a ≤ i} max_{b ≥ i} mean(values[a..b]): for the few bins
    of a projection it is faster than pool-adjacent-violators called once per row.

    Args:
        values: (..., K).
        weights: (K,) positive.
    """
    k = len(weights)
    zero = np.zeros((*values.shape[:-1], 1))
    sums = np.concatenate([zero, np.cumsum(values * weights, axis=-1)], axis=-1)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    fit = np.full(values.shape, np.inf)
    for a in range(k):
        means = (sums[..., a + 1 :] - sums[..., a : a + 1]) / (mass[a + 1 :] - mass[a])
        best = np.maximum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        fit[..., a:] = np.minimum(fit[..., a:], best)
    return fit


def _bin_edges(r_max: int) -> list[int]:
    """Return 0, 1, …, 8, 16, 32, … up to r_max."""
    edges = list(range(min(r_max, 8) + 1))
    while edges[-1] < r_max:
        edges.append(min(2 * edges[-1], r_max))
    return edges
