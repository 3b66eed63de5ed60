from __future__ import annotations

from typing import Any

import numpy as np

from rankcast.records import AdapterLayout, Plan, Projection
from rankcast.training.comparison import ComparisonRow, paired_differences
from rankcast.training.pictures import rank_grid
from rankcast.training.run import Judgement


def row(snr_db: float, allocator: str, correct: Any) -> ComparisonRow:
    answers = np.array(correct, dtype=float)
    plan = Plan(np.array([1, 2]), 8.0, 16.0, 0.5, 0.5)
    return ComparisonRow(snr_db, allocator, plan, Judgement(answers.mean(), 1.0, answers))


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
