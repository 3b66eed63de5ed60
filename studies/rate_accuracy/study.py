"""Accuracy of the real model against bits on the air, for every allocator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray
from studies.harness.spec import Job, Row, RunContext, Scale, Study
from studies.harness.store import fingerprint
from studies.rate_accuracy.allocators import learned_utility, scoring, solvers, unlearned
from studies.rate_accuracy.presentation import FEW_DB, present
from studies.shared.judging import PlanJudge, judged_plans
from studies.shared.policies import (
    CALIBRATION,
    TRAINING,
    WORLD,
    by_link,
    calibrated_row,
    calibrated_world,
    episodes_of,
    plan_values,
    plans_of,
    required_judge,
)
from studies.shared.tasks import SNRS_DB, TASKS, full_ranks, train_to_end
from studies.surrogate.training import TEACHER_EPISODES
from studies.surrogate.world import World

ROWS_OF = {"airllm": ("table3", "airllm"), "airllm-0": ("table5a", "lambda-0")}
UNNESTED = ("svd", "svd-activations")
SCORED = (*UNNESTED, "eva", "sensitivity")
ORDER = (
    "airllm-0",
    "airllm",
    "uniform",
    "knapsack",
    "random",
    "sensitivity",
    *UNNESTED,
    "eva",
    "waterfill",
)
SEEDS = (0, 1, 2)
LINKS_DB = {"airllm-0": SNRS_DB, "airllm": (-5.0, 5.0, 15.0)}


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each allocator and seed; those compared with AdaLoRA first."""
    if scale == "quick":
        return [Job("waterfill-0", 0, {"allocator": "waterfill", "judge_db": []})]
    return [
        Job(
            f"{name}-{seed}",
            seed,
            {"allocator": name, "judge_db": list(LINKS_DB.get(name, FEW_DB))},
        )
        for name in ORDER
        for seed in SEEDS
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Make an allocator's plans and judge them on the real model."""
    name, judge_db = job.settings["allocator"], job.settings["judge_db"]
    row = calibrated_row(context.inputs[CALIBRATION], "sst2", job.seed)
    world = calibrated_world(row, job.seed, WORLD)
    judge = None
    if name in UNNESTED:
        judge = unnested_judge(row, context)
    elif judge_db:
        judge = required_judge(context, row)
    plans = _plans(name, world, job.seed, judge, context)
    live = [] if judge is None else judged_plans(judge, by_link(world, plans), judge_db)
    return {"plans": plan_values(world, plans), "live": live}


def _plans(
    name: str, world: World, seed: int, judge: PlanJudge | None, context: RunContext
) -> IntArray:
    """Return (K, N) plans of an allocator, or of a policy that another study has trained."""
    if name in ROWS_OF:
        source, variant = ROWS_OF[name]
        policies = context.inputs[source].select(variant=variant)
        policy = next(row for row in policies if row.job.seed == seed)
        return np.array([p["ranks"] for p in policy.values["plans"]])
    if name in SCORED:
        assert judge is not None
        return plans_of(scoring(name, world, judge.learner, seed), world, seed)
    if name in ("uniform", "random"):
        return plans_of(unlearned(world)[name], world, seed)
    episodes = episodes_of(context.scale, TEACHER_EPISODES)
    utility = learned_utility(world, seed, TRAINING["utility"], episodes)
    return plans_of(solvers(world, utility)[name], world, seed)


def unnested_judge(row: Row, context: RunContext) -> PlanJudge:
    """Train as usual, at full rank throughout, and return the judge of that model.

    Both kinds of truncation share the checkpoint; each re-sorts a model of its own.
    """
    task = TASKS[row.job.settings["task"]]
    config = replace(
        task.finetune, seed=row.job.seed, total_steps=row.job.settings["steps"], nested_prob=0.0
    )
    learner = TransformerLearner(config, task.splits_for(context))
    folder = context.scratch.parent / f"unnested-{row.job.seed}-{fingerprint(row.job.settings)}"
    folder.mkdir(parents=True, exist_ok=True)
    train_to_end(learner, full_ranks(learner), folder / "checkpoint.pt")
    return PlanJudge(learner, context.scratch / "judged")


STUDY = Study(
    name="rate_accuracy",
    title="Accuracy against bits",
    question="Which allocator is the most accurate for the bits that a link carries?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION, "table3", "table5a"),
    also_shows=("adalora",),
)
