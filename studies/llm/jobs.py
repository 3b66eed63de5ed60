"""The jobs of the study: their settings, and their order by worth.

Every training has the same steps. What a job needs of another (a learning rate, an adapter,
teachers) it makes itself where it is not there, so that jobs run in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from studies.harness.spec import Job, Scale
from studies.llm.base import GEMMA, TINY
from studies.llm.docstrings import PACKAGES
from studies.llm.texts import DOCSTRINGS, SST2, Sizes

RANKS, FIRST_RANKS, MORE_RANKS = (8, 4, 2, 1), (8, 1), (4, 2)
FIRST_RANK = 8
"""Whose learning rate is searched; other ranks try it and its neighbours."""
SEEDS, TUNING_SEED = (0, 1, 2), 100
RATIO = 2.0
SCALE = 2.0
"""Alpha / r, as is customary."""
AFTER = ("rounded", "published", "pack", "curved", "larger")
"""Jobs that send a trained adapter in codes, without training it further."""
LONG = 2
"""Times the steps, of LoRA that trains as long as our files with teachers."""
QAT_SIZES = (150_000, 64_000, 16_000, 4_000)
TAUGHT_SIZES = (64_000, 16_000, 4_000)
ENGINE_ANSWERS = 200
ENGINE_CODES = ("no adapter", "fp32", "pack, 2", "qat, 16,000 bytes")


@dataclass(frozen=True)
class Plan:
    """How much a scale trains and judges.

    Attributes:
        model: name of the base model.
        steps: of a training.
        tuning_steps: of a training that tries a learning rate.
        warmup: steps of warm-up.
        batch: texts of a step.
        pass_tokens: of a forward and backward pass.
        sizes: texts of each task.
        lrs: learning rates with which the first search begins, `RATIO` apart.
    """

    model: str
    steps: int
    tuning_steps: int
    warmup: int
    batch: int
    pass_tokens: int
    sizes: Mapping[str, Sizes]
    lrs: tuple[float, ...]


PLAN = Plan(
    GEMMA, steps=300, tuning_steps=100, warmup=20, batch=16, pass_tokens=512,
    sizes={
        DOCSTRINGS: Sizes(1_000, 300, None, PACKAGES, most_tokens=192),
        SST2: Sizes(2_000, 600, 12_000, (), most_tokens=96),
    },
    lrs=(5e-4, 1e-3, 2e-3),
)  # fmt: skip
QUICK = Plan(
    TINY, steps=4, tuning_steps=2, warmup=1, batch=4, pass_tokens=512,
    sizes={DOCSTRINGS: Sizes(16, 8, 40, ("peft",), most_tokens=192, shortest_answer=8)},
    lrs=(1e-3, 2e-3),
)  # fmt: skip


def jobs(scale: Scale) -> Sequence[Job]:
    """Return the jobs: docstrings at ranks 8 and 1 with one seed first, more seeds last."""
    if scale == "quick":
        return list(_quick())
    return list(_every(PLAN))


def _every(plan: Plan) -> Iterator[Job]:
    for rank in FIRST_RANKS:
        yield from tuning_jobs(plan, DOCSTRINGS, rank)
        yield from _of_adapter(plan, DOCSTRINGS, rank, 0)
    yield from _trained_by_us(plan, DOCSTRINGS, 0)
    yield from (engine_job(plan, FIRST_RANK, code) for code in ENGINE_CODES)
    yield adapter_job(plan, DOCSTRINGS, FIRST_RANK, 0, times=LONG)
    for rank in MORE_RANKS:
        yield from tuning_jobs(plan, DOCSTRINGS, rank)
        yield from _of_adapter(plan, DOCSTRINGS, rank, 0)
    for rank in FIRST_RANKS:
        yield from tuning_jobs(plan, SST2, rank)
        yield from _of_adapter(plan, SST2, rank, 0)
    yield from _trained_by_us(plan, SST2, 0)
    for task, seed in product((DOCSTRINGS, SST2), SEEDS[1:]):
        for rank in FIRST_RANKS:
            yield from _of_adapter(plan, task, rank, seed)
        yield from _trained_by_us(plan, task, seed)
    for seed in SEEDS[1:]:
        yield adapter_job(plan, DOCSTRINGS, FIRST_RANK, seed, times=LONG)
        for rank in MORE_RANKS:
            yield from _of_adapter(plan, DOCSTRINGS, rank, seed)
    for rank in MORE_RANKS:
        yield from tuning_jobs(plan, SST2, rank)
        for seed in SEEDS:
            yield adapter_job(plan, SST2, rank, seed)


def _quick() -> Iterator[Job]:
    """Yield a job of each kind but those that need the engine, with hardly a step."""
    yield from tuning_jobs(QUICK, DOCSTRINGS, FIRST_RANK)
    yield from tuning_jobs(QUICK, DOCSTRINGS, 1)
    yield from (adapter_job(QUICK, DOCSTRINGS, rank, 0) for rank in FIRST_RANKS)
    for kind in AFTER:
        yield after_job(QUICK, DOCSTRINGS, 1, 0, kind)
    yield qat_job(QUICK, DOCSTRINGS, 1, 0, None)
    yield qat_job(QUICK, DOCSTRINGS, 1, 0, 2_000)
    yield teachers_job(QUICK, DOCSTRINGS, 0)
    yield taught_job(QUICK, DOCSTRINGS, 0, 2_000)


def _of_adapter(plan: Plan, task: str, rank: int, seed: int) -> Iterator[Job]:
    """Yield the jobs of one adapter: trained, in every code of peers, in ours, and after qat."""
    yield adapter_job(plan, task, rank, seed)
    for kind in AFTER:
        yield after_job(plan, task, rank, seed, kind)
    for size in (QAT_SIZES[0], None, *QAT_SIZES[1:]):
        yield qat_job(plan, task, rank, seed, size)


def _trained_by_us(plan: Plan, task: str, seed: int) -> Iterator[Job]:
    """Yield the jobs of files that are trained for a size."""
    yield teachers_job(plan, task, seed)
    yield from (taught_job(plan, task, seed, size) for size in TAUGHT_SIZES)


def _settings(plan: Plan, kind: str, task: str, rank: int, times: int = 1) -> dict[str, Any]:
    """Return what the settings of all jobs begin with."""
    return {
        "kind": kind,
        "task": task,
        "model": plan.model,
        "sizes": plan.sizes[task].to_plain(),
        "rank": rank,
        "steps": plan.steps * times,
        "warmup": plan.warmup,
        "batch": plan.batch,
        "pass_tokens": plan.pass_tokens,
        "scale": SCALE,
    }


def tuning_jobs(plan: Plan, task: str, rank: int) -> list[Job]:
    """Return the jobs that search a learning rate, one for each candidate.

    The first rank of docstrings tries those of the plan, and one beyond them if the best is at an
    end. Others try what won before them and its neighbours.
    """
    before = before_of(task, rank)
    marks: list[dict[str, Any]] = [{"place": place} for place in (-1, 0, 1)]
    if before is None:
        marks = [{"place": place} for place in range(len(plan.lrs))]
        marks.append({"beyond": len(plan.lrs)})
    settings = {**_settings(plan, "tuning", task, rank), "steps": plan.tuning_steps}
    return [
        Job(
            f"tune-{task}-{rank}-{i}",
            TUNING_SEED,
            {**settings, "lrs": list(plan.lrs), **mark},
        )
        for i, mark in enumerate(marks)
    ]


def before_of(task: str, rank: int) -> tuple[str, int] | None:
    """Return task and rank whose winner a search starts from; None for the first."""
    if rank != FIRST_RANK:
        return task, FIRST_RANK
    return None if task == DOCSTRINGS else (DOCSTRINGS, FIRST_RANK)


def adapter_job(plan: Plan, task: str, rank: int, seed: int, times: int = 1) -> Job:
    """Return the job that trains a LoRA and judges it in float32."""
    long = "" if times == 1 else f"-x{times}"
    settings = {**_settings(plan, "adapter", task, rank, times), "times": times}
    return Job(f"{task}-{rank}{long}-{seed}", seed, settings)


def after_job(plan: Plan, task: str, rank: int, seed: int, kind: str) -> Job:
    """Return a job on an adapter: one of `AFTER`."""
    return Job(f"{task}-{rank}-{seed}-{kind}", seed, _settings(plan, kind, task, rank))


def qat_job(plan: Plan, task: str, rank: int, seed: int, size: int | None) -> Job:
    """Return the job that trains an adapter on rounded weights, for a size or for none."""
    settings = {**_settings(plan, "qat", task, rank), "size": size}
    return Job(f"{task}-{rank}-{seed}-qat-{size or 'free'}", seed, settings)


def teachers_job(plan: Plan, task: str, seed: int) -> Job:
    """Return the job that trains the teachers of small files."""
    settings = _settings(plan, "teachers", task, FIRST_RANK, LONG)
    return Job(f"{task}-teachers-{seed}", seed, settings)


def taught_job(plan: Plan, task: str, seed: int, size: int) -> Job:
    """Return the job that trains a file for a size with teachers."""
    settings = {**_settings(plan, "taught", task, FIRST_RANK, LONG), "size": size}
    return Job(f"{task}-taught-{seed}-{size}", seed, settings)


def engine_job(plan: Plan, rank: int, code: str) -> Job:
    """Return the job that lets llama.cpp answer with a code on the quantised base."""
    settings = {
        **_settings(plan, "engine", DOCSTRINGS, rank),
        "code": code,
        "n_answers": ENGINE_ANSWERS,
    }
    word = code.replace(",", "").replace(" ", "-")
    return Job(f"{DOCSTRINGS}-{rank}-0-engine-{word}", 0, settings)
