"""The objectives of a model: classify a text, predict its next token, or answer as before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import ConfigError, DataError
from rankcast.learner.batching import IGNORED, Batch


@dataclass(frozen=True)
class Judged:
    """Losses and right answers of each text of a batch.

    Attributes:
        loss: (B,) summed cross-entropy of its predictions [nats].
        correct: (B,) how many of them were right.
        count: (B,) how many there were.
    """

    loss: Tensor
    correct: Tensor
    count: Tensor


class Objective(Protocol):
    """A way to turn logits into losses."""

    @property
    def task_type(self) -> str:
        """PEFT's name for it."""
        ...

    def count(self, batch: Batch) -> int:
        """Return how many predictions a batch asks for, known before it is run."""
        ...

    def judge(self, logits: Tensor, batch: Batch) -> Judged:
        """Return loss and number of right answers of each text."""
        ...

    def divergence(self, logits: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """Return (B,) Kullback-Leibler divergence from other answers, summed [nats]."""
        ...


@dataclass(frozen=True)
class SequenceClassification:
    """One of `n_labels` classes for each text.

    Raises:
        ConfigError: fewer than two classes.
    """

    n_labels: int
    task_type: str = "SEQ_CLS"

    def __post_init__(self) -> None:
        """Refuse a classifier that has nothing to choose."""
        if self.n_labels < 2:
            raise ConfigError(f"A classifier needs at least two classes, got {self.n_labels}.")

    def count(self, batch: Batch) -> int:
        """Return B: one prediction a text."""
        return len(_labels(batch))

    def judge(self, logits: Tensor, batch: Batch) -> Judged:
        """Return the cross-entropy of (B, n_labels) logits."""
        labels = _labels(batch)
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return Judged(loss, (logits.argmax(-1) == labels).long(), torch.ones_like(labels))

    def divergence(self, logits: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """Return KL(reference ‖ model) of (B, n_labels) logits; labels are not needed."""
        del batch
        return divergence_of(logits, reference)


@dataclass(frozen=True)
class CausalLM:
    """The next token: of answers, or everywhere in texts that are learned whole."""

    task_type: str = "CAUSAL_LM"

    def count(self, batch: Batch) -> int:
        """Return the number of tokens to say that have another before them."""
        return int((batch.wanted[:, 1:] != IGNORED).sum())

    def judge(self, logits: Tensor, batch: Batch) -> Judged:
        """Return the summed cross-entropy of (B, S, V) logits shifted by one."""
        target = batch.wanted[:, 1:]
        ahead = logits[:, :-1].float()
        loss = F.cross_entropy(
            ahead.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="none"
        )
        correct = (ahead.argmax(-1) == target).sum(-1)
        return Judged(loss.view_as(target).sum(-1), correct, (target != IGNORED).sum(-1))

    def divergence(self, logits: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """Return KL(reference ‖ model) of (B, S, V) logits, wherever a token is to be said."""
        mask = batch.wanted[:, 1:] != IGNORED
        return (divergence_of(logits[:, :-1], reference[:, :-1]) * mask).sum(-1)


def divergence_of(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(reference ‖ model) over the last axis [nats]."""
    ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _labels(batch: Batch) -> Tensor:
    """Return the labels of a batch."""
    if batch.labels is None:
        raise DataError(
            "Classification needs labels, and this split has none: name the label column, use "
            "another split, or set the objective to causal."
        )
    return batch.labels


class AdapterSnapshot:
    """An adapter's weights as they are now, whose answers it can later be trained towards.

    The base model is shared (Hinton et al. 2015, with the adapter as its own teacher).

    Args:
        adapter: whose weights and ranks are kept; training it afterwards leaves the copy as it is.
    """

    def __init__(self, adapter: ElasticAdapter) -> None:
        self._adapter = adapter
        self._ranks = adapter.ranks
        self._parameters = [p for factors in adapter.factors() for p in factors]
        self._parameters += adapter.other_parameters()
        self._kept = [p.detach().clone() for p in self._parameters]

    @classmethod
    def of(cls, adapter: ElasticAdapter, state: Mapping[str, Any]) -> Self:
        """Return what `state_dict` was of; the adapter stays as it is."""
        snapshot = cls(adapter)
        snapshot._ranks = np.array(state["ranks"], dtype=np.int64)
        for kept, value in zip(snapshot._kept, state["kept"], strict=True):
            kept.copy_(value)
        return snapshot

    def state_dict(self) -> dict[str, Any]:
        """Return weights and ranks, as copies."""
        return {"ranks": self._ranks.tolist(), "kept": [kept.clone() for kept in self._kept]}

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let the model answer as it did, in eval mode and unrounded, inside a `with` block."""
        adapter, model = self._adapter, self._adapter.model
        training = model.training
        model.eval()
        try:
            with (
                torch.no_grad(),
                self._restored(),
                adapter.at_ranks(self._ranks),
                adapter.at_steps(None),
            ):
                yield
        finally:
            model.train(training)

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Exchange the weights for those kept, without copying, inside a `with` block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._kept[i] = self._kept[i], parameter.data


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return logits whose probabilities are the mean of those of several."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([one.float().log_softmax(-1) for one in logits]).logsumexp(0)
