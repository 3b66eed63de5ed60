from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rankcast.errors import ConfigError
from rankcast.statistics import bootstrap_interval, mcnemar


def test_the_bootstrap_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    graded, answers = (
        rng.normal(0.1, 1.0, 150),
        rng.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.7, 0.2]),
    )
    for difference in (graded, answers):
        expected = stats.bootstrap(
            (difference,), np.mean, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert bootstrap_interval(difference, 0) == pytest.approx(tuple(expected), abs=0.01)
    same = bootstrap_interval(graded, np.random.default_rng(0))
    assert same == bootstrap_interval(graded, 0)
    assert bootstrap_interval(np.full(5, 0.25), 0) == (0.25, 0.25)


def test_mcnemar_by_hand() -> None:
    ours, theirs = np.array([1, 1, 1, 1, 0, 1.0]), np.array([0, 0, 0, 0, 1, 1.0])
    # Four better, one worse: 2 · (1 + 5) / 2^5.
    assert mcnemar(ours, theirs) == pytest.approx(0.375)
    assert mcnemar(theirs, ours) == mcnemar(ours, theirs) == stats.binomtest(4, 5).pvalue
    assert mcnemar(ours, ours) == 1.0


def test_mcnemar_pools_answers() -> None:
    ours, theirs = np.array([[1, 1, 1], [1, 0, 1.0]]), np.array([[0, 0, 0], [0, 1, 1.0]])
    assert mcnemar(ours, theirs) == mcnemar(ours.ravel(), theirs.ravel()) == pytest.approx(0.375)
    with pytest.raises(ConfigError, match="one shape"):
        mcnemar(ours, theirs[0])
