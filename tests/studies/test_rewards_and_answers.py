from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rankcast.errors import ConfigError
from studies.harness.spec import Job, Row
from studies.report.statistics import Estimate, t_interval, verdict
from studies.shared.judging import Answers, direct_answers, live_answers, pack, percent
from studies.shared.rewards import (
    Race,
    episodes_to,
    in_pairs,
    paired,
    plan_bits,
    race,
    rank_map,
    regret,
    reward,
    reward_series,
)

INF = math.inf
NO_INTERVAL = Estimate(0.2, math.nan, math.nan)


def row(seed: int = 0, regrets: tuple[float, ...] = (1.0, 0.5, 0.0), **values: Any) -> Row:
    """Return a row judged every 10 episodes, of rewards -0.5 (regret 0) to -0.7 (regret 1)."""
    curve = [{"episode": 10 * (i + 1), "deployed": r} for i, r in enumerate(regrets)]
    known = {"curve": curve, "oracle": 0.5, "best_uniform": 0.7, **values}
    return Row(Job(f"job-{seed}", seed), known, 1.0, 1.0, "cpu", {})


@pytest.mark.parametrize(
    ("low", "high", "claimed", "expected"),
    [
        (0.1, 0.3, 0.2, "reproduced"),
        (0.1, 0.3, 5.0, "smaller than claimed"),  # the direction is right, the size is not
        (-0.1, 0.3, 0.2, "not distinguishable"),
        (-0.1, 0.3, 0.3, "not distinguishable"),
        (-0.1, 0.3, 0.4, "smaller than claimed"),
        (0.0, 0.3, 0.4, "smaller than claimed"),
        (-0.3, -0.1, 0.0, "opposite sign"),
        (-0.3, -0.1, 0.4, "opposite sign"),
        (0.1, 0.3, INF, "reproduced"),
        (-0.1, 0.3, INF, "not distinguishable"),  # of a mere direction nothing is excluded
        (-0.3, -0.1, INF, "opposite sign"),
    ],
)
def test_a_verdict(low: float, high: float, claimed: float, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high), claimed) == expected


def test_without_an_interval_nothing_is_resolved() -> None:
    assert verdict(NO_INTERVAL, 0.1) == "not distinguishable"
    assert verdict(NO_INTERVAL, INF) == "not distinguishable"


def test_rewards_from_regrets() -> None:
    one = row(regrets=(1.0, 0.5, 0.25))
    assert regret(one) == 0.25
    assert regret(one, episode=20) == 0.5
    assert regret(one, episode=29) == 0.5
    assert reward(one, episode=10) == pytest.approx(-0.7)
    assert reward(one) == pytest.approx(-0.55)
    assert reward(row(regrets=(-0.5,))) == pytest.approx(-0.4)


def test_a_reward_series_has_the_interval_over_seeds() -> None:
    series = reward_series("a", [row(0, (1.0, 0.0)), row(1, (0.5, 0.0))])
    assert list(series.x) == [10, 20]
    assert list(series.y) == pytest.approx([-0.65, -0.5])
    expected = t_interval([-0.7, -0.6])
    assert series.low is not None
    assert series.high is not None
    assert (series.low[0], series.high[0]) == pytest.approx((expected.low, expected.high))
    assert series.low[1] == pytest.approx(series.high[1])
    alone = reward_series("a", [row(0, (1.0, 0.0))])
    assert alone.low == alone.high == alone.y


def test_rewards_are_paired_by_seed() -> None:
    ours = [row(0, (0.0,)), row(1, (0.5,)), row(7, (9.0,))]
    theirs = [row(2, (9.0,)), row(1, (1.0,)), row(0, (0.25,))]
    assert [(a.job.seed, b.job.seed) for a, b in in_pairs(ours, theirs)] == [(0, 0), (1, 1)]
    difference = paired(ours, theirs)
    expected = t_interval([0.05, 0.1])  # 0.2 of reward for each unit of regret
    assert difference.value == pytest.approx(0.075)
    assert difference.interval == pytest.approx(expected.interval)
    with pytest.raises(ConfigError):
        paired([row(0)], [row(1)])


def test_episodes_to_a_reward() -> None:
    one = row(regrets=(1.0, 0.2, 0.5))
    assert episodes_to(one, -0.7) == 10
    assert episodes_to(one, -0.6) == 20  # although it is lost again
    assert episodes_to(one, -0.5) == INF


def test_a_race_counts_from_where_the_other_itself_arrives() -> None:
    # They end with regret 0.5, which they first had after 20 of 40 episodes; we after 10.
    raced = race([row(0, (0.4, 0.9))], [row(0, (1.0, 0.5, 0.8, 0.5))])
    assert raced is not None
    assert raced.share.value == pytest.approx(0.5)
    assert raced.of_all == pytest.approx(0.25)
    assert (raced.missed, raced.seeds) == (0, (0,))
    assert raced.verdict(0.9) == "not distinguishable"  # one seed has no interval


def test_who_never_arrives_counts_with_all_episodes() -> None:
    ours = [row(0, (0.1,)), row(1, (0.9, 0.9, 0.9)), row(5)]
    theirs = [row(0, (0.9, 0.5)), row(1, (0.9, 0.5)), row(4)]
    raced = race(ours, theirs)
    assert raced is not None
    assert (raced.missed, raced.seeds) == (1, (0, 1))
    assert raced.share.value == pytest.approx((10 / 20 + 30 / 20) / 2)
    assert race(ours, []) is None
    assert race([row(0)], [row(1)]) is None


