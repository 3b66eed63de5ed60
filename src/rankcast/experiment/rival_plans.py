"""Plans of every allocator on one calibrated run: what `rate_accuracy` compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rankcast.allocation.base import Allocator
from rankcast.allocation.baselines import BeliefAllocator, KnapsackAllocator, RandomAllocator
from rankcast.allocation.scored import EqualBitsUniform, ScoredAllocator
from rankcast.experiment.world import World
from rankcast.records import IntArray

N_BATCHES = 16
TEACHER_EPISODES = 200


def learned_utility(world: World, seed: int, settings: Mapping[str, Any]) -> Any:
    """Return the belief that Thompson sampling with the exact solver ends with."""
    from rankcast.allocation.utility import UtilityConfig  # noqa: PLC0415
    from rankcast.experiment.training import train_teacher  # noqa: PLC0415

    config = UtilityConfig(**settings)
    utility, _ = train_teacher(
        world,
        episodes=TEACHER_EPISODES,
        seed=seed,
        evaluate_every=TEACHER_EPISODES,
        utility_config=config,
    )
    return utility


def scoring(name: str, world: World, learner: Any, seed: int) -> Allocator:
    """Return an allocator that fills the deadline by a score of components.

    `svd` and `svd-activations` re-sort the learner's components first, as an engineer would who
    truncates an ordinary adapter; the others leave it as it is.

    Args:
        name: `svd`, `svd-activations`, `eva` or `sensitivity`.
        world: links and deadline.
        learner: the trained live model, a `TransformerLearner`.
        seed: of the texts that are looked at.
    """
    from rankcast.adapters.canonical import canonicalise, collect_second_moments  # noqa: PLC0415
    from rankcast.finetune.eva import eva_scores  # noqa: PLC0415
    from rankcast.finetune.importance import (  # noqa: PLC0415
        sensitivity_scores,
        spectral_scores,
        training_batches,
    )

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


def solvers(world: World, utility: Any) -> dict[str, Allocator]:
    """Return the exact solvers on a learned utility."""
    return {
        "waterfill": BeliefAllocator(world.problem, utility),
        "knapsack": KnapsackAllocator(world.problem, utility),
    }


def plans_of(allocator: Allocator, world: World, seed: int) -> IntArray:
    """Return (K, N) plans for the judged links."""
    return allocator.allocate(world.observe(1), np.random.default_rng(seed))
