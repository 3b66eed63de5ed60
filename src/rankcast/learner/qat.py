"""Quantization-aware training: some steps on rounded weights, so that an adapter codes small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.arrays import load_tensors, tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.codec.packing import Coding, exponent_of_quality, offsets_of_sensitivity
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, DataError
from rankcast.learner.batching import tokenise
from rankcast.learner.rounding import Rounding
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import FloatArray, IntArray

SENSITIVITY_BATCHES = 60
SENSITIVITY_TEXTS = 128
"""Of a causal model at most, which takes long for each."""


@dataclass(frozen=True, slots=True)
class QatConfig:
    """How long and how an adapter trains on rounded weights.

    Attributes:
        steps: of training.
        lr: learning rate at its beginning; it falls to zero.
        relative_step: quantiser step as a multiple of the root mean square of the weights before.
        rate_weight: see `Rounding`.
        sensitivity_power: see `packing.offsets_of_sensitivity`; 0 gives all projections one step.
        distil: train towards the answers that the adapter gave before, not towards the labels.

    Raises:
        ConfigError: a value out of its range.
    """

    steps: int = 400
    lr: float = 1e-3
    relative_step: float = 3.0
    rate_weight: float = 6e-7
    sensitivity_power: float = 0.5
    distil: bool = True

    def __post_init__(self) -> None:
        """Check every range."""
        if self.steps < 1 or not self.lr > 0 or not self.relative_step > 0:
            raise ConfigError(
                f"Quantization-aware training needs at least one step, a positive learning rate "
                f"and a positive relative_step, got {self.steps}, {self.lr} and "
                f"{self.relative_step}."
            )
        if not self.rate_weight >= 0 or not self.sensitivity_power >= 0:
            raise ConfigError(
                f"rate_weight and sensitivity_power must be at least 0, got {self.rate_weight} and "
                f"{self.sensitivity_power}."
            )


def prepare_qat(
    tensors: AdapterTensors,
    config: FinetuneConfig,
    splits: DatasetSplits,
    qat: QatConfig,
    coding: Coding | None = None,
) -> tuple[TransformerLearner, Coding]:
    """Return a learner ready to train on rounded weights, and the steps at which to code it then.

    Args:
        tensors: the trained adapter, balanced.
        config: how it was trained; learning rate and steps are taken from `qat`.
        splits: what to train on.
        qat: how to train.
        coding: known steps; None derives them (`coding_for`).

    Raises:
        ModelError: the model has other projections than the adapter.
        CodecError: an adapter of zeros.
        DataError: too few texts.
    """
    learner = learner_for(tensors, replace(config, lr=qat.lr, total_steps=qat.steps), splits)
    if coding is None:
        coding = coding_for(learner, qat.relative_step, qat.sensitivity_power)
    exponents = (coding.exponent, coding.exponent)
    learner.begin_qat(Rounding(exponents, qat.rate_weight, coding.offsets), distil=qat.distil)
    return learner, coding


def run_qat(learner: TransformerLearner, on_step: Callable[[float], bool] | None = None) -> bool:
    """Train a prepared learner to the end of its steps.

    Args:
        learner: from `prepare_qat`, perhaps with a state loaded since.
        on_step: receives each loss; training pauses when it returns True.

    Returns:
        Whether the end was reached.

    Raises:
        RankcastError: the loss or its gradients are not finite.
    """
    while learner.n_steps < learner.config.total_steps:
        loss = learner.train_step()
        if on_step is not None and on_step(loss):
            return learner.n_steps >= learner.config.total_steps
    return True


def learner_for(
    tensors: AdapterTensors, config: FinetuneConfig, splits: DatasetSplits
) -> TransformerLearner:
    """Return a learner that holds an adapter, with room for no more than its ranks.

    Raises:
        ModelError: the model has other projections than the adapter.
    """
    r_max = max(int(tensors.ranks.max(initial=0)), 1)
    kinds = tuple(dict.fromkeys(p.kind for p in tensors.projections))
    fitted = replace(
        config, r_max=r_max, alpha=float(r_max), kinds=kinds, nested_prob=0.0, warmup_steps=0,
        measure_reference=False, orthogonality_weight=0.0,  # balanced factors have no unit norms
    )  # fmt: skip
    learner = TransformerLearner(fitted, splits)
    load_tensors(learner.adapter, tensors)
    return learner


def coding_for(
    learner: TransformerLearner,
    relative_step: float,
    power: float = 0.5,
    n_batches: int = SENSITIVITY_BATCHES,
) -> Coding:
    """Return the steps that suit a learner's adapter: coarser where its weights matter less.

    Args:
        learner: with a balanced adapter.
        relative_step: see `QatConfig`.
        power: of the sensitivity.
        n_batches: over which squared gradients are averaged; fewer if there are fewer texts.

    Raises:
        CodecError: an adapter of zeros.
        DataError: too few texts.
    """
    exponent = exponent_of_quality(tensors_of(learner.adapter), relative_step)
    if power == 0:
        return Coding(exponent, (0,) * learner.layout.n_projections)
    size = learner.config.batch_size
    if learner.is_causal:
        n_batches = min(n_batches, max(SENSITIVITY_TEXTS // size, 1))
    n = max(min(n_batches, len(learner.data.train) // size), 1)
    if learner.is_causal:
        size = min(size, len(learner.data.train))
        chosen = _drawn_texts(learner, n * size, seed=0).reshape(n, size)
        found = weight_sensitivity(learner.adapter, chosen, learner.loss_parts)
    else:
        found = weight_sensitivity(learner.adapter, training_batches(learner, n))
    return Coding(exponent, offsets_of_sensitivity(found, power))


def weight_sensitivity(
    adapter: ElasticAdapter,
    batches: Iterable[Any],
    losses: Callable[[Any], Iterable[Tensor]] | None = None,
) -> FloatArray:
    """Return (N,) mean squared gradient of a weight of each projection's P and Q.

    The diagonal of the empirical Fisher information, an estimate of the curvature of the loss, up
    to a factor that is the same for all projections. The adapter has to be balanced,
    as `arrays.load_tensors` leaves it.

    Args:
        adapter: a trained one, left as it is; run in eval mode under the active ranks. A
            projection of rank 0 has a sensitivity of 0.
        batches: keyword arguments of the model, with labels; or what `losses` takes.
        losses: returns a batch's loss, in parts that sum to it; None takes the model's own.

    Raises:
        DataError: no batch.
    """
    n_batches = 0
    sums = np.zeros(adapter.layout.n_projections)
    training = adapter.model.training
    adapter.model.eval()
    alive = [(i, r) for i, r in enumerate(adapter.rank_list) if r]
    parts = [part for i, _ in alive for part in adapter.factors()[i][::2]]
    try:
        with torch.enable_grad():
            for batch in batches:
                each = [adapter.model(**batch).loss] if losses is None else losses(batch)
                gradients = _summed_gradients(each, parts)
                for (i, r), of_q, of_p in zip(alive, gradients[::2], gradients[1::2], strict=True):
                    squares = (
                        of_q[:r].double().square().mean(),
                        of_p[:, :r].double().square().mean(),
                    )
                    sums[i] += float(squares[0] + squares[1]) / 2
                n_batches += 1
    finally:
        adapter.model.train(training)
    if n_batches == 0:
        raise DataError("Sensitivities need at least one batch.")
    return sums / n_batches


def _summed_gradients(losses: Iterable[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a sum of losses, each of whose graphs is freed before the next."""
    total: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss, parts)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
    return total


def _drawn_texts(learner: TransformerLearner, size: int, seed: int) -> IntArray:
    """Return positions of random training texts."""
    rng = np.random.default_rng(seed)
    return rng.choice(len(learner.data.train), size=size, replace=False)


def training_batches(
    learner: TransformerLearner, n_batches: int, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Return random training batches of a learner as keyword arguments of its model, with labels.

    Raises:
        DataError: no batch is asked for, or there are fewer texts than they need.
    """
    config, data = learner.config, learner.data.train
    size = n_batches * config.batch_size
    if not 1 <= size <= len(data):
        raise DataError(f"{n_batches} batches need {size} texts, and there are {len(data)}.")
    chosen = _drawn_texts(learner, size, seed)
    longest = min(config.max_length, learner.tokenizer.model_max_length)
    tokens = tokenise(data.subset(chosen.tolist()), learner.tokenizer, longest)
    batches: list[dict[str, Tensor]] = []
    for indices in np.arange(size).reshape(n_batches, -1):
        batch = tokens.collate(indices).to(learner.accelerator.device)
        labels = batch.labels
        if config.objective == "causal" or labels is None:
            labels = batch.wanted
        ids, mask = batch.input_ids, batch.attention_mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches
