"""Training that ends under the chosen ranks, or knows no others, in as many steps as AdaLoRA's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.experiment.live import LiveTask, pack
from rankcast.experiment.rates import against, points_of
from rankcast.experiment.readouts import direct_answers, percent
from rankcast.experiment.spec import (
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
from rankcast.experiment.tasks import STEPS, TASKS
from rankcast.records import IntArray

VARIANT = "lambda-0"
SNRS_DB = (-5.0, 5.0, 15.0)
WAYS = {"alone": 0.0, "ended": 0.75}
"""Share of the steps that train nested ranks before those of the plan are trained alone."""
LABELS = {
    "alone": "AirLLM's plan (λ = 0), trained alone,",
    "ended": "AirLLM (λ = 0), ending under the chosen ranks,",
}
QUICK_STEPS = 8


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one run for each way and seed; each ends once for every link."""
    steps, seeds = (QUICK_STEPS, (0,)) if scale == "quick" else (STEPS, (0, 1, 2))
    setup = TASKS["sst2"].to_plain()
    common = {"task": "sst2", "setup": setup, "steps": steps, "variant": VARIANT}
    return [
        Job(f"{way}-{seed}", seed, {**common, "way": way, "nested_share": share})
        for seed in seeds
        for way, share in WAYS.items()
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train nested for a share of the steps, then once for each link under its plan."""
    task = TASKS[job.settings["task"]]
    policies = context.inputs["table5a"].select(variant=job.settings["variant"])
    policy = next(row for row in policies if row.job.seed == job.seed)
    plans = {p["snr_db"]: np.array(p["ranks"]) for p in policy.values["plans"]}
    links = SNRS_DB[:1] if context.scale == "quick" else SNRS_DB
    found = []
    for snr_db in links:
        correct, loss = _end_under(plans[snr_db], task, job, context, f"{snr_db:g}")
        found.append(
            {
                "snr_db": snr_db,
                "accuracy": float(correct.mean()),
                "loss": loss,
                "correct": pack(correct),
                "n_texts": len(correct),
            }
        )
    return {"live": found, "plans": [p for p in policy.values["plans"] if p["snr_db"] in links]}


def _end_under(
    plan: IntArray, task: LiveTask, job: Job, context: RunContext, name: str
) -> tuple[Any, float]:
    """Return answers and loss after ending the training under (N,) ranks."""
    from rankcast.finetune.transformer import TransformerLearner  # noqa: PLC0415
    from rankcast.run.folder import load_state, save_state  # noqa: PLC0415

    config = replace(task.finetune, seed=job.seed, total_steps=job.settings["steps"])
    splits = task.splits_for(context)
    nested, done = (
        context.scratch / "nested.pt",
        context.scratch / f"ended-{name}-{fingerprint(plan)}.pt",
    )
    if not nested.is_file():
        learner = TransformerLearner(config, splits)
        while learner.n_steps < job.settings["nested_share"] * config.total_steps:
            learner.train_step()
        save_state(nested, {"learner": learner.state_dict()})
    learner = TransformerLearner(replace(config, nested_prob=0.0), splits)
    learner.load_state_dict(load_state(done if done.is_file() else nested)["learner"])
    learner.apply(plan[None])
    while learner.n_steps < config.total_steps:
        learner.train_step()
    save_state(done, {"learner": learner.state_dict()})
    loss, correct, _ = learner.judge_texts("test", plan, None)
    return correct.astype(bool), float(loss.mean())


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare with AdaLoRA at each link, and with plans cut from one nested run."""
    rates, adalora = inputs["rate_accuracy"], inputs["adalora"]
    if not result.rows:
        return Presentation(())
    points = dict(points_of(rates, adalora))
    for way in WAYS:
        points[way] = points_of_rows(result.select(way=way))
    claims = [claim for way, label in LABELS.items() for claim in against(points, way, label)]
    return Presentation(tuple(claims), (_table(points),))


def _table(points: Mapping[str, Any]) -> Table:
    names = ("alone", "ended", "airllm-0", "adalora")
    lines = []
    for snr_db in SNRS_DB:
        own = [points[way][snr_db] for way in WAYS if snr_db in points[way]]
        if not own:
            continue
        accuracies = [
            percent(points[name][snr_db][1].accuracy) if snr_db in points.get(name, {}) else "–"
            for name in names
        ]
        seeds = min(len(answers.seeds) for _, answers in own)
        lines.append((f"{snr_db:g} dB", f"{own[0][0] / 1e6:.2f}", *accuracies, str(seeds)))
    columns = (
        "link", "bits [Mbit]", "trained alone", "ended under the plan",
        "cut from one nested run", "AdaLoRA", "seeds",
    )  # fmt: skip
    note = (
        f"{STEPS} training steps each. Trained alone: all of them train the plan's ranks, once for "
        f"each link. Ended: the last {1 - WAYS['ended']:.0%} do. AdaLoRA, too, trains once for "
        "each link, and fixes its ranks for the last 30 % of the steps."
    )
    return Table("Training under the plan", columns, tuple(lines), note)


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
    name="finish",
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
