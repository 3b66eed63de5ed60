"""Accuracy of the real model against bits on the air, for every allocator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.experiment.live import PlanJudge, trained
from rankcast.experiment.policies import (
    CALIBRATION,
    TRAINING,
    WORLD,
    calibrated_row,
    calibrated_world,
    judged_plans,
    plan_values,
    required_judge,
)
from rankcast.experiment.rates import present
from rankcast.experiment.rival_plans import learned_utility, plans_of, scoring, solvers, unlearned
from rankcast.experiment.spec import Experiment, Job, Row, RunContext, Scale
from rankcast.experiment.store import fingerprint
from rankcast.experiment.tasks import SNRS_DB, TASKS
from rankcast.finetune.transformer import TransformerLearner

FROM = {"airllm": ("table3", "airllm"), "airllm-0": ("table5a", "lambda-0")}
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
FEW_DB = (-5.0, 5.0)
"""Where the others are judged."""


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
    name = job.settings["allocator"]
    row = calibrated_row(context.inputs[CALIBRATION], "sst2", job.seed)
    world = calibrated_world(row, job.seed, WORLD)
    judge_db, judge = job.settings["judge_db"], None
    if name in UNNESTED:
        judge = unnested_judge(row, context)
    elif judge_db:
        judge = required_judge(context, row)
    if name in FROM:
        source, variant = FROM[name]
        found = context.inputs[source].select(variant=variant)
        policy = next(r for r in found if r.job.seed == job.seed)
        plans = np.array([p["ranks"] for p in policy.values["plans"]])
    elif name in SCORED:
        assert judge is not None
        plans = plans_of(scoring(name, world, judge.learner, job.seed), world, job.seed)
    elif name in ("uniform", "random"):
        plans = plans_of(unlearned(world)[name], world, job.seed)
    else:
        utility = learned_utility(world, job.seed, TRAINING["utility"])
        plans = plans_of(solvers(world, utility)[name], world, job.seed)
    by_link = dict(zip(world.link.snr_db, plans, strict=True))
    live = [] if judge is None else judged_plans(judge, by_link, judge_db)
    return {"plans": plan_values(world, plans), "live": live}


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
    full = np.full(learner.layout.n_projections, learner.layout.r_max)
    trained(learner, full, folder / "checkpoint.pt")
    return PlanJudge(learner, context.scratch / "judged")


EXPERIMENT = Experiment(
    name="rate_accuracy",
    title="Accuracy against bits",
    question="Which allocator is the most accurate for the bits that a link carries?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION, "table3", "table5a"),
    beside=("adalora",),
)
