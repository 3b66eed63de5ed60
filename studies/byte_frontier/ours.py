"""Ways of our own to make a file of at most so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.codec.container import read_container
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.byte_budget import ByteBudgetTraining, packer, usual_training
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
        target_bytes: that the whole file may have.
        scratch: a folder that survives interruptions.
    """

    config: FinetuneConfig
    splits: DatasetSplits
    base: Weights
    target_bytes: int
    scratch: Path


@dataclass(frozen=True)
class OurFile:
    """A file and what a decoder makes of it.

    Attributes:
        data: the whole file, header included.
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
        make: makes a file.
        targets: bytes at which it is measured.
        times_steps: training steps as a multiple of those that other methods have.
    """

    label: str
    make: Callable[[Request], OurFile]
    targets: tuple[int, ...]
    times_steps: int = 1


def trained_for_size(request: Request) -> OurFile:
    """Train as `rankcast train --codec.target-bytes` does, at rank 1."""
    codec = CodecConfig(target_bytes=request.target_bytes, rank=1)
    steps = request.config.total_steps
    precision = "bf16" if fast_type() is torch.bfloat16 else "no"
    config = replace(
        request.config, r_max=1, alpha=SCALE, lr=LR, mixed_precision=precision, weight_decay=0.0
    )
    learner = TransformerLearner(usual_training(config, codec, steps), request.splits)
    learner.adapter.model.get_base_model().set_attn_implementation("eager")
    training = ByteBudgetTraining(learner, codec, steps, packer(learner))
    checkpoint = request.scratch / CHECKPOINT
    if checkpoint.is_file():
        training.load_state_dict(load_state(checkpoint))
    while training.n_steps < steps:
        training.step()
        if training.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, training.state_dict())
    data = training.finish()[0].to_bytes()
    tensors = read_container(data).tensors()
    head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
    more = {"price_nats_per_bit": training.price}
    return OurFile(data, {**merged(tensors, request.base), **head.weights}, more)


WAYS: Mapping[str, Way] = {
    "trained": Way("ours", trained_for_size, (FEW_PACKETS, ONE_PACKET)),
    "trained-long": Way(
        "ours, three times the steps", trained_for_size, (FEW_PACKETS, ONE_PACKET), times_steps=3
    ),
}
"""By the name that stands in settings of jobs."""
