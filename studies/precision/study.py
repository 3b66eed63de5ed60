"""Ranks alone, precision alone, and both together, at equal bytes on the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from rankcast.adapters.arrays import tensors_of
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.problem import AllocationProblem
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_planned, pack_within
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.learner.qat import coding_for
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.records import AdapterLayout, FloatArray, LinkState
from studies.baselines.canonical import balance
from studies.baselines.compression import round_numbers
from studies.codec.coding import judged_once
from studies.harness.spec import (
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    RunContext,
    Scale,
    Series,
    Study,
    Table,
)
from studies.report.statistics import verdict
from studies.shared.judging import Answers, percent, points_claim
from studies.shared.policies import CALIBRATION, calibrated_row, required_judge
from studies.shared.tasks import full_ranks
from studies.surrogate.calibration import Calibration

Code = Callable[[Source, FloatArray, float], tuple[float, AdapterTensors]]
"""Codes an adapter, with the gains of its components, into a number of bits."""

FACTORS = (30, 80, 150)
"""How many times fewer bits than float32 a file may have."""
PLANNED, COMMON, SENSITIVE, RANKS = (
    "ranks and steps planned",
    "one step",
    "steps by sensitivity",
    "ranks alone, 16 bits",
)
REFERENCE = "fp32"
NOISE = 0.002


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each calibrated run."""
    if scale == "quick":
        return []  # a run's checkpoint is needed, and the codes are tried by the codec's study
    return [Job(f"sst2-{seed}", seed, {"task": "sst2", "factors": list(FACTORS)})
            for seed in (0, 1, 2)]  # fmt: skip


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code a calibrated run's adapter in every way and judge what decodes."""
    row = calibrated_row(context.inputs[CALIBRATION], job.settings["task"], job.seed)
    groups = Calibration.from_plain(row.values["calibration"]).groups
    gains = np.asarray(sum(np.diff(g.utility.removed, axis=1) * g.share for g in groups))
    learner = required_judge(context, row).learner
    learner.apply(full_ranks(learner)[None])
    balance(learner.adapter)
    start = tensors_of(learner.adapter)
    offsets = coding_for(learner, 3.0).offsets
    base = BaseModel("sentence-transformers/all-MiniLM-L6-v2", "0123456789abcdef" * 4)
    source, float_bits = Source(start, base, {"task_type": "SEQ_CLS"}), 32.0 * start.n_params
    kept = context.scratch / "judged"
    rows: list[dict[str, Any]] = []

    def add(label: str, factor: int, bits: float, tensors: AdapterTensors) -> None:
        judged = judged_once(kept / f"{label.replace(' ', '-')}-{factor}.json", learner, tensors)
        rows.append({"code": label, "factor": factor, "bits": bits, **judged})

    add(REFERENCE, 1, float_bits, start)
    for factor in job.settings["factors"]:
        for label, code in _codes(offsets).items():
            add(label, factor, *code(source, gains, float_bits / factor))
    whole, prefixes = pack_planned(source, float_bits / min(FACTORS), gains), []
    for n in range(1, len(whole.chunks) + 1):
        prefix = whole.prefix(n)
        judged = judged_once(kept / f"prefix-{n}.json", learner, prefix.tensors())
        prefixes.append({"bits": float(prefix.n_bits), **judged})
    return {"codes": rows, "prefixes": prefixes, "offsets": list(offsets)}


def _codes(offsets: tuple[int, ...]) -> Mapping[str, Code]:
    """Return each way to fit an adapter into a budget."""

    def decoded(container: Container) -> tuple[float, AdapterTensors]:
        return float(container.n_bits), container.tensors()

    return {
        PLANNED: lambda source, gains, budget: decoded(pack_planned(source, budget, gains)),
        COMMON: lambda source, _, budget: decoded(pack_within(source, budget)),
        SENSITIVE: lambda source, _, budget: decoded(
            pack_within(replace(source, offsets=offsets), budget)
        ),
        RANKS: _ranks_alone,
    }


