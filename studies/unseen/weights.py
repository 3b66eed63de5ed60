"""Learn how much of its error a model notices in each projection, from what the weights look like.

What is learned is the logarithm of the divergence for each squared error, within an adapter: its
mean over the projections says nothing about where bits belong, and is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.errors import DataError
from rankcast.naming import ORDER
from rankcast.records import FloatArray
from studies.unseen.measured import Measured

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
Learner = Callable[[Sequence[Measured]], "Weights"]


@dataclass(frozen=True, eq=False)
class Weights:
    """A linear map from a projection's columns to its log sensitivity.

    Attributes:
        columns: makes (N, C) columns of what is known of an adapter.
        centre: (C,) mean of each column where it was learned.
        spread: (C,) its standard deviation, 1 where it is 0.
        slopes: (C,) of the columns in their spreads.
        penalty: of the squares of the slopes.
    """

    columns: Callable[[Measured], FloatArray]
    centre: FloatArray
    spread: FloatArray
    slopes: FloatArray
    penalty: float

    def log_weights(self, adapter: Measured) -> FloatArray:
        """Return (N,) what is predicted, with a mean of 0 over the projections."""
        found = (self.columns(adapter) - self.centre) / self.spread @ self.slopes
        return found - found.mean()


def target(adapter: Measured) -> FloatArray:
    """Return (N,) log sensitivities with a mean of 0."""
    found = adapter.log_sensitivity
    return found - found.mean()


def by_kind(adapter: Measured) -> FloatArray:
    """Return (N, C) columns of 0 and 1: which kind a projection is of."""
    return np.array([[kind == other for other in ORDER] for kind in adapter.kinds], dtype=float)


def by_weights(adapter: Measured) -> FloatArray:
    """Return (N, C) columns: kind, depth, both together, and how the weights look.

    Depth is 0 in the first layer and 1 in the last. Features are taken relative to their mean over
    the adapter, so that its scale does not matter.
    """
    kinds = by_kind(adapter)
    depth = np.array(adapter.layers)[:, None] / max(adapter.n_layers - 1, 1)
    looks = np.array(adapter.features)
    return np.hstack([kinds, depth, depth**2, kinds * depth, looks - looks.mean(axis=0)])


def learn(
    adapters: Sequence[Measured],
    columns: Callable[[Measured], FloatArray],
    penalties: Sequence[float] = PENALTIES,
) -> Weights:
    """Return ridge regression with the penalty that predicts adapters left out one by one best.

    Raises:
        DataError: fewer than two adapters.
    """
    if len(adapters) < 2:
        raise DataError(f"Weights are learned from two adapters or more, got {len(adapters)}.")

    def missed(penalty: float) -> float:
        total = 0.0
        for i, left_out in enumerate(adapters):
            others = [*adapters[:i], *adapters[i + 1 :]]
            found = _fit(others, columns, penalty).log_weights(left_out)
            total += float(np.square(found - target(left_out)).mean())
        return total

    best = min(penalties, key=missed) if len(penalties) > 1 else penalties[0]
    return _fit(adapters, columns, best)


def _fit(
    adapters: Sequence[Measured], columns: Callable[[Measured], FloatArray], penalty: float
) -> Weights:
    """Return ridge regression over the projections of all adapters."""
    x = np.concatenate([columns(a) for a in adapters])
    y = np.concatenate([target(a) for a in adapters])
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    z = (x - centre) / spread
    slopes = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return Weights(columns, centre, spread, slopes, penalty)


def explained(predicted: FloatArray, wanted: FloatArray) -> float:
    """Return the share of the variance of log sensitivities that a prediction explains."""
    missed = float(np.square(wanted - predicted).sum())
    return 1.0 - missed / max(float(np.square(wanted - wanted.mean()).sum()), 1e-12)
