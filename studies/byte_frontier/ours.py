"""Ways of our own to make a file of at most so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.adapters.arrays import balanced_tensors_of
from rankcast.codec.container import Container, read_container
from rankcast.codec.packing import Coding
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.byte_budget import ByteBudgetTraining, packer, small_steps, usual_training
from rankcast.learner.teachers import Teachers, teacher_training
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.training.folder import load_state, save_state
from studies.byte_frontier.adapters import HEAD, Head, merged
from studies.byte_frontier.judging import Weights, fast_type
from studies.byte_frontier.methods import Settings

ONE_PACKET, FEW_PACKETS = 1_200, 2_000
"""Bytes of a whole file: what a packet carries, and what the goal allows."""
CHECKPOINT, CHECKPOINT_EVERY = "training.pt", 100
_FIRST = ((2e-3, 1.0), (4e-3, 1.0), (8e-3, 1.0), (1e-3, 4.0), (2e-3, 2.0), (3e-3, 2.0))
TRIED: Mapping[str, Sequence[Settings]] = {
    "sst2-frontier": [{"lr": lr, "scale": scale} for lr, scale in _FIRST],
    "agnews-frontier": [{"lr": lr, "scale": 1.0} for lr in (2e-3, 4e-3, 8e-3)],
}
"""Learning rate and alpha / r before rounding, measured on the texts for tuning, by task."""
CHOSEN: Mapping[str, Settings] = {
    "sst2-frontier": {"lr": 4e-3, "scale": 1.0},
    "agnews-frontier": {"lr": 4e-3, "scale": 1.0},
}
"""What is best of these; by task."""


@dataclass(frozen=True)
class Request:
    """What a file is made from.

    Attributes:
        config: budget of the training, with the seed.
        splits: to learn from (`train`), and to choose on (`validation`); what is judged (`test`)
            is not for a maker.
        base: weights of the base model.
        sizes: bytes that the file may have, and before it beginnings of the file.
        teachers: how many adapters in float32 train first.
        settings: of training without rounding.
        scratch: a folder that survives interruptions.
        smaller: bytes of smaller files, descending, to which the same weights train on.
        teacher_share: of the steps, that teachers have together.
    """

    config: FinetuneConfig
    splits: DatasetSplits
    base: Weights
    sizes: tuple[int, ...]
    teachers: int
    settings: Settings
    scratch: Path
    smaller: tuple[int, ...] = ()
    teacher_share: float = CodecConfig.teacher_share


@dataclass(frozen=True)
class OurFile:
    """A file, or the beginning of one, and what a decoder makes of it.

    Attributes:
        data: its bytes, header included.
        weights: what replaces weights of the base model, decoded from `data`.
        more: what else a row keeps, as JSON values.
    """

    data: bytes
    weights: Weights
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A way to make a file.

    Attributes:
        label: what readers call it.
        make: makes a file; returns it behind those of its beginnings that were asked for.
        sizes: bytes of each file that is measured, behind those of its beginnings.
        more_sizes: likewise, of files that are measured on one task with few seeds.
        times_steps: training steps as a multiple of those that other methods have, teachers'
            included.
        teachers: adapters in float32 that train first; see `CodecConfig`.
    """

    label: str
    make: Callable[[Request], Sequence[OurFile]]
    sizes: tuple[tuple[int, ...], ...]
    times_steps: int = 1
    teachers: int = 0
    more_sizes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class TrainedFile:
    """A training for given sizes that is over.

    Attributes:
        learner: has the adapter that a decoder makes of the last file.
        files: the file, and smaller ones; each with its steps, the ranks of its prefixes, and the
            price of a bit at its end [nats].
    """

    learner: TransformerLearner
    files: tuple[tuple[Container, Coding, float], ...]


def train_for_sizes(request: Request) -> TrainedFile:
    """Train as `rankcast train --codec.target-bytes` does: a component more for each size."""
    *prefixes, target = request.sizes
    codec = CodecConfig(
        target,
        tuple(prefixes),
        request.smaller,
        rank=1,
        teachers=request.teachers,
        teacher_share=request.teacher_share,
    )
    steps = request.config.total_steps
    usual = usual_training(_config(request), codec, small_steps(codec, steps))
    learner = _learner(usual, request)
    training = ByteBudgetTraining(learner, codec, steps, packer(learner))
    checkpoint = request.scratch / CHECKPOINT
    if checkpoint.is_file():
        training.load_state_dict(load_state(checkpoint))
    while training.n_steps < steps:
        training.step()
        if training.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, training.state_dict())
    last = *training.finish(), training.price
    return TrainedFile(learner, (*training.larger, last))


