"""A short training after the training, on rounded weights, after which an adapter codes small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rankcast.adapters.coding import load_tensors, tensors_of
from rankcast.codec.ladder import exponent_of_quality, offsets_of_sensitivity
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ConfigError
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.distillation import Teacher
from rankcast.finetune.importance import training_batches, weight_sensitivity
from rankcast.finetune.rounding import Rounding
from rankcast.finetune.texts import DatasetSplits
from rankcast.finetune.transformer import TransformerLearner

SENSITIVITY_BATCHES = 60


@dataclass(frozen=True, slots=True)
class Finish:
    """How an adapter is finished.

    Attributes:
        steps: of training.
        lr: learning rate at its beginning; it falls to zero.
        relative_step: quantiser step as a multiple of the root mean square of the weights before.
        bit_weight: see `Rounding`.
        sensitivity_power: see `ladder.offsets_of_sensitivity`; 0 gives all projections one step.
        distil: train towards the answers that the adapter gave before, not towards the labels.

    Raises:
        ConfigError: a value out of its range.
    """

    steps: int = 400
    lr: float = 1e-3
    relative_step: float = 3.0
    bit_weight: float = 6e-7
    sensitivity_power: float = 0.5
    distil: bool = True

    def __post_init__(self) -> None:
        """Check every range."""
        if self.steps < 1 or not self.lr > 0 or not self.relative_step > 0:
            raise ConfigError(
                f"A finish needs at least one step, a positive learning rate and a positive "
                f"relative_step, got {self.steps}, {self.lr} and {self.relative_step}."
            )
        if not self.bit_weight >= 0 or not self.sensitivity_power >= 0:
            raise ConfigError(
                f"bit_weight and sensitivity_power must be at least 0, got {self.bit_weight} and "
                f"{self.sensitivity_power}."
            )


@dataclass(frozen=True, slots=True)
class Coding:
    """At which steps an adapter is to be coded.

    Attributes:
        exponent: of the common step.
        offsets: (N,) what is added to it for each projection.
    """

    exponent: int
    offsets: tuple[int, ...]


def learner_for(
    tensors: AdapterTensors, config: FinetuneConfig, splits: DatasetSplits
) -> TransformerLearner:
    """Return a learner that holds an adapter, with room for no more than its ranks.

    Raises:
        ModelError: the model has other projections than the adapter.
    """
    r_max = max(int(tensors.ranks.max(initial=0)), 1)
    kinds = tuple(dict.fromkeys(p.kind for p in tensors.projections))
    found = replace(
        config, r_max=r_max, alpha=float(r_max), kinds=kinds, nested_prob=0.0, warmup_steps=0,
        measure_reference=False, orthogonality_weight=0.0,  # balanced factors have no unit norms
    )  # fmt: skip
    learner = TransformerLearner(found, splits)
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
        learner: with a balanced adapter (`canonical.balance`).
        relative_step: see `Finish`.
        power: of the sensitivity.
        n_batches: over which squared gradients are averaged; fewer if there are fewer texts.

    Raises:
        CodecError: an adapter of zeros.
        DataError: too few texts.
    """
    exponent = exponent_of_quality(tensors_of(learner.adapter), relative_step)
    if power == 0:
        return Coding(exponent, (0,) * learner.layout.n_projections)
    n = min(n_batches, len(learner.data.train) // learner.config.batch_size)
    batches = training_batches(learner, max(n, 1))
    return Coding(
        exponent, offsets_of_sensitivity(weight_sensitivity(learner.adapter, batches), power)
    )


def prepare_finish(
    tensors: AdapterTensors,
    config: FinetuneConfig,
    splits: DatasetSplits,
    finish: Finish,
    coding: Coding | None = None,
) -> tuple[TransformerLearner, Coding]:
    """Return a learner set up to finish an adapter, and the steps at which to code it afterwards.

    Args:
        tensors: the trained adapter, balanced.
        config: how it was trained; learning rate and steps are those of the finish.
        splits: what to train on.
        finish: how.
        coding: known steps; None derives them (`coding_for`).

    Raises:
        ModelError: the model has other projections than the adapter.
        CodecError: an adapter of zeros.
        DataError: too few texts.
    """
    learner = learner_for(tensors, replace(config, lr=finish.lr, total_steps=finish.steps), splits)
    if coding is None:
        coding = coding_for(learner, finish.relative_step, finish.sensitivity_power)
    exponents = (coding.exponent, coding.exponent)
    learner.rounding = Rounding(exponents, finish.bit_weight, coding.offsets)
    if finish.distil:
        learner.teacher = Teacher(learner.adapter)
    return learner, coding


def run_finish(learner: TransformerLearner, on_step: Callable[[float], bool] | None = None) -> bool:
    """Train a prepared learner to the end of its steps.

    Args:
        learner: from `prepare_finish`, perhaps with a state loaded since.
        on_step: told each loss; training pauses when it returns True.

    Returns:
        Whether the end was reached.

    Raises:
        RankcastError: the loss or its gradients are not finite.
    """
    full = np.full((1, learner.layout.n_projections), learner.layout.r_max)
    learner.apply(np.minimum(full, learner.adapter.ranks[None]))
    while learner.n_steps < learner.config.total_steps:
        loss = learner.train_step()
        if on_step is not None and on_step(loss):
            return learner.n_steps >= learner.config.total_steps
    return True
