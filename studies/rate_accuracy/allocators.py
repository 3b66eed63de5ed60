"""The allocators that `rate_accuracy` compares on one calibrated run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankcast.allocation.baselines import BeliefAllocator, RandomAllocator
from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.knapsack import KnapsackAllocator
from rankcast.allocation.problem import Allocator
from rankcast.config.policy import UtilityConfig
from rankcast.learner.qat import training_batches
from rankcast.learner.transformer import TransformerLearner
from studies.baselines.canonical import canonicalise
from studies.baselines.eva import eva_scores
from studies.baselines.importance import sensitivity_scores, spectral_scores
from studies.baselines.scored import EqualBitsUniform, ScoredAllocator
from studies.baselines.second_moments import collect_second_moments
from studies.surrogate.training import TEACHER_EPISODES, train_teacher
from studies.surrogate.world import World

N_BATCHES = 16


def learned_utility(
    world: World, seed: int, settings: Mapping[str, Any], episodes: int = TEACHER_EPISODES
) -> LearnedUtility:
    """Return the belief that Thompson sampling with the exact solver ends with."""
    utility, _ = train_teacher(
        world,
        episodes=episodes,
        seed=seed,
        evaluate_every=episodes,
        utility_config=UtilityConfig(**settings),
    )
    return utility


def scoring(name: str, world: World, learner: TransformerLearner, seed: int) -> Allocator:
    """Return an allocator that fills the deadline by a score of components.

    `svd` and `svd-activations` re-sort the learner's components first, as an engineer would who
    truncates an ordinary adapter; the others leave it as it is.

    Args:
        name: `svd`, `svd-activations`, `eva` or `sensitivity`.
        world: links and deadline.
        learner: the trained live model.
        seed: of the texts that are looked at.
    """
    adapter = learner.adapter
    batches = training_batches(learner, N_BATCHES, seed)
    match name:
        case "eva":
            scores = eva_scores(adapter, batches, max_passes=60)
        case "sensitivity":
            scores = sensitivity_scores(adapter, batches)
        case _:
            moments = None
            if name == "svd-activations":
                moments = collect_second_moments(adapter, batches, full=True)
            canonicalise(adapter, moments)
            scores = spectral_scores(adapter, moments)
    return ScoredAllocator(world.problem, scores, name, per_bit=name != "eva")


def unlearned(world: World) -> dict[str, Allocator]:
    """Return the allocators that look at nothing but the link."""
    return {"uniform": EqualBitsUniform(world.problem), "random": RandomAllocator(world.problem)}


def solvers(world: World, utility: LearnedUtility) -> dict[str, Allocator]:
    """Return the exact solvers on a learned utility."""
    return {
        "waterfill": BeliefAllocator(world.problem, utility),
        "knapsack": KnapsackAllocator(world.problem, utility),
    }
