"""Who should act while the policy learns: the policy itself, or exact Thompson sampling?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, TrainingConfig
from rankcast.records import IntArray
from studies.exploration.learners import (
    ADDITIVE,
    ALIKE,
    EVALUATE_EVERY,
    LEARNERS,
    LEVEL_LEARNERS,
    LEVEL_MDPS,
    RANK_MDPS,
    TEACHER,
    Learner,
    Mdp,
)
from studies.exploration.presentation import present
from studies.harness.spec import Job, RunContext, Scale, Study
from studies.surrogate.training import TEACHER_WIDTH, Trained, train_policy, train_teacher
from studies.surrogate.world import World, synthetic_level_world, synthetic_world

SEEDS = (2001, 2002, 2003, 2004, 2005)
"""Draws of the utility on which nothing was tuned."""
SPREAD_REPEATS = 60  # plans for each judged link whose spread is compared
PROPOSALS = {"airllm": "ppo", "ddim": "none"}
LONG_LEARNERS: tuple[Learner, ...] = (("airllm", 0.9), ("ddim", 0.9))
_FIRST_MDPS = (ADDITIVE, LEVEL_MDPS[0])
LONG_SEEDS = SEEDS[:3]
"""Those on which these and the teacher learn an additive utility for 1,000 episodes."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return what is to be run: ranks, then levels, then 1,000 episodes."""
    if scale == "quick":
        few = ((TEACHER, 1.0), ("airllm", 0.9))
        return [
            _job(learner, mdp, SEEDS[0], EVALUATE_EVERY) for mdp in _FIRST_MDPS for learner in few
        ]
    plan: list[Job] = []
    for learner in LEARNERS:
        long = LONG_SEEDS if learner[0] == TEACHER else ()  # it learns without networks: cheaply
        plan += [_job(learner, ADDITIVE, seed, 1000 if seed in long else 300) for seed in SEEDS]
        plan += [_job(learner, RANK_MDPS[1], seed, 300) for seed in SEEDS]
    for mdp in LEVEL_MDPS:
        plan += [_job(learner, mdp, seed, 300) for learner in LEVEL_LEARNERS for seed in SEEDS]
    for learner in LONG_LEARNERS:
        plan += [_job(learner, ADDITIVE, seed, 1000) for seed in LONG_SEEDS]
    return plan


def _job(learner: Learner, mdp: Mdp, seed: int, episodes: int) -> Job:
    variant, teacher_share = learner
    settings = {
        "variant": variant,
        "teacher_share": teacher_share,
        **mdp.settings,
        "episodes": episodes,
    }
    name = f"{variant}-{teacher_share:g}-{mdp.interaction_share:g}-{seed}-{episodes}"
    return Job(f"levels-{name}" if mdp.levels else name, seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train one learner on one draw of the MDP."""
    del context
    torch.set_num_threads(1)
    s, episodes = job.settings, job.settings["episodes"]
    draw = synthetic_level_world if s.get("levels") else synthetic_world
    world = draw(job.seed, s["interaction_share"])
    spread: dict[str, float] = {}
    if s["variant"] in (TEACHER, ALIKE):
        _, curve = train_teacher(
            world,
            episodes=episodes,
            seed=job.seed,
            evaluate_every=EVALUATE_EVERY,
            knows_energies=s["variant"] == TEACHER,
        )
    else:
        trained = train_policy(
            world,
            from_plain(PolicyConfig, {"proposal": PROPOSALS[s["variant"]]}),
            from_plain(TrainingConfig, {"teacher_share": s["teacher_share"]}),
            episodes=episodes,
            seed=job.seed,
            evaluate_every=EVALUATE_EVERY,
        )
        curve, spread = trained.curve, spreads(world, trained, job.seed)
    found = {
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "curve": [point.to_plain() for point in curve],
        "spread": spread,
    }
    energies = world.problem.expected_gains
    if energies is None:
        return found
    loss = TrainingConfig().utility.total_gain * energies / energies.sum()
    return found | {
        "by_energy": world.regret(waterfill(loss, world.problem, world.link), world.link)
    }


def spreads(world: World, trained: Trained, seed: int) -> dict[str, float]:
    """Compare the exploring policy's plans with exact draws from the belief that it was taught on.

    Returns:
        Standard deviations over plans for the same link, averaged over links: of the rank of a
        projection (averaged over projections), and of the sum of all ranks.
    """
    observation = world.observe(SPREAD_REPEATS)
    generator = torch.Generator().manual_seed(seed)
    sampled = trained.policy.act(observation, generator, explore=True).ranks
    explorer = BeliefAllocator(world.problem, trained.utility, TEACHER_WIDTH)
    drawn = explorer.allocate(observation, np.random.default_rng(seed))

    def of(ranks: IntArray) -> tuple[float, float]:
        each = ranks.reshape(SPREAD_REPEATS, world.link.size, -1)
        return float(each.std(axis=0).mean()), float(each.sum(axis=2).std(axis=0).mean())

    names = ("rank_sampled", "sum_sampled", "rank_drawn", "sum_drawn")
    return dict(zip(names, (*of(sampled), *of(drawn)), strict=True))


STUDY = Study(
    name="exploration",
    title="Who acts while the policy learns",
    question="Is the policy as good as its teacher if the teacher acts while it learns?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
