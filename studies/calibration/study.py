"""One nested fine-tuning run a seed, probed at random plans: the calibrated learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rankcast.learner.transformer import TransformerLearner
from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval
from studies.shared.tasks import STEPS, TASKS, full_ranks, train_to_end
from studies.surrogate.calibration import calibrate

PROBES, TEXTS_PER_PLAN = 300, 320
QUICK_STEPS, QUICK_PROBES, QUICK_TEXTS_PER_PLAN = 10, 24, 20


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one run for each seed."""
    if scale == "quick":
        return [_job(0, QUICK_STEPS, QUICK_PROBES, QUICK_TEXTS_PER_PLAN)]
    return [_job(seed, STEPS, PROBES, TEXTS_PER_PLAN) for seed in (0, 1, 2)]


def _job(seed: int, steps: int, probes: int, texts_per_plan: int) -> Job:
    settings = {
        "task": "sst2",
        "setup": TASKS["sst2"].to_plain(),
        "steps": steps,
        "probes": probes,
        "texts_per_plan": texts_per_plan,
    }
    return Job(f"sst2-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, probe, fit."""
    task, s = TASKS[job.settings["task"]], job.settings
    config = replace(task.finetune, seed=job.seed, total_steps=s["steps"])
    learner = TransformerLearner(config, task.splits_for(context))
    train_to_end(learner, full_ranks(learner), context.scratch / "checkpoint.pt")
    probes_file = context.scratch / "probes.npz"
    calibration, probes = calibrate(learner, s["probes"], s["texts_per_plan"], probes_file)
    return {
        "calibration": calibration.to_plain(),
        "full_rank_loss": float(probes.reference_losses.mean()),
        "rank_0_loss": float(probes.mean_losses()[0]),
        "n_probe_texts": probes.n_texts,
        "n_training_texts": len(learner.data.train),
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show how well the fits predict the loss of unseen plans."""
    del inputs
    quality = [row.values["calibration"]["quality"] for row in result.rows]
    if not quality:
        return Presentation()
    lines = tuple(
        (
            row.job.name,
            f"{q['r2']:.3f}",
            _number(q["r2_explainable"]),
            f"{q['r2_share_only']:.3f}",
            f"{q['residual_std']:.4f}",
            f"{q['sampling_std']:.4f}",
            f"{row.values['rank_0_loss']:.3f}",
            f"{row.values['full_rank_loss']:.3f}",
        )
        for row, q in zip(result.rows, quality, strict=True)
    )
    columns = (
        "run", "held-out R²", "without sampling errors", "R² of the transmitted share alone",
        "error on unseen plans [nats]", "of which sampling [nats]",
        "loss at rank 0 [nats]", "loss at full rank [nats]",
    )  # fmt: skip
    claims = [
        _claim(
            result,
            "r2",
            "The calibrated learner predicts the loss that the real model shows under plans it "
            "has not seen.",
            "Loss measured on texts drawn for each plan, so that sampling errors count against "
            "it; final plans are judged on the real model.",
        )
    ]
    if all(q["r2_explainable"] is not None for q in quality):
        claims.append(
            _claim(
                result,
                "r2_explainable",
                "The calibrated learner predicts the real model's loss under plans it has not "
                "seen, once the errors of measuring that are taken out.",
                "Their variance, estimated from the texts of each plan, is subtracted from squared "
                "error and variance alike. All plans share the errors of the large sample that "
                "their texts were drawn from.",
            )
        )
    return Presentation(tuple(claims), (Table("Fits", columns, lines),))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _claim(result: Result, name: str, claim: str, note: str) -> Claim:
    """Return the mean over runs of one kind of R²."""
    estimate = t_interval([row.values["calibration"]["quality"][name] for row in result.rows])
    return Claim(
        claim,
        "",
        f"R² {estimate.value:.3f}",
        estimate.interval,
        "measured",
        result.seeds,
        note,
    )


STUDY = Study(
    name="calibration",
    title="The calibrated learner",
    question="How well does a monotone utility predict the real model's loss under any plan?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
