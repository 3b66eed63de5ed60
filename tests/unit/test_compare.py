from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from rankcast.records import AdapterLayout, Projection
from rankcast.run.compare import ComparisonRow, bootstrap_interval, mcnemar, paired_differences
from rankcast.run.pictures import rank_grid


def row(snr_db: float, allocator: str, correct: Any) -> ComparisonRow:
    answers = np.array(correct, dtype=float)
    return ComparisonRow(snr_db, allocator, (1, 2), 8.0, 0.5, 0.5, answers.mean(), 1.0, answers)


def test_mcnemar_by_hand() -> None:
    ours, theirs = np.array([1, 1, 1, 1, 0, 1.0]), np.array([0, 0, 0, 0, 1, 1.0])
    # Four better, one worse: 2 · (1 + 5) / 2^5.
    assert mcnemar(ours, theirs) == pytest.approx(0.375)
    assert mcnemar(theirs, ours) == pytest.approx(0.375)
    assert mcnemar(ours, ours) == 1.0


def test_the_bootstrap_interval_agrees_with_scipy() -> None:
    difference = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=200)
    expected = bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert bootstrap_interval(difference, 0) == pytest.approx(tuple(expected), abs=0.01)
    assert bootstrap_interval(np.full(5, 0.25), 0) == (0.25, 0.25)


def test_differences_are_paired_by_link() -> None:
    rows = [
        row(0.0, "AirLLM", [1, 1, 0, 1]),
        row(0.0, "uniform", [1, 0, 0, 0]),
        row(5.0, "AirLLM", [1, 1, 1, 1]),
        row(5.0, "uniform", [1, 1, 1, 1]),
    ]
    at_0, at_5, whole = paired_differences(rows, "uniform", seed=0)
    assert (at_0.snr_db, at_0.difference, at_0.p_value) == (0.0, 0.5, 0.5)
    assert (at_5.difference, at_5.low, at_5.high, at_5.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert (whole.snr_db, whole.difference, whole.p_value) == (None, 0.25, None)
    assert whole.low <= 0.25 <= whole.high


def test_single_answers_stay_out_of_json() -> None:
    plain = row(5.0, "AirLLM", [1, 0]).to_plain()
    assert plain["mean_rank"] == 1.5
    assert plain["ranks"] == [1, 2]
    assert "correct" not in plain


def test_a_missing_projection_is_a_gap_in_the_grid() -> None:
    layout = AdapterLayout(
        (
            Projection("a.q", 2, "q", 4, 4),
            Projection("a.v", 2, "v", 4, 4),
            Projection("b.v", 5, "v", 4, 4),
        ),
        r_max=8,
    )
    np.testing.assert_array_equal(rank_grid(layout, [3, 1, 7]), [[3, 1], [np.nan, 7]])
