"""Choose the learning rate of each method and size on texts that nobody is judged on.

A search over learning rates a fixed ratio apart: it goes on at an end for as long as the best is
there, so that the best has worse neighbours on both sides. The criterion is the loss, which is less
noisy than the accuracy. A job of tuning leaves every candidate in its row; jobs that train for the
result read there which one won, and search themselves where there is no such row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankcast.files import put_file
from studies.byte_frontier.methods import METHODS, Settings
from studies.harness.spec import Job, RunContext
from studies.harness.store import fingerprint, read_result
from studies.shared.tasks import TASKS

SEED = 100
"""Of the runs for tuning; no result has it."""
MORE_AT_AN_END = 3
"""Learning rates that are tried beyond the first ones, at most."""
FIRST_TASK = "sst2-frontier"

Candidate = Mapping[str, Any]
Measure = Callable[[Settings], Mapping[str, float]]
"""Trains with some settings; returns `loss` and `accuracy` on the texts for tuning."""


def short_name(task: str) -> str:
    """Return what names of jobs call a task."""
    return task.partition("-")[0]


def tuning_job(task: str, method: str, size: str, steps: int, lrs: Sequence[float] = ()) -> Job:
    """Return the job that tunes a method at a size.

    Args:
        task: name of the task.
        method: name in `METHODS`.
        size: name of one of its sizes.
        steps: of each training.
        lrs: these and no others, to see that it runs.
    """
    before = None if lrs else _before(task, method, size)
    settings = {
        **training_settings("tuning", task, method, size, steps),
        "lrs": list(lrs or ([] if before else METHODS[method].lrs)),
        "ratio": METHODS[method].ratio,
        "scales": [] if before else list(METHODS[method].scales),
        "after": before,
    }
    return Job(f"tune-{short_name(task)}-{method}-{size}", SEED, settings)


def training_settings(kind: str, task: str, method: str, size: str, steps: int) -> dict[str, Any]:
    """Return what the settings of all jobs that train a method begin with.

    Args:
        kind: of the job.
        task: name of the task.
        method: name in `METHODS`.
        size: name of one of its sizes.
        steps: of a training.
    """
    return {
        "kind": kind,
        "task": task,
        "setup": TASKS[task].to_plain(),
        "method": method,
        "size": size,
        "knobs": METHODS[method].sizes[size],
        "steps": steps,
    }


def steps_of(task: str, method: str) -> int:
    """Return the training steps of a method on a task."""
    return TASKS[task].finetune.total_steps * METHODS[method].times_steps


def _before(task: str, method: str, size: str) -> list[str] | None:
    """Return task and size of the search whose winner one starts from; None for the first."""
    sizes = list(METHODS[method].sizes)
    if task != FIRST_TASK:
        return [FIRST_TASK, size]
    return [task, sizes[sizes.index(size) - 1]] if size != sizes[0] else None


def search(lrs: Sequence[float], ratio: float, measure: Callable[[float], float]) -> list[float]:
    """Return the learning rates that were tried, in order.

    Args:
        lrs: to start with, a `ratio` apart.
        ratio: between neighbours.
        measure: returns the loss at a learning rate.
    """
    losses = {lr: measure(lr) for lr in sorted(lrs)}
    for _ in range(MORE_AT_AN_END):
        tried = sorted(losses)
        best = min(losses, key=lambda lr: losses[lr])
        if best not in (tried[0], tried[-1]):
            break
        further = best / ratio if best == tried[0] else best * ratio
        losses[further] = measure(further)
    return sorted(losses)


def tune(job: Job, start: Candidate | None, measure: Measure) -> list[Candidate]:
    """Return every candidate that was tried, with its `loss` and `accuracy`.

    Args:
        job: of tuning.
        start: what won at another size or task: it and its neighbours are tried, at its scale;
            None for the learning rates in the settings, at each scale of the method.
        measure: trains and judges a candidate.
    """
    chosen = METHODS[job.settings["method"]]
    tried: list[Candidate] = []
    scales: Sequence[float | None] = chosen.scales or (None,)
    first: Sequence[float] = job.settings["lrs"]
    if start is not None:
        scales = (start.get("scale"),)
        first = [start["lr"] / chosen.ratio, start["lr"], start["lr"] * chosen.ratio]
    for scale in scales:
        fixed = {} if scale is None else {"scale": scale}

        def loss_at(lr: float, fixed: Mapping[str, float] = fixed) -> float:
            settings = {"lr": lr, **fixed}
            tried.append({**settings, **measure(settings)})
            return tried[-1]["loss"]

        search(first, chosen.ratio, loss_at)
    return tried


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the least loss."""
    return min(candidates, key=lambda c: c["loss"])


def known_candidates(job: Job, context: RunContext) -> list[Candidate] | None:
    """Return what the job of tuning has found, here or in the committed result; None if nothing."""
    try:
        kept = json.loads(_file(job, context).read_text("utf-8"))
        if kept["settings"] == fingerprint(job.settings):
            return kept["candidates"]
    except FileNotFoundError:
        pass
    committed = Path(__file__).with_name("result.json")
    if context.scale == "default" and committed.is_file():
        for row in read_result(committed).rows:
            if row.job.name == job.name and fingerprint(row.job.settings) == fingerprint(
                job.settings
            ):
                return row.values["candidates"]
    return None


def keep_candidates(job: Job, context: RunContext, candidates: Sequence[Candidate]) -> None:
    """Keep what a job of tuning has found, for the jobs that come after it."""
    file = _file(job, context)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": fingerprint(job.settings), "candidates": list(candidates)}
    put_file(file, json.dumps(content).encode())


def _file(job: Job, context: RunContext) -> Path:
    """Return where any job of this study finds what a job of tuning has found."""
    return context.scratch.parent.parent / "tuned" / f"{job.name}.json"
