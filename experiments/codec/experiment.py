"""Accuracy of the real model against the bytes that an adapter is coded in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankcast.experiment.code_readouts import (
    DISTILLED,
    FINISHED,
    ORDINARY,
    OURS,
    REFERENCE,
    RELATIVE_STEPS,
    SENSITIVE,
    WAYS,
    present,
)
from rankcast.experiment.spec import Experiment, Job, RunContext, Scale
from rankcast.experiment.tasks import STEPS, TASKS

if TYPE_CHECKING:
    from rankcast.codec.tensors import AdapterTensors
    from rankcast.finetune.config import FinetuneConfig
    from rankcast.finetune.datasets import DatasetSplits
    from rankcast.finetune.finish import Coding
    from rankcast.finetune.transformer import TransformerLearner

SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)
"""Of the finish by distillation alone, which three seeds left unresolved at its smallest size."""
OPTIMISER = {"nested": (2e-3, 8.0), "lora": (2e-3, 16.0), "adalora": (3e-3, 32.0)}
"""Learning rate and alpha."""
FINISH = {"steps": 400, "lr": 1e-3, "relative_step": 3.0, "sensitivity_power": 0.5}
BIT_WEIGHTS = {"nested": (6e-7, 1.2e-6, 2.4e-6), "lora": (6e-7, 1.2e-6), "adalora": (6e-7, 1.2e-6)}

DISTILLED_BIT_WEIGHTS = (1.5e-7, 6e-7)


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each way of training and seed, and for the second task."""
    if scale == "quick":  # a task whose texts are read anyway
        return [_job("sst2", "nested", 0, 8, FINISH | {"steps": 6, "bit_weights": [1e-6]})]
    found = [_job("sst2-codes", way, seed, STEPS, _finish(way)) for way in WAYS for seed in SEEDS]
    found += [_compeft(way, seed) for way in ("nested", "lora") for seed in SEEDS]
    found += [_distilled(way, seed) for way in WAYS for seed in SEEDS]
    found += [_distilled("nested", seed) for seed in MORE_SEEDS]
    found += [_job("agnews", "nested", seed, STEPS, _distil()) for seed in SEEDS]
    # Last, when the finishes are there: two jobs at once would write the same checkpoint.
    return [*found, *(_fitted(seed) for seed in (*SEEDS, *MORE_SEEDS))]


def _finish(way: str) -> Mapping[str, Any]:
    return FINISH | {"bit_weights": list(BIT_WEIGHTS[way])}


def _distil() -> Mapping[str, Any]:
    return FINISH | {"distil": True, "bit_weights": list(DISTILLED_BIT_WEIGHTS)}


def _job(task: str, way: str, seed: int, steps: int, finish: Mapping[str, Any]) -> Job:
    settings = {
        "task": task,
        "setup": TASKS[task].to_plain(),
        "way": way,
        "steps": steps,
        "lr": OPTIMISER[way][0],
        "alpha": OPTIMISER[way][1],
        "finish": dict(finish),
    }
    return Job(f"{task}-{way}-{seed}", seed, settings)


def _compeft(way: str, seed: int) -> Job:
    """Return the job that codes another job's adapter as ComPEFT does, with its α tuned."""
    return _after("compeft", way, seed, {"densities": [0.05, 0.2, 0.5]})


def _distilled(way: str, seed: int) -> Job:
    """Return the job that finishes another job's adapter towards its own answers."""
    alone = {"references": True} if seed not in SEEDS else {}
    return _after("distilled", way, seed, {"finish": _distil()} | alone)


def _fitted(seed: int) -> Job:
    """Return the job that codes a finished adapter so that it fits a number of bits."""
    finish = FINISH | {"distil": True, "bit_weight": DISTILLED_BIT_WEIGHTS[0]}
    return _after("fitted", "nested", seed, {"finish": finish, "times_smaller": 80})


