"""Settings of the texts that are learned from, and of how the adapters train on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rankcast.errors import ConfigError, check_choice


@dataclass(frozen=True)
class DatasetConfig:
    """Which texts to learn from.

    Attributes:
        source: what to read: `docstrings` (needs nothing), a file, a folder with one file a split,
            or the name of a data set on the Hugging Face hub.
        hub_config: the configuration of a hub data set, such as `sst2` of `nyu-mll/glue`.
        text_column: the column of texts.
        label_column: the column of classes; none for a causal language model.
        prompt_column: the column of prompts, for a causal language model that learns to answer;
            goes with `completion_column`, and the text and label columns are not read.
        completion_column: the column of what each prompt is to be answered with.
        messages_column: instead of both, the column of chats: lists of messages with a role and a
            content, or their JSON. The model's own chat template makes texts of them.
        train: name of the training file (or hub split); `train.*` is found by itself.
        validation: name of the validation file; without one, a tenth of the training texts is
            held out.
        test: name of the test file; without one, the validation split serves.
        max_train: at most so many training texts, drawn at random; all by default.
        max_validation: at most so many validation texts.
        max_test: at most so many test texts.
        seed: seed of the draws and splits; the run's own unless set.

    Raises:
        ConfigError: prompts without completions, the reverse, or messages beside them.
    """

    source: str = "docstrings"
    hub_config: str | None = None
    text_column: str = "text"
    label_column: str | None = "label"
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse columns that do not go together."""
        check_answer_columns(self.prompt_column, self.completion_column, self.messages_column)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The columns of prompts and completions, or the one of messages; none for whole texts."""
        columns = self.prompt_column, self.completion_column, self.messages_column
        return tuple(column for column in columns if column is not None)


@dataclass(frozen=True)
class FinetuneConfig:
    """A base model, its adapters, and how they are trained.

    Attributes:
        model: base model: a hub id, a local folder, `minilm` or `tiny`.
        objective: classify texts, or predict their next token.
        kinds: kinds of projection that carry an adapter, such as `q` and `v`; all by default.
        r_max: largest rank.
        alpha: the adapters' scale is alpha / r_max; none for a scale of 1.
        dropout: dropout of the adapters' input; off wherever a loss is compared with another.
        base_dropout: keep the base model's own dropout while training.
        train_pooler: train a BERT-like pooler with the head. It has to be sent like the head.
        lr: learning rate at its peak.
        weight_decay: decoupled weight decay.
        warmup_steps: steps over which the learning rate rises from zero.
        total_steps: steps after which it has fallen to zero again; those of the run unless set.
        batch_size: texts of a step, over all processes together.
        grad_accumulation: parts in which each process computes its share of a batch.
        max_grad_norm: gradients are scaled down to this norm.
        orthogonality_weight: factor on the regulariser of Eq. 3.
        nested_prob: share of steps that train random ranks instead of the plan's, so that every
            prefix of the components becomes a good adapter. Losses are the plan's either way.
        nested_levels: how those ranks are drawn: `even`, each from 0..r_max alike, so that their
            mean is always near r_max / 2; or `spread`, around a level that is itself drawn from
            0..r_max, so that small adapters are trained as often as large ones.
        measure_reference: also measure each batch's loss at full rank.
        mixed_precision: number format of the forward pass; `auto` is what the device does best;
            on a CPU that is float32, but for causal models, which train in bfloat16 if it can.
        max_length: texts are cut at this many tokens. Of a prompt with an answer the prompt's
            beginning goes first.
        eval_batch_size: texts of a forward pass outside training.
        pass_tokens: most tokens, padding included, of a training pass of a causal model; a batch
            is computed in as many parts as that takes, which changes nothing but memory. Passes
            outside training take eight times as many. 256 on a CPU and 16,384 elsewhere unless
            set.
        seed: seed of everything that is drawn in training; the run's own unless set.

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
    pass_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ("total_steps", "batch_size", "grad_accumulation", "eval_batch_size"):
            _require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        if self.pass_tokens is not None:
            _require("pass_tokens", self.pass_tokens, "at least 1", self.pass_tokens >= 1)
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            _require(name, value, "positive and finite", 0 < value < math.inf)
        for name in ("weight_decay", "warmup_steps", "orthogonality_weight"):
            value = getattr(self, name)
            _require(name, value, "from 0 up", 0 <= value < math.inf)
        _require("nested_prob", self.nested_prob, "from 0 to 1", 0 <= self.nested_prob <= 1)
        check_choice("objective", self.objective, ("classification", "causal"))
        check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16", "auto"))
        check_choice("nested_levels", self.nested_levels, ("even", "spread"))

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: it rises over the warm-up, then falls to zero."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        left = (self.total_steps - step) / max(self.total_steps - self.warmup_steps, 1)
        return self.lr * min(max(left, 0.0), 1.0)


def check_answer_columns(prompt: str | None, completion: str | None, messages: str | None) -> None:
    """Refuse columns of answers that do not go together.

    Raises:
        ConfigError: says which.
    """
    if (prompt is None) != (completion is None):
        raise ConfigError("prompt_column and completion_column go together: name both.")
    if prompt is not None and messages is not None:
        raise ConfigError("Name prompt_column and completion_column, or messages_column, not both.")


def _require(name: str, value: object, what: str, holds: bool) -> None:
    """Raise unless a setting is in its range."""
    if not holds:
        raise ConfigError(f"{name} must be {what}, got {value}.")
