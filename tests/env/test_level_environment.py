"""Levels in place of ranks: the environment, its known optimum, and what decides in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from helpers.allocation import SMALL_POLICY, state
from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.level_problem import LevelProblem
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.policy import PolicyConfig, TeacherConfig, TrainingConfig
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp, LevelAllocationEnv, RankAllocationVectorEnv
from rankcast.errors import ConfigError
from rankcast.learner.synthetic import transformer_layout
from rankcast.learner.synthetic_levels import synthetic_level_problem, synthetic_levels
from rankcast.link.capacity import Awgn
from rankcast.link.processes import IidSnr, StaticSnr
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.records import LinkState

SMALL = transformer_layout(n_layers=1, d_hidden=16, d_ffn=32, r_max=3)


def links(*budgets_bits: float) -> LinkState:
    """Return links that carry so many bits in a second at 0 dB."""
    return LinkState(np.zeros(len(budgets_bits)), np.array(budgets_bits), 1.0)


def test_gymnasium_accepts_the_registered_environment() -> None:
    env = gym.make("rankcast/LevelAllocation-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_a_batch_of_links_is_a_vector_environment() -> None:
    learner, problem = synthetic_level_problem(0, 3, layout=SMALL)
    env = RankAllocationVectorEnv(AllocationMdp(learner, IidSnr(), problem, EnvConfig(1e4)))
    env.reset(seed=0)
    seen, reward, *_ = env.step(env.action_space.sample())
    assert seen.shape == (3, 5 + 6)
    assert reward.shape == (3,)


def test_a_step_pays_for_coded_bits_and_says_what_its_levels_are() -> None:
    learner, problem = synthetic_level_problem(0, layout=SMALL)
    config = EnvConfig(bandwidth_hz=1e4, deadline_s=1.0)
    env = LevelAllocationEnv(learner, StaticSnr(0.0), problem, config)
    env.reset(seed=0)
    plan = np.array([0, 1, 2, 3, 0, 8])
    *_, info = env.step(plan)
    levels = env.levels
    bits = levels.overhead_bits + levels.bits[np.arange(6), plan].sum()
    assert info["link_cost"] == pytest.approx(bits / 1e4)
    assert info["ranks"].tolist() == levels.ranks[np.arange(6), plan].tolist()
    assert info["exponents"].tolist() == levels.exponents[np.arange(6), plan].tolist()


def test_learner_and_problem_come_together() -> None:
    learner, problem = synthetic_level_problem(0, layout=SMALL)
    with pytest.raises(ConfigError, match="or neither"):
        LevelAllocationEnv(learner)
    with pytest.raises(ConfigError, match="or neither"):
        LevelAllocationEnv(problem=problem)
    three = synthetic_levels(learner.utility.gains, SMALL, n_levels=3)
    with pytest.raises(ConfigError, match="There are 3 levels, the layout has 8"):
        LevelProblem(problem.layout, problem.link_costs, levels=three)


def test_water_filling_is_the_optimum_found_by_trying_every_plan() -> None:
    layout = transformer_layout(n_layers=1, d_hidden=16, d_ffn=32, r_max=2)
    learner, problem = synthetic_level_problem(1, layout=layout)
    gains, link = learner.utility.gains.copy(), links(1e9)
    gains *= 3e4  # so that the price of the link decides, not the deadline
    found = waterfill(gains, problem, link)
    few = np.array(list(product(range(problem.layout.r_max + 1), repeat=3)))
    plans = np.tile(found, (len(few), 1))
    plans[:, :3] = few  # three projections at every level, the others at their best
    many = LinkState(np.zeros(len(plans)), np.full(len(plans), 1e9), 1.0)
    kept = (np.arange(1, 9) <= plans[..., None]) * gains
    worth = problem.objective(-kept.sum(axis=(1, 2)), plans, many)
    assert plans[worth.argmin()].tolist() == found[0].tolist()


@pytest.mark.parametrize("budget_bits", [2e3, 2e4, 1e6])
def test_water_filling_is_near_the_knapsack_where_the_deadline_binds(budget_bits: float) -> None:
    learner, problem = synthetic_level_problem(0)
    gains, link = learner.utility.gains, links(budget_bits)
    values = np.pad(gains.cumsum(axis=1), ((0, 0), (1, 0)))
    plans = waterfill(gains, problem, link), knapsack(values, problem, link)
    filled, best = (problem.objective(learner.utility.loss(p), p, link)[0] for p in plans)
    assert best - 1e-9 <= filled <= best + gains.max()
    assert (problem.link_costs.link_cost(plans[0], link) <= 1.0).all()


def test_of_an_adapter_of_zeros_nothing_is_expected() -> None:
    _, problem = synthetic_level_problem(3, layout=SMALL)
    levels = replace(problem.levels, gains=np.zeros_like(problem.levels.gains))
    assert LevelProblem.of(levels, SMALL, Awgn()).expected_gains is None


def test_loss_follows_energy_by_a_factor_of_each_projection() -> None:
    learner, problem = synthetic_level_problem(3)
    assert problem.expected_gains is not None
    factors = learner.utility.gains / problem.expected_gains
    assert factors == pytest.approx(np.repeat(factors[:, :1], problem.layout.r_max, axis=1))
    assert learner.utility.gains.sum() == pytest.approx(problem.expected_gains.sum())
    assert 0.4 < np.log(factors[:, 0]).std() < 1.0


def test_a_policy_begins_with_the_energy_of_levels() -> None:
    learner, problem = synthetic_level_problem(3, 2, layout=SMALL)
    policy = AirLLM(problem, PolicyConfig(**SMALL_POLICY))
    env = AllocationMdp(learner, IidSnr(), problem, EnvConfig(1e4))
    gains = AirLLMTrainer(env, policy).utility.mean_gains()
    assert problem.expected_gains is not None
    shares = problem.expected_gains / problem.expected_gains.sum()
    assert gains / gains.sum() == pytest.approx(shares, abs=0.01)


def test_a_belief_learns_levels_from_noisy_losses() -> None:
    learner, problem = synthetic_level_problem(2, 64, layout=SMALL)
    utility = BayesianUtility(problem.layout, weights=problem.component_weights)
    rng = np.random.default_rng(0)
    for _ in range(100):
        plans = rng.integers(0, 9, (64, 6))
        losses = learner.utility.loss(plans) + 0.05 * rng.normal(size=64)
        utility.update(plans, losses, learner.next_text())
    link = links(2e3, 6e3, 1e9)
    plans = BeliefAllocator(problem, utility).allocate(state(link, n=6), rng)
    best = waterfill(learner.utility.gains, problem, link)
    missed = problem.objective(learner.utility.loss(plans), plans, link) - problem.objective(
        learner.utility.loss(best), best, link
    )
    assert (missed < 0.02).all()  # of 0.45 that the whole adapter removes


def test_the_policy_decides_levels_that_arrive() -> None:
    learner, problem = synthetic_level_problem(0, 4, layout=SMALL)
    policy = AirLLM(problem, PolicyConfig(**SMALL_POLICY))
    env = AllocationMdp(learner, IidSnr(), problem, EnvConfig(1e4, horizon=3))
    config = TrainingConfig(gradient_steps=2, warm_up_steps=2, teacher=TeacherConfig(plans=8))
    trainer = AirLLMTrainer(env, policy, config)
    trainer.run_episode()
    link = LinkState(np.array([-5.0, 5.0, 15.0]), np.full(3, 1e4), 1.0)
    plans = policy.allocate(state(link, n=6), np.random.default_rng(0))
    assert (problem.link_costs.link_cost(plans, link) <= 1.0).all()
    assert plans.max() <= problem.levels.n_levels
