"""Files of adapters never seen: do other adapters teach where their bits belong?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rankcast.codec.container import Container
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_within
from rankcast.codec.target import pack_into
from rankcast.errors import InfeasibleDeadlineError, InfeasibleSizeError
from rankcast.packaging.texts import CURVATURE_TEXTS, LEVEL_TEXTS
from studies.harness.spec import Job, RunContext, Scale, Study
from studies.unseen.adapters import AdapterSpec, config_of, specs, splits_of, trained
from studies.unseen.files import solved_file, weighted_file
from studies.unseen.measured import Measured, levels_of, measured, source_of
from studies.unseen.presentation import present
from studies.unseen.weights import by_kind, by_weights, explained, learn, target

BITS_PER_NUMBER = (0.1, 0.3)
"""Sizes of files, of the numbers that the adapter has beside its classifier."""
SPLITS: Mapping[str, Callable[[AdapterSpec, AdapterSpec], bool]] = {
    "seed": lambda judged, other: judged.seed != other.seed,
    "task": lambda judged, other: judged.task != other.task,
}
"""Which adapters may teach about a judged one, all of another seed and with it another rank."""
LEARNERS = {"kinds": by_kind, "learned": by_weights}


def jobs(scale: Scale) -> Sequence[Job]:
    """Return three jobs for each adapter.

    One trains and measures it, one judges its files by what the others teach, and one those of
    `pack --texts`.
    """
    everything = specs(scale)
    plain = [(spec, spec.to_plain()) for spec in everything]
    measure = [Job(f"measure-{s.name}", s.seed, {"kind": "measure", **p}) for s, p in plain]
    judge = [
        Job(f"judge-{s.name}", s.seed, {"kind": "judge", "sizes": list(BITS_PER_NUMBER), **p})
        for s, p in reversed(plain)  # the last are measured while files of others are judged
    ]
    more = {"kind": "levels", "sizes": list(BITS_PER_NUMBER), "texts": LEVEL_TEXTS,
            "curvature_texts": CURVATURE_TEXTS}  # fmt: skip
    levels = [Job(f"levels-{s.name}", s.seed, {**more, **p}) for s, p in plain]
    return [*measure, *judge, *levels]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train and measure an adapter, or judge its files."""
    import torch  # noqa: PLC0415 heavy

    torch.set_num_threads(1)
    known = {s.name: s for s in specs(context.scale)}
    spec = known[job.name.partition("-")[2]]
    if job.settings["kind"] == "measure":
        return measured(spec, context).to_plain()
    if job.settings["kind"] == "levels":
        return _judge_levels(spec, job, context)
    taught = {
        split: [measured(s, context) for s in teachers(spec, split, tuple(known.values()))]
        for split in SPLITS
    }
    return _judge(spec, taught, job.settings["sizes"], context)


def teachers(
    judged: AdapterSpec, split: str, everything: Sequence[AdapterSpec]
) -> list[AdapterSpec]:
    """Return the adapters from which may be learned: of other seeds, and what the split says."""
    return [s for s in everything if s.seed != judged.seed and SPLITS[split](judged, s)]


def _judge(
    spec: AdapterSpec,
    taught: Mapping[str, Sequence[Measured]],
    sizes: Sequence[float],
    context: RunContext,
) -> dict[str, Any]:
    """Return what every planner's files of every size lose."""
    from studies.unseen.answers import Answers  # noqa: PLC0415 torch

    splits, own = splits_of(spec, context), measured(spec, context)
    whole = trained(spec, splits, context)
    source = source_of(whole)
    answers = Answers(config_of(spec, context), splits, whole)
    asked = answers.texts(splits.test)
    found = {
        (name, split): learn(taught[split], columns)
        for name, columns in LEARNERS.items()
        for split in SPLITS
        if len(taught[split]) > 1
    }
    files = []
    for size in sizes:
        target_bytes = int(size * whole_numbers(source) / 8)
        for planner, split, file in _files(source, own, found, target_bytes):
            judged = answers.judge(asked, file.tensors())
            files.append({"planner": planner, "split": split, "size": size,
                          "bytes": file.n_bits // 8, **asdict(judged)})  # fmt: skip
    return {
        "files": files,
        "whole": asdict(asked.judged(asked.wanted)),
        "explained": {
            f"{name}, {split}": explained(weights.log_weights(own), target(own))
            for (name, split), weights in found.items()
        },
        "penalties": {f"{name}, {split}": w.penalty for (name, split), w in found.items()},
        "teachers": {split: len(some) for split, some in taught.items()},
    }


def _judge_levels(spec: AdapterSpec, job: Job, context: RunContext) -> dict[str, Any]:
    """Return what the files of `pack --texts` lose, with and without each measurement."""
    from rankcast.learner.qat import learner_for  # noqa: PLC0415 torch
    from studies.unseen.answers import Answers  # noqa: PLC0415 torch
    from studies.unseen.level_files import files_with_levels  # noqa: PLC0415 torch

    splits, config = splits_of(spec, context), config_of(spec, context)
    whole, offsets = trained(spec, splits, context), measured(spec, context).offsets
    source, answers = source_of(whole), Answers(config, splits, whole)
    asked, known = answers.texts(splits.test), answers.texts(splits.validation)
    learner, files = learner_for(whole, config, splits), []
    for size in job.settings["sizes"]:
        found = files_with_levels(
            learner, replace(source, offsets=offsets), int(size * whole_numbers(source) / 8),
            n_texts=job.settings["texts"], n_curvature=job.settings["curvature_texts"],
            loss_of=lambda file: answers.judge(known, file.tensors()).loss,
        )  # fmt: skip
        for planner, file in found.items():
            files.append({"planner": planner, "split": "", "size": size,
                          "bytes": file.n_bits // 8,
                          **asdict(answers.judge(asked, file.tensors()))})  # fmt: skip
    return {"files": files}


def whole_numbers(source: Source) -> int:
    """Return how many numbers the factors of an adapter have."""
    return sum(f.left.size + f.right.size for f in source.tensors.factors)


def _files(
    source: Source, own: Measured, found: Mapping[tuple[str, str], Any], target_bytes: int
) -> Iterator[tuple[str, str, Container]]:
    """Yield planner, split and file; planners that have no file of so few bytes are left out."""
    levels = levels_of(source)
    plans: dict[tuple[str, str], Callable[[], Container]] = {
        ("today", ""): lambda: pack_into(source, target_bytes),
        ("uniform", ""): lambda: pack_within(source, 8.0 * target_bytes),
        ("texts", ""): lambda: pack_into(replace(source, offsets=own.offsets), target_bytes),
        ("measured", ""): lambda: weighted_file(source, target(own), target_bytes),
        ("solved", ""): lambda: solved_file(source, levels, own.losses, target_bytes),
    }
    for (name, split), weights in found.items():
        plans[name, split] = lambda w=weights: weighted_file(
            source, w.log_weights(own), target_bytes
        )
    for (name, split), make in plans.items():
        try:
            yield name, split, make()
        except (InfeasibleSizeError, InfeasibleDeadlineError):
            continue


STUDY = Study(
    name="unseen",
    title="Adapters never seen",
    question="Can a planner that has learned from other adapters place the bits of a new one "
    "better than its own spectra can?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
