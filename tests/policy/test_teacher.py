from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from helpers.allocation import row_of
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.waterfilling import plan_at_price, waterfill
from rankcast.config.policy import TeacherConfig, UtilityConfig
from rankcast.learner.synthetic import SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.policy.airllm import AirLLM, CoarseDescription, actor_features, state_features
from rankcast.policy.rank_code import encode
from rankcast.policy.teacher import Teacher
from rankcast.records import LinkState, Observation, TextStats
from studies.sequential.problem import IncrementalProblem

LAYOUT = transformer_layout(n_layers=3, d_hidden=8, d_ffn=20, r_max=4)
COSTS = LinkCostModel.for_layout(LAYOUT, Awgn())
FULL_BITS = float(COSTS.payload_bits(np.full(18, 4)))


def problem(**settings: Any) -> AllocationProblem:
    return AllocationProblem(LAYOUT, COSTS, **settings)


def observation(link: LinkState, ranks: Any = None) -> Observation:
    n = link.size
    text = TextStats(np.linspace(2.0, 3.0, n), np.linspace(0.0, 0.2, n))
    return Observation(link, text, np.zeros((n, 18), dtype=np.int64) if ranks is None else ranks)


def test_groups_by_depth_and_kind() -> None:
    describe = CoarseDescription.of_layout(LAYOUT, depth_groups=3)
    assert describe.size == 9
    assert describe.names[:3] == ("depth 1/3", "depth 2/3", "depth 3/3")
    assert describe.names[3:] == ("q", "k", "v", "o", "fc1", "fc2")
    assert describe.weights.sum(axis=1) == pytest.approx(np.ones(9))
    assert (describe.weights[0] > 0).nonzero()[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (describe.weights[3] > 0).nonzero()[0].tolist() == [0, 6, 12]


@pytest.mark.parametrize(("n_layers", "groups", "expected"), [(1, 3, 1), (5, 2, 2), (6, 4, 4)])
def test_depth_groups_are_even_and_never_empty(n_layers: int, groups: int, expected: int) -> None:
    describe = CoarseDescription.of_layout(transformer_layout(n_layers), groups)
    depth = describe.weights[:expected] > 0
    assert describe.size == expected + 6
    assert depth.sum(axis=0).tolist() == [1] * (6 * n_layers)
    assert np.ptp(depth.sum(axis=1)) <= 6


def test_one_kind_needs_no_group_of_its_own() -> None:
    only = row_of(4, 2)
    assert CoarseDescription.of_layout(only, 2).names == ("depth 1/2", "depth 2/2")


def test_the_description_is_the_mean_code_of_each_group() -> None:
    describe = CoarseDescription.of_layout(LAYOUT, 3)
    ranks = np.random.default_rng(0).integers(0, 5, (7, 18))
    code = encode(torch.as_tensor(ranks), 4).double().numpy()
    coarse = describe(ranks)
    assert coarse.shape == (7, 9)
    assert coarse[:, 1] == pytest.approx(code[:, 6:12].mean(axis=1), abs=1e-6)
    assert coarse[:, 3] == pytest.approx(code[:, ::6].mean(axis=1), abs=1e-6)
    # The middle of the lowest bin of five and that of the highest.
    assert describe(np.zeros((1, 18), dtype=int)) == pytest.approx(np.full((1, 9), -0.8))
    assert describe(np.full((1, 18), 4)) == pytest.approx(np.full((1, 9), 0.8))


def test_state_features_by_hand() -> None:
    link = LinkState(np.zeros(2), np.array([FULL_BITS, FULL_BITS * 1e9]), 1.0)
    features = state_features(observation(link), problem())
    # At 0 dB the link carries its bandwidth: η of full rank is 1, then 1e-9, shown as four decades.
    assert features[:, 0] == pytest.approx([0.0, -4.0], abs=1e-9)
    assert features[:, 1] == pytest.approx([0.0, 0.0])
    assert features[:, 2] == pytest.approx([-0.5, 0.5])
    assert features[:, 3] == pytest.approx([0.0, 0.2])
    ranks = np.array([[0] * 18, [4] * 18])
    seen = actor_features(observation(link, ranks), problem())
    assert seen.shape == (2, 22)
    assert np.array_equal(seen[:, :4], features)
    assert seen[:, 4:].tolist() == [[-1.0] * 18, [1.0] * 18]


def teacher(utility: BayesianUtility | None = None, **config: Any) -> Teacher:
    describe = CoarseDescription.of_layout(LAYOUT)
    settings = TeacherConfig(**({"plans": 64} | config))
    return Teacher(problem(), utility or BayesianUtility(LAYOUT), describe, settings)


def met(share: float) -> Observation:
    return observation(LinkState(np.zeros(2), FULL_BITS * share, 1.0))


def learned() -> BayesianUtility:
    truth = SyntheticUtility.draw(np.random.default_rng(0), LAYOUT)
    utility, rng = BayesianUtility(LAYOUT, UtilityConfig(noise_std=0.001)), np.random.default_rng(1)
    ranks = rng.integers(0, 5, (4000, 18))
    utility.update(ranks, truth.loss(ranks), TextStats(np.full(4000, 2.5), np.full(4000, 0.1)))
    return utility


def test_a_lesson_holds_feasible_plans_and_their_descriptions() -> None:
    guide = teacher()
    guide.remember(met(0.4))
    lesson = guide.lesson(np.random.default_rng(0))
    assert lesson.ranks.shape == (64, 18)
    assert lesson.features.shape == (64, 4)
    assert lesson.coarse == pytest.approx(guide.describe(lesson.ranks))
    assert lesson.explore.tolist() == [True, False] * 32
    assert lesson.link.size == 64
    assert (COSTS.payload_bits(lesson.ranks) <= COSTS.budget_bits(lesson.link)).all()
    links = observation(lesson.link)
    assert lesson.features[:, :2] == pytest.approx(state_features(links, problem())[:, :2])
    again = guide.lesson(np.random.default_rng(0))
    assert np.array_equal(again.ranks, lesson.ranks)
    assert not np.array_equal(guide.lesson(np.random.default_rng(1)).ranks, lesson.ranks)


def test_the_actor_is_shown_the_plan_of_the_expected_gains() -> None:
    utility = learned()
    lesson = teacher(utility, group_price_spread=0.0).lesson(np.random.default_rng(0))
    best = waterfill(utility.mean_gains(), problem(), lesson.link)
    assert lesson.best_coarse == pytest.approx(CoarseDescription.of_layout(LAYOUT)(best))
    assert np.array_equal(lesson.ranks[~lesson.explore], best[~lesson.explore])


def test_exploring_is_as_broad_as_the_belief() -> None:
    def spread(utility: BayesianUtility) -> float:
        guide = teacher(utility, group_price_spread=0.0, wide_links=0.0, plans=128)
        guide.remember(met(0.5))
        lesson = guide.lesson(np.random.default_rng(0))
        assert lesson.ranks[~lesson.explore].std(axis=0).max() == 0
        return float(lesson.ranks[lesson.explore].std(axis=0).mean())

    assert spread(BayesianUtility(LAYOUT)) > 4 * spread(learned())


def test_prices_by_group_spread_the_descriptions() -> None:
    utility = learned()
    guides = [teacher(utility, group_price_spread=s, wide_links=0.0, plans=256) for s in (0.0, 0.6)]
    lessons = []
    for guide in guides:
        guide.remember(met(0.5))
        lessons.append(guide.lesson(np.random.default_rng(0)))
    flat, wide = (lesson.coarse[~lesson.explore].std(axis=0) for lesson in lessons)
    assert flat.max() == pytest.approx(0.0, abs=1e-12)
    assert wide.min() > 0.02


def test_the_shares_of_links() -> None:
    guide = teacher(plans=2000, wide_links=0.25)
    everywhere = guide.lesson(np.random.default_rng(0)).link
    assert np.ptp(everywhere.snr_db) > 30  # nothing was met yet
    guide.remember(met(0.4))
    link = guide.lesson(np.random.default_rng(0)).link
    assert (link.bandwidth_hz != FULL_BITS * 0.4).mean() == pytest.approx(0.25, abs=0.04)


def test_links_too_poor_for_the_smallest_plan_teach_nothing() -> None:
    guide = Teacher(
        problem(min_rank=3), BayesianUtility(LAYOUT), CoarseDescription.of_layout(LAYOUT)
    )
    for share in (0.5, 0.8):  # the smallest plan takes 0.75
        guide.remember(met(share))
    lesson = guide.lesson(np.random.default_rng(0))
    assert lesson.ranks.min() == 3
    assert (COSTS.budget_bits(lesson.link) >= 0.75 * FULL_BITS).all()


def test_memory_is_limited_and_can_be_continued() -> None:
    guide = teacher(memory=3)
    for share in (0.1, 0.2, 0.3):
        guide.remember(met(share))
    state = copy.deepcopy(guide.state_dict())
    assert state["states"].shape == (3, 5)
    assert state["states"][:, 1] == pytest.approx(FULL_BITS * np.array([0.2, 0.3, 0.3]))
    other = teacher(memory=3)
    other.load_state_dict(state)
    ours, theirs = (t.lesson(np.random.default_rng(2)) for t in (guide, other))
    assert np.array_equal(ours.ranks, theirs.ranks)
    fresh = teacher()
    fresh.load_state_dict(teacher().state_dict())
    assert fresh.state_dict()["states"].shape == (0, 5)


def test_a_price_by_link_is_what_the_plans_are_solved_under() -> None:
    utility = learned()
    dear = problem(link_weight=3.0, deadline="penalise")
    describe, settings = CoarseDescription.of_layout(LAYOUT), TeacherConfig(64, wide_links=0.0)
    link = LinkState(np.array([0.0, 10.0]), FULL_BITS, 1.0)
    lessons = []
    for price in (None, lambda link: np.where(link.snr_db > 5.0, 0.05, 1.0)):
        guide = Teacher(dear, utility, describe, settings, price)
        guide.remember(observation(link))
        lessons.append(guide.lesson(np.random.default_rng(0)))
    before, after = lessons
    good = after.link.snr_db > 5.0
    assert np.array_equal(before.ranks[~good], after.ranks[~good])
    assert (after.ranks[good] >= before.ranks[good]).all()
    best = waterfill(utility.mean_gains() / 0.05, dear, after.link)
    assert after.best_coarse[good] == pytest.approx(describe(best[good]))
    assert after.ranks[good].sum() > before.ranks[good].sum() > 0


def delivering() -> Teacher:
    whole = IncrementalProblem(LAYOUT, COSTS)
    guide = Teacher(whole, learned(), CoarseDescription.of_layout(LAYOUT), TeacherConfig(plans=64))
    for level, share in enumerate((0.1, 0.2, 0.3)):
        link = LinkState(np.zeros(2), FULL_BITS * share, 1.0)
        guide.remember(observation(link, np.full((2, 18), level)))
    return guide


def test_where_the_increase_is_paid_for_plans_are_solved_for_what_was_received() -> None:
    guide = delivering()
    lesson = guide.lesson(np.random.default_rng(0))
    assert lesson.received is not None
    assert set(np.unique(lesson.received)) == {0, 1, 2}
    met_link = np.isin(lesson.link.bandwidth_hz, FULL_BITS * np.array([0.1, 0.2, 0.3]))
    level = np.rint(10 * lesson.link.bandwidth_hz / FULL_BITS).astype(int) - 1
    assert np.array_equal(lesson.received[met_link, 0], level[met_link])
    increase = np.maximum(lesson.ranks - lesson.received, 0)
    assert (COSTS.payload_bits(increase) <= COSTS.budget_bits(lesson.link)).all()
    seen = observation(lesson.link, lesson.received)
    gains = np.repeat(guide.utility.mean_gains()[None], 64, axis=0)
    best = plan_at_price(gains, guide.problem, seen)
    assert lesson.best_coarse == pytest.approx(guide.describe(best))
    assert teacher().lesson(np.random.default_rng(0)).received is None


def test_what_was_received_is_continued() -> None:
    guide = delivering()
    other = Teacher(guide.problem, guide.utility, guide.describe, guide.config)
    other.load_state_dict(copy.deepcopy(guide.state_dict()))
    ours, theirs = (t.lesson(np.random.default_rng(2)) for t in (guide, other))
    assert np.array_equal(ours.ranks, theirs.ranks)
    assert ours.received is not None
    assert theirs.received is not None
    assert np.array_equal(ours.received, theirs.received)


def test_the_actor_is_shown_what_was_received() -> None:
    guide = delivering()
    policy = AirLLM(guide.problem)
    lesson = guide.lesson(np.random.default_rng(0))
    index = np.array([3, 0, 5])
    assert lesson.received is not None
    received = lesson.received[index]
    seen = policy.lesson_input(lesson.features[index], received, np.random.default_rng(0))
    assert seen[:, :4] == pytest.approx(lesson.features[index], abs=1e-6)
    assert seen[:, 4:] == pytest.approx(received / 2 - 1.0)
    text = TextStats(lesson.features[:, 2] + 2.5, lesson.features[:, 3])
    acted = Observation(lesson.link, text, lesson.received)
    assert policy.actor_input(acted)[index] == pytest.approx(seen, abs=1e-5)
