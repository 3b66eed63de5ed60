"""PEFT's AdaLoRA, trained its own way to the number of parameters that each link carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from studies.baselines.adalora import AdaLoraFinetuner, AdaLoraSchedule
from studies.harness.spec import (
    Job,
    Presentation,
    Result,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval
from studies.shared.judging import judgement
from studies.shared.tasks import SNRS_DB, STEPS, TASKS, share_of_full_rank

LEARNING_RATE, ALPHA = 3e-3, 32.0
N_PROJECTIONS, R_MAX = 36, 8
QUICK_STEPS = 20


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one training for each budget and seed, the extreme budgets first."""
    steps = QUICK_STEPS if scale == "quick" else STEPS
    seeds = (0,) if scale == "quick" else (0, 1, 2)
    common = {
        "task": "sst2",
        "setup": TASKS["sst2"].to_plain(),
        "steps": steps,
        "lr": LEARNING_RATE,
        "alpha": ALPHA,
    }
    return [
        Job(f"sst2-{snr_db:g}dB-{seed}", seed, {**common, "snr_db": snr_db})
        for some in (((5.0,),) if scale == "quick" else ((15.0, -5.0, 5.0), (0.0, 10.0)))
        for seed in seeds
        for snr_db in some
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train to one budget and judge on the pool."""
    task, s = TASKS[job.settings["task"]], job.settings
    config = replace(
        task.finetune, seed=job.seed, lr=s["lr"], alpha=s["alpha"], total_steps=s["steps"]
    )
    total = max(1, round(N_PROJECTIONS * R_MAX * share_of_full_rank(s["snr_db"])))
    schedule = AdaLoraSchedule.derive(s["steps"], total, N_PROJECTIONS)
    tuner = AdaLoraFinetuner(config, task.splits_for(context), schedule)
    losses: list[float] = []
    tuner.train(lambda _, loss: losses.append(loss), context.scratch / "checkpoint.pt")
    loss, correct = tuner.judge_texts("test")
    return {
        **judgement(correct, float(loss.mean())),
        "ranks": tuner.ranks.tolist(),
        "sent_params": tuner.sent_params,
        "init_r": schedule.init_r,
        "total_ranks": total,
        "training_loss": [float(np.mean(losses[i : i + 50])) for i in range(0, len(losses), 50)],
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show accuracy for each budget."""
    del inputs
    if not result.rows:
        return Presentation()
    lines = []
    for snr_db in SNRS_DB:
        rows = result.select(snr_db=snr_db)
        if not rows:
            continue
        accuracy = [100 * row.values["accuracy"] for row in rows]
        params = np.mean([row.values["sent_params"] for row in rows])
        estimate = t_interval(accuracy)
        lines.append(
            (
                f"{snr_db:g} dB",
                f"{np.mean([sum(row.values['ranks']) for row in rows]) / N_PROJECTIONS:.2f}",
                f"{params:,.0f}",
                f"{estimate:.2f} %",
                str(len(rows)),
            )
        )
    table = Table(
        "AdaLoRA at the budget of each link",
        ("link", "mean rank", "parameters sent", "accuracy, 95 % interval over seeds", "seeds"),
        tuple(lines),
        f"MiniLM on SST-2, {STEPS} steps, learning rate {LEARNING_RATE:g}, alpha {ALPHA:g}.",
    )
    return Presentation((), (table,))


STUDY = Study(
    name="adalora",
    title="AdaLoRA at equal budgets",
    question="How accurate is PEFT's AdaLoRA at the number of parameters that each link carries?",
    source="baseline",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
