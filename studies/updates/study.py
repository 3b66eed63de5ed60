"""Bytes of an update beside those of the whole file, after a tenth more of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.codec.update import apply_update, make_update
from rankcast.errors import CodecError
from rankcast.packaging.pack import pack
from rankcast.release.manifest import Blob, Chunk, File, Manifest, Update, base_of
from studies.harness.spec import Claim, Job, Presentation, Result, RunContext, Scale, Study, Table
from studies.report.statistics import t_interval
from studies.shared.tasks import AGNEWS_FRONTIER, SST2_FRONTIER

SEEDS = (0, 1, 2)
SETTINGS = {"lr": 4e-3, "scale": 2.0}
MORE = 0.1
"""Share of the first training by which the second is longer."""
QUICK_STEPS = 10


def jobs(scale: Scale) -> Sequence[Job]:
    """Return a training for each seed; quickly, a few steps on the task with few texts."""
    task, steps, seeds = SST2_FRONTIER.name, SST2_FRONTIER.finetune.total_steps, SEEDS
    if scale == "quick":
        task, steps, seeds = AGNEWS_FRONTIER.name, QUICK_STEPS, SEEDS[:1]
    settings = {"task": task, "method": "lora", "size": "1", "steps": steps, **SETTINGS}
    return [Job(f"lora-1-{seed}", seed, settings) for seed in seeds]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train, pack, train on, pack beside the file before, and judge what each file decodes to."""
    from studies.byte_frontier.adapters import HEAD, Head, merged  # noqa: PLC0415 torch
    from studies.byte_frontier.runs import Setup  # noqa: PLC0415

    setup = Setup.of(job, context)
    settings = {name: job.settings[name] for name in SETTINGS}
    first = setup.trainer(settings)
    first.train(context.scratch / "first.pt")
    n_more = max(round(MORE * first.n_steps), 1)
    longer = replace(setup.config, total_steps=first.n_steps + n_more)
    second = replace(setup, config=longer).trainer(settings)
    second.load_state_dict(first.state_dict())
    second.train()
    folders = [t.save(context.scratch / name) for t, name in ((first, "a"), (second, "b"))]
    before = pack(folders[0])
    after = pack(folders[1], previous=before)
    files = {"before": before, "after": after, "by_itself": pack(folders[1])}

    def judged(file: Container) -> dict[str, Any]:
        tensors = file.tensors()
        head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
        alone = replace(tensors, modules={}, carriage={})
        weights = {**merged(alone, setup.judge.base), **head.weights}
        return setup.judge.judge(setup.texts.judged, weights)

    found = {name: {"bytes": f.n_bits // 8, **judged(f)} for name, f in files.items()}
    return {"more_steps": n_more, **update_bytes(before, after), "files": found}


def update_bytes(before: Container, after: Container) -> dict[str, int]:
    """Return the bytes of the update between two files, and what it adds to the manifest.

    Raises:
        CodecError: the update does not make the file.
    """
    update = make_update(before.to_bytes(), after.to_bytes())
    header = header_bytes(after.header)
    sha256s = [hashlib.sha256(data).hexdigest() for data in (header, *after.chunks)]
    if apply_update(before.to_bytes(), update, sha256s) != (header, *after.chunks):
        raise CodecError("The update makes another file than it was made for.")
    blobs = [Blob(s, len(d)) for s, d in zip(sha256s, (header, *after.chunks), strict=True)]
    file = File(blobs[0], tuple(map(Chunk, blobs[1:])))
    start = header_bytes(before.header)
    name = base_of(Blob(hashlib.sha256(start).hexdigest(), len(start)))
    blob = Blob(hashlib.sha256(update).hexdigest(), len(update))
    with_it = replace(file, updates=(Update(name, blob),))
    sizes = [
        len(Manifest("a", 1, BaseModel(None, "0" * 64), (f,), {}).to_bytes())
        for f in (file, with_it)
    ]
    return {"update": len(update), "manifest": sizes[1] - sizes[0]}


def share(values: Mapping[str, Any]) -> float:
    """Return update and entry in the manifest beside the file that a device fetches without it."""
    return (values["update"] + values["manifest"]) / values["files"]["by_itself"]["bytes"]


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show the share of the bytes, and accuracy and loss of each file."""
    del inputs
    if not result.rows:
        return Presentation()
    rows = [row.values for row in result.rows]
    means = {name: np.mean([row[name] for row in rows]) for name in ("update", "manifest")}
    ratio = t_interval([100 * share(row) for row in rows])
    claim = Claim(
        "After a tenth more of training an update takes so much of the bytes of the whole file.",
        "",
        f"{ratio:.1f} %",
        ratio.interval,
        "measured",
        result.seeds,
        f"LoRA of rank 1. An update has {means['update']:,.0f} bytes and adds "
        f"{means['manifest']:,.0f} to the manifest.",
    )
    words = {
        "before": "before",
        "after": "after, packed beside the file before",
        "by_itself": "after, packed by itself",
    }
    lines = []
    for name, label in words.items():
        files = [row["files"][name] for row in rows]
        accuracy = t_interval([100 * file["accuracy"] for file in files])
        loss = t_interval([file["loss"] for file in files])
        size = np.mean([file["bytes"] for file in files])
        lines.append((label, f"{size:,.0f}", f"{accuracy:.2f}", f"{loss:.4f}"))
    table = Table(
        "Files",
        ("file", "bytes", "accuracy [%]", "loss [nats]"),
        tuple(lines),
        "Means over seeds with 95 % intervals.",
    )
    return Presentation((claim,), (table,))


STUDY = Study(
    name="updates",
    title="Updates",
    question="How much of a file does an update take after a tenth more of training?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
