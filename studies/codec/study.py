"""Accuracy of the real model against the bytes that an adapter is coded in.

QAT is quantization-aware training. In settings and names of codes it is called `finish`, as it was
when the committed rows were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rankcast.codec.packing import Coding, exponent_of_quality
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.qat import QatConfig, coding_for, learner_for
from rankcast.learner.transformer import TransformerLearner
from studies.codec.coding import (
    energy_shares,
    judged_once,
    our_code,
    our_code_within,
    simple_codes,
    train_adapter,
    trained_factors,
    trained_for_code,
    trained_longer,
    tuned_compeft,
)
from studies.codec.presentation import (
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
from studies.harness.spec import Job, RunContext, Scale, Study
from studies.shared.tasks import STEPS, TASKS

SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)
"""Of QAT by distillation alone, which three seeds left unresolved at its smallest size."""
OPTIMISER = {"nested": (2e-3, 8.0), "lora": (2e-3, 16.0), "adalora": (3e-3, 32.0)}
"""Learning rate and alpha."""
QAT = {"steps": 400, "lr": 1e-3, "relative_step": 3.0, "sensitivity_power": 0.5}
RATE_WEIGHTS = {"nested": (6e-7, 1.2e-6, 2.4e-6), "lora": (6e-7, 1.2e-6), "adalora": (6e-7, 1.2e-6)}

DISTILLED_RATE_WEIGHTS = (1.5e-7, 6e-7)


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each way of training and seed, and for the second task."""
    if scale == "quick":  # a task whose texts are read anyway
        return [_job("sst2", "nested", 0, 8, QAT | {"steps": 6, "bit_weights": [1e-6]})]
    every = [
        _job("sst2-codes", way, seed, STEPS, _with_labels(way)) for way in WAYS for seed in SEEDS
    ]
    every += [_compeft(way, seed) for way in ("nested", "lora") for seed in SEEDS]
    every += [_distilled(way, seed) for way in WAYS for seed in SEEDS]
    every += [_distilled("nested", seed) for seed in MORE_SEEDS]
    every += [_job("agnews", "nested", seed, STEPS, _towards_itself()) for seed in SEEDS]
    # Last, when the others have been trained: two jobs at once would write the same checkpoint.
    return [*every, *(_fitted(seed) for seed in (*SEEDS, *MORE_SEEDS))]


def _with_labels(way: str) -> Mapping[str, Any]:
    return QAT | {"bit_weights": list(RATE_WEIGHTS[way])}


def _towards_itself() -> Mapping[str, Any]:
    return QAT | {"distil": True, "bit_weights": list(DISTILLED_RATE_WEIGHTS)}


def _job(task: str, way: str, seed: int, steps: int, qat: Mapping[str, Any]) -> Job:
    settings = {
        "task": task,
        "setup": TASKS[task].to_plain(),
        "way": way,
        "steps": steps,
        "lr": OPTIMISER[way][0],
        "alpha": OPTIMISER[way][1],
        "finish": dict(qat),
    }
    return Job(f"{task}-{way}-{seed}", seed, settings)


def _compeft(way: str, seed: int) -> Job:
    """Return the job that codes another job's adapter as ComPEFT does, with its α tuned."""
    return _after("compeft", way, seed, {"densities": [0.05, 0.2, 0.5]})


def _distilled(way: str, seed: int) -> Job:
    """Return the job that trains another job's adapter for its code, towards its own answers."""
    alone = {"references": True} if seed not in SEEDS else {}
    return _after("distilled", way, seed, {"finish": _towards_itself()} | alone)


def _fitted(seed: int) -> Job:
    """Return the job that codes an adapter after QAT so that it fits a number of bits."""
    qat = QAT | {"distil": True, "bit_weight": DISTILLED_RATE_WEIGHTS[0]}
    return _after("fitted", "nested", seed, {"finish": qat, "times_smaller": 80})


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


@dataclass
class _Judgements:
    """Collects a job's row: each code with its bits and how the decoded adapter does."""

    folder: Path
    learner: TransformerLearner
    codes: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, code: str, bits: float, decoded: AdapterTensors, file: str = "", **more: Any
    ) -> None:
        """Judge a decoded adapter, once; `file` keeps what came out."""
        judged = judged_once(
            self.folder / (file or f"{len(self.codes)}.json"), self.learner, decoded
        )
        self.codes.append({"code": code, "bits": bits, **more, **judged})


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, code, train for the code, and judge what decodes."""
    runs = {"compeft": _run_compeft, "distilled": _run_distilled, "fitted": _run_fitted}
    return runs.get(job.settings["way"], _run_all)(job, context)


def _run_all(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, code in every way, train for the code, and judge what decodes."""
    s, config, few = job.settings, _config(job), context.scale == "quick"
    splits = TASKS[s["task"]].splits_for(context)
    start = train_adapter(s["way"], config, splits, context.scratch)
    learner = learner_for(start, config, splits)
    judged = _Judgements(context.scratch / "judged", learner)
    sensitive = _coding(learner, n_batches=2 if few else 60)
    wanted = (REFERENCE, "int4") if few or s["way"] != "nested" else None
    for label, bits, tensors in simple_codes(start):
        if wanted is None or label in wanted:
            judged.add(label, bits, tensors)
    for step in RELATIVE_STEPS[-1:] if few else RELATIVE_STEPS:
        coding = Coding(exponent_of_quality(start, step), ())
        judged.add(f"{OURS}, {step:g}", *our_code(start, coding))
    judged.add(f"{SENSITIVE}, 3", *our_code(start, sensitive))
    label = DISTILLED if s["finish"].get("distil", False) else FINISHED
    for weight in s["finish"]["bit_weights"]:
        scratch, qat = context.scratch / f"finished-{weight:g}.pt", _qat(job, weight)
        after = trained_for_code(start, config, splits, qat, coding=sensitive, checkpoint=scratch)
        judged.add(f"{label}, {weight:g}", *our_code(after, sensitive))
    ordinary = trained_longer(start, config, splits, _qat(job), context.scratch / "ordinary.pt")
    judged.add(ORDINARY, 32.0 * ordinary.n_params, ordinary)
    return {
        "codes": judged.codes,
        "n_params": start.n_params,
        "ranks": start.ranks.tolist(),
        "energy_shares": [round(x, 4) for x in energy_shares(start)],
        "offsets": list(sensitive.offsets),
    }


