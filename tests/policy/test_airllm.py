from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.allocation import (
    COSTS,
    FULL_BITS,
    LAYOUT,
    PROBLEM,
    SMALL_POLICY,
    budget,
    state,
)
from helpers.tensors import normal, seeded
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.config.policy import PolicyConfig, TeacherConfig, TrainingConfig
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.errors import ConfigError
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import IidSnr
from rankcast.policy.airllm import AirLLM, make_condition, state_features
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.policy.ddim import ddim_sample, guided_predict
from rankcast.policy.diffusion_loss import modelled_reward
from rankcast.policy.rank_code import bin_width, decode, encode
from rankcast.records import LinkState, Observation

QUICK = TrainingConfig(gradient_steps=4, warm_up_steps=4, teacher=TeacherConfig(plans=32))


def policy(seed: int = 0, **settings: Any) -> AirLLM:
    return AirLLM(PROBLEM, PolicyConfig(**SMALL_POLICY | settings), seed)


def observation(size: int = 4) -> Observation:
    return state(LinkState(np.linspace(-5, 15, size), FULL_BITS, 1.0))


def environment(n_envs: int = 1, stop: Any = None) -> AllocationMdp:
    utility = SyntheticUtility.draw(np.random.default_rng(3), LAYOUT)
    learner = SyntheticLearner(LAYOUT, utility, n_envs)
    config = EnvConfig(FULL_BITS, horizon=4)
    return AllocationMdp(learner, IidSnr(), PROBLEM, config, stop)


def trainer(
    config: TrainingConfig = QUICK, n_envs: int = 1, seed: int = 1, **settings: Any
) -> AirLLMTrainer:
    return AirLLMTrainer(environment(n_envs), policy(**settings), config, seed)


def test_a_decision_has_its_shapes() -> None:
    one = policy()
    decision = one.act(observation(), seeded(), explore=True)
    assert decision.ranks.shape == (4, 12)
    assert decision.actor_input.shape == (4, 16)
    assert decision.coarse.shape == (4, one.describe.size) == (4, 8)
    assert decision.log_prob.shape == decision.value.shape == (4,)
    assert not any(t.requires_grad for t in (decision.coarse, decision.log_prob, decision.value))


def test_ppo_alone_decides_all_projections_itself() -> None:
    decision = policy(refinement="none").act(observation(), seeded(), explore=False)
    assert decision.coarse.shape == (4, 12)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "ppo+ddim"),
        ({"proposal": "none"}, "ddim"),
        ({"refinement": "none"}, "ppo"),
        ({"refinement": "ddpm"}, "ppo+ddpm"),
        ({"denoiser": "unet", "unet_depth": 2, "unet_channels": 4}, "ppo+ddim/unet"),
    ],
)
def test_names_say_what_is_in_use(settings: dict[str, Any], name: str) -> None:
    assert policy(**settings).name == name


def test_impossible_policies() -> None:
    with pytest.raises(ConfigError, match="proposal, a refinement, or both"):
        PolicyConfig(proposal="none", refinement="none")
    with pytest.raises(ConfigError, match="refinement"):
        PolicyConfig(refinement="ddmi")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="reward"):
        TrainingConfig(reward_term="reward")  # pyright: ignore[reportArgumentType]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    policy(0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_come_from_the_seed() -> None:
    first, again, other = policy(0), policy(0), policy(1)
    flat = [
        torch.cat([p.flatten() for p in (*x.denoiser.parameters(), *x.actor_critic.parameters())])
        for x in (first, again, other)
    ]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    for acting, trained in zip(
        first.acting_denoiser.parameters(), first.denoiser.parameters(), strict=True
    ):
        assert torch.equal(acting, trained)


def test_the_condition_says_state_exploring_and_proposal() -> None:
    features = state_features(observation(2), PROBLEM)
    coarse = torch.full((2, 8), 0.25)
    shown = make_condition(features, coarse, explore=np.array([True, False]))
    assert shown.shape == (2, 13)
    assert shown[:, :4].double().numpy() == pytest.approx(features, rel=1e-6)
    assert shown[:, 4].tolist() == [1.0, 0.0]
    assert torch.equal(shown[:, 5:], coarse)


