"""The statistics of a comparison: an interval of a mean difference, and a test of paired answers.

Shapes: `n` texts. All intervals are of 95 %. A bootstrap draws 10,000 resamples and takes the
percentiles of their means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from rankcast.errors import ConfigError
from rankcast.records import FloatArray

RESAMPLES = 10_000
TAILS = (0.025, 0.975)


def bootstrap_interval(
    difference: FloatArray, rng: np.random.Generator | int
) -> tuple[float, float]:
    """Return the interval of the mean of (n,) differences, resampling texts.

    Equal differences are counted, not listed: resampling n texts is drawing from a multinomial.

    Args:
        difference: of each text.
        rng: source of the resamples, or its seed.

    Raises:
        ConfigError: no text.
    """
    values, counts = np.unique(as_vector(difference), return_counts=True)
    n = int(counts.sum())
    drawn = np.random.default_rng(rng).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / n, TAILS)
    return float(low), float(high)


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Return the exact two-sided p-value of McNemar's test on pooled answers of equal shape.

    Raises:
        ConfigError: different shapes.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    check_same_shape(a, b)
    better, worse = int((a > b).sum()), int((a < b).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def as_vector(values: ArrayLike) -> FloatArray:
    """Return the values as a vector of floats.

    Raises:
        ConfigError: no value, or more than one axis.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size:
        raise ConfigError(f"Give at least one value in a vector; got shape {x.shape}.")
    return x


def check_same_shape(ours: FloatArray, theirs: FloatArray) -> None:
    """Refuse paired values of different shapes.

    Raises:
        ConfigError: they differ.
    """
    if ours.shape != theirs.shape:
        raise ConfigError(
            f"Paired values must have one shape, got {ours.shape} and {theirs.shape}."
        )
