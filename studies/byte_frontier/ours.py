"""Ways of our own to make a file of at most so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.codec.container import read_container
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.byte_budget import ByteBudgetTraining, packer, steps_for, usual_training
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.training.folder import load_state, save_state
from studies.byte_frontier.adapters import HEAD, Head, merged
from studies.byte_frontier.judging import Weights, fast_type

ONE_PACKET, FEW_PACKETS = 1_200, 2_000
"""Bytes of a whole file: what a packet carries, and what the goal allows."""
CHECKPOINT, CHECKPOINT_EVERY = "training.pt", 100
LR, SCALE = 3e-3, 2.0
"""Of the steps before rounding, chosen on the texts for tuning."""


@dataclass(frozen=True)
class Request:
    """What a file is made from.

    Attributes:
        config: budget of the training, with the seed.
        splits: to learn from (`train`), and to choose on (`validation`); what is judged (`test`)
            is not for a maker.
        base: weights of the base model.
        sizes: bytes that the file may have, and before it beginnings of the file.
        scratch: a folder that survives interruptions.
    """

    config: FinetuneConfig
    splits: DatasetSplits
    base: Weights
    sizes: tuple[int, ...]
    scratch: Path


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
        times_steps: training steps as a multiple of those that other methods have.
    """

    label: str
    make: Callable[[Request], Sequence[OurFile]]
    sizes: tuple[tuple[int, ...], ...]
    times_steps: int = 1


def trained_for_size(request: Request) -> Sequence[OurFile]:
    """Train as `rankcast train --codec.target-bytes` does: a component more for each size."""
    *prefixes, target = request.sizes
    codec = CodecConfig(target_bytes=target, prefix_bytes=tuple(prefixes), rank=1)
    steps, rank = request.config.total_steps, len(request.sizes)
    precision = "bf16" if fast_type() is torch.bfloat16 else "no"
    config = replace(
        request.config, r_max=rank, alpha=SCALE * rank, lr=LR, mixed_precision=precision
    )
    usual = usual_training(config, codec, steps_for(codec, steps)[0])
    learner = TransformerLearner(usual, request.splits)
    learner.adapter.model.get_base_model().set_attn_implementation("eager")
    training = ByteBudgetTraining(learner, codec, steps, packer(learner))
    checkpoint = request.scratch / CHECKPOINT
    if checkpoint.is_file():
        training.load_state_dict(load_state(checkpoint))
    while training.n_steps < steps:
        training.step()
        if training.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, training.state_dict())
    data, files = training.finish()[0].to_bytes(), []
    ladder = [prefix.n_bytes for prefix in read_container(data).ladder]
    for size in request.sizes:
        cut = data[: max(n for n in ladder if n <= size)]
        tensors = read_container(cut, allow_prefix=True).tensors()
        head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
        files.append(OurFile(cut, {**merged(tensors, request.base), **head.weights}))
    files[-1] = replace(files[-1], more={"price_nats_per_bit": training.price})
    return files


_SMALL = ((FEW_PACKETS,), (ONE_PACKET,))
STREAM = (ONE_PACKET, 4_000, 16_000, 64_000)
"""Beginnings of one file."""
WAYS: Mapping[str, Way] = {
    "trained": Way("ours", trained_for_size, _SMALL),
    "trained_long": Way("ours, three times the steps", trained_for_size, _SMALL, times_steps=3),
    "alone": Way(
        "ours, larger, three times the steps", trained_for_size,
        tuple((size,) for size in STREAM[1:]), times_steps=3,
    ),
    "stream": Way(
        "beginnings of one file of ours, six times the steps", trained_for_size, (STREAM,),
        times_steps=6,
    ),
}  # fmt: skip
"""By the name that stands in settings of jobs."""
