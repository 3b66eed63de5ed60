"""Training under the chosen ranks and no others, for as many steps as AdaLoRA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray
from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    Row,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.harness.store import fingerprint
from studies.rate_accuracy.presentation import (
    Point,
    Points,
    against,
    fewer_parameters,
    points_of,
)
from studies.shared.judging import judgement, live_answers, percent, points_claim
from studies.shared.rewards import plan_bits
from studies.shared.tasks import FULL_RANK_AT_DB, STEPS, TASKS, train_to_end

VARIANT = "lambda-0"
SNRS_DB = (-5.0, 5.0, 15.0)
LABEL = "AirLLM (λ = 0), one training for each link's plan,"
QUICK_STEPS = 8
FEWER_AT_DB = 5.0
"""The link whose plan is compared with AdaLoRA at full budget."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each seed."""
    steps, seeds = (QUICK_STEPS, (0,)) if scale == "quick" else (STEPS, (0, 1, 2))
    common = {"task": "sst2", "setup": TASKS["sst2"].to_plain(), "variant": VARIANT}
    return [Job(f"alone-{s}", s, {**common, "way": "alone", "steps": steps}) for s in seeds]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train under each plan that the policy of this seed makes for the links, and judge it."""
    policies = context.inputs["table5a"].select(variant=job.settings["variant"])
    policy = next(row for row in policies if row.job.seed == job.seed)
    plans = {p["snr_db"]: np.array(p["ranks"]) for p in policy.values["plans"]}
    judged = SNRS_DB[:1] if context.scale == "quick" else SNRS_DB
    live = [
        _judged(_trained(plans[snr_db], job, context), plans[snr_db], snr_db) for snr_db in judged
    ]
    return {"live": live, "plans": [p for p in policy.values["plans"] if p["snr_db"] in judged]}


def _trained(plan: IntArray, job: Job, context: RunContext) -> TransformerLearner:
    """Return a model that was trained under (N,) ranks and no others."""
    task = TASKS[job.settings["task"]]
    config = replace(
        task.finetune, seed=job.seed, total_steps=job.settings["steps"], nested_prob=0.0
    )
    learner = TransformerLearner(config, task.splits_for(context))
    return train_to_end(learner, plan, context.scratch / f"{fingerprint(plan)}.pt")


def _judged(learner: TransformerLearner, plan: IntArray, snr_db: float) -> dict[str, Any]:
    """Return answers and loss under (N,) ranks."""
    loss, correct, _ = learner.judge_texts("test", plan, None)
    return {"snr_db": snr_db, **judgement(correct, float(loss.mean()))}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare with AdaLoRA at each link, and with plans cut from one nested run."""
    rates, adalora = inputs["rate_accuracy"], inputs["adalora"]
    if not result.rows:
        return Presentation()
    points = dict(points_of(rates, adalora))
    points["alone"] = points_of_rows(result.rows)
    claims = (*against(points, "alone", LABEL), *_fewer(points), *_gains(points))
    return Presentation(claims, (_table(points),))


def _gains(points: Points) -> list[Claim]:
    """Return what training the plans gains over cutting them from one nested run."""
    cut, claims = points.get("airllm-0", {}), []
    for snr_db, (_, ours) in points["alone"].items():
        if snr_db not in cut or not ours.shared(cut[snr_db][1]):
            continue
        difference = ours.minus(cut[snr_db][1])
        claims.append(
            points_claim(
                f"At {snr_db:g} dB {LABEL} against the same plan cut from one nested training.",
                difference,
                "measured",
                ours.shared(cut[snr_db][1]),
                "The same ranks and bits.",
            )
        )
    return claims


def _fewer(points: Points) -> list[Claim]:
    """Return whether a plan for a narrower link matches AdaLoRA at full budget."""
    low, full = (points.get("adalora", {}).get(snr_db) for snr_db in (FEWER_AT_DB, FULL_RANK_AT_DB))
    own = ""
    if low is not None and full is not None and low[1].shared(full[1]):
        less = low[1].minus(full[1]).scaled(100)
        own = (
            f" AdaLoRA trained for {FEWER_AT_DB:g} dB is {less.value:+.2f} points "
            f"({less.low:+.2f} to {less.high:+.2f}) from itself at a mean rank of 8, so that it "
            f"is the task that does not need the parameters."
        )
    label = f"AirLLM's plan for {FEWER_AT_DB:g} dB (λ = 0), trained alone,"
    note = f"chosen after the rows of 15 dB were seen.{own}"
    return fewer_parameters(points, "alone", FEWER_AT_DB, label, note)


def _table(points: Points) -> Table:
    names = ("alone", "airllm-0", "adalora")
    lines = []
    for snr_db in SNRS_DB:
        if snr_db not in points["alone"]:
            continue
        bits, answers = points["alone"][snr_db]
        accuracies = [
            percent(points[name][snr_db][1].accuracy) if snr_db in points.get(name, {}) else "–"
            for name in names
        ]
        row = (f"{snr_db:g} dB", f"{bits / 1e6:.2f}", *accuracies, str(len(answers.seeds)))
        lines.append(row)
    note = (
        f"{STEPS} steps for each link's plan, as AdaLoRA has; the nested training that serves "
        f"every link has {STEPS} in all."
    )
    columns = (
        "link", "bits [Mbit]", "one training a plan", "cut from nested ranks",
        "AdaLoRA, one training a link", "seeds",
    )  # fmt: skip
    return Table("Training under the plans", columns, tuple(lines), note)


def points_of_rows(rows: Sequence[Row]) -> dict[float, Point]:
    """Return bits and answers at each link."""
    return {
        snr_db: (float(plan_bits(rows, snr_db).mean()), answers)
        for snr_db in SNRS_DB
        if (answers := live_answers(rows, snr_db)) is not None
    }


STUDY = Study(
    name="plan_training",
    title="Training under the chosen ranks",
    question="Does AirLLM match AdaLoRA if its ranks, too, are trained for the link?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=("table5a",),
    also_shows=("rate_accuracy", "adalora"),
    needs_data=True,
)
