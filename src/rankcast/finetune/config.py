"""What a live fine-tuning run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rankcast.errors import ConfigError


@dataclass(frozen=True)
class FinetuneConfig:
    """A base model, its adapters, and how they are trained.

    Attributes:
        model: a hub id, a local folder, `minilm` or `tiny` (see `base_models.load_model`).
        objective: classify texts, or predict their next token.
        kinds: kinds of projection that carry an adapter; None for all.
        r_max: largest rank.
        alpha: the adapters' scale is alpha / r_max; None for a scale of 1.
        dropout: of the adapters' input. It is off wherever a loss is compared with another.
        base_dropout: keep the base model's own dropout while training.
        train_pooler: train a BERT-like pooler with the head. It has to be sent like the head.
        lr: learning rate at its peak.
        weight_decay: decoupled weight decay.
        warmup_steps: steps over which the learning rate rises from zero.
        total_steps: steps after which it has fallen to zero again.
        batch_size: texts a step, over all processes together.
        grad_accumulation: parts in which each process computes its share of a batch.
        max_grad_norm: gradients are scaled down to this norm.
        orthogonality_weight: factor on the regulariser of Eq. 3.
        nested_prob: share of steps that train random ranks instead of the plan's, so that every
            prefix of the components becomes a good adapter. Losses are the plan's either way.
        nested_levels: how those ranks are drawn: `even`, each from 0..r_max alike, so that their
            mean is always near r_max / 2; or `spread`, around a level that is itself drawn from
            0..r_max, so that small adapters are trained as often as large ones.
        measure_reference: also measure each batch's loss at full rank.
        mixed_precision: `no`, `bf16`, `fp16`, or `auto` for what the device does best.
        max_length: texts are cut at this many tokens.
        eval_batch_size: texts a forward pass outside training.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a value out of its range.
    """

    model: str = "minilm"
    objective: Literal["classification", "causal"] = "classification"
    kinds: tuple[str, ...] | None = None
    r_max: int = 8
    alpha: float | None = 32.0
    dropout: float = 0.0
    base_dropout: bool = False
    train_pooler: bool = False
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    total_steps: int = 1000
    batch_size: int = 32
    grad_accumulation: int = 1
    max_grad_norm: float = 1.0
    orthogonality_weight: float = 0.1
    nested_prob: float = 0.0
    nested_levels: Literal["even", "spread"] = "even"
    measure_reference: bool = True
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "auto"
    max_length: int = 128
    eval_batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ("total_steps", "batch_size", "grad_accumulation", "eval_batch_size"):
            _require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            _require(name, value, "positive and finite", 0 < value < math.inf)
        for name in ("weight_decay", "warmup_steps", "orthogonality_weight"):
            value = getattr(self, name)
            _require(name, value, "from 0 up", 0 <= value < math.inf)
        _require("nested_prob", self.nested_prob, "from 0 to 1", 0 <= self.nested_prob <= 1)
        allowed = {
            "objective": ("classification", "causal"),
            "mixed_precision": ("no", "bf16", "fp16", "auto"),
            "nested_levels": ("even", "spread"),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            _require(name, repr(value), f"one of {', '.join(values)}", value in values)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: it rises over the warm-up, then falls to zero."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        left = (self.total_steps - step) / max(self.total_steps - self.warmup_steps, 1)
        return self.lr * min(max(left, 0.0), 1.0)


def _require(name: str, value: object, what: str, holds: bool) -> None:
    """Raise unless a setting is in its range."""
    if not holds:
        raise ConfigError(f"{name} must be {what}, got {value}.")
