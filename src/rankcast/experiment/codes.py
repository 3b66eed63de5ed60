"""Trained adapters, the codes that they are sent in, and how each fares on the real model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankcast.adapters.canonical import balance
from rankcast.adapters.coding import load_tensors, tensors_of
from rankcast.adapters.projections import find_projections
from rankcast.codec.header import BaseModel
from rankcast.codec.ladder import exponent_of_quality
from rankcast.codec.lora_files import read_peft
from rankcast.codec.packing import Source, pack, unpack
from rankcast.codec.plain import compeft, loraquant, plain
from rankcast.codec.tensors import AdapterTensors
from rankcast.experiment.live import judgement, trained
from rankcast.finetune.adalora import AdaLoraFinetuner, AdaLoraSchedule
from rankcast.finetune.base_models import load_model
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.objectives import SequenceClassification
from rankcast.finetune.peft_finetuner import LoraFinetuner, PeftFinetuner
from rankcast.finetune.rounding import Rounding
from rankcast.finetune.texts import DatasetSplits
from rankcast.finetune.transformer import TransformerLearner
from rankcast.run.folder import load_state, save_state

Way = Literal["nested", "lora", "adalora"]
CHECKPOINT_EVERY = 100
DENSITIES = (0.05, 0.2)
SHARES = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Finish:
    """A short training after the training, on rounded weights.

    Attributes:
        steps: of it.
        lr: learning rate at its beginning; it falls to zero.
        relative_steps: finest and coarsest step, as multiples of the weights' root mean square.
        bit_weight: see `Rounding`.
    """

    steps: int
    lr: float
    relative_steps: tuple[float, float]
    bit_weight: float


def train_adapter(
    way: Way, config: FinetuneConfig, splits: DatasetSplits, scratch: Path
) -> AdapterTensors:
    """Return a trained adapter: nested in SVD form, or PEFT's LoRA or AdaLoRA at rank r_max."""
    if way == "nested":
        learner = TransformerLearner(config, splits)
        full = np.full(learner.layout.n_projections, config.r_max)
        trained(learner, full, scratch / "nested.pt")
        learner.apply(full[None])
        balance(learner.adapter)
        return tensors_of(learner.adapter)
    tuner = _tuner(way, config, splits)
    checkpoint = scratch / f"{way}.pt"
    if checkpoint.is_file():
        tuner.load_state_dict(load_state(checkpoint)["tuner"])

    def on_step(step: int, loss: float) -> None:
        del loss
        if step % CHECKPOINT_EVERY == 0 or step == config.total_steps:
            save_state(checkpoint, {"tuner": tuner.state_dict()})

    tuner.train(on_step)
    tuner.model.save_pretrained(scratch / way)
    return read_peft(scratch / way)[0]


def _tuner(way: Way, config: FinetuneConfig, splits: DatasetSplits) -> PeftFinetuner:
    if way == "lora":
        return LoraFinetuner(config, splits)
    objective = SequenceClassification(splits.train.n_labels)
    n = find_projections(load_model(config.model, objective, config.seed).model).n_projections
    schedule = AdaLoraSchedule.derive(config.total_steps, n * config.r_max, n)
    return AdaLoraFinetuner(config, splits, schedule)


def finished(
    tensors: AdapterTensors,
    config: FinetuneConfig,
    splits: DatasetSplits,
    finish: Finish,
    checkpoint: Path,
    *,
    rounding: bool,
) -> AdapterTensors:
    """Return an adapter after a finish on rounded weights, or after as many ordinary steps."""
    learner = learner_for(tensors, replace(config, lr=finish.lr, total_steps=finish.steps), splits)
    load_tensors(learner.adapter, tensors)
    ranks = learner.adapter.ranks
    if rounding:
        low, high = (exponent_of_quality(tensors, step) for step in finish.relative_steps)
        learner.rounding = Rounding((low, high), finish.bit_weight)
    trained(learner, ranks, checkpoint)
    learner.apply(ranks[None])
    if not rounding:
        balance(learner.adapter)
    return tensors_of(learner.adapter)


def learner_for(
    tensors: AdapterTensors, config: FinetuneConfig, splits: DatasetSplits
) -> TransformerLearner:
    """Return a learner that has room for the ranks of an adapter."""
    r_max = int(tensors.ranks.max())
    found = replace(config, r_max=r_max, alpha=float(r_max), nested_prob=0.0, warmup_steps=0)
    return TransformerLearner(found, splits)


def simple_codes(tensors: AdapterTensors) -> Iterator[tuple[str, float, AdapterTensors]]:
    """Yield name, bits and decoded adapter of the codes to compare with."""
    for kind in ("fp32", "fp16", "int8", "int4"):
        coded = plain(tensors, kind)
        yield kind, coded.bits, coded.tensors
    for density in DENSITIES:
        coded = compeft(tensors, density)
        yield f"ComPEFT, {density:.0%}", coded.bits, coded.tensors
    for share in SHARES:
        coded = loraquant(tensors, share)
        yield f"LoRAQuant, {share:.0%}", coded.bits, coded.tensors


def our_code(
    tensors: AdapterTensors,
    reference: AdapterTensors,
    relative_step: float,
    offsets: tuple[int, ...] = (),
) -> tuple[float, AdapterTensors]:
    """Return the bits of a whole file, header included, and what it decodes to.

    Args:
        tensors: balanced.
        reference: the adapter whose root mean square the step is a multiple of.
        relative_step: see `Finish`.
        offsets: of the step of each projection.
    """
    name = "sentence-transformers/all-MiniLM-L6-v2"
    digest = hashlib.sha256(name.encode()).hexdigest()  # as long as a fingerprint, as hard to pack
    source = Source(tensors, BaseModel(name, digest), {"task_type": "SEQ_CLS"}, offsets)
    container = pack(source, exponent_of_quality(reference, relative_step))
    return 8.0 * len(container.to_bytes()), unpack(container)


def judged(learner: TransformerLearner, tensors: AdapterTensors) -> Mapping[str, Any]:
    """Return how an adapter fares on the judged texts."""
    load_tensors(learner.adapter, tensors)
    loss, correct, _ = learner.judge_texts("test", None)
    return judgement(correct, float(loss.mean()))
