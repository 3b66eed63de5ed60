"""Nested training that ends under the chosen ranks, as AdaLoRA's does, in as many steps."""

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
    RunContext,
    Scale,
    Table,
)
from rankcast.experiment.tasks import STEPS, TASKS
from rankcast.records import IntArray

VARIANT = "lambda-0"
SNRS_DB = (-5.0, 5.0, 15.0)
NESTED_SHARE = 0.75
QUICK_STEPS = 8


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one run for each seed; each ends once for every link."""
    steps, seeds = (QUICK_STEPS, (0,)) if scale == "quick" else (STEPS, (0, 1, 2))
    return [
        Job(f"sst2-{seed}", seed, {"task": "sst2", "steps": steps, "variant": VARIANT})
        for seed in seeds
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train nested for three quarters of the steps, then once for each link under its plan."""
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
    nested, done = context.scratch / "nested.pt", context.scratch / f"ended-{name}.pt"
    if not nested.is_file():
        learner = TransformerLearner(config, splits)
        while learner.n_steps < NESTED_SHARE * config.total_steps:
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
    points = points_of(rates, adalora) | {"finish": points_of_rows(result)}
    claims = against(points, "finish", "AirLLM (λ = 0), ending under the chosen ranks,")
    lines = tuple(
        (
            f"{snr_db:g} dB",
            f"{bits / 1e6:.2f}",
            percent(answers.accuracy),
            *(
                percent(points[name][snr_db][1].accuracy) if snr_db in points.get(name, {}) else "–"
                for name in ("airllm-0", "adalora")
            ),
            str(len(answers.seeds)),
        )
        for snr_db, (bits, answers) in points["finish"].items()
    )
    columns = (
        "link", "bits [Mbit]", "ending under the plan", "cut from one nested run", "AdaLoRA",
        "seeds",
    )  # fmt: skip
    note = (
        f"{STEPS} training steps each; here the last {1 - NESTED_SHARE:.0%} of them train the "
        "plan's ranks alone, once for each link. AdaLoRA fixes its ranks for the last 30 %."
    )
    return Presentation(tuple(claims), (Table("Ending under the plan", columns, lines, note),))


def points_of_rows(result: Result) -> dict[float, Any]:
    """Return bits and answers at each link."""
    found = {}
    for snr_db in SNRS_DB:
        rows = [
            replace(row, values=seen)
            for row in result.rows
            for seen in row.values["live"]
            if seen["snr_db"] == snr_db
        ]
        bits = [
            p["payload_bits"]
            for row in result.rows
            for p in row.values["plans"]
            if p["snr_db"] == snr_db
        ]
        answers = direct_answers(rows)
        if answers is not None:
            found[snr_db] = (float(np.mean(bits)), answers)
    return found


EXPERIMENT = Experiment(
    name="finish",
    title="Ending under the chosen ranks",
    question="Does AirLLM match AdaLoRA if its training, too, ends under the ranks that are sent?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=("table5a",),
    beside=("rate_accuracy", "adalora"),
    live=True,
)
