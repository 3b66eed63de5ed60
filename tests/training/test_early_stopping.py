from __future__ import annotations

from typing import Any

import pytest

from rankcast.errors import RankcastError
from rankcast.training.run import EarlyStopping


@pytest.mark.parametrize(
    ("link_weight", "threshold"), [(0.01, -0.5), (0.1, -0.5), (0.5, -0.5), (1.0, -1.0)]
)
def test_the_threshold_of_the_paper(link_weight: Any, threshold: Any) -> None:
    assert EarlyStopping(link_weight).reward_threshold == threshold


def test_stops_at_the_fifth_evaluation_without_improvement() -> None:
    stopping = EarlyStopping(0.1)
    accuracies = [0.5, 0.8, 0.8, 0.7, 0.79, 0.8, 0.6]
    stops = [stopping.update(-0.4, accuracy) for accuracy in accuracies]
    assert stops == [False] * 6 + [True]


def test_an_improvement_starts_the_count_again() -> None:
    stopping = EarlyStopping(0.1, patience=2)
    stops = [stopping.update(-0.4, accuracy) for accuracy in (0.8, 0.7, 0.9, 0.9, 0.9)]
    assert stops == [False, False, False, False, True]


def test_a_poor_reward_keeps_training_going() -> None:
    stopping = EarlyStopping(0.1, patience=1)
    assert not stopping.update(-0.6, 0.8)
    assert not stopping.update(-0.5, 0.8)  # has to exceed the threshold, not to reach it
    assert stopping.update(-0.49, 0.8)


def test_continues_from_its_state() -> None:
    stopping = EarlyStopping(0.1, patience=2)
    stopping.update(-0.4, 0.8)
    stopping.update(-0.4, 0.8)
    other = EarlyStopping(0.1, patience=2)
    other.load_state_dict(stopping.state_dict())
    assert other.update(-0.4, 0.8)


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(RankcastError, match="diverged"):
        EarlyStopping(0.1).update(float("nan"), 0.5)