def _ranks_alone(
    source: Source, gains: FloatArray, budget_bits: float
) -> tuple[float, AdapterTensors]:
    """Return the ranks that gain most at 16 bits a number, as rank allocation knows it."""
    tensors = source.tensors
    modules = 16.0 * sum(m.size for m in tensors.modules.values())
    layout = AdapterLayout(tensors.projections, int(tensors.ranks.max()))
    widths = np.array([[p.d_in + p.d_out] for p in tensors.projections])
    units = np.repeat(widths, layout.r_max, axis=1)
    costs = LinkCostModel(units, 16.0, Awgn(), overhead_bits=modules)
    # At 0 dB a hertz carries a bit a second.
    link = LinkState(np.zeros(1), np.array([budget_bits]), np.ones(1))
    values = np.concatenate([np.zeros((len(gains), 1)), gains.cumsum(axis=1)], axis=1)
    ranks = knapsack(values, AllocationProblem(layout, costs, link_weight=0.0), link)[0]
    factors = tuple(
        Factors(f.left[:, :r], f.right[:r])
        for f, r in zip(tensors.factors, ranks.tolist(), strict=True)
    )
    coded = round_numbers(replace(tensors, factors=factors), "fp16")
    return coded.bits, coded.tensors


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare the ways at each size."""
    del inputs
    if not result.rows:
        return Presentation()
    reference = _answers(result, REFERENCE, 1)
    claims, lines = [], []
    for factor in FACTORS:
        planned = _answers(result, PLANNED, factor)
        for label in (PLANNED, SENSITIVE, COMMON, RANKS):
            answers = _answers(result, label, factor)
            against = answers.minus(reference)
            losses = [_of(row.values["codes"], label, factor)["loss"] for row in result.rows]
            lines.append((f"{factor}", label, percent(answers.accuracy),
                          percent(against, sign=True), f"{np.mean(losses):.4f}"))  # fmt: skip
            if label != PLANNED:
                claims.append(_ahead(planned, answers, label, factor))
    columns = ("times smaller", "code", "accuracy", "difference to fp32", "loss [nats]")
    table = Table("Equal bytes", columns, tuple(lines), "95 % intervals over seeds and texts.")
    return Presentation((*claims, _falls(result)), (table,), (_along(result),))


def _falls(result: Result) -> Claim:
    """Return whether every chunk lowers the loss, on each run."""
    rises = [
        later["loss"] - sooner["loss"]
        for row in result.rows
        for sooner, later in pairwise(row.values["prefixes"])
    ]
    worst = max(rises)
    return Claim(
        f"Every chunk of a file lowers the loss of what has arrived, or raises it by less than "
        f"{NOISE:g} nats.",
        "",
        f"{sum(rise < 0 for rise in rises)} of {len(rises)} chunks lower it; largest rise "
        f"{max(worst, 0.0):.4f} nats",
        None,
        "reproduced" if worst < NOISE else "not met",
        tuple(row.job.seed for row in result.rows),
        f"Prefixes of the planned file of {min(FACTORS)} times fewer bits.",
    )


def _along(result: Result) -> LineChart:
    """Return the loss of each prefix."""
    series = tuple(
        Series(
            f"seed {row.job.seed}",
            [p["bits"] / 8e3 for p in row.values["prefixes"]],
            [p["loss"] for p in row.values["prefixes"]],
        )
        for row in result.rows
    )
    return LineChart("Loss along a file", "kB received", "loss [nats]", series, markers=True,
                     note="Every prefix that ends with a chunk, decoded and judged.")  # fmt: skip


def _ahead(planned: Answers, other: Answers, label: str, factor: int) -> Claim:
    """Return whether planning ranks and steps together is ahead of another way."""
    difference = planned.minus(other)
    return points_claim(
        f"{factor} times smaller, ranks and steps planned together are more accurate than {label}.",
        difference,
        verdict(difference),
        planned.shared(other),
        f"{planned.correct.shape[1]:,} texts; no QAT; whole files, except that 16-bit ranks are "
        f"counted without a header.",
    )


def _of(codes: Iterable[Mapping[str, Any]], label: str, factor: int) -> Mapping[str, Any]:
    return next(c for c in codes if c["code"] == label and c["factor"] == factor)


def _answers(result: Result, label: str, factor: int) -> Answers:
    answers = Answers.of(
        (row.job.seed, _of(row.values["codes"], label, factor)) for row in result.rows
    )
    assert answers is not None  # there are rows
    return answers


STUDY = Study(
    name="precision",
    title="Ranks, precision, and both together",
    question="Where do few bits go furthest: into ranks, into precision, or into both at once?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION,),
    needs_data=True,
)
