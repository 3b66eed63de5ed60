"""Ranks alone, precision alone, and both together, at equal bytes on the real model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.experiment.live import unpack
from rankcast.experiment.policies import CALIBRATION, calibrated_row, required_judge
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

if TYPE_CHECKING:
    from rankcast.codec.packing import Source
    from rankcast.codec.tensors import AdapterTensors
    from rankcast.records import FloatArray

    Code = Callable[[Source, FloatArray, float], tuple[float, AdapterTensors]]

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
        return []  # a run's checkpoint is needed, and the codes are tried by the codec's experiment
    return [Job(f"sst2-{seed}", seed, {"task": "sst2", "factors": list(FACTORS)})
            for seed in (0, 1, 2)]  # fmt: skip


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Code a calibrated run's adapter in every way and judge what decodes."""
    from rankcast.adapters.canonical import balance  # noqa: PLC0415
    from rankcast.adapters.coding import tensors_of  # noqa: PLC0415
    from rankcast.allocation.precision import pack_planned  # noqa: PLC0415
    from rankcast.codec.header import BaseModel  # noqa: PLC0415
    from rankcast.codec.packing import Source  # noqa: PLC0415
    from rankcast.codec.packing import unpack as unpacked  # noqa: PLC0415
    from rankcast.experiment import codes  # noqa: PLC0415
    from rankcast.finetune.calibration import Calibration  # noqa: PLC0415

    row = calibrated_row(context.inputs[CALIBRATION], job.settings["task"], job.seed)
    groups = Calibration.from_plain(row.values["calibration"]).groups
    gains = sum(np.diff(g.utility.removed, axis=1) * g.share for g in groups)
    learner = required_judge(context, row).learner
    full = np.full(learner.layout.n_projections, learner.layout.r_max)
    learner.apply(full[None])
    balance(learner.adapter)
    start = tensors_of(learner.adapter)
    offsets = codes.coding_for(learner, 3.0).offsets
    base = BaseModel("sentence-transformers/all-MiniLM-L6-v2", "0123456789abcdef" * 4)
    source = Source(start, base, {"task_type": "SEQ_CLS"})
    rows: list[dict[str, Any]] = []

    def note(label: str, factor: int, bits: float, tensors: Any) -> None:
        file = context.scratch / "judged" / f"{label.replace(' ', '-')}-{factor}.json"
        found = codes.judged_once(file, learner, tensors)
        rows.append({"code": label, "factor": factor, "bits": bits, **found})

    note(REFERENCE, 1, 32.0 * start.n_params, start)
    for factor in job.settings["factors"]:
        budget = 32.0 * start.n_params / factor
        for label, code in _codes(offsets).items():
            note(label, factor, *code(source, np.asarray(gains), budget))
    container = pack_planned(source, np.asarray(gains), 32.0 * start.n_params / min(FACTORS))
    prefixes, sent = [], 8.0 * (len(container.to_bytes()) - sum(map(len, container.chunks)))
    for n, chunk in enumerate(container.chunks, 1):
        sent += 8.0 * len(chunk)
        file = context.scratch / "judged" / f"prefix-{n}.json"
        prefixes.append({"bits": sent, **codes.judged_once(file, learner, unpacked(container, n))})
    return {"codes": rows, "prefixes": prefixes, "offsets": list(offsets)}


def _codes(offsets: tuple[int, ...]) -> Mapping[str, Code]:
    """Return each way to fit an adapter into a budget."""
    from rankcast.allocation.precision import pack_planned  # noqa: PLC0415
    from rankcast.codec import packing  # noqa: PLC0415

    def of(container: Any) -> tuple[float, AdapterTensors]:
        return 8.0 * len(container.to_bytes()), packing.unpack(container)

    return {
        PLANNED: lambda source, gains, budget: of(pack_planned(source, gains, budget)),
        COMMON: lambda source, _, budget: of(packing.pack_within(source, budget)),
        SENSITIVE: lambda source, _, budget: of(
            packing.pack_within(replace(source, offsets=offsets), budget)
        ),
        RANKS: _ranks_alone,
    }


def _ranks_alone(
    source: Source, gains: FloatArray, budget_bits: float
) -> tuple[float, AdapterTensors]:
    """Return the ranks that gain most at 16 bits a number, as rank allocation knows it."""
    from rankcast.allocation.base import AllocationProblem  # noqa: PLC0415
    from rankcast.allocation.solve import knapsack  # noqa: PLC0415
    from rankcast.codec.plain import plain  # noqa: PLC0415
    from rankcast.codec.tensors import Factors  # noqa: PLC0415
    from rankcast.link.capacity import Awgn  # noqa: PLC0415
    from rankcast.link.costs import LinkCostModel  # noqa: PLC0415
    from rankcast.records import AdapterLayout, LinkState  # noqa: PLC0415

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
    coded = plain(replace(tensors, factors=factors), "fp16")
    return coded.bits, coded.tensors


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare the ways at each size."""
    del inputs
    if not result.rows:
        return Presentation(())
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
        "reproduced" if worst < NOISE else "contradicted",
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
    found: Verdict = "not resolved"
    if difference.interval is not None and difference.low > 0:
        found = "reproduced"
    elif difference.interval is not None and difference.high < 0:
        found = "contradicted"
    return Claim(
        f"{factor} times smaller, ranks and steps planned together are more accurate than {label}.",
        "",
        f"{100 * difference.value:+.2f} points",
        difference.scaled(100).interval,
        found,
        planned.shared(other),
        f"{planned.correct.shape[1]:,} texts; no finish; whole files, except that 16-bit ranks are "
        f"counted without a header.",
    )


def _of(codes: Iterable[Mapping[str, Any]], label: str, factor: int) -> Mapping[str, Any]:
    return next(c for c in codes if c["code"] == label and c["factor"] == factor)


def _answers(result: Result, label: str, factor: int) -> Answers:
    seen = [_of(row.values["codes"], label, factor) for row in result.rows]
    correct = [unpack(c["correct"], c["n_texts"]) for c in seen]
    return Answers(np.array(correct, dtype=np.float64), tuple(r.job.seed for r in result.rows))


EXPERIMENT = Experiment(
    name="precision",
    title="Ranks, precision, and both together",
    question="Where do few bits go furthest: into ranks, into precision, or into both at once?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION,),
    live=True,
)
