"""Training under the chosen ranks and no others, for as many steps as AdaLoRA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.experiment.live import judgement, trained
from rankcast.experiment.rates import against, fewer_parameters, points_of
from rankcast.experiment.readouts import direct_answers, percent
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    Job,
    Presentation,
    Result,
    Row,
    RunContext,
    Scale,
    Table,
)
from rankcast.experiment.store import fingerprint
from rankcast.experiment.tasks import FULL_RANK_AT_DB, STEPS, TASKS
from rankcast.records import IntArray

if TYPE_CHECKING:
    from rankcast.finetune.transformer import TransformerLearner

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
    found = [
        _judged(_trained(plans[snr_db], job, context), plans[snr_db], snr_db) for snr_db in judged
    ]
    return {"live": found, "plans": [p for p in policy.values["plans"] if p["snr_db"] in judged]}


def _trained(plan: IntArray, job: Job, context: RunContext) -> TransformerLearner:
    """Return a model that was trained under (N,) ranks and no others."""
    from rankcast.finetune.transformer import TransformerLearner  # noqa: PLC0415

    task = TASKS[job.settings["task"]]
    config = replace(
        task.finetune, seed=job.seed, total_steps=job.settings["steps"], nested_prob=0.0
    )
    learner = TransformerLearner(config, task.splits_for(context))
    return trained(learner, plan, context.scratch / f"{fingerprint(plan)}.pt")


def _judged(learner: TransformerLearner, plan: IntArray, snr_db: float) -> dict[str, Any]:
    """Return answers and loss under (N,) ranks."""
    loss, correct, _ = learner.judge_texts("test", plan, None)
    return {"snr_db": snr_db, **judgement(correct, float(loss.mean()))}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare with AdaLoRA at each link, and with plans cut from one nested run."""
    rates, adalora = inputs["rate_accuracy"], inputs["adalora"]
    if not result.rows:
        return Presentation(())
    points = dict(points_of(rates, adalora))
    points["alone"] = points_of_rows(result.rows)
    claims = (*against(points, "alone", LABEL), *_fewer(points), *_gains(points))
    return Presentation(claims, (_table(points),))


def _gains(points: Mapping[str, Any]) -> list[Claim]:
    """Return what training the plans gains over cutting them from one nested run."""
    cut, claims = points.get("airllm-0", {}), []
    for snr_db, (_, ours) in points["alone"].items():
        if snr_db not in cut or not ours.shared(cut[snr_db][1]):
            continue
        difference = ours.minus(cut[snr_db][1])
        claims.append(
            Claim(
                f"At {snr_db:g} dB {LABEL} against the same plan cut from one nested training.",
                "",
                f"{100 * difference.value:+.2f} points",
                difference.scaled(100).interval,
                "measured",
                ours.shared(cut[snr_db][1]),
                "The same ranks and bits.",
            )
        )
    return claims


def _fewer(points: Mapping[str, Any]) -> list[Claim]:
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


def _table(points: Mapping[str, Any]) -> Table:
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


def points_of_rows(found_rows: Sequence[Row]) -> dict[float, Any]:
    """Return bits and answers at each link."""
    found = {}
    for snr_db in SNRS_DB:
        rows = [
            replace(row, values=seen)
            for row in found_rows
            for seen in row.values["live"]
            if seen["snr_db"] == snr_db
        ]
        bits = [
            p["payload_bits"]
            for row in found_rows
            for p in row.values["plans"]
            if p["snr_db"] == snr_db
        ]
        answers = direct_answers(rows)
        if answers is not None:
            found[snr_db] = (float(np.mean(bits)), answers)
    return found


EXPERIMENT = Experiment(
    name="plan_training",
    title="Training under the chosen ranks",
    question="Does AirLLM match AdaLoRA if its ranks, too, are trained for the link?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=("table5a",),
    beside=("rate_accuracy", "adalora"),
    live=True,
)
