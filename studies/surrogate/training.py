"""Train a policy, or the exact solver's belief, in a world, and record its regret as it learns.

Shapes: `N` projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.problem import Allocator
from rankcast.allocation.saturating import make_utility
from rankcast.config.policy import PolicyConfig, StateName, TrainingConfig, UtilityConfig
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from studies.surrogate.world import World

TEACHER_WIDTH = 1.2  # of Thompson sampling; the teacher's own default
TEACHER_EPISODES = 200
"""After which the belief of Thompson sampling is taken as learned."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Regrets at one moment of training.

    Attributes:
        episode: how many are over.
        deployed: of the policy as it would be deployed.
        exploring: of the policy as it acts while training.
        solver_on_its_belief: of the exact solver on the utility learned so far, if there is one.
    """

    episode: int
    deployed: float
    exploring: float
    solver_on_its_belief: float | None = None

    def to_plain(self) -> dict[str, float]:
        """Return what JSON can hold, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Trained:
    """A trained policy with its learning curve.

    Attributes:
        policy: the trained policy.
        utility: the belief that it learned.
        curve: regrets, every so many episodes.
        rewards: mean observed reward of each episode, while exploring.
    """

    policy: AirLLM
    utility: LearnedUtility
    curve: tuple[CurvePoint, ...]
    rewards: tuple[float, ...]


def train_policy(
    world: World,
    policy_config: PolicyConfig | None = None,
    training_config: TrainingConfig | None = None,
    *,
    episodes: int,
    seed: int,
    evaluate_every: int = 25,
) -> Trained:
    """Train a policy in a world, judging it every so many episodes."""
    policy = AirLLM(world.problem, policy_config, seed)
    trainer = AirLLMTrainer(world.env, policy, training_config, seed)
    curve, rewards = [], []
    for episode in range(1, episodes + 1):
        rewards.append(trainer.run_episode().reward)
        if episode % evaluate_every == 0:
            curve.append(_judge(world, policy, trainer.utility, episode))
    return Trained(policy, trainer.utility, tuple(curve), tuple(rewards))


def train_teacher(
    world: World,
    *,
    episodes: int,
    seed: int,
    evaluate_every: int = 25,
    utility_config: UtilityConfig | None = None,
    hidden: Sequence[StateName] = (),
    knows_energies: bool = True,
) -> tuple[LearnedUtility, tuple[CurvePoint, ...]]:
    """Learn by Thompson sampling with the exact solver, without networks.

    Args:
        world: in which it acts.
        episodes: how many.
        seed: of the world's noise and of the draws.
        evaluate_every: episodes between two evaluations.
        utility_config: prior and noise of the belief; the default of a policy's for None.
        hidden: parts of the text that the gains do not depend on.
        knows_energies: whether the belief begins with what the problem expects of components.
    """
    rng = np.random.default_rng(seed)
    config = utility_config or TrainingConfig().utility
    problem = world.problem
    expected = problem.expected_gains if knows_energies else None
    utility = make_utility(problem.layout, config, problem.component_weights, hidden, expected)
    explorer = BeliefAllocator(problem, utility, TEACHER_WIDTH)
    greedy = BeliefAllocator(problem, utility)
    curve = []
    with threadpool_limits(limits=1, user_api="blas"):  # many small matrices
        for episode in range(1, episodes + 1):
            world.env.reset(seed=seed if episode == 1 else None)
            _explore(world, explorer, utility, rng)
            if episode % evaluate_every == 0:
                deployed, exploring = world.regret_of(greedy, rng), world.regret_of(explorer, rng)
                curve.append(CurvePoint(episode, deployed, exploring))
    return utility, tuple(curve)


def _explore(
    world: World, explorer: Allocator, utility: LearnedUtility, rng: np.random.Generator
) -> None:
    """Act to the end of an episode; the utility learns from every step."""
    done = False
    while not done:
        observation = world.env.observe()
        ranks = explorer.allocate(observation, rng)
        outcome = world.env.step(ranks)
        utility.update(ranks, outcome.task_loss, observation.text, outcome.reference_loss)
        done = outcome.done


def _judge(world: World, policy: AirLLM, utility: LearnedUtility, episode: int) -> CurvePoint:
    """Return a policy's regrets after an episode, with randomness of its own."""
    observation = world.observe()
    generator = torch.Generator().manual_seed(episode)
    acted = policy.act(observation, generator, explore=True).ranks
    solver = BeliefAllocator(world.problem, utility)
    return CurvePoint(
        episode,
        world.regret_of(policy, np.random.default_rng(episode)),
        world.regret(acted, observation.link),
        world.regret_of(solver, np.random.default_rng(0), repeats=1),
    )