def test_exploiting_uses_the_mean_proposal_and_exploring_draws() -> None:
    one = policy()
    draws = [one.act(observation(), seeded(s), explore=True).coarse for s in (1, 2)]
    means = [one.act(observation(), seeded(s), explore=False).coarse for s in (1, 2)]
    assert not torch.equal(*draws)
    assert torch.equal(*means)


def test_a_late_plan_loses_first_what_is_farthest_above_the_code() -> None:
    # All round to rank 2. Their second components lie 0.4 and 0.2 above the code of the first and
    # the last projection, and 0.3 below that of the others. That the last
    # is larger is of no account.
    unrounded = np.full((1, 12), 2.3)
    unrounded[0, [0, 11]] = 1.6, 1.8
    code = torch.tensor((unrounded + 0.5) * bin_width(4) - 1.0, dtype=torch.float32)
    ranks = decode(code, 4).numpy()
    assert ranks.tolist() == [[2] * 12]
    worth = policy()._worth(code)
    assert worth.shape == (1, 12, 4)
    one = COSTS.component_bits[:, 0]
    assert one[11] > one[0]
    whole = float(COSTS.payload_bits(ranks)[0])
    for bits, left in (
        (whole, [2] * 12),
        (whole - 1, [1, *[2] * 11]),
        (whole - one[0], [1, *[2] * 11]),
        (whole - one[0] - 1, [1, *[2] * 10, 1]),
    ):
        assert PROBLEM.feasible(ranks, budget(bits), worth).tolist() == [left]


def test_components_as_far_above_the_code_are_worth_the_same_by_the_bit() -> None:
    ranks = np.tile(np.arange(5), 3)[None, :12]
    worth = policy()._worth(encode(torch.as_tensor(ranks), 4))
    by_bit = worth[0] / COSTS.component_bits
    above = np.arange(1, 5) - ranks[0][:, None]
    for distance in range(-3, 5):
        alike = by_bit[above == distance]
        assert alike == pytest.approx(np.full(alike.shape, np.exp(-distance)), rel=1e-5)
    assert (np.diff(worth, axis=2) < 0).all()


@pytest.mark.parametrize("proposal", ["ppo", "none"])
def test_the_chain_is_the_eager_one(proposal: Any) -> None:
    one = policy(proposal=proposal)
    d = one.config.diffusion
    weights = {
        name: weight + 0.3 * normal(*weight.shape, seed=4)
        for name, weight in one.acting_denoiser.state_dict().items()
    }
    one.load_state_dict(one.state_dict() | {"acting_denoiser": weights})
    condition = one.condition(observation(), torch.full((4, 8), 0.3), explore=False)
    scale = d.guidance_scale if proposal == "ppo" else 0.0
    expected = ddim_sample(
        guided_predict(one.acting_denoiser, condition, scale),
        normal(4, 12, seed=9),
        one.schedule, steps=d.inference_steps, prediction=d.prediction, spacing=d.spacing,
    )  # fmt: skip
    torch.testing.assert_close(one.refine(condition, seeded(9)), expected, rtol=1e-4, atol=1e-4)


def test_without_a_proposal_the_coarse_action_has_no_effect() -> None:
    one = policy(proposal="none")
    low, high = (
        one.refine(one.condition(observation(), torch.full((4, 8), c), explore=False), seeded(1))
        for c in (-1.0, 1.0)
    )
    assert torch.equal(low, high)


def test_weights_can_be_carried_over() -> None:
    one, other = policy(0), policy(1)
    seen = observation()
    before = other.allocate(seen, np.random.default_rng(0))  # the chain of its own weights
    other.load_state_dict(one.state_dict())
    after = other.allocate(seen, np.random.default_rng(0))
    assert np.array_equal(after, one.allocate(seen, np.random.default_rng(0)))
    assert not np.array_equal(before, after)


