"""Files of ours that take training: quantization-aware, and for a size with teachers.

What `rankcast qat` and `rankcast train --codec.target-bytes` do, on texts that are read already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankcast.adapters.arrays import tensors_of
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.files import only_one
from rankcast.learner.byte_budget import (
    ByteBudgetTraining,
    packer,
    small_steps,
    teacher_steps,
    usual_training,
)
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.qat import QatConfig, coding_for, learner_for
from rankcast.learner.rounding import Rounding
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.training.folder import load_state, save_state
from studies.llm.base import round_frozen
from studies.llm.training import CHECKPOINT_EVERY

CHECKPOINT = "training.pt"


@dataclass(frozen=True)
class Ours:
    """What our files are made from.

    Attributes:
        config: base model, batches, schedule and seed.
        splits: to learn from.
        base: what headers say of the base model.
    """

    config: FinetuneConfig
    splits: DatasetSplits
    base: BaseModel


def qat_file(
    ours: Ours,
    adapter: AdapterTensors,
    qat: QatConfig,
    checkpoint: Path,
) -> Container:
    """Return the file of an adapter after some steps on rounded weights, as `rankcast qat` does.

    Args:
        ours: texts and schedule.
        adapter: as it was trained.
        qat: how to train.
        checkpoint: from which an interrupted training goes on.
    """
    state = load_state(checkpoint) if checkpoint.is_file() else None
    coding = None if state is None else Coding(state["exponent"], tuple(state["offsets"]))
    config = replace(ours.config, lr=qat.lr, total_steps=qat.steps)
    learner = learner_for(adapter, config, ours.splits)
    lower(learner)  # before sensitivities are measured, which takes many passes
    if coding is None:
        coding = coding_for(learner, qat.relative_step, qat.sensitivity_power)
    exponents = (coding.exponent, coding.exponent)
    learner.begin_qat(Rounding(exponents, qat.rate_weight, coding.offsets), distil=qat.distil)
    if state is not None:
        learner.load_state_dict(state["learner"])
    while learner.n_steps < qat.steps:
        learner.train_step()
        if learner.n_steps % CHECKPOINT_EVERY == 0:
            steps = {"exponent": coding.exponent, "offsets": coding.offsets}
            save_state(checkpoint, {"learner": learner.state_dict(), **steps})
    source = Source(tensors_of(learner.adapter), ours.base, {"task_type": "CAUSAL_LM"})
    return pack_at_exponent(source.at(coding), coding.exponent)


def learner_with(ours: Ours, adapter: AdapterTensors) -> TransformerLearner:
    """Return the model with an adapter on it, on which `rankcast pack --texts` measures."""
    learner = learner_for(adapter, ours.config, ours.splits)
    lower(learner)
    return learner


def sized_qat_file(
    ours: Ours,
    adapter: AdapterTensors,
    n_bytes: int,
    steps: int,
    checkpoint: Path,
) -> Container:
    """Return a file of at most so many bytes, as `rankcast qat --target-bytes` makes it.

    Arguments are as for `qat_file`.

    Raises:
        InfeasibleSizeError: even a file without any weights is larger.
    """
    codec = CodecConfig(n_bytes, teachers=0)
    usual = usual_training(ours.config, codec, small_steps(codec, steps))
    learner = learner_for(adapter, usual, ours.splits)
    lower(learner)
    learner.learn_from([AdapterSnapshot(learner.adapter)])
    pack, most = packer(learner, ours.base), learner.adapter.ranks
    training = ByteBudgetTraining(learner, codec, steps, pack, most)
    _run(training, steps, checkpoint)
    return training.finish()[0]


def teachers_of(
    ours: Ours,
    codec: CodecConfig,
    steps: int,
    file: Path,
) -> Path:
    """Train the teachers of a small adapter, all but their last step, and return `file`.

    Up to there nothing depends on the size of the small adapter, so that they serve all sizes.
    Whoever needs teachers that another process is training waits for them.

    Args:
        ours: texts and schedule; `r_max` is the teachers' rank.
        codec: of any size, with teachers.
        steps: of teachers and small adapter together.
        file: where they are kept.
    """
    with only_one(file.with_suffix(".lock"), "training teachers", wait=True):
        if not file.is_file():
            checkpoint, training = file.with_name(CHECKPOINT), _for_size(ours, codec, steps)
            last = codec.teachers * teacher_steps(codec, steps) - 1
            _run(training, last, checkpoint)
            save_state(file, training.state_dict())
            checkpoint.unlink(missing_ok=True)
    return file


def taught_file(
    ours: Ours,
    codec: CodecConfig,
    steps: int,
    teachers: Path,
    checkpoint: Path,
) -> Container:
    """Return a file of at most so many bytes, as `rankcast train --codec.target-bytes` makes it.

    Args:
        ours: texts and schedule; `r_max` is the teachers' rank.
        codec: size and rank of the file.
        steps: of teachers and small adapter together.
        teachers: from `teachers_of`.
        checkpoint: from which an interrupted training goes on.
    """
    training = _for_size(ours, codec, steps)
    if not checkpoint.is_file():
        training.load_state_dict(load_state(teachers))
    _run(training, steps, checkpoint)
    return training.finish()[0]


def _for_size(ours: Ours, codec: CodecConfig, steps: int) -> ByteBudgetTraining:
    """Return a training for a size at its first step."""
    usual = usual_training(ours.config, codec, small_steps(codec, steps))
    learner = TransformerLearner(usual, ours.splits)
    lower(learner)
    return ByteBudgetTraining(learner, codec, steps, packer(learner, ours.base))


def _run(
    training: ByteBudgetTraining,
    steps: int,
    checkpoint: Path,
) -> None:
    """Train up to some step, from a checkpoint if it is there."""
    if checkpoint.is_file():
        training.load_state_dict(load_state(checkpoint))
    while training.n_steps < steps:
        training.step()
        if training.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, training.state_dict())


def lower(learner: TransformerLearner) -> None:
    """Let a learner run as adapters are judged; see `base.round_frozen`."""
    model: Any = learner.adapter.model
    model.get_base_model().set_attn_implementation("eager")
    round_frozen(model)