def _run_distilled(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train for the code, towards its own answers, the adapter of the job that trained it."""
    s, config, splits = job.settings, _config(job), TASKS[job.settings["task"]].splits_for(context)
    start = train_adapter(s["of"], config, splits, _trained_in(job, context))
    learner = learner_for(start, config, splits)
    judged, sensitive = _Judgements(context.scratch / "judged", learner), _coding(learner)
    if s.get("references", False):
        judged.add(REFERENCE, 32.0 * start.n_params, start, "as-trained.json")
        ordinary = trained_longer(start, config, splits, _qat(job), context.scratch / "ordinary.pt")
        judged.add(ORDINARY, 32.0 * ordinary.n_params, ordinary, "ordinary.json")
    for weight in s["finish"]["bit_weights"]:
        scratch, qat = context.scratch / f"finished-{weight:g}.pt", _qat(job, weight)
        after = trained_for_code(start, config, splits, qat, coding=sensitive, checkpoint=scratch)
        judged.add(f"{DISTILLED}, {weight:g}", *our_code(after, sensitive), f"{weight:g}.json")
    return {"codes": judged.codes, "n_params": start.n_params}


def _run_fitted(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code what another job has trained for its code, or would have, in a share of its bits."""
    s, config, splits = job.settings, _config(job), TASKS[job.settings["task"]].splits_for(context)
    start = train_adapter(s["of"], config, splits, _trained_in(job, context))
    learner = learner_for(start, config, splits)
    judged, sensitive = _Judgements(context.scratch / "judged", learner), _coding(learner)
    qat, factor = _qat(job, s["finish"]["bit_weight"]), s["times_smaller"]
    folder = context.scratch.parent / f"sst2-codes-distilled-{s['of']}-{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"finished-{qat.rate_weight:g}.pt"
    after = trained_for_code(start, config, splits, qat, coding=sensitive, checkpoint=scratch)
    fitted = our_code_within(after, sensitive, 32.0 * start.n_params / factor)
    judged.add(f"{DISTILLED}, fitted to a budget", *fitted, f"{factor}.json")
    return {"codes": judged.codes, "n_params": start.n_params}


def _run_compeft(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code what training changed, on the adapter of the job that trained it."""
    s, config, splits = job.settings, _config(job), TASKS[job.settings["task"]].splits_for(context)
    before, after = trained_factors(s["of"], config, splits, _trained_in(job, context))
    learner = learner_for(after, config, splits)
    judged = _Judgements(context.scratch / "judged", learner)
    for density in s["densities"]:
        coded, gain = tuned_compeft(learner, before, after, density)
        label, file = f"ComPEFT, {density:.0%}, tuned", f"{density:g}.json"
        judged.add(label, coded.bits, coded.tensors, file, gain=gain)
    return {"codes": judged.codes, "n_params": after.n_params}


def _trained_in(job: Job, context: RunContext) -> Path:
    """Return the scratch folder of the job that trains the adapter which this one takes."""
    s = job.settings
    folder = context.scratch.parent / f"{s['task']}-{s['of']}-{job.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _coding(learner: TransformerLearner, n_batches: int = 60) -> Coding:
    """Return steps that follow the sensitivity of each projection."""
    return coding_for(learner, QAT["relative_step"], QAT["sensitivity_power"], n_batches=n_batches)


def _qat(job: Job, rate_weight: float = 0.0) -> QatConfig:
    """Return the quantization-aware training that a job's settings describe."""
    settings = {k: v for k, v in job.settings["finish"].items() if not k.startswith("bit_weight")}
    return QatConfig(rate_weight=rate_weight, **{"distil": False, **settings})


def _config(job: Job) -> FinetuneConfig:
    s = job.settings
    config = TASKS[s["task"]].finetune
    return replace(config, seed=job.seed, total_steps=s["steps"], lr=s["lr"], alpha=s["alpha"])


STUDY = Study(
    name="codec",
    title="Accuracy against coded bytes",
    question="In how few bytes can an adapter be sent without losing accuracy?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