def test_an_episode_trains_every_part() -> None:
    one = trainer()
    before = copy.deepcopy(one.policy.state_dict())
    metrics = one.run_episode()
    assert metrics.episode == 1
    assert not metrics.stopped
    assert metrics.reward == pytest.approx(-metrics.task_loss - 0.1 * metrics.link_cost)
    assert 0 <= metrics.mean_rank <= 4
    assert metrics.denoising_loss > 0
    after = one.policy.state_dict()
    for part, weights in before.items():
        moved = [not torch.equal(weights[k], after[part][k]) for k in weights]
        assert any(moved), part
    assert len(one.teacher.state_dict()["states"]) == 1 + 4
    prior = BayesianUtility(LAYOUT)
    assert not np.array_equal(one.utility.mean_gains(), prior.mean_gains())


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"proposal": "none"}, QUICK),
        ({"refinement": "none"}, QUICK),
        ({"refinement": "ddpm"}, QUICK),
        ({}, replace(QUICK, reward_term="reward-weighted")),
        ({}, replace(QUICK, guided_every=2)),
        ({}, replace(QUICK, teacher_weight=0.0)),
    ],
)
def test_every_variant_trains_and_stays_finite(settings: Any, config: TrainingConfig) -> None:
    one = trainer(config, n_envs=2, **settings)
    before = copy.deepcopy(one.policy.state_dict())
    for _ in range(2):
        metrics = one.run_episode()
        assert np.isfinite([metrics.reward, metrics.denoising_loss, metrics.surrogate]).all()
    after = one.policy.state_dict()
    part = "actor_critic" if one.policy.config.refinement == "none" else "denoiser"
    assert any(not torch.equal(before[part][k], after[part][k]) for k in before[part])


def test_same_seed_same_training() -> None:
    first, second, third = trainer(), trainer(), trainer(seed=2)
    metrics = [[t.run_episode() for _ in range(2)] for t in (first, second, third)]
    assert metrics[0] == metrics[1]
    assert metrics[0] != metrics[2]


def test_continues_identically_from_its_state() -> None:
    one = trainer()
    for _ in range(2):
        one.run_episode()
    saved = copy.deepcopy((one.state_dict(), one.env.state_dict(), one.env.learner.state_dict()))
    expected = [one.run_episode() for _ in range(2)]
    other = trainer(seed=9)
    for part, values in zip((other, other.env, other.env.learner), saved, strict=True):
        part.load_state_dict(values)
    assert [other.run_episode() for _ in range(2)] == expected
    for ours, theirs in zip(
        one.policy.denoiser.parameters(), other.policy.denoiser.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_goal_ends_the_episode() -> None:
    env = environment(stop=lambda reward: np.ones_like(reward, dtype=bool))
    one = AirLLMTrainer(env, policy(), QUICK, 1)
    assert one.run_episode().stopped
    assert len(one.teacher.state_dict()["states"]) == 1 + 1


def test_policy_and_environment_must_fit() -> None:
    other = transformer_layout(n_layers=1, d_hidden=8, d_ffn=20, r_max=4)
    costs = LinkCostModel.for_layout(other, Awgn())
    for problem in (AllocationProblem(other, costs), replace(PROBLEM, link_weight=0.2)):
        with pytest.raises(ConfigError, match="same projections, r_max and λ"):
            AirLLMTrainer(environment(), AirLLM(problem, PolicyConfig(**SMALL_POLICY)))


def test_the_modelled_reward_is_the_negative_objective_of_a_plan() -> None:
    one = trainer()
    one.run_episode()
    lesson = one.teacher.lesson(np.random.default_rng(0))
    gains = one.utility.mean_gains()
    reward = modelled_reward(gains, 0.1 * COSTS.component_costs(lesson.link)[:6])
    codes = encode(torch.as_tensor(lesson.ranks[:6]), 4)
    active = np.arange(1, 5) <= lesson.ranks[:6, :, None]
    cost = COSTS.component_costs(lesson.link)[:6, :, 0]
    expected = (active * gains).sum(axis=(1, 2)) - 0.1 * (cost * lesson.ranks[:6]).sum(axis=1)
    assert reward(codes).numpy() == pytest.approx(expected / gains.sum(), rel=1e-4, abs=1e-4)
    # Its slope just above a rank is what the next component gains, less what it costs.
    middle = torch.full((6, 12), 0.0, requires_grad=True)  # rank 2 of 4, in the middle of its bin
    reward(middle + 1e-3).sum().backward()
    slope = (gains[:, 2] - 0.1 * cost) / gains.sum() / (2 / 5)
    assert middle.grad is not None
    assert middle.grad.numpy() == pytest.approx(slope, rel=1e-3, abs=1e-5)
