"""One nested fine-tuning run a seed, probed at random plans: the calibrated learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.experiment.live import trained
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    Job,
    Presentation,
    Result,
    RunContext,
    Scale,
    Table,
)
from rankcast.experiment.tasks import STEPS, TASKS
from rankcast.statistics import t_interval

PROBES = 256
QUICK_STEPS, QUICK_PROBES = 20, 12


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one run for each seed."""
    if scale == "quick":
        return [Job("sst2-0", 0, {"task": "sst2", "steps": QUICK_STEPS, "probes": QUICK_PROBES})]
    return [
        Job(f"sst2-{seed}", seed, {"task": "sst2", "steps": STEPS, "probes": PROBES})
        for seed in (0, 1, 2)
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, probe, fit."""
    from rankcast.finetune.calibration import Calibration  # noqa: PLC0415
    from rankcast.finetune.probing import probe, random_plans  # noqa: PLC0415
    from rankcast.finetune.transformer import TransformerLearner  # noqa: PLC0415

    task = TASKS[job.settings["task"]]
    config = replace(task.finetune, seed=job.seed, total_steps=job.settings["steps"])
    learner = TransformerLearner(config, task.splits(context.data))
    full = np.full(learner.layout.n_projections, learner.layout.r_max)
    trained(learner, full, context.scratch / "checkpoint.pt")
    rng = np.random.default_rng([job.seed, 1])
    plans = random_plans(rng, job.settings["probes"], learner.layout)
    probes = probe(learner, "validation", plans, context.scratch / "probes.npz")
    calibration = Calibration.of_probes(probes, learner.layout, np.random.default_rng(job.seed))
    return {
        "calibration": calibration.to_plain(),
        "full_rank_loss": float(probes.reference_losses.mean()),
        "rank_0_loss": float(probes.losses[0].mean()),
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show how well the fits foretell plans that they have not seen."""
    del inputs
    quality = [row.values["calibration"]["quality"] for row in result.rows]
    if not quality:
        return Presentation(())
    estimate = t_interval([q["r2"] for q in quality])
    lines = tuple(
        (
            row.job.name,
            f"{q['r2']:.3f}",
            f"{q['r2_share_only']:.3f}",
            f"{row.values['rank_0_loss']:.3f}",
            f"{row.values['full_rank_loss']:.3f}",
        )
        for row, q in zip(result.rows, quality, strict=True)
    )
    columns = (
        "run", "held-out R²", "R² of the transmitted share alone",
        "loss at rank 0 [nats]", "loss at full rank [nats]",
    )  # fmt: skip
    claim = Claim(
        "The calibrated learner foretells the real model's loss under plans it has not seen.",
        "",
        f"R² {estimate.value:.3f}",
        estimate.interval,
        "measured",
        result.seeds,
        "Loss on the probed texts; final plans are judged on the real model.",
    )
    return Presentation((claim,), (Table("Fits", columns, lines),))


EXPERIMENT = Experiment(
    name="calibration",
    title="The calibrated learner",
    question="How well does a monotone utility foretell the real model's loss under any plan?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    live=True,
)