def trained_for_size(request: Request) -> Sequence[OurFile]:
    """Return the file that is trained for its size, and its beginnings of the other sizes."""
    trained = train_for_sizes(request)
    ((file, _, price),) = trained.files
    data, files = file.to_bytes(), []
    ladder = [prefix.n_bytes for prefix in read_container(data).ladder]
    for size in request.sizes:
        cut = data[: max(n for n in ladder if n <= size)]
        tensors = read_container(cut, allow_prefix=True).tensors()
        files.append(OurFile(cut, weights_of(tensors, request.base)))
    files[-1] = replace(files[-1], more={"price_nats_per_bit": price})
    return files


def trained_in_float32(request: Request) -> Sequence[OurFile]:
    """Train as `trained_for_size` does, after teachers if there are any, without rounding."""
    each = request.config.total_steps // (request.teachers + 1)
    learner = _learner(teacher_training(_config(request), each), request)
    teachers = Teachers(learner, request.teachers, each)
    checkpoint = request.scratch / CHECKPOINT
    if checkpoint.is_file():
        state = load_state(checkpoint)
        teachers.load_state_dict(state["teachers"])
        learner.load_state_dict(state["learner"])
    taught = False
    while not teachers.done or learner.n_steps < each:
        if teachers.done and not taught:
            teachers.teach(CodecConfig().answer_weight)
            taught = True
        if taught:
            learner.train_step()
        else:
            teachers.step()
        if learner.n_steps % CHECKPOINT_EVERY == 0:
            kept = {"teachers": teachers.state_dict(), "learner": learner.state_dict()}
            save_state(checkpoint, kept)
    tensors = balanced_tensors_of(learner.adapter)
    numbers = [array for f in tensors.factors for array in (f.left, f.right)]
    data = b"".join(array.tobytes() for array in (*numbers, *tensors.modules.values()))
    return [OurFile(data, weights_of(tensors, request.base))]


def _config(request: Request) -> FinetuneConfig:
    """Return how adapters of ours train, with a component for each size."""
    precision = "bf16" if fast_type() is torch.bfloat16 else "no"
    rank, lr = len(request.sizes), request.settings["lr"]
    alpha = request.settings["scale"] * rank
    return replace(request.config, r_max=rank, alpha=alpha, lr=lr, mixed_precision=precision)


def _learner(config: FinetuneConfig, request: Request) -> TransformerLearner:
    """Return a learner of a task; see `training.base_model` for its attention."""
    learner = TransformerLearner(config, request.splits)
    learner.adapter.model.get_base_model().set_attn_implementation("eager")
    return learner


def weights_of(tensors: AdapterTensors, base: Weights) -> Weights:
    """Return what replaces weights of the base model."""
    head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
    return {**merged(tensors, base), **head.weights}


_SMALL = ((FEW_PACKETS,), (ONE_PACKET,))
MORE_PACKETS = 4_000
"""Bytes of a whole file that the goal allows at most."""
STREAM = (ONE_PACKET, MORE_PACKETS, 16_000, 64_000)
"""Beginnings of one file."""
FEWEST = (700, 400)
"""Bytes of files below a packet."""
FLOAT32 = 180_000
"""Bytes that an adapter of rank 1 in float32 has at most."""
WAYS: Mapping[str, Way] = {
    "taught": Way(
        "ours with two teachers, five times the steps", trained_for_size,
        (*_SMALL, (MORE_PACKETS,)), times_steps=5, teachers=2,
        more_sizes=tuple((size,) for size in (*STREAM[2:], *FEWEST)),
    ),
    "trained": Way("ours", trained_for_size, _SMALL),
    "taught_in_float32": Way(
        "LoRA r 1 with two teachers in float32, three times the steps", trained_in_float32,
        ((FLOAT32,),), times_steps=3, teachers=2,
    ),
    "trained_long": Way("ours, three times the steps", trained_for_size, _SMALL, times_steps=3),
    "stream": Way(
        "beginnings of one file of ours with two teachers, eight times the steps",
        trained_for_size, (), times_steps=8, teachers=2, more_sizes=(STREAM,),
    ),
}  # fmt: skip
"""By the name that stands in settings of jobs."""