def _after(what: str, way: str, seed: int, more: Mapping[str, Any]) -> Job:
    """Return a job on the adapter that another job has trained, or would have."""
    settings = {
        "task": "sst2-codes",
        "way": what,
        "of": way,
        "steps": STEPS,
        "lr": OPTIMISER[way][0],
        "alpha": OPTIMISER[way][1],
        **more,
    }
    return Job(f"sst2-codes-{what}-{way}-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, code, finish, and judge what decodes."""
    runs = {"compeft": _run_compeft, "distilled": _run_distilled, "fitted": _run_fitted}
    return runs.get(job.settings["way"], _run)(job, context)


def _run_distilled(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Finish, towards its own answers, the adapter of the job that trained it."""
    from rankcast.experiment import codes  # noqa: PLC0415

    s, splits, config = job.settings, TASKS[job.settings["task"]].splits_for(context), _config(job)
    start, learner, sensitive = _taken(job, context, config, splits)
    settings, rows = dict(s["finish"]), []
    weights = settings.pop("bit_weights")

    def note(label: str, bits: float, tensors: Any, file: str) -> None:
        found = codes.judged_once(context.scratch / "judged" / file, learner, tensors)
        rows.append({"code": label, "bits": bits, **found})

    if s.get("references", False):
        note(REFERENCE, 32.0 * start.n_params, start, "as-trained.json")
        ordinary = codes.trained_on(
            start, config, splits, codes.Finish(**FINISH), context.scratch / "ordinary.pt"
        )
        note(ORDINARY, 32.0 * ordinary.n_params, ordinary, "ordinary.json")
    for weight in weights:
        finish = codes.Finish(bit_weight=weight, **settings)
        checkpoint = context.scratch / f"finished-{weight:g}.pt"
        after = codes.finished(
            start, config, splits, finish, coding=sensitive, checkpoint=checkpoint
        )
        bits, decoded = codes.our_code(after, sensitive)
        note(f"{DISTILLED}, {weight:g}", bits, decoded, f"{weight:g}.json")
    return {"codes": rows, "n_params": start.n_params}


def _run_fitted(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code what another job has finished, or would have, in a share of its bits in float32."""
    from rankcast.experiment import codes  # noqa: PLC0415

    s, splits, config = job.settings, TASKS[job.settings["task"]].splits_for(context), _config(job)
    start, learner, sensitive = _taken(job, context, config, splits)
    finish = codes.Finish(**s["finish"])
    folder = context.scratch.parent / f"sst2-codes-distilled-{s['of']}-{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"finished-{finish.bit_weight:g}.pt"
    after = codes.finished(start, config, splits, finish, coding=sensitive, checkpoint=checkpoint)
    factor = s["times_smaller"]
    bits, decoded = codes.our_code_within(after, sensitive, 32.0 * start.n_params / factor)
    found = codes.judged_once(context.scratch / "judged" / f"{factor}.json", learner, decoded)
    row = {"code": f"{DISTILLED}, fitted to a budget", "bits": bits, **found}
    return {"codes": [row], "n_params": start.n_params}


def _taken(
    job: Job, context: RunContext, config: FinetuneConfig, splits: DatasetSplits
) -> tuple[AdapterTensors, TransformerLearner, Coding]:
    """Return the adapter that another job trains, a learner that holds it, and its steps."""
    from rankcast.experiment import codes  # noqa: PLC0415

    start = codes.train_adapter(job.settings["of"], config, splits, _trained_in(job, context))
    learner = codes.learner_for(start, config, splits)
    steps = codes.coding_for(learner, FINISH["relative_step"], FINISH["sensitivity_power"])
    return start, learner, steps


def _trained_in(job: Job, context: RunContext) -> Path:
    """Return the scratch folder of the job that trains the adapter which this one takes."""
    s = job.settings
    folder = context.scratch.parent / f"{s['task']}-{s['of']}-{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run_compeft(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code what training changed, on the adapter of the job that trained it."""
    from rankcast.experiment import codes  # noqa: PLC0415

    s = job.settings
    splits, config = TASKS[s["task"]].splits_for(context), _config(job)
    before, after = codes.trained_factors(s["of"], config, splits, _trained_in(job, context))
    learner = codes.learner_for(after, config, splits)
    rows: list[dict[str, Any]] = []
    for density in s["densities"]:
        coded, gain = codes.tuned_compeft(learner, before, after, density)
        file = context.scratch / "judged" / f"{density:g}.json"
        found = codes.judged_once(file, learner, coded.tensors)
        label = f"ComPEFT, {density:.0%}, tuned"
        rows.append({"code": label, "bits": coded.bits, "gain": gain, **found})
    return {"codes": rows, "n_params": after.n_params}


def _run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, code in every way, finish, and judge what decodes."""
    from rankcast.experiment import codes  # noqa: PLC0415

    s, task = job.settings, TASKS[job.settings["task"]]
    splits, config, few = task.splits_for(context), _config(job), context.scale == "quick"
    start = codes.train_adapter(s["way"], config, splits, context.scratch)
    learner = codes.learner_for(start, config, splits)
    rows: list[dict[str, Any]] = []

    def note(label: str, bits: float, tensors: Any) -> None:
        file = context.scratch / "judged" / f"{len(rows)}.json"
        found = codes.judged_once(file, learner, tensors)
        rows.append({"code": label, "bits": bits, **found})

    sensitive = codes.coding_for(
        learner, FINISH["relative_step"], FINISH["sensitivity_power"], n_batches=2 if few else 60
    )
    wanted = (REFERENCE, "int4") if few or s["way"] != "nested" else None
    for label, bits, tensors in codes.simple_codes(start):
        if wanted is None or label in wanted:
            note(label, bits, tensors)
    for step in RELATIVE_STEPS[-1:] if few else RELATIVE_STEPS:
        coding = codes.Coding(codes.exponent_of_quality(start, step), ())
        note(f"{OURS}, {step:g}", *codes.our_code(start, coding))
    note(f"{SENSITIVE}, 3", *codes.our_code(start, sensitive))
    weights, settings = s["finish"]["bit_weights"], dict(s["finish"])
    del settings["bit_weights"]
    distil = settings.pop("distil", False)
    finished = DISTILLED if distil else FINISHED
    for weight in weights:
        finish = codes.Finish(bit_weight=weight, distil=distil, **settings)
        scratch = context.scratch / f"finished-{weight:g}.pt"
        after = codes.finished(start, config, splits, finish, coding=sensitive, checkpoint=scratch)
        note(f"{finished}, {weight:g}", *codes.our_code(after, sensitive))
    ordinary = codes.trained_on(
        start, config, splits, codes.Finish(**settings), context.scratch / "ordinary.pt"
    )
    note(ORDINARY, 32.0 * ordinary.n_params, ordinary)
    return {
        "codes": rows,
        "n_params": start.n_params,
        "ranks": start.ranks.tolist(),
        "energy_shares": [round(x, 4) for x in codes.energy_shares(start)],
        "offsets": list(sensitive.offsets),
    }


def _config(job: Job) -> FinetuneConfig:
    s = job.settings
    config = TASKS[s["task"]].finetune
    return replace(config, seed=job.seed, total_steps=s["steps"], lr=s["lr"], alpha=s["alpha"])


EXPERIMENT = Experiment(
    name="codec",
    title="Accuracy against coded bytes",
    question="In how few bytes can an adapter be sent without losing accuracy?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    live=True,
)
