"""Accuracy of the real model against the bytes that an adapter is coded in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.experiment.live import unpack
from rankcast.experiment.readouts import Answers, percent
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    Job,
    LineChart,
    Presentation,
    Result,
    RunContext,
    Scale,
    Series,
    Table,
    Verdict,
)
from rankcast.experiment.tasks import STEPS, TASKS
from rankcast.statistics import equivalent

if TYPE_CHECKING:
    from rankcast.finetune.config import FinetuneConfig

WAYS = ("nested", "lora", "adalora")
SEEDS = (0, 1, 2)
LABELS = {"nested": "nested SVD form", "lora": "PEFT LoRA", "adalora": "PEFT AdaLoRA"}
OPTIMISER = {"nested": (2e-3, 8.0), "lora": (2e-3, 16.0), "adalora": (3e-3, 32.0)}
"""Learning rate and alpha."""
FINISH = {"steps": 400, "lr": 1e-3, "relative_step": 3.0, "sensitivity_power": 0.5}
BIT_WEIGHTS = {"nested": (6e-7, 1.2e-6, 2.4e-6), "lora": (6e-7, 1.2e-6), "adalora": (6e-7, 1.2e-6)}
RELATIVE_STEPS = (1.0, 2.0, 3.0)
REFERENCE, ORDINARY = "fp32", "fp32, after as many ordinary steps"
OURS, SENSITIVE, FINISHED = "one step", "steps by sensitivity", "finished"
MARGIN = 0.005
GOAL = 80.0


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each way of training and seed, and for the second task."""
    if scale == "quick":  # a task whose texts are read anyway
        return [_job("sst2", "nested", 0, 8, FINISH | {"steps": 6, "bit_weights": [1e-6]})]
    found = [_job("sst2-codes", way, seed, STEPS, _finish(way)) for way in WAYS for seed in SEEDS]
    return [*found, *(_job("agnews", "nested", seed, STEPS, _finish("nested")) for seed in SEEDS)]


def _finish(way: str) -> Mapping[str, Any]:
    return FINISH | {"bit_weights": list(BIT_WEIGHTS[way])}


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


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
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
    for weight in weights:
        finish = codes.Finish(bit_weight=weight, **settings)
        scratch = context.scratch / f"finished-{weight:g}.pt"
        after = codes.finished(start, config, splits, finish, coding=sensitive, checkpoint=scratch)
        note(f"{FINISHED}, {weight:g}", *codes.our_code(after, sensitive))
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


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show accuracy against bytes, and how far coding goes at parity."""
    del inputs
    if not result.rows:
        return Presentation(())
    claims, tables, charts = [], [], []
    for task, way in dict.fromkeys((r.job.settings["task"], r.job.settings["way"])
                                   for r in result.rows):  # fmt: skip
        points = _points(result, task, way)
        title = f"{LABELS[way]}, {task.split('-')[0]}"
        claims += _claims(points, title)
        tables.append(_table(points, title))
        charts.append(_chart(points, title))
    return Presentation(tuple(claims), tuple(tables), tuple(charts))


def _points(result: Result, task: str, way: str) -> dict[str, tuple[float, Answers]]:
    """Return bits and answers of each code."""
    rows = result.select(task=task, way=way)
    found = {}
    for code in [c["code"] for c in rows[0].values["codes"]]:
        seen = [(row.job.seed, c) for row in rows for c in row.values["codes"] if c["code"] == code]
        correct = [unpack(c["correct"], c["n_texts"]) for _, c in seen]
        answers = Answers(np.array(correct, dtype=np.float64), tuple(seed for seed, _ in seen))
        found[code] = (float(np.mean([c["bits"] for _, c in seen])), answers)
    return found


def _claims(points: Mapping[str, tuple[float, Answers]], title: str) -> list[Claim]:
    """Return parity of each of our codes with float32, as trained and after as many steps."""
    claims = []
    for code, point in points.items():
        if not code.startswith((OURS, SENSITIVE, FINISHED)):
            continue
        references = (REFERENCE, ORDINARY) if code.startswith(FINISHED) else (REFERENCE,)
        claims += [_parity(title, code, point, name, points[name]) for name in references]
    return claims


def _parity(
    title: str,
    code: str,
    point: tuple[float, Answers],
    reference: str,
    against: tuple[float, Answers],
) -> Claim:
    """Return whether a code's accuracy is within half a point of a reference's."""
    (bits, answers), (plain_bits, theirs) = point, against
    difference = answers.minus(theirs)
    found: Verdict = "not resolved"
    if difference.interval is not None and (difference.high < -MARGIN or difference.low > MARGIN):
        found = "contradicted"
    elif equivalent(difference.interval, MARGIN):
        found = "reproduced"
    return Claim(
        f"{title}: {code} is within half a point of {reference}.",
        "",
        f"{100 * difference.value:+.2f} points at {plain_bits / bits:.0f} times fewer bits",
        difference.scaled(100).interval,
        found,
        answers.shared(theirs),
        f"{answers.correct.shape[1]:,} texts; bits of the whole file, header included.",
    )


def _table(points: Mapping[str, tuple[float, Answers]], title: str) -> Table:
    plain_bits, reference = points[REFERENCE]
    lines = tuple(
        (
            code,
            f"{bits / 8e3:,.1f}",
            f"{plain_bits / bits:.0f}",
            percent(answers.accuracy),
            percent(answers.minus(reference), sign=True),
        )
        for code, (bits, answers) in points.items()
    )
    columns = ("code", "kB", "times smaller", "accuracy", "difference to fp32")
    return Table(f"{title}: codes", columns, lines, "95 % intervals over seeds and texts.")


def _chart(points: Mapping[str, tuple[float, Answers]], title: str) -> LineChart:
    groups: dict[str, list[tuple[float, Answers]]] = {}
    for code, point in points.items():
        groups.setdefault(_family(code), []).append(point)
    series = []
    for name, found in groups.items():
        ordered = sorted(found, key=lambda point: point[0])
        accuracy = [answers.accuracy.scaled(100) for _, answers in ordered]
        series.append(
            Series(
                name,
                [bits / 8e3 for bits, _ in ordered],
                [a.value for a in accuracy],
                [a.low for a in accuracy],
                [a.high for a in accuracy],
            )
        )
    return LineChart(
        f"{title}: accuracy against bytes", "kB", "accuracy [%]", tuple(series), log_x=True,
        markers=True, note="Real model; bands: 95 % over seeds and texts.",
    )  # fmt: skip


def _family(code: str) -> str:
    """Return the line of the chart that a code belongs to."""
    ours = code.startswith((OURS, SENSITIVE, FINISHED, "ComPEFT", "LoRAQuant"))
    return code.rpartition(", ")[0] if ours else code


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
