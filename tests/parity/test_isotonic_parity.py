import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from rankcast.allocation.utility import isotonic_decreasing


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
def test_isotonic_decreasing_is_scipys(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = rng.integers(1, 33, size).astype(np.float64)
    values = rng.normal(size=(4, 25, size))
    values[0, :5] = np.round(values[0, :5])  # ties
    values[1, :5] = np.sort(values[1, :5])  # all to be pooled
    values[2, :5] = -np.sort(values[2, :5])  # nothing to be done
    fit = isotonic_decreasing(values, weights)
    for row, ours in zip(values.reshape(-1, size), fit.reshape(-1, size), strict=True):
        theirs = isotonic_regression(row, weights=weights, increasing=False).x
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert fit[2, :5] == pytest.approx(values[2, :5])
