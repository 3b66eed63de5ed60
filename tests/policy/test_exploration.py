"""Who acts while the policy learns: the policy, or the teacher in a share of the episodes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.allocation import COSTS, FULL_BITS, LAYOUT, PROBLEM, SMALL_POLICY, budget, state
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.policy import PolicyConfig, TeacherConfig, TrainingConfig
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.env.mdp import Outcome
from rankcast.errors import ConfigError
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility
from rankcast.link.processes import IidSnr
from rankcast.policy import algorithm1
from rankcast.policy.airllm import AirLLM, CoarseDescription
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.policy.ppo import PpoMetrics, RolloutBatch, ppo_update
from rankcast.policy.teacher import Teacher
from rankcast.records import IntArray, LinkState

HORIZON, ENVS = 4, 3
QUICK = TrainingConfig(gradient_steps=2, warm_up_steps=2, teacher=TeacherConfig(plans=32))


@dataclass
class Log:
    """The steps of an environment: what was executed, and what came of it."""

    ranks: list[IntArray]
    outcomes: list[Outcome]

    def __call__(self, link: LinkState, ranks: IntArray, outcome: Outcome) -> None:
        del link
        self.ranks.append(ranks)
        self.outcomes.append(outcome)


def trainer(share: float, weights: int = 0, seed: int = 1, **settings: Any) -> AirLLMTrainer:
    """Return a trainer whose environment keeps a log in `on_step`."""
    training = replace(QUICK, teacher_share=share, **settings.pop("training", {}))
    utility = SyntheticUtility.draw(np.random.default_rng(3), LAYOUT)
    learner = SyntheticLearner(LAYOUT, utility, ENVS)
    env = AllocationMdp(
        learner, IidSnr(), PROBLEM, EnvConfig(FULL_BITS, horizon=HORIZON), on_step=Log([], [])
    )
    policy = AirLLM(PROBLEM, PolicyConfig(**SMALL_POLICY | settings), weights)
    return AirLLMTrainer(env, policy, training, seed)


def log_of(one: AirLLMTrainer) -> Log:
    log = one.env._on_step
    assert isinstance(log, Log)
    return log


def executed(one: AirLLMTrainer, episodes: int = 2) -> IntArray:
    for _ in range(episodes):
        one.run_episode()
    return np.array(log_of(one).ranks)


def teacher(width: float, problem: AllocationProblem = PROBLEM) -> Teacher:
    config = TeacherConfig(explore_width=width)
    return Teacher(problem, BayesianUtility(LAYOUT), CoarseDescription.of_layout(LAYOUT), config)


def test_a_draw_without_width_is_the_plan_of_the_expected_gains() -> None:
    guide = teacher(width=0.0)
    link = budget(0.2 * FULL_BITS, 0.7 * FULL_BITS, 2.0 * FULL_BITS)
    acted = guide.act(state(link), np.random.default_rng(0))
    best = waterfill(guide.utility.mean_gains(), PROBLEM, link)
    assert acted.tolist() == best.tolist()


def test_every_link_gets_a_draw_of_its_own_that_arrives() -> None:
    link = budget(*[0.4 * FULL_BITS] * 20)
    acted = teacher(width=1.0).act(state(link), np.random.default_rng(0))
    assert len({tuple(row) for row in acted.tolist()}) == 20
    assert (COSTS.payload_bits(acted) <= COSTS.budget_bits(link)).all()
    again = teacher(width=1.0).act(state(link), np.random.default_rng(0))
    assert np.array_equal(acted, again)


def test_its_plans_keep_the_smallest_rank() -> None:
    problem = replace(PROBLEM, min_rank=2)
    link = budget(*[0.6 * FULL_BITS] * 20)  # rank 2 of 4 everywhere takes half of full rank
    acted = teacher(1.0, problem).act(state(link), np.random.default_rng(0))
    assert acted.min() >= 2
    assert (COSTS.payload_bits(acted) <= COSTS.budget_bits(link)).all()


def test_what_the_teacher_executes_does_not_depend_on_the_policy() -> None:
    for share, alike in ((1.0, True), (0.0, False)):
        one, other = (executed(trainer(share, weights)) for weights in (0, 1))
        assert np.array_equal(one, other) == alike


def test_the_belief_learns_from_what_was_executed() -> None:
    one = trainer(0.5)
    ranks = executed(one, 1)
    expected = BayesianUtility(LAYOUT)
    for step, outcome in zip(ranks, log_of(one).outcomes, strict=True):
        expected.update(step, outcome.task_loss, state(budget(*[1.0] * ENVS)).text)
    # The texts differ, so only what does not depend on them is compared: the gains' precision.
    ours, theirs = (u.state_dict()["precision"][3:, 3:] for u in (one.utility, expected))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "pppppppppp"),
        (0.1, "ppppTppppp"),
        (0.5, "TpTpTpTpTp"),
        (0.75, "TTpTTTpTTT"),
        (1.0, "TTTTTTTTTT"),
    ],
)
def test_who_acts_is_spread_evenly_over_episodes(share: float, expected: str) -> None:
    # After n episodes the teacher has acted in as many as n·share rounds to, halves up.
    one = trainer(share)
    assert "".join("T" if one._taught(n) else "p" for n in range(10)) == expected


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_share_is_that_of_the_episodes(share: float) -> None:
    one = trainer(share)
    taught = np.cumsum([one._taught(n) for n in range(200)])
    assert np.abs(taught - share * np.arange(1, 201)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    "settings",
    [{"refinement": "none"}, {"training": {"reward_term": "reward-weighted"}}],
    ids=["PPO alone", "reward-weighted"],
)
def test_where_nobody_teaches_nobody_acts_for_the_policy(settings: Any) -> None:
    alone, beside = (trainer(share, **copy.deepcopy(settings)) for share in (0.0, 1.0))
    assert np.array_equal(executed(alone), executed(beside))


def test_ppo_learns_only_where_the_policy_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(0.5)
    matches: list[bool] = []

    def watched(actor_critic: Any, optimizer: Any, batch: RolloutBatch, *rest: Any) -> PpoMetrics:
        # Shapes of a whole episode, and ratios that begin at 1: the actor drew these actions.
        score = actor_critic.evaluate(batch.observations, batch.actions)
        torch.testing.assert_close(score.log_prob, batch.log_probs)
        assert len(batch) == HORIZON * ENVS
        matches.append(one._taught(one.episode))
        return ppo_update(actor_critic, optimizer, batch, *rest)

    monkeypatch.setattr(algorithm1, "ppo_update", watched)
    metrics = [one.run_episode() for _ in range(4)]
    assert matches == [False, False]
    assert [m.value_loss > 0 for m in metrics] == [False, True, False, True]


def test_where_the_teacher_always_acts_only_its_plans_move_the_actor() -> None:
    shown, hidden = (trainer(1.0, training={"teacher_weight": w}) for w in (1.0, 0.0))
    for one in (shown, hidden):
        before = copy.deepcopy(one.policy.actor_critic.state_dict())
        one.run_episode()
        after = one.policy.actor_critic.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.partition(".")[0] for name in moved} == ({"actor"} if one is shown else set())


def test_training_that_mixes_is_continued_identically() -> None:
    one = trainer(0.5)
    one.run_episode()
    saved = copy.deepcopy((one.state_dict(), one.env.state_dict(), one.env.learner.state_dict()))
    expected = one.run_episode()
    other = trainer(0.5, weights=7, seed=9)
    for part, values in zip((other, other.env, other.env.learner), saved, strict=True):
        part.load_state_dict(values)
    assert other.run_episode() == expected


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(ConfigError, match="teacher_share"):
        TrainingConfig(teacher_share=share)