@pytest.mark.parametrize(
    ("low", "high", "missed", "expected"),
    [
        (0.1, 0.3, 0, "reproduced"),
        (0.1, 0.3, 1, "not distinguishable"),  # a lower bound cannot show that few are enough
        (0.1, 0.31, 0, "not distinguishable"),
        (0.31, 0.9, 0, "smaller than claimed"),
        (1.01, 1.9, 0, "opposite sign"),  # more episodes than the other, not fewer
        (0.31, 0.9, 2, "smaller than claimed"),  # but it can show that they are not
    ],
)
def test_the_verdict_of_a_race(low: float, high: float, missed: int, expected: str) -> None:
    assert Race(Estimate(0.2, low, high), 0.1, missed, (0, 1)).verdict(0.3) == expected


def test_nobody_is_raced_against_who_stood_still() -> None:
    still, falling = row(0, (1.5, 1.9, 1.5)), row(1, (1.4, 1.8, 1.9))
    raced = race([row(0, (0.1,)), row(1, (0.1,))], [still, falling])
    assert raced is not None
    assert raced.idle == 2
    assert raced.verdict(0.9) == "not testable here"
    assert "In 2 of 2 seeds PPO stood" in raced.note_on_idle("PPO")
    half = race([row(0, (0.1,)), row(1, (0.1,))], [still, row(1, (0.9, 0.5))])
    assert half is not None
    assert half.idle == 1
    assert half.verdict(0.1) != "not testable here"
    assert replace(half, idle=0).note_on_idle("PPO") == ""


def test_answers_are_paired_by_seed() -> None:
    ours = Answers(np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0.0]]), (0, 1, 9))
    theirs = Answers(np.array([[1, 1, 0, 0], [1, 1, 1, 0.0]]), (1, 0))
    assert ours.shared(theirs) == (0, 1)
    assert ours.minus(theirs).value == pytest.approx((1 + 1) / 8)
    assert ours.accuracy.value == pytest.approx(7 / 12)
    same = Answers(theirs.correct[::-1], (0, 1)).minus(theirs)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ConfigError):
        ours.minus(Answers(np.ones((1, 4)), (5,)))


def test_intervals_of_answers_resample_whole_groups() -> None:
    rng = np.random.default_rng(0)
    correct = np.repeat(rng.integers(0, 2, (2, 100)).astype(float), 4, axis=1)
    groups = np.repeat(np.arange(100), 4)
    theirs = Answers(np.zeros_like(correct), (0, 1))
    alone, grouped = Answers(correct, (0, 1)), Answers(correct, (0, 1), groups)
    for by_text, by_group in (
        (alone.accuracy, grouped.accuracy),
        (alone.minus(theirs), grouped.minus(theirs)),
    ):
        assert by_group.value == by_text.value
        assert by_group.half_width > 1.2 * by_text.half_width


def judged(seed: int, *links: tuple[float, list[int]]) -> Row:
    live = [
        {"snr_db": snr, "correct": pack(np.array(c, dtype=bool)), "n_texts": len(c)}
        for snr, c in links
    ]
    plans = [{"snr_db": snr, "payload_bits": 100.0 * seed + snr} for snr in (-5.0, 5.0)]
    return row(seed, live=live, plans=plans)


def test_live_answers_are_those_of_one_link() -> None:
    rows = [
        judged(0, (5.0, [1, 0, 1]), (15.0, [0, 0, 0])),
        judged(1),
        judged(2, (5.0, [1, 1, 1])),
    ]
    answers = live_answers(rows, 5.0)
    assert answers is not None
    assert answers.seeds == (0, 2)
    assert answers.correct.tolist() == [[1, 0, 1], [1, 1, 1]]
    assert live_answers(rows, -5.0) is None
    assert live_answers([], 5.0) is None
    assert plan_bits(rows, 5.0).tolist() == [5, 105, 205]


def test_direct_answers_are_those_of_the_row() -> None:
    rows = [row(4, correct=pack(np.array([True, False])), n_texts=2)]
    answers = direct_answers(rows)
    assert answers is not None
    assert answers.seeds == (4,)
    assert answers.correct.tolist() == [[1, 0]]
    assert direct_answers([]) is None


def test_percent() -> None:
    assert percent(None) == "–"
    assert percent(Estimate(0.5, 0.4, 0.6)) == "50.00 ± 10.00 %"
    assert percent(Estimate(0.015, 0.01, 0.03), 1, sign=True) == "+1.5 (+1.0 to +3.0) %"
    assert percent(Estimate(0.25, math.nan, math.nan), 0) == "25 %"


def test_a_rank_map_has_layers_across_and_kinds_down() -> None:
    # Two layers; projection n has rank n at the first link, and n + 2 at the second.
    ranks = np.arange(12.0)
    rows = [row(s, mean_ranks=[(ranks + s).tolist(), (ranks + s + 2).tolist()]) for s in (0, 2)]
    shown = rank_map("a", rows)
    assert shown.row_labels == ("q", "k", "v", "o", "fc1", "fc2")
    assert shown.column_labels == ("layer 1", "layer 2")
    assert shown.values[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert shown.values[:, 1].tolist() == [8, 9, 10, 11, 12, 13]


def test_answers_to_other_texts_share_no_seed() -> None:
    ours, theirs = Answers(np.ones((2, 4)), (0, 1)), Answers(np.ones((2, 5)), (0, 1))
    assert ours.shared(theirs) == ()
    with pytest.raises(ConfigError, match="same texts"):
        ours.minus(theirs)
